"""Which moments a benchmark's own code looks at, where that differs from `processing/frame_sampling.py`.

A task names its rule in `View.sampling`. Pure arithmetic; it opens no file.

Dims: F frames.
"""

import numpy as np


def longvideobench_times(duration: float, native_fps: float, num_frames: int) -> np.ndarray:
    """Return LongVideoBench's sample times in seconds, (F,) float64, rising.

    At most one frame per whole second, from the very first frame on, at a whole number of frames from one to the next.

    Args:
        duration: of the video in seconds.
        native_fps: frames per second of the file.
        num_frames: the most frames, 1 or more.
    """
    # A video of less than a second has no frame by this rule; it gets its first one.
    count = max(1, min(num_frames, int(duration)))
    stride = int(int(duration * native_fps) / count)
    return np.arange(count, dtype=np.float64) * stride / native_fps


SAMPLING_RULES = {"longvideobench": longvideobench_times}
