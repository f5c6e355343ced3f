"""`SampleCollator`: from decoded samples to a batch: the text, and labels where the model has to learn.

Dims: B batch, T tokens.
"""

import torch

from modeling_video_ma2mba.processing.processing_video_ma2mba import VideoMa2mbaProcessor
from modeling_video_ma2mba.train.samples import Media, Sample, Text
from modeling_video_ma2mba.train.training_set import Decoded

IGNORE_INDEX = -100


class SampleCollator:
    """Makes batches of what a `TrainingSet` gives.

    Args:
        processor: its tokenizer, chat template and placeholders are used.
    """

    def __init__(self, processor: VideoMa2mbaProcessor):
        self.processor = processor

    def __call__(self, decoded: list[Decoded]) -> dict:
        """Return `input_ids`, `attention_mask` and `labels`, (B, T), and the media: images uint8, `FrameSource`s."""
        samples = [one.sample for one in decoded]
        images = [image for one in decoded for image in one.images]
        videos = [video for one in decoded for video in one.videos]
        texts = [self.text(sample) for sample in samples]
        batch = dict(
            self.processor(
                text=texts,
                images=images or None,
                videos=videos or None,
                return_tensors="pt",
                padding_side="right",
                add_special_tokens=False,
            )
        )
        batch["labels"] = self.labels(batch["input_ids"], batch["attention_mask"], samples)
        return batch

    def text(self, sample: Sample) -> str:
        """Return a sample as one text: captions behind their media, or a conversation in the chat template.

        Captions (stages 1 and 1.5) have no prompt and no roles: media, caption, end token, media, caption, end token.
        The paper fixes neither separators nor prompts there.
        """
        end = self.processor.tokenizer.eos_token
        if any(isinstance(piece, Text) and piece.role == "caption" for piece in sample.pieces):
            return "".join(
                piece.text + end if isinstance(piece, Text) else _placeholder(piece) for piece in sample.pieces
            )
        messages = []
        for piece in sample.pieces:
            role = "assistant" if isinstance(piece, Text) and piece.role == "assistant" else "user"
            if not messages or messages[-1]["role"] != role:
                messages.append({"role": role, "content": []})
            part = {"type": "text", "text": piece.text} if isinstance(piece, Text) else {"type": _type(piece)}
            messages[-1]["content"].append(part)
        return self.processor.apply_chat_template(messages)

    def labels(self, input_ids: torch.Tensor, mask: torch.Tensor, samples: list[Sample]) -> torch.Tensor:
        """Return labels (B, T): captions, or answers, and their end tokens; everything else is ignored."""
        tokenizer = self.processor.tokenizer
        assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for row, sample in enumerate(samples):
            ids = input_ids[row]
            if any(isinstance(piece, Text) and piece.role == "caption" for piece in sample.pieces):
                visual = (ids == self.processor.image_token_id) | (ids == self.processor.video_token_id)
                target = mask[row].bool() & ~visual
            else:
                target = answer_positions(ids, assistant, tokenizer.eos_token_id)
            labels[row, target] = ids[target]
        return labels


def answer_positions(ids: torch.Tensor, assistant_id: int, end_id: int) -> torch.Tensor:
    """Return where answers and their end tokens are, (T,) boolean.

    An answer begins behind `assistant_id` and ends with the next `end_id`. Padding may be the end token too.
    """
    found, is_answer = torch.zeros(len(ids), dtype=torch.bool), False
    for position, token in enumerate(ids.tolist()):
        found[position] = is_answer
        is_answer = token == assistant_id or (is_answer and token != end_id)
    return found


def _type(media: Media) -> str:
    return "image" if media.kind == "image" else "video"


def _placeholder(media: Media) -> str:
    return f"<{_type(media)}>"
