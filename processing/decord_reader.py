"""The optional decord backend: the same samples, by decord's own time stamps. Used only when asked for by name."""

import importlib
import os
from collections.abc import Iterator

import numpy as np

from .frame_sampling import TIME_TOLERANCE
from .video_errors import VideoReadError

BATCH = 32  # decord keeps a whole batch decoded


def decord_samples(path: str | os.PathLike, times: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (time, uint8 (H, W, 3) RGB) for each of `times`, float64 (n,) in seconds, rising.

    Raises:
        ImportError: decord is not installed.
        VideoReadError: decord cannot open or decode the file.
    """
    try:
        decord = importlib.import_module("decord")
    except ImportError as error:
        raise ImportError("backend='decord' needs decord: pip install decord; or use backend='pyav'") from error
    try:
        reader = decord.VideoReader(os.fspath(path), num_threads=1)
        begins = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]  # (frames,) seconds
        begins = begins - begins[0]
        indices = np.searchsorted(begins, times + TIME_TOLERANCE, side="right") - 1
        for first in range(0, len(times), BATCH):
            batch = reader.get_batch(indices[first : first + BATCH].clip(0)).asnumpy()
            yield from zip(times[first : first + BATCH].tolist(), batch)
    except (RuntimeError, decord.DECORDError) as error:
        raise VideoReadError(path, f"decord: {str(error).splitlines()[0]}", advice="Use backend='pyav'.") from error
