"""A tiny multi-modal VideoMamba, its processor and a batch, for the tests of several parts."""

import torch
from transformers import BertTokenizer

from modeling_video_ma2mba import (
    VideoMambaImageProcessor,
    VideoMambaMultiModalConfig,
    VideoMambaMultiModalModel,
    VideoMambaMultiModalProcessor,
)

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a red blue green circle square moves left right up down then and the".split()


def tiny_config(**vision) -> VideoMambaMultiModalConfig:
    text = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return VideoMambaMultiModalConfig(
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 3, "image_size": 32, "patch_size": 16, "num_frames": 4, **vision,
        },
        text_config={
            **text, "vocab_size": len(WORDS), "max_position_embeddings": 24, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
        },
        fusion_layer=2, projection_size=8, initializer_range=0.3,
    )  # fmt: skip


def tiny_model(seed: int = 0, **vision) -> VideoMambaMultiModalModel:
    torch.manual_seed(seed)
    return VideoMambaMultiModalModel(tiny_config(**vision)).eval()


def tiny_processor(size: int = 32, num_frames: int = 4) -> VideoMambaMultiModalProcessor:
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    images = VideoMambaImageProcessor(size=size, frame_fit="stretch", num_frames=num_frames, sampling="middle")
    return VideoMambaMultiModalProcessor(images, tokenizer, max_text_tokens=12)


def batch(count: int = 4, seed: int = 0, tokens: int = 7) -> dict[str, torch.Tensor]:
    """Clips and texts with every third word masked; the second text is shorter."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(WORDS), (count, tokens), generator=random)
    ids[:, 0] = 2
    mask = torch.ones_like(ids)
    mask[1, 4:], ids[1, 4:] = 0, 0
    labels = torch.full_like(ids, -100)
    labels[:, 1::3] = ids[:, 1::3]
    labels[mask == 0] = -100
    return {
        "pixel_values_videos": torch.randint(0, 256, (count, 4, 3, 32, 32), generator=random, dtype=torch.uint8),
        "input_ids": ids,
        "attention_mask": mask,
        "pair_ids": torch.arange(count),
        "masked_input_ids": torch.where(labels == -100, ids, 4),
        "labels": labels,
    }
