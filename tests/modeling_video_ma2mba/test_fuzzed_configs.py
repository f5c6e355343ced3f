"""Folders from strangers whose JSON files are hostile: they load, are converted, or are refused in clear words.

Each failure names its seed; `random.Random(seed)` repeats its round.
"""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import AutoModelForVideoClassification
from transformers.utils import logging

from modeling_video_ma2mba import VideoMa2mbaConfig, VideoMambaConfig, VideoMambaForVideoClassification
from modeling_video_ma2mba.checkpoint_files import ConversionError
from modeling_video_ma2mba.convert_llava_mamba import convert_llava_mamba
from modeling_video_ma2mba.processing.image_processing_videomamba import VideoMambaImageProcessor
from modeling_video_ma2mba.processing.load_model import load_model
from modeling_video_ma2mba.processing.processing_videomamba import VideoMambaProcessor


def _sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutations, published = _sibling("mutations"), _sibling("llava_mamba_folder")


@pytest.fixture(autouse=True)
def quiet():
    """Each round would warn of what it changed."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(verbosity)


def fuzz_folder(name, seconds, folder, load, allowed=mutations.CLEAR, refused_share=4):
    """Change one JSON file of a folder a round; `load()` returns or refuses."""
    whole = {path: path.read_bytes() for path in sorted(folder.glob("*.json"))}
    values = {path: json.loads(data) for path, data in whole.items()}

    def attempt(rng):
        path = rng.choice(list(whole))
        path.write_bytes(mutations.write_json(values[path], rng))
        try:
            load()
        finally:
            path.write_bytes(whole[path])

    load()
    mutations.fuzz(name, seconds, attempt, allowed, refused_share)


@pytest.mark.parametrize("seconds", mutations.seconds(10))
def test_video_model(tiny_video_model, processor, tmp_path, seconds):
    tiny_video_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    fuzz_folder("video model", seconds, tmp_path, lambda: load_model(str(tmp_path), "cpu"))


@pytest.mark.parametrize("seconds", mutations.seconds(3))
def test_videomamba(tmp_path, seconds):
    config = VideoMambaConfig(
        hidden_size=32, num_hidden_layers=2, patch_size=14, image_size=28, num_frames=4, num_labels=3, backend="torch"
    )
    VideoMambaForVideoClassification(config).save_pretrained(tmp_path)
    VideoMambaProcessor(VideoMambaImageProcessor(size=28, num_frames=4)).save_pretrained(tmp_path)
    kind = AutoModelForVideoClassification
    fuzz_folder("videomamba", seconds, tmp_path, lambda: load_model(str(tmp_path), "cpu", auto_class=kind))


@pytest.mark.parametrize("seconds", mutations.seconds(5))
def test_checkpoints_of_the_authors(tiny_tokenizer, tmp_path, seconds):
    folder = published.write_folder(tmp_path / "folder", published.make_tensors(), tiny_tokenizer)
    fuzz_folder(
        "llava_mamba", seconds, folder, lambda: convert_llava_mamba(folder, tmp_path / "out"), allowed=ConversionError
    )


@pytest.mark.parametrize("seconds", mutations.seconds(2))
def test_configs_alone(shared_video_config, tmp_path, seconds):
    """As `from_pretrained` of the class itself reads them, without the checks before."""
    shared_video_config.save_pretrained(tmp_path)
    fuzz_folder("config", seconds, tmp_path, lambda: VideoMa2mbaConfig.from_pretrained(tmp_path))
