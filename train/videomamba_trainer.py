"""`VideoMambaTrainer`: the project's Trainer with VideoMamba's layer decay, order of clips and teacher."""

import re

import torch
from torch import nn

from modeling_video_ma2mba.modeling_videomamba import VideoMambaModel
from modeling_video_ma2mba.train.clip_set import ClipSampler
from modeling_video_ma2mba.train.self_distillation import teacher_features
from modeling_video_ma2mba.train.trainer import VideoMa2mbaTrainer, count_frames
from modeling_video_ma2mba.train.videomamba_recipes import VideoMambaRecipe

# What is not decayed beside vectors: the published rule, which decays A_log, the convolutions and the projections.
_NEVER_DECAYED = ("pos_embed", "cls_token", "temporal_pos_embedding")
_BEFORE_BLOCKS = {"pos_embed", "cls_token", "patch_embed"}


class VideoMambaTrainer(VideoMa2mbaTrainer):
    """Trains a VideoMamba classifier by a `VideoMambaRecipe`, already scaled.

    Args:
        teacher: encoder whose features the model learns too; the model is then a student of `self_distillation`.
    """

    def __init__(self, *args, recipe: VideoMambaRecipe, teacher: VideoMambaModel | None = None, **kwargs):
        super().__init__(*args, recipe=recipe, **kwargs)
        self.teacher = None if teacher is None else teacher.to(self.args.device)

    def parameter_groups(self, model) -> list[dict]:
        return videomamba_parameter_groups(model, self.recipe)

    def part_of(self, name: str) -> str:
        return "head" if "head." in name else "blocks" if ".layers." in name else "embedding"

    def count_inputs(self, inputs) -> dict[str, int]:
        return {"clips": len(inputs["labels"]), "frames": count_frames(inputs)}

    def with_teacher(self, inputs: dict) -> dict:
        """Return a batch with what the teacher makes of it."""
        return {**inputs, "teacher_features": teacher_features(self.teacher, inputs)}

    def _get_train_sampler(self, train_dataset=None):
        data = self.train_dataset if train_dataset is None else train_dataset
        recipe = self.recipe
        repeats = recipe.repeated_augmentation // recipe.views_at_once
        return ClipSampler(len(data), repeats, recipe.global_batch_size, recipe.seed, lambda: self.state.global_step)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.teacher is not None and model.training:
            with self.accelerator.autocast():
                inputs = self.with_teacher(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def rate_factor(name: str, depth: int, recipe: VideoMambaRecipe) -> float:
    """Return what the learning rate of a parameter is multiplied by.

    Layers count from 0 (what stands before the blocks) to depth + 1 (final norm, head, temporal positions); the factor
    is decay^(depth + 1 - layer). The published training had blocks at the rate of the head.
    """
    if recipe.layer_decay is None:
        return 1.0
    block = re.search(r"\.layers\.(\d+)\.", name)
    if block is not None:
        return recipe.layer_decay ** (depth - int(block[1])) if recipe.layer_decay_of_blocks else 1.0
    return recipe.layer_decay ** (depth + 1) if set(name.split(".")) & _BEFORE_BLOCKS else 1.0


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Return whether weight decay applies: not to vectors, biases and position embeddings."""
    return parameter.ndim > 1 and not name.endswith((".bias", *_NEVER_DECAYED))


def videomamba_parameter_groups(model: nn.Module, recipe: VideoMambaRecipe) -> list[dict]:
    """Return the optimizer's groups over the trained parameters; first the head's rate, which is logged."""
    depth, groups = model.config.num_hidden_layers, {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor, decays = rate_factor(name, depth, recipe), is_decayed(name, parameter)
        group = groups.setdefault(
            (-factor, not decays),
            {
                "params": [],
                "lr": recipe.learning_rate * factor,
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "name": f"rate x {factor:.3g}, {'decayed' if decays else 'not decayed'}",
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
