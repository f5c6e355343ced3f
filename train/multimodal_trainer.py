"""`MultiModalTrainer`: the project's Trainer with pairs, schedule and teacher of multi-modal pre-training."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from modeling_video_ma2mba.train.clip_masks import draw_masks, visible_places
from modeling_video_ma2mba.train.clip_teacher import ClipTeacher
from modeling_video_ma2mba.train.multimodal_recipes import MultiModalRecipe
from modeling_video_ma2mba.train.multimodal_set import PairSampler
from modeling_video_ma2mba.train.trainer import VideoMa2mbaTrainer, count_frames

LOSSES = ("vtc_loss", "vtm_loss", "mlm_loss", "uta_loss")


class MultiModalTrainer(VideoMa2mbaTrainer):
    """Trains a multi-modal VideoMamba by a `MultiModalRecipe`; its four losses are in the log.

    Args:
        teacher: for recipes with masks; the model then is a `VideoMambaMultiModalForMaskedPretraining`.
    """

    def __init__(self, *args, recipe: MultiModalRecipe, teacher: ClipTeacher | None = None, **kwargs):
        super().__init__(*args, recipe=recipe, **kwargs)
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        self._losses: dict[str, list[torch.Tensor]] = {}

    def parameter_groups(self, model) -> list[dict]:
        return multimodal_parameter_groups(model, self.recipe)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            warmup = round(self.recipe.warmup_ratio * num_training_steps)
            self.lr_scheduler = LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                lambda step: rate_share(step, warmup, num_training_steps, self.recipe.min_rate),
            )
        return self.lr_scheduler

    def count_inputs(self, inputs) -> dict[str, int]:
        return {"pairs": len(inputs["input_ids"]), "frames": count_frames(inputs)}

    def part_of(self, name: str) -> str:
        return "vision" if "vision_encoder." in name else "text" if "text_encoder." in name else "heads"

    def _get_train_sampler(self, train_dataset=None):
        data = self.train_dataset if train_dataset is None else train_dataset
        recipe = self.recipe
        return PairSampler(data.samples, recipe.global_batch_size, recipe.seed, lambda: self.state.global_step)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.teacher is not None:
            with self.accelerator.autocast():
                inputs = self.with_teacher(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for name in LOSSES:
            if outputs.get(name) is not None:
                self._losses.setdefault(name, []).append(outputs[name].detach().float())
        return (loss, outputs) if return_outputs else loss

    def with_teacher(self, inputs: dict) -> dict:
        """Return a batch with the visible tokens' places and what the teacher makes of them."""
        inputs = dict(inputs)
        name, ratio = "pixel_values_videos", self.recipe.video_mask
        if "pixel_values" in inputs:
            name, ratio = "pixel_values", self.recipe.image_mask
        encoder = self.accelerator.unwrap_model(self.model).vision_encoder
        pixels = encoder.load_frames(**{name: inputs[name]})  # (B, F, 3, H, W)
        features, attention = self.teacher(pixels)  # (1, B, L, C), (B, F, S)
        visible = visible_places(draw_masks("attention", ratio, inputs.pop("mask_noise"), attention))  # (B, V)
        features = features[0].gather(1, visible[:, :, None].expand(-1, -1, features.shape[-1]))  # (B, V, C)
        inputs[name] = pixels if name == "pixel_values_videos" else pixels[:, 0]
        return {**inputs, "visible": visible, "teacher_features": features}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._losses.items()}
            self._losses = {}
        super().log(logs, start_time)


def rate_share(step: int, warmup: int, total: int, lowest: float) -> float:
    """Return the share of the peak learning rate: linear to 1, then half a cosine to 0 that stops at `lowest`."""
    if step < warmup:
        return step / warmup
    done = (step - warmup) / max(1, total - warmup)
    return max(lowest, (1 + math.cos(math.pi * min(1.0, done))) / 2)


def multimodal_parameter_groups(model: nn.Module, recipe: MultiModalRecipe) -> list[dict]:
    """Return the optimizer's groups: weight decay for all but vectors and biases, position embeddings included.

    So were the published models trained: nothing is spared by name here, other than in training of classifiers.
    """
    groups = []
    for decays in (True, False):
        own = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (parameter.ndim > 1 and not name.endswith(".bias")) == decays
        ]
        groups.append(
            {
                "params": own,
                "lr": recipe.learning_rate,
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "name": "decayed" if decays else "not decayed",
            }
        )
    return groups
