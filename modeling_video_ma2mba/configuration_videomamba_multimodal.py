"""Configuration of the multi-modal VideoMamba (arXiv 2403.06977, section 3.3): VideoMamba, BERT, what joins them.

It holds numbers only; nothing here builds a module.
"""

import math

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, PreTrainedConfig

from .config_errors import ClearConfigErrors
from .configuration_videomamba import VideoMambaConfig


@strict
class VideoMambaMultiModalConfig(ClearConfigErrors, PreTrainedConfig):
    """Configuration of `VideoMambaMultiModalModel`. Defaults: the published model, Middle with BERT base.

    Args:
        vision_config (`dict` or `VideoMambaConfig`, *optional*): the vision encoder; default: Middle, 8 frames.
        text_config (`dict` or `BertConfig`, *optional*): text encoder and, from `fusion_layer` on, cross-modal
            decoder; default: BERT base, uncased.
        fusion_layer (`int`, *optional*, defaults to 9): first BERT layer that also looks at the vision tokens; those
            before it read the text alone.
        projection_size (`int`, *optional*, defaults to 512): width in which clips and texts are compared.
        temperature (`float`, *optional*, defaults to 0.07): that a new model starts with; it is learnt.
        initializer_range (`float`, *optional*, defaults to 0.02): of new projections.

    Example:

    ```python
    >>> from modeling_video_ma2mba import VideoMambaMultiModalConfig
    >>> VideoMambaMultiModalConfig().vision_config.hidden_size
    576
    ```
    """

    model_type = "videomamba_multimodal"
    sub_configs = {"vision_config": VideoMambaConfig, "text_config": BertConfig}  # noqa: RUF012

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    fusion_layer: int = 9
    projection_size: int = 512
    temperature: float = 0.07
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = VideoMambaConfig.preset("m", num_frames=8)
        elif isinstance(self.vision_config, dict):
            self.vision_config = VideoMambaConfig(**_fields(self.vision_config, VideoMambaConfig))
        if self.text_config is None:
            self.text_config = BertConfig()
        elif isinstance(self.text_config, dict):
            self.text_config = BertConfig(**_fields(self.text_config, BertConfig))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check what the parts rely on; raise `ValueError` naming the field."""
        super().validate_architecture()
        vision, text = self.vision_config, self.text_config
        if vision.num_frames is None:
            raise ValueError("vision_config: num_frames=None is an image model; set num_frames, of the clips to read")
        if vision.tubelet_size != 1:
            raise ValueError(f"vision_config: tubelet_size={vision.tubelet_size} must be 1: images are read as well")
        if not 0 < self.fusion_layer < text.num_hidden_layers:
            raise ValueError(
                f"fusion_layer={self.fusion_layer} must be between 1 and {text.num_hidden_layers - 1}: layers before "
                "it read the text alone, the others text and clip"
            )
        if text.is_decoder or text.add_cross_attention:
            raise ValueError(
                "text_config: is_decoder and add_cross_attention must be false: the text is read in both directions, "
                "and fusion_layer says where it looks at the clip"
            )
        if self.projection_size < 1:
            raise ValueError(f"projection_size={self.projection_size} must be at least 1")
        for name in ("temperature", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")


def _fields(given: dict, kind: type[PreTrainedConfig]) -> dict:
    found = given.get("model_type", kind.model_type)
    if found != kind.model_type:
        raise ValueError(f"a sub-config has model_type={found!r}; allowed is {kind.model_type!r}")
    return {name: value for name, value in given.items() if name != "model_type"}


__all__ = ["VideoMambaMultiModalConfig"]
