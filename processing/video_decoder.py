"""One local video file through PyAV: checks before opening, facts about it, and its decoded frames with their times.

It decides what counts as damage, but not what to do about it, and it picks no frames: `video_reader.py` does both.
Times are seconds from the start of the video stream (its start time is subtracted).
"""

import itertools
import math
import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import av

from .video_errors import VideoReadError

# Pixels of one picture, 8192 x 8192. A header can ask for gigabytes; this is checked before anything is allocated.
MAX_PIXELS = 2**26

# Containers that hold their own pictures. Playlists and lists of files (hls, dash, concat, sdp, image2, ...) are left
# out on purpose: they make FFmpeg open other files and addresses. Audio formats are in for a clear message.
CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,ivf,h264,hevc,av1,obu,m4v,mjpeg,yuv4mpegpipe,gif,apng,"
    "rm,mxf,dv,wtv,wav,mp3,flac,aac"
)

# No (reliable) presentation times in the file: the n-th picture that comes out gets the n-th packet's decoding time,
# or n / rate. The times that FFmpeg makes up for AVI are out of order when there are B frames.
UNTIMED_CONTAINERS = frozenset({"avi", "h264", "hevc", "av1", "obu", "m4v", "mjpeg", "mpegvideo"})

# The duration is not written in these, and the estimate is wrong, so it is measured by reading all packets.
UNSTATED_DURATION = frozenset({"h264", "hevc", "av1", "obu", "m4v", "mjpeg", "mpegvideo", "mpeg"})

# A broadcast is recorded from any moment on; what comes before its first key frame is no damage.
JOINED_ANYWHERE = frozenset({"mpegts", "mpeg"})

# How much of a file is read for its key frame interval.
KEY_FRAMES_MEASURED = 4
PACKETS_MEASURED = 2000

# After this many failed reads in a row nothing more is to be expected of a file.
MAX_READ_ERRORS = 100

DEFAULT_RATE = 25.0


@dataclass(frozen=True)
class VideoInfo:
    """What a video file is.

    Attributes:
        path: the file, as it was given.
        duration: seconds of video; where the file does not state it, measured by reading all packets.
        width, height: pixels of a picture as it is shown, after rotation.
        fps: average frames per second.
        codec, container: FFmpeg's names.
        rotation: degrees counter-clockwise that were applied to the stored picture: 0, 90, 180 or 270.
        frame_count: number of frames that the file states; None when it does not.
        has_audio: whether there is a sound track.
    """

    path: str
    duration: float
    width: int
    height: int
    fps: float
    codec: str
    container: str
    rotation: int
    frame_count: int | None
    has_audio: bool


class DecodedFrame(NamedTuple):
    """A picture, shown from `time` to about `end`; `follows_gap`: frames before it are lost or damaged."""

    time: float
    end: float
    picture: av.VideoFrame
    follows_gap: bool


class VideoDecoder:
    """An opened video file; a context manager.

    After `frames()` is exhausted, `packets_end` is how far the file goes (any track) and `ends_in_gap` says whether
    its last frames are lost.

    Raises:
        VideoReadError: see the conditions in `video_reader.iter_frames`.
    """

    def __init__(self, path: str | os.PathLike, timeout: float) -> None:
        self.path = os.fsdecode(path)
        self.timeout = timeout
        self.packets_end = 0.0
        self.ends_in_gap = False
        self._is_fresh = True
        self._container, self._stream = self._open()

        stream, container = self._stream, self._container
        self.container_name = container.format.name.split(",")[0]
        self.is_untimed = self.container_name in UNTIMED_CONTAINERS
        # Raw streams state no rate, and average_rate is then a constant; guessed_rate reads the codec's own header.
        self.fps = float(stream.guessed_rate or stream.average_rate or DEFAULT_RATE)
        if not self.is_untimed and stream.average_rate:
            self.fps = float(stream.average_rate)
        self._time_base = stream.time_base or Fraction(1, 1000)
        self._start = (stream.start_time or 0) * self._time_base
        self.start_offset = max(0.0, float(self._start))

    def __enter__(self) -> "VideoDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def error(self, reason: str, moment: float | None = None, advice: str = "") -> VideoReadError:
        return VideoReadError(self.path, reason, moment, advice)

    def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        advice = "Only local video files are read; check the path."
        try:
            status = os.stat(self.path)
        except (OSError, ValueError) as error:
            raise self.error(getattr(error, "strerror", None) or str(error), advice=advice) from error
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file (a pipe, socket or device)"
            raise self.error(f"it is {kind}", advice=advice)
        if status.st_size == 0:
            raise self.error("the file is empty", advice="Copy or download it again.")
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "max_pixels": str(MAX_PIXELS)}
        try:
            # "file:" and an absolute path, so that no name can be taken for an address, an option or a pattern.
            url = "file:" + os.path.abspath(self.path)
            container = av.open(url, options=options, timeout=self.timeout, metadata_errors="replace")
        except (av.error.FFmpegError, UnicodeError) as error:
            raise self._opening_error(error) from error
        try:
            stream = self._choose_stream(container)
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        except BaseException:
            container.close()
            raise
        return container, stream

    def _opening_error(self, error: Exception) -> VideoReadError:
        if isinstance(error, av.error.ExitError):
            return self.error(f"opening it took more than timeout={self.timeout} s", advice="Raise timeout.")
        return self.error(
            f"it is not a video in a container that is read here, or its header is damaged or cut off "
            f"({getattr(error, 'strerror', None) or error})",
            advice="Playlists and streams are refused. Convert it, for example to MP4, or copy it again.",
        )

    def _choose_stream(self, container: av.container.InputContainer) -> av.VideoStream:
        pictures = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not streams:
            raise self.error("it has no video stream (sound only?)", advice="Give a file with pictures.")
        stream = streams[0]
        if stream.codec_context is None:
            reason = "its header is cut off, or this build of FFmpeg has no decoder for its video codec"
            raise self.error(reason, advice="Get the whole file, or convert it to H.264.")
        width, height = stream.codec_context.width, stream.codec_context.height
        if not 0 < width * height <= MAX_PIXELS:
            # FFmpeg itself refuses more than max_pixels and then reports 0 x 0.
            raise self.error(
                f"its header gives no usable picture size ({width} x {height}): none, or more than the {MAX_PIXELS} "
                "pixels allowed",
                advice="Scale the video down, or copy it again.",
            )
        return stream

    def stated_duration(self) -> float | None:
        """Return the seconds of video that the file states, or None when it states none."""
        stream = self._stream
        if self.container_name in UNSTATED_DURATION:
            return None
        if self.container_name == "avi" and stream.frames:
            # FFmpeg shortens the duration of a cut file to what is there; the count is the header's own.
            return stream.frames / self.fps
        if stream.duration is not None:
            return float(stream.duration * self._time_base)
        tag = stream.metadata.get("DURATION")  # Matroska: "00:00:02.000000000", the time of the end
        try:
            hours, minutes, seconds = tag.split(":")
            end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except (AttributeError, ValueError):
            if self._container.duration is None:
                return None
            end = self._container.duration / av.time_base
        return max(0.0, end - max(0.0, float(self._start)))

    def measured_duration(self) -> float:
        """Return the seconds of video from its packets, in one pass over the file that decodes nothing."""
        end, count = 0.0, 0
        with VideoDecoder(self.path, self.timeout) as other:
            for packet in other._packets(with_audio=False):
                if packet is None or not packet.size:
                    continue
                count += 1
                moment = packet.dts if self.is_untimed else packet.pts
                if moment is not None:
                    length = packet.duration or round(1 / (self.fps * self._time_base))
                    end = max(end, self._seconds(moment + length))
        return end or count / self.fps

    def key_interval(self) -> float:
        """Return the longest distance of the first key frames in seconds; inf when seeking cannot pay."""
        if self.is_untimed:
            return math.inf
        moments = []
        with VideoDecoder(self.path, self.timeout) as other:
            for count, packet in enumerate(other._packets(with_audio=False)):
                if packet is not None and packet.is_keyframe and packet.pts is not None:
                    moments.append(self._seconds(packet.pts))
                if len(moments) == KEY_FRAMES_MEASURED or count == PACKETS_MEASURED:
                    break
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        return max(gaps) if gaps and min(gaps) > 0 else math.inf

    def info(self) -> VideoInfo:
        """Return the facts about the file; decodes its first frame."""
        first = next(self.frames(), None)
        if first is None:
            raise self.error("not one frame could be decoded", 0.0, "Copy the file again.")
        width, height = first.picture.width, first.picture.height
        rotation = first.picture.rotation % 360
        if rotation in (90, 270):
            width, height = height, width
        duration = self.stated_duration()
        return VideoInfo(
            path=self.path,
            duration=self.measured_duration() if duration is None else duration,
            width=width,
            height=height,
            fps=self.fps,
            codec=self._stream.codec_context.name,
            container=self.container_name,
            rotation=rotation,
            frame_count=self._stream.frames or None,
            has_audio=bool(self._container.streams.audio),
        )

    def frames(self, seek_time: float | None = None) -> Iterator[DecodedFrame]:
        """Yield the frames in the order in which they are shown, from the start or from a key frame near `seek_time`.

        Damaged frames are left out, and so is everything after them up to the next key frame, because it is
        predicted from them; the frame after such a gap says so. A new call ends an earlier iteration.
        """
        if not self._rewind(seek_time):
            return
        is_clean = seek_time is None  # after a seek, decoding begins at a key frame
        last_time, newest, count = -math.inf, 0.0, 0  # newest: the latest time of all packets given to the decoder
        has_gap, gap_until = False, -math.inf
        packet_times: deque[float] = deque()
        deadline = time.monotonic() + self.timeout
        for packet in self._packets(with_audio=True):
            if time.monotonic() > deadline:
                raise self.error(
                    f"no frame was decoded for timeout={self.timeout} s", max(0.0, last_time), "Raise timeout."
                )
            if packet is None:  # a failed read
                has_gap, gap_until = True, newest
                continue
            if packet.stream.index != self._stream.index:
                continue
            if not (is_clean or packet.is_keyframe or not packet.size):
                continue
            is_clean = True
            if packet.size:
                newest = max(newest, self._packet_time(packet, count))
                if self.is_untimed:
                    packet_times.append(self._packet_time(packet, count))
                count += 1
            if packet.is_corrupt:  # cut off in the middle, or with a broken counter (MPEG-TS)
                has_gap, gap_until = True, newest
            try:
                pictures = packet.decode()
            except av.error.FFmpegError:
                has_gap, gap_until = True, newest
                if packet_times:
                    packet_times.popleft()
                continue
            for picture in pictures:
                moment = packet_times.popleft() if packet_times else self._moment(picture, last_time)
                if picture.is_corrupt:
                    has_gap, gap_until = True, max(gap_until, moment)
                # Frames come out later than errors: a key frame from before the damage does not end it.
                if (has_gap and not (picture.key_frame and moment > gap_until)) or moment < last_time:
                    self._check_order(moment, last_time)
                    continue
                begins = math.isinf(last_time) and self.container_name in JOINED_ANYWHERE
                length = float((picture.duration or 0) * self._time_base) or 1 / self.fps
                yield DecodedFrame(moment, moment + length, picture, has_gap and not begins)
                has_gap, gap_until, last_time = False, -math.inf, moment
                # The time that the caller spends on a frame is not ours.
                deadline = time.monotonic() + self.timeout
        self.ends_in_gap = has_gap

    def _rewind(self, seek_time: float | None) -> bool:
        """Go to the start, or to a key frame near `seek_time`; False when the file cannot be searched."""
        if seek_time is None and not self._is_fresh:
            self._container.close()
            self._container, self._stream = self._open()
        self._is_fresh = False
        if seek_time is not None:
            offset = math.floor((Fraction(seek_time) + self._start) / self._time_base)
            try:
                self._container.seek(offset, stream=self._stream, backward=True)
            except av.error.FFmpegError:
                return False
        return True

    def _packets(self, with_audio: bool) -> Iterator[av.Packet | None]:
        """Yield the packets, and None for each failed read; the last ones are empty and flush the decoder."""
        streams = [self._stream]
        if with_audio:
            # The sound tells a film that is cut off from one whose sound outlasts its pictures.
            streams += self._container.streams.audio
        errors = 0
        packets = self._container.demux(*streams)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.ExitError as error:
                raise self.error(f"a read took more than timeout={self.timeout} s", advice="Raise timeout.") from error
            except av.error.FFmpegError:
                errors += 1
                yield None
                if errors > MAX_READ_ERRORS:
                    return
                packets = self._container.demux(*streams)
                continue
            errors = 0
            moment = packet.dts if packet.pts is None else packet.pts
            if moment is not None and packet.size:
                end = float((moment + (packet.duration or 0)) * packet.time_base - self._start)
                self.packets_end = max(self.packets_end, end)
            yield packet

    def _seconds(self, moment: int) -> float:
        return float(moment * self._time_base - self._start)

    def _packet_time(self, packet: av.Packet, count: int) -> float:
        moment = packet.dts if self.is_untimed or packet.pts is None else packet.pts
        return count / self.fps if moment is None else self._seconds(moment)

    def _moment(self, picture: av.VideoFrame, last_time: float) -> float:
        moment = picture.dts if picture.pts is None else picture.pts
        if moment is None:
            return 0.0 if math.isinf(last_time) else last_time + 1 / self.fps
        return self._seconds(moment)

    def _check_order(self, moment: float, last_time: float) -> None:
        # A frame or two out of order is the muxer's rounding; a second or more is a new clock.
        if moment < last_time - 1.0:
            raise self.error(
                f"its clock jumps back to {moment:.3f} s, so frames have no certain time",
                last_time,
                "Remux it with new time stamps, or cut it there.",
            )
