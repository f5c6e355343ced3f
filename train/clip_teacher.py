"""`ClipTeacher`: a CLIP image tower whose features masked pre-training learns (arXiv 2403.06977, section 3.3).

Each frame is read on its own, whole and unmasked, normalised as the student reads it (ImageNet's numbers, not CLIP's:
so were the published models trained). Features are those behind the last block without the norm that follows it; the
class tokens of a clip are averaged to one.

Dims: B clips, T frames, S patches of a frame, L = 1 + T S tokens, K aligned layers, C width of the features.
"""

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from modeling_video_ma2mba.configuration_videomamba import VideoMambaConfig
from modeling_video_ma2mba.modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration


class ClipTeacher(nn.Module):
    """A frozen CLIP tower.

    Args:
        tower: with `embeddings`, `pre_layrnorm` and `encoder`, as transformers' `CLIPVisionModel` has them.
        projection: from the tower's width to that of the features; None: features are the tower's own.
        layers_run: blocks that run; None: all.
    """

    def __init__(self, tower: nn.Module, projection: nn.Linear | None = None, layers_run: int | None = None):
        super().__init__()
        self.tower, self.projection = tower, projection
        self.blocks = tower.encoder.layers[:layers_run]
        self.width = tower.config.hidden_size if projection is None else projection.out_features
        self.eval().requires_grad_(False)

    @property
    def grid(self) -> int:
        """Patches of a frame, in a row of them."""
        return self.tower.config.image_size // self.tower.config.patch_size

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor, layers: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of the last blocks, and what the last block looks at.

        Args:
            pixels: (B, T, 3, H, W), normalised; resized to the tower's size (bicubic). layers: K.

        Returns:
            (K, B, L, C), not yet of unit length, the last block's last; (B, T, S), the class token's attention to the
            patches of each frame, a mean over heads: the softmax's row without its own column.
        """
        frames, size = pixels.flatten(0, 1), self.tower.config.image_size
        if frames.shape[-1] != size:
            frames = F.interpolate(frames, size=(size, size), mode="bicubic", align_corners=False)
        hidden = self.tower.pre_layrnorm(self.tower.embeddings(frames))  # (B T, 1 + S, D)
        kept = []
        for number, block in enumerate(self.blocks, start=1):
            if number == len(self.blocks):
                attention = _class_attention(block, hidden)
            hidden = block(hidden, None)
            if number > len(self.blocks) - layers:
                kept.append(hidden)
        features = torch.stack(kept).unflatten(1, pixels.shape[:2])  # (K, B, T, 1 + S, D)
        first = features[:, :, :, 0].mean(2, keepdim=True)  # (K, B, 1, D)
        features = torch.cat([first, features[:, :, :, 1:].flatten(2, 3)], dim=2)  # (K, B, L, D)
        if self.projection is not None:
            features = self.projection(features)
        return features, attention.unflatten(0, pixels.shape[:2])


def _class_attention(block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Return how much the class token of each frame attends to the patches: (N, 1 + S, D) -> (N, S) float32.

    It is computed here, as fast kinds of attention do not tell their weights.
    """
    own = block.self_attn
    normed = block.layer_norm1(hidden)
    query, keys = own.q_proj(normed[:, 0]), own.k_proj(normed)
    query = query.unflatten(-1, (own.num_heads, -1)).float()  # (N, heads, d)
    keys = keys.unflatten(-1, (own.num_heads, -1)).float()  # (N, 1 + S, heads, d)
    scores = torch.einsum("nhd,nshd->nhs", query, keys) * own.scale
    return scores.softmax(-1).mean(1)[:, 1:]


def load_clip_teacher(folder: str, config: VideoMambaConfig, layers: int = 1) -> ClipTeacher:
    """Return the teacher of a folder, in fp32, frozen and in eval mode.

    Args:
        folder: a whole CLIP model, its vision model with projection (features are projected, as published), its vision
            model alone (they are not), or a Video-Ma²mba with a CLIP tower (up to its feature layer).
        config: of the student. layers: K, blocks whose features are wanted.

    Raises:
        ValueError: it cannot be loaded, is no CLIP model, or has not the patches or blocks that the student needs.
    """
    theirs = _load(AutoConfig, folder)
    kind = theirs.model_type
    if kind == "video_ma2mba":
        kind = theirs.vision_config.model_type
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"--teacher {folder} holds a {kind!r} model: give a folder of a CLIP model, whole or its vision model, or "
            "of a Video-Ma²mba with a CLIP tower"
        )
    if theirs.model_type == "video_ma2mba":
        model = _load(VideoMa2mbaForConditionalGeneration, folder, dtype=torch.float32)
        # Blocks behind the feature layer have never been trained.
        teacher = ClipTeacher(model.model.vision_tower, None, theirs.feature_layers_run)
    else:
        is_projected = theirs.architectures != ["CLIPVisionModel"]
        kind = CLIPVisionModelWithProjection if is_projected else CLIPVisionModel
        model, info = _load(kind, folder, dtype=torch.float32, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(
                f"--teacher {folder}: its weights lack {sorted(info['missing_keys'])[0]}; if it has no projection, "
                '"architectures" in its config.json must say ["CLIPVisionModel"]'
            )
        teacher = ClipTeacher(model.vision_model, model.visual_projection) if is_projected else ClipTeacher(model)
    side = config.image_size // config.patch_size
    if teacher.grid != side:
        raise ValueError(
            f"--teacher {folder}: it sees {teacher.grid} x {teacher.grid} patches, the student {side} x {side} "
            f"(image_size {config.image_size}, patch_size {config.patch_size}): features are compared patch by patch, "
            "so take another teacher, or --override image_size=..."
        )
    if layers > len(teacher.blocks):
        raise ValueError(f"--teacher {folder} has {len(teacher.blocks)} blocks, fewer than aligned_layers={layers}")
    return teacher


def _load(kind: type, folder: str, **more):
    try:
        return kind.from_pretrained(folder, **more)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"--teacher {folder} cannot be loaded ({str(error).splitlines()[0]}): give the folder of a CLIP model of "
            "transformers, with its config.json and weights"
        ) from error
