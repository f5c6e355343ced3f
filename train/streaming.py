"""Training on rows that are read one after the other and never held, for annotations too many for memory.

The order of a stream is a function of the seed alone: sample i of it is the same in every process and every dataloader
worker, each of which reads all rows and decodes only its own. So a run that goes on skips the samples that were used
by counting rows; nothing is decoded again and no state of a reader is kept.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import UnidentifiedImageError
from torch.utils.data import IterableDataset, get_worker_info

from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.collator import SampleCollator
from modeling_video_ma2mba.train.samples import Sample, grouped
from modeling_video_ma2mba.train.training_set import Decoded, MediaDecoder, list_bad

# A sample that cannot be read is replaced by one of the next so many.
CANDIDATES = 8


class StreamingSet(IterableDataset):
    """Yields samples without end, epoch after epoch, each with those behind it that may stand in for it.

    accelerate takes from it what belongs to a process (`dispatch_batches` must be False); it shares the samples out
    to dataloader workers itself. Both get batches in the order that one process without workers would have.

    Args:
        read: returns the samples of an epoch; called with the number of the epoch.
        batch_size: samples of one batch on all processes together.
        buffer: samples held to be drawn from in random order; 1: the order of the rows.
        seed: of that order.
        start: samples that earlier runs have used, a multiple of `batch_size`.

    Raises:
        ValueError: while reading: the data give no sample.
    """

    def __init__(
        self, read: Callable[[int], Iterable[Sample]], batch_size: int, buffer: int, seed: int, start: int = 0
    ):
        if batch_size < 1 or buffer < 1 or start < 0 or start % batch_size:
            raise ValueError(
                f"batch_size={batch_size} and buffer={buffer} must be at least 1 and start={start} a multiple of "
                "batch_size"
            )
        self.read, self.batch_size, self.buffer, self.seed, self.start = read, batch_size, buffer, seed, start

    def __iter__(self) -> Iterator[tuple[Sample, ...]]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        windows = _windows(itertools.islice(self._samples(), self.start, None))
        for i, window in enumerate(windows):
            if i // self.batch_size % workers == number:
                yield window

    def _samples(self) -> Iterator[Sample]:
        for epoch in itertools.count():
            empty = True
            for sample in shuffled(self.read(epoch), self.buffer, f"{self.seed}/{epoch}"):
                empty = False
                yield sample
            if empty:
                raise ValueError("the data give no sample to train on")


def _windows(samples: Iterator[Sample]) -> Iterator[tuple[Sample, ...]]:
    window = deque(itertools.islice(samples, CANDIDATES - 1), maxlen=CANDIDATES)
    for sample in samples:
        window.append(sample)
        yield tuple(window)


def shuffled(samples: Iterable[Sample], buffer: int, seed: str) -> Iterator[Sample]:
    """Yield samples in random order, each drawn from `buffer` of them."""
    chance, held = random.Random(seed), []
    for sample in samples:
        held.append(sample)
        if len(held) >= buffer:
            place = chance.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()
    chance.shuffle(held)
    yield from held


def neighbours_grouped(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Join conversations about one image or video that stand next to each other; others cannot be seen in a stream."""
    for _, run in itertools.groupby(samples, key=lambda sample: sample.pieces[0]):
        yield from grouped(run)


class DecodingCollator:
    """Makes batches of what a `StreamingSet` yields.

    Args:
        decode: a `MediaDecoder`. collate: makes the batch.
        bad_list: JSON lines file of samples that could not be read; the next one of the stream stood in.

    Raises:
        RuntimeError: `CANDIDATES` samples in a row cannot be read.
    """

    def __init__(self, decode: MediaDecoder, collate: SampleCollator, bad_list: str | Path):
        self.decode, self.collate, self.bad_list = decode, collate, Path(bad_list)

    def __call__(self, windows: list[tuple[Sample, ...]]) -> dict:
        return self.collate([self._first_readable(window) for window in windows])

    def _first_readable(self, window: tuple[Sample, ...]) -> Decoded:
        for sample in window:
            try:
                return self.decode(sample)
            except (VideoReadError, UnidentifiedImageError, OSError, ValueError) as error:
                list_bad(self.bad_list, sample, str(error))
        raise RuntimeError(f"{len(window)} samples in a row could not be read; they are listed in {self.bad_list}")
