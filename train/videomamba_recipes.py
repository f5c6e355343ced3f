"""Recipes of VideoMamba's training as data (videomamba_recipes.yaml): read, resolved, checked, turned into arguments.

    recipe = load_videomamba_recipe("k400-m", "public", ["frames=16"])
    arguments = training_arguments(recipe, "runs/k400", per_device_batch_size=8, world_size=8,
                                   **schedule_arguments(recipe))

`recipes.training_arguments` reads this recipe as it reads those of the stages.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from modeling_video_ma2mba.configuration_videomamba import VideoMambaConfig
from modeling_video_ma2mba.processing.clip_sampling import SAMPLING_RULES
from modeling_video_ma2mba.train.clip_masks import MASK_KINDS
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
    videomamba_problems,
    vision_config_fields,
)

_FILE = "videomamba_recipes.yaml"

# Whose value is taken where the paper and the public implementation differ.
VALUES = ("paper", "public")
_NUMBERS = (
    "learning_rate", "rate_batch", "min_learning_rate", "warmup_learning_rate", "global_batch_size", "epochs",
    "warmup_epochs", "max_steps", "weight_decay", "max_grad_norm", "layer_decay", "drop_path", "mixup", "cutmix",
    "label_smoothing", "random_erasing", "mask_ratio", "max_bad_share",
)  # fmt: skip
_WHOLE = (
    "frames", "image_size", "classes", "repeated_augmentation", "aligned_layers", "test_clips", "test_crops", "seed",
)  # fmt: skip
_OF_LABELS = ("classes", "mixup", "cutmix", "label_smoothing", "distillation")
_OTHER_CROPS = ("crop_scale", "auto_augment", "random_erasing")


@dataclass(frozen=True, kw_only=True)
class VideoMambaRecipe:
    """The settings of one training of VideoMamba.

    Attributes:
        name, values: which recipe this is, with whose values.
        size: a preset ("ti", "s", "m", "b"), or fields of `VideoMambaConfig`.
        frames: of a clip; None: images. image_size: in pixels. sampling: one of `clip_sampling.SAMPLING_RULES`.
        classes: of the head; 1: a number (regression); None: as the data or --class-names have them.
        learning_rate: for `rate_batch` samples in a step; it scales with the batch (`scaled`).
        min_learning_rate, warmup_learning_rate: where the cosine ends and the warm-up starts; `bounds_scale`: they
            scale with the batch too.
        global_batch_size: videos or images of an optimizer step, all devices.
        epochs, max_steps: length of the run; `max_steps` wins where it is given. warmup_epochs: part of `epochs`.
        betas, weight_decay, max_grad_norm: AdamW and clipping; 0.0 does not clip.
        layer_decay: factor from layer to layer, the rate of the head being 1; None: one rate for all.
        layer_decay_of_blocks: whether blocks take part; False: what stands before them alone, as published.
        drop_path: chance that the last mixer is left out.
        repeated_augmentation: augmented views of a sample. Of a clip, beside each other in a step, which then has so
            many more samples; of an image, within the epoch, which has no more samples than without.
        mixup, cutmix: their alpha, 0.0 is off. label_smoothing, random_erasing: share and chance.
        auto_augment: policy in timm's words, such as "rand-m9-mstd0.5-inc1".
        crop_scale: smallest and largest area of a random crop; None: the processor's crop. flip: mirror half of all.
        crop_sides: shares of the shorter side, falling, that a crop's width and height are drawn from
            (`multi_scale_crop.py`, which needs neither timm nor torchvision), in place of `crop_scale`.
        mask: masked pre-training with one of `clip_masks.MASK_KINDS`, no labels, and a CLIP model as teacher; None: a
            classifier. mask_ratio: share of the patches that are masked. aligned_layers: how many of the last layers
            learn the teacher's.
        distillation: learn from a smaller teacher's features too (`self_distillation.py`).
        test_clips, test_crops: views of a video in the test.
        precision: "bf16" (autocast over fp32 weights) or "fp32". checkpointing: `gradient_checkpointing_kwargs`.
        max_bad_share: share of bad rows or videos that stops the run. seed: of all that is random.
    """

    name: str
    values: str
    size: str | dict
    frames: int | None
    image_size: int
    learning_rate: float
    rate_batch: int
    global_batch_size: int
    epochs: float
    warmup_epochs: float
    min_learning_rate: float
    warmup_learning_rate: float
    bounds_scale: bool
    classes: int | None = None
    sampling: str = "sparse"
    max_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    max_grad_norm: float = 0.0
    layer_decay: float | None = None
    layer_decay_of_blocks: bool = False
    drop_path: float = 0.0
    repeated_augmentation: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    random_erasing: float = 0.0
    auto_augment: str | None = None
    crop_scale: tuple[float, float] | None = None
    flip: bool = False
    crop_sides: tuple[float, ...] | None = None
    mask: str | None = None
    mask_ratio: float | None = None
    aligned_layers: int | None = None
    distillation: bool = False
    test_clips: int = 1
    test_crops: int = 1
    precision: str = "bf16"
    checkpointing: dict | None = None
    max_bad_share: float = 0.05
    seed: int = 0

    def __post_init__(self):
        self._refuse(type_problems(self, _NUMBERS, _WHOLE))
        problems = bound_problems(
            self,
            positive=(
                "image_size", "rate_batch", "global_batch_size", "epochs", "repeated_augmentation", "test_clips",
                "aligned_layers", "test_crops", "frames", "classes", "max_steps", "layer_decay",
            ),
            shares=("drop_path", "label_smoothing", "random_erasing", "max_bad_share"),
            not_negative=("weight_decay", "max_grad_norm", "mixup", "cutmix", "seed"),
        )  # fmt: skip
        problems += training_problems(self) + videomamba_problems(self)
        if not 0 < self.min_learning_rate <= self.learning_rate or not 0 <= self.warmup_learning_rate:
            problems.append(
                f"learning_rate={self.learning_rate} must be at least min_learning_rate={self.min_learning_rate}, "
                f"both more than 0, and warmup_learning_rate={self.warmup_learning_rate} 0 or more"
            )
        sides = self.crop_sides
        if sides is not None and (not sides or not 1 >= sides[0] or not sides[-1] > 0 or sides != _falling(sides)):
            problems.append(f"crop_sides={list(sides)} must be shares, falling from at most 1 to above 0, or null")
        if sides is not None and (others := [name for name in _OTHER_CROPS if getattr(self, name)]):
            problems.append(f"crop_sides is alone: it goes with none of {', '.join(others)}")
        problems += [] if self.mask is None else self._problems_of_masks()
        if self.sampling not in SAMPLING_RULES:
            problems.append(f"sampling={self.sampling!r} must be one of {', '.join(SAMPLING_RULES)}")
        if self.classes == 1 and (self.mixup or self.cutmix or self.label_smoothing):
            problems.append(
                "a number (classes=1) cannot be mixed or smoothed: set mixup, cutmix, label_smoothing to 0"
            )
        if self.frames is None and (self.test_clips, self.test_crops) != (1, 1):
            problems.append("an image has one view: test_clips and test_crops must be 1")
        self._refuse(problems)

    def _problems_of_masks(self) -> list[str]:
        problems = []
        if self.mask not in MASK_KINDS:
            problems.append(f"mask={self.mask!r} must be one of {', '.join(MASK_KINDS)}, or null")
        if self.mask_ratio is None or not 0 < self.mask_ratio < 1:
            problems.append(f"mask_ratio={self.mask_ratio} must be above 0 and below 1")
        if self.aligned_layers is None:
            problems.append("aligned_layers must be a number")
        if self.frames is None:
            problems.append("masks are for clips: frames must be a number")
        if given := [name for name in _OF_LABELS if getattr(self, name)]:
            problems.append(f"masked pre-training has no labels: leave out {', '.join(given)}")
        return problems

    def _refuse(self, problems: list[str]) -> None:
        refuse(f"recipe {self.name}", problems)

    @property
    def views_at_once(self) -> int:
        """Augmented views of a sample that stand beside each other in a step."""
        return 1 if self.frames is None else self.repeated_augmentation

    @property
    def needs_extra(self) -> bool:
        """Whether timm and torchvision are needed."""
        random = (self.mixup, self.cutmix, self.random_erasing, self.auto_augment, self.crop_scale)
        return any(random) or (self.flip and self.crop_sides is None)

    @property
    def rate_scale(self) -> float:
        """What rates are multiplied by: samples of a step over `rate_batch`."""
        return self.global_batch_size * self.views_at_once / self.rate_batch

    @property
    def lr_scheduler(self) -> str:
        return "cosine_warmup_with_min_lr"

    @property
    def warmup_ratio(self) -> float:
        return self.warmup_epochs / self.epochs

    def scaled(self) -> "VideoMambaRecipe":
        """Return the recipe with the rates of its batch, once and for all: `rate_batch` is then the batch."""
        bounds = self.rate_scale if self.bounds_scale else 1.0
        return dataclasses.replace(
            self,
            learning_rate=self.learning_rate * self.rate_scale,
            min_learning_rate=min(self.min_learning_rate * bounds, self.learning_rate * self.rate_scale),
            warmup_learning_rate=self.warmup_learning_rate * bounds,
            rate_batch=self.global_batch_size * self.views_at_once,
        )

    def config(self, classes: int | None, names: list[str] | None = None) -> VideoMambaConfig:
        """Return the configuration of the model to train.

        Args:
            classes: of the head; None: there is none. names: of the classes.
        """
        config = VideoMambaConfig(**vision_config_fields(self))
        return config if classes is None else with_labels(config, classes, names)

    def as_dict(self) -> dict:
        """Return plain data, as it is written beside a run's output."""
        return as_plain(self)


def _falling(values: tuple) -> tuple:
    return tuple(sorted(set(values), reverse=True))


def with_labels(config: VideoMambaConfig, classes: int, names: list[str] | None) -> VideoMambaConfig:
    """Set the classes of a config, in place, and return it."""
    if names is None:
        names = [f"LABEL_{i}" for i in range(classes)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    # Said, not guessed from the labels: shares of classes are floating point numbers too.
    config.problem_type = "regression" if classes == 1 else "single_label_classification"
    return config


def videomamba_recipe_names() -> list[str]:
    """Return the names that `load_videomamba_recipe` knows."""
    return list(read_recipes(_FILE))


def videomamba_recipe_fields() -> list[str]:
    """Return the names of the fields that `load_videomamba_recipe` overrides."""
    return settings_of(VideoMambaRecipe, names=2)


def load_videomamba_recipe(name: str, values: str = "paper", overrides: list[str] = ()) -> VideoMambaRecipe:
    """Return a recipe of videomamba_recipes.yaml, with `overrides` such as "frames=16" or "mixup=0".

    Args:
        values: whose, where the paper and the public implementation differ: one of `VALUES`.

    Raises:
        ValueError: an unknown name or field, a value that is not allowed, frames that the recipe has no values for.
    """
    settings = recipe_of(read_recipes(_FILE), name)
    if values not in VALUES:
        raise ValueError(f"values={values!r}: choose {' or '.join(VALUES)}")
    fields = overridden(settings, overrides, videomamba_recipe_fields())
    fields = {key: _resolved(key, value, values, fields["frames"]) for key, value in fields.items()}
    return make_recipe(VideoMambaRecipe, f"recipe {name}", overrides, name=name, values=values, **fields)


def _resolved(key: str, value: Any, values: str, frames: int | None) -> Any:
    """Choose from a value that is given for each of `VALUES`, or for each number of frames."""
    while isinstance(value, dict) and value and key not in ("size", "checkpointing"):
        if set(value) == set(VALUES):
            value = value[values]
        elif frames in list(value):  # frames may be anything yet
            value = value[frames]
        else:
            given = ", ".join(map(str, value))
            raise ValueError(f"{key} is given for {given} frames, not for {frames}: add --override {key}=...")
    return value


def schedule_arguments(recipe: VideoMambaRecipe) -> dict:
    """Return transformers' arguments for the bounds of a scaled recipe's schedule."""
    return {
        "lr_scheduler_kwargs": {
            "min_lr_rate": recipe.min_learning_rate / recipe.learning_rate,
            "warmup_lr_rate": recipe.warmup_learning_rate / recipe.learning_rate,
        }
    }
