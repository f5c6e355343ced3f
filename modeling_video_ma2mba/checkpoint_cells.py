"""Runs a training step by a `CheckpointPlan` as cells of torch's own checkpointing, for engines that shard weights.

FSDP and ZeRO-3 gather a block's weights around its own forward and backward, so autograd has to see every block, which
the node of checkpoint_engine.py hides. Here the same plan is non-reentrant checkpoints inside one another: a block of
segments, a segment, a group of layers. What they save is what the plan keeps.

Every block is a collective, so all ranks run the plan of the longest sequence with the most segments; a rank with
fewer starts with segments of one masked token, which leave the state as it was and whose output is dropped. Unlike in
checkpoint_engine.py, the engine sums the weights' gradients over segments, in its dtype; each segment gathers and
reduces each block again, so few long segments are faster; kept features live as long as the loss. FSDP2's mixed
precision rounds the state at every segment unless `cast_forward_inputs=False`.

FSDP1 and ZeRO-3 are only recognised; cells were never run under them. DeepSpeed has had trouble with non-reentrant
checkpoints of blocks that have frozen weights (its pull request 8148); torch then raises a `CheckpointError`.

Dims: B batch, n tokens of a segment, D model width.
"""

import dataclasses
import sys
from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from .checkpoint_engine import RandomState, _autocast_now
from .checkpoint_plan import CheckpointPlan
from .kernels import choose_backend
from .state import RecurrentState


def shards_weights(*modules: torch.nn.Module) -> str | None:
    """Return the engine that shards a weight of `modules`: "FSDP2", "FSDP", "ZeRO-3" (by what they set), or None."""
    parts = [part for module in modules for part in module.modules()]
    weights = [weight for module in modules for weight in module.parameters()]
    if any(map(_is_unit, parts)) or any(map(_is_sharded, weights)):
        return "FSDP2"
    marks = ("_fsdp_wrapped_module", "_is_fsdp_managed_module", "_is_flat_param")
    if any(hasattr(thing, mark) for thing in (*parts, *weights) for mark in marks):
        return "FSDP"
    return "ZeRO-3" if any(hasattr(weight, "ds_id") for weight in weights) else None


def run_cells(model, inputs, length: int, state: RecurrentState, layout, plan: CheckpointPlan, loss=None):
    """Read `length` positions after `state` by `plan`; arguments and results are those of `run_checkpointed`.

    A collective: with several processes each one has to call it.
    """
    run = _Run(model, inputs, length, state, layout, plan, loss)
    with _autocast_now(run.device)():
        output, *states = run.sequence([*state.conv, *state.ssm])
    layers = model.config.num_hidden_layers
    return output, RecurrentState(states[:layers], states[layers:], state.seen_tokens + length)


class _Run:
    """One step. States are flat: the convolution states of some layers, then their SSM states."""

    def __init__(self, model, inputs, length, state, layout, plan, loss):
        self.model, self.inputs, self.layout, self.loss = model, inputs, layout, loss
        self.batch_size, self.device = state.batch_size, state.ssm[0].device
        self.world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        # A rank with more supervised tokens calls the head more often than others, which would wait forever.
        inputs.embeddings = _gathered(inputs.embeddings)
        if loss is not None:
            loss.head = _gathered(loss.head)
        self.plan, self.spans = self._agree(plan, length)
        self.groups = self.plan.groups
        backend = choose_backend(model.config.backend, self.device, model.norm_f.weight.dtype)
        self.backend = dataclasses.replace(backend, recompute=self.plan.recompute_mixer)
        self.input_is_trained = bool(inputs.trained())
        self.extra_tower_calls = [0] * len(self.spans)
        if hasattr(inputs, "frames_per_batch"):
            self._prepare_vision()
        self.ran = set()  # (segment, group) that ran before
        self.randomness = {}  # segment -> state of the random generators behind its input

    def _agree(self, plan, length) -> tuple[CheckpointPlan, list[tuple[int, int] | None]]:
        """Return the plan of the longest sequence of all ranks, and this rank's spans; None: one masked token."""
        offers = [(length, dataclasses.asdict(plan))] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(offers, offers[0])
        _, fields = max(offers, key=lambda offer: offer[0])
        plan = CheckpointPlan(**fields)
        spans = plan.spans(length, self.inputs.borders())
        counts = [len(spans)] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(counts, len(spans))
        return plan, [None] * (max(counts) - len(spans)) + spans

    def _prepare_vision(self) -> None:
        inputs, plan, vision = self.inputs, self.plan, self.inputs.model
        is_trained = any(weight.requires_grad for weight in vision.vision_tower.parameters())
        inputs.frames_per_batch = plan.frames_per_batch
        inputs.keep_features = plan.keep_features and not is_trained  # a trained tower runs again anyhow
        parts = (*vision.vision_tower.modules(), *vision.multi_modal_projector.modules())
        if self.world_size > 1 and any(map(_is_unit, parts)):
            # Its calls are collectives too, as many on every rank. Kept features would save each rank other ones.
            inputs.keep_features = False
            own = [0 if span is None else inputs.tower_calls(*span) for span in self.spans]
            most = torch.tensor(own, device=self.device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            self.extra_tower_calls = [calls - mine for calls, mine in zip(most.tolist(), own)]

    # From the sequence down to a group; each returns an output (loss or normed output) and the states behind it.

    def sequence(self, states):
        """Run all segments: blocks of segments are cells, but for the last one."""
        count, per_block, outputs = len(self.spans), self.plan.segments_per_block, []
        for first in range(0, count, per_block):
            block = range(first, min(first + per_block, count))
            if per_block == 1 or block.stop == count:
                output, *states = self._segments(block, True, None, *states)
            else:
                output, *states = self._cell(partial(self._segments, block, False), first, True, None, *states)
            outputs.append(output)
        return self._joined(outputs), *states

    def _segments(self, block, is_outermost, _, *states):
        outputs = []
        for j in block:
            if self.plan.is_nested and j < len(self.spans) - 1:
                output, *states = self._cell(partial(self._segment, j, False), j, is_outermost, None, *states)
            else:
                output, *states = self._segment(j, is_outermost, None, *states)
            outputs.append(output)
        return self._joined(outputs), *states

    def _segment(self, j, is_outermost, hidden, *states):
        layers, conv, ssm = self.model.config.num_hidden_layers, [], []
        for k, group in enumerate(self.groups):
            own = [*states[group.start : group.stop], *states[layers + group.start : layers + group.stop]]
            if self.plan.keep_last_cell and j == len(self.spans) - 1 and k == len(self.groups) - 1:
                hidden, *own = self._group(j, k, hidden, *own)
            else:
                hidden, *own = self._cell(partial(self._group, j, k), j, is_outermost, hidden, *own)
            conv += own[: len(group)]
            ssm += own[len(group) :]
        return hidden, *conv, *ssm

    def _cell(self, run, j, is_outermost, hidden, *states):
        """Return `run(hidden, *states)`; these are kept for the backward, the rest is computed again there.

        Args:
            j: the first segment of the cell. is_outermost: in no other cell, so that what it keeps waits long.
        """
        plan, on_host = self.plan, []
        if is_outermost and plan.states_on == "host" and j > 0 and j % plan.segments_per_block == 0:
            on_host += states
        if is_outermost and plan.boundaries_on == "host" and hidden is not None and not plan.is_nested:
            on_host.append(hidden)
        with _KeptOnHost(on_host) if on_host else nullcontext():
            return checkpoint(run, hidden, *states, use_reentrant=False, preserve_rng_state=True)

    def _group(self, j, k, hidden, *states):
        """Run group k on segment j: the first one makes the input, the last one the output."""
        group, is_again = self.groups[k], (j, k) in self.ran
        self.ran.add((j, k))
        hidden = self._input(j) if k == 0 else hidden
        conv, ssm = list(states[: len(group)]), list(states[len(group) :])
        for at, i in enumerate(group):
            block = self.model.layers[i]
            # What runs in a backward stays gathered, all blocks of a cell: so leave them as they were found. (One in
            # the middle of its own backward was found gathered.) Hooks of older versions may not gather here.
            alone = is_again and _is_unit(block) and any(map(_is_sharded, block.parameters()))
            if alone:
                block.unshard()
            hidden, conv[at], ssm[at] = block(hidden, conv[at], ssm[at], self._lengths(j), self.backend)
            if alone:
                block.reshard()
        return self._output(j, hidden) if k == len(self.groups) - 1 else hidden, *conv, *ssm

    def _input(self, j) -> torch.Tensor:
        """Return the input of segment j, (B, n, D)."""
        rows = self.inputs.rows
        if self.spans[j] is not None:
            hidden = self.inputs(*self.spans[j])
        elif rows.inputs_embeds is not None:
            hidden = torch.zeros_like(rows.inputs_embeds[:, :1])
        else:
            hidden = self.inputs.embeddings(torch.zeros_like(rows.input_ids[:, :1])) * 0
        for _ in range(self.extra_tower_calls[j]):
            hidden = hidden + self.inputs.zero_from_vision(hidden)
        if self.input_is_trained and not hidden.requires_grad:
            # Words of a frozen embedding, frames elsewhere: where no gradient arrives, FSDP2 reduces a block later.
            hidden = hidden + torch.zeros((), dtype=hidden.dtype, device=hidden.device, requires_grad=True)
        if j in self.randomness:
            self.randomness[j].restore()  # a tower whose features were kept has drawn no numbers now
        else:
            self.randomness[j] = RandomState(self.device)
        return hidden

    def _lengths(self, j) -> torch.Tensor | None:
        if self.spans[j] is None:
            return torch.zeros(self.batch_size, dtype=torch.long, device=self.device)
        return None if self.layout is None else self.layout.lengths_in(*self.spans[j])

    def _output(self, j, hidden) -> torch.Tensor:
        """Return the loss's part or the normed output (B, n, D); of a masked token no position, so gradients are 0."""
        start, stop = self.spans[j] or (0, 0)
        normed = self.model.norm_f(hidden)[:, : stop - start]
        return normed if self.loss is None else self.loss.part(start, normed)

    def _joined(self, outputs) -> torch.Tensor:
        if len(outputs) == 1:
            return outputs[0]
        return torch.cat(outputs, dim=1) if self.loss is None else torch.stack(outputs).sum()


class _KeptOnHost(saved_tensors_hooks):
    """A context in which the given tensors are saved in host memory, others as ever."""

    def __init__(self, tensors: list[torch.Tensor]):
        host = save_on_cpu(pin_memory=tensors[0].is_cuda)
        chosen = {tensor.data_ptr() for tensor in tensors}
        super().__init__(
            lambda tensor: host.pack_hook(tensor) if tensor.data_ptr() in chosen else tensor,
            lambda packed: packed if torch.is_tensor(packed) else host.unpack_hook(packed),
        )


class _Gathered(torch.nn.Module):
    """Embeddings or head that FSDP2 shards on their own (accelerate does), whole until the end of the backward.

    The engine's hooks do not see the calls, so their number may differ between ranks; it adds up the gradients once,
    when the backward has ended.
    """

    def __init__(self, unit: torch.nn.Module):
        super().__init__()
        self.unit = unit
        unit.unshard()

    @property
    def weight(self) -> torch.Tensor:
        return self.unit.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit.forward(x)


def _gathered(module: torch.nn.Module) -> torch.nn.Module:
    return _Gathered(module) if _is_unit(module) else module


def _is_unit(module: torch.nn.Module) -> bool:
    """Tell whether `fully_shard` was called on this module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who uses it has imported it
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _is_sharded(weight: torch.Tensor) -> bool:
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(weight, tensor.DTensor)
