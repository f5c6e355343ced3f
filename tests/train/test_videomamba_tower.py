"""Stage 2 with a VideoMamba tower: from a folder of videos to a model that has learnt, clips trained with the rest."""

import json

import numpy as np
import pytest
import torch

from modeling_video_ma2mba import VideoMa2mbaConfig, VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.parameter_groups import parameter_groups, set_trained_parts
from modeling_video_ma2mba.train.recipes import load_recipe
from modeling_video_ma2mba.train.run_stage import main
from modeling_video_ma2mba.train.synthetic_video import write_video

CLIP = 4


@pytest.fixture
def config(tiny_video_config):
    vision = {"model_type": "videomamba", "hidden_size": 32, "num_hidden_layers": 3, "patch_size": 14,
              "image_size": 56, "num_frames": CLIP, "backend": "torch"}  # fmt: skip
    text = tiny_video_config.text_config
    return VideoMa2mbaConfig(vision_config=vision, text_config=text, image_token_id=2, video_token_id=3)


def test_stage_2_learns(config, processor, tmp_path):
    """Clips that are the same frames in two orders: left to right is red, right to left is blue."""
    torch.manual_seed(0)
    VideoMa2mbaForConditionalGeneration(config).save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    data, samples = tmp_path / "data", []
    data.mkdir()
    for i in range(8):
        places = range(6) if i % 2 else range(5, -1, -1)
        film = np.full((6, 64, 64, 3), 20 * i, dtype=np.uint8)
        for frame, place in zip(film, places):
            frame[:, 10 * place : 10 * place + 14] = (230, 230, 60)
        write_video(data / f"{i}.mp4", film.repeat(5, axis=0), fps=5)
        turns = [
            {"from": "human", "value": "<image>\nwhat is it ?"},
            {"from": "gpt", "value": ("blue", "red")[i % 2]},
        ]
        samples.append({"id": i, "video": f"{i}.mp4", "conversations": turns})
    (data / "questions.json").write_text(json.dumps(samples))
    words = ["--recipe", "tiny", "--init-from", str(tmp_path / "start"), "--data", str(data / "questions.json")]
    words += ["--output", str(tmp_path / "two"), "--device", "cpu", "--workers", "0", "--report-to", "none"]
    for setting in ("global_batch_size=8", "max_steps=8", "learning_rate=0.003"):
        words += ["--override", setting]
    assert main("2", words) == 0
    log = json.loads((tmp_path / "two" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0], losses
    before, after = (
        dict(VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path / folder).named_parameters())
        for folder in ("start", "two")
    )
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == set(VideoMa2mbaForConditionalGeneration(config).unused_parameters())


def test_decays_and_embeddings_of_the_tower_are_not_decayed(config):
    model, recipe = VideoMa2mbaForConditionalGeneration(config), load_recipe("3.1b", "2")
    set_trained_parts(model, recipe.trains)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in parameter_groups(model, recipe) if group["weight_decay"]
               for p in group["params"]}  # fmt: skip
    tower = {name.removeprefix("model.vision_tower.") for name in decayed if "vision_tower" in name}
    layer = ("in_proj", "conv1d", "x_proj", "dt_proj", "conv1d_b", "x_proj_b", "dt_proj_b", "out_proj")
    assert tower == {"patch_embed.proj.weight"} | {f"layers.{i}.mixer.{n}.weight" for i in (0, 1) for n in layer}
