"""From the pieces a model streams to what callers want: kept outputs, logits, loss.

`KeptOutputs` and `NextTokenLoss` each take the pieces one by one, so that nothing of the length of the sequence is
held that was not asked for. `model_outputs` and `causal_lm_outputs` are the forwards without and with a head.

Dims: B batch, T positions, n positions of a piece, D model width, V vocabulary, K kept positions.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .gradient_sums import GradientSums
from .row_layout import Rows
from .segment_inputs import TextInputs

IGNORE_INDEX = -100
# Logits of all positions are refused above this: at 50,288 rows of vocabulary, 21,000 tokens in fp32.
LOGITS_LIMIT_BYTES = 4 * 1024**3
# The loss is computed for as many positions at a time as have fp32 logits of this size: 1,334 at 50,288 rows.
LOSS_LOGITS_BYTES = 256 * 1024**2


class KeptOutputs:
    """Collects the outputs at `keep` (K,), positions in the caller's layout; None keeps all T.

    A masked position gives the output of the last real token before it, zeros where there is none.
    """

    def __init__(self, rows: Rows, keep: torch.Tensor | None = None):
        self.layout = rows.layout
        self.positions = None  # (B, K) at the front, or all
        if keep is not None:
            self.positions = (
                keep[None].expand(rows.batch_size, -1) if self.layout is None else self.layout.last_real[:, keep]
            )
        self.pieces = []

    def add(self, start: int, hidden: torch.Tensor) -> None:
        """Take the outputs (B, n, D) of the positions from `start`."""
        if self.positions is None:
            self.pieces.append(hidden)
            return
        here = (self.positions >= start) & (self.positions < start + hidden.shape[1])
        picked = _gather(hidden, (self.positions - start).clamp(0, hidden.shape[1] - 1))
        self.pieces = [torch.where(here[..., None], picked, self.pieces[0] if self.pieces else 0)]

    def result(self) -> torch.Tensor:
        """Return (B, K, D)."""
        outputs = self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces, dim=1)
        if self.positions is not None or self.layout is None:
            return outputs
        last_real = self.layout.last_real  # (B, T)
        return _gather(outputs, last_real.clamp(min=0)).masked_fill(last_real[..., None] < 0, 0)


def _gather(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, n, D), (B, K) -> (B, K, D)"""
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2]))


class NextTokenLoss:
    """Sums the cross entropy of the supervised positions; logits exist for a few of them at a time.

    Position t predicts the row's next real token, `labels` being aligned with the inputs. The sum is divided by
    `num_items` (the Trainer's count over accumulated batches) or by the number of supervised positions; without
    any the loss is 0.
    """

    def __init__(self, rows: Rows, labels: torch.Tensor, head: nn.Module, num_items: torch.Tensor | int | None = None):
        if labels.shape != (rows.batch_size, rows.full_length):
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit input of ({rows.batch_size}, {rows.full_length})"
            )
        labels = rows.to_front(labels.to(rows.device), IGNORE_INDEX)
        self.targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # shifted once, so pieces need no overlap
        self.num_items = (self.targets != IGNORE_INDEX).sum() if num_items is None else num_items
        self.head = head
        self.total = None

    def add(self, start: int, hidden: torch.Tensor) -> None:
        """Take the outputs (B, n, D) of the positions from `start`."""
        part = self.part(start, hidden)
        self.total = part if self.total is None else self.total + part

    def part(self, start: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the sum over the supervised ones of the positions from `start`, given their outputs (B, n, D)."""
        hidden, targets = self._supervised(start, hidden)
        sums = [self._sum(h, t) for h, t in zip(*self._split(hidden, targets))]
        return torch.stack(sums).sum() if len(sums) > 1 else sums[0]

    def trained(self) -> list[nn.Parameter]:
        """Return the head's weights that need a gradient."""
        return [parameter for parameter in self.head.parameters() if parameter.requires_grad]

    def part_backward(
        self, start: int, hidden: torch.Tensor, gradient: torch.Tensor, sums: GradientSums, autocast
    ) -> torch.Tensor:
        """Return the gradient of `hidden` (B, n, D) from that of `part`, a scalar; the head's is added to `sums`.

        `autocast` makes the context that `part` ran in.
        """
        where = self._mask(start, hidden)
        supervised, targets = self._supervised(start, hidden)
        found, head = [], self.trained()
        for leaf, target in zip(*self._split(supervised, targets)):
            leaf = leaf.detach().requires_grad_()
            with torch.enable_grad(), autocast():
                loss = self._sum(leaf, target)
            of_leaf, *of_head = torch.autograd.grad(loss, [leaf, *head], gradient, allow_unused=True)
            sums.add_all(head, of_head)
            found.append(of_leaf)
            del loss, of_head
        return torch.zeros_like(hidden).masked_scatter_(where[..., None], torch.cat(found))

    def result(self) -> torch.Tensor:
        """Return the scalar loss."""
        return self.total / torch.as_tensor(self.num_items, device=self.total.device).clamp(min=1)

    def _mask(self, start, hidden):
        return self.targets[:, start : start + hidden.shape[1]] != IGNORE_INDEX

    def _supervised(self, start, hidden):
        """Return outputs (K, D) and targets (K,) of the supervised positions."""
        where = self._mask(start, hidden)
        return hidden[where], self.targets[:, start : start + hidden.shape[1]][where]

    def _split(self, hidden, targets):
        """Cut supervised positions into runs whose logits stay within `LOSS_LOGITS_BYTES`; at least one run."""
        positions = max(1, LOSS_LOGITS_BYTES // (4 * self.head.weight.shape[0]))
        return hidden.split(positions), targets.split(positions)

    def _sum(self, hidden, targets):
        return F.cross_entropy(logits_of(self.head, hidden), targets, reduction="sum")


def logits_of(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Apply the head; logits are fp32 or better."""
    logits = head(hidden.to(head.weight.dtype))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def read_rows(
    model: nn.Module,
    rows: Rows,
    inputs: TextInputs,
    sinks: list[KeptOutputs | NextTokenLoss],
    past_key_values=None,
    output_hidden_states: bool = False,
    segment_length: int | None = None,
):
    """Stream `rows` through `model` (a `Ma2mbaModel`) into the sinks; return the state and, if asked, hidden states.

    In training with multi-axis checkpointing enabled, the rows are read by the plan for their length instead.

    `past_key_values` is brought up to date in place once everything has been read, and not before.
    """
    if segment_length is not None and segment_length < 1:
        raise ValueError(f"segment_length={segment_length} must be at least 1")
    state = model.new_state(rows.batch_size) if past_key_values is None else past_key_values.fork()
    seen_before = state.seen_tokens
    checkpointing = model.checkpointing
    # Loss and logits at once are asked for outside training only, whatever mode the model inside is in.
    if checkpointing is not None and model.training and torch.is_grad_enabled() and len(sinks) == 1:
        if output_hidden_states:
            raise ValueError(
                'output_hidden_states in training needs every layer\'s activations, which "ma-gc" does not keep; '
                "call gradient_checkpointing_disable() first"
            )
        state = checkpointing.read(model, rows, inputs, sinks[0], state)
        return _bring_up_to_date(state, past_key_values, seen_before + rows.full_length), None
    layers = [KeptOutputs(rows) for _ in range(model.config.num_hidden_layers + 1)] if output_hidden_states else None
    for start, hidden, per_layer in model.stream(
        inputs, rows.length, state, rows.layout, segment_length, output_hidden_states, inputs.borders()
    ):
        for sink in sinks:
            sink.add(start, hidden)
        for sink, layer_hidden in zip(layers or [], per_layer or []):
            sink.add(start, layer_hidden)
    state = _bring_up_to_date(state, past_key_values, seen_before + rows.full_length)
    return state, tuple(sink.result() for sink in layers) if layers else None


def _bring_up_to_date(state, past_key_values, seen_tokens: int):
    """Return the state after all positions, padding included: it is what `generate` counts."""
    state.seen_tokens = seen_tokens
    if past_key_values is None:
        return state
    past_key_values.assign(state)
    return past_key_values


def model_outputs(
    model: nn.Module, rows: Rows, inputs: TextInputs, use_cache: bool, **options
) -> BaseModelOutputWithPast:
    """The forward of a model without a head: outputs of all positions."""
    kept = KeptOutputs(rows)
    state, hidden_states = read_rows(model, rows, inputs, [kept], **options)
    return BaseModelOutputWithPast(
        last_hidden_state=kept.result(), past_key_values=state if use_cache else None, hidden_states=hidden_states
    )


def causal_lm_outputs(
    model: nn.Module,
    head: nn.Module,
    rows: Rows,
    inputs: TextInputs,
    use_cache: bool,
    labels: torch.Tensor | None = None,
    logits_to_keep: int | torch.Tensor = 0,
    num_items_in_batch: torch.Tensor | int | None = None,
    training: bool = False,
    **options,
) -> CausalLMOutputWithPast:
    """The forward of a model with a head: loss where there are labels, logits except in training with labels."""
    loss = None if labels is None else NextTokenLoss(rows, labels, head, num_items_in_batch)
    kept = None
    if labels is None or not training:
        keep = _kept(logits_to_keep, rows)
        _check_logits_size(rows, keep, head)
        kept = KeptOutputs(rows, keep)
    state, hidden_states = read_rows(model, rows, inputs, [s for s in (loss, kept) if s is not None], **options)
    return CausalLMOutputWithPast(
        loss=None if loss is None else loss.result(),
        logits=None if kept is None else logits_of(head, kept.result()),
        past_key_values=state if use_cache else None,
        hidden_states=hidden_states,
    )


def _kept(logits_to_keep: int | torch.Tensor, rows: Rows) -> torch.Tensor | None:
    if torch.is_tensor(logits_to_keep):
        if logits_to_keep.ndim != 1:
            raise ValueError(f"logits_to_keep of shape {tuple(logits_to_keep.shape)}: give a number or 1-D positions")
        length = rows.full_length
        if ((logits_to_keep < -length) | (logits_to_keep >= length)).any():
            raise ValueError(f"logits_to_keep={logits_to_keep.tolist()} has positions outside the {length} tokens")
        return logits_to_keep.to(rows.device) % length
    if logits_to_keep < 0:
        raise ValueError(f"logits_to_keep={logits_to_keep}: give a number of last positions, or positions as a tensor")
    if logits_to_keep == 0:
        return None
    first = max(0, rows.full_length - logits_to_keep)
    return torch.arange(first, rows.full_length, device=rows.device)


def _check_logits_size(rows: Rows, keep: torch.Tensor | None, head: nn.Module) -> None:
    count = rows.batch_size * (rows.full_length if keep is None else len(keep))
    size = count * head.weight.shape[0] * 4
    if size > LOGITS_LIMIT_BYTES:
        raise ValueError(
            f"logits of {count} positions would take {size / 1024**3:.1f} GiB (limit "
            f"{LOGITS_LIMIT_BYTES / 1024**3:.0f} GiB); pass logits_to_keep=1 for the next token only, "
            "or the positions you need"
        )
