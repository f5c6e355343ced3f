"""What tests of every part share: a tiny tokenizer, processor and video model."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_video_ma2mba import (
    Ma2mbaConfig,
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
    VideoMa2mbaImageProcessor,
    VideoMa2mbaProcessor,
)

SPECIAL = ["<image>", "<video>", "<|system|>", "<|user|>", "<|assistant|>"]
WORDS = "You are a helpful assistant . who wins ? red blue car what is it hi Be brief".split()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A word-level tokenizer: 0 end and padding, 1 unknown, 2 image, 3 video."""
    vocabulary = {word: i for i, word in enumerate(["<|endoftext|>", "<unk>", *SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL,
    )


@pytest.fixture(scope="session")
def processor(tiny_tokenizer):
    """Frames of 56 px, 4 tokens each."""
    return VideoMa2mbaProcessor(
        VideoMa2mbaImageProcessor(size=56, frame_fit="pad"), tiny_tokenizer, tokens_per_frame=4
    )


@pytest.fixture(scope="session")
def shared_video_config():
    """Tests must not change it, and transformers' Trainer does: it takes `tiny_video_config`."""
    text = Ma2mbaConfig(
        hidden_size=64, num_heads=4, head_dim=32, n_groups=1, num_hidden_layers=2, vocab_size=32, state_size=16,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "patch_size": 14, "image_size": 56,
    }  # fmt: skip
    return VideoMa2mbaConfig(vision_config=vision, text_config=text, image_token_id=2, video_token_id=3)


@pytest.fixture
def tiny_video_config(shared_video_config):
    return copy.deepcopy(shared_video_config)


@pytest.fixture(scope="session")
def tiny_video_model(shared_video_config):
    """A random model in eval mode; tests must not change it."""
    torch.manual_seed(0)
    return VideoMa2mbaForConditionalGeneration(shared_video_config).eval()
