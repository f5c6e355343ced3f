"""`VideoMa2mbaTrainer`: transformers' Trainer with the parameter groups of a recipe, what long video needs in the log,
and a guard that stops at the first number that is not finite.
"""

import dataclasses
import math
import sys
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from modeling_video_ma2mba.train.length_sampler import LengthSampler
from modeling_video_ma2mba.train.parameter_groups import check_master_weights, parameter_groups, part_of
from modeling_video_ma2mba.train.recipes import Recipe


class VideoMa2mbaTrainer(Trainer):
    """Trains a `VideoMa2mbaForConditionalGeneration` by a `Recipe`, samples of similar length in one step.

    Beside the Trainer's own numbers the log has `tokens_per_second`, `frames_per_second` (of this process),
    `peak_memory_gb` (of the GPU; on a CPU of this process) and, of the last step, the gradient norm of each trained
    part before clipping.

    Args:
        recipe: learning rates and weight decay; everything else is in `args` (`recipes.training_arguments`).

    Raises:
        ValueError: 16-bit weights without a master copy; a stream of samples with `dispatch_batches`.
        FloatingPointError: in training, a loss or gradient that is not finite; names the first layer it comes from.
            Weights and checkpoints are those of the step before.
    """

    def __init__(self, *args, recipe: Recipe, **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        config = self.args.accelerator_config
        if isinstance(self.train_dataset, IterableDataset) and config.dispatch_batches is not False:
            raise ValueError(
                f"dispatch_batches={config.dispatch_batches} with a stream of samples: the first process would read "
                "all batches and slice lists of frames as if they were tensors; pass "
                'TrainingArguments(accelerator_config={"dispatch_batches": False})'
            )
        check_master_weights(self.model, has_master_copy=self.is_deepspeed_enabled)
        self._read = Counter()
        self._since = time.perf_counter()
        self._norms = {}

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = self.parameter_groups(self.model if model is None else model)
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **kwargs)
            self._report_optimizer_size(groups)
        return self.optimizer

    def parameter_groups(self, model) -> list[dict]:
        """Return the optimizer's groups."""
        return parameter_groups(model, self.recipe)

    def count_inputs(self, inputs) -> dict[str, int]:
        """Return what a batch holds, by the unit that the log counts per second."""
        return {"tokens": inputs["input_ids"].numel(), "frames": count_frames(inputs)}

    def part_of(self, name: str) -> str:
        """Return the part of the model that a parameter belongs to; the log has a gradient norm for each."""
        return part_of(name)

    def _get_train_sampler(self, train_dataset=None):
        """Group the samples of a data set with an attribute `lengths` by length."""
        lengths = getattr(self.train_dataset if train_dataset is None else train_dataset, "lengths", None)
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthSampler(lengths, size, self.args.seed, lambda: self.state.global_step)

    def _report_optimizer_size(self, groups) -> None:
        """Tell the checkpoint planner what the optimizer will hold on this device."""
        trained = sum(parameter.numel() for group in groups for parameter in group["params"])
        names = self.args.optim.lower()
        per_parameter = 2 if "8bit" in names else 4 if "sgd" in names or "adafactor" in names else 8
        if self.is_deepspeed_enabled:  # ZeRO's own fp32 copy and its moments, shared out over the ranks
            per_parameter = 12 / max(1, self.args.world_size)
        for module in self.model.modules():
            checkpointing = getattr(module, "checkpointing", None)
            if checkpointing is not None and checkpointing.settings.optimizer_bytes is None:
                size = int(trained * per_parameter)
                checkpointing.settings = dataclasses.replace(checkpointing.settings, optimizer_bytes=size)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = found[0] if return_outputs else found
        if model.training:
            if not torch.isfinite(loss):
                self._stop(
                    f"the loss is {loss.item()}", first_bad_module(self.accelerator.unwrap_model(model), inputs)
                )
            self._read.update(self.count_inputs(inputs))
        return found

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.is_deepspeed_enabled:  # it keeps gradients to itself, and has stepped already
            norm = model.get_global_grad_norm()
            if norm is not None and not math.isfinite(norm):
                self._stop(f"the gradient's norm is {float(norm)}", None, "Checkpoints")
        elif self.accelerator.sync_gradients:  # every step: a bad one must not reach the weights
            norms = gradient_norms(self.accelerator.unwrap_model(model), self.part_of)
            bad = [part for part, norm in norms.items() if not torch.isfinite(norm)]
            if bad:
                named = self.accelerator.unwrap_model(model).named_parameters()
                where = next(n for n, p in named if p.grad is not None and not torch.isfinite(p.grad).all())
                self._stop("a gradient is not finite", where)
            self._norms = {f"grad_norm_{part}": norm.item() for part, norm in norms.items()}
        return loss

    def _stop(self, what: str, where: str | None, unharmed: str = "Weights and checkpoints") -> None:
        step = self.state.global_step
        raise FloatingPointError(
            f"step {step + 1}: {what}; first seen in {where or 'the sum over the batch'}. {unharmed} are "
            f"those of step {step}: lower the learning rate, or look at this batch"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.perf_counter()
            seconds, self._since = max(now - self._since, 1e-9), now
            logs |= {f"{unit}_per_second": round(count / seconds, 2) for unit, count in self._read.items()}
            self._read = Counter(dict.fromkeys(self._read, 0))
            logs |= self._norms
            peak = peak_memory(self.args.device)
            if peak is not None:
                logs["peak_memory_gb"] = round(peak / 1e9, 3)
        super().log(logs, start_time)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that tensors took on a GPU so far, or that this process held; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def count_frames(inputs: dict) -> int:
    """Return the frames and images of a batch, in any of the forms that the model takes."""
    total = 0
    for key in ("pixel_values", "pixel_values_videos"):
        given = inputs.get(key)
        if given is None:
            continue
        if torch.is_tensor(given):
            total += given.shape[0] * (given.shape[1] if given.ndim == 5 else 1)
        elif isinstance(given, (list, tuple)):
            total += sum(len(video) for video in given)
        else:
            total += len(given)
    return total


def gradient_norms(model: nn.Module, part_of: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """Return the gradient norm of each part of the model that has gradients."""
    squares = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = part_of(name)
            squares[part] = squares.get(part, 0) + parameter.grad.float().square().sum()
    return {part: square.sqrt() for part, square in squares.items()}


def first_bad_module(model: nn.Module, inputs: dict) -> str | None:
    """Run the forward again and return the name of the first module whose output is not finite, None if all are.

    A module that contains others counts after them, so the innermost one is named.
    """
    found = []

    def look(name):
        def hook(module, arguments, output):
            tensors = output if isinstance(output, tuple) else (output,)
            values = [t for t in tensors if torch.is_tensor(t) and t.is_floating_point()]
            if not found and any(not torch.isfinite(t).all() for t in values):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
