"""Which way of reading one frame per second is exact, flat in memory and cheap?

Makes two H.264 films, 640 x 360, 30 frames per second, with the frame number burnt in (key frames 250 and 30 frames
apart), and reads each in a process of its own through: our reader, plain PyAV with a seek per sample, and decord. It
counts wrong frames and measures peak memory, CPU and wall time. It does not compare picture quality or codecs.

    python benchmarks/video_decoding.py --minutes 20 --repeats 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

FPS = 30
HEIGHT, WIDTH = 360, 640
KEY_FRAME_DISTANCES = (250, 30)
READERS = ("ours", "pyav_seek", "decord")
TOO_SLOW = 900.0  # seconds for one reading


def import_alone() -> None:
    """Make `processing` and `train` importable without the package, whose torch would hide the reader's memory."""
    for name in ("processing", "train"):
        package = types.ModuleType(f"alone_{name}")
        package.__path__ = [str(Path(__file__).resolve().parent.parent / name)]
        sys.modules[package.__name__] = package


def make_film(path: Path, minutes: float, gop: int) -> None:
    """Write a film of numbered frames over moving texture, so that decoding is real work."""
    import numpy as np
    from alone_train.synthetic_video import numbered_frames, write_video
    from tqdm import tqdm

    count = round(minutes * 60 * FPS)
    texture = np.random.default_rng(0).integers(-20, 21, (HEIGHT // 8, WIDTH // 8, 1)).repeat(8, 0).repeat(8, 1)

    def frames():
        numbers = numbered_frames(count, HEIGHT, WIDTH)
        for index, frame in enumerate(tqdm(numbers, total=count, desc=path.name, mininterval=1)):
            yield (frame + np.roll(texture, 3 * index, axis=1)).clip(0, 255).astype(np.uint8)

    # sc_threshold=0: key frames at the stated distance and nowhere else.
    write_video(path, frames(), FPS, gop=gop, options={"preset": "ultrafast", "sc_threshold": "0"})


def read_ours(path: str):
    from alone_processing.video_reader import iter_frames

    for times, frames in iter_frames(path, fps=1.0):
        yield from zip(times, frames)


def read_decord(path: str):
    from alone_processing.video_reader import iter_frames

    for times, frames in iter_frames(path, fps=1.0, backend="decord"):
        yield from zip(times, frames)


def read_pyav_seek(path: str):
    """Seek before each sample and decode up to it: the obvious program."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for second in range(int(stream.duration * stream.time_base)):
            container.seek(int(second / stream.time_base), stream=stream)
            last = None
            for frame in container.decode(stream):
                if frame.time > second:
                    break
                last = frame
            yield float(second), last.to_ndarray(format="rgb24")


def peak_rss_mib() -> float:
    """Return the peak memory of this process; not ru_maxrss, which a child process inherits from its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM; run this on Linux")


def measure(reader: str, path: str) -> dict:
    """Read a film and return what it cost; runs in a process of its own."""
    from alone_train.synthetic_video import read_number

    # The imports are paid before the clock starts, but memory counts from zero.
    begin_wall, begin_cpu = time.perf_counter(), time.process_time()
    read = {"ours": read_ours, "pyav_seek": read_pyav_seek, "decord": read_decord}[reader]
    samples = wrong = 0
    for moment, frame in read(path):
        samples += 1
        wrong += read_number(frame) != int(moment * FPS + 1e-6)
    return {
        "samples": samples,
        "wrong_frames": wrong,
        "wall_seconds": time.perf_counter() - begin_wall,
        "cpu_seconds": time.process_time() - begin_cpu,
        "peak_rss_mib": peak_rss_mib(),
    }


def run_all(films: dict[int, Path], minutes: float, repeats: int) -> list[dict]:
    """Return one row for each reader and film: medians, and the spread of the CPU time."""
    from tqdm import tqdm

    work = [(reader, gop, turn) for turn in range(repeats) for gop in films for reader in READERS]
    results: dict[tuple[str, int], list[dict]] = {}
    failures: dict[tuple[str, int], str] = {}
    for reader, gop, _ in tqdm(work, desc="reading"):
        if (reader, gop) in failures:
            continue
        command = [sys.executable, __file__, "--measure", reader, str(films[gop])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TOO_SLOW)
        except subprocess.TimeoutExpired:
            failures[reader, gop] = f"not finished after {TOO_SLOW:.0f} s"
            continue
        if done.returncode:
            failures[reader, gop] = done.stderr.strip().splitlines()[-1]
        else:
            results.setdefault((reader, gop), []).append(json.loads(done.stdout))
    rows = []
    for reader in READERS:
        for gop in films:
            row = {"reader": reader, "key_frame_distance": gop}
            runs = results.get((reader, gop), [])
            if (reader, gop) in failures:
                rows.append(row | {"failure": failures[reader, gop]})
                continue
            row |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            cpu = [run["cpu_seconds"] for run in runs]
            row |= {"cpu_seconds_min": min(cpu), "cpu_seconds_max": max(cpu), "repeats": len(runs)}
            row["is_correct"] = row["wrong_frames"] == 0 and row["samples"] == int(minutes * 60)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="length of each film (default 20, at most 36)")
    parser.add_argument("--repeats", type=int, default=5, help="readings of each film by each reader (default 5)")
    parser.add_argument("--measure", nargs=2, metavar=("READER", "FILM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import_alone()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return

    from result import write_result

    with tempfile.TemporaryDirectory() as folder:
        films = {gop: Path(folder) / f"gop{gop}.mp4" for gop in KEY_FRAME_DISTANCES}
        for gop, path in films.items():
            make_film(path, arguments.minutes, gop)
        settings = {"minutes": arguments.minutes, "fps": FPS, "height": HEIGHT, "width": WIDTH, "codec": "libx264"}
        settings |= {"sampling_fps": 1.0, "repeats": arguments.repeats}
        rows = run_all(films, arguments.minutes, arguments.repeats)
    print(write_result("video_decoding", settings, rows))


if __name__ == "__main__":
    main()
