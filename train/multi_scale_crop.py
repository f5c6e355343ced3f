"""`MultiScaleCrop`: the crops of masked pre-training (arXiv 2403.06977, Table X), by PIL alone."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from modeling_video_ma2mba.train.videomamba_recipes import VideoMambaRecipe

# Where a crop may lie, in quarters of the room there is: corners, middle, middles of the edges, and between these.
PLACES = (
    *((x, y) for y in (0, 2, 4) for x in (0, 2, 4)),
    *((x, y) for y in (1, 3) for x in (1, 3)),
)  # fmt: skip


class MultiScaleCrop:
    """Crops the frames of a clip, all alike, and mirrors half of all clips where the recipe says so.

    Width and height are each one of `recipe.crop_sides` times the shorter side, at most one step of that list apart.
    """

    def __init__(self, recipe: VideoMambaRecipe):
        self.recipe = recipe

    def __call__(self, pictures: Sequence[Image.Image | np.ndarray], seed: Sequence[int]) -> torch.Tensor:
        """Return uint8 (F, 3, size, size); equal seeds give equal pixels."""
        generator, recipe = np.random.default_rng(list(seed)), self.recipe
        pictures = [p if isinstance(p, Image.Image) else Image.fromarray(p) for p in pictures]
        first = pictures[0].size
        left, top, width, height = multi_scale_box(first, recipe.crop_sides, generator)
        mirrors = recipe.flip and generator.random() < 0.5
        size, frames = (recipe.image_size,) * 2, []
        for picture in pictures:
            # A video may change its size on the way; the box is the first picture's.
            picture = picture if picture.size == first else picture.resize(first, Image.Resampling.BILINEAR)
            box = (left, top, left + width, top + height)
            cut = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
            frames.append(cut[:, :, ::-1] if mirrors else cut)
        return torch.from_numpy(np.stack(frames))


def multi_scale_box(
    size: tuple[int, int], sides: Sequence[float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a crop in a picture of `size` (width, height), in pixels."""
    lengths = [max(1, int(min(size) * side)) for side in sides]
    pairs = [(w, h) for i, w in enumerate(lengths) for j, h in enumerate(lengths) if abs(i - j) <= 1]
    width, height = pairs[generator.integers(len(pairs))]
    x, y = PLACES[generator.integers(len(PLACES))]
    return x * ((size[0] - width) // 4), y * ((size[1] - height) // 4), width, height
