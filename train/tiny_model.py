"""The architecture of the small model that ships with the project, with random weights, and its tokenizer of words.

1.5 million parameters; frames of 56 px become 4 tokens each. `pretrain_tiny.py` and the three stages train it.
"""

import math

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
from modeling_video_ma2mba.train.scene_questions import vocabulary

IMAGE_SIZE = 56
SLOWEST, FASTEST = 0.02, 4.0  # of the heads' decay rates A
SPECIAL_WORDS = ("<image>", "<video>", "<|system|>", "<|user|>", "<|assistant|>")
SYSTEM_WORDS = "You are a helpful assistant .".split()


def build_tiny_model(seed: int) -> tuple[VideoMa2mbaForConditionalGeneration, VideoMa2mbaProcessor]:
    """Return the model with random weights and its processor."""
    tokenizer = build_tokenizer()
    text_config = Ma2mbaConfig(
        hidden_size=160,
        num_heads=10,
        head_dim=32,
        n_groups=1,
        num_hidden_layers=6,
        state_size=64,
        chunk_size=32,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.05,  # transformers' 0.1 is meant for nothing this small
    )
    vision_config = {
        "model_type": "clip_vision_model",
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,  # the last one is behind the feature layer and never runs
        "num_attention_heads": 4,
        "patch_size": 14,
        "image_size": IMAGE_SIZE,
    }
    config = VideoMa2mbaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
    )
    torch.manual_seed(seed)
    model = VideoMa2mbaForConditionalGeneration(config)
    for block in model.model.language_model.layers:
        # Mamba-2's own, 1 to 10 for ten heads, forgets within a hundred tokens; it learns far more slowly here.
        block.mixer.A_log.data.copy_(torch.linspace(math.log(SLOWEST), math.log(FASTEST), text_config.num_heads))
    image_processor = VideoMa2mbaImageProcessor(size=IMAGE_SIZE, frame_fit="pad")
    return model, VideoMa2mbaProcessor(image_processor, tokenizer, tokens_per_frame=config.tokens_per_frame)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the words of `scene_questions` and of the chat template."""
    words = ["<|endoftext|>", "<unk>", *SPECIAL_WORDS, *SYSTEM_WORDS]
    words += [word for word in vocabulary() if word not in words]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL_WORDS),
    )
