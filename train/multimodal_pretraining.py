"""Masked multi-modal pre-training: the model of it, with alignment to a CLIP teacher (UTA, arXiv 2403.06977, 3.3).

    loss = VTC + VTM + MLM + mean over clips and visible tokens of |student - teacher|^2

All four look at the visible tokens alone. The aligned feature and its decoder are those of `masked_pretraining.py`.

Dims: B clips, L = 1 + F S tokens, V visible ones, D width, C the teacher's width.
"""

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from modeling_video_ma2mba.configuration_videomamba_multimodal import VideoMambaMultiModalConfig
from modeling_video_ma2mba.modeling_videomamba_multimodal import (
    VideoMambaMultiModalModel,
    VideoMambaMultiModalOutput,
)
from modeling_video_ma2mba.scan_orders import block_scans
from modeling_video_ma2mba.train.masked_pretraining import ClipDecoder, position_table
from modeling_video_ma2mba.train.self_distillation import feature_distance


class VideoMambaMultiModalForMaskedPretraining(VideoMambaMultiModalModel):
    """A multi-modal VideoMamba with the decoder to a teacher, under its published name.

    Args:
        teacher_width: C.

    Raises:
        ValueError: another scan than spatial-first.
    """

    _auto_class = None  # checkpoints of a run; the trained model is saved without this class

    def __init__(self, config: VideoMambaMultiModalConfig, teacher_width: int):
        vision = config.vision_config
        if set(block_scans(vision.scan, vision.num_hidden_layers)) != {"spatial"}:
            raise ValueError(f"scan={vision.scan}: visible tokens are read in stored order; masks need 'spatial'")
        super().__init__(config)
        self.vision_encoder.clip_decoder = nn.ModuleList([ClipDecoder(vision.hidden_size, teacher_width)])
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        visible: torch.Tensor,
        teacher_features: torch.Tensor,
        pixel_values=None,
        pixel_values_videos=None,
        **texts,
    ) -> VideoMambaMultiModalOutput:
        """As the model's own, of the visible tokens, with UTA.

        Args:
            visible: (B, V) int64; see `clip_masks.visible_places`. teacher_features: (B, V, C), of the same tokens.
            texts: what `compare` takes beside the clips.
        """
        states = []  # before each block
        vision = self.encode_vision(pixel_values, pixel_values_videos, visible, states)
        output = self.compare(vision, **texts)
        before_last = states[self.config.vision_config.num_hidden_layers - 1]  # (B, V, D)
        table = position_table(self.config.vision_config.num_tokens, before_last.shape[2], before_last.device)
        features = self.vision_encoder.clip_decoder[0](before_last + table[visible])
        output.uta_loss = feature_distance(features, teacher_features)
        output.loss = output.loss + output.uta_loss
        return output


def without_decoder(model: VideoMambaMultiModalModel) -> VideoMambaMultiModalModel:
    """Return the model without the decoder to a teacher."""
    plain = VideoMambaMultiModalModel(model.config)
    plain.load_state_dict({name: one for name, one in model.state_dict().items() if ".clip_decoder." not in name})
    return plain
