"""Finds the plan for a memory budget: the fastest that fits, or the smallest.

Every family of plans is tried over a grid of intervals; checkpoint_predict.py says what each would cost. Not here:
what a layer costs (checkpoint_costs.py) and how a plan is run (checkpoint_engine.py).
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from .checkpoint_costs import StepCosts
from .checkpoint_plan import CheckpointPlan, uniform
from .checkpoint_predict import PlanCosts, gib, predict, segment_peaks

# Neighbouring segment lengths differ by this factor, and whole chunks are taken: the Triton scan's where they fit in
# twice, then the PyTorch scan's. Whole clips of a VideoMamba tower likewise: segments end where clips do.
_STEP = 1.19
_CHUNKS = (256, 64)
# Shorter segments keep neither a GPU nor a CPU busy; tokens over all rows.
_SHORTEST = 128
_MOST_SEGMENTS = 2048
_FRAMES = (16, 8, 4, 2, 1)
# Predictions are good to a tenth.
RESERVE = 0.92


class NoPlanFits(ValueError):
    """No plan fits the budget."""


def find_plan(
    costs: StepCosts,
    sequence_length: int,
    budget: int,
    host_budget: int = 0,
    objective: str = "time",
    num_frames: int = 0,
    features_only: bool = False,
) -> CheckpointPlan:
    """Return the fastest plan whose activations stay within `budget` device bytes and `host_budget` host bytes.

    With `features_only` the host takes frames' features but no checkpoints.

    Where nothing was measured, fewer recomputed forwards count as faster. With objective "memory" the smallest is
    returned, whatever its time.

    Raises:
        NoPlanFits: naming the least that would do, and the longest sequence that fits.
    """
    allowed, best = budget * RESERVE, None
    smallest = None
    places = ("device",) if features_only or not host_budget else ("device", "host")
    for plan in candidates(costs, sequence_length, allowed, host_budget, num_frames, places):
        cost = predict(plan, costs, num_frames)
        if cost.host > host_budget:
            continue
        if smallest is None or cost.activations < smallest[1].activations:
            smallest = plan, cost
        if cost.activations <= allowed and (best is None or _rank(plan, cost) < _rank(*best)):
            best = plan, cost
    if objective == "memory" and smallest is not None and smallest[1].activations <= allowed:
        best = smallest
    if best is None:
        raise NoPlanFits(_why_nothing_fits(costs, sequence_length, budget, host_budget, num_frames, smallest, places))
    return replace(best[0], predicted=best[1])


def _rank(plan: CheckpointPlan, cost: PlanCosts) -> tuple:
    """Sort by time, in steps of a percent so that noise does not decide; then by memory.

    Where nothing was measured, running the mixers again counts as a quarter of a forward, of three in all.
    """
    time = 3 + plan.extra_forwards + plan.recompute_mixer / 4 if cost.seconds is None else cost.seconds
    return round(math.log(max(time, 1e-9)) / 0.01), cost.activations + cost.host / 4


def candidates(
    costs: StepCosts, sequence_length: int, allowed: float, host_budget: int, num_frames: int, places: tuple[str, ...]
) -> Iterator[CheckpointPlan]:
    """Yield plans of every family; the smaller micro-batches of frames only where the larger ones do not fit."""
    layers = costs.num_layers
    intervals = sorted({-(-layers // k) for k in range(1, layers + 1)})
    vision = _vision_settings(costs, host_budget, allowed, num_frames)
    for recompute in (False, True):
        base = {"num_layers": layers, "recompute_mixer": recompute, **vision}
        for s in segment_lengths(costs, sequence_length):
            segments = uniform(sequence_length, s)
            for where in places:
                yield CheckpointPlan(segments=segments, layer_interval=layers, states_on=where, **base)
                for interval in intervals[:-1]:
                    kept = {"segments": segments, "layer_interval": interval, "states_on": where, **base}
                    yield CheckpointPlan(boundaries_on=where, **kept)
                    if len(segments) > 1:
                        yield CheckpointPlan(keep_boundaries=False, **kept)
            for per_block in _block_sizes(len(segments)):
                for interval in intervals:
                    yield CheckpointPlan(
                        segments=segments,
                        layer_interval=interval,
                        keep_boundaries=False,
                        segments_per_block=per_block,
                        **base,
                    )
        for interval in intervals:
            plan = decreasing(costs, sequence_length, allowed, interval, base, num_frames)
            if plan is not None:
                yield plan


def segment_lengths(costs: StepCosts, sequence_length: int) -> list[int]:
    """Return the lengths tried: the longest, and a geometric grid of whole chunks where they are long enough."""
    longest = min(sequence_length, costs.longest_segment)
    clip = costs.frames_per_clip * costs.tokens_per_frame if costs.frames_per_clip > 1 else 1
    chunks = sorted({clip, *_CHUNKS}, reverse=True)
    lengths, s = {longest}, longest / _STEP
    while s >= max(1, _SHORTEST // costs.batch_size, sequence_length / _MOST_SEGMENTS):
        chunk = next((size for size in chunks if s >= 2 * size), 1)
        lengths.add(round(s / chunk) * chunk)
        s /= _STEP
    return sorted(n for n in lengths if n <= longest)


def _block_sizes(count: int) -> list[int]:
    """Return segments per block around the square root of their number, where two levels keep the fewest states."""
    root = math.isqrt(count)
    return sorted({k for k in (root // 2, root, 2 * root) if 2 <= k < count})


def decreasing(costs, sequence_length, allowed, interval, base, num_frames) -> CheckpointPlan | None:
    """Return the plan whose segments are each as long as the states kept so far leave room for, None if none fits.

    In the backward a segment meets the states before it only, so earlier segments may be longer.
    """
    lengths = segment_lengths(costs, sequence_length)
    fields = {"layer_interval": interval, "keep_boundaries": False, **base}
    segments, left, k, needed = [], sequence_length, len(lengths) - 1, None
    while left > 0:
        while k >= 0:
            if needed is None:  # beside one state, which the first segment has as well
                plan = CheckpointPlan(segments=3 * (lengths[k],), **fields)
                needed = max(map(sum, segment_peaks(plan, costs, 1, num_frames)))
            if needed + max(len(segments) - 1, 0) * costs.state_bytes <= allowed:
                break
            k, needed = k - 1, None
        if k < 0 or len(segments) > _MOST_SEGMENTS:
            return None
        segments.append(min(lengths[k], left))
        left -= segments[-1]
    if len(set(segments[:-1])) < 2:
        return None
    return CheckpointPlan(segments=tuple(segments), **fields)


def _vision_settings(costs: StepCosts, host_budget: int, allowed: float, num_frames: int) -> dict:
    """Keep features on the host where they fit; take the largest micro-batch that leaves half of the budget."""
    if not num_frames:
        return {}
    keep = num_frames * costs.feature_bytes <= host_budget / 2
    fitting = [v for v in _FRAMES if costs.frames(v).graph_peak <= allowed / 2]
    return {"keep_features": keep, "frames_per_batch": (fitting or [1])[0]}


def _why_nothing_fits(costs, sequence_length, budget, host_budget, num_frames, smallest, places) -> str:
    held = costs.weights + costs.gradients + costs.sums + costs.optimizer
    text = (
        f"no checkpoint plan for {costs.batch_size} x {sequence_length:,} tokens fits: weights, gradients, their sums "
        f"and the optimizer take {gib(held)}, and {gib(max(budget, 0))} are left for activations"
    )
    if smallest is not None:
        least = held + smallest[1].activations / RESERVE
        text += f"; at this length a budget of {gib(least)} in all would do"
    longest = _longest(costs, sequence_length, budget, host_budget, num_frames, places)
    if longest:
        text += f"; {longest:,} tokens would fit"
    return text + ". Raise memory_budget or host_budget, shorten the sequence, lower the batch size, or train less"


def _longest(costs, sequence_length, budget, host_budget, num_frames, places) -> int:
    """Return the longest sequence that fits, to about a tenth."""
    length = sequence_length
    while length > 16:
        length = int(length / 1.3)
        frames = num_frames * length // sequence_length
        for plan in candidates(costs, length, budget * RESERVE, host_budget, frames, places):
            cost = predict(plan, costs, frames)
            if cost.host <= host_budget and cost.activations <= budget * RESERVE:
                return length
    return 0
