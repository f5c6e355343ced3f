"""What a stage trains, and in which groups."""

import pytest
import torch

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.parameter_groups import (
    check_master_weights,
    parameter_groups,
    part_of,
    set_trained_parts,
)
from modeling_video_ma2mba.train.recipes import load_recipe


@pytest.fixture
def model(tiny_video_config):
    torch.manual_seed(0)
    return VideoMa2mbaForConditionalGeneration(tiny_video_config)


def test_stage_1_trains_the_projector_alone(model):
    set_trained_parts(model, load_recipe("3.1b", "1").trains)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}


def test_later_stages_train_everything_that_runs(model):
    set_trained_parts(model, ("projector",))
    set_trained_parts(model, load_recipe("3.1b", "2").trains)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == set(model.unused_parameters())


def test_every_trained_parameter_is_in_one_group(model):
    recipe = load_recipe("3.1b", "2")
    set_trained_parts(model, recipe.trains)
    groups = parameter_groups(model, recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (4e-6 if "vision_tower" in name else 4e-5), name
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert [name for name in decayed if "embed" in name] == ["model.vision_tower.embeddings.patch_embedding.weight"]
    assert "model.language_model.layers.0.mixer.in_proj.weight" in decayed
    assert "model.language_model.layers.0.mixer.conv1d.weight" in decayed
    assert not any(name.endswith(("A_log", "D", "dt_bias", "bias")) for name in decayed)


def test_wide_parameters_beside_narrow_ones_have_their_own_groups(model):
    recipe = load_recipe("3.1b", "2")
    set_trained_parts(model.bfloat16(), recipe.trains)
    for group in parameter_groups(model, recipe):
        assert len({parameter.dtype for parameter in group["params"]}) == 1
    dtypes = {p.dtype for group in parameter_groups(model, recipe) for p in group["params"]}
    assert dtypes == {torch.float32, torch.bfloat16}


def test_narrow_weights_without_a_master_copy_are_refused(model):
    check_master_weights(model, has_master_copy=False)
    check_master_weights(model.bfloat16(), has_master_copy=True)
    with pytest.raises(ValueError, match="16-bit"):
        check_master_weights(model, has_master_copy=False)


@pytest.mark.parametrize("wrapper", ["base_model.model.", "_fsdp_wrapped_module.", "_orig_mod."])
def test_wrapped_names_belong_to_the_same_part(wrapper):
    assert part_of(f"{wrapper}model.vision_tower.embeddings.weight") == "vision_tower"
    assert part_of(f"model.language_model.{wrapper}layers.0.norm.weight") == "language_model"
    with pytest.raises(ValueError, match="belongs to no part"):
        part_of(f"{wrapper}other.weight")
