"""Multi-modal VideoMamba (arXiv 2403.06977, section 3.3): clips and texts compared, and read together.

- a VideoMamba reads the clip; BERT's first layers read the text; both are projected to one width and compared (VTC)
- BERT's last layers read the text with a look at the clip: do they belong together (VTM), which word is masked (MLM)

Alignment to a teacher in masked training (UTA) is added by `train/multimodal_pretraining.py`. Retrieval compares all
clips with all texts first and lets the last layers judge the best ones again (`eval/retrieval.py`). Parameter names
are those of published checkpoints, but for the encoder's final norm.

Dims: B batch, F frames of a clip, S patches of a frame, L vision tokens that are read (F S unless some are masked),
D vision width, T text tokens, W text width, P projection width.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_videomamba import VideoMambaConfig
from .configuration_videomamba_multimodal import VideoMambaMultiModalConfig
from .fusion_text_encoder import FusionTextEncoder
from .hub_folder import code_in_config, own_class
from .modeling_videomamba import VideoMambaModel
from .text_video_losses import (
    contrastive_loss,
    gather_pairs,
    hard_negatives,
    masked_words_loss,
    matching_loss,
    similarity,
)

# Bounds of the learnt temperature.
TEMPERATURES = (0.001, 0.5)


@dataclass
class VideoMambaMultiModalOutput(ModelOutput):
    """What `VideoMambaMultiModalModel` returns.

    Attributes:
        loss: the sum of the losses below, each of weight 1; None where no `pair_ids` were given.
        vtc_loss, vtm_loss, mlm_loss, uta_loss: None where the inputs for one were not given.
        similarity: (B, B) cosines, clips by texts, fp32 or better.
        vision_embeds: (B, 1 or F, P). text_embeds: (B, P).
    """

    loss: torch.Tensor | None = None
    vtc_loss: torch.Tensor | None = None
    vtm_loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    uta_loss: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    vision_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


class VideoMambaMultiModalEncoder(VideoMambaModel):
    """The vision encoder: a VideoMamba with the norm of its pooled vectors."""

    def __init__(self, config: VideoMambaConfig):
        super().__init__(config)
        self.pool_norm = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.post_init()


class VideoMambaMultiModalPreTrainedModel(PreTrainedModel):
    config: VideoMambaMultiModalConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("VideoMambaBlock", "BertLayer", "BertEmbeddings")
    # The losses are means over the batch; the Trainer divides by accumulation steps.
    accepts_loss_kwargs = False

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers' own; the folder also carries the code, for `trust_remote_code=True` elsewhere."""
        with code_in_config(self.config), own_class(self):
            super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, VideoMambaMultiModalModel):
            init.constant_(module.temp, self.config.temperature)


class VideoMambaMultiModalModel(VideoMambaMultiModalPreTrainedModel):
    """Clips and texts in, their similarity and the losses of pre-training out.

    Example:

    ```python
    >>> from modeling_video_ma2mba import VideoMambaMultiModalModel
    >>> model = VideoMambaMultiModalModel.from_pretrained("runs/captions").eval()
    >>> model(pixel_values_videos=clips, input_ids=ids, attention_mask=mask).similarity.argmax(1)
    tensor([0, 1, 2])
    ```
    """

    def __init__(self, config: VideoMambaMultiModalConfig):
        super().__init__(config)
        vision, text = config.vision_config.hidden_size, config.text_config.hidden_size
        self.vision_encoder = VideoMambaMultiModalEncoder(config.vision_config)
        self.text_encoder = FusionTextEncoder(config.text_config, config.fusion_layer, vision)
        self.vision_proj = nn.Linear(vision, config.projection_size)
        self.text_proj = nn.Linear(text, config.projection_size)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        self.itm_head = nn.Linear(text, 2)
        self.post_init()

    def get_input_embeddings(self):
        return self.text_encoder.get_input_embeddings()

    def encode_vision(
        self,
        pixel_values=None,
        pixel_values_videos=None,
        visible: torch.Tensor | None = None,
        hidden_states: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read images or clips, in any of the forms that `VideoMambaModel` takes.

        Args:
            visible: (B, V) int64, rising, places of the tokens that are read, the class token's 0 first; None: all.
            hidden_states: as in `VideoMambaModel.encode`.

        Returns:
            The vectors to compare, not normalised: (B, F, P), one for each frame, or, of visible tokens, (B, 1, P);
            the tokens to look at (B, L, D).
        """
        encoder = self.vision_encoder
        pixels = encoder.load_frames(pixel_values, pixel_values_videos)
        tokens = encoder.embed(pixels, is_video=pixel_values is None)
        if visible is None:
            groups, order = pixels.shape[1], encoder.temporal_order(pixels.shape[1], pixels.device)
        else:
            groups, order = 1, None
            tokens = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))
        if self.training and pixel_values is not None:
            # Images have no temporal position; data-parallel training waits for a gradient of every parameter.
            tokens = tokens + 0 * encoder.temporal_pos_embedding.sum()
        hidden = encoder.encode(tokens, order, hidden_states)
        means = hidden[:, 1:].unflatten(1, (groups, -1)).mean(2)  # (B, L, D) -> (B, F or 1, D)
        return self.vision_proj(encoder.pool_norm(hidden[:, :1] + means)), hidden[:, 1:]

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read texts (B, T), the first token being [CLS].

        Returns:
            The vector to compare (B, P), not normalised; the text to let look at a clip (B, T, W).
        """
        texts = self.text_encoder.encode(input_ids, attention_mask)
        return self.text_proj(texts[:, 0]), texts

    def match(self, texts: torch.Tensor, attention_mask: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        """Say whether texts (B, T, W) belong to clips' tokens (B, L, D): (B, 2) logits, the second for yes."""
        return self.itm_head(self.text_encoder.fuse(texts, attention_mask, vision)[:, 0])

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values=None,
        pixel_values_videos=None,
        pair_ids: torch.Tensor | None = None,
        masked_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> VideoMambaMultiModalOutput:
        """Compare B clips or images with B texts; with `pair_ids` also return the losses.

        Args:
            input_ids, attention_mask: (B, T), [CLS] first.
            pixel_values: images (B, 3, H, W). pixel_values_videos: clips (B, F, 3, H, W). One of both.
            pair_ids: (B,) whole numbers; pairs of the same number are of the same video, and no negatives of each
                other. The i-th text belongs to the i-th clip.
            masked_input_ids: (B, T) with words masked; labels: (B, T), the word where one is masked, else -100.
        """
        vision = self.encode_vision(pixel_values, pixel_values_videos)
        return self.compare(vision, input_ids, attention_mask, pair_ids, masked_input_ids, labels)

    def compare(
        self,
        encoded_vision: tuple[torch.Tensor, torch.Tensor],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pair_ids: torch.Tensor | None = None,
        masked_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> VideoMambaMultiModalOutput:
        """As `forward`, of what `encode_vision` has returned."""
        vision_embeds, vision = encoded_vision
        text_embeds, texts = self.encode_text(input_ids, attention_mask)
        cosines = similarity(vision_embeds, text_embeds)
        output = VideoMambaMultiModalOutput(similarity=cosines, vision_embeds=vision_embeds, text_embeds=text_embeds)
        if pair_ids is None:
            return output
        with torch.no_grad():
            self.temp.clamp_(*TEMPERATURES)
        all_vision, all_texts, all_ids = gather_pairs(vision_embeds, text_embeds, pair_ids)
        temperature = self.temp.to(cosines.dtype)
        output.vtc_loss = contrastive_loss(similarity(all_vision, all_texts) / temperature, all_ids)
        output.vtm_loss = self._matching(cosines / temperature, pair_ids, texts, attention_mask, vision)
        output.loss = output.vtc_loss + output.vtm_loss
        if labels is not None:
            output.mlm_loss = self._masked_words(masked_input_ids, attention_mask, labels, vision)
            output.loss = output.loss + output.mlm_loss
        return output

    def _matching(self, scores, pair_ids, texts, attention_mask, vision):
        """Return VTM over the pairs, and for each text a hard clip and for each clip a hard text from this batch."""
        of_text, clip = hard_negatives(scores.T, pair_ids)
        of_clip, text = hard_negatives(scores, pair_ids)
        pairs = torch.arange(len(pair_ids), device=scores.device)
        text_rows, clip_rows = torch.cat([pairs, of_text, text]), torch.cat([pairs, clip, of_clip])
        logits = self.match(texts[text_rows], attention_mask[text_rows], vision[clip_rows])
        return matching_loss(logits, positives=len(pairs))

    def _masked_words(self, masked_input_ids, attention_mask, labels, vision):
        hidden = self.text_encoder.encode(masked_input_ids, attention_mask)
        hidden = self.text_encoder.fuse(hidden, attention_mask, vision)
        is_masked = labels != -100
        return masked_words_loss(self.text_encoder.cls(hidden[is_masked]), labels[is_masked])


__all__ = ["VideoMambaMultiModalModel", "VideoMambaMultiModalOutput", "VideoMambaMultiModalPreTrainedModel"]
