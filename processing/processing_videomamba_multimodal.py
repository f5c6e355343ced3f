"""`VideoMambaMultiModalProcessor`: clips, images and texts to what the multi-modal VideoMamba reads."""

import re

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_processing_videomamba import VideoMambaImageProcessor

_DELETED = str.maketrans("", "", ",.'!?\"()*#:;~")
_TO_BLANK = str.maketrans("-/", "  ")


def clean_caption(text: str) -> str:
    """Clean a text as the published model's training did: lower case, no punctuation, single blanks."""
    text = text.lower().translate(_DELETED).translate(_TO_BLANK).replace("<person>", "person")
    return re.sub(r"\s+", " ", text).strip()


class VideoMambaMultiModalProcessor(ProcessorMixin):
    """Samples and fits clips, fits images, cleans and tokenises texts.

    Args:
        image_processor: settings for images and clips.
        tokenizer: BERT's; its texts begin with [CLS] and end with [SEP].
        max_text_tokens: longer texts are cut. Published: 32 in training; 32, 64, 96 or 150 by the data set in tests.

    Example:

    ```python
    >>> inputs = processor(videos="clip.mp4", text="A dog catches a ball.", return_tensors="pt")
    ```
    """

    def __init__(
        self,
        image_processor: VideoMambaImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        max_text_tokens: int = 32,
        **kwargs,
    ):
        if not isinstance(max_text_tokens, int) or max_text_tokens < 3:
            raise ValueError(f"max_text_tokens={max_text_tokens} must be at least 3: [CLS], a word and [SEP]")
        self.max_text_tokens = max_text_tokens
        super().__init__(image_processor, tokenizer, **kwargs)

    @property
    def model_input_names(self):
        return ["pixel_values", "pixel_values_videos", "input_ids", "attention_mask"]

    def texts(self, texts: list[str], max_text_tokens: int | None = None) -> dict[str, np.ndarray]:
        """Clean and tokenise: `input_ids` and `attention_mask`, (N, T) int64, padded to the longest.

        Args:
            max_text_tokens: in place of the saved number.
        """
        tokens = self.tokenizer(
            [clean_caption(text) for text in texts],
            padding="longest",
            truncation=True,
            max_length=max_text_tokens or self.max_text_tokens,
            return_tensors="np",
        )
        return {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}

    def __call__(
        self, images=None, text=None, videos=None, return_tensors: str | None = None, **kwargs
    ) -> BatchFeature:
        """Process images or videos, texts, or both; videos with the options of `VideoMambaImageProcessor.clips`.

        Returns:
            `pixel_values` (N, 3, size, size) or `pixel_values_videos` (N, F, 3, size, size), uint8; `input_ids` and
            `attention_mask` (N, T).

        Raises:
            ValueError: nothing was given, or images and videos, or options of videos without a video.
        """
        if (images is not None and videos is not None) or (images is None and videos is None and text is None):
            raise ValueError("give texts, images or videos, or texts with one of the others")
        if kwargs and videos is None:
            raise ValueError(f"{', '.join(kwargs)}: for videos only")
        found = {}
        if videos is not None:
            found |= self.image_processor.clips(videos, **kwargs)
        if images is not None:
            found |= self.image_processor(images)
        if text is not None:
            found |= self.texts([text] if isinstance(text, str) else list(text))
        return BatchFeature(found, tensor_type=return_tensors)


__all__ = ["VideoMambaMultiModalProcessor"]
