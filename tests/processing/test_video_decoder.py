"""What the decoder costs: memory that neither leaks nor grows with the film, measured in processes of their own."""

import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from modeling_video_ma2mba.processing import video_decoder
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video


def write(path, count, height=64, width=96):
    write_video(path, numbered_frames(count, height, width), options={"preset": "veryfast"})
    return path


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """The reader's files alone, in a folder `flat`, as they are on the Hub."""
    folder = tmp_path_factory.mktemp("copy")
    os.mkdir(folder / "flat")
    for name in ("video_reader", "video_decoder", "decord_reader", "video_errors", "frame_sampling"):
        shutil.copy(os.path.join(os.path.dirname(video_decoder.__file__), f"{name}.py"), folder / "flat")
    return folder


def test_the_files_work_without_the_package(copy, tmp_path):
    film = write(tmp_path / "film.mp4", 600)
    code = (
        "import sys, flat.video_reader as r; assert len(next(r.iter_frames(sys.argv[1]))[0]) == 20; "
        "assert 'modeling_video_ma2mba' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(film)], check=True, cwd=copy)


MEMORY = """
import sys
from flat.video_errors import VideoReadError
from flat.video_reader import iter_frames
def rss():
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) * 4096 / 2**20
def peak():
    # Not ru_maxrss: a child process inherits its parent's.
    with open("/proc/self/status") as f: return next(int(x.split()[1]) / 1024 for x in f if x.startswith("VmHWM"))
def once(path):
    try:
        for _ in iter_frames(path, fps=3): pass
    except VideoReadError: pass
"""


def run_memory(folder, code, *paths):
    """Run code in a process of its own that holds nothing but the reader, and return the numbers that it prints."""
    command = [sys.executable, "-c", MEMORY + code, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    return [float(value) for value in done.stdout.split()]


def test_many_opens_do_not_leak(copy, tmp_path):
    good = write(tmp_path / "good.mp4", 60, height=128, width=192)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good.read_bytes()[:3000])
    code = """
for _ in range(30): [once(p) for p in sys.argv[1:]]
before = rss()
for _ in range(100): [once(p) for p in sys.argv[1:]]
print(before, rss())
"""
    before, after = run_memory(copy, code, good, cut)
    # 200 more opens; one leaked frame each would be 7 MiB, one leaked decoder far more.
    assert after - before < 4, (before, after)


def test_memory_does_not_grow_with_the_length(copy, tmp_path):
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (45, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # (360, 640, 3)
    for name, count in (("short.mp4", 60), ("long.mp4", 600)):
        frames = (np.roll(picture, index, axis=1) for index in range(count))
        write_video(tmp_path / name, frames, 30, options={"preset": "ultrafast"})
    code = "once(sys.argv[1]); print(peak())"
    (short,), (long,) = (run_memory(copy, code, tmp_path / name) for name in ("short.mp4", "long.mp4"))
    # 60 sampled pictures of 691 kB are 40 MiB; a chunk of 32 and its stack is 44 MiB, in both.
    assert long < 250 and long - short < 50, (short, long)


def test_absurd_sizes_allocate_nothing(copy, tmp_path):
    absurd = tmp_path / "absurd.y4m"
    absurd.write_bytes(b"YUV4MPEG2 W20000 H20000 F25:1 C420\nFRAME\n" + bytes(10_000))
    plain = tmp_path / "plain.avi"
    write_video(plain, numbered_frames(2, 64, 96), codec="rawvideo", pix_fmt="bgr24")
    data = bytearray(plain.read_bytes())
    struct.pack_into("<ii", data, data.index(b"strf") + 12, 60000, 60000)
    plain.write_bytes(data)
    code = "once(sys.argv[1]); print(peak())"
    for path in (absurd, plain):
        (peak,) = run_memory(copy, code, path)
        # One picture of the most pixels allowed would take 192 MiB as RGB, on top of the libraries.
        assert peak < 150, peak
