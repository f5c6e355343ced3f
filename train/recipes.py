"""Recipes: the settings of a training stage as data (recipes.yaml), checked, overridden, and turned into arguments.

recipe = load_recipe("3.1b", "2", ["learning_rate=2e-5", "max_frames=16"])
arguments = training_arguments(recipe, "runs/stage2", per_device_batch_size=1, world_size=8)
"""

import dataclasses
from dataclasses import dataclass

from transformers import TrainingArguments

from modeling_video_ma2mba.train.recipe_data import (
    as_plain,
    bound_problems,
    make_recipe,
    overridden,
    read_recipes,
    recipe_of,
    refuse,
    settings_of,
    training_problems,
    type_problems,
)

STAGES = ("1", "1.5", "2")
PARTS = ("projector", "language_model", "vision_tower")
_FILE = "recipes.yaml"
_NUMBERS = (
    "learning_rate", "vision_learning_rate", "global_batch_size", "epochs", "max_steps", "warmup_ratio",
    "weight_decay", "max_grad_norm", "fps", "max_frames", "lora_rank", "max_bad_share", "seed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one stage.

    Attributes:
        name, stage: which recipe this is.
        trains: parts that are trained, of `PARTS`; the others are frozen. The head belongs to the language model.
        learning_rate: of projector and language model. vision_learning_rate: of the tower; None: the same.
        global_batch_size: samples of an optimizer step over all devices and accumulated batches.
        epochs, max_steps: length of the run; `max_steps` wins where it is given.
        warmup_ratio: share of the steps. lr_scheduler: a name of transformers' `SchedulerType`.
        betas, weight_decay, max_grad_norm: AdamW and clipping.
        precision: "bf16" (autocast over fp32 weights) or "fp32".
        fps: frames sampled per second. max_frames: longer videos are sampled at this many, uniformly; None: no limit.
        checkpointing: `gradient_checkpointing_kwargs`.
        lora_rank: rank of LoRA adapters on the language model's projections, which are then trained instead of its
            weights; None: no LoRA.
        max_bad_share: share of bad rows in the data that stops the run.
        seed: of shuffling and new weights.
    """

    name: str
    stage: str
    trains: tuple[str, ...]
    learning_rate: float
    global_batch_size: int
    epochs: float
    vision_learning_rate: float | None = None
    max_steps: int | None = None
    warmup_ratio: float = 0.1
    lr_scheduler: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    precision: str = "bf16"
    fps: float = 1.0
    max_frames: int | None = None
    checkpointing: dict | None = None
    lora_rank: int | None = None
    max_bad_share: float = 0.05
    seed: int = 0

    def __post_init__(self):
        title = f"recipe {self.name}, stage {self.stage}"
        refuse(title, type_problems(self, _NUMBERS))
        problems = bound_problems(
            self,
            positive=(
                "learning_rate", "global_batch_size", "epochs", "max_grad_norm", "fps", "vision_learning_rate",
                "max_steps", "max_frames", "lora_rank",
            ),
            shares=("warmup_ratio", "max_bad_share"),
            not_negative=("weight_decay",),
        )  # fmt: skip
        problems += training_problems(self)
        if not self.trains or set(self.trains) - set(PARTS):
            problems.append(f"trains={list(self.trains)} must name some of {', '.join(PARTS)}")
        elif self.lora_rank is not None and "vision_tower" in self.trains:
            problems.append(
                f"lora_rank={self.lora_rank} with trains={list(self.trains)}: LoRA leaves the vision tower as it is; "
                'add --override "trains=[projector, language_model]"'
            )
        refuse(title, problems)

    def as_dict(self) -> dict:
        """Return plain data, as it is written beside a run's output."""
        return as_plain(self)


def recipe_names() -> list[str]:
    """Return the names that `load_recipe` knows."""
    return list(read_recipes(_FILE))


def recipe_fields() -> list[str]:
    """Return the names of the fields that `load_recipe` overrides."""
    return settings_of(Recipe, names=2)


def load_recipe(name: str, stage: str, overrides: list[str] = ()) -> Recipe:
    """Return a recipe of recipes.yaml, with `overrides` such as "learning_rate=2e-5" or "trains=[projector]".

    Raises:
        ValueError: an unknown name, stage or field, or a value that is not allowed.
    """
    stages = recipe_of(read_recipes(_FILE), name)
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; known are {', '.join(STAGES)}")
    fields = overridden(stages[float(stage) if "." in stage else int(stage)], overrides, recipe_fields())
    if isinstance(fields["trains"], str):
        fields["trains"] = (fields["trains"],)
    return make_recipe(Recipe, f"recipe {name}, stage {stage}", overrides, name=name, stage=stage, **fields)


def accumulation_steps(recipe: Recipe, per_device_batch_size: int, world_size: int) -> int:
    """Return how many batches make the recipe's global batch.

    Raises:
        ValueError: they cannot make it exactly; names the sizes that can.
    """
    if per_device_batch_size < 1:
        raise ValueError(f"{per_device_batch_size} samples on a device at a time: at least 1")
    at_once = per_device_batch_size * world_size
    if recipe.global_batch_size % at_once:
        fitting = [n for n in range(1, 65) if recipe.global_batch_size % (n * world_size) == 0]
        raise ValueError(
            f"a global batch of {recipe.global_batch_size} cannot be made of {world_size} devices with "
            f"{per_device_batch_size} samples each; samples per device that fit: {fitting or 'none'}; "
            "or --override global_batch_size=..."
        )
    return recipe.global_batch_size // at_once


def training_arguments(
    recipe: Recipe, output_dir: str, per_device_batch_size: int, world_size: int, **others
) -> TrainingArguments:
    """Return transformers' arguments for a recipe; `others` are further fields of theirs."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    others |= {checkpointing: recipe.checkpointing is not None, f"{checkpointing}_kwargs": recipe.checkpointing}
    return TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=per_device_batch_size,
        gradient_accumulation_steps=accumulation_steps(recipe, per_device_batch_size, world_size),
        num_train_epochs=recipe.epochs,
        max_steps=-1 if recipe.max_steps is None else recipe.max_steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a share of the steps
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.precision == "bf16",
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False},  # the dispatcher slices lists of frames tensor by tensor
        seed=recipe.seed,
        **others,
    )
