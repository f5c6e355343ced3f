"""`MemorySnapshots`: a few states of a long watch on disk, evenly spaced, for questions "as of minute 12"."""

import copy
import os
import shutil
import tempfile
import uuid
import weakref
from pathlib import Path

# Seconds of video between the first snapshots; twice that whenever there are too many.
FIRST_INTERVAL = 1.0


class MemorySnapshots:
    """Files named by the second at which they were taken, at most `most` of them.

    Args:
        most: at least 2.
        folder: existing or new; its snapshots stay. None: a temporary folder, which goes with the last memory that
            refers to it.
    """

    def __init__(self, most: int, folder: str | os.PathLike | None = None):
        self.most = most
        self.interval = FIRST_INTERVAL
        self.folder = _Folder(folder)
        self.taken: list[tuple[float, Path]] = []  # (seconds, file), rising

    def fork(self, most: int) -> "MemorySnapshots":
        """Return snapshots that go on from these: what they add is not here, what they remove is gone here too."""
        other = copy.copy(self)
        other.most, other.taken = most, list(self.taken)
        return other

    def place_for(self, seconds: float) -> Path | None:
        """Return the file to write a snapshot of this moment to, None if it is too early for one.

        Older ones are removed to make room: then only every other one stays, and the interval doubles.
        """
        while self.taken and seconds >= self.taken[-1][0] + self.interval and len(self.taken) >= self.most:
            self.interval *= 2
            kept: list[tuple[float, Path]] = []
            for moment, path in self.taken:
                if not kept or moment >= kept[-1][0] + self.interval:
                    kept.append((moment, path))
                else:
                    path.unlink(missing_ok=True)
            self.taken = kept
        if self.taken and seconds < self.taken[-1][0] + self.interval:
            return None
        # Two memories may go on from one: their snapshots of the same moment differ.
        return self.folder.path / f"{seconds:012.3f}-{uuid.uuid4().hex[:8]}.safetensors"

    def add(self, seconds: float, path: Path) -> None:
        """Note that the snapshot of this moment has been written."""
        self.taken.append((seconds, path))

    def newest(self, seconds: float) -> Path | None:
        """Return the newest snapshot at or before `seconds`, None if there is none."""
        return next((path for moment, path in reversed(self.taken) if moment <= seconds and path.exists()), None)


class _Folder:
    """A folder that exists for as long as somebody refers to this, or for good where the user named it."""

    def __init__(self, folder: str | os.PathLike | None):
        if folder is None:
            self.path = Path(tempfile.mkdtemp(prefix="video-memory-"))
            weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
            return
        self.path = Path(folder)
        self.path.mkdir(parents=True, exist_ok=True)
        if any(self.path.iterdir()):
            raise ValueError(f"snapshot folder {self.path} is not empty: choose a new one")
