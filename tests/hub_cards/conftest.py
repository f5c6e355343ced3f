"""Folders of small random models, one of every kind that has a card."""

import pytest
import torch

from modeling_video_ma2mba import (
    Ma2mbaConfig,
    Ma2mbaForCausalLM,
    VideoMambaConfig,
    VideoMambaForImageClassification,
    VideoMambaForVideoClassification,
    VideoMambaImageProcessor,
    VideoMambaProcessor,
)


@pytest.fixture(scope="session")
def model_folders(tiny_video_model, processor, tiny_tokenizer, tmp_path_factory):
    """A folder with `qa`, `text`, `clips` and `images`, each complete but for its card; tests must not change it."""
    top = tmp_path_factory.mktemp("models")
    tiny_video_model.save_pretrained(top / "qa")
    processor.save_pretrained(top / "qa")
    torch.manual_seed(0)
    config = Ma2mbaConfig(
        hidden_size=32, num_heads=2, head_dim=32, n_groups=1, num_hidden_layers=2, vocab_size=32, state_size=16,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    Ma2mbaForCausalLM(config).save_pretrained(top / "text")
    tiny_tokenizer.save_pretrained(top / "text")
    for name, kind, settings in (
        ("clips", VideoMambaForVideoClassification, {"num_frames": 2}),
        ("images", VideoMambaForImageClassification, {}),
    ):
        fields = {"hidden_size": 16, "num_hidden_layers": 2, "image_size": 32, "num_labels": 4}
        kind(VideoMambaConfig(**fields, **settings)).save_pretrained(top / name)
        VideoMambaProcessor(VideoMambaImageProcessor(size=32, **settings)).save_pretrained(top / name)
    return top
