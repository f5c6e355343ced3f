"""A tiny random video model whose tokens are bytes: any question can be asked, in any letters.

python byte_model.py FOLDER        # saves model and processor there
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_video_ma2mba import (
    Ma2mbaConfig,
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
    VideoMa2mbaImageProcessor,
    VideoMa2mbaProcessor,
)

SPECIAL = ["<|endoftext|>", "<image>", "<video>", "<|system|>", "<|user|>", "<|assistant|>"]
TOKENS_PER_FRAME = 4


def byte_processor(merges=()):
    """Return a processor with frames of 56 px; `merges` are pairs of letters that are one token together."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        additional_special_tokens=SPECIAL[1:],
    )
    image_processor = VideoMa2mbaImageProcessor(size=56, frame_fit="pad")
    return VideoMa2mbaProcessor(image_processor, fast, tokens_per_frame=TOKENS_PER_FRAME)


def byte_model(processor, dtype=torch.float32):
    """Return a random model for `processor`, in eval mode; it looks at what it sees, but knows nothing."""
    text = Ma2mbaConfig(
        hidden_size=64, num_heads=4, head_dim=32, n_groups=1, num_hidden_layers=2, state_size=16,
        vocab_size=len(processor.tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "patch_size": 14, "image_size": 56,
    }  # fmt: skip
    torch.manual_seed(0)
    config = VideoMa2mbaConfig(vision_config=vision, text_config=text, image_token_id=1, video_token_id=2)
    return VideoMa2mbaForConditionalGeneration(config).to(dtype).eval()


def save(folder):
    """Write model and processor to a folder."""
    processor = byte_processor()
    processor.save_pretrained(folder)
    byte_model(processor).save_pretrained(folder)


if __name__ == "__main__":
    save(sys.argv[1])
