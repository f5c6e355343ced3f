"""`LiveFrames`: frames that come in while the model watches, from a camera, a pipe or a network stream.

A thread calls `live.push(frame, time)` for every frame and `live.close()` at the end; meanwhile
`model.watch(live, processor=processor)` reads.
"""

import math
import threading
import time as clock
from collections import deque
from collections.abc import Iterator
from typing import Any

# As in video files: two times closer than this are the same time.
_TIME_TOLERANCE = 1e-6
# A pause longer than this many samples is a wrong clock (milliseconds for seconds, say), not a pause.
_LONGEST_PAUSE = 100_000


class LiveFrames:
    """Takes frames at any rate, samples them at `fps`, and holds at most `max_waiting` that nobody has read.

    Sampling is that of a file: at `i / fps` after the first frame, the last frame pushed at or before that time. A
    pause in the stream shows its last frame; of frames with one time the first counts. One thread pushes, one `watch`
    reads.

    Args:
        fps: samples per second.
        max_waiting: samples that may wait.

    Attributes:
        frames_dropped: samples that found no room and were lost. `VideoMemory.frames_dropped` counts them too.
    """

    def __init__(self, fps: float = 1.0, max_waiting: int = 32):
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps={fps} must be a finite number above 0")
        if max_waiting < 1:
            raise ValueError(f"max_waiting={max_waiting} must be at least 1")
        self.fps = fps
        self.max_waiting = max_waiting
        self.frames_dropped = 0
        self._waiting: deque[tuple[float, Any]] = deque()  # (seconds since the first frame, frame)
        self._changed = threading.Condition()
        self._is_closed = False
        self._first_time = self._last_time = None
        self._shown = None  # the last frame pushed
        self._sampled = 0  # samples so far, dropped ones included
        self._dropped_untold = 0

    def push(self, frame, time: float, wait: float | None = 0.0) -> bool:
        """Take a frame; it may become no sample, one, or after a pause several.

        Args:
            frame: PIL image, or uint8 (H, W, 3) or (3, H, W). It is kept, not copied.
            time: seconds of any clock that does not go back.
            wait: seconds to wait for room before a sample is dropped. 0 suits a camera, which cannot wait; None waits
                as long as it takes, which holds a pipe back.

        Returns:
            whether no sample was dropped.

        Raises:
            ValueError: closed, or `time` is no number, goes back, or jumps.
        """
        deadline = None if wait is None else clock.monotonic() + wait
        with self._changed:
            if self._is_closed:
                raise ValueError("these LiveFrames are closed; make new ones for another stream")
            if not math.isfinite(time) or (self._last_time is not None and time < self._last_time):
                raise ValueError(f"time={time} after {self._last_time}: times are finite seconds and never go back")
            if self._first_time is None:
                self._first_time = time
            seconds = time - self._first_time
            if (seconds + _TIME_TOLERANCE) * self.fps - self._sampled > _LONGEST_PAUSE:
                raise ValueError(
                    f"time={time} is {time - self._last_time:.0f} s after the last frame: times are in seconds"
                )
            kept = True
            while self._due < seconds - _TIME_TOLERANCE:
                kept &= self._put(self._shown, deadline)
            if self._due <= seconds + _TIME_TOLERANCE:
                kept &= self._put(frame, deadline)
            self._shown, self._last_time = frame, time
            return kept

    def close(self) -> None:
        """Say that no more frames come: `watch` reads those that wait and returns."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def take(self, most: int) -> list[tuple[float, Any]]:
        """Return up to `most` waiting samples as (seconds since the first frame, frame).

        Waits for one; the list is empty once the frames are closed and all taken.
        """
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._changed.notify_all()
            return taken

    def give_back(self, taken: list[tuple[float, Any]]) -> None:
        """Put samples back that were taken and not used; they are the next to be taken."""
        with self._changed:
            self._waiting.extendleft(reversed(taken))
            self._changed.notify_all()

    def take_dropped(self) -> int:
        """Return how many samples were dropped since the last call."""
        with self._changed:
            dropped, self._dropped_untold = self._dropped_untold, 0
            return dropped

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        while taken := self.take(1):
            yield taken[0]

    @property
    def _due(self) -> float:
        """When the next sample is, in seconds since the first frame."""
        return self._sampled / self.fps

    def _put(self, frame, deadline: float | None) -> bool:
        due = self._due
        self._sampled += 1
        while len(self._waiting) >= self.max_waiting and not self._is_closed:
            left = None if deadline is None else deadline - clock.monotonic()
            if left is not None and left <= 0:
                break
            self._changed.wait(left)
        if self._is_closed or len(self._waiting) >= self.max_waiting:
            self.frames_dropped += 1
            self._dropped_untold += 1
            return False
        self._waiting.append((due, frame))
        self._changed.notify_all()
        return True


__all__ = ["LiveFrames"]
