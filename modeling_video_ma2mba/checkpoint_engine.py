"""Runs a training step by a `CheckpointPlan`: multi-axis gradient checkpointing (MA-GC), exact for every plan.

One autograd node stands for the whole stack. Its forward runs segment by segment without a graph and keeps what the
plan says; its backward visits segments last to first and, inside one, groups of layers last to first (the paper's
Algorithms 1 and 2, arXiv 2411.19460, section 3.3), layer by layer inside a cell. Input, head and loss are computed
inside the segment, in the forward and again in the backward, so that nothing of the length of the sequence is held but
what the plan keeps. Weight gradients are summed over segments and returned as ordinary gradients.

Not here: which plan to take (checkpoint_planner.py); models whose weights are sharded (checkpoint_cells.py).

Dims: B batch, T tokens, n tokens of a segment, D model width, L layers.
"""

import copy
import dataclasses
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch

from .checkpoint_plan import CheckpointPlan
from .checkpoint_store import CheckpointStack
from .gradient_sums import GradientSums
from .kernels import choose_backend
from .state import RecurrentState


def run_checkpointed(model, inputs, length: int, state: RecurrentState, layout, plan: CheckpointPlan, loss=None):
    """Read `length` positions after `state` by `plan`; return what came out and the state behind it.

    Args:
        model: the `Ma2mbaModel`. inputs: a `TextInputs`. layout: the rows' `RowLayout` or None.
        loss: a `NextTokenLoss`; what comes out is then its sum, else the normed output (B, T, D).
    """
    run = _Run(model, inputs, length, state, layout, plan, loss)
    output, *states = _Node.apply(run, *run.trained())
    layers = model.config.num_hidden_layers
    return output, RecurrentState(states[:layers], states[layers:], state.seen_tokens + length)


class _Node(torch.autograd.Function):
    """Puts a `_Run` into the graph: its tensors' gradients are found by `_Run.backward`."""

    @staticmethod
    def forward(ctx, run, *tensors):
        ctx.set_materialize_grads(False)
        output, state = run.forward()
        ctx.run = run
        return (output, *state.conv, *state.ssm)

    @staticmethod
    def backward(ctx, grad_output, *grad_states):
        if torch.is_grad_enabled():
            raise RuntimeError(
                '"ma-gc" gives first derivatives only and create_graph=True asks for more; '
                "call gradient_checkpointing_disable() for those steps"
            )
        run, ctx.run = ctx.run, None
        if run is None:
            raise RuntimeError(
                '"ma-gc" frees its checkpoints as the backward uses them, so there is one backward per forward '
                "(retain_graph=True included): add the losses first, or run the forward again"
            )
        return None, *run.backward(grad_output, list(grad_states))


class _Layer(NamedTuple):
    """One layer's graph on one segment: leaves, and what came out."""

    index: int
    hidden: torch.Tensor
    conv: torch.Tensor
    ssm: torch.Tensor
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # hidden, conv, ssm


class _Run:
    """One step: what is kept between its forward and its backward."""

    def __init__(self, model, inputs, length, state, layout, plan, loss):
        self.model, self.inputs, self.length, self.plan = model, inputs, length, plan
        self.loss = copy.copy(loss)  # the caller's will hold the output, and with it this run
        self.layout = layout
        self.spans = plan.spans(length, inputs.borders())
        self.groups = plan.groups
        self.initial = state
        weight = model.norm_f.weight
        self.device = state.ssm[0].device
        backend = choose_backend(model.config.backend, self.device, weight.dtype)
        self.backend = dataclasses.replace(backend, recompute=plan.recompute_mixer)
        self.layer_parameters = [[p for p in layer.parameters() if p.requires_grad] for layer in model.layers]
        self.input_tensors = inputs.trained()
        self.lowest = self._lowest_trained_layer()
        self.autocast = _autocast_now(self.device)
        self.states = CheckpointStack(plan.states_on == "host", self.device)
        self.block_states = CheckpointStack(False, self.device)  # inside the block that the backward is in
        self.boundaries = CheckpointStack(plan.boundaries_on == "host", self.device)
        self.nested = []  # inputs of the groups of the segment that the backward is in
        self.randomness = {}  # (segment, group, or None for the input) -> state of the random generators
        self.latest_randomness = None
        self.kept = None  # the last cell's graph
        if hasattr(inputs, "frames_per_batch"):
            inputs.frames_per_batch, inputs.keep_features = plan.frames_per_batch, plan.keep_features

    def trained(self) -> list[torch.Tensor]:
        """Return the tensors that get a gradient, each once."""
        states = [t for t in (*self.initial.conv, *self.initial.ssm) if t.requires_grad]
        layers = [parameter for parameters in self.layer_parameters for parameter in parameters]
        head = [] if self.loss is None else self.loss.trained()
        tensors = [*self.input_tensors, *layers, *self._norm_parameters(), *head, *states]
        self.tensors = list({id(tensor): tensor for tensor in tensors}.values())
        self.versions = self._versions()
        return self.tensors

    def _versions(self) -> list[tuple[int, int]]:
        """Return which tensors the backward reads again, frozen ones too, and how often each was changed in place."""
        head = [] if self.loss is None else self.loss.head.parameters()
        read = [*self.tensors, *self.model.parameters(), *head, *self.inputs.read_again()]
        return [(id(tensor), tensor._version) for tensor in read if not tensor.is_inference()]

    def _norm_parameters(self):
        return [p for p in self.model.norm_f.parameters() if p.requires_grad]

    def _lowest_trained_layer(self) -> int:
        """Return the lowest layer that a gradient has to reach; L if only what follows the stack is trained."""
        for i, parameters in enumerate(self.layer_parameters):
            given = self.initial.conv[i].requires_grad or self.initial.ssm[i].requires_grad
            if self.input_tensors or parameters or given:
                return i
        return len(self.layer_parameters)

    # Forward.

    def forward(self) -> tuple[torch.Tensor, RecurrentState]:
        """Run without graph, keep what the plan says; return the loss's sum or the output, and the last state."""
        conv, ssm = [t.detach() for t in self.initial.conv], [t.detach() for t in self.initial.ssm]
        output = None
        with torch.no_grad():
            for j, (start, stop) in enumerate(self.spans):
                self._keep_state(j, conv, ssm)
                hidden = self._forward_segment(j, conv, ssm)
                with self.autocast():
                    normed = self.model.norm_f(hidden)
                    part = None if self.loss is None else self.loss.part(start, normed)
                if part is not None:
                    output = part if output is None else output + part
                else:
                    if output is None:
                        output = normed.new_empty(normed.shape[0], self.length, normed.shape[2])
                    output[:, start:stop] = normed
                del hidden, normed
        return output, RecurrentState([t.detach() for t in conv], [t.detach() for t in ssm])

    def _forward_segment(self, j, conv, ssm) -> torch.Tensor:
        """Run a segment in the forward; `conv` and `ssm` (lists) move along."""
        is_last, top = j == len(self.spans) - 1, len(self.groups) - 1
        hidden = self._input(j, remember=True)
        for k, layers in enumerate(self.groups):
            self._remember_randomness(j, k)
            if is_last and k == top and self.plan.keep_last_cell:
                self.kept = self._with_graph(layers, hidden, conv, ssm, self._lengths(j))
                self._remember_randomness(j, k + 1)
                graphs, hidden = self.kept
                for layer in graphs:
                    _, conv[layer.index], ssm[layer.index] = layer.outputs
                break
            if k and self.plan.is_nested and is_last:
                self.nested.append(hidden)  # the backward starts here: what it would compute first is there
            elif k and not self.plan.is_nested and (layers.stop > self.lowest or k == top):
                self.boundaries.push([hidden])
            hidden = self._without_graph(layers, hidden, conv, ssm, self._lengths(j))
        return hidden

    def _keep_state(self, j, conv, ssm) -> None:
        """Keep the state before segment j: every K-th, and all of the last block."""
        per_block = self.plan.segments_per_block
        if j == 0:
            return
        if j % per_block == 0:
            self.states.push([*conv, *ssm])
        elif j // per_block == (len(self.spans) - 1) // per_block:
            self.block_states.push([*conv, *ssm])

    def _input(self, j, remember=False) -> torch.Tensor:
        """Return the input of segment j."""
        if remember:
            self._remember_randomness(j, None)
        else:
            self.randomness[j, None].restore()
        with self.autocast():
            return self.inputs(*self.spans[j]).detach()

    def _remember_randomness(self, j, k) -> None:
        now = RandomState(self.device)
        if self.latest_randomness is None or not now.equals(self.latest_randomness):
            self.latest_randomness = now  # without dropout one for all: 5 KB of host memory each
        self.randomness[j, k] = self.latest_randomness

    def _lengths(self, j):
        return None if self.layout is None else self.layout.lengths_in(*self.spans[j])

    # Cells.

    def _without_graph(self, layers, hidden, conv, ssm, lengths) -> torch.Tensor:
        with self.autocast():
            for i in layers:
                hidden, conv[i], ssm[i] = self.model.layers[i](hidden, conv[i], ssm[i], lengths, self.backend)
        return hidden

    def _with_graph(self, layers, hidden, conv, ssm, lengths) -> tuple[list[_Layer], torch.Tensor]:
        """Run a cell with one small graph per layer; return the graphs and the output.

        A graph over the whole cell would have the gradients of all its weights at once.
        """
        graphs = []
        for i in layers:
            if i < self.lowest:
                hidden = self._without_graph([i], hidden, conv, ssm, lengths)
                continue
            hidden = hidden.detach().requires_grad_(i > self.lowest or bool(self.input_tensors))
            leaves = [hidden, *(t.detach().requires_grad_() for t in (conv[i], ssm[i]))]
            with torch.enable_grad(), self.autocast():
                outputs = self.model.layers[i](*leaves, lengths, self.backend)
            graphs.append(_Layer(i, *leaves, outputs))
            hidden = outputs[0].detach()
        return graphs, hidden

    # Backward.

    def backward(self, grad_output, grad_states) -> list[torch.Tensor | None]:
        """Return the gradient of every tensor of `trained()`."""
        if self.versions != self._versions():
            raise RuntimeError(
                "a weight or input was changed in place or exchanged between forward and backward; step afterwards"
            )
        layers = len(self.layer_parameters)
        self.sums = GradientSums()
        self.grad_conv, self.grad_ssm = grad_states[:layers], grad_states[layers:]
        with RandomState(self.device).kept():
            for j in reversed(range(len(self.spans))):
                gradient = self._backward_segment(j, grad_output)
                if self.input_tensors and gradient is not None:
                    self.randomness[j, None].restore()
                    self.inputs.backward(*self.spans[j], gradient, self.sums, self.autocast)
                del gradient
        for initial, gradients in ((self.initial.conv, self.grad_conv), (self.initial.ssm, self.grad_ssm)):
            for tensor, gradient in zip(initial, gradients):
                if tensor.requires_grad:
                    self.sums.add(tensor, gradient)
        if hasattr(self.inputs, "forget_features"):
            self.inputs.forget_features()
        return [self._gradient_of(tensor) for tensor in self.tensors]

    def _gradient_of(self, tensor) -> torch.Tensor | None:
        gradient = self.sums.pop(tensor)
        if gradient is None and any(tensor is given for given in self.input_tensors):
            # Nobody used it in this batch, others may have: in data-parallel training every rank needs a gradient.
            return torch.zeros_like(tensor)
        return gradient

    def _backward_segment(self, j, grad_output) -> torch.Tensor | None:
        """Carry the gradients of segment j's output and last state to its first state, and to its input: returned."""
        conv, ssm = self._state_before(j)
        lengths = self._lengths(j)
        if self.plan.is_nested and self.kept is None and not self.nested:
            self._nested_boundaries(j, conv, ssm, lengths)
        gradient, top = None, len(self.groups) - 1
        for k in reversed(range(len(self.groups))):
            layers = self.groups[k]
            if layers.stop <= self.lowest and k < top:
                break
            graphs, hidden = self._cell(j, k, conv, ssm, lengths)
            if k == top:
                gradient = self._backward_output(j, hidden, grad_output)
            del hidden
            while graphs:
                gradient = self._backward_layer(graphs.pop(), gradient)
            for i in layers:
                conv[i] = ssm[i] = None
        self.nested.clear()
        return gradient

    def _cell(self, j, k, conv, ssm, lengths) -> tuple[list[_Layer], torch.Tensor]:
        """Return the graphs of group k on segment j, and its output."""
        if self.kept is not None:
            kept, self.kept = self.kept, None
            self.randomness[j, k + 1].restore()  # as if it had been run: the head may draw numbers too
            return kept
        if k == 0:
            hidden = self._input(j)
        elif self.plan.is_nested:
            hidden = self.nested.pop()
        else:
            (hidden,) = self.boundaries.pop()
        self.randomness[j, k].restore()
        return self._with_graph(self.groups[k], hidden, conv, ssm, lengths)

    def _nested_boundaries(self, j, conv, ssm, lengths) -> None:
        """Run segment j up to its last group; keep the input of each group but the first."""
        conv, ssm = list(conv), list(ssm)
        hidden = self._input(j)
        for k, layers in enumerate(self.groups[:-1]):
            self.randomness[j, k].restore()
            hidden = self._without_graph(layers, hidden, conv, ssm, lengths)
            self.nested.append(hidden)

    def _state_before(self, j) -> tuple[list, list]:
        """Return the state before segment j; run its block again, up to there, where it was not kept."""
        layers = len(self.layer_parameters)
        first = j - j % self.plan.segments_per_block
        if j == 0:
            return [t.detach() for t in self.initial.conv], [t.detach() for t in self.initial.ssm]
        if len(self.block_states) == 0 and first == j:
            state = self.states.pop()
            return state[:layers], state[layers:]
        if len(self.block_states) == 0:
            conv, ssm = self._state_before(first)
            if first:
                self.block_states.push([*conv, *ssm])
            for i in range(first, j):
                hidden = self._input(i)
                for k, group in enumerate(self.groups):
                    self.randomness[i, k].restore()
                    hidden = self._without_graph(group, hidden, conv, ssm, self._lengths(i))
                self.block_states.push([*conv, *ssm])
        state = self.block_states.pop()
        return state[:layers], state[layers:]

    def _backward_output(self, j, hidden, grad_output) -> torch.Tensor | None:
        """Return the gradient of the stack's output on segment j, (B, n, D), from the loss or from what came in."""
        start, stop = self.spans[j]
        if grad_output is None:
            return None
        hidden = hidden.detach().requires_grad_(self.lowest < len(self.layer_parameters))
        with torch.enable_grad(), self.autocast():
            normed = self.model.norm_f(hidden)
        if self.loss is None:
            gradient = grad_output[:, start:stop]
        else:
            gradient = self.loss.part_backward(start, normed.detach(), grad_output, self.sums, self.autocast)
        wanted = [*([hidden] if hidden.requires_grad else []), *self._norm_parameters()]
        if not wanted:
            return None
        gradients = torch.autograd.grad(normed, wanted, gradient, allow_unused=True)
        self.sums.add_all(self._norm_parameters(), gradients[len(wanted) - len(self._norm_parameters()) :])
        return gradients[0] if hidden.requires_grad else None

    def _backward_layer(self, layer: _Layer, gradient) -> torch.Tensor | None:
        """Add a layer's weight gradients and carry those of its outputs to its input, returned, and its state."""
        i = layer.index
        given = [gradient, self.grad_conv[i], self.grad_ssm[i]]
        self.grad_conv[i] = self.grad_ssm[i] = None
        pairs = [(out, g) for out, g in zip(layer.outputs, given) if g is not None and out.requires_grad]
        if not pairs:
            return None
        leaves = [layer.hidden, layer.conv, layer.ssm]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        outputs, gradients = zip(*pairs)
        del pairs, given, gradient
        found = torch.autograd.grad(outputs, [*wanted, *self.layer_parameters[i]], gradients, allow_unused=True)
        of_leaves = iter(found[: len(wanted)])
        gradient, of_conv, of_ssm = (next(of_leaves) if t.requires_grad else None for t in leaves)
        self.grad_conv[i], self.grad_ssm[i] = _own(of_conv), _own(of_ssm)
        self.sums.add_all(self.layer_parameters[i], found[len(wanted) :])
        return gradient


def _own(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return the tensor with storage of its own: a view into a larger one would keep that alive, layer by layer."""
    if tensor is None or tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


class RandomState:
    """The state of the random generators of the host and of a device, so that a cell draws the same numbers again."""

    def __init__(self, device: torch.device):
        self.host = torch.get_rng_state()
        self.module = None if device.type == "cpu" else torch.get_device_module(device)
        self.device = device
        self.on_device = None if self.module is None else self.module.get_rng_state(device)

    def equals(self, other: "RandomState") -> bool:
        if self.module is not None and not torch.equal(self.on_device, other.on_device):
            return False
        return torch.equal(self.host, other.host)

    def restore(self) -> None:
        torch.set_rng_state(self.host)
        if self.module is not None:
            self.module.set_rng_state(self.on_device, self.device)

    @contextmanager
    def kept(self):
        """Restore this state at the end, whatever happens."""
        try:
            yield
        finally:
            self.restore()


def _autocast_now(device: torch.device):
    """Return a function that makes contexts with autocast as it is now.

    Without autocast's cache of casted weights: what is cached without graph would cut the graph of a later cell.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext
    settings = {
        "device_type": device.type,
        "dtype": torch.get_autocast_dtype(device.type),
        "enabled": torch.is_autocast_enabled(device.type),
        "cache_enabled": False,
    }
    return lambda: torch.autocast(**settings)
