"""Configuration of VideoMamba (arXiv 2403.06977), the bidirectional Mamba-1 encoder for images and clips.

It holds numbers only; nothing here builds a module.
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .config_errors import ClearConfigErrors
from .kernels import BACKENDS
from .scan_orders import block_scans

# The paper's sizes (Table 1): Tiny, Small, Middle, Base; patch 16, expand 2, state 16 in all.
PRESETS = {
    "ti": {"hidden_size": 192, "num_hidden_layers": 24},
    "s": {"hidden_size": 384, "num_hidden_layers": 24},
    "m": {"hidden_size": 576, "num_hidden_layers": 32},
    "b": {"hidden_size": 768, "num_hidden_layers": 24},
}


@strict
class VideoMambaConfig(ClearConfigErrors, PreTrainedConfig):
    """Configuration of VideoMamba. Defaults: Tiny, for images of 224 px.

    Args:
        hidden_size (`int`, *optional*, defaults to 192): width of the residual stream.
        num_hidden_layers (`int`, *optional*, defaults to 24): blocks; each is a norm and a mixer.
        state_size (`int`, *optional*, defaults to 16): state numbers per channel of the mixer.
        conv_kernel (`int`, *optional*, defaults to 4): width of the causal convolution.
        expand (`int`, *optional*, defaults to 2): mixer width over `hidden_size`.
        image_size (`int`, *optional*, defaults to 224): side of an image or frame, in pixels.
        patch_size (`int`, *optional*, defaults to 16): side of a patch; divides `image_size`.
        num_frames (`int`, *optional*): frames of a clip. None is an image model, which has no temporal embedding.
        tubelet_size (`int`, *optional*, defaults to 1): frames of one patch; divides `num_frames`. Published: 1.
        scan (`str` or `list[str]`, *optional*, defaults to `"spatial"`): the order in which blocks read the tokens,
            one name for all or one for each: `"spatial"` (all published weights), `"temporal"`,
            `"spatiotemporal_v1"`, `"spatiotemporal_v2"`, `"spatiotemporal_v2_shared"`; or a mixture by block:
            `"half_spatial_half_temporal"`, `"half_temporal_half_spatial"`, `"alternating"`.
        bidirectional (`bool`, *optional*, defaults to `True`): read forwards and backwards. `False` reads backwards
            only, where the class token comes last: read forwards it would see nothing of the clip.
        drop_path_rate (`float`, *optional*, defaults to 0.0): chance that the last mixer is left out for a sample in
            training; it rises linearly from 0 at the first.
        layer_norm_epsilon (`float`, *optional*, defaults to 1e-5): of every RMSNorm.
        initializer_range (`float`, *optional*, defaults to 0.02): of new projections and position embeddings.
        backend (`str`, *optional*, defaults to `"auto"`): what runs the scan and the causal convolution. `"torch"` is
            PyTorch alone, `"triton"` the kernels of mamba-ssm (an error where they are missing), `"auto"` takes the
            kernels on a CUDA device when they are installed.
        image_mean, image_std (`list[float]`, *optional*): per-channel normalisation of frames scaled to 0..1, applied
            to uint8 frames on the device. Default: ImageNet's.

    Example:

    ```python
    >>> from modeling_video_ma2mba import VideoMambaConfig
    >>> VideoMambaConfig.preset("m", num_frames=8, num_labels=400).num_tokens
    1569
    ```
    """

    model_type = "videomamba"

    hidden_size: int = 192
    num_hidden_layers: int = 24
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int | None = None
    tubelet_size: int = 1
    scan: str | list[str] | tuple[str, ...] = "spatial"
    bidirectional: bool = True
    drop_path_rate: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    backend: str = "auto"
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self, **kwargs):
        if not isinstance(self.scan, str):
            self.scan = list(self.scan)
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "VideoMambaConfig":
        """Return the configuration of a published size: `"ti"`, `"s"`, `"m"` or `"b"`."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def validate_architecture(self):
        """Check sizes, scans and the backend; raise `ValueError` naming the field."""
        super().validate_architecture()
        sizes = ("hidden_size", "num_hidden_layers", "state_size", "expand", "patch_size", "tubelet_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.conv_kernel < 2:
            raise ValueError(f"conv_kernel={self.conv_kernel} must be at least 2")
        if self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        if self.num_channels != 3:
            raise ValueError(f"num_channels={self.num_channels}; frames have 3")
        if self.num_frames is None and self.tubelet_size != 1:
            raise ValueError(f"tubelet_size={self.tubelet_size} needs num_frames: an image is one frame")
        if self.num_frames is not None and (self.num_frames < 1 or self.num_frames % self.tubelet_size):
            raise ValueError(
                f"num_frames={self.num_frames} must be a multiple of tubelet_size={self.tubelet_size}, or None"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be at least 0 and below 1")
        for name in ("layer_norm_epsilon", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend!r} is not one of {', '.join(BACKENDS)}")
        if len(self.image_mean) != 3 or not all(math.isfinite(mean) for mean in self.image_mean):
            raise ValueError(f"image_mean={self.image_mean} must be 3 numbers")
        if len(self.image_std) != 3 or not all(0 < std < math.inf for std in self.image_std):
            raise ValueError(f"image_std={self.image_std} must be 3 positive numbers")
        block_scans(self.scan, self.num_hidden_layers)

    @property
    def intermediate_size(self) -> int:
        """Width of the mixer, `expand * hidden_size`."""
        return self.expand * self.hidden_size

    @property
    def time_step_rank(self) -> int:
        """Width of the step size before its projection: ceil(hidden_size / 16)."""
        return -(-self.hidden_size // 16)

    @property
    def patches_per_frame(self) -> int:
        """Patches of a frame: 196 at 224 px."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def temporal_positions(self) -> int:
        """Frames after the patch embedding, `num_frames / tubelet_size`; 1 for an image."""
        return 1 if self.num_frames is None else self.num_frames // self.tubelet_size

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip or image, with the class token."""
        return 1 + self.temporal_positions * self.patches_per_frame


__all__ = ["VideoMambaConfig"]
