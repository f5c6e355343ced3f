"""Pre-training of the small model's parts: one command, a folder that stage 1 can start from."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_video_ma2mba.train import pretrain_tiny
from modeling_video_ma2mba.train.scene_questions import vocabulary
from modeling_video_ma2mba.train.tiny_model import build_tiny_model, build_tokenizer

ROOT = Path(__file__).parents[2]


def test_every_word_is_one_token():
    tokenizer = build_tokenizer()
    text = " ".join(vocabulary())
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(text)["input_ids"]) == len(vocabulary())


def test_the_command_trains_both_parts(tmp_path):
    words = [sys.executable, "train/pretrain_tiny.py", "--output", str(tmp_path / "start"), "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, "--tower-steps", "2", "--language-steps", "2"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "start")
    fresh, _ = build_tiny_model(seed=3)
    unused = set(fresh.unused_parameters())
    for name, parameter in fresh.named_parameters():
        same = torch.equal(parameter, model.get_parameter(name))
        assert same == (name in unused or "multi_modal_projector" in name), name
    AutoProcessor.from_pretrained(tmp_path / "start")
    for part in ("tower", "language"):
        assert (tmp_path / "start" / part / "trainer_state.json").is_file()


def test_bad_numbers_are_one_line(tmp_path, capsys):
    assert pretrain_tiny.main(["--output", str(tmp_path), "--tower-steps", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
