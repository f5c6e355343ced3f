"""`FusionTextEncoder`: transformers' BERT whose last layers also look at the tokens of a clip (arXiv 2403.06977, 3.3).

Layers before `fusion_layer` read the text alone, in both directions; from there on a cross-attention to the vision
tokens stands between self-attention and feed-forward. Parameter names are those of published checkpoints.

Dims: B batch, T text tokens, W text width, L vision tokens, D vision width, V vocabulary.
"""

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertAttention


class FusionTextEncoder(BertForMaskedLM):
    """Text encoder, cross-modal decoder and head of masked words in one BERT.

    Args:
        fusion_layer: first layer with cross-attention. vision_width: D.
    """

    def __init__(self, config: BertConfig, fusion_layer: int, vision_width: int):
        super().__init__(config)
        self.fusion_layer = fusion_layer
        for index, layer in enumerate(self.bert.encoder.layer):
            if index >= fusion_layer:
                # transformers has cross-attention in decoders only, which read the text in one direction; and for
                # keys as wide as the text. Said of a layer behind its construction, it stays bidirectional.
                layer.is_decoder = True
                layer.crossattention = BertAttention(config, is_cross_attention=True, layer_idx=index)
                width = layer.crossattention.self.all_head_size
                layer.crossattention.self.key = nn.Linear(vision_width, width)
                layer.crossattention.self.value = nn.Linear(vision_width, width)
        self.post_init()

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Read texts alone, by the layers before `fusion_layer`: (B, T) token ids -> (B, T, W).

        Args:
            attention_mask: (B, T), 1 at text and 0 at padding.
        """
        limit = self.config.max_position_embeddings
        if input_ids.shape[1] > limit:
            raise ValueError(f"texts of {input_ids.shape[1]} tokens; this model reads up to {limit}: cut them")
        hidden = self.bert.embeddings(input_ids=input_ids)
        mask = _additive(attention_mask, hidden.dtype)
        for layer in self.bert.encoder.layer[: self.fusion_layer]:
            hidden = layer(hidden, mask)
        return hidden

    def fuse(self, texts: torch.Tensor, attention_mask: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        """Let texts (B, T, W) out of `encode` look at the clips' tokens (B, L, D): (B, T, W)."""
        mask = _additive(attention_mask, texts.dtype)
        for layer in self.bert.encoder.layer[self.fusion_layer :]:
            texts = layer(texts, mask, vision)
        return texts


def _additive(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn 1 and 0 into what is added to attention scores: (B, T) -> (B, 1, 1, T)."""
    return (1.0 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


__all__ = ["FusionTextEncoder"]
