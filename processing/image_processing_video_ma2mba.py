"""Fits images and video frames alike to the square the vision tower reads: PIL bicubic, uint8 in, uint8 out.

Normalisation is left to the model, which does it on its device, segment by segment: uint8 is a quarter of the memory.
"""

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import load_image

FRAME_FITS = ("crop", "pad", "stretch")


class VideoMa2mbaImageProcessor(BaseImageProcessor):
    """Makes `(3, size, size)` uint8 frames.

    Args:
        size: side of the square, in pixels: `vision_config.image_size`.
        frame_fit: `"crop"` scales the shorter side to `size` and cuts the middle out, as CLIP does (and loses 44 % of
            a 16:9 picture); `"pad"` scales the longer side and fills up with the mean colour; `"stretch"` ignores the
            shape.
        image_mean: per channel, 0..1; the colour of padding.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        size: int = 336,
        frame_fit: str = "crop",
        image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if frame_fit not in FRAME_FITS:
            raise ValueError(f"frame_fit={frame_fit!r} is not one of {', '.join(FRAME_FITS)}")
        if type(size) is not int or not 1 <= size <= 4096:
            raise ValueError(f"size={size!r:.80} must be a whole number from 1 to 4096")
        if len(image_mean) != 3 or not all(type(mean) in (int, float) and 0 <= mean <= 1 for mean in image_mean):
            raise ValueError(f"image_mean={image_mean!r:.80} must be 3 numbers from 0 to 1")
        self.size = size
        self.frame_fit = frame_fit
        self.image_mean = list(image_mean)

    def fit(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Fit one picture, PIL or uint8 (H, W, 3): (3, size, size) uint8."""
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture = picture.convert("RGB")
        width, height = picture.size
        size = self.size
        if self.frame_fit == "stretch":
            picture = _resize(picture, size, size)
        elif self.frame_fit == "crop":
            short = min(width, height)
            picture = _resize(picture, max(size, int(size * width / short)), max(size, int(size * height / short)))
            left, top = (picture.width - size) // 2, (picture.height - size) // 2
            picture = picture.crop((left, top, left + size, top + size))
        else:
            long = max(width, height)
            inner = _resize(picture, max(1, round(size * width / long)), max(1, round(size * height / long)))
            picture = Image.new("RGB", (size, size), tuple(int(mean * 255) for mean in self.image_mean))
            picture.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return np.asarray(picture).transpose(2, 0, 1)

    def __call__(self, images, return_tensors: str | None = None, **kwargs) -> BatchFeature:
        """Fit one image or a list of them: `pixel_values` (N, 3, size, size) uint8.

        Args:
            images: PIL images, uint8 arrays or tensors (H, W, 3) or (3, H, W), paths, URLs.
        """
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        frames = np.stack([self.fit(as_picture(image)) for image in images])
        return BatchFeature({"pixel_values": frames}, tensor_type=return_tensors)


def as_picture(image) -> Image.Image | np.ndarray:
    """Return a PIL image or a uint8 (H, W, 3) array, from either of these, a channels-first one, a path or a URL."""
    if isinstance(image, str):
        return load_image(image)
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if not isinstance(image, np.ndarray):
        return image
    if image.dtype != np.uint8:
        raise ValueError(f"a picture of dtype {image.dtype}: give uint8 values 0..255")
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or 3 not in (image.shape[0], image.shape[2]):
        raise ValueError(f"a picture of shape {image.shape}: give (height, width, 3) or (3, height, width)")
    return np.ascontiguousarray(image if image.shape[2] == 3 else image.transpose(1, 2, 0))


def _resize(picture: Image.Image, width: int, height: int) -> Image.Image:
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.BICUBIC)


__all__ = ["VideoMa2mbaImageProcessor"]
