"""`Sessions`: what the web page keeps for each person: a memory, a timeline and a folder, apart from everybody else's.

A session goes when its browser tab closes, or when nobody has used it for a while; its folder goes with it.
"""

import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from modeling_video_ma2mba import VideoMemory


@dataclass(frozen=True)
class Moment:
    """A thumbnail on the timeline: `picture` is the file of the last one of the first `seconds` that were watched."""

    seconds: float
    picture: Path


@dataclass
class Session:
    """What one person has.

    Attributes:
        folder: its own; snapshots, thumbnails and memory files are in it.
        memory: of the video watched last, or loaded; None: nothing yet.
        title: the video's name, for the file of the memory.
        timeline: moments of the video watched last, in order.
        as_of: questions are about the first so many seconds; None: about everything that was seen.
        uploads: files of this person outside the folder.
        last_used: `time.monotonic()`.
        lock: held while something is written into the folder.
    """

    folder: Path
    memory: VideoMemory | None = None
    title: str = "video"
    timeline: list[Moment] = field(default_factory=list)
    as_of: float | None = None
    uploads: set[str] = field(default_factory=set)
    last_used: float = field(default_factory=time.monotonic)
    is_closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self, title: str) -> None:
        """Begin anew, with another video or memory; the files of the one before go."""
        self.memory, self.title, self.timeline, self.as_of = None, title, [], None
        with self.lock:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.is_closed:
                self.folder.mkdir()


class Sessions:
    """Sessions by the key that a browser tab sends; a key that is new gets a new session.

    Args:
        idle_seconds: a session nobody has used for so long is removed.

    Attributes:
        folder: the sessions' folders are in it.
    """

    def __init__(self, idle_seconds: float):
        self.idle_seconds = idle_seconds
        self._folder = tempfile.TemporaryDirectory(prefix="video-ma2mba-page-")  # goes with the process
        self.folder = Path(self._folder.name).resolve()
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def get(self, key: str) -> Session:
        with self._lock:
            if key not in self._sessions:
                # The key comes from outside and names no folder. What the folder is called nobody can guess: its
                # files are served to whoever knows.
                folder = self.folder / secrets.token_hex(16)
                folder.mkdir()
                self._sessions[key] = Session(folder)
            session = self._sessions[key]
            session.last_used = time.monotonic()
            return session

    def close(self, key: str) -> None:
        """Remove a session and its files; a key that nobody has is fine."""
        with self._lock:
            session = self._sessions.pop(key, None)
            # Two people who upload the same file share it: gradio names files by what is in them.
            still_used = set().union(*(other.uploads for other in self._sessions.values()))
        if session is None:
            return
        session.is_closed = True
        session.forget("")
        for path in session.uploads - still_used:
            Path(path).unlink(missing_ok=True)

    def close_idle(self) -> None:
        """Remove the sessions that nobody has used for `idle_seconds`."""
        with self._lock:
            latest = time.monotonic() - self.idle_seconds
            idle = [key for key, session in self._sessions.items() if session.last_used < latest]
        for key in idle:
            self.close(key)

    def close_all(self) -> None:
        """Remove everything, and stop looking for idle sessions."""
        self._is_over.set()
        for key in list(self._sessions):
            self.close(key)
        self._folder.cleanup()

    def watch_over(self, every_seconds: float) -> None:
        """Call `close_idle` from time to time, in a thread."""

        def look() -> None:
            while not self._is_over.wait(every_seconds):
                self.close_idle()

        threading.Thread(target=look, name="idle sessions", daemon=True).start()
