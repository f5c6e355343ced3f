"""Masked pre-training: a VideoMamba that sees few patches learns what CLIP makes of them (arXiv 2403.06977, 3.3).

    loss = mean over clips, visible tokens and aligned layers of |student - teacher|^2

Both are of unit length, so that is 2 - 2 <student, teacher>. Masked tokens are taken out before the first block, after
all position embeddings were added. The student's feature is the residual stream before the last block, with no norm;
a fixed table of positions is added, then a linear layer and a norm lead to the teacher's width. No pixel is predicted.

The published models were trained so: the last block and the final norm take no part. They are frozen here, and begin
to learn in fine-tuning.

Dims: B clips, F frames, S patches of a frame, L = 1 + F S tokens, V visible ones, K aligned layers, D width, C the
teacher's width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.utils import ModelOutput

from modeling_video_ma2mba.configuration_videomamba import VideoMambaConfig
from modeling_video_ma2mba.modeling_videomamba import VideoMambaModel, VideoMambaPreTrainedModel
from modeling_video_ma2mba.scan_orders import block_scans
from modeling_video_ma2mba.train.self_distillation import feature_distance
from modeling_video_ma2mba.vision_features import unused_tower_parameters


class ClipDecoder(nn.Module):
    """What leads from the student's width to the teacher's, under the names of published checkpoints."""

    def __init__(self, width: int, teacher_width: int):
        super().__init__()
        self.head = nn.Linear(width, teacher_width)
        self.norm = nn.LayerNorm(teacher_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, V, D) -> (B, V, C)."""
        return self.norm(self.head(features))


@dataclass
class MaskedPretrainingOutput(ModelOutput):
    """`loss`, where the teacher's features were given; `features` (K, B, V, C), not yet of unit length."""

    loss: torch.Tensor | None = None
    features: torch.Tensor | None = None


class VideoMambaForMaskedPretraining(VideoMambaPreTrainedModel):
    """A clip encoder with a decoder for each aligned layer.

    Args:
        teacher_width: C. aligned_layers: K. With more than one the earlier ones are, as published, the residual
            stream behind blocks depth - K + 1 ... depth - 1, each with the final norm, which then learns.

    Raises:
        ValueError: an image model, patches of several frames, another scan than spatial-first, too many layers.
    """

    _auto_class = None  # checkpoints of a run; what others load is the encoder

    def __init__(self, config: VideoMambaConfig, teacher_width: int, aligned_layers: int = 1):
        if config.num_frames is None or config.tubelet_size != 1:
            raise ValueError(
                f"num_frames={config.num_frames}, tubelet_size={config.tubelet_size}: masked pre-training aligns the "
                "frames of clips one by one; set num_frames, and tubelet_size=1"
            )
        if set(block_scans(config.scan, config.num_hidden_layers)) != {"spatial"}:
            raise ValueError(
                f"scan={config.scan}: visible tokens are read in stored order; masked pre-training needs 'spatial'"
            )
        if not 0 < aligned_layers < config.num_hidden_layers:
            raise ValueError(
                f"aligned_layers={aligned_layers} must be at least 1 and below num_hidden_layers="
                f"{config.num_hidden_layers}"
            )
        super().__init__(config)
        self.videomamba = VideoMambaModel(config)
        self.clip_decoder = nn.ModuleList(
            ClipDecoder(config.hidden_size, teacher_width) for _ in range(aligned_layers)
        )
        self.post_init()

    def get_input_embeddings(self):
        return self.videomamba.get_input_embeddings()

    def freeze_unused(self) -> None:
        """Freeze what takes no part: the last block and, with one aligned layer, the final norm."""
        unused = unused_tower_parameters(self.videomamba, self.config.num_hidden_layers - 1)
        for name, parameter in self.videomamba.named_parameters():
            is_used = name.startswith("norm_f.") and len(self.clip_decoder) > 1
            parameter.requires_grad_(name not in unused or is_used)

    def save_encoder(self, folder: str | Path) -> None:
        """Save a `VideoMambaModel`, beside it the decoders' weights, all under the names of published checkpoints."""
        decoders = {f"clip_decoder.{name}": tensor for name, tensor in self.clip_decoder.state_dict().items()}
        self.videomamba.save_pretrained(folder, state_dict={**self.videomamba.state_dict(), **decoders})

    def forward(
        self, pixel_values_videos, visible: torch.Tensor, teacher_features: torch.Tensor | None = None
    ) -> MaskedPretrainingOutput:
        """Encode the visible tokens of clips.

        Args:
            pixel_values_videos: clips (B, F, 3, H, W), in any of the forms `VideoMambaModel` takes.
            visible: (B, V) int64, the places of the visible tokens; see `clip_masks.visible_places`.
            teacher_features: (K, B, V, C), of the same tokens.
        """
        model = self.videomamba
        tokens = model.embed(model.load_frames(pixel_values_videos=pixel_values_videos))  # (B, L, D)
        table = position_table(tokens.shape[1], tokens.shape[2], tokens.device)[visible]  # (B, V, D)
        tokens = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))  # (B, V, D)
        depth, states = self.config.num_hidden_layers, []
        model.encode(tokens, hidden_states=states, layers_run=depth - 1)  # before each block, the last one included
        earlier = [model.norm_f(states[depth - i]) for i in range(len(self.clip_decoder) - 1, 0, -1)]
        aligned = [*earlier, states[-1]]
        features = torch.stack([decoder(one + table) for decoder, one in zip(self.clip_decoder, aligned)])
        loss = None if teacher_features is None else feature_distance(features, teacher_features)
        return MaskedPretrainingOutput(loss=loss, features=features)


def position_table(length: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Return the fixed positions that the decoder sees, (length, width) fp32: even columns sine, odd ones cosine."""
    columns = torch.arange(width, device=device)
    rates = 10000.0 ** (-2.0 * (columns // 2) / width)
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos())
