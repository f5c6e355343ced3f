"""Augmentation by timm and torchvision, the only file that uses them (extra `videomamba`).

Frames of a clip are changed alike. Everything random comes from a seed that is given, so that a run that goes on
after a kill sees what it would have seen.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image

from modeling_video_ma2mba.configuration_videomamba import VideoMambaConfig
from modeling_video_ma2mba.processing.image_processing_videomamba import RESAMPLING, VideoMambaImageProcessor
from modeling_video_ma2mba.train.videomamba_recipes import VideoMambaRecipe

ASPECT_RATIOS = (3 / 4, 4 / 3)


def require_extra(recipe: VideoMambaRecipe) -> None:
    """Raise ImportError where a recipe needs timm and torchvision and one is missing."""
    missing = [name for name in ("timm", "torchvision") if find_spec(name) is None]
    if recipe.needs_extra and missing:
        raise ImportError(
            f"recipe {recipe.name} augments its clips with {' and '.join(missing)}, which is not installed: "
            'pip install "video-ma2mba[videomamba]", or take the recipe tiny'
        )


@contextmanager
def seeded(seed: Sequence[int]) -> Iterator[None]:
    """Let all global generators draw from a seed, and go on afterwards as if nothing had been drawn.

    timm and torchvision draw from the generators of Python, NumPy and torch.
    """
    before = random.getstate(), np.random.get_state()
    first = int(np.random.SeedSequence(list(seed)).generate_state(1)[0])
    with torch.random.fork_rng(devices=[]):
        random.seed(first)
        np.random.seed(first)
        torch.random.default_generator.manual_seed(first)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


class ClipAugmentation:
    """Changes the pictures of a clip at random, all alike, and normalises them.

    A clip: auto-augmentation, random crop, mirroring, erasing; an image is cropped and mirrored first (section 8 of
    the public recipes). Erased boxes are filled with noise, anew in each frame.

    Args:
        recipe: what is done. processor: size, resampling, and the crop where none is random.
        config: mean and deviation to normalise with.
    """

    def __init__(self, recipe: VideoMambaRecipe, processor: VideoMambaImageProcessor, config: VideoMambaConfig):
        require_extra(recipe)
        from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
        from timm.data.random_erasing import RandomErasing

        self.recipe, self.processor = recipe, processor
        self.method = RESAMPLING[processor.resample]
        self.mean = torch.tensor(config.image_mean).view(1, 3, 1, 1)
        self.std = torch.tensor(config.image_std).view(1, 3, 1, 1)
        self.policy = None
        if recipe.auto_augment is not None:
            make = rand_augment_transform if recipe.auto_augment.startswith("rand") else auto_augment_transform
            mean = tuple(round(255 * value) for value in config.image_mean)
            self.policy = make(
                recipe.auto_augment,
                {"translate_const": int(0.45 * recipe.image_size), "img_mean": mean, "interpolation": self.method},
            )
        self.erase = None
        if recipe.random_erasing:
            self.erase = RandomErasing(recipe.random_erasing, mode="pixel", device="cpu")

    def __call__(self, pictures: Sequence[Image.Image | np.ndarray], seed: Sequence[int]) -> torch.Tensor:
        """Return normalised float32 (F, 3, size, size); equal seeds give equal pixels."""
        pictures = [p if isinstance(p, Image.Image) else Image.fromarray(p) for p in pictures]
        steps: list[Callable] = [self._crop, self._mirror]
        steps = [*steps, self._auto_augment] if self.recipe.frames is None else [self._auto_augment, *steps]
        for number, step in enumerate(steps):
            with seeded([*seed, number]):
                pictures = step(pictures)
        frames = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
        pixels = (torch.from_numpy(frames).float() / 255 - self.mean) / self.std
        if self.erase is not None:
            with seeded([*seed, len(steps)]):
                pixels = self.erase(pixels.flatten(0, 1)).view_as(pixels)  # frames as colours: one box for all
        return pixels

    def _auto_augment(self, pictures):
        if self.policy is None:
            return pictures
        seed = np.random.randint(2**31)
        changed = []
        for picture in pictures:
            with seeded([seed]):  # each frame draws the same
                changed.append(self.policy(picture))
        return changed

    def _crop(self, pictures):
        if self.recipe.crop_scale is None:
            return [Image.fromarray(self.processor.fit(picture).transpose(1, 2, 0)) for picture in pictures]
        from torchvision.transforms import RandomResizedCrop

        top, left, height, width = RandomResizedCrop.get_params(
            pictures[0], list(self.recipe.crop_scale), list(ASPECT_RATIOS)
        )
        size, first = self.recipe.image_size, pictures[0].size
        # A video may change its size on the way; the box is the first picture's.
        pictures = [p if p.size == first else p.resize(first, self.method) for p in pictures]
        box = (left, top, left + width, top + height)
        return [picture.resize((size, size), self.method, box=box) for picture in pictures]

    def _mirror(self, pictures):
        if not self.recipe.flip or random.random() < 0.5:
            return pictures
        return [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]


class ClipMixing:
    """Mixes the clips of a batch with each other in reverse order, by mixup or cutmix (timm), and smooths labels.

    Args:
        recipe: the alphas and the smoothing. classes: of the head.
    """

    def __init__(self, recipe: VideoMambaRecipe, classes: int):
        require_extra(recipe)
        from timm.data import Mixup

        self.mix = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=classes,
        )

    def __call__(
        self, pixels: torch.Tensor, labels: torch.Tensor, seed: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix float pixels (B, F, 3, H, W) or (B, 3, H, W), B even, in place.

        Args:
            labels: (B,) class numbers.

        Returns:
            pixels; a share for each class, (B, classes).
        """
        with seeded(seed):
            # Frames as colours: one box for all.
            mixed, shares = self.mix(pixels.view(len(pixels), -1, *pixels.shape[-2:]), labels)
        return mixed.view_as(pixels), shares
