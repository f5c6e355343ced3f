"""Text for a language model that will read videos: a clip told frame by frame, and questions about it.

Dims: B stories, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modeling_video_ma2mba.processing.processing_video_ma2mba import VideoMa2mbaProcessor
from modeling_video_ma2mba.train.collator import IGNORE_INDEX, answer_positions
from modeling_video_ma2mba.train.scene_questions import (
    ask,
    combinations,
    describe,
    frame_caption,
    request_description,
)
from modeling_video_ma2mba.train.synthetic_video import make_clip


@dataclass(frozen=True)
class Story:
    """What each frame shows, in words, and questions about it with their answers."""

    text: str
    turns: tuple[tuple[str, str], ...]
    learn_text: bool = True  # the answers alone count in the loss if not


def tell_story(seed: Sequence[int], num_frames: int, size: int, questions: int, learn_text: bool = True) -> Story:
    """Return a clip of `num_frames` frames as words, up to `questions` questions, and last its description.

    It has two to six scenes of two frames or more: short stories of many scenes are quickest to learn from.
    """
    num_scenes = int(np.random.default_rng([*seed, 3]).integers(2, min(6, num_frames // 2) + 1))
    clip = make_clip(seed, num_frames, size, num_scenes=num_scenes, combinations=combinations("training"))
    asked = [(question.text, question.answer) for question in ask(clip, questions, [*seed, 1])]
    asked.append((request_description([*seed, 2]), describe(clip)))
    return Story(" ".join(frame_caption(clip, frame) for frame in range(num_frames)), tuple(asked), learn_text)


class StoryCollator:
    """Makes a batch of one list of stories; the story stands where a video would; answers count, stories at first."""

    def __init__(self, processor: VideoMa2mbaProcessor):
        self.processor = processor

    def __call__(self, batches: list[list[Story]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, (B, T)."""
        (stories,) = batches
        texts = [self.processor.apply_chat_template(_conversation(story)) for story in stories]
        tokenizer = self.processor.tokenizer
        batch = dict(self.processor(text=texts, return_tensors="pt", padding_side="right", add_special_tokens=False))
        user, assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
        counts = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for row, story in enumerate(stories):
            ids = batch["input_ids"][row]
            start = ids.tolist().index(user) + 1
            counts[row] = answer_positions(ids, assistant, tokenizer.eos_token_id)
            if story.learn_text:
                counts[row, start : start + len(tokenizer(story.text, add_special_tokens=False)["input_ids"])] = True
        batch["labels"] = batch["input_ids"].masked_fill(~counts, IGNORE_INDEX)
        return batch


def _conversation(story: Story) -> list[dict]:
    messages = []
    for question, answer in story.turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    messages[0]["content"] = f"{story.text} {messages[0]['content']}"
    return messages
