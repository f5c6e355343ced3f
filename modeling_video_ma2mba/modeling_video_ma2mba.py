"""Video-Ma²mba (arXiv 2411.19460): a vision tower looks at every frame, a projector maps 144 tokens each into Mamba-2.

The language model reads placeholders' visual tokens like words. Where no gradient is needed, vision, projector and
language model run segment by segment, so memory does not grow with the length of a video beyond its frames.

Dims: B batch, T tokens, D model width, F frames, V visual tokens of a frame (144).
"""

import math

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .checkpointing import CheckpointingMixin
from .configuration_video_ma2mba import VideoMa2mbaConfig
from .generation_video_ma2mba import Ma2mbaGenerationMixin
from .hub_code import code_in_config, own_class, save_code
from .language_model_outputs import causal_lm_outputs, model_outputs
from .modeling_ma2mba import Ma2mbaModel
from .modeling_videomamba import VideoMambaModel
from .row_layout import Rows
from .state import RecurrentState
from .vision_features import (
    FRAMES_PER_BATCH,
    FrameSequence,
    encode_frames,
    frame_sequence,
    unused_tower_parameters,
)
from .visual_inputs import VisualInputs, check_counts
from .watching import WatchingMixin


class VideoMa2mbaProjector(nn.Module):
    """The 2-layer MLP from vision width to model width."""

    def __init__(self, config: VideoMa2mbaConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: its biases' dtype, for weights may be quantised."""
        return self.linear_1.bias.dtype

    @property
    def device(self) -> torch.device:
        return self.linear_1.bias.device

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., vision width) -> (..., D)"""
        return self.linear_2(self.act(self.linear_1(features)))


class VideoMa2mbaPreTrainedModel(CheckpointingMixin, PreTrainedModel):
    config: VideoMa2mbaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("Ma2mbaBlock", "CLIPEncoderLayer", "SiglipEncoderLayer", "VideoMambaBlock")
    _skip_keys_device_placement = ("past_key_values",)
    _is_stateful = True
    _supports_sdpa = True
    _supports_flash_attn = True

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers' own; loading makes parameters anew, so those that never run are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_unused_parameters()
        return loaded

    def freeze_unused_parameters(self) -> None:
        """Freeze `unused_parameters()`: without it data-parallel training would wait for their gradients."""
        unused = set(self.unused_parameters())
        for name, parameter in self.named_parameters():
            if name in unused:
                parameter.requires_grad_(False)

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers' own; the folder also carries the code, for `trust_remote_code=True` elsewhere."""
        with code_in_config(self.config), own_class(self):
            super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            save_code(save_directory)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, VideoMa2mbaProjector):
            # The language model's initializer_range is meant for its own narrow inputs; visual features are O(1).
            for linear in (module.linear_1, module.linear_2):
                init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
                init.zeros_(linear.bias)


class VideoMa2mbaModel(VideoMa2mbaPreTrainedModel):
    """Vision tower, projector and language model, without the head."""

    def __init__(self, config: VideoMa2mbaConfig):
        super().__init__(config)
        # Ours not by its Auto class: code that came from the Hub is registered with none.
        is_videomamba = config.vision_config.model_type == "videomamba"
        build_tower = VideoMambaModel._from_config if is_videomamba else AutoModel.from_config
        self.vision_tower = build_tower(config.vision_config)
        self.multi_modal_projector = VideoMa2mbaProjector(config)
        self.language_model = Ma2mbaModel._from_config(config.text_config)
        self.post_init()
        self.freeze_unused_parameters()

    def unused_parameters(self) -> list[str]:
        """Return the names of the parameters behind the feature layer: saved and loaded, frozen, never run."""
        names = unused_tower_parameters(self.vision_tower, self.config.feature_layers_run)
        return [f"vision_tower.{name}" for name in names]

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values, **kwargs) -> BaseModelOutputWithPooling:
        """Encode images (N, 3, H, W): `.pooler_output` is (N, V, D), as the language model reads them."""
        return self._features(frame_sequence(self.config, pixel_values, "pixel_values"))

    def get_video_features(self, pixel_values_videos, **kwargs) -> BaseModelOutputWithPooling:
        """Encode videos, in any of the forms of `forward`: `.pooler_output` is (F of all videos, V, D)."""
        return self._features(frame_sequence(self.config, pixel_values_videos, "pixel_values_videos"))

    def get_placeholder_mask(self, input_ids, inputs_embeds, image_features=None, video_features=None):
        """Return masks (B, T, D) of image and video placeholders; features (..., D), if given, must fill them exactly.

        Raises:
            ValueError: naming both counts.
        """
        masks = []
        for token_id, features, name in (
            (self.config.image_token_id, image_features, "image"),
            (self.config.video_token_id, video_features, "video"),
        ):
            mask = input_ids == token_id
            if features is not None:
                check_counts(
                    name, int(mask.sum()), features.numel() // features.shape[-1], self.config.tokens_per_frame
                )
            masks.append(mask[..., None].expand_as(inputs_embeds).to(inputs_embeds.device))
        return tuple(masks)

    def _features(self, frames: FrameSequence) -> BaseModelOutputWithPooling:
        device = self.multi_modal_projector.device
        parts = [
            self.encode_pixels(frames.load(i, j, device, self.vision_tower.dtype), clip)
            for i, j, clip in frames.batches(0, len(frames), FRAMES_PER_BATCH)
        ]
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts))

    def encode_pixels(self, pixels: torch.Tensor, frames_per_clip: int = 1) -> torch.Tensor:
        """Run tower, pooling and projector on normalised frames, whole clips: (F, 3, H, W) -> (F, V, D)."""
        config = self.config
        features = encode_frames(
            self.vision_tower, pixels, config.feature_layers_run, config.spatial_pool_stride, frames_per_clip
        )
        return self.multi_modal_projector(features.to(self.multi_modal_projector.dtype))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values=None,
        pixel_values_videos=None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        segment_length: int | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Read text with images and videos after `past_key_values`; the other arguments as in `Ma2mbaModel`.

        Args:
            input_ids: (B, T) with one placeholder id per visual token.
            pixel_values: images (N, 3, H, W) in the order of their placeholders, row by row; uint8, or normalised.
            pixel_values_videos: (N, F, 3, H, W), a list of (F, 3, H, W), or `FrameSource`s, likewise. A VideoMamba
                tower reads each in clips of `frames_per_clip` from its first frame; the last may be shorter.
        """
        rows = Rows(input_ids, inputs_embeds, attention_mask, past_key_values)
        return model_outputs(
            self.language_model,
            rows,
            VisualInputs(self, rows, pixel_values, pixel_values_videos),
            use_cache=self.language_model.wants_cache(use_cache),
            past_key_values=past_key_values,
            output_hidden_states=self.language_model.wants_hidden_states(output_hidden_states),
            segment_length=segment_length,
        )


class VideoMa2mbaForConditionalGeneration(WatchingMixin, VideoMa2mbaPreTrainedModel, Ma2mbaGenerationMixin):
    """Video-Ma²mba with its language model head: answers questions about images and videos.

    Example:

    ```python
    >>> from transformers import AutoModelForImageTextToText, AutoProcessor
    >>> import modeling_video_ma2mba
    >>> processor = AutoProcessor.from_pretrained(path)
    >>> model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto")
    >>> content = [{"type": "video", "path": "film.mp4"}, {"type": "text", "text": "Who wins?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}],
    ...     add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    ... )
    >>> answer = model.generate(**inputs, max_new_tokens=64)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: VideoMa2mbaConfig):
        super().__init__(config)
        self.model = VideoMa2mbaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values, **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_video_features(self, pixel_values_videos, **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def unused_parameters(self) -> list[str]:
        """Return the names of the parameters behind the feature layer: saved and loaded, frozen, never run."""
        return [f"model.{name}" for name in self.model.unused_parameters()]

    def _placeholder_ids(self) -> list[int]:
        return [self.config.image_token_id, self.config.video_token_id]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values=None,
        pixel_values_videos=None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        segment_length: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Read text with images and videos, and predict; arguments: see `VideoMa2mbaModel` and `Ma2mbaForCausalLM`."""
        language_model = self.model.language_model
        rows = Rows(input_ids, inputs_embeds, attention_mask, past_key_values)
        return causal_lm_outputs(
            language_model,
            self.lm_head,
            rows,
            VisualInputs(self.model, rows, pixel_values, pixel_values_videos),
            use_cache=language_model.wants_cache(use_cache),
            past_key_values=past_key_values,
            labels=labels,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
            training=self.training,
            output_hidden_states=language_model.wants_hidden_states(output_hidden_states),
            segment_length=segment_length,
        )


__all__ = ["VideoMa2mbaForConditionalGeneration", "VideoMa2mbaModel", "VideoMa2mbaPreTrainedModel"]
