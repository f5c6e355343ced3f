"""LoRA reaches every projection of the language model, and nothing else."""

import pytest
import torch

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.lora import adapter_names, add_lora
from modeling_video_ma2mba.train.parameter_groups import parameter_groups
from modeling_video_ma2mba.train.recipes import load_recipe


@pytest.fixture
def recipe():
    return load_recipe("tiny", "2", ["lora_rank=4", "trains=[projector, language_model]"])


@pytest.fixture
def adapted(tiny_video_config, recipe):
    torch.manual_seed(0)
    model = add_lora(VideoMa2mbaForConditionalGeneration(tiny_video_config), recipe)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide lora_A's gradient
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def test_every_targeted_module_is_listed(adapted):
    layers = adapted.config.text_config.num_hidden_layers
    prefix = "base_model.model.model.language_model.layers"
    assert adapter_names(adapted) == [
        f"{prefix}.{i}.mixer.{n}" for i in range(layers) for n in ("in_proj", "out_proj")
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_has_a_gradient_and_the_rest_none(adapted, checkpointing):
    if checkpointing:
        adapted.gradient_checkpointing_enable({"layer_interval": 1, "sequence_interval": 5})
    frames = torch.randint(0, 256, (1, 2, 3, 56, 56), dtype=torch.uint8)
    ids = torch.tensor([[3] * 8 + [8, 9, 10, 0]])
    adapted.train()
    adapted(input_ids=ids, labels=ids, pixel_values_videos=frames).loss.backward()
    with_gradient = {n for n, p in adapted.named_parameters() if p.grad is not None and p.grad.any()}
    expected = {n for n, _ in adapted.named_parameters() if "lora_" in n or "modules_to_save" in n}
    assert with_gradient == expected
    assert sum("lora_" in name for name in expected) == 4 * adapted.config.text_config.num_hidden_layers


def test_groups_hold_what_is_trained(adapted, recipe):
    grouped = sum(p.numel() for group in parameter_groups(adapted, recipe) for p in group["params"])
    assert grouped == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
