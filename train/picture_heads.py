"""`TowerWithHeads`: a vision tower that learns to say what a single picture shows.

Dims: P pictures, V visual tokens of a picture, D width of the tower.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from modeling_video_ma2mba.modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.scene_questions import combinations
from modeling_video_ma2mba.train.synthetic_video import COLOURS, SHAPES, make_clip
from modeling_video_ma2mba.vision_features import encode_frames, frame_sequence

NO_DIGIT = 10
CENTRE_WEIGHT = 10.0  # squared parts of a picture are small numbers beside cross-entropies
CLIP_SIZE = 112  # pixels, before the processor fits them


class TowerWithHeads(nn.Module):
    """The tower of a model, up to its feature layer, with linear heads on the pooled features."""

    def __init__(self, model: VideoMa2mbaForConditionalGeneration):
        super().__init__()
        self.config, self.tower = model.config, model.model.vision_tower
        width = self.config.tokens_per_frame * self.config.vision_config.hidden_size
        sizes = {"colour": len(COLOURS), "shape": len(SHAPES), "digit": NO_DIGIT + 1, "centre": 2}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})
        unused = set(model.unused_parameters())
        for name, parameter in model.named_parameters():
            if name.startswith("model.vision_tower."):
                parameter.requires_grad_(name not in unused)

    def forward(self, pictures: torch.Tensor, **labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and what each head says.

        Args:
            pictures: (P, 3, H, W) uint8. labels: `colour`, `shape`, `digit` (P,) class numbers, `centre` (P, 2).
        """
        pixels = frame_sequence(self.config, pictures, "pixel_values").load(
            0, len(pictures), pictures.device, torch.float32
        )
        features = encode_frames(
            self.tower, pixels, self.config.feature_layers_run, self.config.spatial_pool_stride
        )  # (P, V, D)
        said = {name: head(features.flatten(1)) for name, head in self.heads.items()}
        loss = CENTRE_WEIGHT * F.mse_loss(said["centre"], labels["centre"])
        loss = loss + sum(F.cross_entropy(said[name], labels[name]) for name in ("colour", "shape", "digit"))
        return {"loss": loss, **said}


def draw_pictures(
    seeds: Sequence[Sequence[int]], clip_frames: int, per_clip: int, fit: Callable
) -> dict[str, torch.Tensor]:
    """Draw a clip for each seed and take `per_clip` frames of it, the one with the digit first.

    Returns: the arguments of `TowerWithHeads.forward`.
    """
    rows: dict[str, list] = {"pictures": [], "colour": [], "shape": [], "digit": [], "centre": []}
    for seed in seeds:
        clip = make_clip(seed, clip_frames, CLIP_SIZE, combinations=combinations("training"))
        order = np.random.default_rng([*seed, 1]).permutation(clip_frames).tolist()
        if clip.needle is not None:
            order.remove(clip.needle.frame)
            order.insert(0, clip.needle.frame)
        for frame in order[:per_clip]:
            scene = next(scene for scene in clip.scenes if scene.start_frame <= frame < scene.end_frame)
            has_digit = clip.needle is not None and clip.needle.frame == frame
            rows["pictures"].append(fit(clip.frames[frame]))
            rows["colour"].append(list(COLOURS).index(scene.colour))
            rows["shape"].append(SHAPES.index(scene.shape))
            rows["digit"].append(clip.needle.digit if has_digit else NO_DIGIT)
            rows["centre"].append(scene.centres[frame - scene.start_frame])
    return {
        name: torch.from_numpy(np.stack(values)) if name == "pictures" else torch.tensor(values)
        for name, values in rows.items()
    }
