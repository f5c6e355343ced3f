"""What a saved folder of Video-Ma²mba carries so that it loads with `trust_remote_code=True` without this package."""

from transformers.dynamic_module_utils import custom_object_save

from .hub_folder import code_in_config, own_class
from .pipeline_video_qa import VideoQAPipeline


def save_code(directory: str) -> None:
    """Copy the pipeline's files; transformers copies those of model and processor itself."""
    custom_object_save(VideoQAPipeline, directory)


__all__ = ["code_in_config", "own_class", "save_code"]
