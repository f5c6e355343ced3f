"""Predicts what a `CheckpointPlan` costs: bytes by term and seconds, from the `StepCosts` of one layer.

The formulas follow the engine line by line: which tensors are alive when a cell makes its graph, when it is gone
through backward, and when the segment's input is. X is a boundary, P the state of all layers, A a layer's graph.
"""

from dataclasses import dataclass

from .checkpoint_costs import StepCosts
from .checkpoint_plan import CheckpointPlan


@dataclass(frozen=True, kw_only=True)
class PlanCosts:
    """What a training step by a plan holds and takes.

    Attributes:
        checkpoints: device bytes of states and boundaries at the moment of the peak. working: the rest of the peak: a
            cell's graph, what head, input and vision hold, gradients of the state.
        vision: the part of `working` that the vision tower's micro-batch takes at its own peak (not added).
        host: host bytes of states, boundaries and features.
        seconds: time of layers and tower, None where it was not measured. plain_seconds: without checkpointing.
        weights, gradients, sums, optimizer: device bytes of those. source: "measured" or "analytic".
    """

    checkpoints: int
    working: int
    vision: int
    host: int
    seconds: float | None
    plain_seconds: float | None
    weights: int
    gradients: int
    sums: int
    optimizer: int
    source: str

    @property
    def activations(self) -> int:
        """Device bytes beyond weights, gradients, sums and optimizer."""
        return self.checkpoints + self.working

    @property
    def device(self) -> int:
        """Device bytes in all."""
        return self.activations + self.weights + self.gradients + self.sums + self.optimizer

    def lines(self) -> list[str]:
        """Return the terms as lines of text."""
        terms = ("weights", "gradients", "sums", "optimizer", "checkpoints", "working")
        lines = [f"device: {gib(self.device)} ({self.source})"]
        lines += [f"  {name:<12}{gib(getattr(self, name)):>12}" for name in terms]
        if self.vision:
            lines.append(f"  {'of which vision, at its own peak':<12} {gib(self.vision)}")
        lines.append(f"host: {gib(self.host)}")
        if self.seconds is not None:
            ratio = self.seconds / self.plain_seconds
            taken = f"{self.seconds:.3g} s" if self.seconds < 3600 else f"{self.seconds / 3600:.1f} h"
            lines.append(f"time of layers and tower: {taken}, {ratio:.2f} of plain training")
        return lines


def gib(size: float) -> str:
    """Write bytes for people."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:,.0f} B"


def predict(plan: CheckpointPlan, costs: StepCosts, num_frames: int = 0) -> PlanCosts:
    """Return what `plan` costs on a sequence that fills it, with `num_frames` frames in it."""
    ends = _last_of_each_length(plan)
    moments = [_forward_peak(plan, costs, 0)]
    for j in ends:
        moments += segment_peaks(plan, costs, j, num_frames)
    vision = 0
    if num_frames:
        vision = max(max(costs.frames(_frames_at_once(plan, costs, j, num_frames))[:2]) for j in ends)
    checkpoints, working = max(moments, key=sum)
    return PlanCosts(
        checkpoints=round(checkpoints),
        working=round(working),
        vision=round(vision),
        host=round(_host_bytes(plan, costs, num_frames)),
        seconds=_seconds(plan, costs, num_frames),
        plain_seconds=_plain_seconds(plan, costs, num_frames),
        weights=costs.weights,
        gradients=costs.gradients,
        sums=costs.sums,
        optimizer=costs.optimizer,
        source=costs.source,
    )


def _last_of_each_length(plan: CheckpointPlan) -> list[int]:
    """Return where segments of each length weigh most: the last of each run, when most is kept, and the two last."""
    sizes = plan.segments
    ends = {j for j in range(len(sizes) - 1) if sizes[j] != sizes[j + 1]}
    return sorted(ends | {len(sizes) - 1, max(0, len(sizes) - 2)})


def segment_peaks(plan: CheckpointPlan, costs: StepCosts, j: int, num_frames: int = 0) -> list[tuple[float, float]]:
    """Return (checkpoints, working) in bytes at the moments of segment j that can be the step's peak."""
    moments = [_forward_peak(plan, costs, j), *_backward_peaks(plan, costs, j)]
    return moments + (_input_peaks(plan, costs, j, num_frames) if num_frames else [])


def _kept_states(plan: CheckpointPlan, j: int) -> int:
    """Return how many states wait when the backward is in segment j, its own and the block's included."""
    per_block = plan.segments_per_block
    if per_block == 1:
        return j
    return j // per_block + j % per_block + (1 if j >= per_block and j % per_block else 0)


def _state_bytes(plan: CheckpointPlan, costs: StepCosts, j: int) -> float:
    """Return device bytes of the states kept before segment j and of its own."""
    if plan.states_on == "host":
        copies = min(j, 2 if costs.device_type == "cuda" else 1)  # its own, and the one that is being fetched
        return copies * costs.state_bytes
    return _kept_states(plan, j) * costs.state_bytes


def _boundary_bytes(plan: CheckpointPlan, costs: StepCosts, j: int) -> float:
    """Return device bytes of the boundaries kept by segments 0..j."""
    groups = len(plan.groups)
    if plan.is_nested:
        return (groups - 1) * plan.segments[j] * costs.boundary_bytes
    if plan.boundaries_on == "host":
        copies = min(groups - 1, 2 if costs.device_type == "cuda" else 1)
        return copies * plan.segments[j] * costs.boundary_bytes
    kept_cell = plan.keep_last_cell and groups > 1 and j == len(plan.segments) - 1
    return ((groups - 1) * sum(plan.segments[: j + 1]) - kept_cell * plan.segments[j]) * costs.boundary_bytes


def _output_bytes(costs: StepCosts, n: int) -> float:
    """Return what norm, head and loss hold in the backward of a segment: the output and its gradient, logits."""
    outputs = 4 * n * costs.boundary_bytes
    return outputs + costs.loss_positions(n) * costs.logit_bytes + costs.head_bytes


def _forward_peak(plan: CheckpointPlan, costs: StepCosts, j: int) -> tuple[float, float]:
    """Return (checkpoints, working) while segment j is read, when there are no gradient sums yet."""
    n, layer = plan.segments[j], costs.layer(plan.segments[j], plan.recompute_mixer)
    checkpoints = _state_bytes(plan, costs, j) + (0 if plan.is_nested else _boundary_bytes(plan, costs, j))
    return checkpoints, costs.state_bytes + 2 * n * costs.boundary_bytes + layer.plain_peak - costs.sums


def _backward_peaks(plan: CheckpointPlan, costs: StepCosts, j: int) -> list[tuple[float, float]]:
    """Return (checkpoints, working) at the moments that can be the peak of segment j's backward."""
    n, layer = plan.segments[j], costs.layer(plan.segments[j], plan.recompute_mixer)
    boundary, state = n * costs.boundary_bytes, costs.state_bytes
    is_last = j == len(plan.segments) - 1
    checkpoints = _state_bytes(plan, costs, j) + _boundary_bytes(plan, costs, j)
    own = state if j == 0 else 0  # the initial state, which is no checkpoint
    top = len(plan.groups[-1])
    cell = boundary + top * layer.graph
    # The cell's graph is being made; is complete, with the head's work on top; is gone through layer by layer.
    graph = cell + max(layer.graph_peak - layer.graph, _output_bytes(costs, n), boundary + layer.backward_peak)
    if is_last:  # no layer has a gradient sum yet: each adds its own on the way down, as boundaries are used up
        states, one = _state_bytes(plan, costs, j), boundary + layer.graph + boundary + layer.backward_peak
        without = costs.layer_sums * costs.num_layers + costs.vision_sums
        moments = [
            (checkpoints, own + graph - without),
            (states, own + state + graph - costs.layer_sums * plan.layer_interval - costs.vision_sums),
            (states, own + state + one - costs.layer_sums - costs.vision_sums),
        ]
    else:
        moments = [(checkpoints, own + state + graph)]
    if plan.layer_interval > top:  # a larger group follows the last one
        lower = boundary + plan.layer_interval * layer.graph + boundary + layer.backward_peak
        moments.append((checkpoints, own + state + lower))
    if plan.is_nested and not is_last:
        moments.append((checkpoints, own + 2 * state + 2 * boundary + layer.plain_peak))
    if plan.segments_per_block > 1 and not is_last:  # the block is read again
        moments.append((checkpoints, own + 2 * state + 2 * boundary + layer.plain_peak))
    # Embedding: its gradient is as large as the weight.
    moments.append((checkpoints - (state if j else 0), state + 3 * boundary + costs.embedding_bytes))
    return moments


def _frames_at_once(plan: CheckpointPlan, costs: StepCosts, j: int, num_frames: int) -> int:
    """Return frames of the largest micro-batch of segment j, whose first and last clip may be cut."""
    clip = costs.frames_per_clip
    touched = (-(-plan.segments[j] // (costs.tokens_per_frame * clip)) + 1) * clip
    return min(plan.frames_per_batch, num_frames, touched)


def _input_peaks(plan: CheckpointPlan, costs: StepCosts, j: int, num_frames: int) -> list[tuple[float, float]]:
    """Return (checkpoints, working) while the frames of segment j are encoded, and while they get their gradients."""
    boundary, state = plan.segments[j] * costs.boundary_bytes, costs.state_bytes
    vision = costs.frames(_frames_at_once(plan, costs, j, num_frames))
    checkpoints = _state_bytes(plan, costs, j)
    if not plan.is_nested and j:
        checkpoints += _boundary_bytes(plan, costs, j - 1)
    values, gradients = 2 * boundary + vision.plain_peak, state + 2 * boundary + vision.graph_peak
    moments = [(checkpoints, values - costs.sums), (checkpoints - (state if j else 0), gradients)]
    if not plan.keep_features:  # the tower runs again before the segment's first cell
        moments.append((checkpoints, state + boundary + values))
    return moments


def _host_bytes(plan: CheckpointPlan, costs: StepCosts, num_frames: int) -> float:
    host = num_frames * costs.feature_bytes if plan.keep_features else 0
    count = len(plan.segments)
    if plan.states_on == "host":
        host += costs.state_bytes * (-(-count // plan.segments_per_block) - 1)
    if plan.boundaries_on == "host" and not plan.is_nested:
        kept = plan.segments[-1] if plan.keep_last_cell and len(plan.groups) > 1 else 0
        host += ((len(plan.groups) - 1) * plan.sequence_length - kept) * costs.boundary_bytes
    return host


def _seconds(plan: CheckpointPlan, costs: StepCosts, num_frames: int) -> float | None:
    layers, groups, last = plan.num_layers, plan.groups, len(plan.segments) - 1
    top, total = len(groups[-1]), 0.0
    for n, count in plan.length_counts.items():
        layer = costs.layer(n, plan.recompute_mixer)
        if layer.plain_seconds is None:
            return None
        cell_forward, backward = layers * layer.graph_seconds, layers * layer.backward_seconds
        total += count * (layers * layer.plain_seconds + cell_forward + backward)
        if plan.is_nested:
            total += count * (layers - top) * layer.plain_seconds
    layer = costs.layer(plan.segments[last], plan.recompute_mixer)
    if plan.keep_last_cell:
        total -= top * layer.plain_seconds
    if plan.is_nested:
        total -= (layers - top) * layer.plain_seconds
    per_block = plan.segments_per_block
    if per_block > 1:
        for start in range(0, last + 1 - per_block, per_block):
            for n in plan.segments[start : start + per_block - 1]:
                total += layers * costs.layer(n, plan.recompute_mixer).plain_seconds
    return total + _vision_seconds(plan, costs, num_frames)


def _vision_seconds(plan: CheckpointPlan, costs: StepCosts, num_frames: int) -> float:
    """Return the tower's time: for its values, again where they are not kept, and for the gradients."""
    if not num_frames:
        return 0.0
    cost = costs.frames(plan.frames_per_batch)
    count = costs.whole_clips(plan.frames_per_batch)
    passes = 1 if plan.keep_features else 2 + (plan.segments_per_block > 1)
    if not plan.keep_features and not costs.tower_is_trained:
        passes += 1  # the projector's graph needs the values once more
    return num_frames / count * (passes * cost.plain_seconds + cost.graph_seconds)


def _plain_seconds(plan: CheckpointPlan, costs: StepCosts, num_frames: int) -> float | None:
    layer = costs.layer(plan.sequence_length, False)
    if layer.plain_seconds is None:
        return None
    vision = 0.0
    if num_frames:
        cost = costs.frames(plan.frames_per_batch)
        seconds = cost.graph_seconds + (0 if costs.tower_is_trained else cost.plain_seconds)
        vision = num_frames / costs.whole_clips(plan.frames_per_batch) * seconds
    return plan.num_layers * (layer.graph_seconds + layer.backward_seconds) + vision
