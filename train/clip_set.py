"""What the Trainer draws from: the order of clips, the clips themselves, and batches of them.

What is random about a clip (frames, augmentation, mixing) depends on the seed, the epoch and the place in it alone:
a run that goes on after a kill sees what it would have seen.

Dims: B clips, F frames, H = W the model's size.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Sampler

from modeling_video_ma2mba.processing.clip_sampling import random_clip_indices
from modeling_video_ma2mba.processing.image_processing_videomamba import VideoMambaImageProcessor
from modeling_video_ma2mba.train.augmentation import ClipAugmentation, ClipMixing
from modeling_video_ma2mba.train.clip_views import media_frames, test_views
from modeling_video_ma2mba.train.read_clips import LabelledClip
from modeling_video_ma2mba.train.training_set import TrainingSet
from modeling_video_ma2mba.train.videomamba_recipes import VideoMambaRecipe


class Draw(NamedTuple):
    """Which clip comes at which place of which epoch."""

    epoch: int
    place: int
    index: int


class ClipSampler(Sampler[Draw]):
    """Yields the draws of an epoch, whole steps only: what is left over has its turn in another epoch.

    Args:
        count: clips. repeats: times that a drawn clip comes, one after the other; the epoch does not get longer
            (DeiT's repeated augmentation).
        step_size: clips of an optimizer step over all devices.
        seed: of the order. steps_done: returns the optimizer steps done so far, as in `LengthSampler`.
    """

    def __init__(self, count: int, repeats: int, step_size: int, seed: int, steps_done: Callable[[], int]):
        if count < step_size:
            raise ValueError(
                f"{count} clips are fewer than the {step_size} of one step: --override global_batch_size=..."
            )
        self.count, self.repeats, self.seed, self.steps_done = count, repeats, seed, steps_done
        self.steps, self.step_size = count // step_size, step_size

    def __len__(self) -> int:
        return self.steps * self.step_size

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.steps_done() // self.steps
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        for place, index in enumerate(np.repeat(order, self.repeats)[: len(self)].tolist()):
            yield Draw(epoch, place, index)


@dataclass(frozen=True)
class ClipViews:
    """A clip as the model sees it.

    Attributes:
        pixels: views (F, 3, H, W), uint8 or normalised.
        label: as the data say. seed: of mixing; None in a validation, where nothing is mixed.
    """

    pixels: list[torch.Tensor]
    label: int | float
    seed: tuple[int, ...] | None


class ClipTrainingSet(TrainingSet):
    """Clips drawn by a `ClipSampler`; one that cannot be read is listed and the next stands in for it.

    Args:
        clips: at least one. recipe, processor: frames and size. augment: None leaves pictures as they are.
        bad_list: see `TrainingSet`.
    """

    def __init__(
        self,
        clips: Sequence[LabelledClip],
        recipe: VideoMambaRecipe,
        processor: VideoMambaImageProcessor,
        augment: ClipAugmentation | None,
        bad_list: str | Path,
    ):
        super().__init__(clips, None, bad_list, recipe.max_bad_share)
        self.recipe, self.processor, self.augment = recipe, processor, augment

    def __getitem__(self, draw: Draw) -> ClipViews:
        seed = (self.recipe.seed, draw.epoch, draw.place)
        self.decode = functools.partial(self.views, seed=seed)
        return super().__getitem__(draw.index)

    def views(self, clip: LabelledClip, seed: tuple[int, ...]) -> ClipViews:
        """Return the augmented views of a clip, all of the same frames."""
        recipe, generator = self.recipe, np.random.default_rng(seed)

        def choose(total: int) -> np.ndarray:
            return random_clip_indices(total, recipe.frames, recipe.sampling, generator)

        if self.augment is None:
            frames = np.stack([self.processor.fit(picture) for picture in media_frames(clip.medium, choose)])
            return ClipViews([torch.from_numpy(frames)] * recipe.views_at_once, clip.label, seed)
        # Twice the model's size keeps what a random crop can show; whole 4K frames would be gigabytes.
        pictures = list(media_frames(clip.medium, choose, size=2 * recipe.image_size))
        views = [self.augment(pictures, [*seed, view]) for view in range(recipe.views_at_once)]
        return ClipViews(views, clip.label, seed)


class ClipValidationSet(TrainingSet):
    """Clips in their order, each in the one view that a test would take; one that cannot be read: as in training."""

    def __init__(
        self,
        clips: Sequence[LabelledClip],
        recipe: VideoMambaRecipe,
        processor: VideoMambaImageProcessor,
        bad_list: str | Path,
    ):
        super().__init__(clips, self.one_view, bad_list, recipe.max_bad_share)
        self.processor = processor

    def one_view(self, clip: LabelledClip) -> ClipViews:
        return ClipViews([torch.from_numpy(test_views(clip.medium, self.processor)[0])], clip.label, None)


class ClipCollator:
    """Makes batches: `pixel_values_videos` (B, F, 3, H, W) or, of images, `pixel_values` (B, 3, H, W), and `labels`.

    Args:
        recipe: frames, smoothing. classes: of the head.
    """

    def __init__(self, recipe: VideoMambaRecipe, classes: int):
        self.recipe, self.classes = recipe, classes
        self.mix = ClipMixing(recipe, classes) if recipe.mixup or recipe.cutmix else None

    def __call__(self, clips: list[ClipViews]) -> dict[str, torch.Tensor]:
        """Return the batch; labels are (B,), or (B, classes) where they were mixed or smoothed."""
        pixels = torch.stack([view for clip in clips for view in clip.pixels])
        kind = torch.float32 if self.classes == 1 else torch.int64
        labels = torch.tensor([clip.label for clip in clips for _ in clip.pixels], dtype=kind)
        seed = clips[0].seed
        if seed is not None and self.mix is not None:
            pixels, labels = self.mix(pixels, labels, [*seed, 1])
        elif seed is not None and self.recipe.label_smoothing:
            rest = self.recipe.label_smoothing
            labels = F.one_hot(labels, self.classes) * (1 - rest) + rest / self.classes
        if self.recipe.frames is None:
            return {"pixel_values": pixels[:, 0], "labels": labels}
        return {"pixel_values_videos": pixels, "labels": labels}
