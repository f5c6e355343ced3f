"""What a saved folder carries so that it loads with `trust_remote_code=True` where this package is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.dynamic_module_utils import custom_object_save

from .configuration_video_ma2mba import VideoMa2mbaConfig
from .pipeline_video_qa import VideoQAPipeline

_AUTO_MAP = {
    "AutoConfig": "configuration_video_ma2mba.VideoMa2mbaConfig",
    "AutoModel": "modeling_video_ma2mba.VideoMa2mbaModel",
    "AutoModelForImageTextToText": "modeling_video_ma2mba.VideoMa2mbaForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_video_ma2mba.VideoMa2mbaForConditionalGeneration",
    "AutoProcessor": "processing_video_ma2mba.VideoMa2mbaProcessor",
}
_CUSTOM_PIPELINES = {
    "video-qa": {
        "impl": "pipeline_video_qa.VideoQAPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}


@contextmanager
def own_class(model) -> Iterator[None]:
    """Undo what FSDP2 does to a model's class: the folder would get, and name, torch's code instead of the model's."""
    engines = type(model)
    model.__class__ = next(kind for kind in engines.__mro__ if not kind.__module__.startswith("torch."))
    try:
        yield
    finally:
        model.__class__ = engines


@contextmanager
def code_in_config(config: VideoMa2mbaConfig) -> Iterator[None]:
    """Name the classes that Auto classes and pipelines find in the folder, while the config is being saved."""
    config.auto_map = dict(_AUTO_MAP)
    config.custom_pipelines = dict(_CUSTOM_PIPELINES)
    try:
        yield
    finally:
        del config.auto_map, config.custom_pipelines


def save_code(directory: str) -> None:
    """Copy the pipeline's files; transformers copies those of model and processor itself."""
    custom_object_save(VideoQAPipeline, directory)
