"""VideoMamba's training as a command: from a csv to a tested model, killed and resumed, from a checkpoint, refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForVideoClassification, AutoProcessor

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaForImageClassification, VideoMambaForVideoClassification
from modeling_video_ma2mba.train.motion_clips import MOTIONS, write_motion_clips
from modeling_video_ma2mba.train.run_videomamba import main

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("killed_stage.py")
SMALL = "size={hidden_size: 16, num_hidden_layers: 2, patch_size: 16}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion")
    write_motion_clips(folder, "train", 18, 0, 8, 32)
    write_motion_clips(folder, "test", 6, 0, 8, 32)
    (folder / "classes.txt").write_text("\n".join(MOTIONS))
    return folder


def words(data, output, *more):
    overrides = [SMALL, "frames=4", "global_batch_size=4", "epochs=3", "warmup_epochs=1", "drop_path=0.4"]
    given = ["--recipe", "tiny", "--data", str(data / "train.csv"), "--output", str(output), "--device", "cpu"]
    given += [word for override in overrides for word in ("--override", override)]
    return [*given, "--batch-size", "2", "--workers", "0", "--report-to", "none", *more]


def same_weights(one, two):
    one, two = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of twelve steps in three epochs that was not stopped."""
    output = tmp_path_factory.mktemp("trained")
    assert main(words(data, output, "--save-steps", "3")) == 0
    return output


def test_a_run_keeps_the_best_epoch_and_tests_it(data, tmp_path):
    output = tmp_path / "out"
    more = ["--val", str(data / "test.csv"), "--test", str(data / "test.csv"), "--override", "test_crops=3"]
    assert main(words(data, output, *more, "--class-names", str(data / "classes.txt"))) == 0
    model, processor = AutoModelForVideoClassification.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert model.config.id2label == dict(enumerate(MOTIONS)) and processor.image_processor.num_frames == 4
    assert model.config.drop_path_rate == 0.4 and model.config.num_hidden_layers == 2
    state = json.loads((output / "trainer_state.json").read_text())
    scores = {entry["step"]: entry["eval_top1"] for entry in state["log_history"] if "eval_top1" in entry}
    assert list(scores) == [4, 8, 12] and state["best_metric"] == max(scores.values())
    assert same_weights(output, output / Path(state["best_model_checkpoint"]).name)
    found = json.loads((output / "test.json").read_text())
    assert found["clips"] == 6 and found["views"] == [2, 3] and len(found["predictions"]) == 6
    record = json.loads((output / "run.json").read_text())
    assert record["finished"] and record["recipe"]["name"] == "tiny" and record["data"]["samples"] == 18
    assert main(words(data, output, *more, "--class-names", str(data / "classes.txt"))) == 0  # nothing to do


@pytest.mark.parametrize("moment", ["step:5", "checkpoint-6/optimizer.pt"])
def test_killed_and_started_again_it_ends_with_the_same_weights(data, trained, tmp_path, moment):
    output = tmp_path / "parts"
    given = words(data, output, "--save-steps", "3")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(DRIVER), moment, "videomamba", *given],
        env=environment, capture_output=True, text=True, timeout=300, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not (output / "model.safetensors").exists() and (output / "checkpoint-3").is_dir()
    assert main(given) == 0
    assert same_weights(trained, output)


def test_other_settings_do_not_go_on_with_a_run(data, trained, capsys):
    record = trained / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "finished": False}))
    assert main(words(data, trained, "--override", "learning_rate=1.0e-3")) == 2
    assert "learning_rate was 0.002, is 0.001" in capsys.readouterr().err


def test_from_an_image_model_with_a_teacher(data, tmp_path):
    fields = {"num_hidden_layers": 2, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    image = VideoMambaForImageClassification(VideoMambaConfig(hidden_size=16, num_labels=9, **fields))
    image.save_pretrained(tmp_path / "image")
    teacher = VideoMambaForVideoClassification(VideoMambaConfig(hidden_size=8, num_frames=4, num_labels=3, **fields))
    teacher.save_pretrained(tmp_path / "teacher")
    more = ["--init-from", str(tmp_path / "image"), "--teacher", str(tmp_path / "teacher")]
    more += ["--override", "distillation=true", "--override", "max_steps=1", "--override", "warmup_epochs=0"]
    assert main(words(data, tmp_path / "out", *more)) == 0
    ours, before = load_file(tmp_path / "out" / "model.safetensors"), image.state_dict()
    assert not any("distill_head" in name for name in ours) and ours["head.weight"].shape == (6, 16)
    assert load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")["distill_head.1.weight"].shape == (8, 16)
    name = "videomamba.layers.0.mixer.in_proj.weight"  # one step away from where it began
    assert 0 < (ours[name] - before[name]).abs().max() < 0.01


def test_images(tmp_path):
    for name, colour in (("dark", 20), ("light", 220)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 36), (colour + i,) * 3).save(tmp_path / "images" / name / f"{i}.png")
    data = str(tmp_path / "images")
    given = ["--recipe", "tiny", "--data", data, "--val", data, "--test", data, "--output", str(tmp_path / "out")]
    overrides = [SMALL, "frames=null", "test_clips=1", "global_batch_size=4", "repeated_augmentation=2", "epochs=2"]
    given += [word for override in overrides for word in ("--override", override)]
    assert main([*given, "--device", "cpu", "--batch-size", "2", "--workers", "0", "--report-to", "none"]) == 0
    model = VideoMambaForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_frames is None and model.config.num_labels == 2
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_processor.crop_ratio == 0.875
    assert json.loads((tmp_path / "out" / "test.json").read_text())["clips"] == 8


@pytest.mark.parametrize(
    "more, message",
    [
        (["--override", "classes=3"], "rows can be used|were left out"),
        (["--override", "distillation=true"], "has distillation=True and --teacher is None: give a teacher's folder"),
        (["--teacher", "."], "recipe tiny has no distillation"),
        (["--init-from", "nowhere"], "--init-from nowhere: no such file"),
        (["--override", "global_batch_size=40"], "fit|40 clips|18 clips are fewer than the 40 of one step"),
        (["--override", "frames=5", "--override", "global_batch_size=3"], "cannot be made of 1 devices with 2"),
        (["--save-steps", "0"], "--save-steps 0: give a number of steps"),
        (["--class-names", "nowhere"], "--class-names nowhere: cannot be read"),
    ],
)
def test_bad_input_gets_one_line(data, tmp_path, capsys, more, message):
    import re

    assert main(words(data, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("videomamba: error: ") and re.search(message, error), error


def test_what_cannot_be_mixed_in_pairs_is_refused(monkeypatch):
    import argparse

    from modeling_video_ma2mba.train import run_videomamba
    from modeling_video_ma2mba.train.videomamba_recipes import load_videomamba_recipe

    monkeypatch.setattr(run_videomamba, "require_extra", lambda recipe: None)
    options = argparse.Namespace(save_steps=1, teacher=None, batch_size=3, init_from=None, workers=0, logging_steps=1)
    images = load_videomamba_recipe("imagenet-s")
    with pytest.raises(ValueError, match="3 clips at a time cannot be mixed in pairs"):
        run_videomamba.check_options(options, images)
    run_videomamba.check_options(options, load_videomamba_recipe("k400-s"))  # two views of each
