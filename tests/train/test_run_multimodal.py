"""Multi-modal pre-training: captioned clips, batches, masked words, schedule, UTA, the command, resumed, refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, BertConfig, BertForMaskedLM

from modeling_video_ma2mba import VideoMambaMultiModalModel
from modeling_video_ma2mba.eval.retrieval import main as retrieve
from modeling_video_ma2mba.train.captioned_clips import main as draw
from modeling_video_ma2mba.train.masked_pretraining import position_table
from modeling_video_ma2mba.train.multimodal_pretraining import (
    VideoMambaMultiModalForMaskedPretraining,
    without_decoder,
)
from modeling_video_ma2mba.train.multimodal_recipes import load_multimodal_recipe, multimodal_recipe_names
from modeling_video_ma2mba.train.multimodal_set import PairSampler, mask_words, pairs_of
from modeling_video_ma2mba.train.multimodal_trainer import multimodal_parameter_groups, rate_share
from modeling_video_ma2mba.train.read_captions import CaptionedClip
from modeling_video_ma2mba.train.run_multimodal import main
from modeling_video_ma2mba.train.samples import Media
from tests.modeling_video_ma2mba.multimodal_model import batch, tiny_config, tiny_model, tiny_processor
from tests.modeling_video_ma2mba.videomamba_reference import published

TEXT = (
    "text={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16, "
    "hidden_dropout_prob: 0.1}"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    assert draw(["--output", str(folder), "--count", "12", "--test-count", "4", "--frames", "4"]) == 0
    return folder


def words(data, output, *more, recipe="tiny", side=16):
    overrides = [f"size={{hidden_size: 16, num_hidden_layers: 2, patch_size: {side}}}", TEXT, "fusion_layer=1"]
    overrides += ["projection_size=8", "frames=2", "global_batch_size=4", "max_steps=4", "drop_path=0.4"]
    given = ["--recipe", recipe, "--data", f"captions:{data / 'train.json'}", "--output", str(output)]
    given += [word for override in overrides for word in ("--override", override)]
    return [*given, "--device", "cpu", "--batch-size", "2", "--workers", "0", "--report-to", "none", *more]


def test_captions_say_what_is_drawn_and_those_of_a_test_differ(data, tmp_path):
    rows = json.loads((data / "test.json").read_text())
    assert len(rows) == len({row["caption"] for row in rows}) == 4 and (data / rows[0]["video"]).is_file()
    assert all(re.fullmatch(r"A \w+ \w+ moves (left|right|up|down)\.", row["caption"]) for row in rows)
    assert draw(["--output", str(tmp_path), "--test-count", "49"]) == 2


def test_masked_words_by_share_and_fate():
    processor = tiny_processor()
    ids, mask = np.array([2] + [6] * 20_000 + [3, 0, 0]), np.array([1] * 20_002 + [0, 0])
    masked, labels = mask_words(ids, mask, processor.tokenizer, 0.5, np.random.default_rng(0))
    chosen = labels != -100
    assert chosen.mean() == pytest.approx(0.5, abs=0.02) and not chosen[[0, -1, -2]].any()
    assert np.array_equal(labels[chosen], ids[chosen]) and np.array_equal(masked[~chosen], ids[~chosen])
    assert (masked[chosen] == 4).mean() == pytest.approx(0.8 + 0.1 / 22, abs=0.02)
    assert (masked[chosen] == 6).mean() == pytest.approx(0.1 + 0.1 / 22, abs=0.02)


def test_a_step_has_images_or_videos(tmp_path):
    clips = [
        CaptionedClip(
            str(n), "captions", Media(kind="image" if n < 7 else "video", path=tmp_path / str(n)), ("a", "b")
        )
        for n in range(16)
    ]
    pairs = pairs_of(clips)
    assert len(pairs) == 32 and pairs[0].label == ("a", 0, True) and pairs[-1].label == ("b", 15, False)
    sampler = PairSampler(pairs, 4, seed=0, steps_done=lambda: 0)
    steps = np.array([draw.index for draw in sampler]).reshape(-1, 4)
    kinds = [{pairs[index].label[2] for index in step} for step in steps]
    assert len(sampler) == 28 and len(np.unique(steps)) == 28 and all(len(kind) == 1 for kind in kinds)
    assert sum(kind == {True} for kind in kinds) == 3
    again = [draw.index for draw in PairSampler(pairs, 4, seed=0, steps_done=lambda: 7)]
    assert again != steps.reshape(-1).tolist()
    with pytest.raises(ValueError, match="14 images and 18 videos are each fewer than the 40 pairs"):
        PairSampler(pairs, 40, seed=0, steps_done=lambda: 0)


def test_the_schedule_stops_at_its_floor():
    assert [rate_share(step, 10, 110, 0.01) for step in (0, 5, 10, 60)] == pytest.approx([0, 0.5, 1.0, 0.5])
    assert rate_share(109, 10, 110, 0.01) == 0.01 == rate_share(500, 10, 110, 0.01)


def test_recipes_are_the_published_ones():
    masked = load_multimodal_recipe("masked-5m")
    assert (masked.learning_rate, masked.min_rate, masked.epochs, masked.warmup_epochs) == (4e-4, 0.01, 10, 1)
    assert (masked.image_mask, masked.video_mask, masked.text_mask, masked.drop_path) == (0.5, 0.8, 0.5, 0.25)
    unmasked = load_multimodal_recipe("unmasked-5m")
    assert not unmasked.is_masked and (unmasked.learning_rate, unmasked.epochs) == (8e-5, 1)
    for name in multimodal_recipe_names():
        recipe = load_multimodal_recipe(name)
        assert recipe.config(None, 30522).vision_config.num_frames == recipe.frames
    with pytest.raises(ValueError, match="must both be between 0 and 1, or null"):
        load_multimodal_recipe("tiny", ["image_mask=0.5"])
    with pytest.raises(ValueError, match="no field 'classes'"):
        load_multimodal_recipe("tiny", ["classes=3"])


def test_everything_but_vectors_is_decayed():
    model, recipe = tiny_model(), load_multimodal_recipe("tiny")
    decayed = {id(one) for one in multimodal_parameter_groups(model, recipe)[0]["params"]}
    named = {name for name, one in model.named_parameters() if id(one) in decayed}
    assert "vision_encoder.pos_embed" in named and "vision_encoder.layers.0.mixer.A_log" in named
    assert not any(name.endswith(".bias") or name == "temp" for name in named)


def test_alignment_by_hand_and_masked_patches_are_unseen():
    """UTA from the residual stream before the last block, token by token; what is masked changes nothing."""
    torch.manual_seed(0)
    model, inputs = VideoMambaMultiModalForMaskedPretraining(tiny_config(), teacher_width=6).eval(), batch(count=2)
    visible = torch.tensor([[0, 1, 6, 11], [0, 2, 3, 16]])  # of 1 + 4 frames of 4 patches
    features = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    given = {**inputs, "visible": visible, "teacher_features": features}
    torch.manual_seed(1)
    output = model(**given)
    encoder = model.vision_encoder
    tokens = encoder.embed(encoder.load_frames(pixel_values_videos=inputs["pixel_values_videos"]))
    total = 0.0
    for row in range(2):
        own = tokens[row, visible[row]][None]
        stream = encoder.encode(own, layers_run=2)[0] + position_table(17, 16)[visible[row]]
        decoder = encoder.clip_decoder[0]
        for one, wanted in zip(decoder.norm(decoder.head(stream)), features[row]):
            total += 2 - 2 * torch.dot(one / one.norm(), wanted / wanted.norm())
    assert torch.allclose(output.uta_loss, total / 8, atol=1e-5)
    parts = output.vtc_loss + output.vtm_loss + output.mlm_loss + output.uta_loss
    assert torch.allclose(output.loss, parts) and output.vision_embeds.shape == (2, 1, 8)
    changed = inputs["pixel_values_videos"].clone()
    changed[0, 0, :, :16, 16:] = 255 - changed[0, 0, :, :16, 16:]  # patch 2 of the first frame, masked in this clip
    torch.manual_seed(1)
    assert torch.equal(model(**{**given, "pixel_values_videos": changed}).loss, output.loss)
    plain = without_decoder(model)
    assert type(plain) is VideoMambaMultiModalModel
    assert "vision_encoder.clip_decoder.0.head.weight" in model.state_dict()
    assert not any("clip_decoder" in name for name in plain.state_dict())


def test_a_run_stopped_and_resumed_ends_with_the_same_weights_and_can_be_tested(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(words(data, whole, "--save-steps", "2", "--logging-steps", "1")) == 0
    log = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    assert {"vtc_loss", "vtm_loss", "mlm_loss", "grad_norm_text"} <= set(log[0]) and "uta_loss" not in log[0]
    assert log[0]["loss"] == pytest.approx(log[0]["vtc_loss"] + log[0]["vtm_loss"] + log[0]["mlm_loss"], rel=1e-3)
    shutil.copytree(whole / "checkpoint-2", parts / "checkpoint-2")
    record = json.loads((whole / "run.json").read_text())
    (parts / "run.json").write_text(json.dumps({**record, "finished": False}))
    assert main(words(data, parts, "--save-steps", "2", "--logging-steps", "1")) == 0
    one, other = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    given = ["--model", str(whole), "--data", f"captions:{data / 'test.json'}", "--output", str(tmp_path / "out")]
    assert retrieve([*given, "--device", "cpu", "--workers", "0"]) == 0
    # The second stage begins where the first ended.
    more = ["--init-from", str(whole), "--override", "learning_rate=1e-9"]
    assert main(words(data, tmp_path / "second", *more)) == 0
    second = load_file(tmp_path / "second" / "model.safetensors")
    assert all(torch.allclose(one[name], second[name], atol=1e-6) for name in one)


def test_masks_with_the_small_models_tower_on_images_and_videos(data, tmp_path):
    for n in range(8):
        Image.new("RGB", (64, 48), (20 * n, 90, 90)).save(tmp_path / f"{n}.png")
    rows = [{"image": f"{n}.png", "caption": f"a picture {n}"} for n in range(8)]
    (tmp_path / "images.json").write_text(json.dumps(rows))
    more = ["--teacher", "tiny", "--data", f"captions:{tmp_path / 'images.json'}", "--logging-steps", "1"]
    assert main(words(data, tmp_path / "out", *more, recipe="tiny-masked", side=14)) == 0
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert all(0 < entry["uta_loss"] < 4 for entry in log if "loss" in entry)
    kept = load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors")
    assert "vision_encoder.clip_decoder.0.head.weight" in kept
    model = VideoMambaMultiModalModel.from_pretrained(tmp_path / "out")
    assert not any("clip_decoder" in name for name in model.state_dict())


def bert(folder, **changes):
    """Save a BERT of the size of the recipe in `words`, with a tokenizer of 19 words; return the folder."""
    torch.manual_seed(1)
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(**{**fields, "vocab_size": 19, "max_position_embeddings": 40, **changes}))
    model.save_pretrained(folder)
    tiny_processor().tokenizer.save_pretrained(folder)
    return folder


def still(*more):
    """Options with which one step leaves the weights where they were."""
    return [*more, "--override", "learning_rate=1e-9", "--override", "max_steps=1", "--override", "warmup_epochs=0"]


@pytest.mark.parametrize("family", ["masked", "video", "image", "multi_modal"])
def test_it_begins_with_a_vision_encoder(data, tmp_path, family):
    """Of any published file; frames and positions are those of the recipe."""
    tensors = published(family=family, width=16)
    torch.save({"model": tensors}, tmp_path / "vision.pth")
    assert main(words(data, tmp_path / "out", *still("--vision-from", str(tmp_path / "vision.pth")))) == 0
    ours = load_file(tmp_path / "out" / "model.safetensors")
    prefix = "vision_encoder." if family == "multi_modal" else ""
    name = "layers.1.mixer.in_proj.weight"
    torch.testing.assert_close(ours[f"vision_encoder.{name}"], tensors[prefix + name], rtol=0, atol=1e-6)
    norm = "norm_f.weight" if family in ("video", "image") else "norm.weight"
    torch.testing.assert_close(ours["vision_encoder.norm_f.weight"], tensors[prefix + norm], rtol=0, atol=1e-6)
    assert ours["vision_encoder.temporal_pos_embedding"].shape == (1, 2, 16)
    assert (ours["vision_encoder.pool_norm.weight"] == 1).all() and not any("decoder.0" in name for name in ours)


def test_it_begins_with_a_bert_and_its_tokenizer(data, tmp_path):
    folder = bert(tmp_path / "bert")
    assert main(words(data, tmp_path / "out", *still("--text-from", str(folder)))) == 0
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.allclose(ours[f"text_encoder.{name}"], one, atol=1e-6) for name, one in theirs.items())
    assert ours["text_encoder.bert.encoder.layer.1.crossattention.self.key.weight"].shape == (16, 16)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor(text="a red circle")["input_ids"].tolist() == [[2, 5, 6, 9, 3]]


def test_encoders_that_do_not_fit_get_one_line(data, tmp_path, capsys):
    BertForMaskedLM.from_pretrained(bert(tmp_path / "tower")).bert.save_pretrained(tmp_path / "tower")
    bert(tmp_path / "small", vocab_size=18)
    bert(tmp_path / "short", max_position_embeddings=9)
    (tmp_path / "empty").mkdir()
    for name, given in (("wide", published(width=32)), ("deep", published(width=16, depth=3))):
        torch.save(given, tmp_path / f"{name}.pth")
    torch.save(published(width=16, tubelet=2), tmp_path / "tubelet.pth")
    bert(tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:900])
    for option, name, message in (
        ("text", "tower", "its weights lack cls.predictions."),
        ("text", "small", "a text encoder of 18 words and 40 positions cannot read 19 words"),
        ("text", "short", "9 positions cannot read 19 words and 32 positions"),
        ("text", "empty", "has no tokenizer that can be read"),
        ("text", "damaged", "damaged"),
        ("vision", "wide.pth", "has other sizes than the recipe"),
        ("vision", "deep.pth", "does not fit the recipe, e.g. layers.2."),
        ("vision", "tubelet.pth", "has other sizes than the recipe"),
        ("vision", "empty", "no weights"),
    ):
        more = still(f"--{option}-from", str(tmp_path / name))
        assert main(words(data, tmp_path / "out", *more)) == 2, name
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("videomamba_multimodal: error: ") and message in error, error


@pytest.mark.parametrize(
    "more, message",
    [
        (["--teacher", "tiny"], "recipe tiny has no masks"),
        (["--recipe", "tiny-masked"], "aligns to a CLIP model: give its folder as --teacher"),
        (["--batch-size", "1"], "give at least 2"),
        (["--init-from", "nowhere"], "--init-from nowhere: no such folder"),
        (["--vision-from", "nowhere"], "--vision-from nowhere: no such file or folder"),
        (["--override", "global_batch_size=40"], "are each fewer than the 40 pairs"),
        (["--override", "fusion_layer=5"], "fusion_layer=5 must be between 1 and 1"),
        (["--data", "clips:x.csv"], "must begin with one of captions:"),
        (["--save-steps", "0"], "--save-steps 0"),
    ],
)
def test_bad_input_gets_one_line(data, tmp_path, capsys, more, message):
    assert main(words(data, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("videomamba_multimodal: error: ") and message in error, error


@pytest.mark.slow
def test_a_small_model_learns_to_find_held_out_clips(tmp_path):
    """Far above chance, which is 5 of 32 among the first five."""
    assert draw(["--output", str(tmp_path), "--count", "600", "--test-count", "32"]) == 0
    given = ["--recipe", "tiny", "--data", f"captions:{tmp_path / 'train.json'}", "--output", str(tmp_path / "run")]
    given += ["--override", "epochs=6", "--batch-size", "32", "--workers", "0", "--device", "cpu"]
    assert main([*given, "--report-to", "none"]) == 0
    given = ["--model", str(tmp_path / "run"), "--data", f"captions:{tmp_path / 'test.json'}", "--rerank", "0"]
    assert retrieve([*given, "--output", str(tmp_path / "out"), "--device", "cpu", "--workers", "0"]) == 0
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]
    assert all(own["recall@5"]["value"] > 0.35 and own["median_rank"] <= 9 for own in scores.values()), scores
