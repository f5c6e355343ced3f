"""How far a run is: a bar on a terminal, that moves within a long video too; a line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Counts frames and videos; a context manager.

    Args:
        title: stands before the numbers. videos, frames: how many there are in all.
        show: False: say nothing, as all processes but one.
    """

    def __init__(self, title: str, videos: int, frames: int, show: bool = True) -> None:
        self.title, self.videos, self.show = title, videos, show
        self.done = self.errors = 0
        self._is_terminal = sys.stderr.isatty()
        self._said = time.monotonic()
        hidden = not (show and self._is_terminal)
        self.bar = tqdm(total=frames, desc=title, unit=" frames", disable=hidden)
        self.frames, self._read = frames, 0
        self._show_counts()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()
        if self.videos and exception[0] is None:
            self._line()

    def read(self, frames: int = 1) -> None:
        """Count frames that were read."""
        self._read += frames
        self.bar.update(frames)
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._line()

    def video_done(self, unread: int, errors: int) -> None:
        """Count a video, its frames that were never read (it is damaged), and its questions without an answer."""
        self.done += 1
        self.errors += errors
        self._show_counts()
        self.read(unread)

    def _show_counts(self) -> None:
        self.bar.set_postfix_str(self._counts(), refresh=False)

    def _counts(self) -> str:
        return f"{self.done:,} of {self.videos:,} videos" + (f", {self.errors:,} errors" if self.errors else "")

    def _line(self) -> None:
        self._said = time.monotonic()
        if self.show and not self._is_terminal:
            print(f"{self.title}: {self._counts()}, {self._read:,} of {self.frames:,} frames", file=sys.stderr)
