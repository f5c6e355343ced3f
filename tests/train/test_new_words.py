"""Words that a tokenizer does not know are found, added once, and survive saving."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_video_ma2mba.train.new_words import learn_words, unknown_words
from modeling_video_ma2mba.train.samples import Media, Turn, conversation
from modeling_video_ma2mba.train.tiny_model import build_tiny_model


@pytest.fixture
def tiny():
    return build_tiny_model(seed=0)


def sample(*turns):
    return conversation(
        id="1", source="test", media=Media(kind="video", path="a.mp4"), turns=[Turn(*turn) for turn in turns]
    )


def test_words_are_found_by_frequency(tiny):
    tokenizer = tiny[1].tokenizer
    samples = [sample(("what animal ?", "a cat , red")), sample(("which cat ?", "catalogue"))]
    assert unknown_words(tokenizer, samples) == ["cat", "animal", "catalogue"]
    assert unknown_words(tokenizer, [sample(("what colour ?", "red"))]) == []


def test_a_tokenizer_without_unknown_word_learns_none(tiny):
    tokenizer = tiny[1].tokenizer
    tokenizer.unk_token = None
    assert unknown_words(tokenizer, [sample(("what animal ?", "cat"))]) == []


def test_new_words_are_read_written_and_saved(tiny, tmp_path):
    model, processor = tiny
    before = model.get_input_embeddings().weight.detach().clone()
    ids = processor.tokenizer("what colour is it ?")["input_ids"]
    learn_words(model, processor.tokenizer, ["cat", "catalogue"])
    assert processor.tokenizer("what colour is it ?")["input_ids"] == ids
    text = "the red cat came after a catalogue ."
    read = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.unk_token_id not in read and processor.tokenizer.decode(read) == text
    assert len(model.get_input_embeddings().weight) == len(before) + 2
    assert torch.equal(model.get_input_embeddings().weight[: len(before)], before)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.text_config.vocab_size == len(before) + 2
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer(text)["input_ids"] == read
    torch.testing.assert_close(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
