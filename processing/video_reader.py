"""Read sampled frames from a video file in constant memory: `iter_frames` and `probe`.

It resizes nothing unless asked to limit memory, crops nothing and normalises nothing; the processor does. Pixels are
what the file stores, turned as its rotation says; pixel aspect ratio, interlacing and HDR are left as they are.

    for times, frames in iter_frames("film.mp4", fps=1.0):
        ...     # float64 (n,) seconds, uint8 (n, H, W, 3) RGB
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .decord_reader import decord_samples
from .frame_sampling import TIME_TOLERANCE, check_sampling, check_times, sample_times
from .video_decoder import DecodedFrame, VideoDecoder, VideoInfo
from .video_errors import VideoReadError

logger = logging.getLogger(__name__)

BACKENDS = ("pyav", "decord")

# A chunk of large pictures holds fewer of them: 32 frames of 4K would be 800 MB.
CHUNK_BYTES = 2**28

# A file that ends this much (or two frames) before its stated duration is complete: durations are rounded.
END_TOLERANCE = 0.5

# A seek that lands too late is repeated this many key frame intervals earlier.
SEEK_STEPS = (0, 1, 2, 4)


def probe(path: str | os.PathLike, timeout: float = 60.0) -> VideoInfo:
    """Return the facts about a video file; raises VideoReadError when it has no frame that can be decoded."""
    with VideoDecoder(path, timeout) as decoder:
        return decoder.info()


def iter_frames(
    path: str | os.PathLike,
    fps: float | None = None,
    *,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    size: int | None = None,
    chunk: int = 32,
    backend: str = "pyav",
    allow_damaged: bool = False,
    timeout: float = 60.0,
    times: Sequence[float] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the sampled frames of a video, a chunk at a time, in memory that does not grow with its length.

    The frame for a time is the last one with pts <= time, counted from the start of the video stream; before the
    first frame it is the first. `frame_sampling.sample_times` defines the times (`fps`, 1.0 by default, with an
    optional `max_frames`; or `num_frames`; within `start` to `end`).

    Args:
        path: a regular local file. Nothing else is opened: addresses, playlists and lists of files are refused.
        fps, num_frames, max_frames, start, end: see `sample_times`.
        size: limit for the shorter side in pixels, to save memory; larger pictures are scaled down by area averaging.
            None keeps the size, which pixel-exact processing needs.
        chunk: most frames per yield; fewer when they would exceed `CHUNK_BYTES`. A chunk also ends where the picture
            size changes, so it never mixes sizes.
        backend: "pyav", or "decord", which must be installed. decord finds frames by time as well but detects neither
            damage nor time-outs, is a frame late or early in some H.265 files, and cannot open AV1.
        allow_damaged: what to do when a sampled frame is lost. False raises after all frames before it were yielded.
            True logs one warning for each gap and shows the last good frame in its place; a file that is cut off ends
            at its last frame.
        timeout: most seconds for opening, for one read and for the next decoded frame.
        times: the sample times themselves, in seconds, rising, in place of a rule. One behind the end of the video
            shows its last frame.

    Yields:
        (times, frames): float64 (n,) in seconds; uint8 (n, H, W, 3), RGB.

    Raises:
        ValueError: contradicting arguments (at the call).
        VideoReadError: missing, empty, not a video, no video stream, pictures too large, time-out, cut off before the
            stated duration, or damaged where a frame is needed. Not all damage can be seen: some decodes to legal but
            wrong pixels (VP9 reports hardly any); frames that vanish without a trace look like a variable frame rate
            (MPEG-TS, Matroska), and in AVI, which has no times, they make all later frames early and are noticed
            only at the end.
        ImportError: backend="decord" without decord.
    """
    check_sampling(fps, num_frames=num_frames, max_frames=max_frames, start=start, end=end)
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {BACKENDS}")
    if chunk < 1 or (size is not None and size < 1) or not timeout > 0:
        raise ValueError(f"chunk={chunk}, size={size} and timeout={timeout} must be above 0 (size may be None)")
    sampling = {"fps": fps, "num_frames": num_frames, "max_frames": max_frames, "start": start, "end": end}
    if times is not None:
        if any(sampling.values()):
            raise ValueError("times are the samples themselves: leave fps, num_frames, max_frames, start and end out")
        sampling = {"times": check_times(times)}
    if backend == "decord":
        return _chunks(_decord_pictures(path, sampling, size, timeout), chunk)
    return _chunks(_pyav_pictures(path, sampling, size, allow_damaged, timeout), chunk)


def _chunks(pictures: Iterable[tuple[float, np.ndarray]], chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Gather pictures; what is complete is yielded before an error goes on."""
    times: list[float] = []
    frames = np.empty((0, 0, 0, 3), dtype=np.uint8)
    failure = None
    pictures = iter(pictures)
    while True:
        try:
            time, picture = next(pictures)
        except StopIteration:
            break
        except VideoReadError as error:
            failure = error
            break
        if len(times) == len(frames) or picture.shape != frames.shape[1:]:
            if times:
                yield np.array(times), frames[: len(times)]
            times = []
            frames = np.empty((min(chunk, max(1, CHUNK_BYTES // picture.nbytes)), *picture.shape), dtype=np.uint8)
        frames[len(times)] = picture
        times.append(time)
    if times:
        yield np.array(times), frames[: len(times)]
    if failure is not None:
        raise failure


def _times(path: str | os.PathLike, duration: float, sampling: dict) -> np.ndarray:
    if "times" in sampling:
        return sampling["times"]
    try:
        return sample_times(duration, **sampling)
    except ValueError as error:
        # The arguments were checked alone before: now they do not suit this file.
        raise VideoReadError(path, str(error)) from error


def _decord_pictures(
    path: str | os.PathLike, sampling: dict, size: int | None, timeout: float
) -> Iterator[tuple[float, np.ndarray]]:
    # PyAV looks at the file first, so that both backends refuse the same files and know the same duration.
    info = probe(path, timeout)
    for time, picture in decord_samples(path, _times(path, info.duration, sampling)):
        if size is not None and size < min(picture.shape[:2]):
            picture = _to_rgb(av.VideoFrame.from_ndarray(picture, format="rgb24"), size, VideoReformatter())
        yield time, picture


def _pyav_pictures(
    path: str | os.PathLike, sampling: dict, size: int | None, allow_damaged: bool, timeout: float
) -> Iterator[tuple[float, np.ndarray]]:
    # One reformatter for the whole video: it keeps its tables.
    reformatter = VideoReformatter()
    shown, picture = None, None
    with VideoDecoder(path, timeout) as decoder:
        for time, frame in _samples(decoder, sampling, allow_damaged):
            if frame is not shown:
                try:
                    shown, picture = frame, _to_rgb(frame, size, reformatter)
                except av.error.FFmpegError as error:
                    # Damaged headers can claim colours that do not exist.
                    reason = f"a frame cannot be turned into RGB ({error.strerror})"
                    raise decoder.error(reason, time, "Copy or repair the file.") from error
            yield time, picture


def _samples(decoder: VideoDecoder, sampling: dict, allow_damaged: bool) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield each sample time with its frame: the one place where frames meet times."""
    stated = decoder.stated_duration()
    times = _times(decoder.path, decoder.measured_duration() if stated is None else stated, sampling)
    cursor = _Cursor(decoder)
    warned: DecodedFrame | None = None
    for time in times.tolist():
        cursor.advance(time)
        shown, upcoming = cursor.shown, cursor.upcoming
        if shown is None and upcoming is None:
            raise decoder.error("not one frame could be decoded", 0.0, "Copy the file again.")
        if upcoming is None and stated is not None and time >= shown.end and _is_cut_off(decoder, stated):
            reason = f"it ends at {shown.end:.3f} s but states a duration of {stated:.3f} s"
            _report(decoder, reason, shown.time, allow_damaged)
            return
        is_lost = decoder.ends_in_gap if upcoming is None else upcoming.follows_gap
        good_until = 0.0 if shown is None else shown.end
        if is_lost and time >= good_until - TIME_TOLERANCE and (warned is None or warned is not shown):
            until = "the end" if upcoming is None else f"{upcoming.time:.3f} s"
            reason = f"the frames from {good_until:.3f} s to {until} are damaged or missing"
            _report(decoder, reason, good_until if shown is None else shown.time, allow_damaged)
            warned = shown
        yield time, (upcoming if shown is None else shown).picture


def _is_cut_off(decoder: VideoDecoder, stated: float) -> bool:
    # Some containers count the duration from 0 and not from the start time; the sound may outlast the pictures.
    return decoder.packets_end + max(END_TOLERANCE, 2 / decoder.fps) + decoder.start_offset < stated


def _report(decoder: VideoDecoder, reason: str, time: float, allow_damaged: bool) -> None:
    advice = "Copy or repair the file, or set allow_damaged=True to go on with the frames that are there."
    error = decoder.error(reason, time, advice)
    if not allow_damaged:
        raise error
    logger.warning("%s; going on with the frames that are there (allow_damaged=True)", str(error).split(". ")[0])


class _Cursor:
    """A place between two decoded frames that moves forward: `shown` is on screen, `upcoming` follows it.

    It seeks when the next time is further away than half a key frame interval (on average that much is decoded after
    a seek), else it decodes on. Where a seek does not land before the time, it decodes on for the rest of the file.
    """

    def __init__(self, decoder: VideoDecoder) -> None:
        self.shown: DecodedFrame | None = None
        self.upcoming: DecodedFrame | None = None
        self._decoder = decoder
        self._key_interval = decoder.key_interval()
        self._seek_step = 0
        self._landed: float | None = None  # the last seek that worked
        self._frames = decoder.frames()
        self.upcoming = next(self._frames, None)

    def advance(self, time: float) -> None:
        """Move until `shown` is the last frame at or before `time`; None when the first frame comes later."""
        if self.upcoming is not None and time - self.upcoming.time > self._key_interval / 2:
            self._seek(time)
        while self.upcoming is not None and self.upcoming.time <= time + TIME_TOLERANCE:
            self.shown = self.upcoming
            self.upcoming = next(self._frames, None)

    def _seek(self, time: float) -> None:
        for step in SEEK_STEPS[self._seek_step :]:
            target = max(0.0, time - step * self._key_interval)
            frames = self._decoder.frames(seek_time=target)
            first = next(frames, None)
            if first is not None and first.time <= time + TIME_TOLERANCE and not first.follows_gap:
                self._seek_step, self._landed = SEEK_STEPS.index(step), target
                self.shown, self._frames, self.upcoming = None, frames, first
                return
        self._key_interval = math.inf
        self.shown, self._frames = None, self._decoder.frames(seek_time=self._landed)
        self.upcoming = next(self._frames, None)


def _to_rgb(frame: av.VideoFrame, size: int | None, reformatter: VideoReformatter) -> np.ndarray:
    """Return uint8 (H, W, 3), turned as the file says."""
    width, height = frame.width, frame.height
    if size is not None and size < min(width, height):
        scale = size / min(width, height)
        width, height = round(width * scale), round(height * scale)
    # The method only matters where the size changes.
    rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation="AREA")
    # Quarter turns only: a display matrix with another angle has no rectangle to fill.
    turned = np.rot90(rgb.to_ndarray(), k=round(frame.rotation / 90))
    return np.ascontiguousarray(turned)
