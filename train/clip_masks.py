"""The five masks of VideoMamba's masked pre-training (arXiv 2403.06977, section 3.3 and Table 5).

    random       any patches of the clip                                  int(ratio T S) masked
    tube         the same patches in every frame                          int(ratio S) of each frame
    clip-row     whole rows of the clip, frames may differ in number      T int(ratio H) rows
    frame-row    whole rows, as many in every frame                       int(ratio H) rows of each frame
    attention    in each frame, those a teacher looks at less             int(ratio S) of each frame

Every clip of a batch has as many visible patches. All that is random is the noise that is given, so a mask does not
depend on the device it is made on.

Dims: B clips, T frames, S = H^2 patches of a frame in H rows, V visible tokens of a clip, the class token included.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

MASK_KINDS = ("random", "tube", "clip-row", "frame-row", "attention")


def draw_noise(seed: Sequence[int], views: int, frames: int, patches: int) -> torch.Tensor:
    """Return what decides the masks of the views of a clip: exponential noise, float32 (views, T, S), above 0."""
    noise = np.random.default_rng(list(seed)).standard_exponential((views, frames, patches), dtype=np.float32)
    return torch.from_numpy(np.maximum(noise, np.finfo(np.float32).tiny))


def masked_units(kind: str, ratio: float, frames: int, side: int) -> tuple[int, int]:
    """Return how many units are masked, and of how many: patches or rows, of the clip or of a frame.

    Args:
        side: rows of a frame, H.

    Raises:
        ValueError: an unknown kind, or nothing is masked, or everything.
    """
    if kind not in MASK_KINDS:
        raise ValueError(f"mask={kind!r} must be one of {', '.join(MASK_KINDS)}")
    patches = side * side
    masked, units = {
        "random": (int(ratio * frames * patches), frames * patches),
        "tube": (int(ratio * patches), patches),
        "clip-row": (frames * int(ratio * side), frames * side),
        "frame-row": (int(ratio * side), side),
        "attention": (int(ratio * patches), patches),
    }[kind]
    if not 0 < masked < units:
        raise ValueError(
            f"mask={kind} with mask_ratio={ratio:g} masks {masked} of {units}, of frames of {side} x {side} patches: "
            "change mask_ratio so that some are masked and some are visible"
        )
    return masked, units


def draw_masks(kind: str, ratio: float, noise: torch.Tensor, attention: torch.Tensor | None = None) -> torch.Tensor:
    """Return which patches are masked, (B, T, S) bool.

    Args:
        kind: one of `MASK_KINDS`. ratio: share that is masked, rounded down to whole patches or rows.
        noise: (B, T, S) of `draw_noise`. attention: (B, T, S) weights that a teacher gives the patches of each frame,
            for "attention"; they need not sum to 1.

    Raises:
        ValueError: as `masked_units`, or no attention where it is needed.
    """
    frames, patches = noise.shape[1:]
    side = math.isqrt(patches)
    masked, units = masked_units(kind, ratio, frames, side)
    if kind == "attention":
        if attention is None:
            raise ValueError("mask=attention needs the attention of a teacher")
        # Visible patches are drawn without replacement, with chances as the weights: the first arrivals of a race in
        # which each has its weight as rate.
        return ~_smallest(noise / attention.float(), units - masked)
    if kind == "random":
        return _smallest(noise.flatten(1), masked).view_as(noise)
    if kind == "tube":
        return _smallest(noise[:, :1], masked).expand_as(noise)
    rows = noise[:, :, ::side]  # (B, T, S) -> (B, T, H)
    chosen = _smallest(rows.flatten(1), masked).view_as(rows) if kind == "clip-row" else _smallest(rows, masked)
    return chosen.repeat_interleave(side, dim=2)


def visible_places(masks: torch.Tensor) -> torch.Tensor:
    """Return the places of the tokens that are not masked, rising, the class token's 0 first.

    Args:
        masks: (B, T, S) bool, with as many visible patches in each clip.

    Returns:
        (B, V) int64: 0, and 1 + t S + s of every visible patch.
    """
    visible = ~masks.flatten(1)
    places = visible.nonzero()[:, 1].view(len(masks), -1) + 1
    return torch.cat([places.new_zeros(len(masks), 1), places], dim=1)


def _smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return where the `count` smallest of the last dimension are, as bool of the same shape."""
    places = scores.topk(count, dim=-1, largest=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, places, True)
