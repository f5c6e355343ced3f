"""`VideoMemory`: what a model remembers of the videos it watched, in a size that does not depend on their length.

It holds the start of the prompt and the frames, nothing of any question. It never changes: `model.watch(memory=...)`
returns another one, and questions are asked on forks.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

from .configuration_video_ma2mba import VideoMa2mbaConfig
from .memory_snapshots import MemorySnapshots
from .model_fingerprint import model_fingerprint
from .state import RecurrentState

_FORMAT = "video-memory-1"
_DTYPES = ("bfloat16", "float32", "float64")
_WAITING = "waiting_frames"


@dataclass(frozen=True)
class WatchedVideo:
    """What was seen of one video.

    Attributes:
        name: the file as it was given, "frames" for an iterator, "live" for `LiveFrames`.
        fps: frames read per second. start, end: the part of the file to be read, in seconds; end None: all of it.
        frames: frames read, those that wait for their clip included. seconds: how much of the video they stand for.
        dropped: frames of a live stream that were lost.
        complete: whether it was read to its end.
        text_tokens: tokens of the texts between its frames.
    """

    name: str
    fps: float
    start: float = 0.0
    end: float | None = None
    frames: int = 0
    seconds: float = 0.0
    dropped: int = 0
    complete: bool = False
    text_tokens: int = 0


@dataclass(frozen=True, repr=False)
class VideoMemory:
    """State of a model behind the frames it watched; made by `model.watch`, `load` or `model.load_memory`.

    Attributes:
        state: behind the last frame that does not wait, one row.
        config: the model's. fingerprint: `model_fingerprint` of the model.
        prompt_ids: the token ids before the frames. system: text of the system turn, None for the template's own.
        videos: what was seen, in order.
        interrupted_from: for a watch that did not come to its end the place in `videos` of its first video: the same
            call with this memory goes on where it stopped.
        snapshots: earlier states of it, or None.
        waiting: the last frames of a video that goes on, uint8 (n, 3, S, S) on the host: with a VideoMamba tower the
            beginning of a clip of n + 1 frames or more. Another `watch` of this video completes the clip; `ask`,
            `chat` and a `watch` of something else read them as a short last clip. None: there are none.
    """

    state: RecurrentState
    config: VideoMa2mbaConfig
    fingerprint: str
    prompt_ids: tuple[int, ...]
    system: str | None = None
    videos: tuple[WatchedVideo, ...] = ()
    interrupted_from: int | None = None
    snapshots: MemorySnapshots | None = None
    waiting: torch.Tensor | None = None

    @property
    def frames_seen(self) -> int:
        return sum(video.frames for video in self.videos)

    @property
    def frames_dropped(self) -> int:
        """Frames of live streams that were lost because the model was slower than they came."""
        return sum(video.dropped for video in self.videos)

    @property
    def seconds_seen(self) -> float:
        """Seconds of video, all videos together."""
        return math.fsum(video.seconds for video in self.videos)

    @property
    def nbytes(self) -> int:
        return self.state.nbytes + (0 if self.waiting is None else self.waiting.nbytes)

    def __repr__(self) -> str:
        return (
            f"VideoMemory({self.frames_seen} frames, {self.seconds_seen:.1f} s of {len(self.videos)} videos, "
            f"{self.nbytes / 2**20:.1f} MiB{'' if self.interrupted_from is None else ', interrupted'})"
        )

    def check_model(self, model: nn.Module) -> None:
        """Raise ValueError unless `model` is the one that made this memory."""
        if model_fingerprint(model) != self.fingerprint:
            raise ValueError(
                "this memory was made by another model, or by this one before it was trained further: use the model "
                "that watched, or watch the video again"
            )

    def as_of(self, seconds: float) -> "VideoMemory":
        """Return the memory as it was at this second of what was seen, or a little before.

        It is the newest snapshot at or before `seconds`; its `seconds_seen` says which time it really is.

        Raises:
            ValueError: there are no snapshots, or none that early.
        """
        if seconds >= self.seconds_seen:
            return self
        if self.snapshots is None:
            raise ValueError("this memory has no snapshots; watch with snapshots=16 to have up to 16 of them")
        path = self.snapshots.newest(seconds)
        if path is None:
            raise ValueError(f"no snapshot is left from second {seconds} or before: the first is taken after a batch")
        memory = self._read(path, self.config, self.fingerprint, self.state.ssm[0].device)
        return replace(memory, snapshots=self.snapshots)

    def save(self, path: str | os.PathLike, dtype: str | None = None) -> None:
        """Write the memory as one safetensors file, whole or not at all; snapshots are not in it.

        Args:
            dtype: "bfloat16" halves the file and rounds the state, which may change answers; "float32"; "float64";
                None keeps the state's own.
        """
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(_DTYPES)}")
        header = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "dtype": dtype or str(self.state.ssm[0].dtype).removeprefix("torch."),
            "frames": self.frames_seen,
            "seconds": self.seconds_seen,
            "prompt_ids": list(self.prompt_ids),
            "system": self.system,
            "videos": [asdict(video) for video in self.videos],
            "interrupted_from": self.interrupted_from,
            "waiting": 0 if self.waiting is None else len(self.waiting),
        }
        part = Path(f"{os.fspath(path)}.part")
        try:
            self.state.save(
                part,
                {"video_memory": json.dumps(header)},
                dtype=None if dtype is None else getattr(torch, dtype),
                others=None if self.waiting is None else {_WAITING: self.waiting},
            )
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike, model: nn.Module) -> "VideoMemory":
        """Read a memory of this model, onto its device. Everything is checked before a tensor is read.

        Raises:
            ValueError: no memory, damaged, or of another model; names file and reason.
        """
        return cls._read(Path(path), model.config, model_fingerprint(model), model.device)

    @classmethod
    def _read(cls, path: Path, config: VideoMa2mbaConfig, fingerprint: str, device: torch.device) -> "VideoMemory":
        metadata = RecurrentState.load_metadata(path)
        if "video_memory" not in metadata:
            raise ValueError(f"{path}: a state, but not that of a video memory; VideoMemory.save writes those")
        header = _Header(path, metadata["video_memory"])
        if header.text("format") != _FORMAT:
            raise ValueError(f"{path}: a memory of format {header.text('format')!r:.40}, this version reads {_FORMAT}")
        if header.text("fingerprint") != fingerprint:
            raise ValueError(
                f"{path}: made by another model, or by this one before it was trained further; load the model that "
                "watched, or watch the video again"
            )
        videos = header.videos()
        prompt_ids = header.prompt_ids()
        interrupted_from = header.optional_count("interrupted_from")
        if interrupted_from is not None and interrupted_from > len(videos):
            raise header.damaged("interrupted_from")
        frames = sum(video.frames for video in videos)
        if header.count("frames") != frames:
            raise header.damaged("frames")
        count, side = header.waiting(), config.vision_config.image_size
        if count > min(frames, config.frames_per_clip - 1):
            raise header.damaged("waiting")
        waiting = torch.empty(count, 3, side, side, dtype=torch.uint8) if count else None
        others = {_WAITING: waiting} if count else None
        state, _ = RecurrentState.load(path, config, device, batch_size=1, others=others)
        texts = sum(video.text_tokens for video in videos)
        if state.seen_tokens != len(prompt_ids) + (frames - count) * config.tokens_per_frame + texts:
            raise header.damaged("seen_tokens")
        return cls(
            state,
            config,
            fingerprint,
            prompt_ids,
            header.optional_text("system"),
            videos,
            interrupted_from,
            waiting=waiting,
        )


class _Header:
    """The header of a memory file: each value is checked when it is asked for."""

    def __init__(self, path: Path, text: str):
        self.path = path
        try:
            self.values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.damaged(type(error).__name__) from error
        if not isinstance(self.values, dict):
            raise self.damaged("no names")

    def damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: the header of the memory is damaged ({what})")

    def _value(self, name: str, is_valid):
        value = self.values.get(name)
        if not is_valid(value):
            raise self.damaged(f"{name}={value!r:.40}")
        return value

    def text(self, name: str) -> str:
        return self._value(name, lambda value: isinstance(value, str))

    def optional_text(self, name: str) -> str | None:
        return self._value(name, lambda value: value is None or isinstance(value, str))

    def count(self, name: str) -> int:
        return self._value(name, _is_count)

    def optional_count(self, name: str) -> int | None:
        return self._value(name, lambda value: value is None or _is_count(value))

    def waiting(self) -> int:
        # Files that were written before there were clips do not count them.
        return self.count("waiting") if "waiting" in self.values else 0

    def prompt_ids(self) -> tuple[int, ...]:
        return tuple(self._value("prompt_ids", lambda ids: isinstance(ids, list) and all(map(_is_count, ids))))

    def videos(self) -> tuple[WatchedVideo, ...]:
        names = {field.name for field in fields(WatchedVideo)}
        return tuple(
            WatchedVideo(**video)
            for video in self._value(
                "videos",
                lambda videos: (
                    isinstance(videos, list)
                    and all(isinstance(v, dict) and _fits(v, names) and _is_watched(v) for v in videos)
                ),
            )
        )


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_seconds(value) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15


def _fits(video: dict, names: set[str]) -> bool:
    # Files that were written before there were texts do not count them.
    return names - {"text_tokens"} <= set(video) <= names


def _is_watched(video: dict) -> bool:
    return (
        isinstance(video["name"], str)
        and _is_seconds(video["fps"])
        and video["fps"] > 0
        and all(map(_is_seconds, (video["start"], video["seconds"])))
        and (video["end"] is None or _is_seconds(video["end"]))
        and all(map(_is_count, (video["frames"], video["dropped"], video.get("text_tokens", 0))))
        and type(video["complete"]) is bool
    )


__all__ = ["VideoMemory", "WatchedVideo"]
