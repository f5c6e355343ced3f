"""Which moments of a video are looked at: sample times in seconds, from a duration and a rule.

Pure arithmetic. It opens no file and picks no frame; the reader shows, at each time, the last frame with pts <= time.
"""

import math
from collections.abc import Sequence

import numpy as np

# Two times closer than this are the same time: far below any frame period, far above rounding errors of float64.
TIME_TOLERANCE = 1e-6

# 16 weeks at 1 FPS. A header that states an absurd duration must not make us allocate an absurd array.
MAX_SAMPLES = 10_000_000

DEFAULT_FPS = 1.0


def check_sampling(
    fps: float | None = None,
    *,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> None:
    """Raise ValueError when the arguments of `sample_times` contradict each other, whatever the video."""
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(
            f"fps={fps} must be a finite number above 0; give frames per second, or None for {DEFAULT_FPS}"
        )
    for name, value in (("num_frames", num_frames), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1, or None")
    if num_frames is not None and (fps is not None or max_frames is not None):
        raise ValueError(
            f"num_frames={num_frames} excludes fps={fps} and max_frames={max_frames}: give either num_frames alone, "
            "or fps with an optional max_frames"
        )
    if not (math.isfinite(start) and start >= 0):
        raise ValueError(f"start={start} must be a finite number of seconds, 0 or more")
    if end is not None and not end > start:
        raise ValueError(f"end={end} must lie after start={start} (seconds), or be None for the end of the video")


def check_times(times: Sequence[float]) -> np.ndarray:
    """Return sample times in seconds that somebody else chose, float64 (n,); raise ValueError for impossible ones."""
    _check_count(len(times))
    checked = np.asarray(times, dtype=np.float64)
    if checked.ndim != 1 or not np.isfinite(checked).all() or (checked < 0).any() or (np.diff(checked) < 0).any():
        raise ValueError("times must be a list of finite seconds, 0 or more, each at or after the one before")
    return checked


def sample_times(
    duration: float,
    fps: float | None = None,
    *,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> np.ndarray:
    """Return the sample times of a video, in seconds, rising.

    With `stop = min(end, duration)`:

    - by rate (the default, 1 FPS): `t_i = start + i / fps` for every `t_i < stop`;
    - `max_frames` (a frame limit): when the rate gives more than this, that many times spread uniformly instead;
    - `num_frames`: exactly that many times, at the centres of that many equal parts of [start, stop). A clip with
      fewer frames than that shows some frames more than once, so the count always holds.

    A video of zero duration (a still picture) has one sample, at 0, by rate.

    Args:
        duration: length of the video in seconds, 0 or more.
        fps: samples per second; None means 1.0 unless `num_frames` is given.
        num_frames: exact number of samples; excludes `fps` and `max_frames`.
        max_frames: upper limit on the number of samples.
        start, end: the part to look at, in seconds.

    Returns:
        float64 array of shape (number of samples,).

    Raises:
        ValueError: contradicting arguments, `start` behind the end of the video, or more than `MAX_SAMPLES` samples.
    """
    check_sampling(fps, num_frames=num_frames, max_frames=max_frames, start=start, end=end)
    if not (math.isfinite(duration) and duration >= 0):
        raise ValueError(f"duration={duration} must be a finite number of seconds, 0 or more")
    stop = duration if end is None else min(end, duration)
    length = stop - start
    if length <= 0 and start > 0:
        raise ValueError(f"start={start} lies behind the end of the video ({duration:.3f} s); choose an earlier start")

    if num_frames is not None:
        return _uniform(start, length, num_frames)
    rate = DEFAULT_FPS if fps is None else fps
    count = max(1, math.ceil((length - TIME_TOLERANCE) * rate))
    if max_frames is not None and count > max_frames:
        return _uniform(start, length, max_frames)
    _check_count(count)
    return start + np.arange(count, dtype=np.float64) / rate


def _uniform(start: float, length: float, count: int) -> np.ndarray:
    _check_count(count)
    return start + (np.arange(count, dtype=np.float64) + 0.5) * (length / count)


def _check_count(count: int) -> None:
    if count > MAX_SAMPLES:
        raise ValueError(
            f"{count} samples are more than the {MAX_SAMPLES} allowed; lower fps, set max_frames, or set start and end"
        )
