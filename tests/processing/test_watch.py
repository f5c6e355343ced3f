"""`video-ma2mba watch`: folders, going on after an interruption, files that stay whole."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import modeling_video_ma2mba
from modeling_video_ma2mba import VideoMemory, watching
from modeling_video_ma2mba.processing.load_model import load_model
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.watch import watch_videos
from modeling_video_ma2mba.train.synthetic_video import write_video

ROOT = Path(modeling_video_ma2mba.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tiny_video_model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_video_model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture
def films(tmp_path):
    path = tmp_path / "films"
    path.mkdir()
    random = np.random.default_rng(1)
    for name, seconds in (("b.mp4", 3), ("a.MP4", 4), ("c.mkv", 2)):
        write_video(path / name, random.integers(0, 255, (seconds * 5, 64, 64, 3), dtype=np.uint8), fps=5)
    (path / "notes.txt").write_text("no video")
    return path


def names(memory):
    return [Path(video.name).name for video in memory.videos]


def equal(one, two):
    return all(
        bool((a == b).all()) for a, b in zip((*one.state.conv, *one.state.ssm), (*two.state.conv, *two.state.ssm))
    )


def test_a_folder_and_more_files_later(folder, films, tmp_path, capsys):
    output = tmp_path / "m.safetensors"
    first = watch_videos(folder, [str(films / "a.MP4")], str(output), device="cpu")
    assert first.frames_seen == 4 and "4 s in 4 frames" in capsys.readouterr().err
    memory = watch_videos(folder, [str(films)], str(output), device="cpu")
    assert names(memory) == ["a.MP4", "b.mp4", "c.mkv"] and memory.frames_seen == 9
    assert equal(memory, watch_videos(folder, [str(films)], str(tmp_path / "other.safetensors"), device="cpu"))
    written = output.stat().st_mtime_ns
    capsys.readouterr()
    watch_videos(folder, [str(films)], str(output), device="cpu")
    assert output.stat().st_mtime_ns == written and "has seen all of it" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a memory of other videos"):
        watch_videos(folder, [str(films / "b.mp4")], str(output), device="cpu")


def test_what_was_seen_is_saved_and_gone_on_with(folder, films, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 1)
    whole = watch_videos(folder, [str(films)], str(tmp_path / "whole.safetensors"), device="cpu")
    output = tmp_path / "m.safetensors"
    feed, left = watching.file_batches, [6]

    def failing(*arguments):
        for batch in feed(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(watching, "file_batches", failing)
    with pytest.raises(KeyboardInterrupt):
        watch_videos(folder, [str(films)], str(output), device="cpu")
    assert "stopped after 6 s in 6 frames" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):  # at once: what is there stays
        watch_videos(folder, [str(films)], str(output), device="cpu")
    left[0] = 1
    with pytest.raises(KeyboardInterrupt):
        watch_videos(folder, [str(films)], str(output), device="cpu")
    left[0] = 99
    memory = watch_videos(folder, [str(films)], str(output), device="cpu")
    assert equal(memory, whole) and memory.videos == whole.videos
    model, _ = load_model(folder, "cpu")
    assert equal(VideoMemory.load(output, model=model), whole)


def test_a_bad_file_keeps_what_came_before(folder, films, tmp_path):
    (films / "b.mp4").write_bytes((films / "b.mp4").read_bytes()[:300])
    output = tmp_path / "m.safetensors"
    with pytest.raises(VideoReadError, match=r"b\.mp4"):
        watch_videos(folder, [str(films)], str(output), device="cpu")
    model, _ = load_model(folder, "cpu")
    assert names(VideoMemory.load(output, model=model)) == ["a.MP4"]


def test_nothing_is_lost_to_a_wrong_output(folder, films, tmp_path):
    before = (films / "b.mp4").read_bytes()
    with pytest.raises(ValueError, match=r"b\.mp4"):
        watch_videos(folder, [str(films / "a.MP4")], str(films / "b.mp4"), device="cpu")
    assert (films / "b.mp4").read_bytes() == before
    with pytest.raises(ValueError, match="there is no folder"):
        watch_videos(folder, [str(films)], str(tmp_path / "none" / "m.safetensors"), device="cpu")
    with pytest.raises(ValueError, match="there is no file or folder"):
        watch_videos(folder, [str(films / "none.mp4")], str(tmp_path / "m.safetensors"), device="cpu")
    with pytest.raises(ValueError, match="no video in"):
        watch_videos(folder, [folder], str(tmp_path / "m.safetensors"), device="cpu")


def slow_watch(films, folder, output, save_every=60.0):
    """Start the command in a process that says "read" after every two frames."""
    slow = (
        "import signal, sys, time, _video_ma2mba_cli as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job is born deaf to it
        "from modeling_video_ma2mba import watching\n"
        "read = watching.WatchingMixin._read\n"
        "def slow(self, *a):\n"
        "    time.sleep(0.1); out = read(self, *a); print('read', flush=True); return out\n"
        "watching.WatchingMixin._read, watching.FRAMES_AT_ONCE = slow, 2\n"
        f"watching.SAVE_EVERY = {save_every}\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = ["watch", str(films), "--model", folder, "-o", str(output), "--device", "cpu", "--fps", "5"]
    return subprocess.Popen(
        [sys.executable, "-c", slow, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_process_has_saved_on_its_way(folder, films, tmp_path):
    whole = watch_videos(folder, [str(films)], str(tmp_path / "whole.safetensors"), device="cpu", fps=5.0)
    output = tmp_path / "m.safetensors"
    process = slow_watch(films, folder, output, save_every=0.0)
    for _ in range(8):  # the prompt's start, then 14 of the first file's 20 frames; the last may not be saved
        process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)
    model, _ = load_model(folder, "cpu")
    saved = VideoMemory.load(output, model=model)
    assert 12 <= saved.frames_seen < 20 and not saved.videos[-1].complete and saved.interrupted_from == 0
    memory = watch_videos(folder, [str(films)], str(output), device="cpu", fps=5.0)
    assert memory.videos == whole.videos
    for one, two in zip(memory.state.ssm, whole.state.ssm):
        assert float((one - two).abs().max()) < 1e-4


def test_ctrl_c_in_a_process_of_its_own(folder, films, tmp_path):
    """The signal arrives wherever the process is; the same command again ends as if nothing had been."""
    whole = watch_videos(folder, [str(films)], str(tmp_path / "whole.safetensors"), device="cpu", fps=5.0)
    output = tmp_path / "m.safetensors"
    process = slow_watch(films, folder, output)
    for _ in range(4):
        process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    memory = watch_videos(folder, [str(films)], str(output), device="cpu", fps=5.0)
    assert memory.videos == whole.videos
    model, processor = load_model(folder, "cpu")
    answers = [model.ask(m, "who wins ?", processor=processor, max_new_tokens=5) for m in (memory, whole)]
    assert answers[0] == answers[1]
    for one, two in zip(memory.state.ssm, whole.state.ssm):
        assert float((one - two).abs().max()) < 1e-4
