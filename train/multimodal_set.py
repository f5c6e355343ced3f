"""What multi-modal pre-training draws from: pairs of clip and caption, batches of one kind of medium, masked words.

What is random about a pair (frames, augmentation, masks) depends on the seed, the epoch and the place in it alone.

Dims: B pairs, F frames, T text tokens, S patches of a frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

from modeling_video_ma2mba.processing.processing_videomamba_multimodal import VideoMambaMultiModalProcessor
from modeling_video_ma2mba.train.clip_masks import draw_noise
from modeling_video_ma2mba.train.clip_set import ClipViews, Draw
from modeling_video_ma2mba.train.multimodal_recipes import MultiModalRecipe
from modeling_video_ma2mba.train.read_captions import CaptionedClip
from modeling_video_ma2mba.train.samples import Media

# Of the words that MLM masks so many become [MASK], and so many another word; the rest stays.
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1


@dataclass(frozen=True, slots=True)
class Pair:
    """A clip and one of its captions, as `clip_set.ClipTrainingSet` takes it.

    Attributes:
        label: the caption, the number of the medium that it belongs to, and whether that is an image.
    """

    id: str
    source: str
    medium: Media
    label: tuple[str, int, bool]

    @property
    def media(self) -> tuple[Media]:
        return (self.medium,)


def pairs_of(clips: Sequence[CaptionedClip]) -> list[Pair]:
    """Return a pair for each caption of each clip."""
    return [
        Pair(clip.id, clip.source, clip.medium, (caption, number, clip.medium.kind == "image"))
        for number, clip in enumerate(clips)
        for caption in clip.captions
    ]


class PairSampler(Sampler[Draw]):
    """Yields the draws of an epoch; all pairs of an optimizer step have images, or all have videos.

    The steps of both come in random order; what does not fill one has its turn in another epoch.

    Args:
        pairs: at least one step of images or of videos. step_size: pairs of an optimizer step over all devices.
        seed: of the order. steps_done: returns the optimizer steps done so far.
    """

    def __init__(self, pairs: Sequence[Pair], step_size: int, seed: int, steps_done: Callable[[], int]):
        is_image = np.array([pair.label[2] for pair in pairs])
        self.kinds = [np.flatnonzero(is_image), np.flatnonzero(~is_image)]
        self.steps = sum(len(kind) // step_size for kind in self.kinds)
        if not self.steps:
            raise ValueError(
                f"{len(self.kinds[0])} images and {len(self.kinds[1])} videos are each fewer than the {step_size} "
                "pairs of one step: --override global_batch_size=..."
            )
        self.step_size, self.seed, self.steps_done = step_size, seed, steps_done

    def __len__(self) -> int:
        return self.steps * self.step_size

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.steps_done() // self.steps
        random = np.random.default_rng([self.seed, epoch])
        steps = []
        for kind in self.kinds:
            order = random.permutation(kind)
            steps += list(order[: len(order) // self.step_size * self.step_size].reshape(-1, self.step_size))
        order = [index for step in random.permutation(len(steps)) for index in steps[step].tolist()]
        for place, index in enumerate(order):
            yield Draw(epoch, place, index)


class PairCollator:
    """Makes batches: pixels, texts with their masked copies, and the numbers of the videos.

    Args:
        recipe: share of masked words; whether patches are masked. processor: tokenises. patches: of a frame, S.
    """

    def __init__(self, recipe: MultiModalRecipe, processor: VideoMambaMultiModalProcessor, patches: int):
        self.recipe, self.processor, self.patches = recipe, processor, patches

    def __call__(self, clips: list[ClipViews]) -> dict[str, torch.Tensor]:
        """Return `pixel_values_videos` (B, F, 3, H, W) or `pixel_values` (B, 3, H, W); `input_ids`, `attention_mask`,
        `masked_input_ids`, `labels` (B, T); `pair_ids` (B,); `mask_noise` (B, F, S) where patches are masked.
        """
        # What stands in for a medium that cannot be read may be of the other kind; another pair is taken twice then.
        clips = [clip if clip.label[2] == clips[0].label[2] else clips[0] for clip in clips]
        captions, numbers, are_images = zip(*(clip.label for clip in clips))
        tokens = self.processor.texts(list(captions))
        masked = [
            mask_words(ids, mask, self.processor.tokenizer, self.recipe.text_mask, np.random.default_rng([*c.seed, 1]))
            for ids, mask, c in zip(tokens["input_ids"], tokens["attention_mask"], clips)
        ]
        batch = {name: torch.from_numpy(given) for name, given in tokens.items()}
        batch["masked_input_ids"] = torch.from_numpy(np.stack([ids for ids, _ in masked]))
        batch["labels"] = torch.from_numpy(np.stack([labels for _, labels in masked]))
        batch["pair_ids"] = torch.tensor(numbers)
        pixels = torch.stack([clip.pixels[0] for clip in clips])
        if self.recipe.is_masked:
            noise = [draw_noise([*clip.seed, 2], 1, len(clip.pixels[0]), self.patches) for clip in clips]
            batch["mask_noise"] = torch.cat(noise)
        return batch | ({"pixel_values": pixels[:, 0]} if are_images[0] else {"pixel_values_videos": pixels})


def mask_words(
    input_ids: np.ndarray, attention_mask: np.ndarray, tokenizer, share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mask words of a text (arXiv 2403.06977, appendix: as BERT does, with another share).

    Args:
        input_ids, attention_mask: (T,). share: chance of each token but [CLS]; [SEP] can be masked.

    Returns:
        the masked copy (T,); labels (T,), the word where one is masked, else -100.
    """
    can = (attention_mask == 1) & (input_ids != tokenizer.cls_token_id)
    chosen = can & (random.random(len(input_ids)) < share)
    fate = random.random(len(input_ids))
    others = random.integers(len(tokenizer), size=len(input_ids))
    masked = np.where(chosen & (fate < MASKED_SHARE), tokenizer.mask_token_id, input_ids)
    is_other = chosen & (fate >= MASKED_SHARE) & (fate < MASKED_SHARE + RANDOM_SHARE)
    return np.where(is_other, others, masked), np.where(chosen, input_ids, -100)
