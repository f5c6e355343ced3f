"""Cleaning of texts and the processor of the multi-modal VideoMamba."""

import numpy as np
import pytest
from transformers import AutoProcessor

from modeling_video_ma2mba.processing.processing_videomamba_multimodal import (
    VideoMambaMultiModalProcessor,
    clean_caption,
)
from tests.modeling_video_ma2mba.multimodal_model import tiny_processor


@pytest.mark.parametrize(
    "given, cleaned",
    [
        ("A man, 'red-haired', sings!", "a man red haired sings"),
        ("<PERSON> and/or  <person>:\n(what?) #1 *~;", "person and or person what 1"),
        ("  ", ""),
    ],
)
def test_texts_are_cleaned_as_published(given, cleaned):
    assert clean_caption(given) == cleaned


def test_texts_are_padded_and_cut(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, VideoMambaMultiModalProcessor) and processor.max_text_tokens == 12
    found = processor(text=["A red circle.", "a " * 30], return_tensors="np")
    assert found["input_ids"].shape == (2, 12)
    assert found["input_ids"][0].tolist() == [2, 5, 6, 9, 3, 0, 0, 0, 0, 0, 0, 0]
    assert found["attention_mask"].sum(1).tolist() == [5, 12] and found["input_ids"][1, -1] == 3
    assert processor.texts(["a " * 30], 5)["input_ids"].tolist() == [[2, 5, 5, 5, 3]]


def test_clips_and_texts_together():
    frames = np.random.default_rng(0).integers(0, 255, (9, 20, 40, 3), dtype=np.uint8)
    found = tiny_processor()(videos=frames, text="red", return_tensors="pt")
    assert found["pixel_values_videos"].shape == (1, 4, 3, 32, 32) and found["input_ids"].tolist() == [[2, 6, 3]]


@pytest.mark.parametrize("given", [{}, {"images": [], "videos": []}, {"text": "red", "view": 1}])
def test_what_cannot_be_processed_is_refused(given):
    with pytest.raises(ValueError, match=r"give texts, images or videos|for videos only"):
        tiny_processor()(**given)
