"""Which parameters a stage trains, and how the optimizer groups them: learning rate, weight decay, dtype.

Weight decay is for matrices: not for biases, norms, embeddings, and not for A_log (in any direction), D and dt_bias
(as Mamba-2 trains them). Parameters that are fp32 beside 16-bit ones form groups of their own: ZeRO flattens a group
into one tensor.
"""

import torch
from torch import nn

from modeling_video_ma2mba.train.recipes import Recipe

_PREFIXES = {
    "projector": ("model.multi_modal_projector.",),
    "language_model": ("model.language_model.", "lm_head."),
    "vision_tower": ("model.vision_tower.",),
}
# What PEFT, FSDP1 and torch.compile put into the names.
_WRAPPERS = ("base_model.model.", "_fsdp_wrapped_module.", "_orig_mod.")
_NEVER_DECAYED = ("A_log", "A_b_log", "A_t_log", "A_tb_log", "D", "dt_bias")
_EMBEDDINGS = (
    "position_embedding",
    "class_embedding",
    "pos_embed",
    "cls_token",
    "language_model.embeddings",
    "lm_head",
)


def part_of(name: str) -> str:
    """Return the part of `recipes.PARTS` that a parameter of the video model, wrapped or not, belongs to."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    for part, prefixes in _PREFIXES.items():
        if name.startswith(prefixes):
            return part
    raise ValueError(f"parameter {name!r} belongs to no part of the model")


def set_trained_parts(model: nn.Module, trains: tuple[str, ...]) -> None:
    """Freeze everything but the given parts of a `VideoMa2mbaForConditionalGeneration`.

    What is behind the tower's feature layer stays frozen: it never runs. A tied head is trained with its embedding.
    """
    unused = set(model.unused_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in trains and name not in unused)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Return whether weight decay applies: to matrices and convolutions, but no embeddings."""
    leaf = name.rsplit(".", 1)[-1]
    is_embedding = any(embedding in name for embedding in _EMBEDDINGS)
    return parameter.ndim >= 2 and leaf not in _NEVER_DECAYED and not is_embedding


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Return the optimizer's groups over the trained parameters, in a fixed order, each with a "name"."""
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_vision = part_of(name) == "vision_tower"
        rate = recipe.vision_learning_rate if is_vision and recipe.vision_learning_rate else recipe.learning_rate
        decay = recipe.weight_decay if decays(name, parameter) else 0.0
        key = ("vision" if is_vision else "language", bool(decay), str(parameter.dtype).removeprefix("torch."))
        group = groups.setdefault(
            key, {"params": [], "lr": rate, "weight_decay": decay, "name": " ".join(map(str, key))}
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter is trained")
    for (part, decay, dtype), group in groups.items():
        group["name"] = f"{part}, {'decayed' if decay else 'not decayed'}, {dtype}"
    return [groups[key] for key in sorted(groups, key=lambda key: key[0] == "vision")]  # the log shows the first rate


def check_master_weights(model: nn.Module, has_master_copy: bool) -> None:
    """Refuse to train 16-bit parameters with an optimizer that keeps no fp32 copy of them.

    At a learning rate of 4e-6 an update is below half a unit in the last place of bf16: the weights would not move.

    Raises:
        ValueError: naming one such parameter and what to do.
    """
    narrow = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if narrow and not has_master_copy:
        raise ValueError(
            f"{len(narrow)} trained parameters are 16-bit ({narrow[0]}, ...) and the optimizer keeps no fp32 copy: "
            "load the model in float32 and train with precision=bf16 (autocast), or use DeepSpeed with bf16 enabled"
        )
