"""From the pieces a model streams to what callers want: kept outputs, logits, loss.

`KeptOutputs` and `NextTokenLoss` each take the pieces one by one, so that nothing of the length of the sequence is
held that was not asked for. `model_outputs` and `causal_lm_outputs` are the forwards without and with a head.

Dims: B batch, T positions, n positions of a piece, D model width, V vocabulary, K kept positions.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .row_layout import Rows

IGNORE_INDEX = -100
# Logits of all positions are refused above this: at 50,288 rows of vocabulary, 21,000 tokens in fp32.
LOGITS_LIMIT_BYTES = 4 * 1024**3


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
    """Sums the cross entropy of the supervised positions; logits exist for those of one piece only.

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
        targets = self.targets[:, start : start + hidden.shape[1]]
        supervised = targets != IGNORE_INDEX
        logits = logits_of(self.head, hidden[supervised])  # (supervised, V)
        loss = F.cross_entropy(logits, targets[supervised], reduction="sum")
        self.total = loss if self.total is None else self.total + loss

    def result(self) -> torch.Tensor:
        """Return the scalar loss."""
        return self.total / torch.as_tensor(self.num_items, device=self.total.device).clamp(min=1)


def logits_of(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Apply the head; logits are fp32 or better."""
    logits = head(hidden.to(head.weight.dtype))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def read_rows(
    model: nn.Module,
    rows: Rows,
    embed: Callable[[int, int], torch.Tensor],
    sinks: list[KeptOutputs | NextTokenLoss],
    past_key_values=None,
    output_hidden_states: bool = False,
    segment_length: int | None = None,
):
    """Stream `rows` through `model` (a `Ma2mbaModel`) into the sinks; return the state and, if asked, hidden states.

    `past_key_values` is brought up to date in place once everything has been read, and not before.
    """
    if segment_length is not None and segment_length < 1:
        raise ValueError(f"segment_length={segment_length} must be at least 1")
    state = model.new_state(rows.batch_size) if past_key_values is None else past_key_values.fork()
    seen_before = state.seen_tokens
    layers = [KeptOutputs(rows) for _ in range(model.config.num_hidden_layers + 1)] if output_hidden_states else None
    for start, hidden, per_layer in model.stream(
        embed, rows.length, state, rows.layout, segment_length, output_hidden_states
    ):
        for sink in sinks:
            sink.add(start, hidden)
        for sink, layer_hidden in zip(layers or [], per_layer or []):
            sink.add(start, layer_hidden)
    state.seen_tokens = seen_before + rows.full_length  # padding included: it is what `generate` counts
    if past_key_values is not None:
        past_key_values.assign(state)
        state = past_key_values
    return state, tuple(sink.result() for sink in layers) if layers else None


def model_outputs(model: nn.Module, rows: Rows, embed, use_cache: bool, **options) -> BaseModelOutputWithPast:
    """The forward of a model without a head: outputs of all positions."""
    kept = KeptOutputs(rows)
    state, hidden_states = read_rows(model, rows, embed, [kept], **options)
    return BaseModelOutputWithPast(
        last_hidden_state=kept.result(), past_key_values=state if use_cache else None, hidden_states=hidden_states
    )


def causal_lm_outputs(
    model: nn.Module,
    head: nn.Module,
    rows: Rows,
    embed: Callable[[int, int], torch.Tensor],
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
    state, hidden_states = read_rows(model, rows, embed, [s for s in (loss, kept) if s is not None], **options)
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
