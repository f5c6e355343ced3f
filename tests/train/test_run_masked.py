"""Masked pre-training as a command: from a csv to an encoder that is fine-tuned, killed and resumed, refused."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from modeling_video_ma2mba import VideoMambaForVideoClassification
from modeling_video_ma2mba.train.motion_clips import write_motion_clips
from modeling_video_ma2mba.train.run_videomamba import main

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("killed_stage.py")
SMALL = ["size={hidden_size: 16, num_hidden_layers: 3, patch_size: 16}", "frames=4", "image_size=32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve clips with their csv, and a random CLIP that sees as many patches as the student."""
    folder = tmp_path_factory.mktemp("motion")
    write_motion_clips(folder, "train", 12, 0, 8, 32)
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=8, initializer_range=0.3,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    return folder


def words(data, output, *more, recipe="masked-tiny", overrides=()):
    overrides = [*SMALL, "global_batch_size=4", "epochs=4", "warmup_epochs=1", *overrides]
    given = ["--recipe", recipe, "--data", str(data / "train.csv"), "--output", str(output), "--device", "cpu"]
    given += [word for override in overrides for word in ("--override", override)]
    return [*given, "--batch-size", "2", "--workers", "0", "--report-to", "none", "--logging-steps", "1", *more]


def teacher(data):
    return ["--teacher", str(data / "clip"), "--override", "drop_path=0.4", "--save-steps", "3"]


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """A run of twelve steps in four epochs that was not stopped."""
    output = tmp_path_factory.mktemp("pretrained")
    assert main(words(data, output, *teacher(data))) == 0
    return output


def test_a_run_leaves_an_encoder_that_is_fine_tuned(data, pretrained, tmp_path):
    history = json.loads((pretrained / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 12 and sum(losses[-3:]) < sum(losses[:3]) and 0 < losses[-1] < 4
    assert {"grad_norm_decoder", "grad_norm_blocks", "clips_per_second"} <= history[0].keys()
    encoder = AutoModel.from_pretrained(pretrained)
    assert AutoProcessor.from_pretrained(pretrained).image_processor.num_frames == 4
    weights = load_file(pretrained / "model.safetensors")
    assert weights["clip_decoder.0.head.weight"].shape == (8, 16)
    assert (encoder.norm_f.weight == 1).all() and (encoder.layers[2].norm.weight == 1).all()  # took no part
    assert not (encoder.layers[1].norm.weight == 1).all() and encoder.temporal_pos_embedding.any()
    assert json.loads((pretrained / "run.json").read_text())["finished"]

    output = tmp_path / "tuned"
    more = ["--init-from", str(pretrained), "--test", str(data / "train.csv")]
    overrides = ["max_steps=1", "warmup_epochs=0", "test_clips=1"]
    assert main(words(data, output, *more, recipe="tiny", overrides=overrides)) == 0
    tuned = VideoMambaForVideoClassification.from_pretrained(output)
    assert tuned.head.weight.shape == (6, 16) and json.loads((output / "test.json").read_text())["clips"] == 12
    moved = (tuned.videomamba.layers[0].mixer.in_proj.weight - encoder.layers[0].mixer.in_proj.weight).abs().max()
    assert 0 < moved < 0.01  # one step away from where it began


def test_killed_and_started_again_it_ends_with_the_same_weights(data, pretrained, tmp_path):
    output = tmp_path / "parts"
    given = words(data, output, *teacher(data))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(DRIVER), "step:8", "videomamba", *given],
        env=environment, capture_output=True, text=True, timeout=300, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not (output / "model.safetensors").exists() and (output / "checkpoint-6").is_dir()
    assert main(given) == 0
    one, two = load_file(pretrained / "model.safetensors"), load_file(output / "model.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("mask", ["random", "tube", "clip-row", "frame-row"])
def test_every_mask_trains(data, tmp_path, mask):
    more = ["--teacher", str(data / "clip"), "--override", f"mask={mask}", "--override", "aligned_layers=2"]
    more += ["--override", "max_steps=1", "--override", "warmup_epochs=0", "--override", "repeated_augmentation=2"]
    assert main(words(data, tmp_path / "out", *more)) == 0
    assert load_file(tmp_path / "out" / "model.safetensors")["clip_decoder.1.norm.weight"].shape == (8,)


def test_it_goes_on_from_an_encoder(data, pretrained, tmp_path):
    more = [
        "--init-from",
        str(pretrained),
        *teacher(data),
        "--override",
        "max_steps=1",
        "--override",
        "warmup_epochs=0",
    ]
    assert main(words(data, tmp_path / "out", *more)) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "out"))
    name = "layers.0.mixer.in_proj.weight"
    assert 0 < (after[name] - before[name]).abs().max() < 0.01


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "learns from a CLIP model: give its folder as --teacher, or --teacher tiny"),
        (["--teacher", "nowhere"], "--teacher nowhere: no such folder"),
        (
            ["--teacher", "CLIP", "--val", "x.csv", "--class-names", "y"],
            "--val, --class-names: recipe masked-tiny learns",
        ),
        (["--teacher", "CLIP", "--override", "mask=tube", "--override", "mask_ratio=0.2"], "masks 0 of 4"),
        (["--teacher", "CLIP", "--override", "image_size=64"], "sees 2 x 2 patches, the student 4 x 4"),
        (["--teacher", "CLIP", "--override", "aligned_layers=3"], "has 2 blocks, fewer than aligned_layers=3"),
        (["--teacher", "DATA"], "--teacher .* cannot be loaded .*: give the folder of a CLIP model"),
    ],
)
def test_bad_input_gets_one_line(data, tmp_path, capsys, more, message):
    more = [{"CLIP": str(data / "clip"), "DATA": str(data)}.get(word, word) for word in more]
    assert main(words(data, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    line = next(line for line in error.splitlines() if line.startswith("videomamba: error: "))
    assert re.search(message, line) and "Traceback" not in error, error
