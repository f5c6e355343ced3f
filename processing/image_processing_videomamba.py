"""Fits images and frames to the square VideoMamba reads, and samples clips: PIL resize, uint8 in, uint8 out.

Normalisation is left to the model, which does it on its device; decoding to this project's own reader.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from .clip_sampling import SAMPLING_RULES, clip_indices
from .image_processing_video_ma2mba import VideoMa2mbaImageProcessor, as_picture
from .video_reader import iter_frames, probe

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class VideoMambaImageProcessor(VideoMa2mbaImageProcessor):
    """Makes `(3, size, size)` uint8 pictures and `(F, 3, size, size)` clips, as the published models were tested.

    Args:
        size: side of the square, in pixels: `VideoMambaConfig.image_size`.
        frame_fit: `"crop"` scales the shorter side to `size / crop_ratio` and cuts the middle out; `"stretch"` ignores
            the shape, as the multi-modal models do.
        crop_ratio: share of the shorter side that is kept by `"crop"`: 0.875 for images, 1 for clips.
        resample: `"bicubic"`, or `"bilinear"` as clips were tested. PIL's, with antialias.
        num_frames: frames of a clip; None for an image model.
        sampling: which frames, one of `clip_sampling.SAMPLING_RULES`.
    """

    def __init__(
        self,
        size: int = 224,
        frame_fit: str = "crop",
        crop_ratio: float = 0.875,
        resample: str = "bicubic",
        num_frames: int | None = None,
        sampling: str = "sparse",
        **kwargs,
    ):
        super().__init__(size=size, frame_fit=frame_fit, **kwargs)
        del self.image_mean  # the colour of padding, which VideoMamba has not
        if frame_fit == "pad":
            raise ValueError("frame_fit='pad' is not for VideoMamba; choose 'crop' or 'stretch'")
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"crop_ratio={crop_ratio} must be above 0 and at most 1")
        if resample not in RESAMPLING:
            raise ValueError(f"resample={resample!r} is not one of {', '.join(RESAMPLING)}")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames={num_frames} must be at least 1, or None for images")
        if sampling not in SAMPLING_RULES:
            raise ValueError(f"sampling={sampling!r} is not one of {', '.join(SAMPLING_RULES)}")
        self.crop_ratio = crop_ratio
        self.resample = resample
        self.num_frames = num_frames
        self.sampling = sampling

    def fit(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Fit one picture, PIL or uint8 (H, W, 3): (3, size, size) uint8."""
        return self.crops(image, 1)[0]

    def crops(self, image: Image.Image | np.ndarray, count: int) -> np.ndarray:
        """Cut `count` squares out along the longer side, evenly from end to end, or one out of the middle.

        Returns:
            (count, 3, size, size) uint8. 3 are the published crops of a test clip.
        """
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture = picture.convert("RGB")
        size, method = self.size, RESAMPLING[self.resample]
        if self.frame_fit == "stretch":
            squares = [picture.resize((size, size), method)] * count
        else:
            short, scaled = min(picture.size), int(size / self.crop_ratio)
            width, height = (max(size, int(scaled * side / short)) for side in picture.size)
            if (width, height) != picture.size:
                picture = picture.resize((width, height), method)
            squares = []
            for c in range(count):
                along, whole = (c, count - 1) if count > 1 else (1, 2)  # place along the longer side, of the whole way
                left, top = (
                    (side - size) * along // whole if side == max(width, height) else (side - size) // 2
                    for side in (width, height)
                )
                squares.append(picture.crop((left, top, left + size, top + size)))
        return np.stack([np.asarray(square).transpose(2, 0, 1) for square in squares])

    def clips(
        self,
        videos,
        return_tensors: str | None = None,
        num_frames: int | None = None,
        do_sample_frames: bool = True,
        allow_damaged: bool = False,
        view: int = 0,
        views: int = 1,
    ) -> BatchFeature:
        """Sample and fit one video or several: `pixel_values_videos` (N, F, 3, size, size) uint8.

        Args:
            videos: a path, frames (F, H, W, 3) or (F, 3, H, W), a list of pictures; or a list of these.
            num_frames: in place of the saved number.
            do_sample_frames: False takes given frames as they are.
            allow_damaged: go on with what can be read of a damaged video, with a warning, instead of raising.
            view, views: which of how many test clips; see `clip_sampling.clip_indices`.

        Raises:
            VideoReadError: a video cannot be read. ValueError: no number of frames, no video, a path without sampling,
                or clips of unequal length.
        """
        sampling = {"frames": num_frames or self.num_frames, "rule": self.sampling, "view": view, "views": views}
        clips = [
            np.stack([self.fit(frame) for frame in _frames(video, sampling, do_sample_frames, allow_damaged)])
            for video in _videos(videos)
        ]
        if len({len(clip) for clip in clips}) != 1:
            raise ValueError(
                f"{len(clips)} clips of {sorted({len(clip) for clip in clips})} frames in one call; sample as many of "
                "each (num_frames), or call once for each"
            )
        return BatchFeature({"pixel_values_videos": np.stack(clips)}, tensor_type=return_tensors)


def file_frames(
    path: str | Path,
    choose: Callable[[int], np.ndarray],
    *,
    start: float = 0.0,
    end: float | None = None,
    size: int | None = None,
    allow_damaged: bool = False,
) -> Iterator[np.ndarray]:
    """Yield chosen frames of a video file, or of its part from `start` to `end` (seconds), uint8 (H, W, 3).

    Args:
        choose: from how many frames there are to the numbers of those that are wanted, rising.
        size: limit for the shorter side in pixels, to save memory; see `video_reader.iter_frames`.

    Raises:
        VideoReadError: the video cannot be read. ValueError: nothing lies in this part of it.
    """
    info = probe(path)
    end = info.duration if end is None else min(end, info.duration)
    if not start < end:
        raise ValueError(f"{path} lasts {info.duration:.2f} s: there is nothing from {start:g} s on")
    # The middle of a frame's time on screen: rounding cannot reach its neighbours.
    times = start + (choose(max(1, round((end - start) * info.fps))) + 0.5) / info.fps
    for _, chunk in iter_frames(path, times=times, size=size, allow_damaged=allow_damaged):
        yield from chunk


def _frames(video, sampling, do_sample_frames, allow_damaged):
    """Return the frames of a clip, PIL or uint8 (H, W, 3), not yet fitted."""
    if do_sample_frames and sampling["frames"] is None:
        raise ValueError("how many frames? give num_frames=..., here or to the processor")
    if isinstance(video, (str, Path)):
        if not do_sample_frames:
            raise ValueError("do_sample_frames=False is for frames; a file is sampled")
        return file_frames(video, lambda total: clip_indices(total, **sampling), allow_damaged=allow_damaged)
    frames = list(video)
    if not frames:
        raise ValueError("a video without a frame")
    chosen = clip_indices(len(frames), **sampling) if do_sample_frames else range(len(frames))
    return [as_picture(frames[i]) for i in chosen]


def _videos(videos) -> list:
    """Return videos in a list; a list of pictures is one video."""
    if isinstance(videos, (str, Path)):
        return [videos]
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return [videos] if videos.ndim == 4 else list(videos)
    videos = list(videos)
    if videos and all(isinstance(frame, Image.Image) or getattr(frame, "ndim", 0) == 3 for frame in videos):
        return [videos]
    return videos


__all__ = ["VideoMambaImageProcessor"]
