"""Masked pre-training: the loss is the paper's, masked patches are not seen, published names are kept."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaModel
from modeling_video_ma2mba.convert_videomamba import convert_videomamba
from modeling_video_ma2mba.train.clip_masks import draw_masks, draw_noise, visible_places
from modeling_video_ma2mba.train.masked_pretraining import VideoMambaForMaskedPretraining, position_table

FIELDS = {"hidden_size": 16, "num_hidden_layers": 3, "image_size": 32, "num_frames": 3, "initializer_range": 0.3}
CONFIG = VideoMambaConfig(**FIELDS, backend="torch")


def model(layers=1, config=CONFIG):
    torch.manual_seed(0)
    found = VideoMambaForMaskedPretraining(config, 12, layers).eval()
    torch.nn.init.normal_(found.videomamba.norm_f.weight, 1, 0.3)
    torch.nn.init.normal_(found.clip_decoder[0].norm.bias)
    return found


def clips(count=2):
    pixels = torch.randn(count, 3, 3, 32, 32)
    noise = torch.cat([draw_noise([clip], 1, 3, 4) for clip in range(count)])
    return pixels, visible_places(draw_masks("random", 0.5, noise))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_loss_is_the_papers(layers):
    """Written out, one clip and one token at a time, from what the public encoder gives."""
    student, (pixels, visible) = model(layers), clips()
    teacher = torch.randn(layers, 2, visible.shape[1], 12)
    encoder, total = student.videomamba, []
    with torch.no_grad():
        found = student(pixels, visible, teacher)
        for b in range(2):
            tokens = encoder.embed(pixels[b : b + 1])[:, visible[b]]
            residual = tokens
            for block in encoder.layers[:-1]:
                residual = residual + block.mixer(block.norm(residual), None, _backend())
            aligned = [residual] if layers == 1 else [encoder.norm_f(residual), residual]
            for k, feature in enumerate(aligned):
                decoder = student.clip_decoder[k]
                for v, place in enumerate(visible[b].tolist()):
                    angles = [place / 10000 ** (2 * (j // 2) / 16) for j in range(16)]
                    table = torch.tensor([math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)])
                    x = (feature[0, v] + table) @ decoder.head.weight.T + decoder.head.bias
                    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
                    x = x * decoder.norm.weight + decoder.norm.bias
                    one, other = x / x.norm(), teacher[k, b, v] / teacher[k, b, v].norm()
                    total.append(2 - 2 * (one @ other))
    torch.testing.assert_close(found.loss, torch.stack(total).mean(), rtol=1e-4, atol=1e-5)
    assert found.features.shape == teacher.shape and student(pixels, visible).loss is None


def _backend():
    from modeling_video_ma2mba.kernels import Backend

    return Backend(scan="torch", conv="torch", reason="test")


def test_without_a_mask_the_feature_is_the_residual_before_the_last_block():
    student, (pixels, _) = model(), clips()
    visible = torch.arange(13).expand(2, -1)
    with torch.no_grad():
        hidden = student.videomamba(pixel_values_videos=pixels, output_hidden_states=True).hidden_states[2]
        expected = student.clip_decoder[0](hidden + position_table(13, 16))
        torch.testing.assert_close(student(pixels, visible).features[0], expected)


def test_masked_patches_are_not_seen():
    student, (pixels, visible) = model(), clips()
    other = pixels.clone()
    for b in range(2):
        for place in set(range(1, 13)) - set(visible[b].tolist()):
            frame, patch = divmod(place - 1, 4)
            row, column = 16 * (patch // 2), 16 * (patch % 2)
            other[b, frame, :, row : row + 16, column : column + 16] = 7.0
    with torch.no_grad():
        assert torch.equal(student(pixels, visible).features, student(other, visible).features)
        assert not torch.equal(student(pixels, visible).features, student(1.1 * pixels, visible).features)


@pytest.mark.parametrize("layers", [1, 2])
def test_everything_that_is_trained_has_a_gradient(layers):
    student, (pixels, visible) = model(layers), clips()
    student.freeze_unused()
    student(pixels, visible, torch.randn(layers, 2, visible.shape[1], 12)).loss.backward()
    with_gradient = {name for name, p in student.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in student.named_parameters() if p.requires_grad}
    assert ("videomamba.norm_f.weight" in with_gradient) == (layers == 2)
    assert not any(".layers.2." in name for name in with_gradient)
    assert "videomamba.layers.1.mixer.D_b" in with_gradient and "videomamba.cls_token" in with_gradient


def test_recomputing_blocks_changes_nothing():
    student, (pixels, visible) = model().train(), clips()
    teacher, losses = torch.randn(1, 2, visible.shape[1], 12), []
    for on in (False, True):
        student.zero_grad()
        if on:
            student.gradient_checkpointing_enable()
        loss = student(pixels, visible, teacher).loss
        loss.backward()
        losses.append((loss.detach(), student.videomamba.layers[0].mixer.in_proj.weight.grad.clone()))
    torch.testing.assert_close(losses[0], losses[1])


def test_the_table_is_the_published_one():
    table = position_table(9, 6)
    assert table.shape == (9, 6) and table[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert table[5, 2].item() == pytest.approx(math.sin(5 / 10000 ** (2 / 6)), abs=1e-6)
    assert table[5, 3].item() == pytest.approx(math.cos(5 / 10000 ** (2 / 6)), abs=1e-6)
    assert F.cosine_similarity(table[3], table[4], dim=0) < 1


def test_what_is_saved_is_read_by_the_converter_and_by_auto_classes(tmp_path):
    student = model()
    student.save_encoder(tmp_path / "ours")
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    published = {f"clip_decoder.0.{name}" for name in ("head.weight", "head.bias", "norm.weight", "norm.bias")}
    assert published == saved.keys() - student.videomamba.state_dict().keys() and len(saved) == 17 * 3 + 10
    assert all(torch.equal(saved[name], student.state_dict()[name]) for name in published)

    report = convert_videomamba(tmp_path / "ours", tmp_path / "clip", num_labels=5)
    assert set(report["left_out"]) == published and set(report["new"]) == {"head.weight", "head.bias"}
    # As the public code writes it, the final norm has another name.
    saved["norm.weight"] = saved.pop("norm_f.weight")
    torch.save({"model": saved}, tmp_path / "masked.pth")
    convert_videomamba(tmp_path / "masked.pth", tmp_path / "encoder")
    student.save_pretrained(tmp_path / "checkpoint")
    convert_videomamba(tmp_path / "checkpoint", tmp_path / "from_checkpoint")
    for folder in ("ours", "encoder", "clip", "checkpoint", "from_checkpoint"):
        encoder, info = AutoModel.from_pretrained(tmp_path / folder, output_loading_info=True)
        unexpected = {"head.weight", "head.bias"} if folder == "clip" else set()
        assert set(info["unexpected_keys"]) == unexpected and not info["missing_keys"], folder
        assert isinstance(encoder, VideoMambaModel)
        for name, tensor in student.videomamba.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], tensor), (folder, name)
    # Nothing but the decoders is passed over in silence.
    others = {**load_file(tmp_path / "ours" / "model.safetensors"), "decoder.weight": torch.ones(1)}
    others["pool.clip_decoder.weight"] = torch.ones(1)
    save_file(others, tmp_path / "encoder" / "model.safetensors", metadata={"format": "pt"})
    info = AutoModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)[1]
    assert set(info["unexpected_keys"]) == {"decoder.weight", "pool.clip_decoder.weight"}
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == ["VideoMambaModel"]
    assert (tmp_path / "ours" / f"{config['auto_map']['AutoModel'].split('.')[0]}.py").is_file()  # remote code


def test_it_starts_from_an_encoder_too(tmp_path):
    encoder = VideoMambaModel(CONFIG)
    encoder.save_pretrained(tmp_path)
    student = VideoMambaForMaskedPretraining.from_pretrained(tmp_path, 12, 1, config=CONFIG)
    assert torch.equal(student.videomamba.pos_embed, encoder.pos_embed)
    decoder = student.clip_decoder[0]
    assert decoder.head.weight.std() > 0.1 and not decoder.head.bias.any()
    assert (decoder.norm.weight == 1).all() and not decoder.norm.bias.any()


@pytest.mark.parametrize(
    "changes, layers, message",
    [
        ({"num_frames": None}, 1, "num_frames=None, tubelet_size=1: masked pre-training aligns the frames"),
        ({"num_frames": 4, "tubelet_size": 2}, 1, "tubelet_size=2"),
        ({"scan": "alternating"}, 1, "scan=alternating: visible tokens are read in stored order"),
        ({}, 3, "aligned_layers=3 must be at least 1 and below num_hidden_layers=3"),
    ],
)
def test_what_cannot_be_aligned(changes, layers, message):
    with pytest.raises(ValueError, match=message):
        VideoMambaForMaskedPretraining(VideoMambaConfig(**{**FIELDS, **changes}), 12, layers)
