"""LoRA for the language model: which modules get adapters, and that every one of them is trained.

The frozen model stays as it is; adapters sit on `in_proj` and `out_proj` of every layer. `out_proj` alone would also
name the vision tower's attention, so modules are named in full.
"""

import re

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from modeling_video_ma2mba.train.recipes import Recipe

TARGETS = r".*language_model\.layers\.\d+\.mixer\.(in_proj|out_proj)"


def add_lora(model: nn.Module, recipe: Recipe) -> PeftModel:
    """Return `model` with adapters of the recipe's rank, and its projector trained in full if the recipe trains it.

    Raises:
        ValueError: the number of adapters is not two for each layer.
    """
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=2 * recipe.lora_rank,
        target_modules=TARGETS,
        modules_to_save=["multi_modal_projector"] if "projector" in recipe.trains else None,
    )
    layers = model.config.text_config.num_hidden_layers
    adapted = get_peft_model(model, config)
    names = adapter_names(adapted)
    if len(names) != 2 * layers:
        raise ValueError(f"{len(names)} modules have adapters, expected {2 * layers}: {', '.join(names[:4])}, ...")
    return adapted


def adapter_names(model: nn.Module) -> list[str]:
    """Return the modules of the language model that have an adapter."""
    return [
        name for name, module in model.named_modules() if re.fullmatch(TARGETS, name) and hasattr(module, "lora_A")
    ]
