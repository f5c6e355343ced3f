"""`VideoMambaVideoProcessor`: the video side of `VideoMambaImageProcessor`, for `AutoVideoProcessor` and pipelines."""

from transformers.feature_extraction_utils import BatchFeature

from .image_processing_videomamba import VideoMambaImageProcessor


class VideoMambaVideoProcessor(VideoMambaImageProcessor):
    """Samples a video's frames over its whole length and fits them; arguments as `VideoMambaImageProcessor`."""

    model_input_names = ["pixel_values_videos"]  # noqa: RUF012

    def __call__(self, videos, return_tensors: str | None = None, **kwargs) -> BatchFeature:
        """Return `pixel_values_videos` (N, F, 3, size, size) uint8; arguments as `VideoMambaImageProcessor.clips`."""
        return self.clips(videos, return_tensors=return_tensors, **kwargs)


__all__ = ["VideoMambaVideoProcessor"]
