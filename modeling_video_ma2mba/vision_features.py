"""From frames to visual tokens: `FrameSequence` (what was given, in order), `encode_frames` (tower and pooling).

Frames stay where they are until they are needed; only those of one micro-batch are on the device as pixels. CLIP and
SigLIP see each frame on its own; VideoMamba sees clips of frames, counted from the start of each video. What a frame
becomes then depends on its whole clip, so clips are encoded whole.

Dims: F frames, V visual tokens of a frame, D vision width, T frames of a clip, S patches of a frame.
"""

from bisect import bisect_right

import torch
from torch import nn
from torch.nn import functional as F

# Frames that go through the tower at once: at CLIP-L/336 in fp32 about 300 MB for the widest activation.
FRAMES_PER_BATCH = 16


class FrameSequence:
    """All videos (or images) of a batch behind one another, in the order of their placeholders.

    Args:
        given: (N, F, 3, H, W), a list of (F, 3, H, W), or one or a list of `FrameSource`s (`len(fs)`,
            `fs[i:j] -> uint8 (j-i, 3, H, W)`). Images: (N, 3, H, W), each one frame. uint8 frames are normalised on
            the device, float frames are taken as normalised.
        image_size: H and W. mean, std: per channel, of frames scaled to 0..1.
        name: the argument, for error messages.
        frames_per_clip: frames that the tower sees together.
    """

    def __init__(
        self, given, image_size: int, mean: list[float], std: list[float], name: str, frames_per_clip: int = 1
    ):
        self.name, self.image_size, self.mean, self.std = name, image_size, mean, std
        self.frames_per_clip = frames_per_clip
        if torch.is_tensor(given):
            if given.ndim == 4:
                given = given[None] if name == "pixel_values_videos" else given[:, None]
            self.videos = list(given)
        else:
            self.videos = list(given) if isinstance(given, (list, tuple)) else [given]
        if name == "pixel_values":
            self.videos = [v[None] if torch.is_tensor(v) and v.ndim == 3 else v for v in self.videos]
        for i, video in enumerate(self.videos):
            self._check(i, video)
        self.starts = [0]
        for video in self.videos:
            self.starts.append(self.starts[-1] + len(video))

    def _check(self, i: int, video) -> None:
        shape = tuple(getattr(video, "shape", ()))
        if len(shape) != 4 or shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"{self.name}[{i}] has shape {shape or type(video).__name__}; this model reads frames of shape "
                f"(frames, 3, {self.image_size}, {self.image_size}), as its processor makes them"
            )
        if torch.is_tensor(video) and video.dtype != torch.uint8 and not video.is_floating_point():
            raise ValueError(f"{self.name}[{i}] has dtype {video.dtype}; frames are uint8, or float when normalised")

    def __len__(self) -> int:
        return self.starts[-1]

    def clip_of(self, frame: int) -> tuple[int, int]:
        """Return the clip (first frame, end frame) that a frame is in; the last one of a video may be shorter."""
        video = bisect_right(self.starts, frame) - 1
        first = frame - (frame - self.starts[video]) % self.frames_per_clip
        return first, min(first + self.frames_per_clip, self.starts[video + 1])

    def batches(self, first: int, end: int, most: int) -> list[tuple[int, int, int]]:
        """Cut the clips that hold frames first..end into micro-batches of up to `most` frames, at least one clip.

        Returns:
            (first frame, end frame, frames of each clip), in order.
        """
        batches: list[tuple[int, int, int]] = []
        while first < end:
            start, stop = self.clip_of(first)
            if batches and batches[-1][2] == stop - start and stop - batches[-1][0] <= most:
                batches[-1] = (batches[-1][0], stop, stop - start)
            else:
                batches.append((start, stop, stop - start))
            first = stop
        return batches

    def load(self, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return frames start..stop on the device, normalised, (stop - start, 3, H, W)."""
        pieces = []
        for video, first in zip(self.videos, self.starts):
            i, j = max(start - first, 0), min(stop - first, len(video))
            if i < j:
                frames = torch.as_tensor(video[i:j]).to(device)
                pieces.append(self._normalise(frames, dtype) if frames.dtype == torch.uint8 else frames.to(dtype))
        return torch.cat(pieces)

    def _normalise(self, frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        work = torch.promote_types(dtype, torch.float32)
        mean = torch.tensor(self.mean, dtype=work, device=frames.device)[:, None, None]
        std = torch.tensor(self.std, dtype=work, device=frames.device)[:, None, None]
        return ((frames.to(work) / 255 - mean) / std).to(dtype)


def frame_sequence(config, given, name: str) -> FrameSequence:
    """Return the frames given as argument `name` to a model of this `VideoMa2mbaConfig`."""
    size = config.vision_config.image_size
    return FrameSequence(given, size, config.image_mean, config.image_std, name, config.frames_per_clip)


def encode_frames(
    tower: nn.Module, pixels: torch.Tensor, layers_run: int, stride: int, frames_per_clip: int = 1
) -> torch.Tensor:
    """Run the tower up to its feature layer and pool (paper, section 3.4): (F, 3, H, W) -> (F, V, D).

    The patch features (24 x 24 at 336 px) are pooled bilinearly to ceil(side / stride) per side. Layers behind
    `layers_run` do not run.

    Args:
        frames_per_clip: of these frames, which are whole clips of one length; an image is a clip of one frame.
    """
    side = tower.config.image_size // tower.config.patch_size
    if tower.config.model_type == "videomamba":
        patches = _encode_clips(tower, pixels.unflatten(0, (-1, frames_per_clip)), layers_run)
    else:
        hidden = tower.embeddings(pixels)
        if hasattr(tower, "pre_layrnorm"):  # CLIP; its first token is the class token, SigLIP has neither
            hidden = tower.pre_layrnorm(hidden)
        for layer in tower.encoder.layers[:layers_run]:
            hidden = layer(hidden, None)
        patches = hidden[:, -side * side :]  # (F, side^2, D)
    if stride == 1:
        return patches
    grid = patches.transpose(1, 2).unflatten(2, (side, side))  # (F, D, side, side)
    pooled = F.interpolate(grid, size=(-(-side // stride),) * 2, mode="bilinear", align_corners=False)
    return pooled.flatten(2).transpose(1, 2)


def _encode_clips(tower: nn.Module, clips: torch.Tensor, layers_run: int) -> torch.Tensor:
    """Run VideoMamba's first blocks, all of them with its norm: (B, T, 3, H, W) -> patches (B T, S, D)."""
    tokens = tower.embed(clips, is_video=tower.config.num_frames is not None)
    hidden = tower.encode(tokens, tower.temporal_order(clips.shape[1], clips.device), layers_run=layers_run)
    return hidden[:, 1:].unflatten(1, (clips.shape[1], -1)).flatten(0, 1)  # without the class token


def unused_tower_parameters(tower: nn.Module, layers_run: int) -> list[str]:
    """Return the names of the tower's parameters behind the feature layer: kept in checkpoints, frozen, never run."""
    if tower.config.model_type == "videomamba":
        behind = [f"layers.{i}." for i in range(layers_run, len(tower.layers))]
        behind += ["norm_f."] if behind else []
        return [name for name, _ in tower.named_parameters() if name.startswith(tuple(behind))]
    behind = tuple(f"encoder.layers.{i}." for i in range(layers_run, len(tower.encoder.layers)))
    return [name for name, _ in tower.named_parameters() if name.startswith((*behind, "post_layernorm.", "head."))]


class PlaceholderSpans:
    """Which visual tokens stand where: the k-th placeholder of a batch, row by row, is the k-th visual token.

    Args:
        is_placeholder: (B, T) boolean, on the host.
    """

    def __init__(self, is_placeholder: torch.Tensor):
        self.is_placeholder = is_placeholder
        self.before = torch.zeros(is_placeholder.shape[0], is_placeholder.shape[1] + 1, dtype=torch.long)
        self.before[:, 1:] = is_placeholder.cumsum(dim=1)  # placeholders of the row before each position
        row_totals = self.before[:, -1]
        self.row_starts = row_totals.cumsum(0) - row_totals

    def __len__(self) -> int:
        return int(self.before[:, -1].sum())

    def between(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return for each row the visual tokens (first, end) of its positions start..stop."""
        firsts = (self.row_starts + self.before[:, start]).tolist()
        ends = (self.row_starts + self.before[:, stop]).tolist()
        return list(zip(firsts, ends))
