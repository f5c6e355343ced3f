"""The console script: instant help, one clear line for bad input, every command on real files."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import _video_ma2mba_cli as cli
from modeling_video_ma2mba.train.synthetic_video import write_video

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tiny_video_model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_video_model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "film.mp4"
    write_video(path, np.full((20, 64, 64, 3), 200, dtype=np.uint8), fps=10)
    return str(path)


def test_help_is_instant():
    seconds = []
    for command in ([], ["ask"], ["demo"], ["convert"], ["env"]):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(ROOT / "_video_ma2mba_cli.py"), *command, "--help"], capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and "usage: video-ma2mba" in done.stdout
    # The best of five: a busy machine may slow one start, not all.
    assert min(seconds) < 0.3


def test_commands_and_options_are_frozen():
    """A new option is a decision: this list changes with it."""
    commands = cli._parser()._subparsers._group_actions[0].choices
    options = {
        name: sorted(s for action in parser._actions for s in action.option_strings or [action.dest] if s[:2] != "-h")
        for name, parser in commands.items()
    }
    assert options == {
        "demo": ["--help", "--output", "--seed", "--steps"],
        "ask": [
            "--allow-damaged", "--device", "--dtype", "--fps", "--help", "--max-frames", "--max-new-tokens", "--model",
            "--video", "question",
        ],
        "convert": [
            "--dtype", "--frame-fit", "--help", "--mamba", "--output", "--seed", "--tokenizer", "--vision",
        ],
        "env": ["--help"],
    }  # fmt: skip


def test_env_prints_every_choice(capsys):
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    for what in ("python", "device", "dtype", "scan", "convolution", "decoder", "torch", "transformers", "mamba-ssm"):
        assert f"\n{what} " in f"\n{printed}"


def test_ask(folder, video, capsys):
    arguments = ["ask", "--model", folder, "--video", video, "--max-new-tokens", "3", "--device", "cpu"]
    assert cli.main([*arguments, "who wins ?", "what is it ?"]) == 0
    printed = capsys.readouterr().out
    assert "Q: who wins ?\nA:" in printed and "Q: what is it ?\nA:" in printed


@pytest.mark.parametrize("change", ["model", "video", "text"])
def test_bad_input_gets_one_line(folder, video, capsys, tmp_path, change):
    (tmp_path / "text.mp4").write_text("this is no video")
    paths = {"model": folder, "video": video}
    if change == "text":
        paths["video"] = str(tmp_path / "text.mp4")
    else:
        paths[change] = str(tmp_path / "missing")
    assert cli.main(["ask", "--model", paths["model"], "--video", paths["video"], "who ?"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("video-ma2mba: error: ")
    assert captured.err.count("\n") == 1
    assert ("text.mp4" if change == "text" else "missing") in captured.err


def test_convert_refuses_to_overwrite(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    assert cli.main(["convert", "--mamba", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert cli.main(["convert", "--mamba", str(tmp_path), "--output", str(tmp_path / "new")]) == 2
    assert "has no weights" in capsys.readouterr().err
