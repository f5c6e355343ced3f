"""What a batch holds: the text of each stage, labels on captions and answers alone, frames that stay on the host."""

import numpy as np
import pytest
import torch

from modeling_video_ma2mba.processing.frame_source import FrameSource
from modeling_video_ma2mba.train.collator import IGNORE_INDEX, SampleCollator
from modeling_video_ma2mba.train.samples import Media, Turn, captioned, conversation, interleaved
from modeling_video_ma2mba.train.training_set import Decoded


@pytest.fixture
def film(tmp_path):
    return Media(kind="video", path=tmp_path / "film.mp4")


def frames(count):
    return FrameSource(np.zeros((count, 3, 56, 56), dtype=np.uint8))


def shown(processor, batch, row=0):
    """Return the tokens of a row as text, those with a label in brackets."""
    pieces = []
    for token, label in zip(batch["input_ids"][row].tolist(), batch["labels"][row].tolist()):
        word = processor.tokenizer.convert_ids_to_tokens(token)
        assert label in (IGNORE_INDEX, token)
        pieces.append(word if label == IGNORE_INDEX else f"[{word}]")
    return " ".join(pieces)


def test_a_conversation_is_masked_to_its_answers(processor, film):
    turns = [Turn("who wins ?", "red"), Turn("what is it ?", "a car")]
    sample = conversation(id="1", source="test", media=film, turns=turns)
    batch = SampleCollator(processor)([Decoded(sample, [], [frames(2)])])
    assert shown(processor, batch) == (
        "<|system|> You are a helpful assistant . <|endoftext|> <|user|>" + " <video>" * 8 + " who wins ? "
        "<|endoftext|> <|assistant|> [red] [<|endoftext|>] <|user|> what is it ? <|endoftext|> "
        "<|assistant|> [a] [car] [<|endoftext|>]"
    )
    assert isinstance(batch["pixel_values_videos"][0], FrameSource)


def test_a_caption_is_plain(processor, film):
    sample = captioned(id="1", source="test", media=film, caption="red car")
    batch = SampleCollator(processor)([Decoded(sample, [], [frames(1)])])
    assert shown(processor, batch) == "<video> <video> <video> <video> [red] [car] [<|endoftext|>]"


def test_an_image_has_its_own_placeholder(processor, film):
    sample = captioned(id="1", source="test", media=Media(kind="image", path=film.path), caption="red car")
    batch = SampleCollator(processor)([Decoded(sample, [np.zeros((40, 60, 3), dtype=np.uint8)], [])])
    assert shown(processor, batch) == "<image> <image> <image> <image> [red] [car] [<|endoftext|>]"
    assert batch["pixel_values"].shape == (1, 3, 56, 56) and "pixel_values_videos" not in batch


def test_clips_and_captions_take_turns(processor, film):
    clips = [(film, "red car"), (Media(kind="video", path=film.path, start=5, end=9), "blue car")]
    sample = interleaved(id="1", source="test", clips=clips)
    batch = SampleCollator(processor)([Decoded(sample, [], [frames(1), frames(2)])])
    assert shown(processor, batch) == (
        "<video> <video> <video> <video> [red] [car] [<|endoftext|>]"
        + " <video>" * 8
        + " [blue] [car] [<|endoftext|>]"
    )


def test_rows_are_padded_on_the_right_without_labels(processor, film):
    samples = [captioned(id=str(n), source="test", media=film, caption="red car") for n in (1, 3)]
    batch = SampleCollator(processor)([Decoded(samples[0], [], [frames(1)]), Decoded(samples[1], [], [frames(3)])])
    assert batch["attention_mask"].sum(1).tolist() == [7, 15]
    assert (batch["labels"][0, 7:] == IGNORE_INDEX).all()
    assert [len(video) for video in batch["pixel_values_videos"]] == [1, 3]


def test_the_model_learns_from_it(processor, film, tiny_video_config):
    from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration

    torch.manual_seed(0)
    model = VideoMa2mbaForConditionalGeneration(tiny_video_config).train()
    sample = conversation(id="1", source="test", media=film, turns=[Turn("who wins ?", "red")])
    batch = SampleCollator(processor)([Decoded(sample, [], [frames(2)])])
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss) and model.model.multi_modal_projector.linear_1.weight.grad.any()
