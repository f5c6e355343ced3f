"""Published files of all families become models that compute what an independent reading of the layout computes."""

import argparse
import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForVideoClassification, AutoProcessor

from modeling_video_ma2mba.checkpoint_files import ConversionError
from modeling_video_ma2mba.convert_videomamba import (
    convert_videomamba,
    inflate_patches,
    read_checkpoint,
    resize_spatial_positions,
    resize_temporal_positions,
)

_spec = importlib.util.spec_from_file_location(
    "videomamba_reference", Path(__file__).parent / "videomamba_reference.py"
)
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)
published, published_logits = reference.published, reference.published_logits


@pytest.fixture
def save(tmp_path):
    """`save(tensors, name="clip.pth")` -> a file as a training run of the public implementation writes it."""

    def write(tensors, name="clip.pth", wrap="model"):
        if wrap:
            tensors = {wrap: tensors, "epoch": 7, "args": argparse.Namespace(lr=1e-3, names=["a"]), "optimizer": {}}
        torch.save(tensors, tmp_path / name)
        return tmp_path / name

    return write


def load(auto, folder):
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (kind, info[kind])
    return model.eval()


def clip(frames, side=32, seed=0):
    return torch.randn(1, frames, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_a_clip_classifier_equals_the_published_computation(save, tmp_path, tubelet):
    tensors = published(frames=4, tubelet=tubelet)
    report = convert_videomamba(save(tensors), tmp_path / "out")
    assert report["taken"].keys() == tensors.keys() and not report["left_out"] and not report["new"]
    assert json.loads((tmp_path / "out" / "conversion_report.json").read_text()) == report
    model = load(AutoModelForVideoClassification, tmp_path / "out").double()
    pixels = clip(4)
    hidden, logits = published_logits(tensors, pixels[0])
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits[0], logits, rtol=0, atol=1e-10)
        ours = model.videomamba(pixel_values_videos=pixels).last_hidden_state[0]
    torch.testing.assert_close(ours, hidden, rtol=0, atol=1e-10)
    processor = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    assert (processor.size, processor.num_frames, processor.sampling) == (32, 4, "sparse")
    assert (processor.crop_ratio, processor.resample) == (1.0, "bilinear")


@pytest.mark.parametrize("family", ["image", "distilled"])
def test_an_image_classifier(save, tmp_path, family):
    tensors = published(family=family)
    report = convert_videomamba(save(tensors, wrap=None), tmp_path / "out")
    assert report["taken"].keys() | report["left_out"].keys() == tensors.keys()
    assert set(report["left_out"]) == {name for name in tensors if name.startswith("distill_head")}
    model = load(AutoModelForImageClassification, tmp_path / "out").double()
    pixels = clip(1)
    with torch.no_grad():
        ours = model(pixels[:, 0]).logits[0]
    torch.testing.assert_close(ours, published_logits(tensors, pixels[0])[1], rtol=0, atol=1e-10)
    processor = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    assert (processor.num_frames, processor.crop_ratio, processor.resample) == (None, 0.875, "bicubic")


@pytest.mark.parametrize("family", ["masked", "multi_modal"])
def test_encoders_without_a_head(save, tmp_path, family):
    dtype = torch.bfloat16 if family == "multi_modal" else torch.float32
    tensors = published(family=family, dtype=dtype)
    report = convert_videomamba(save(tensors, wrap="module"), tmp_path / "out")
    assert report["taken"].keys() | report["left_out"].keys() == tensors.keys() and not report["new"]
    assert all(report["left_out"].values())
    prefix = "vision_encoder." if family == "multi_modal" else ""
    assert report["taken"][f"{prefix}norm.weight"] == "norm_f.weight"
    assert all(name.startswith(prefix) for name in report["taken"])
    model = load(AutoModel, tmp_path / "out")
    # Also where everything was stored in 16 bits, steps and decays are computed in 32.
    assert model.layers[0].mixer.A_b_log.dtype == model.layers[0].mixer.D.dtype == torch.float32
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    bare["norm_f.weight"] = bare["norm.weight"]
    bare |= {"head.weight": torch.zeros(1, 32), "head.bias": torch.zeros(1)}
    pixels = clip(4)
    with torch.no_grad():
        ours = model.double()(pixel_values_videos=pixels).last_hidden_state[0]
    torch.testing.assert_close(ours, published_logits(bare, pixels[0])[0], rtol=0, atol=1e-10)
    processor = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    expected = ("stretch", "middle", "bicubic") if family == "multi_modal" else ("crop", "sparse", "bilinear")
    assert (processor.frame_fit, processor.sampling, processor.resample) == expected


def test_an_image_checkpoint_becomes_a_clip_model(save, tmp_path):
    tensors = published(family="image")
    report = convert_videomamba(save(tensors), tmp_path / "out", num_frames=4, num_labels=5)
    assert set(report["new"]) == {"videomamba.temporal_pos_embedding", "head.weight", "head.bias"}
    assert set(report["left_out"]) == {"head.weight", "head.bias"}  # also with as many classes: they are others
    model = load(AutoModelForVideoClassification, tmp_path / "out")
    assert model.head.weight.std() > 0 and not model.head.bias.any()
    assert not model.videomamba.temporal_pos_embedding.any()
    pixels = clip(4)
    with torch.no_grad():
        ours = model.double().videomamba(pixel_values_videos=pixels).last_hidden_state[0]
    torch.testing.assert_close(ours, published_logits(tensors, pixels[0])[0], rtol=0, atol=1e-10)
    encoder = convert_videomamba(save(tensors), tmp_path / "encoder", num_frames=4, tubelet_size=2)
    assert "head.weight" in encoder["left_out"]
    model = load(AutoModel, tmp_path / "encoder")
    assert model.temporal_pos_embedding.shape == (1, 2, 32)
    assert torch.equal(model.patch_embed.proj.weight[:, :, 1], tensors["patch_embed.proj.weight"])
    assert not model.patch_embed.proj.weight[:, :, 0].any()


def test_positions_for_other_sizes(save, tmp_path):
    tensors = published(side=4, frames=8)
    convert_videomamba(save(tensors), tmp_path / "out", num_frames=6, image_size=96)
    model = load(AutoModelForVideoClassification, tmp_path / "out").videomamba
    old = tensors["pos_embed"]
    assert model.pos_embed.shape == (1, 37, 32) and torch.equal(model.pos_embed[:, 0], old[:, 0])
    grid = old[0, 1:].T.reshape(1, 32, 4, 4)
    grid = F.interpolate(grid, (6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(model.pos_embed[0, 1:], grid[0].flatten(1).T, rtol=0, atol=1e-6)
    # 8 -> 6 linearly: the middle of new frame i lies at (i + 0.5) * 8 / 6 - 0.5 of the old ones.
    times, frames = tensors["temporal_pos_embedding"][0], []
    for i in range(6):
        place = (i + 0.5) * 8 / 6 - 0.5
        low = int(place)
        frames.append(times[low] * (low + 1 - place) + times[min(low + 1, 7)] * (place - low))
    torch.testing.assert_close(model.temporal_pos_embedding[0], torch.stack(frames), rtol=0, atol=1e-6)
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_processor.size == 96
    # The same size is the same numbers.
    assert resize_spatial_positions(old, 4) is old
    assert resize_temporal_positions(tensors["temporal_pos_embedding"], 8) is tensors["temporal_pos_embedding"]
    assert inflate_patches(tensors["patch_embed.proj.weight"], 1) is tensors["patch_embed.proj.weight"]


def test_a_converted_folder_is_a_source_too(save, tmp_path):
    tensors = published(frames=4)
    convert_videomamba(save(tensors, "videomamba_x_ssv2.pth"), tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    config["id2label"] = {str(i): f"class {i}" for i in range(5)}
    config["label2id"] = {f"class {i}": i for i in range(5)}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    report = convert_videomamba(tmp_path / "one", tmp_path / "two", num_frames=8)
    model = load(AutoModelForVideoClassification, tmp_path / "two")
    assert model.config.num_frames == 8 and model.config.id2label[4] == "class 4"
    assert report["taken"].keys() == tensors.keys()
    processor = AutoProcessor.from_pretrained(tmp_path / "two").image_processor
    assert (processor.num_frames, processor.sampling) == (8, "ssv2")


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "encoder.", "module.encoder."])
def test_prefixes_of_wrappers_are_taken_off(save, prefix):
    tensors = published()
    path = save({prefix + name: tensor for name, tensor in tensors.items()})
    assert read_checkpoint(path).keys() == tensors.keys()


def test_a_name_that_says_otherwise_is_noticed(save, tmp_path, caplog):
    path = save(published(family="image"), "videomamba_t16_in1k_res224to448.pth")
    with caplog.at_level(logging.WARNING):
        convert_videomamba(path, tmp_path / "out")
    assert "hidden_size=192, its contents 32" in caplog.text and "image_size=448, its contents 32" in caplog.text


class _Other:
    pass


def test_bad_files_are_refused(save, tmp_path):
    tensors = published()
    with pytest.raises(ConversionError, match="is missing"):
        convert_videomamba(tmp_path / "none.pth", tmp_path / "out")
    path = save({**tensors})
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 50):
        path.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match="damaged"):
            read_checkpoint(path)
    path.write_bytes(b"not a pickle at all, just text\n" * 9)
    with pytest.raises(ConversionError):
        read_checkpoint(path)
    torch.save({"model": tensors, "args": _Other()}, path)
    with pytest.raises(ConversionError, match="more than tensors, plain values and argparse"):
        read_checkpoint(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ConversionError, match="no named tensors"):
        read_checkpoint(path)
    huge = torch.zeros(1).expand(1, 1, 10**12)
    with pytest.raises(ConversionError, match="has not so many numbers"):
        read_checkpoint(save({**tensors, "cls_token": huge}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers.0.mixer.extra": torch.zeros(2)}, "layers.0.mixer.extra has no place"),
        ({"layers.1.mixer.A_b_log": None}, "missing from the source, e.g. videomamba.layers.1.mixer.A_b_log"),
        ({"layers.1.mixer.D_b": torch.zeros(3)}, "D_b is \\(3,\\), the new model needs \\(64,\\)"),
        ({"pos_embed": torch.zeros(1, 7, 32)}, "7 spatial positions are no square grid"),
        ({"cls_token": None}, "no cls_token"),
        ({"patch_embed.proj.weight": torch.zeros(32, 4, 16, 16)}, "no squares of 3 colours"),
        ({"temporal_pos_embedding": torch.zeros(4, 32)}, "temporal_pos_embedding"),
    ],
)
def test_every_key_is_accounted_for(save, tmp_path, change, message):
    tensors = {name: tensor for name, tensor in {**published(), **change}.items() if tensor is not None}
    with pytest.raises(ConversionError, match=message):
        convert_videomamba(save(tensors), tmp_path / "out")


def test_wishes_that_cannot_be_met(save, tmp_path):
    clip_file, image_file = save(published()), save(published(family="image"), "image.pth")
    with pytest.raises(ConversionError, match="cannot be changed"):
        convert_videomamba(clip_file, tmp_path / "out", tubelet_size=2)
    with pytest.raises(ConversionError, match="needs num_frames"):
        convert_videomamba(image_file, tmp_path / "out", tubelet_size=2)
    with pytest.raises(ConversionError, match="image_size=100 must be a multiple"):
        convert_videomamba(image_file, tmp_path / "out", image_size=100)
