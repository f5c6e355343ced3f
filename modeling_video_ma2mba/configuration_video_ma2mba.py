"""Configurations: `Ma2mbaConfig` (the Mamba-2 language model) and `VideoMa2mbaConfig` (vision tower + language model).

They hold numbers only; nothing here builds a module.
"""

import math
from typing import Any, NoReturn

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, Mamba2Config, PreTrainedConfig, SiglipVisionConfig
from transformers.activations import ACT2FN

from .config_errors import ClearConfigErrors
from .configuration_videomamba import VideoMambaConfig
from .kernels import BACKENDS

# The published Mamba-2 sizes (state-spaces/mamba2-*): expand 2, head dim 64, state 128, one group.
_LANGUAGE_PRESETS = {
    "370m": {"hidden_size": 1024, "num_hidden_layers": 48},
    "1.3b": {"hidden_size": 2048, "num_hidden_layers": 48},
    "2.7b": {"hidden_size": 2560, "num_hidden_layers": 64},
}
# The paper's names of the whole model and the language model each one is built on (section 4).
_VIDEO_PRESETS = {"0.7b": "370m", "1.8b": "1.3b", "3.1b": "2.7b"}
_VISION_CONFIGS = {
    "clip_vision_model": CLIPVisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
    "videomamba": VideoMambaConfig,
}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# CLIP-ViT-L/14 at 336 px.
_CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
}

# What the authors' own checkpoints call themselves; this package converts them.
ORIGINAL_MODEL_TYPE = "llava_mamba"


def _choose(presets: dict[str, Any], name: str) -> Any:
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(presets)}")
    return presets[name]


@strict
class Ma2mbaConfig(ClearConfigErrors, Mamba2Config):
    """Configuration of the Mamba-2 language model: fields and defaults of transformers' `Mamba2Config`, and one more.

    Any Mamba-2 `config.json` (`model_type: mamba2`) is read as it is, and means the same thing here.

    Args:
        backend (`str`, *optional*, defaults to `"auto"`): what runs the scan and the causal convolution. `"torch"` is
            PyTorch alone, `"triton"` the kernels of mamba-ssm (an error where they are missing), `"auto"` takes the
            kernels on a CUDA device when they are installed.

    Example:

    ```python
    >>> from modeling_video_ma2mba import Ma2mbaConfig
    >>> Ma2mbaConfig.preset("1.3b").num_heads
    64
    ```
    """

    model_type = "ma2mba"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    backend: str = "auto"

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "Ma2mbaConfig":
        """Return the configuration of a published size: `"370m"`, `"1.3b"` or `"2.7b"`."""
        size = _choose(_LANGUAGE_PRESETS, name)
        fields = {
            **size,
            "num_heads": size["hidden_size"] * 2 // 64,
            "n_groups": 1,
            "vocab_size": 50288,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "tie_word_embeddings": True,
        }
        return cls(**{**fields, **overrides})

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        # A Mamba-2 folder is one of ours: say so before transformers warns about a foreign `model_type`.
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "video_ma2mba":
            raise ValueError(
                f"{pretrained_model_name_or_path} is a video model: load it with AutoModelForImageTextToText "
                "(its language model is model.model.language_model)"
            )
        if config_dict.get("model_type") == "mamba2":
            config_dict = {**config_dict, "model_type": cls.model_type}
        return config_dict, kwargs

    def validate_architecture(self):
        """Check sizes and the backend; raise `ValueError` naming the field."""
        super().validate_architecture()
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend!r} is not one of {', '.join(BACKENDS)}")
        sizes = ("hidden_size", "num_heads", "head_dim", "state_size", "num_hidden_layers", "n_groups", "vocab_size")
        for name in (*sizes, "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.conv_kernel < 2:
            raise ValueError(f"conv_kernel={self.conv_kernel} must be at least 2")
        if self.num_heads % self.n_groups:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of n_groups={self.n_groups}")
        limit = tuple(self.time_step_limit)
        if len(limit) != 2 or not 0 <= limit[0] <= limit[1]:
            raise ValueError(f"time_step_limit={limit} must be a smallest and a largest time step, 0 or more")
        if not 0 < self.time_step_min <= self.time_step_max < math.inf:
            raise ValueError(f"time_step_min={self.time_step_min}, time_step_max={self.time_step_max}: 0 < min <= max")
        if not 0 < self.layer_norm_epsilon < math.inf:
            raise ValueError(f"layer_norm_epsilon={self.layer_norm_epsilon} must be positive")
        if self.hidden_act not in ("silu", "swish"):
            raise ValueError(f"hidden_act={self.hidden_act!r} is not supported: Mamba-2 uses 'silu'")

    @property
    def intermediate_size(self) -> int:
        """Width of the mixer, `expand * hidden_size`."""
        return self.num_heads * self.head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: x, B and C together."""
        return self.intermediate_size + 2 * self.n_groups * self.state_size


@strict
class VideoMa2mbaConfig(ClearConfigErrors, PreTrainedConfig):
    """Configuration of Video-Ma²mba: a vision tower, a 2-layer MLP projector and a Mamba-2 language model.

    Args:
        vision_config (`dict` or config, *optional*): the vision tower: CLIP (`clip_vision_model`, the default:
            CLIP-ViT-L/336), SigLIP (`siglip_vision_model`) or VideoMamba (`videomamba`), which reads `num_frames`
            frames at a time.
        text_config (`dict` or `Ma2mbaConfig`, *optional*): the language model; `model_type: mamba2` is read as
            `ma2mba`. Default: the 370M preset.
        image_token_id (`int`, *optional*, defaults to 50277): placeholder of one visual token of an image.
        video_token_id (`int`, *optional*, defaults to 50278): placeholder of one visual token of a video.
        vision_feature_layer (`int`, *optional*, defaults to -2): hidden state of the tower that is read, as in its
            `hidden_states`; -1 is the output of its last layer (VideoMamba: after the final norm). The layers behind
            it are kept in the checkpoint but never run.
        spatial_pool_stride (`int`, *optional*, defaults to 2): bilinear pooling of the patch grid, per side.
        projector_hidden_act (`str`, *optional*, defaults to `"gelu"`): activation between the projector's two layers.
        image_mean, image_std (`list[float]`, *optional*): per-channel normalisation of frames scaled to 0..1, applied
            to uint8 frames on the device. Default: those of a VideoMamba tower's config, else CLIP's.

    Example:

    ```python
    >>> from modeling_video_ma2mba import VideoMa2mbaConfig
    >>> VideoMa2mbaConfig.preset("0.7b").tokens_per_frame
    144
    ```
    """

    model_type = "video_ma2mba"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    sub_configs = {"vision_config": PreTrainedConfig, "text_config": Ma2mbaConfig}  # noqa: RUF012

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 50277
    video_token_id: int = 50278
    vision_feature_layer: int = -2
    spatial_pool_stride: int = 2
    projector_hidden_act: str = "gelu"
    image_mean: list[float] | tuple[float, ...] | None = None
    image_std: list[float] | tuple[float, ...] | None = None
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        if not __name__.startswith("transformers_modules."):
            # The installed package has its own pipeline; a folder's copy of it would need `trust_remote_code`.
            kwargs.pop("custom_pipelines", None)
        if not isinstance(self.vision_config, PreTrainedConfig):
            fields = dict(self.vision_config or _CLIP_L_336)
            model_type = fields.pop("model_type", "clip_vision_model")
            self.vision_config = _choose_vision_config(model_type)(**fields)
        if self.text_config is None:
            self.text_config = Ma2mbaConfig.preset("370m")
        elif getattr(self.text_config, "model_type", None) != Ma2mbaConfig.model_type:
            fields = self.text_config if isinstance(self.text_config, dict) else self.text_config.to_dict()
            model_type = fields.get("model_type", Ma2mbaConfig.model_type)
            if model_type not in ("mamba2", Ma2mbaConfig.model_type):
                raise ValueError(f"text_config has model_type={model_type!r}; allowed are 'ma2mba' and 'mamba2'")
            self.text_config = Ma2mbaConfig(**{k: v for k, v in fields.items() if k != "model_type"})
        # One switch for the whole model: the head is tied exactly where the language model's was.
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        for name, default in (("image_mean", _CLIP_MEAN), ("image_std", _CLIP_STD)):
            given = getattr(self, name)
            setattr(self, name, list(getattr(self.vision_config, name, default) if given is None else given))
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "VideoMa2mbaConfig":
        """Return the configuration of one of the paper's models: `"0.7b"`, `"1.8b"` or `"3.1b"`."""
        return cls(text_config=Ma2mbaConfig.preset(_choose(_VIDEO_PRESETS, name)), **overrides)

    def validate_vision(self):
        """Check everything the vision path relies on; raise `ValueError` naming the field."""
        vision = self.vision_config
        if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
            raise ValueError(f"vision_config: image_size={vision.image_size!r} and patch_size must be whole numbers")
        if vision.image_size < vision.patch_size or vision.patch_size < 1:
            raise ValueError(
                f"vision_config: image_size={vision.image_size} must be at least patch_size={vision.patch_size}"
            )
        allowed = [-i for i in range(1, vision.num_hidden_layers + 2)] + list(range(vision.num_hidden_layers + 1))
        if self.vision_feature_layer not in allowed:
            raise ValueError(
                f"vision_feature_layer={self.vision_feature_layer} is outside -{vision.num_hidden_layers + 1}"
                f"..{vision.num_hidden_layers} for a tower of {vision.num_hidden_layers} layers"
            )
        if self.spatial_pool_stride < 1:
            raise ValueError(f"spatial_pool_stride={self.spatial_pool_stride} must be at least 1")
        if self.image_token_id == self.video_token_id:
            raise ValueError(f"image_token_id and video_token_id are both {self.image_token_id}; they must differ")
        for name in ("image_token_id", "video_token_id"):
            if not 0 <= getattr(self, name) < self.text_config.vocab_size:
                raise ValueError(
                    f"{name}={getattr(self, name)} is outside the {self.text_config.vocab_size} rows of the embedding"
                )
        if getattr(vision, "tubelet_size", 1) != 1:
            raise ValueError(
                f"vision_config: tubelet_size={vision.tubelet_size}; every frame has visual tokens of its own, so it "
                "must be 1"
            )
        if vision.num_channels != 3:
            raise ValueError(f"vision_config: num_channels={vision.num_channels}; frames have 3")
        if len(self.image_mean) != 3 or not all(math.isfinite(mean) for mean in self.image_mean):
            raise ValueError(f"image_mean={self.image_mean} must be 3 numbers")
        if len(self.image_std) != 3 or not all(0 < std < math.inf for std in self.image_std):
            raise ValueError(f"image_std={self.image_std} must be 3 positive numbers")
        if self.projector_hidden_act not in ACT2FN:
            raise ValueError(f"projector_hidden_act={self.projector_hidden_act!r} is no activation of transformers")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == ORIGINAL_MODEL_TYPE:
            refuse_original(str(pretrained_model_name_or_path))
        return config_dict, kwargs

    @property
    def feature_layers_run(self) -> int:
        """Number of the tower's layers that run: those up to `vision_feature_layer`."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else self.vision_config.num_hidden_layers + 1 + layer

    @property
    def frames_per_clip(self) -> int:
        """Frames of a video that the tower reads together: `num_frames` of VideoMamba, 1 where pictures are read."""
        return getattr(self.vision_config, "num_frames", None) or 1

    @property
    def pooled_grid(self) -> int:
        """Side of the pooled patch grid: ceil((image_size // patch_size) / spatial_pool_stride)."""
        return -(-(self.vision_config.image_size // self.vision_config.patch_size) // self.spatial_pool_stride)

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of one frame or image: 144 for CLIP-L/336 pooled 2 x 2 (paper, section 3.4)."""
        return self.pooled_grid**2


def refuse_original(folder: str) -> NoReturn:
    """Say how the authors' checkpoint becomes one that loads."""
    raise ValueError(
        f"{folder} is a checkpoint in the authors' layout ({ORIGINAL_MODEL_TYPE}): convert it first, with "
        f"`video-ma2mba convert --checkpoint {folder} --output OURS`, and load OURS"
    )


class LlavaMambaConfig(PreTrainedConfig):
    """Registered for `model_type: llava_mamba`, so that Auto classes say what to do with the authors' checkpoints."""

    model_type = ORIGINAL_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        refuse_original(config_dict.get("_name_or_path") or "FOLDER")


def _choose_vision_config(model_type: str) -> type[PreTrainedConfig]:
    if not isinstance(model_type, str) or model_type not in _VISION_CONFIGS:
        raise ValueError(f"vision_config has model_type={model_type!r}; allowed are {', '.join(_VISION_CONFIGS)}")
    return _VISION_CONFIGS[model_type]


__all__ = ["Ma2mbaConfig", "VideoMa2mbaConfig"]
