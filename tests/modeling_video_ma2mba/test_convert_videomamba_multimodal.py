"""The published multi-modal file becomes a model that computes what an independent reading of the layout computes."""

import argparse
import json

import pytest
import torch
from transformers import AutoModel, AutoProcessor, BertTokenizer

from modeling_video_ma2mba import VideoMambaMultiModalModel
from modeling_video_ma2mba.checkpoint_files import ConversionError
from modeling_video_ma2mba.convert_videomamba_multimodal import convert_videomamba_multimodal
from tests.modeling_video_ma2mba.multimodal_model import WORDS
from tests.modeling_video_ma2mba.videomamba_reference import published, published_pair

VOCABULARY = [*WORDS, "far"]  # 20, as the made-up file


@pytest.fixture
def words(tmp_path):
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def save(tmp_path):
    def write(tensors):
        torch.save({"model": tensors, "epoch": 9, "args": argparse.Namespace(lr=4e-4)}, tmp_path / "mm.pth")
        return tmp_path / "mm.pth"

    return write


def test_it_computes_what_the_file_says(save, words, tmp_path):
    tensors = published(family="multi_modal", frames=3)
    report = convert_videomamba_multimodal(save(tensors), tmp_path / "out", tokenizer=words)
    assert report["taken"].keys() | report["left_out"].keys() == tensors.keys() and not report["new"]
    assert not report["taken"].keys() & report["left_out"].keys()
    parts = ("clip_teacher.", "vision_encoder.clip_decoder.", "text_encoder.cls.predictions.decoder.")
    assert all(name.startswith(parts) or name.endswith("position_ids") for name in report["left_out"])
    assert json.loads((tmp_path / "out" / "conversion_report.json").read_text()) == report

    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is VideoMambaMultiModalModel and not info["missing_keys"] and not info["unexpected_keys"]
    model = model.eval().double()
    random = torch.Generator().manual_seed(1)
    clips = torch.randn(2, 3, 3, 32, 32, generator=random, dtype=torch.float64)
    ids = torch.tensor([[2, 5, 9, 19, 12, 3], [2, 8, 10, 3, 0, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        output = model(pixel_values_videos=clips, input_ids=ids, attention_mask=mask)
        vision = model.encode_vision(pixel_values_videos=clips)[1]
        fused = model.text_encoder.fuse(model.encode_text(ids, mask)[1], mask, vision)
        matches, told = model.itm_head(fused[:, 0]), model.text_encoder.cls(fused)
    for i in range(2):
        own = ids[i][mask[i] == 1]
        cosine, match, word = published_pair(tensors, clips[i], own)
        torch.testing.assert_close(output.similarity[i, i], cosine, rtol=0, atol=1e-10)
        torch.testing.assert_close(matches[i], match, rtol=0, atol=1e-10)
        torch.testing.assert_close(told[i, : len(own)], word, rtol=0, atol=1e-10)
    assert model.temp.item() == pytest.approx(tensors["temp"].item())

    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    images = processor.image_processor
    assert (images.frame_fit, images.sampling, images.size, images.num_frames) == ("stretch", "middle", 32, 3)
    assert processor(text="A red, far circle!")["input_ids"].tolist() == [[2, 5, 6, 19, 9, 3]]


def test_a_file_in_16_bits_and_other_sizes(save, words, tmp_path):
    tensors = published(family="multi_modal", frames=4, dtype=torch.bfloat16)
    tensors = {name: tensor for name, tensor in tensors.items() if "predictions.decoder" not in name}  # tied or there
    convert_videomamba_multimodal(save(tensors), tmp_path / "out", tokenizer=words, num_frames=2, image_size=48)
    model = AutoModel.from_pretrained(tmp_path / "out", dtype="auto")
    mixer = model.vision_encoder.layers[0].mixer
    assert model.vision_proj.weight.dtype == torch.bfloat16 and mixer.A_b_log.dtype == mixer.D.dtype == torch.float32
    assert torch.equal(mixer.D, tensors["vision_encoder.layers.0.mixer.D"].float())
    assert model.vision_encoder.pos_embed.shape == (1, 10, 32) and model.config.vision_config.num_frames == 2
    assert model.text_encoder.cls.predictions.decoder.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text_encoder.bert.pooler.dense.bias": torch.zeros(2)}, "pooler.dense.bias has no place"),
        ({"surprise": torch.zeros(2)}, "holds surprise, which is no part of a multi-modal VideoMamba"),
        ({"itm_head.bias": None}, "missing from the source, e.g. itm_head.bias"),
        ({"vision_encoder.pool_norm.bias": None}, "missing from the source, e.g. vision_encoder.pool_norm.bias"),
        ({"vision_proj.weight": None}, "no vision_proj.weight with 2 dimensions"),
        ({"text_encoder.cls.predictions.decoder.bias": torch.ones(20)}, "differs from text_encoder.cls.predictions.b"),
        ({"text_encoder.bert.embeddings.position_ids": torch.ones(1, 40).long()}, "position_ids has no place"),
        ({"text_encoder.bert.embeddings.word_embeddings.weight": torch.zeros(20, 90)}, "90 is no multiple"),
        ({"text_encoder.bert.encoder.layer.7.output.dense.bias": torch.zeros(128)}, r"layers \[0, 1, 2\]\.\.\."),
        ({"text_encoder.bert.encoder.layer.0.crossattention.x": torch.zeros(2)}, r"BERT layers \[0, 2\]: expected"),
        ({"vision_encoder.temporal_pos_embedding": None}, "num_frames=None is an image model"),
        ({"vision_encoder.layers.1.mixer.D": torch.zeros(3)}, r"mixer.D is \(3,\), the new model needs \(64,\)"),
        ({"temp": torch.zeros(2)}, r"temp is \(2,\), the new model needs \(\)"),
    ],
)
def test_every_key_is_accounted_for(save, words, tmp_path, change, message):
    tensors = {**published(family="multi_modal"), **change}
    path = save({name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(ConversionError, match=message):
        convert_videomamba_multimodal(path, tmp_path / "out", tokenizer=words)
    assert not (tmp_path / "out").exists()


def test_what_is_no_such_file(save, words, tmp_path):
    path, out = save(published(family="multi_modal")), tmp_path / "out"
    with pytest.raises(ConversionError, match="nowhere is no folder: give that of a BERT"):
        convert_videomamba_multimodal(path, out, tokenizer="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="no tokenizer that can be read"):
        convert_videomamba_multimodal(path, out, tokenizer=tmp_path / "empty")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path / "other")
    with pytest.raises(ConversionError, match="knows 19 words, the checkpoint 20"):
        convert_videomamba_multimodal(path, out, tokenizer=tmp_path / "other")
    with pytest.raises(ConversionError, match="max_text_tokens=41 must be 3 to 40"):
        convert_videomamba_multimodal(path, out, tokenizer=words, max_text_tokens=41)
    with pytest.raises(ConversionError, match="is a folder: give a published"):
        convert_videomamba_multimodal(words, out, tokenizer=words)
    with pytest.raises(ConversionError, match="use convert_videomamba for an encoder alone"):
        convert_videomamba_multimodal(save(published(family="masked")), out, tokenizer=words)
    assert not out.exists()
