"""Parameter groups of VideoMamba: layer decay as the paper and as the public code have it, weight decay."""

import pytest
import torch

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaForVideoClassification
from modeling_video_ma2mba.train.videomamba_recipes import load_videomamba_recipe
from modeling_video_ma2mba.train.videomamba_trainer import is_decayed, rate_factor, videomamba_parameter_groups

CONFIG = VideoMambaConfig(hidden_size=32, num_hidden_layers=3, image_size=32, num_frames=2, num_labels=4)


@pytest.mark.parametrize("values", ["paper", "public"])
def test_layer_decay(values):
    recipe = load_videomamba_recipe("k400-s", values)
    blocks = (0.75**3, 0.75**2, 0.75**1) if values == "paper" else (1, 1, 1)
    expected = {
        "videomamba.pos_embed": 0.75**4, "videomamba.cls_token": 0.75**4,
        "videomamba.patch_embed.proj.weight": 0.75**4, "videomamba.patch_embed.proj.bias": 0.75**4,
        "videomamba.temporal_pos_embedding": 1, "videomamba.norm_f.weight": 1, "head.weight": 1, "head.bias": 1,
        "videomamba.layers.0.mixer.A_log": blocks[0], "videomamba.layers.1.norm.weight": blocks[1],
        "videomamba.layers.2.mixer.in_proj.weight": blocks[2],
    }  # fmt: skip
    assert {name: rate_factor(name, 3, recipe) for name in expected} == pytest.approx(expected)
    plain = load_videomamba_recipe("tiny")
    assert all(rate_factor(name, 3, plain) == 1 for name in expected)


def test_groups_hold_every_parameter_once():
    recipe = load_videomamba_recipe("k400-s", "paper")
    model = VideoMambaForVideoClassification(CONFIG)
    groups = videomamba_parameter_groups(model, recipe)
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(id(parameter) for parameter in model.parameters())
    rates = {id(parameter): group for group in groups for parameter in group["params"]}
    head, first = rates[id(model.head.weight)], rates[id(model.videomamba.pos_embed)]
    assert groups[0] is head and head["lr"] == recipe.learning_rate and head["weight_decay"] == 0.05
    assert first["lr"] == pytest.approx(recipe.learning_rate * 0.75**4) and first["weight_decay"] == 0


def test_weight_decay_is_the_published_rule():
    decayed = {name for name, parameter in VideoMambaForVideoClassification(CONFIG).named_parameters()
               if is_decayed(name.removeprefix("videomamba."), parameter)}  # fmt: skip
    assert {"videomamba.layers.0.mixer.A_log", "videomamba.layers.0.mixer.A_b_log"} <= decayed
    assert {"videomamba.layers.1.mixer.conv1d.weight", "videomamba.patch_embed.proj.weight", "head.weight"} <= decayed
    for name in ("pos_embed", "cls_token", "temporal_pos_embedding", "norm_f.weight", "layers.0.mixer.D"):
        assert f"videomamba.{name}" not in decayed
    assert "head.bias" not in decayed and "videomamba.layers.0.mixer.dt_proj.bias" not in decayed
    assert not is_decayed("a.bias", torch.zeros(2, 2))
