"""Video-Ma²mba: ask questions about hours of video with a Mamba-2 language model (arXiv 2411.19460)."""

from pathlib import Path as _Path

# In a checkout the sibling folders (processing, train, ...) are sub-packages, as they are in a wheel.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "processing").is_dir():
    __path__.append(str(_root))

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

from .configuration_video_ma2mba import Ma2mbaConfig, VideoMa2mbaConfig
from .generation_video_ma2mba import RepetitionStop
from .modeling_ma2mba import Ma2mbaForCausalLM, Ma2mbaModel
from .modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration, VideoMa2mbaModel
from .state import RecurrentState

__version__ = "0.1.0"

AutoConfig.register("ma2mba", Ma2mbaConfig, exist_ok=True)
AutoConfig.register("video_ma2mba", VideoMa2mbaConfig, exist_ok=True)
AutoModel.register(Ma2mbaConfig, Ma2mbaModel, exist_ok=True)
AutoModel.register(VideoMa2mbaConfig, VideoMa2mbaModel, exist_ok=True)
AutoModelForCausalLM.register(Ma2mbaConfig, Ma2mbaForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(VideoMa2mbaConfig, VideoMa2mbaForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(VideoMa2mbaConfig, VideoMa2mbaForConditionalGeneration, exist_ok=True)
