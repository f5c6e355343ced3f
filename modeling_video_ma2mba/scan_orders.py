"""In which order a block reads the tokens of a clip: the scans of VideoMamba (arXiv 2403.06977, figures 4 and 7a).

Tokens are stored as the class token, then frame after frame, each left to right and top to bottom:

    token of patch s = h W + w in frame t:                  1 + t S + s             S = H W patches
    its place when read spatial-first (as stored):          1 + t S + s
    its place when read temporal-first:                     1 + s T + t             T frames
    its place when either is read backwards:                T S - (place)           the class token comes last

Published weights read spatial-first in every block; the other scans are known from the paper alone.
"""

from typing import NamedTuple

import torch


class Direction(NamedTuple):
    """One reading of all tokens.

    Attributes:
        temporal_first: read a patch of every frame before the next patch, instead of frame after frame.
        backwards: from the last token to the class token.
        parameters: suffix of the names of the mixer's parameters that read, as in checkpoints.
    """

    temporal_first: bool
    backwards: bool
    parameters: str


_SPATIAL = (Direction(False, False, ""), Direction(False, True, "_b"))
_TEMPORAL = (Direction(True, False, ""), Direction(True, True, "_b"))

# What one block can read. v1 takes half of the four directions, at the cost of one pair; which half, and whether the
# two pairs of v2 share their parameters, the paper does not say.
SCANS = {
    "spatial": _SPATIAL,
    "temporal": _TEMPORAL,
    "spatiotemporal_v1": (_SPATIAL[0], _TEMPORAL[1]),
    "spatiotemporal_v2": (*_SPATIAL, Direction(True, False, "_t"), Direction(True, True, "_tb")),
    "spatiotemporal_v2_shared": (*_SPATIAL, *_TEMPORAL),
}

# What the blocks of a model read, from the first to the last; the paper's alternation begins with spatial (inferred).
_MIXTURES = {
    "half_spatial_half_temporal": lambda depth: ["spatial"] * (depth // 2) + ["temporal"] * (depth - depth // 2),
    "half_temporal_half_spatial": lambda depth: ["temporal"] * (depth // 2) + ["spatial"] * (depth - depth // 2),
    "alternating": lambda depth: [("spatial", "temporal")[block % 2] for block in range(depth)],
}


def block_scans(scan: str | list[str] | tuple[str, ...], depth: int) -> list[str]:
    """Return the scan of each of `depth` blocks.

    Args:
        scan: one of `SCANS`, for all blocks; a by-block mixture: "half_spatial_half_temporal",
            "half_temporal_half_spatial" or "alternating"; or a list with one of `SCANS` for each block.

    Raises:
        ValueError: an unknown name, or a list of another length.
    """
    if isinstance(scan, str):
        scans = _MIXTURES[scan](depth) if scan in _MIXTURES else [scan] * depth
    else:
        scans = list(scan)
    if len(scans) != depth:
        raise ValueError(f"scan names {len(scans)} blocks, there are {depth}: give one of {', '.join(SCANS)} for each")
    for name in scans:
        if name not in SCANS:
            names = ", ".join((*SCANS, *_MIXTURES) if isinstance(scan, str) else SCANS)
            raise ValueError(f"scan {name!r} is unknown; choose one of {names}")
    return scans


def directions(scan: str, bidirectional: bool) -> tuple[Direction, ...]:
    """Return the readings of one of `SCANS`; where there is one direction only, those that end at the class token."""
    return tuple(d for d in SCANS[scan] if bidirectional or d.backwards)


def temporal_first(frames: int, patches: int, device: torch.device | None = None) -> torch.Tensor:
    """Return which stored token is read at each place of the temporal-first order, (1 + frames * patches,) int64.

    Place 1 + j reads token 1 + (j mod T) S + floor(j / T).
    """
    grid = torch.arange(1, 1 + frames * patches, device=device).view(frames, patches)
    return torch.cat([grid.new_zeros(1), grid.T.flatten()])


def undo(order: torch.Tensor) -> torch.Tensor:
    """Return the place of each stored token in an order (L,): `read[undo(order)]` is as stored."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
