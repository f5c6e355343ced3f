"""How long samples are, in tokens, without decoding them: media files are opened, their headers read, nothing more."""

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from modeling_video_ma2mba.processing.frame_sampling import sample_times
from modeling_video_ma2mba.processing.media_suffixes import MEDIA_SUFFIXES
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.video_reader import probe
from modeling_video_ma2mba.train.collator import SampleCollator
from modeling_video_ma2mba.train.recipes import Recipe
from modeling_video_ma2mba.train.samples import Media, Sample

# Media on a network drive answer slowly, one by one.
_OPEN_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class SampleLength:
    """The size of a sample.

    Attributes:
        tokens: of text and frames. frames: of videos, and images. seconds: of video.
        problem: why the media cannot be used, and then the numbers are 0; None: they can.
    """

    tokens: int = 0
    frames: int = 0
    seconds: float = 0.0
    problem: str | None = None


def measure(
    samples: Sequence[Sample], recipe: Recipe, collator: SampleCollator, show_progress: bool = True
) -> list[SampleLength]:
    """Return the length of each sample as the decoder and the collator would make it.

    Args:
        recipe: its `fps` and `max_frames` are used.
        collator: makes the text of a sample.
    """
    paths = {media.path: media for sample in samples for media in sample.media}
    hidden = not show_progress
    with ThreadPoolExecutor(_OPEN_AT_ONCE) as pool:
        found = pool.map(_duration, paths.values())
        found = tqdm(found, total=len(paths), desc="opening media", unit="file", disable=hidden)
        durations = dict(zip(paths, found, strict=True))
    samples = tqdm(samples, desc="counting tokens", unit="sample", disable=hidden)
    return [_length(sample, durations, recipe, collator) for sample in samples]


def _length(
    sample: Sample, durations: dict[Path, float | str], recipe: Recipe, collator: SampleCollator
) -> SampleLength:
    limit = None if recipe.max_frames is None else max(1, recipe.max_frames // len(sample.media))
    frames, seconds = 0, 0.0
    for media in sample.media:
        duration = durations[media.path]
        if isinstance(duration, str):
            return SampleLength(problem=duration)
        if media.kind == "image":
            frames += 1
            continue
        start, end = media.start or 0.0, media.end
        try:
            count = len(sample_times(duration, fps=recipe.fps, max_frames=limit, start=start, end=end))
        except ValueError as error:
            return SampleLength(problem=f"{media.path}: {error}")
        if not count:
            return SampleLength(problem=f"{media.path}: no frame between {start} and {end} s of {duration:.1f} s")
        frames += count
        seconds += max(0.0, (duration if end is None else min(end, duration)) - start)
    processor = collator.processor
    ids = processor.tokenizer(collator.text(sample), add_special_tokens=False)["input_ids"]
    tokens = len(ids) - len(sample.media) + frames * processor.tokens_per_frame
    return SampleLength(tokens=tokens, frames=frames, seconds=seconds)


def _duration(media: Media) -> float | str:
    """Return the seconds of a medium, 0 for an image, or why it cannot be opened."""
    try:
        if media.kind == "video":
            return probe(media.path).duration
        if media.kind == "frames":
            return sum(path.suffix.lower() in MEDIA_SUFFIXES["image"] for path in media.path.iterdir()) / media.fps
        with Image.open(media.path) as image:
            image.verify()
        return 0.0
    except (VideoReadError, UnidentifiedImageError, OSError, ValueError) as error:
        return str(error)


def write_lengths(path: Path, lengths: Sequence[SampleLength]) -> None:
    """Write lengths as a JSON lines file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in lengths), encoding="utf-8")
    part.replace(path)


def read_lengths(path: Path) -> list[SampleLength]:
    """Read the file of `write_lengths`."""
    with path.open(encoding="utf-8") as lines:
        return [SampleLength(**json.loads(line)) for line in lines]
