"""The one error that every unreadable video ends in. It does not decide what is unreadable; the readers do."""

import os


class VideoReadError(ValueError):
    """A video could not be read, or not read to its end.

    Attributes:
        path (`str`): the file, as it was given.
        reason (`str`): what is wrong with it.
        time (`float | None`): seconds from the start of the video up to which frames are right; None when the trouble
            has no place in time (a missing file, say).

    The message holds the three of them and what to do next (`advice`).
    """

    def __init__(self, path: str | os.PathLike, reason: str, time: float | None = None, advice: str = "") -> None:
        self.path = os.fsdecode(path)
        self.reason = reason
        self.time = None if time is None else float(time)
        self.advice = advice
        place = "" if time is None else f" at {self.time:.3f} s"
        super().__init__(f"cannot read video {self.path!r}{place}: {reason}." + (f" {advice}" if advice else ""))

    def __reduce__(self) -> tuple:
        # The message is built from these four; without this, an error raised in a DataLoader worker cannot be rebuilt.
        return type(self), (self.path, self.reason, self.time, self.advice)
