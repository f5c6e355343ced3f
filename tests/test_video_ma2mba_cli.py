"""The console script: instant help, one clear line for bad input, every command on real files."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import _video_ma2mba_cli as cli
from modeling_video_ma2mba import (
    VideoMambaConfig,
    VideoMambaForVideoClassification,
    VideoMambaImageProcessor,
    VideoMambaProcessor,
    video_chat,
)
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
    names = "demo watch ask chat page convert plan eval needle card push env".split()
    for command in ([], *([name] for name in names), ["eval", "compare"]):
        start = sum(os.times()[2:4])  # CPU time of the processes started, as others run on the machine
        done = subprocess.run(
            [sys.executable, str(ROOT / "_video_ma2mba_cli.py"), *command, "--help"], capture_output=True, text=True
        )
        seconds.append(sum(os.times()[2:4]) - start)
        assert done.returncode == 0 and "usage: video-ma2mba" in done.stdout
    assert min(seconds) < 0.3


def test_commands_and_options_are_frozen():
    """A new option is a decision: this list changes with it."""
    commands = cli._parser()._subparsers._group_actions[0].choices
    options = {
        name: sorted(s for action in parser._actions for s in action.option_strings or [action.dest] if s[:2] != "-h")
        for name, parser in commands.items()
    }
    assert options == {
        "demo": ["--help", "--output", "--questions", "--seed"],
        "ask": [
            "--allow-damaged", "--device", "--dtype", "--fps", "--help", "--max-frames", "--max-new-tokens",
            "--memory", "--model", "--video", "question",
        ],
        "chat": [
            "--allow-damaged", "--device", "--dtype", "--fps", "--help", "--max-frames", "--max-new-tokens",
            "--memory", "--model", "--video",
        ],
        "watch": [
            "--allow-damaged", "--device", "--dtype", "--fps", "--help", "--model", "--output", "-o", "file",
        ],
        "convert": [
            "--checkpoint", "--dtype", "--frame-fit", "--help", "--mamba", "--output", "--parity", "--seed", "--to",
            "--tokenizer", "--vision",
        ],
        "plan": [
            "--batch", "--budget", "--device", "--dtype", "--fps", "--frozen-vision", "--help", "--host-budget",
            "--model", "--objective", "--output", "--tokens", "--video",
        ],
        "classify": ["--help", "--model", "--top", "video"],
        "page": ["--device", "--dtype", "--help", "--model", "--port"],
        "data": ["--help", "what"],
        "eval": [
            "--allow-missing", "--data", "--device", "--dtype", "--frames", "--help", "--judge",
            "--judge-max-dollars", "--judge-url", "--likelihood", "--limit", "--model", "--output", "--subtitles",
            "--tasks", "what",
        ],
        "needle": [
            "--depths", "--device", "--distractors", "--dtype", "--fps", "--help", "--lengths", "--model",
            "--needles", "--output", "--rows", "--seed", "--trials", "--video",
        ],
        "card": ["--help", "--license", "--results", "folder", "repo_id"],
        "push": ["--dry-run", "--help", "--public", "--space", "folder", "repo_id"],
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


def test_watch_then_ask_and_chat(folder, video, capsys, tmp_path, monkeypatch):
    memory, model = str(tmp_path / "film.safetensors"), ["--model", folder, "--device", "cpu"]
    assert cli.main(["watch", video, *model, "-o", memory]) == 0
    assert "2 s in 2 frames" in capsys.readouterr().err
    questions = ["who wins ?", "what is it ?"]
    answers = []
    for seen in (["--memory", memory], ["--video", video], ["--video", video, "--max-frames", "2", "--fps", "1"]):
        assert cli.main(["ask", *model, *seen, "--max-new-tokens", "3", *questions]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[2].startswith("Q: who wins ?\nA:")
    monkeypatch.setattr("sys.stdin", io.StringIO("who wins ?\n\na <video>\nhi\n/quit\nnever\n"))
    asked = []
    ask = video_chat.VideoChat.ask
    monkeypatch.setattr(video_chat.VideoChat, "ask", lambda self, *a, **k: asked.append(a[0]) or ask(self, *a, **k))
    assert cli.main(["chat", *model, "--memory", memory, "--max-new-tokens", "3"]) == 0
    assert asked == ["who wins ?", "a <video>", "hi"]
    assert "error: the prompt holds 2 <video>" in capsys.readouterr().err
    assert cli.main(["ask", *model, "--memory", memory, "--fps", "1", "who ?"]) == 2
    assert "a memory has been read" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    "words, message",
    [
        ("eval --model tiny --tasks nothing --output {0}/out", "unknown task 'nothing'"),
        ("eval compare {0}/a {0}/b", "there is no such file"),
        ("eval card {0}/a --name mine", "there is no such file"),
        ("needle --output {0}/out --lengths 0", "--lengths 0: a haystack has 1 frame or more"),
    ],
)
def test_bad_input_of_evaluation_gets_one_line(words, message, tmp_path, capsys):
    assert cli.main(words.format(tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("video-ma2mba: error: ") and message in error and error.count("\n") == 1


def test_convert_refuses_to_overwrite(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    assert cli.main(["convert", "--mamba", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert cli.main(["convert", "--mamba", str(tmp_path), "--output", str(tmp_path / "new")]) == 2
    assert "has no weights" in capsys.readouterr().err


def test_plan_prints_every_method_and_draws_them(tmp_path, capsys):
    arguments = ["plan", "--model", "370m", "--tokens", "2^17", "--budget", "24GiB", "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("370m, batch 1 x 131,072 tokens, 24.0 GiB on the device")
    for piece in ("plan: ", "paper's grid", "two-level", "grid, host", "chosen plan", "analytic", "longest that fits"):
        assert piece in printed
    data = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert data["tokens"] == sum(data["plan"]["segments"]) == 2**17
    assert data["plan"]["costs"]["activations"] <= data["budget"]
    assert len(data["methods"]) == 11 and data["versions"]["torch"]
    with Image.open(tmp_path / "out" / "plan.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 400 and pixels.shape[1] > 700
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    assert colours > 100 and (pixels == 255).all(axis=2).mean() < 0.98


def test_plan_measures_a_layer_here_and_reads_a_folder(folder, capsys):
    arguments = ["plan", "--model", folder, "--video", "5m", "--device", "here", "--budget", "40MB"]
    assert cli.main([*arguments, "--dtype", "float32", "--frozen-vision"]) == 0
    printed = capsys.readouterr().out
    assert "1,500 tokens with 300 frames" in printed and "measured" in printed and " s\n" not in printed
    assert re.search(r"layer by layer .* \d\S* s +measured", printed)


def test_plan_names_the_extra_that_draws(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    arguments = ["plan", "--model", "370m", "--tokens", "1k", "--budget", "1GiB", "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert 'pip install "video-ma2mba[eval]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "9b"}, "--model 9b: neither a preset"),
        ({"--tokens": "many"}, "--tokens many: give a number such as"),
        ({"--video": "1h"}, "give one of --tokens and --video"),
        ({"--tokens": None}, "give one of --tokens and --video"),
        ({"--tokens": None, "--video": "soon"}, "--video soon: give a length such as"),
        ({"--tokens": None, "--video": "1h"}, "--video needs a video model"),
        ({"--budget": "80 apples"}, "--budget='80 apples' is no size"),
        ({"--budget": None}, "give --budget, or --device"),
        ({"--device": "abacus"}, "--device abacus: known are here, h200"),
        ({"--batch": "0"}, "--batch 0"),
    ],
)
def test_bad_input_of_plan_gets_one_line(change, message, capsys):
    given = {"--model": "370m", "--tokens": "16k", "--budget": "80GiB"} | change
    arguments = [word for name, value in given.items() if value is not None for word in (name, value)]
    assert cli.main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("video-ma2mba: error: ") and captured.err.count("\n") == 1
    assert message in captured.err and captured.out == ""


def test_classify(video, tmp_path, capsys):
    torch.manual_seed(0)
    names = {0: "runs", 1: "jumps", 2: "sits"}
    config = VideoMambaConfig(hidden_size=16, num_hidden_layers=2, image_size=32, num_frames=4, id2label=names)
    VideoMambaForVideoClassification(config).save_pretrained(tmp_path / "model")
    processor = VideoMambaProcessor(VideoMambaImageProcessor(size=32, num_frames=4))
    processor.save_pretrained(tmp_path / "model")
    assert cli.main(["classify", video, "--model", str(tmp_path / "model"), "--top", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    expected = pipeline("video-classification", model=str(tmp_path / "model"), device="cpu")(video, top_k=2)
    assert printed == [video, *(f"  {one['score']:6.1%}  {one['label']}" for one in expected)]
    (tmp_path / "bad.mp4").write_text("no video")
    assert cli.main(["classify", str(tmp_path / "bad.mp4"), video, "--model", str(tmp_path / "model")]) == 2
    captured = capsys.readouterr()
    assert "bad.mp4" in captured.err and captured.out.startswith(video)  # the others are classified all the same


@pytest.mark.parametrize(
    "change, message",
    [({"--top": "0"}, "--top 0: at least 1"), ({"video": "missing.mp4"}, "there is no file missing.mp4"),
     ({"--model": "."}, "has no config.json"), ({}, "is a video_ma2mba model; classify needs a VideoMamba")],
)  # fmt: skip
def test_bad_input_of_classify_gets_one_line(folder, video, capsys, change, message):
    given = {"--model": folder, "--top": "5", "video": video} | change
    assert cli.main(["classify", given["video"], "--model", given["--model"], "--top", given["--top"]]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("video-ma2mba: error: ") and captured.err.count("\n") == 1
    assert message in captured.err
