"""Batches and the training step of masked pre-training: clips with noise in, masks and the teacher's features made.

Dims: B clips, F frames, S patches of a frame.
"""

import torch

from modeling_video_ma2mba.train.clip_masks import draw_masks, draw_noise, visible_places
from modeling_video_ma2mba.train.clip_set import ClipViews
from modeling_video_ma2mba.train.trainer import count_frames
from modeling_video_ma2mba.train.videomamba_trainer import VideoMambaTrainer


class MaskedClipCollator:
    """Makes batches: `pixel_values_videos` (B, F, 3, H, W), and `mask_noise` (B, F, S) of the clips' own seeds.

    Args:
        patches: of a frame, S.
    """

    def __init__(self, patches: int):
        self.patches = patches

    def __call__(self, clips: list[ClipViews]) -> dict[str, torch.Tensor]:
        noise = [draw_noise([*clip.seed, 2], len(clip.pixels), len(clip.pixels[0]), self.patches) for clip in clips]
        pixels = torch.stack([view for clip in clips for view in clip.pixels])
        return {"pixel_values_videos": pixels, "mask_noise": torch.cat(noise)}


class MaskedPretrainingTrainer(VideoMambaTrainer):
    """Trains a `VideoMambaForMaskedPretraining`; the teacher is a `ClipTeacher`."""

    def part_of(self, name: str) -> str:
        return "decoder" if "clip_decoder." in name else super().part_of(name)

    def count_inputs(self, inputs) -> dict[str, int]:
        return {"clips": len(inputs["pixel_values_videos"]), "frames": count_frames(inputs)}

    def with_teacher(self, inputs: dict) -> dict:
        model, recipe = self.accelerator.unwrap_model(self.model).videomamba, self.recipe
        pixels = model.load_frames(pixel_values_videos=inputs["pixel_values_videos"])
        features, attention = self.teacher(pixels, recipe.aligned_layers)  # (K, B, L, C), (B, F, S)
        visible = visible_places(draw_masks(recipe.mask, recipe.mask_ratio, inputs["mask_noise"], attention))
        places = visible[None, :, :, None].expand(len(features), -1, -1, features.shape[-1])
        return {
            "pixel_values_videos": pixels,
            "visible": visible,
            "teacher_features": features.gather(2, places),  # (K, B, V, C)
        }
