"""Where `watch` gets its frames from, in batches: a file, an iterator of pictures, or `LiveFrames`.

Files and iterators are decoded and fitted in a thread, `BATCHES_AHEAD` ahead. The processor does the decoding.

Dims: n frames of a batch, S side of a fitted frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .read_ahead import read_ahead

BATCHES_AHEAD = 2

_NO_FRAMES = np.empty((0, 3, 0, 0), np.uint8)


@dataclass
class FrameBatch:
    """Fitted frames and how far they reach.

    Attributes:
        frames: uint8 (n, 3, S, S); n is 0 only where something else is to be told.
        seconds: length of all frames of this feed so far, these included.
        dropped: samples lost since the last batch.
        is_read: set by the reader once the model has read the frames.
        text_ids: token ids that are read behind the frames.
    """

    frames: np.ndarray
    seconds: float
    dropped: int = 0
    is_read: bool = False
    text_ids: Sequence[int] = ()


def file_batches(
    processor, path: str, fps: float, start: float, end: float | None, allow_damaged: bool, most: int
) -> Iterator[FrameBatch]:
    """Yield the sampled frames of a video file, `most` at a time."""
    frames = processor.stream_frames(path, fps=fps, start=start, end=end, allow_damaged=allow_damaged)
    return read_ahead(_batches(frames, fps, most), BATCHES_AHEAD)


def picture_batches(processor, pictures: Iterable, fps: float, most: int) -> Iterator[FrameBatch]:
    """Yield pictures that are sampled already, `most` at a time, and the texts between them."""
    items = (processor.text_ids(item) if isinstance(item, str) else processor.fit_frame(item) for item in pictures)
    return read_ahead(_batches(items, fps, most), BATCHES_AHEAD)


def live_batches(processor, live, most: int) -> Iterator[FrameBatch]:
    """Yield what waits in `LiveFrames`, at most `most` at a time, and wait for more; frames not read go back."""
    seconds = 0.0
    while taken := live.take(most):
        seconds = taken[-1][0] + 1 / live.fps
        batch = None
        try:
            batch = FrameBatch(
                np.stack([processor.fit_frame(frame) for _, frame in taken]), seconds, live.take_dropped()
            )
            yield batch
        finally:
            if batch is None or not batch.is_read:
                live.give_back(taken)
    yield FrameBatch(_NO_FRAMES, seconds, live.take_dropped())


def _batches(items: Iterator[np.ndarray | list[int]], fps: float, most: int) -> Iterator[FrameBatch]:
    """Gather frames up to `most` of them, or up to the token ids of a text."""
    count, waiting = 0, []
    for item in items:
        if isinstance(item, list):
            yield FrameBatch(np.stack(waiting) if waiting else _NO_FRAMES, count / fps, text_ids=item)
            waiting = []
            continue
        waiting.append(item)
        count += 1
        if len(waiting) == most:
            yield FrameBatch(np.stack(waiting), count / fps)
            waiting = []
    if waiting:
        yield FrameBatch(np.stack(waiting), count / fps)
