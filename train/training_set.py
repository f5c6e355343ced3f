"""`TrainingSet`: samples whose media are decoded when they are asked for, and what happens to those that cannot be.

A video becomes a `FrameSource`: a short one in memory, a long one in a memory-mapped file of limited size, which goes
with the batch, so that host memory does not grow with the length of a video.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from modeling_video_ma2mba.processing.frame_sampling import sample_times
from modeling_video_ma2mba.processing.frame_source import FrameSource
from modeling_video_ma2mba.processing.media_suffixes import MEDIA_SUFFIXES
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.video_reader import iter_frames
from modeling_video_ma2mba.train.samples import Media, Sample

# Frames of a video that stay in memory; 64 at 336 px are 21 MB. Longer ones go to a file.
FRAMES_IN_MEMORY = 64
# The longest video of the paper's training, 0.8M tokens, has 5,600 frames of 336 px: 1.9 GB.
FILE_LIMIT_BYTES = 8 * 2**30
# The share of bad samples means nothing before this many were seen.
_ENOUGH = 20


@dataclass(frozen=True)
class Decoded:
    """A sample with its images, (H, W, 3) uint8 each, and the frames of its videos, in their order."""

    sample: Sample
    images: list[np.ndarray]
    videos: list[FrameSource]


class MediaDecoder:
    """Decodes the media of samples.

    Args:
        fit: fits a picture (H, W, 3) to the model's frame (3, size, size): `image_processor.fit`.
        fps, max_frames: of sampling; `max_frames` holds for all clips of a sample together.
        directory: where files of frames are put; None is the system's temporary folder.
        limit_bytes: largest file of one clip's frames.
    """

    def __init__(
        self,
        fit: Callable,
        fps: float = 1.0,
        max_frames: int | None = None,
        directory: str | Path | None = None,
        limit_bytes: int = FILE_LIMIT_BYTES,
    ):
        self.fit, self.fps, self.max_frames = fit, fps, max_frames
        self.directory, self.limit_bytes = directory, limit_bytes

    def __call__(self, sample: Sample) -> Decoded:
        """Return the sample with its media.

        Raises:
            VideoReadError, OSError, ValueError: media cannot be read.
        """
        limit = None if self.max_frames is None else max(1, self.max_frames // len(sample.media))
        read = [(media, self.read(media, limit)) for media in sample.media]
        images = [given for media, given in read if media.kind == "image"]
        return Decoded(sample, images, [given for media, given in read if media.kind != "image"])

    def read(self, media: Media, limit: int | None = None) -> np.ndarray | FrameSource:
        """Return an image (H, W, 3) uint8 or the fitted frames of a video, at most `limit` of them."""
        fit = self.fit
        if media.kind == "image":
            with Image.open(media.path) as image:
                return np.asarray(image.convert("RGB"))
        if media.kind == "frames":
            pictures = _folder_frames(media, self.fps, limit)
        else:
            sampling = {"fps": self.fps, "max_frames": limit, "start": media.start or 0.0, "end": media.end}
            pictures = (frame for _, chunk in iter_frames(media.path, **sampling) for frame in chunk)
        fitted = (fit(picture) for picture in pictures)
        first = [picture for _, picture in zip(range(FRAMES_IN_MEMORY), fitted)]
        if len(first) < FRAMES_IN_MEMORY:
            if not first:
                raise ValueError("no frame in this part of it")
            return FrameSource(np.stack(first))

        def chunks() -> Iterator[np.ndarray]:
            yield np.stack(first)
            for picture in fitted:
                yield picture[None]

        return FrameSource.create_file(chunks(), self.limit_bytes, self.directory, hand_over=True)


class TrainingSet(Dataset):
    """Samples, decoded one by one. One that cannot be read is listed in a file, and the next one stands in for it.

    Args:
        samples: any number of them, at least one.
        decode: a `MediaDecoder`.
        bad_list: JSON lines file that names what was left out: `{"id", "source", "path", "reason"}`.
        max_bad_share: more than this share of bad samples, counted by each worker on its own, stops the run.
        lengths: tokens of each sample, by which the Trainer groups them; None: it does not.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        decode: MediaDecoder,
        bad_list: str | Path,
        max_bad_share: float,
        lengths: Sequence[int] | None = None,
    ):
        if not samples:
            raise ValueError("no sample to train on")
        if lengths is not None and len(lengths) != len(samples):
            raise ValueError(f"{len(lengths)} lengths for {len(samples)} samples: one for each is needed")
        self.samples, self.decode, self.lengths = samples, decode, lengths
        self.bad_list, self.max_bad_share = Path(bad_list), max_bad_share
        self.seen = self.bad = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Decoded:
        for offset in range(len(self.samples)):
            sample = self.samples[(index + offset) % len(self.samples)]
            self.seen += 1
            try:
                return self.decode(sample)
            except (VideoReadError, UnidentifiedImageError, OSError, ValueError) as error:
                self._note(sample, error)
        raise ValueError(f"none of {len(self.samples)} samples can be read; see {self.bad_list}")

    def _note(self, sample: Sample, error: Exception) -> None:
        self.bad += 1
        list_bad(self.bad_list, sample, str(error))
        check_bad_share(self.bad, self.seen, self.max_bad_share, self.bad_list)


def list_bad(path: Path, sample: Sample, reason: str) -> None:
    """Append a sample that cannot be used to a JSON lines file."""
    paths = ", ".join(str(media.path) for media in sample.media[:3])
    entry = {"id": sample.id, "source": sample.source, "path": paths, "reason": reason}
    # One write of one line: workers append to the same file.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(descriptor)


def too_many_bad(bad: int, seen: int, limit: float) -> bool:
    """Return whether more than the share `limit` is bad, of enough samples to tell."""
    return seen >= _ENOUGH and bad > limit * seen


def check_bad_share(bad: int, seen: int, limit: float, path: Path) -> None:
    """Raise RuntimeError if more than `limit` of the samples seen are bad, and there are enough to tell."""
    if too_many_bad(bad, seen, limit):
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        raise RuntimeError(
            f"{bad} of {seen} samples could not be read, more than max_bad_share={limit}; "
            f"the last: {last['path']}: {last['reason']}. All are listed in {path}"
        )


def _folder_frames(media: Media, fps: float, limit: int | None) -> Iterator[np.ndarray]:
    """Yield pictures of a folder, in the order of their names, as if it were a video of `media.fps`."""
    paths = sorted(path for path in media.path.iterdir() if path.suffix.lower() in MEDIA_SUFFIXES["image"])
    if not paths:
        raise ValueError("the folder holds no pictures")
    duration = len(paths) / media.fps
    for time in sample_times(duration, fps=fps, max_frames=limit, start=media.start or 0.0, end=media.end):
        with Image.open(paths[min(int(time * media.fps + 1e-6), len(paths) - 1)]) as image:
            yield np.asarray(image.convert("RGB"))
