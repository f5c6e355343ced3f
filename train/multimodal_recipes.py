"""Recipes of multi-modal pre-training as data (multimodal_recipes.yaml): read, overridden, checked.

    recipe = load_multimodal_recipe("masked-5m", ["frames=4"])
    arguments = training_arguments(recipe, "runs/5m", per_device_batch_size=128, world_size=16)

`recipes.training_arguments`, `clip_set.ClipTrainingSet` and `augmentation.ClipAugmentation` read this recipe too.
"""

from dataclasses import dataclass
from typing import ClassVar

from transformers import BertConfig

from modeling_video_ma2mba.configuration_videomamba import VideoMambaConfig
from modeling_video_ma2mba.configuration_videomamba_multimodal import VideoMambaMultiModalConfig
from modeling_video_ma2mba.train.recipe_data import (
    as_plain,
    bound_problems,
    config_problems,
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

_FILE = "multimodal_recipes.yaml"

_NUMBERS = (
    "learning_rate", "min_rate", "global_batch_size", "epochs", "warmup_epochs", "max_steps", "weight_decay",
    "max_grad_norm", "drop_path", "image_mask", "video_mask", "text_mask", "max_bad_share",
)  # fmt: skip
_WHOLE = ("fusion_layer", "projection_size", "frames", "image_size", "max_text_tokens", "seed")


@dataclass(frozen=True, kw_only=True)
class MultiModalRecipe:
    """The settings of one pre-training.

    Attributes:
        name: which recipe this is.
        size: of the vision encoder, a preset ("ti", "s", "m", "b") or fields of `VideoMambaConfig`.
        text: "bert-base", or fields of `BertConfig`. fusion_layer, projection_size: of `VideoMambaMultiModalConfig`.
        frames: of a clip. image_size: in pixels. drop_path: chance that the last mixer is left out.
        learning_rate: at its peak, for any batch. min_rate: share of it that the cosine does not fall below.
        global_batch_size: pairs of an optimizer step, all devices; images or videos, not both.
        epochs, max_steps: length of the run; `max_steps` wins where it is given. warmup_epochs: part of `epochs`.
        betas, weight_decay, max_grad_norm: AdamW and clipping; 0.0 does not clip.
        image_mask, video_mask: share of the patches of a frame that are masked, by the teacher's attention, and
            alignment to the teacher (UTA); both None: neither.
        text_mask: share of the words that are masked (MLM).
        max_text_tokens: longer texts are cut.
        crop_scale: smallest and largest area of a random crop; None: whole frames, stretched. flip: mirror half.
        precision: "bf16" (autocast over fp32 weights) or "fp32". checkpointing: `gradient_checkpointing_kwargs`.
        max_bad_share: share of bad rows or videos that stops the run. seed: of all that is random.
    """

    name: str
    size: str | dict
    text: str | dict
    fusion_layer: int
    projection_size: int
    frames: int
    image_size: int
    learning_rate: float
    global_batch_size: int
    epochs: float
    warmup_epochs: float
    min_rate: float = 0.01
    drop_path: float = 0.0
    max_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    max_grad_norm: float = 0.0
    image_mask: float | None = None
    video_mask: float | None = None
    text_mask: float = 0.5
    max_text_tokens: int = 32
    crop_scale: tuple[float, float] | None = None
    flip: bool = False
    precision: str = "bf16"
    checkpointing: dict | None = None
    max_bad_share: float = 0.05
    seed: int = 0

    # What the parts that are shared with the training of classifiers ask for.
    sampling: ClassVar[str] = "middle"
    views_at_once: ClassVar[int] = 1
    auto_augment: ClassVar[None] = None
    random_erasing: ClassVar[float] = 0.0
    lr_scheduler: ClassVar[str] = "constant"  # the trainer makes its own

    def __post_init__(self):
        self._refuse(type_problems(self, _NUMBERS, _WHOLE))
        problems = bound_problems(
            self,
            positive=(
                "frames", "image_size", "learning_rate", "global_batch_size", "epochs", "max_steps", "text_mask",
                "projection_size", "fusion_layer",
            ),
            shares=("min_rate", "drop_path", "text_mask", "max_bad_share"),
            not_negative=("weight_decay", "max_grad_norm", "seed"),
        )  # fmt: skip
        problems += training_problems(self) + videomamba_problems(self)
        masks = (self.image_mask, self.video_mask)
        if (None in masks) != (masks == (None, None)) or not all(mask is None or 0 < mask < 1 for mask in masks):
            problems.append(
                f"image_mask={self.image_mask}, video_mask={self.video_mask} must both be between 0 and 1, or null"
            )
        if self.max_text_tokens < 3:
            problems.append(f"max_text_tokens={self.max_text_tokens} must be at least 3: [CLS], a word and [SEP]")
        problems += config_problems(self, "text", ("bert-base",), BertConfig)
        self._refuse(problems)

    def _refuse(self, problems: list[str]) -> None:
        refuse(f"recipe {self.name}", problems)

    @property
    def is_masked(self) -> bool:
        """Whether patches are masked and aligned to a teacher."""
        return self.video_mask is not None

    @property
    def needs_extra(self) -> bool:
        """Whether timm and torchvision are needed."""
        return self.crop_scale is not None or self.flip

    @property
    def warmup_ratio(self) -> float:
        return self.warmup_epochs / self.epochs

    def vision_config(self) -> VideoMambaConfig:
        """Return the vision encoder to train."""
        return VideoMambaConfig(**vision_config_fields(self))

    def config(self, text: BertConfig | None, vocabulary: int) -> VideoMambaMultiModalConfig:
        """Return the configuration of the model to train.

        Args:
            text: of the BERT that it begins with; None: that of the recipe. vocabulary: of the tokenizer.
        """
        if text is None:
            text = BertConfig(**{**({} if isinstance(self.text, str) else self.text), "vocab_size": vocabulary})
        return VideoMambaMultiModalConfig(
            vision_config=self.vision_config(),
            text_config=text,
            fusion_layer=self.fusion_layer,
            projection_size=self.projection_size,
        )

    def as_dict(self) -> dict:
        """Return plain data, as it is written beside a run's output."""
        return as_plain(self)


def multimodal_recipe_names() -> list[str]:
    """Return the names that `load_multimodal_recipe` knows."""
    return list(read_recipes(_FILE))


def multimodal_recipe_fields() -> list[str]:
    """Return the names of the fields that `load_multimodal_recipe` overrides."""
    return settings_of(MultiModalRecipe, names=1)


def load_multimodal_recipe(name: str, overrides: list[str] = ()) -> MultiModalRecipe:
    """Return a recipe of multimodal_recipes.yaml, with `overrides` such as "frames=4".

    Raises:
        ValueError: an unknown name or field, or a value that is not allowed.
    """
    fields = overridden(recipe_of(read_recipes(_FILE), name), overrides, multimodal_recipe_fields())
    return make_recipe(MultiModalRecipe, f"recipe {name}", overrides, name=name, **fields)
