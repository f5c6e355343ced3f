"""The config of a saved folder names its code, so that it loads with `trust_remote_code=True` without this package.

transformers copies the files of the classes it saves itself, and writes one Auto class for each; the others are here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig

# Auto class -> "file.Class", by model_type.
_AUTO_MAPS = {
    "ma2mba": {
        "AutoConfig": "configuration_video_ma2mba.Ma2mbaConfig",
        "AutoModel": "modeling_ma2mba.Ma2mbaModel",
        "AutoModelForCausalLM": "modeling_ma2mba.Ma2mbaForCausalLM",
    },
    "video_ma2mba": {
        "AutoConfig": "configuration_video_ma2mba.VideoMa2mbaConfig",
        "AutoModel": "modeling_video_ma2mba.VideoMa2mbaModel",
        "AutoModelForImageTextToText": "modeling_video_ma2mba.VideoMa2mbaForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_video_ma2mba.VideoMa2mbaForConditionalGeneration",
        "AutoProcessor": "processing_video_ma2mba.VideoMa2mbaProcessor",
    },
    "videomamba": {
        "AutoConfig": "configuration_videomamba.VideoMambaConfig",
        "AutoModel": "modeling_videomamba.VideoMambaModel",
        "AutoModelForImageClassification": "modeling_videomamba.VideoMambaForImageClassification",
        "AutoModelForVideoClassification": "modeling_videomamba.VideoMambaForVideoClassification",
        "AutoProcessor": "processing_videomamba.VideoMambaProcessor",
        "AutoVideoProcessor": "video_processing_videomamba.VideoMambaVideoProcessor",
    },
    "videomamba_multimodal": {
        "AutoConfig": "configuration_videomamba_multimodal.VideoMambaMultiModalConfig",
        "AutoModel": "modeling_videomamba_multimodal.VideoMambaMultiModalModel",
        "AutoProcessor": "processing_videomamba_multimodal.VideoMambaMultiModalProcessor",
    },
}
_CUSTOM_PIPELINES = {
    "video_ma2mba": {
        "video-qa": {
            "impl": "pipeline_video_qa.VideoQAPipeline",
            "pt": ["AutoModelForImageTextToText"],
            "type": "multimodal",
        }
    },
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


def code_names(model_type: str) -> dict[str, dict]:
    """Return what the config of a saved folder says of its code: `auto_map`, and `custom_pipelines` if it has any.

    Raises:
        KeyError: a `model_type` that is not one of this package's.
    """
    names = {"auto_map": dict(_AUTO_MAPS[model_type])}
    if model_type in _CUSTOM_PIPELINES:
        names["custom_pipelines"] = dict(_CUSTOM_PIPELINES[model_type])
    return names


@contextmanager
def code_in_config(config: PreTrainedConfig) -> Iterator[None]:
    """Name the classes that Auto classes and pipelines find in the folder, while the config is being saved."""
    names = code_names(config.model_type)
    for field, value in names.items():
        setattr(config, field, value)
    try:
        yield
    finally:
        for field in names:
            delattr(config, field)
