"""`WatchingMixin`: watch once, ask many.

`watch` reads a video of any length into a `VideoMemory`; `ask` and `chat` go on from it:

decode -> fit -> (thread, a few batches ahead) -> encode -> language model -> state
"""

import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import torch

from .frame_feed import FrameBatch, file_batches, live_batches, picture_batches
from .memory_snapshots import MemorySnapshots
from .model_fingerprint import model_fingerprint
from .video_chat import VideoChat, answer, conversation, ids_after_frames
from .video_memory import VideoMemory, WatchedVideo
from .watch_progress import WatchProgress

# Frames read at once: enough to keep a GPU busy, few enough for a bar that moves. At 144 tokens a frame the language
# model's own piece of 4,096 tokens is the limit, at 28.
FRAMES_AT_ONCE = 32
# Seconds of work that a killed process may lose, with `save_to`.
SAVE_EVERY = 60.0


class WatchingMixin:
    """`watch`, `ask`, `chat` and `load_memory` of a `VideoMa2mbaForConditionalGeneration`."""

    def watch(
        self,
        video,
        *,
        processor,
        fps: float | None = None,
        memory: VideoMemory | None = None,
        start: float | None = None,
        end: float | None = None,
        system: str | None = None,
        allow_damaged: bool = False,
        snapshots: int = 0,
        snapshot_folder: str | os.PathLike | None = None,
        save_to: str | os.PathLike | None = None,
        progress: bool = True,
    ) -> VideoMemory:
        """Read a video of any length, or an endless one, in constant memory on device and host.

        A VideoMamba tower sees clips of `config.frames_per_clip` frames. They are counted from the first frame of each
        file, or of the pictures, of each call, and again behind a text; what is left at the end is a short last clip.
        So a video that is watched in two calls is what it is in one if the first call ends where a clip ends.

        Args:
            video: path, or a list of paths, read one after the other; or pictures sampled already: any iterable of
                PIL images or uint8 (H, W, 3) or (3, H, W), among them arrays (F, ...) and `FrameSource`s; or
                `LiveFrames`. An iterator may yield texts between its pictures, such as subtitles: each is read in its
                place.
            processor: the model's. Its `max_frames` is for prompts and does not count here.
            fps: frames read per second of a file; of pictures, how they were sampled. None: the processor's own.
            memory: go on from this one, which stays as it was. If its watch was interrupted and the files are the same
                again, reading goes on where it stopped; an iterator is to begin with the first frame not yet seen
                (`memory.frames_seen`), `LiveFrames` keep theirs.
            start, end: the part of a single file, in seconds.
            system: text of the system turn; None: the chat template's own. A memory that is given has its own.
            allow_damaged: go on with what can be read of a damaged file, with a warning, instead of raising.
            snapshots: keep up to this many earlier states on disk, for `memory.as_of(seconds)`; 0: none.
            snapshot_folder: where, new or empty; None: a temporary folder.
            save_to: file for the memory, written once a minute and at the end, also of an interrupted watch.
            progress: show a bar on a terminal.

        Raises:
            VideoReadError: a file cannot be read. ValueError, TypeError: arguments that do not fit.
            Whatever interrupts the watch has an attribute `memory`: what was seen so far, None if nothing was.
        """
        files = _files(video)
        if files is None or len(files) > 1:
            if start is not None or end is not None:
                raise ValueError("start and end choose a part of one video file; leave them out here")
        if snapshots < 0 or snapshots == 1 or not (snapshots or snapshot_folder is None):
            raise ValueError(f"snapshots={snapshots}: give at least 2, or 0 for none and no snapshot_folder")
        if fps is None:
            fps = video.fps if _is_live(video) else processor.fps
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps={fps} must be a finite number above 0; None takes the processor's own")
        if _is_live(video) and fps != video.fps:
            raise ValueError(f"fps={fps}, but these LiveFrames sample at {video.fps}; leave fps out")
        seen = self._start_of_memory(memory, processor, system)
        if snapshots and seen.snapshots is None:
            seen = replace(seen, snapshots=MemorySnapshots(snapshots, snapshot_folder))
        elif seen.snapshots is not None:
            if snapshot_folder is not None:
                raise ValueError("this memory has a snapshot folder already: leave snapshot_folder out")
            seen = replace(seen, snapshots=seen.snapshots.fork(snapshots or seen.snapshots.most))
        last, saved = memory, time.monotonic()
        try:
            if files is None:
                parts = self._watch_pictures(seen, video, processor, fps, progress)
            else:
                parts = self._watch_files(seen, files, processor, fps, start or 0.0, end, allow_damaged, progress)
            with closing(parts):
                for seen in parts:
                    last = seen
                    if snapshots:
                        _take_snapshot(seen)
                    if save_to is not None and time.monotonic() - saved >= SAVE_EVERY:
                        seen.save(save_to)
                        saved = time.monotonic()
        except BaseException as error:
            error.memory = last
            if save_to is not None and last is not memory:
                last.save(save_to)
            raise
        if save_to is not None:
            seen.save(save_to)
        return seen

    def ask(
        self,
        memory: VideoMemory,
        question: str | list[str],
        *,
        processor,
        stop_on_repetition: bool = False,
        **generate_kwargs,
    ) -> str | list[str]:
        """Answer a question about what was watched, or several, each on its own and all in one batch.

        The memory stays as it was, and how long the video was does not matter. The answer is that of `generate` on the
        whole prompt.

        Args:
            stop_on_repetition: end an answer that goes in circles (the paper's rule; see `RepetitionStop`).
            generate_kwargs: for `generate`: sampling, `streamer` (one question), `max_new_tokens` (128 unless the
                model's generation config says otherwise).
        """
        questions = [question] if isinstance(question, str) else list(question)
        if not questions or not all(isinstance(text, str) for text in questions):
            raise ValueError(f"give a question as text, or a list of them, given {question!r:.80}")
        memory.check_model(self)
        prompts = [ids_after_frames(memory, processor, conversation(memory.system, text)) for text in questions]
        state = self._read_waiting(memory).state
        answers = answer(self, state, prompts, processor, stop_on_repetition, generate_kwargs)
        return answers[0] if isinstance(question, str) else answers

    def chat(self, memory: VideoMemory, *, processor) -> VideoChat:
        """Return a conversation whose `.ask(text)` remembers its own earlier turns; the memory stays as it was."""
        memory.check_model(self)
        return VideoChat(self, self._read_waiting(memory), processor)

    def load_memory(self, path: str | os.PathLike) -> VideoMemory:
        """Load what `VideoMemory.save` wrote; see `VideoMemory.load`."""
        return VideoMemory.load(path, model=self)

    def _start_of_memory(self, memory: VideoMemory | None, processor, system: str | None) -> VideoMemory:
        """Return the memory to go on from: one without frames, or the given one if it fits."""
        for name, theirs, ours in (
            ("tokens_per_frame", processor.tokens_per_frame, self.config.tokens_per_frame),
            ("video_token_id", processor.video_token_id, self.config.video_token_id),
        ):
            if theirs != ours:
                raise ValueError(f"the processor has {name}={theirs}, this model {ours}: use the model's processor")
        if memory is not None:
            memory.check_model(self)
            if system is not None and system != memory.system:
                raise ValueError(f"the memory was begun with system={memory.system!r:.60}: leave system out")
            ids_after_frames(memory, processor, conversation(memory.system, ""))
            return replace(memory, state=memory.state.to(self.device))
        before, _ = processor.split_prompt(conversation(system, ""))
        state = self.model.language_model.new_state(1)
        if before:
            state = self._read(state, torch.tensor([before]))
        return VideoMemory(state, self.config, model_fingerprint(self), tuple(before), system)

    @torch.no_grad()
    def _read(self, state, ids: torch.Tensor, frames: torch.Tensor | None = None):
        """Return the state behind ids (1, T) with the placeholders of frames (n, 3, S, S)."""
        videos = None if frames is None else frames[None]
        return self.model(
            input_ids=ids.to(self.device), pixel_values_videos=videos, past_key_values=state.fork(), use_cache=True
        ).past_key_values

    def _read_frames(self, state, frames: torch.Tensor):
        ids = torch.full((1, len(frames) * self.config.tokens_per_frame), self.config.video_token_id)
        return self._read(state, ids, frames)

    def _read_waiting(self, seen: VideoMemory) -> VideoMemory:
        """Return the memory after the frames that wait for the rest of their clip, as a short last clip."""
        if seen.waiting is None:
            return seen
        state = seen.state.to(self.device)
        return replace(seen, state=self._read_frames(state, seen.waiting), waiting=None)

    @property
    def _frames_at_once(self) -> int:
        return min(FRAMES_AT_ONCE, self.model.language_model.segment_length // self.config.tokens_per_frame) or 1

    def _watch_files(
        self, seen: VideoMemory, files, processor, fps, start, end, allow_damaged, is_shown
    ) -> Iterator[VideoMemory]:
        """Yield the memory after every batch of every file, complete at last."""
        for path in files:
            if not os.path.isfile(path):  # before hours are spent on those in front of it
                raise FileNotFoundError(f"there is no video file {path}")
        done, partial, seen = _where_to_begin(seen, files)
        if partial is None:
            seen = self._read_waiting(seen)
        for number, path in enumerate(files[done:], done + 1):
            begun, asked = seen.videos, partial or WatchedVideo(path, fps, start, end)
            partial = None
            if (asked.fps, asked.start, asked.end) != (fps, start, end):
                raise ValueError(
                    f"{path} was watched up to {asked.seconds:.0f} s with fps={asked.fps}, start={asked.start}, "
                    f"end={asked.end}: go on with the same"
                )
            length = processor.video_seconds(path)
            stop = length if end is None else min(end, length)
            begin = start + asked.frames / fps
            if not asked.frames or begin < stop - 1e-6:
                name = os.path.basename(path) + (f" ({number} of {len(files)})" if len(files) > 1 else "")
                feed = file_batches(processor, path, fps, begin, end, allow_damaged, self._frames_at_once)
                with WatchProgress(name, stop - start, asked.seconds, is_shown) as bar:
                    for after in self._read_feed(seen, asked, feed):
                        seen, asked = after, after.videos[-1]
                        yield seen  # first of all: from here on it is not lost
                        bar.show(asked.seconds, 0)
            if not asked.frames:
                raise ValueError(f"{path}: a video without a frame")
            seen = replace(self._read_waiting(seen), videos=(*begun, replace(asked, complete=True)))
            yield seen
        yield replace(seen, interrupted_from=None)

    def _watch_pictures(self, seen: VideoMemory, video, processor, fps, is_shown) -> Iterator[VideoMemory]:
        """Yield the memory after every batch of pictures or live frames, complete at last."""
        seen = replace(seen, interrupted_from=len(seen.videos))
        if _is_live(video):
            asked, feed = WatchedVideo("live", fps), live_batches(processor, video, self._frames_at_once)
        else:
            asked = WatchedVideo("frames", fps)
            feed = picture_batches(processor, _pictures(video), fps, self._frames_at_once)
        if not (seen.videos and not seen.videos[-1].complete and seen.videos[-1].name == asked.name):
            seen = self._read_waiting(seen)  # they are of another video
        begun = seen.videos
        with WatchProgress(asked.name, None, 0.0, is_shown) as bar:
            for after in self._read_feed(seen, asked, feed):
                seen, asked = after, after.videos[-1]
                yield seen
                bar.show(asked.seconds, asked.dropped)
        if not asked.frames:
            raise ValueError("a video without a frame")
        seen = self._read_waiting(seen)
        yield replace(seen, videos=(*begun, replace(asked, complete=True)), interrupted_from=None)

    def _read_feed(self, seen: VideoMemory, asked: WatchedVideo, feed: Iterator[FrameBatch]) -> Iterator[VideoMemory]:
        """Yield the memory after every batch, in which the video goes on from what was `asked` of it already."""
        begun, per_clip = seen.videos, self.config.frames_per_clip
        before = asked.seconds
        with closing(feed):
            for batch in feed:
                state, waiting = seen.state, seen.waiting
                if count := len(batch.frames):
                    frames = torch.from_numpy(batch.frames)
                    frames = frames if waiting is None else torch.cat([waiting, frames])
                    whole = len(frames) - len(frames) % per_clip
                    if whole:
                        state = self._read_frames(state, frames[:whole])
                    rest = frames[whole:].clone(memory_format=torch.contiguous_format)
                    waiting = rest if len(rest) else None
                if batch.text_ids:
                    if waiting is not None:
                        state, waiting = self._read_frames(state, waiting), None
                    state = self._read(state, torch.tensor([batch.text_ids]))
                asked = replace(
                    asked,
                    frames=asked.frames + count,
                    seconds=before + batch.seconds,
                    dropped=asked.dropped + batch.dropped,
                    text_tokens=asked.text_tokens + len(batch.text_ids),
                )
                seen = replace(seen, state=state, waiting=waiting, videos=(*begun, asked))
                batch.is_read = True
                yield seen


def _files(video) -> list[str] | None:
    """Return the paths given as video, None where it is pictures."""
    if isinstance(video, (str, os.PathLike)):
        return [os.fspath(video)]
    if not isinstance(video, (list, tuple)):
        return None
    if not video:
        raise ValueError("an empty list of videos")
    paths = [isinstance(item, (str, os.PathLike)) for item in video]
    if any(paths) and not all(paths):
        raise TypeError("a list of videos holds paths alone, or pictures alone")
    return [os.fspath(path) for path in video] if all(paths) else None


def _is_live(video) -> bool:
    # By what it can do: under remote code the class is another one than the caller's.
    return hasattr(video, "take_dropped")


def _pictures(video) -> Iterator:
    """Iterate over the pictures of an array, a `FrameSource` or an iterable."""
    shape = getattr(video, "shape", None)
    if shape is not None and len(shape) != 4:
        raise ValueError(f"frames of shape {tuple(shape)}: give (F, H, W, 3) or (F, 3, H, W)")
    if shape is not None:
        return (video[i : i + 1][0] for i in range(len(video)))
    if not isinstance(video, Iterable):
        raise TypeError(f"a video of type {type(video).__name__}: give paths, an iterable of pictures, or LiveFrames")
    return iter(video)


def _where_to_begin(seen: VideoMemory, files: list[str]) -> tuple[int, WatchedVideo | None, VideoMemory]:
    """Return how many files are done, what was seen of the next one, and the memory without that.

    A memory whose watch was interrupted goes on if the files are those of that watch; else it goes on with all files.
    """
    if seen.interrupted_from is not None:
        earlier = seen.videos[seen.interrupted_from :]
        if earlier and [video.name for video in earlier] == files[: len(earlier)]:
            if earlier[-1].complete:
                return len(earlier), None, seen
            return len(earlier) - 1, earlier[-1], replace(seen, videos=seen.videos[:-1])
    return 0, None, replace(seen, interrupted_from=len(seen.videos))


def _take_snapshot(seen: VideoMemory) -> None:
    path = seen.snapshots.place_for(seen.seconds_seen)
    if path is not None:
        seen.save(path)
        seen.snapshots.add(seen.seconds_seen, path)


__all__ = ["WatchingMixin"]
