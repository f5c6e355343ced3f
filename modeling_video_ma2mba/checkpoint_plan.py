"""`CheckpointPlan`: which states and layer inputs of a training step are kept, where, and what is computed again.

The L x S plane of a step (layers by tokens) is cut into segments of the sequence and groups of layers. What follows is
the vocabulary of the engine (checkpoint_engine.py) and of the planner (checkpoint_planner.py):

    state       conv + SSM state of all layers at a segment's start (the paper's sequence-axis checkpoint)
    boundary    the input of a group of layers for one segment (the paper's layer-axis checkpoint)
    cell        one group of layers on one segment: what has a graph at any one time
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, repeat

import torch


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """One way to run a training step; every plan gives the same gradients.

    Attributes:
        segments: tokens of each sequence segment, first to last.
        num_layers: layers of the language model.
        layer_interval: layers per group; `num_layers` means that a segment is one cell.
        keep_boundaries: keep the input of every group in the forward (the paper's grid, Algorithms 1 and 2), or, if
            False, compute them again segment by segment in the backward (nested).
        segments_per_block: 1 keeps the state before every segment; K > 1 keeps every K-th and computes the others
            again, block by block (two-level). Only without kept boundaries.
        states_on, boundaries_on: "device" or "host".
        keep_last_cell: the last cell of the forward, first of the backward, keeps its graph and is not run again.
        recompute_mixer: keep only a mixer's projection for its backward and run convolution, scan and norm again.
        frames_per_batch: frames that go through the vision tower at once, with graph where it is trained.
        keep_features: keep the frames' features on the host instead of running the tower again.
        predicted: what it costs (`PlanCosts`), None where nobody asked.
    """

    segments: tuple[int, ...]
    num_layers: int
    layer_interval: int
    keep_boundaries: bool = True
    segments_per_block: int = 1
    states_on: str = "device"
    boundaries_on: str = "device"
    keep_last_cell: bool = True
    recompute_mixer: bool = False
    frames_per_batch: int = 16
    keep_features: bool = True
    predicted: object = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if not self.segments or min(self.segments) < 1:
            raise ValueError(f"segments={self.segments}: at least one, each of at least 1 token")
        if not 1 <= self.layer_interval <= self.num_layers:
            raise ValueError(
                f"layer_interval={self.layer_interval} is outside 1..{self.num_layers}, the model's number of layers"
            )
        if self.segments_per_block < 1 or self.frames_per_batch < 1:
            raise ValueError(
                f"segments_per_block={self.segments_per_block}, frames_per_batch={self.frames_per_batch}: "
                "both must be at least 1"
            )
        if self.segments_per_block > 1 and self.keep_boundaries and self.layer_interval < self.num_layers:
            raise ValueError("a two-level plan computes boundaries again: pass keep_boundaries=False")
        for name in ("states_on", "boundaries_on"):
            if getattr(self, name) not in ("device", "host"):
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed are 'device' and 'host'")

    @property
    def sequence_length(self) -> int:
        """Tokens the plan is made for."""
        return sum(self.segments)

    @property
    def groups(self) -> list[range]:
        """Layers of each group, lowest first."""
        starts = range(0, self.num_layers, self.layer_interval)
        return [range(start, min(start + self.layer_interval, self.num_layers)) for start in starts]

    @property
    def is_nested(self) -> bool:
        """Whether boundaries are computed again."""
        return not self.keep_boundaries and self.layer_interval < self.num_layers

    @property
    def name(self) -> str:
        """The family in a few words."""
        one_segment, one_group = len(self.segments) == 1, self.layer_interval == self.num_layers
        if one_segment:
            if one_group:
                return "none" if self.keep_last_cell else "whole"
            return "per layer" if self.layer_interval == 1 else "layer groups"
        if self.segments_per_block > 1:
            return "two-level" if one_group else "two-level, nested"
        family = "sequence only" if one_group else "nested" if self.is_nested else "grid"
        return family if len(set(self.segments[1:])) < 2 else f"{family}, decreasing"

    def summary(self) -> str:
        """Return the plan, and what it costs if that was predicted, as a few lines of text."""
        longest, shortest = max(self.segments), min(self.segments)
        tokens = (
            f"{longest:,}" if longest == shortest or len(set(self.segments[1:])) < 2 else f"{longest:,}..{shortest:,}"
        )
        lines = [
            f"plan: {self.name}; {_count(len(self.segments), 'segment')} of {tokens} tokens, "
            f"{_count(len(self.groups), 'group')} of {self.layer_interval} of {self.num_layers} layers",
            f"states on the {self.states_on}"
            + (f", one in {self.segments_per_block} kept" if self.segments_per_block > 1 else "")
            + (f", boundaries on the {self.boundaries_on}" if len(self.groups) > 1 and self.keep_boundaries else "")
            + (", boundaries computed again" if self.is_nested else "")
            + (", mixers computed again" if self.recompute_mixer else ""),
            f"forwards computed again: {self.extra_forwards:.2f}",
        ]
        return "\n".join(lines + ([] if self.predicted is None else self.predicted.lines()))

    def spans(self, length: int, borders: torch.Tensor | None = None) -> list[tuple[int, int]]:
        """Cut `length` tokens, at most `sequence_length`, into (start, stop); what is missing, the first ones lack.

        Args:
            borders: rising positions; a segment starts at the first one within its reach, if there is one, so that
                it is shorter, and more segments of the longest kind may come first. None: anywhere.
        """
        if not 1 <= length <= self.sequence_length:
            raise ValueError(f"{length} tokens do not fit a plan for {self.sequence_length}")
        spans, stop = [], length
        for size in chain(reversed(self.segments[1:]), repeat(max(self.segments))):
            start = max(0, stop - size)
            if borders is not None and start > 0:
                border = int(borders[torch.searchsorted(borders, start)])
                start = border if border < stop else start
            spans.append((start, stop))
            stop = start
            if stop == 0:
                break
        return spans[::-1]

    @property
    def extra_forwards(self) -> float:
        """Forwards of the language model that are run again, in units of one forward of the sequence."""
        groups, total = self.groups, self.sequence_length
        last_cell = self.segments[-1] * len(groups[-1]) / self.num_layers if self.keep_last_cell else 0
        extra = total - last_cell  # every cell once more
        if self.is_nested:  # every segment but the last, up to its last group
            extra += (total - self.segments[-1]) * (1 - len(groups[-1]) / self.num_layers)
        if self.segments_per_block > 1:  # every block but the last, up to its last segment
            per_block = self.segments_per_block
            last_block = (len(self.segments) - 1) // per_block * per_block
            extra += sum(n for j, n in enumerate(self.segments[:last_block]) if (j + 1) % per_block)
        return extra / total

    @property
    def length_counts(self) -> dict[int, int]:
        """How many segments there are of each length."""
        return Counter(self.segments)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number > 1 else "")


def uniform(length: int, interval: int) -> tuple[int, ...]:
    """Cut `length` tokens into segments of `interval`; the first one takes what is left over."""
    full, rest = divmod(length, interval)
    return ((rest,) if rest else ()) + (interval,) * full
