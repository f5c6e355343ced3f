"""`Viewer`: what the web page does with a model: watch step by step, answer as a stream, memories in and out of files.

It knows nothing of browsers. Errors for the person at the page are ValueErrors of one line without a path.
"""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import TextIteratorStreamer

from modeling_video_ma2mba import VideoMemory
from modeling_video_ma2mba.hub_cards.space_sessions import Moment, Session
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.video_reader import iter_frames, probe
from modeling_video_ma2mba.video_memory import WatchedVideo

THUMBNAILS = 24
THUMBNAIL_SIZE = (160, 120)  # width, height
FRAMES_AT_ONCE = 32
MOST_SNAPSHOTS = 32


@dataclass(frozen=True)
class Limits:
    """What one person may use of the machine.

    Attributes:
        upload_bytes: of a video or a memory file. video_seconds: length of a video.
        watch_seconds: of the clock, for one video; what was seen by then is kept.
        idle_seconds: a page nobody uses for so long loses its files.
        question_letters: length of a question. answer_tokens: longest answer.
        snapshot_bytes: of earlier states on disk, for questions as of a time.
    """

    upload_bytes: int = 256 * 2**20
    video_seconds: float = 2 * 3600.0
    watch_seconds: float = 15 * 60.0
    idle_seconds: float = 3600.0
    question_letters: int = 500
    answer_tokens: int = 128
    snapshot_bytes: int = 2**30


@dataclass(frozen=True)
class Progress:
    """How far a watch is.

    Attributes:
        seconds, total: of the video. frames: read so far. speed: seconds of video per second.
        has_new_moment: the timeline is longer than it was.
        note: why it stopped before the end, "" if it did not.
    """

    seconds: float
    total: float
    frames: int
    speed: float
    has_new_moment: bool
    note: str = ""


class Viewer:
    """One model for everybody; what belongs to a person is in the `Session`."""

    def __init__(self, model, processor, limits: Limits):
        self.model, self.processor, self.limits = model, processor, limits
        state_bytes = model.model.language_model.new_state(1).nbytes
        self.snapshots = max(2, min(MOST_SNAPSHOTS, limits.snapshot_bytes // state_bytes))

    def watch(self, session: Session, path: str) -> Iterator[Progress]:
        """Watch a video into `session.memory`, which after every step holds what was seen so far.

        Whoever stops iterating stops the watch.

        Raises:
            ValueError: the file is too large or too long, or cannot be read.
        """
        title = Path(path).name
        self._check_size(path)
        session.forget(Path(path).stem)
        try:
            total = probe(path).duration
            if total > self.limits.video_seconds:
                raise ValueError(
                    f"{title} lasts {clock(total)}, allowed here are {clock(self.limits.video_seconds)}: "
                    "cut it, or run this page on a machine of your own"
                )
            yield from self._watch(session, path, title, total)
        except (ValueError, OSError) as error:
            raise ValueError(one_line(error, path)) from error

    def _watch(self, session: Session, path: str, title: str, total: float) -> Iterator[Progress]:
        fps, began = self.processor.fps, time.monotonic()
        # A step for every thumbnail, so that questions can be asked as of each of them.
        at_once = max(1, min(FRAMES_AT_ONCE, int(total * fps) // THUMBNAILS))
        memory = None
        for _, pictures in iter_frames(path, fps=fps, chunk=at_once):
            with session.lock:
                if session.is_closed:
                    return
                memory = self._see(memory, pictures, fps, title, session.folder)
                session.memory, session.last_used = memory, time.monotonic()
                seen = memory.seconds_seen
                is_due = seen >= (len(session.timeline) + 1) * total / THUMBNAILS or not session.timeline
                if is_due:
                    session.timeline.append(Moment(seen, _thumbnail(session.folder, pictures[-1])))
            spent = time.monotonic() - began
            is_late = spent > self.limits.watch_seconds and seen < total
            note = f"stopped after {clock(spent)} of work, as long as one video may take here" if is_late else ""
            yield Progress(min(seen, total), total, memory.frames_seen, seen / max(spent, 1e-9), is_due, note)
            if is_late:
                return
        session.memory = replace(memory, videos=(replace(memory.videos[0], complete=True),))

    def _see(self, memory: VideoMemory | None, pictures: np.ndarray, fps: float, title: str, folder: Path):
        """Return the memory behind pictures, uint8 (n, H, W, 3), as one of one video."""
        first = {"snapshot_folder": folder / "snapshots"} if memory is None else {}
        memory = self.model.watch(
            pictures,
            processor=self.processor,
            fps=fps,
            memory=memory,
            snapshots=self.snapshots,
            progress=False,
            **first,
        )
        seen = WatchedVideo(title, fps, frames=memory.frames_seen, seconds=memory.seconds_seen)
        return replace(memory, videos=(seen,))

    def look_back(self, session: Session, index: int | None) -> Moment | None:
        """Let questions be about the video up to a moment of the timeline; None: about everything."""
        moment = None if index is None else session.timeline[index]
        session.as_of = None if moment is None else moment.seconds
        return moment

    def memory_asked(self, session: Session) -> VideoMemory:
        """Return the memory that questions are about now; its `seconds_seen` says what it knows.

        Raises:
            ValueError: there is none.
        """
        if session.memory is None:
            raise ValueError("nothing has been watched yet: drop a video, choose a sample, or open a memory file")
        return session.memory if session.as_of is None else session.memory.as_of(session.as_of)

    def answer(self, memory: VideoMemory, question: str) -> Iterator[str]:
        """Yield the answer so far, and at last the whole of it.

        Raises:
            ValueError: no question, a long one, or one that cannot be asked.
        """
        question = question.strip()
        if not question:
            raise ValueError("type a question first")
        if len(question) > self.limits.question_letters:
            raise ValueError(f"a question of {len(question)} letters; allowed are {self.limits.question_letters}")
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        said = ""
        with ThreadPoolExecutor(1) as thread:
            whole = thread.submit(self._generate, memory, question, streamer)
            for text in streamer:
                said += text
                yield said.strip()
            yield whole.result()

    def _generate(self, memory: VideoMemory, question: str, streamer: TextIteratorStreamer) -> str:
        try:
            return self.model.ask(
                memory,
                question,
                processor=self.processor,
                streamer=streamer,
                stop_on_repetition=True,
                do_sample=False,
                max_new_tokens=self.limits.answer_tokens,
            )
        finally:
            streamer.end()  # also after an error: nobody is to wait for more

    def save_memory(self, session: Session) -> str | None:
        """Write the memory into the session's folder; return the file, None if nothing was seen."""
        with session.lock:
            if session.memory is None or session.is_closed:
                return None
            path = session.folder / f"{session.title[:80]}.safetensors"
            session.memory.save(path)
            return str(path)

    def open_memory(self, session: Session, path: str) -> VideoMemory:
        """Take a memory file in place of a video.

        Raises:
            ValueError: too large, no memory, damaged, or of another model.
        """
        self._check_size(path)
        try:
            memory = self.model.load_memory(path)
        except (ValueError, OSError) as error:
            raise ValueError(one_line(error, path)) from error
        session.forget(Path(path).stem)
        session.memory = memory
        return memory

    def _check_size(self, path: str) -> None:
        size, most = Path(path).stat().st_size, self.limits.upload_bytes
        if size > most:
            raise ValueError(f"{Path(path).name} has {size / 2**20:.0f} MiB, allowed here are {most / 2**20:.0f} MiB")


def clock(seconds: float) -> str:
    """Return 75 as "1:15"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def one_line(error: Exception, path: str) -> str:
    """Return an error's text in one line, with the file's name in place of its path."""
    name = Path(path).name
    text = f"cannot read {name}: {error.reason}" if isinstance(error, VideoReadError) else str(error)
    return " ".join(text.replace(str(path), name).split())


def _thumbnail(folder: Path, picture: np.ndarray) -> Path:
    """Write a picture, uint8 (H, W, 3), small; no name comes twice, because browsers keep what they have."""
    image = Image.fromarray(picture)
    image.thumbnail(THUMBNAIL_SIZE)
    path = folder / f"{uuid.uuid4().hex}.jpg"
    image.save(path)
    return path
