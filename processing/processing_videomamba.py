"""`VideoMambaProcessor`: images and videos to what VideoMamba reads, behind `AutoProcessor`."""

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_processing_videomamba import VideoMambaImageProcessor
from .video_processing_videomamba import VideoMambaVideoProcessor


class VideoMambaProcessor(ProcessorMixin):
    """Fits images, samples and fits videos.

    Args:
        image_processor: holds the settings for both.

    Example:

    ```python
    >>> inputs = processor(videos="clip.mp4", return_tensors="pt")
    >>> inputs["pixel_values_videos"].shape
    torch.Size([1, 8, 3, 224, 224])
    ```
    """

    def __init__(self, image_processor: VideoMambaImageProcessor, **kwargs):
        kwargs.pop("video_processor", None)  # what `to_dict` adds
        super().__init__(image_processor, **kwargs)

    def to_dict(self, *args, **kwargs) -> dict:
        """As transformers' own, and the class that `AutoVideoProcessor` looks for; its settings are the images'."""
        name = VideoMambaVideoProcessor.__name__
        code = {"AutoVideoProcessor": f"{VideoMambaVideoProcessor.__module__.split('.')[-1]}.{name}"}
        return {
            **super().to_dict(*args, **kwargs),
            "video_processor": {"video_processor_type": name, "auto_map": code},
        }

    @property
    def model_input_names(self):
        return ["pixel_values", "pixel_values_videos"]

    def __call__(self, images=None, videos=None, return_tensors: str | None = None, **kwargs) -> BatchFeature:
        """Process images, or videos with the options of `VideoMambaImageProcessor.clips`.

        Returns:
            `pixel_values` (N, 3, size, size) or `pixel_values_videos` (N, F, 3, size, size), uint8.

        Raises:
            ValueError: neither or both were given, or options of videos came with images.
        """
        if (images is None) == (videos is None):
            raise ValueError("give either images or videos")
        if videos is not None:
            return self.image_processor.clips(videos, return_tensors=return_tensors, **kwargs)
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)}: for videos only")
        return self.image_processor(images, return_tensors=return_tensors)


__all__ = ["VideoMambaProcessor"]
