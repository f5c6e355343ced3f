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
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForVideoClassification,
    AutoProcessor,
)

# The real classes also where torchvision is missing (the names in `transformers` itself are placeholders there).
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_video_ma2mba import LlavaMambaConfig, Ma2mbaConfig, VideoMa2mbaConfig
from .configuration_videomamba import VideoMambaConfig
from .configuration_videomamba_multimodal import VideoMambaMultiModalConfig
from .generation_video_ma2mba import RepetitionStop
from .live_frames import LiveFrames
from .modeling_ma2mba import Ma2mbaForCausalLM, Ma2mbaModel
from .modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration, VideoMa2mbaModel
from .modeling_videomamba import VideoMambaForImageClassification, VideoMambaForVideoClassification, VideoMambaModel
from .modeling_videomamba_multimodal import VideoMambaMultiModalModel
from .pipeline_video_qa import VideoQAPipeline
from .processing.image_processing_video_ma2mba import VideoMa2mbaImageProcessor
from .processing.image_processing_videomamba import VideoMambaImageProcessor
from .processing.processing_video_ma2mba import VideoMa2mbaProcessor
from .processing.processing_videomamba import VideoMambaProcessor
from .processing.processing_videomamba_multimodal import VideoMambaMultiModalProcessor
from .processing.video_processing_videomamba import VideoMambaVideoProcessor
from .shipped_model import SHIPPED, is_shipped, model_folder
from .state import RecurrentState
from .video_memory import VideoMemory

__version__ = "0.1.0"

AutoConfig.register("ma2mba", Ma2mbaConfig, exist_ok=True)
AutoConfig.register("video_ma2mba", VideoMa2mbaConfig, exist_ok=True)
AutoConfig.register("llava_mamba", LlavaMambaConfig, exist_ok=True)
AutoModel.register(Ma2mbaConfig, Ma2mbaModel, exist_ok=True)
AutoModel.register(VideoMa2mbaConfig, VideoMa2mbaModel, exist_ok=True)
AutoModelForCausalLM.register(Ma2mbaConfig, Ma2mbaForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(VideoMa2mbaConfig, VideoMa2mbaForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(VideoMa2mbaConfig, VideoMa2mbaForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    VideoMa2mbaConfig, image_processor_classes={"pil": VideoMa2mbaImageProcessor}, exist_ok=True
)
AutoProcessor.register(VideoMa2mbaConfig, VideoMa2mbaProcessor, exist_ok=True)
AutoConfig.register("videomamba", VideoMambaConfig, exist_ok=True)
AutoModel.register(VideoMambaConfig, VideoMambaModel, exist_ok=True)
AutoModelForImageClassification.register(VideoMambaConfig, VideoMambaForImageClassification, exist_ok=True)
AutoModelForVideoClassification.register(VideoMambaConfig, VideoMambaForVideoClassification, exist_ok=True)
AutoImageProcessor.register(VideoMambaConfig, image_processor_classes={"pil": VideoMambaImageProcessor}, exist_ok=True)
AutoVideoProcessor.register(VideoMambaConfig, VideoMambaVideoProcessor, exist_ok=True)
AutoProcessor.register(VideoMambaConfig, VideoMambaProcessor, exist_ok=True)
AutoConfig.register("videomamba_multimodal", VideoMambaMultiModalConfig, exist_ok=True)
AutoModel.register(VideoMambaMultiModalConfig, VideoMambaMultiModalModel, exist_ok=True)
AutoProcessor.register(VideoMambaMultiModalConfig, VideoMambaMultiModalProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "video-qa",
    pipeline_class=VideoQAPipeline,
    pt_model=(AutoModelForImageTextToText,),
    default={"model": (model_folder(SHIPPED), "main")} if is_shipped() else None,
    type="multimodal",
)

# Saved folders carry the code of these classes (hub_folder.py).
Ma2mbaConfig.register_for_auto_class()
Ma2mbaModel.register_for_auto_class("AutoModel")
Ma2mbaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
VideoMa2mbaConfig.register_for_auto_class()
VideoMa2mbaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
VideoMa2mbaModel.register_for_auto_class("AutoModel")
VideoMa2mbaImageProcessor.register_for_auto_class("AutoImageProcessor")
VideoMa2mbaProcessor.register_for_auto_class("AutoProcessor")
VideoMambaConfig.register_for_auto_class()
VideoMambaModel.register_for_auto_class("AutoModel")
VideoMambaForImageClassification.register_for_auto_class("AutoModelForImageClassification")
VideoMambaForVideoClassification.register_for_auto_class("AutoModelForVideoClassification")
VideoMambaImageProcessor.register_for_auto_class("AutoImageProcessor")
VideoMambaVideoProcessor.register_for_auto_class("AutoVideoProcessor")
VideoMambaProcessor.register_for_auto_class("AutoProcessor")
VideoMambaMultiModalConfig.register_for_auto_class()
VideoMambaMultiModalModel.register_for_auto_class("AutoModel")
VideoMambaMultiModalProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "LiveFrames",
    "Ma2mbaConfig",
    "Ma2mbaForCausalLM",
    "Ma2mbaModel",
    "RecurrentState",
    "RepetitionStop",
    "VideoMa2mbaConfig",
    "VideoMa2mbaForConditionalGeneration",
    "VideoMa2mbaImageProcessor",
    "VideoMa2mbaModel",
    "VideoMa2mbaProcessor",
    "VideoMambaConfig",
    "VideoMambaForImageClassification",
    "VideoMambaForVideoClassification",
    "VideoMambaImageProcessor",
    "VideoMambaModel",
    "VideoMambaMultiModalConfig",
    "VideoMambaMultiModalModel",
    "VideoMambaMultiModalProcessor",
    "VideoMambaProcessor",
    "VideoMambaVideoProcessor",
    "VideoMemory",
    "VideoQAPipeline",
]
