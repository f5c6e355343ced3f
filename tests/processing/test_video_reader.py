"""The video reader against files made here: every format, every kind of damage, constant memory, no hang."""

import http.server
import inspect
import os
import socket
import struct
import sys
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image

from modeling_video_ma2mba.processing import video_reader
from modeling_video_ma2mba.processing.video_decoder import VideoDecoder
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.video_reader import iter_frames, probe
from modeling_video_ma2mba.train.synthetic_video import make_clip, numbered_frames, read_number, write_video

X264 = {"preset": "veryfast", "threads": "1"}  # one thread: the same bytes on every machine
X265 = {"preset": "ultrafast", "x265-params": "log-level=none"}
VP9 = {"deadline": "realtime", "cpu-used": "8"}
AV1 = {"preset": "8"}


def write(path, count=90, fps=30, height=64, width=96, noise=0, **kwargs):
    """Write a film of numbered frames; `noise` gives its pictures something to compress, hence to damage."""
    kwargs.setdefault("options", X264)
    random = np.random.default_rng(0)
    frames = numbered_frames(count, height, width)
    if noise:
        frames = ((f.astype(int) + random.integers(-noise, noise + 1, f.shape)).clip(0, 255) for f in frames)
        frames = (f.astype(np.uint8) for f in frames)
    write_video(path, frames, fps, **kwargs)
    if kwargs.get("codec") == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # For root SVT-AV1 makes the calling thread a real-time one, and all that run beside these tests would wait.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def read(path, **kwargs):
    """Return [(time, number)] of all samples."""
    samples = []
    for times, frames in iter_frames(path, **kwargs):
        assert times.dtype == np.float64 and frames.dtype == np.uint8
        assert frames.ndim == 4 and frames.shape[3] == 3 and len(times) == len(frames) <= kwargs.get("chunk", 32)
        samples += [(moment, read_number(frame)) for moment, frame in zip(times.tolist(), frames)]
    return samples


def expected(times, frame_times):
    """Return the number of the last frame at or before each time; `frame_times[k]` is when frame k appears."""
    return [(t, max(0, int(np.searchsorted(np.asarray(frame_times), t + 1e-6, side="right")) - 1)) for t in times]


def read_until_error(path, **kwargs):
    """Return the samples before the VideoReadError, and the error."""
    samples = []
    with pytest.raises(VideoReadError) as caught:
        for times, frames in iter_frames(path, **kwargs):
            samples += [(moment, read_number(frame)) for moment, frame in zip(times.tolist(), frames)]
    return samples, caught.value


def damage(path, target, spans):
    """Copy `path` with random bytes in each span of fractions of its length."""
    data = bytearray(path.read_bytes())
    random = np.random.default_rng(0)
    for begin, end in spans:
        first, last = int(len(data) * begin), int(len(data) * end)
        data[first:last] = random.integers(0, 256, last - first, dtype=np.uint8).tobytes()
    target.write_bytes(data)
    return target


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """20 s of noise-backed H.264 with a key frame every second: header first, so that a cut keeps it readable."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write(path, 600, noise=30, container_options={"movflags": "faststart"})
    return path


FORMATS = {
    "h264.mp4": {},
    "b-pyramid.mkv": {"options": {**X264, "x264-params": "bframes=5:b-pyramid=normal:open-gop=1"}},
    "h265.mp4": {"codec": "libx265", "options": X265},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9},
    "av1.mp4": {"codec": "libsvtav1", "options": AV1},
    "h264.ts": {},
    "h264.avi": {},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {}},
    "flash.flv": {},
    "ten-bit.mp4": {"codec": "libx265", "options": X265, "pix_fmt": "yuv420p10le"},
    "gray.mp4": {"pix_fmt": "gray"},
    "odd.webm": {"codec": "libvpx-vp9", "options": VP9, "height": 51, "width": 77},
    "odd.mp4": {"pix_fmt": "yuv444p", "height": 51, "width": 77},
    "sound.mp4": {"audio_seconds": 3.0},
    "raw.h264": {"container_format": "h264"},
    "raw.hevc": {"codec": "libx265", "options": X265, "container_format": "hevc"},
    "live.webm": {"codec": "libvpx-vp9", "options": VP9, "container_options": {"live": "1"}},
    "long-gop.mp4": {"gop": 250},
    "intra.mp4": {"gop": 1},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_sample_shows_the_right_frame(name, tmp_path):
    path = write(tmp_path / name, **FORMATS[name])
    height, width = FORMATS[name].get("height", 64), FORMATS[name].get("width", 96)
    info = probe(path)
    assert (info.height, info.width, info.rotation) == (height, width, 0)
    assert info.duration == pytest.approx(3.0, abs=0.05) and info.fps == pytest.approx(30, abs=0.1)
    assert info.has_audio == ("audio_seconds" in FORMATS[name])
    # A tenth of a frame late, so that time stamps rounded to milliseconds do not matter; 1, 7.5 and 30 per second.
    for fps in (1.0, 7.5, 30.0):
        times = np.arange(0.004, 2.9, 1 / fps)
        got = read(path, fps=fps, start=0.004, end=2.9)
        assert [number for _, number in got] == [number for _, number in expected(times, np.arange(90) / 30)]
    assert [number for _, number in read(path, num_frames=4)] == [11, 33, 56, 78]
    assert next(iter_frames(path))[1].shape == (3, height, width, 3)


def test_times_chosen_by_the_caller(film):
    times = [0.0, 0.5, 0.5, 3.99, 7.01, 12.0, 19.0, 500.0]  # one twice, and the last behind the end: its last frame
    read_times, numbers = zip(*read(film, times=times))
    assert list(read_times) == times
    assert list(numbers) == [0, 15, 15, 119, 210, 360, 570, 599]
    with pytest.raises(ValueError, match="leave fps"):
        iter_frames(film, times=times, fps=1.0)
    for wrong in ([1.0, 0.5], [-1.0], [float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match="each at or after"):
            iter_frames(film, times=wrong)


def test_exact_times_without_offset(film):
    assert read(film) == [(float(i), 30 * i) for i in range(20)]
    assert read(film, fps=0.1) == [(0.0, 0), (10.0, 300)]
    assert read(film, start=3.5, end=6.0) == [(3.5, 105), (4.5, 135), (5.5, 165)]
    assert read(film, max_frames=2) == [(5.0, 150), (15.0, 450)]
    assert [len(times) for times, _ in iter_frames(film, chunk=8)] == [8, 8, 4]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("fps", [1.0, 0.4])
def test_seeking_and_sequential_give_the_same_pixels(name, fps, tmp_path, monkeypatch):
    write_video(tmp_path / name, make_clip(1, 64, 96).frames.repeat(5, axis=0), 30, gop=15, options=X264)
    seeks = []
    original = VideoDecoder.frames

    def counted(self, seek_time=None):
        seeks.append(seek_time)
        return original(self, seek_time)

    monkeypatch.setattr(VideoDecoder, "frames", counted)
    sought = np.concatenate([frames for _, frames in iter_frames(tmp_path / name, fps=fps)])
    assert len([moment for moment in seeks if moment is not None]) >= len(sought) - 2
    seeks.clear()
    monkeypatch.setattr(VideoDecoder, "key_interval", lambda self: float("inf"))
    sequential = np.concatenate([frames for _, frames in iter_frames(tmp_path / name, fps=fps)])
    assert seeks == [None]
    assert np.array_equal(sought, sequential)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rate(name, tmp_path):
    steps = np.random.default_rng(5).choice([0.02, 0.05, 0.4, 2.5], size=120, p=[0.4, 0.4, 0.15, 0.05])
    frame_times = np.round(np.concatenate([[0], np.cumsum(steps)]), 3)
    write(tmp_path / name, len(frame_times), times=frame_times, gop=12)
    got = read(tmp_path / name, fps=3.0, end=float(frame_times[-1]))
    assert len(got) > 60
    # At a time stamp itself, the container's rounding decides; nowhere else.
    for (moment, number), (_, right) in zip(got, expected([t for t, _ in got], frame_times)):
        assert number == right or np.abs(frame_times - moment).min() < 0.001


def test_first_frame_stands_for_the_time_before_it(tmp_path):
    # The sound begins at 0, the pictures 0.5 s later: times count from the first picture.
    write(tmp_path / "late.mp4", 30, times=[0.5 + i / 30 for i in range(30)], audio_seconds=1.5)
    assert read(tmp_path / "late.mp4", fps=2) == [(0.0, 0), (0.5, 15)]


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(rotation, tmp_path):
    turned = [np.rot90(frame, -rotation // 90) for frame in numbered_frames(60, 96, 64)]
    write_video(tmp_path / "turned.mp4", turned, 30, rotation=rotation, options=X264)
    info = probe(tmp_path / "turned.mp4")
    assert (info.height, info.width, info.rotation) == (96, 64, rotation % 360)
    assert read(tmp_path / "turned.mp4") == [(0.0, 0), (1.0, 30)]
    assert next(iter_frames(tmp_path / "turned.mp4"))[1].shape == (2, 96, 64, 3)


def test_colours_follow_the_matrix_of_the_file(tmp_path):
    frames = np.broadcast_to(np.array([200, 30, 60], np.uint8), (5, 64, 64, 3))
    write_video(tmp_path / "a.mp4", frames, 5, options={"qp": "1"}, pix_fmt="yuv444p")
    got = next(iter_frames(tmp_path / "a.mp4"))[1]
    assert np.abs(got.astype(int) - frames[:1]).max() <= 4


def test_one_frame_and_no_duration(tmp_path):
    one = write(tmp_path / "one.mp4", 1)
    assert read(one) == [(0.0, 0)]
    assert len(read(one, num_frames=3)) == 3
    gif = write(tmp_path / "one.gif", 1, codec="gif", pix_fmt="rgb8", options={})
    assert read(gif) == [(0.0, 0)]


def test_sound_longer_than_the_pictures_is_no_damage(tmp_path):
    for name in ("long-sound.mp4", "long-sound.mkv"):
        got = read(write(tmp_path / name, 60, audio_seconds=6))
        assert got[:2] == [(0.0, 0), (1.0, 30)] and {number for _, number in got[2:]} <= {59}


def test_size_limits_the_shorter_side_and_never_enlarges(film):
    _, frames = next(iter_frames(film, size=32))
    assert frames.shape == (20, 32, 48, 3)
    assert [read_number(frame) for frame in frames] == [30 * i for i in range(20)]
    assert next(iter_frames(film, size=1000))[1].shape == (20, 64, 96, 3)


def test_a_change_of_size_ends_a_chunk(tmp_path):
    small = write(tmp_path / "small.h264", 30, container_format="h264")
    large = write(tmp_path / "large.h264", 30, height=96, width=128, container_format="h264")
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    chunks = [frames.shape for _, frames in iter_frames(both, fps=10)]
    assert chunks == [(10, 64, 96, 3), (10, 96, 128, 3)]


def test_large_pictures_come_in_smaller_chunks(film, monkeypatch):
    monkeypatch.setattr(video_reader, "CHUNK_BYTES", 5 * 64 * 96 * 3 + 1)
    assert [len(times) for times, _ in iter_frames(film)] == [5, 5, 5, 5]
    monkeypatch.setattr(video_reader, "CHUNK_BYTES", 1)
    assert [len(times) for times, _ in iter_frames(film, end=3)] == [1, 1, 1]


NAMES = ["-dash.mp4", "with space.mp4", "%d %03d.mp4", "a:b.mp4", "concat:x.mp4", "ünïcödé 影片.mp4", "q?*[x]#.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_file_names(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(write(tmp_path / "plain.mp4", 30).read_bytes())
    assert read(tmp_path / name) == [(0.0, 0)]
    assert read(os.fsencode(tmp_path / name)) == [(0.0, 0)]
    monkeypatch.chdir(tmp_path)
    assert read(name) == [(0.0, 0)]


def test_name_that_is_not_unicode(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    with open(path, "wb") as file:
        file.write(write(tmp_path / "plain.mp4", 30).read_bytes())
    assert read(path) == [(0.0, 0)]


def random_bytes(path):
    path.write_bytes(np.random.default_rng(0).bytes(100_000))


def make_refused(folder):
    """Return {case: (path, part of the reason)}."""
    whole = write(folder / "whole.mp4", 60)
    cases = {"missing": "No such file", "directory": "a directory", "empty": "empty"}
    for name in ("random bytes", "text", "cut before its header", "picture size zero"):
        cases[name] = "not a video"
    cases |= {"sound only": "no video stream", "absurd size": "pixels", "absurd size y4m": "not a video"}
    cases |= {"pipe": "not a regular file", "null byte": "null"}
    paths = {case: folder / case for case in cases}
    paths["directory"].mkdir()
    paths["empty"].touch()
    random_bytes(paths["random bytes"])
    paths["text"].write_text("This is no film.\n" * 1000)
    paths["cut before its header"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    paths["picture size zero"].write_text("YUV4MPEG2 W0 H0 F25:1 C420\nFRAME\n")
    write_video(paths["sound only"], [], audio_seconds=1, container_format="mp4")
    paths["absurd size y4m"].write_bytes(b"YUV4MPEG2 W20000 H20000 F25:1 C420\nFRAME\n" + bytes(10_000))
    plain = write(folder / "plain.avi", 2, codec="rawvideo", pix_fmt="bgr24", options={})
    data = bytearray(plain.read_bytes())
    place = data.index(b"strf") + 12  # BITMAPINFOHEADER: size, width, height
    assert struct.unpack_from("<ii", data, place)[0] == 96
    struct.pack_into("<ii", data, place, 60000, 60000)
    paths["absurd size"].write_bytes(data)
    os.mkfifo(paths["pipe"])
    paths["null byte"] = "a\0b.mp4"
    return {case: (paths[case], reason) for case, reason in cases.items()}


CASES = ["missing", "directory", "empty", "random bytes", "text", "cut before its header", "picture size zero"]
CASES += ["sound only", "absurd size", "absurd size y4m", "pipe", "null byte"]


@pytest.fixture(scope="session")
def refused(tmp_path_factory):
    cases = make_refused(tmp_path_factory.mktemp("refused"))
    assert sorted(cases) == sorted(CASES)
    return cases


@pytest.mark.parametrize("case", CASES)
def test_refused(case, refused):
    path, reason = refused[case]
    for read_file in (lambda: list(iter_frames(path)), lambda: probe(path)):
        begin = time.monotonic()
        with pytest.raises(VideoReadError) as caught:
            read_file()
        assert time.monotonic() - begin < 5
        error = caught.value
        assert isinstance(error, ValueError) and error.path == str(path) and reason in error.reason
        assert repr(str(path)) in str(error) and error.reason in str(error) and error.advice in str(error)
        assert error.time is None


def test_cover_picture_of_a_song_is_no_video(tmp_path):
    Image.fromarray(next(numbered_frames(1, 64, 64))).save(tmp_path / "cover.png")
    apic = b"\0image/png\0\3\0" + (tmp_path / "cover.png").read_bytes()
    frame = b"APIC" + struct.pack(">I", len(apic)) + b"\0\0" + apic
    length = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    write_video(tmp_path / "sound.aac", [], audio_seconds=1, container_format="adts")
    song = tmp_path / "song.aac"
    song.write_bytes(b"ID3\3\0\0" + length + frame + (tmp_path / "sound.aac").read_bytes())
    with av.open(str(song)) as container:
        assert len(container.streams.video) == 1  # FFmpeg takes the cover for a video
    with pytest.raises(VideoReadError, match="no video stream"):
        probe(song)


@pytest.mark.parametrize("kind", ["m3u8", "m3u8 as mp4", "ffconcat", "sdp", "dash"])
def test_playlists_are_refused_although_their_files_are_good(kind, tmp_path):
    write(tmp_path / "part.ts", 60)
    write(tmp_path / "part.mp4", 60)
    texts = {
        "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\npart.ts\n#EXT-X-ENDLIST\n",
        "ffconcat": "ffconcat version 1.0\nfile part.mp4\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="0" '
        'bandwidth="1"><BaseURL>part.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>',
    }
    texts["m3u8 as mp4"] = texts["m3u8"]
    path = tmp_path / ("list.mp4" if kind == "m3u8 as mp4" else f"list.{kind}")
    path.write_text(texts[kind])
    with pytest.raises(VideoReadError, match="not a video"):
        list(iter_frames(path))


@pytest.mark.parametrize("place", ["path", "playlist"])
def test_no_address_is_ever_contacted(place, tmp_path):
    visits = []

    class Visited(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            visits.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Visited)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/film.ts"
    try:
        path = address
        if place == "playlist":
            path = tmp_path / "list.m3u8"
            path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(VideoReadError):
            list(iter_frames(path))
        assert visits == []
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.sendall(b"GET /proof HTTP/1.0\r\n\r\n")
            client.recv(100)
        assert visits == ["/proof"]  # the server does notice visits
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("path", ["concat:part.ts|part.ts", "subfile,,start,0,end,0,,:part.ts", "file:part.ts"])
def test_protocols_in_a_name_mean_nothing(path, tmp_path, monkeypatch):
    write(tmp_path / "part.ts", 30)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoReadError, match="No such file"):
        list(iter_frames(path))


@pytest.mark.parametrize("fps", [30.0, 1.0, 0.5])
def test_cut_off_film_gives_its_good_frames_then_says_so(film, fps, tmp_path, caplog):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    samples, error = read_until_error(cut, fps=fps)
    assert samples == [(i / fps, round(30 * i / fps)) for i in range(len(samples))]
    # At 30 per second the frames that wait in the decoder when the file ends are the first to be missed.
    assert "20.000 s" in error.reason or (fps == 30 and "damaged or missing" in error.reason)
    assert 5 < error.time < 15 and samples[-1][0] <= error.time + 0.05 and error.time - samples[-1][0] < 1 / fps + 1
    assert read(cut, fps=fps, end=error.time - 1) == [s for s in samples if s[0] < error.time - 1]
    assert not caplog.records
    # Going on is possible, and never silent.
    tolerant = read(cut, fps=fps, allow_damaged=True)
    assert tolerant[: len(samples)] == samples and len(tolerant) <= len(samples) + 20 * fps / 2
    assert any("cut.mp4" in record.message and "allow_damaged" in record.message for record in caplog.records)


def test_cut_off_files_without_an_index(tmp_path):
    for name in ("a.mkv", "a.avi", "a.flv"):
        whole = write(tmp_path / name, 300, noise=30)
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        samples, error = read_until_error(cut)
        assert samples == [(float(i), 30 * i) for i in range(len(samples))] and 3 <= len(samples) <= 7
        assert len(samples) - 1.5 < error.time < len(samples) + 0.5


def test_header_without_pictures(film, tmp_path):
    data = film.read_bytes()
    bare = tmp_path / "bare.mp4"
    bare.write_bytes(data[: data.index(b"mdat") + 4])
    samples, error = read_until_error(bare)
    assert samples == [] and "not one frame" in error.reason and error.time == 0


@pytest.mark.parametrize("fps", [10.0, 1.0])
def test_corrupted_middle_never_passes_silently(film, fps, tmp_path, caplog):
    bad = damage(film, tmp_path / "bad.mp4", [(0.5, 0.6)])
    samples, error = read_until_error(bad, fps=fps)
    assert samples == [(i / fps, round(30 * i / fps)) for i in range(len(samples))]
    assert 5 < error.time < 14 and "damaged or missing" in error.reason
    tolerant = read(bad, fps=fps, allow_damaged=True)
    assert [moment for moment, _ in tolerant] == [i / fps for i in range(int(20 * fps))]
    wrong = [moment for moment, number in tolerant if number != round(30 * moment)]
    assert wrong and min(wrong) >= error.time and max(wrong) - min(wrong) < 5
    assert len([record for record in caplog.records if "bad.mp4" in record.message]) >= 1
    # The part that is not damaged can be read without permission.
    last_wrong = float(np.ceil(max(wrong))) + 2
    assert read(bad, fps=fps, start=last_wrong)[0] == (last_wrong, round(30 * last_wrong))


@pytest.mark.parametrize("begin", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_no_wrong_frame_gets_out_wherever_the_damage_is(film, begin, tmp_path):
    # Frames leave the decoder later than errors do: good ones from before the damage must not end the alarm.
    bad = damage(film, tmp_path / "bad.mp4", [(begin, begin + 0.03)])
    for fps in (1.0, 10.0):
        samples, error = read_until_error(bad, fps=fps)
        assert samples == [(i / fps, round(30 * i / fps)) for i in range(len(samples))]
        assert samples[-1][0] <= error.time + 1 / fps + 1
        tolerant = read(bad, fps=fps, allow_damaged=True)
        assert len(tolerant) == 20 * fps and min(round(30 * moment) - number for moment, number in tolerant) == 0


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.avi", "h265.mp4", "av1.mp4"])
def test_corruption_ends_in_right_frames_or_our_error(name, tmp_path):
    kinds = {"h265.mp4": {"codec": "libx265", "options": X265}, "av1.mp4": {"codec": "libsvtav1", "options": AV1}}
    whole = write(tmp_path / name, 240, noise=30, **kinds.get(name, {}))
    bad = damage(whole, tmp_path / f"bad-{name}", [(0.4, 0.5)])
    if name == "a.mkv":
        # Matroska may skip what it cannot read without a word: the last frame before stands for the lost ones.
        got = read(bad, fps=5, allow_damaged=True)
        behind = [round(30 * moment) - number for moment, number in got]
        assert len(got) == 40 and min(behind) >= 0 and sum(late > 0 for late in behind) < 8
        return
    samples, error = read_until_error(bad, fps=5)
    right = samples[:15] if name == "a.avi" else samples
    assert right == [(i / 5, 6 * i) for i in range(len(right))] and len(right) >= 5
    assert error.time is not None


def test_packets_lost_in_a_broadcast_are_noticed(tmp_path):
    data = write(tmp_path / "whole.ts", 240, noise=30).read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    lossy = tmp_path / "lossy.ts"
    lossy.write_bytes(b"".join(packets[: len(packets) // 2] + packets[len(packets) // 2 + 5 :]))
    samples, error = read_until_error(lossy, fps=5)
    assert samples == [(i / 5, 6 * i) for i in range(len(samples))] and 2 < error.time < 6


def test_fuzzed_files_end_in_frames_or_our_error(film, tmp_path):
    data = film.read_bytes()[:40_000]
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(40):
        bad = bytearray(data)
        for place in random.integers(0, len(bad), 20):
            bad[place] = random.integers(256)
        (tmp_path / "fuzz.mp4").write_bytes(bad)
        begin = time.monotonic()
        try:
            for _, frames in iter_frames(tmp_path / "fuzz.mp4", timeout=10, allow_damaged=True):
                outcomes.add(frames.ndim)
        except VideoReadError:
            outcomes.add("error")
        assert time.monotonic() - begin < 15
    assert outcomes == {4, "error"}


def test_clock_that_jumps_back_is_an_error(tmp_path):
    part = write(tmp_path / "part.ts", 120).read_bytes()
    (tmp_path / "twice.ts").write_bytes(part + part + part)
    _, error = read_until_error(tmp_path / "twice.ts", start=0, num_frames=400)
    assert "clock jumps back" in error.reason and error.time == pytest.approx(4.0, abs=0.5)


def test_broadcast_that_begins_between_key_frames_is_no_damage(tmp_path):
    data = write(tmp_path / "whole.ts", 150).read_bytes()
    packets = len(data) // 188
    # Tables first, then from the middle of a group of pictures on.
    (tmp_path / "joined.ts").write_bytes(data[: 188 * 3] + data[188 * (packets // 3) :])
    samples = read(tmp_path / "joined.ts", fps=10)
    numbers = [number for _, number in samples]
    assert numbers == sorted(numbers) and 20 < numbers[0] < 100 and numbers[-1] >= 145


def test_time_limit(film, monkeypatch):
    clock = iter(np.arange(0, 1e6, 7.0).tolist())
    monkeypatch.setattr("modeling_video_ma2mba.processing.video_decoder.time.monotonic", lambda: next(clock))
    with pytest.raises(VideoReadError, match="timeout=5"):
        list(iter_frames(film, timeout=5))


def test_slow_callers_are_not_timed(film):
    for _ in iter_frames(film, fps=5, chunk=50, timeout=0.5):
        time.sleep(0.6)


@pytest.mark.parametrize(
    "kwargs",
    [{"chunk": 0}, {"size": 0}, {"timeout": 0}, {"backend": "opencv"}, {"fps": 0}, {"fps": 1, "num_frames": 2}],
)
def test_wrong_arguments_raise_at_the_call(kwargs, film):
    with pytest.raises(ValueError) as caught:
        iter_frames(film, **kwargs)
    assert not isinstance(caught.value, VideoReadError)


def test_start_behind_the_end_names_the_file(film):
    with pytest.raises(VideoReadError, match=r"film\.mp4.*start=30"):
        list(iter_frames(film, start=30))


def test_public_options_are_frozen():
    assert list(inspect.signature(iter_frames).parameters) == [
        "path", "fps", "num_frames", "max_frames", "start", "end", "size", "chunk", "backend", "allow_damaged",
        "timeout", "times",
    ]  # fmt: skip


def test_decord_reads_the_same_frames(film):
    pytest.importorskip("decord", reason="the optional decord backend is not installed")
    assert read(film, backend="decord") == read(film)
    assert next(iter_frames(film, backend="decord", size=32))[1].shape == (20, 32, 48, 3)


def test_decord_missing_says_what_to_do(film, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ImportError, match="pip install decord"):
        list(iter_frames(film, backend="decord"))


def test_an_abandoned_iterator_lets_go_of_the_file(film):
    def open_files():
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(film) for fd in os.listdir("/proc/self/fd"))

    frames = iter_frames(film, chunk=1)
    next(frames)
    assert open_files() == 1
    frames.close()
    assert open_files() == 0
