"""Converters: checkpoints of others in, every key accounted for."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from _video_ma2mba_cli import main
from modeling_video_ma2mba import (
    Ma2mbaForCausalLM,
    VideoMambaConfig,
    VideoMambaForImageClassification,
    VideoMambaForVideoClassification,
    VideoMambaImageProcessor,
    VideoMambaModel,
    VideoMambaProcessor,
)
from modeling_video_ma2mba.checkpoint_files import ConversionError, read_tensors
from modeling_video_ma2mba.convert_mamba2 import convert_mamba2
from modeling_video_ma2mba.convert_video_ma2mba import convert_video_ma2mba

VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 56,
}  # fmt: skip
FLAT_CONFIG = {
    "d_model": 64, "n_layer": 2, "vocab_size": 30, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
    "pad_vocab_size_multiple": 16, "tie_embeddings": True, "d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {},
    "ssm_cfg": {"layer": "Mamba2", "headdim": 32, "d_state": 16, "chunk_size": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def mamba2():
    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=64, num_heads=4, head_dim=32, n_groups=1, num_hidden_layers=2, vocab_size=32, state_size=16,
        tie_word_embeddings=True, chunk_size=16, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Mamba2ForCausalLM(config).eval()


def original_names(model):
    return {name.replace("embeddings", "embedding"): t.clone() for name, t in model.state_dict().items()}


@pytest.fixture
def original(mamba2, tmp_path):
    """A folder as state-spaces publishes them: `.bin`, original names, flat config."""
    folder = tmp_path / "state-spaces"
    folder.mkdir()
    torch.save(original_names(mamba2), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(FLAT_CONFIG))
    return folder


@pytest.fixture
def tokenizer_folder(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def logits(model):
    with torch.no_grad():
        return model(torch.arange(2, 30)[None]).logits


def test_original_folder(original, mamba2, tmp_path):
    report = convert_mamba2(original, tmp_path / "out")
    converted, info = Ma2mbaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(converted.eval()), logits(mamba2), rtol=0, atol=1e-5)
    assert report["left_out"] == {"lm_head.weight": "tied to the embedding"}
    assert report["taken"].keys() | report["left_out"].keys() == original_names(mamba2).keys()
    assert json.loads((tmp_path / "out" / "conversion_report.json").read_text()) == report
    assert converted.config.vocab_size == 32  # rows as stored, not the 30 tokens that the config counts


def test_transformers_folder_sharded(mamba2, tmp_path):
    mamba2.save_pretrained(tmp_path / "hf", max_shard_size="40KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    convert_mamba2(tmp_path / "hf", tmp_path / "out", dtype=torch.bfloat16)
    converted = Ma2mbaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert converted.dtype == torch.bfloat16
    assert converted.backbone.layers[0].mixer.A_log.dtype == torch.float32
    torch.testing.assert_close(
        converted.backbone.embeddings.weight, mamba2.backbone.embeddings.weight.to(torch.bfloat16)
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_tower_and_language_model_become_a_video_model(kind, original, mamba2, tokenizer_folder, tmp_path):
    torch.manual_seed(1)
    if kind == "clip":
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        source = CLIPModel(CLIPConfig(vision_config=VISION, text_config={**text, "vocab_size": 40}))
        tower = source.vision_model
    else:
        source = tower = SiglipVisionModel(SiglipVisionConfig(**VISION))
    source.save_pretrained(tmp_path / "vision")
    mean = [0.5, 0.5, 0.5]
    (tmp_path / "vision" / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": mean}))

    out = tmp_path / "out"
    report = convert_video_ma2mba(original, tmp_path / "vision", out, tokenizer=tokenizer_folder, frame_fit="pad")
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor), name
    assert torch.equal(model.lm_head.weight, mamba2.lm_head.weight)
    assert set(report["new"]) == {
        f"model.multi_modal_projector.linear_{i}.{p}" for i in (1, 2) for p in ("weight", "bias")
    }
    assert all(reason for reason in report["left_out"].values())
    assert (model.config.image_token_id, model.config.video_token_id) == (2, 3)
    assert model.config.image_mean == mean
    processor = AutoProcessor.from_pretrained(out)
    assert processor.image_processor.frame_fit == "pad"
    assert processor.tokens_per_frame == model.config.tokens_per_frame == 4
    assert model.generation_config.eos_token_id == 0


@pytest.mark.parametrize("kind", ["video", "images", "encoder"])
def test_a_videomamba_becomes_the_tower(kind, original, tokenizer_folder, tmp_path):
    torch.manual_seed(1)
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "image_size": 32, "image_mean": [0.1, 0.2, 0.3]}
    config = VideoMambaConfig(**fields, num_frames=None if kind == "images" else 4, id2label={0: "a", 1: "b", 2: "c"})
    build = {"video": VideoMambaForVideoClassification, "images": VideoMambaForImageClassification}
    source = build.get(kind, VideoMambaModel)(config)
    source.save_pretrained(tmp_path / "vision")
    image_processor = VideoMambaImageProcessor(size=32, num_frames=config.num_frames)
    VideoMambaProcessor(image_processor).save_pretrained(tmp_path / "vision")

    out = tmp_path / "out"
    words = ["convert", "--mamba", str(original), "--vision", str(tmp_path / "vision"), "--output", str(out)]
    assert main([*words, "--tokenizer", str(tokenizer_folder)]) == 0
    report = json.loads((out / "conversion_report.json").read_text())
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tower = source if kind == "encoder" else source.videomamba
    assert model.model.vision_tower.state_dict().keys() == tower.state_dict().keys()
    for name, tensor in tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor), name
    heads = [key for key in report["left_out"] if key.startswith("head.")]
    assert sorted(heads) == ([] if kind == "encoder" else ["head.bias", "head.weight"])
    assert (
        report["taken"].keys() | report["left_out"].keys()
        == read_tensors(tmp_path / "vision").keys() | read_tensors(original).keys()
    )
    assert (
        model.config.frames_per_clip == (1 if kind == "images" else 4) and model.config.vision_config.num_labels == 2
    )
    assert model.config.image_mean == [0.1, 0.2, 0.3]
    processor = AutoProcessor.from_pretrained(out)
    assert processor.tokens_per_frame == model.config.tokens_per_frame == 1 and processor.image_processor.size == 32


def test_the_projector_is_set_by_the_seed(original, tokenizer_folder, tmp_path):
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(tmp_path / "vision")
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        convert_video_ma2mba(original, tmp_path / "vision", tmp_path / name, tokenizer=tokenizer_folder, seed=seed)
        weights.append(read_tensors(tmp_path / name)["model.multi_modal_projector.linear_1.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_rows_are_added_for_tokens_beyond_the_embedding(mamba2, original, tiny_tokenizer, tmp_path):
    tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.add_tokens([f"word{i}" for i in range(20)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>", "<|last|>"]})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    # Placeholders that come after the 32 rows of the checkpoint.
    folder = tmp_path / "tokenizer" / "tokenizer.json"
    folder.write_text(folder.read_text().replace("<video>", "<clip>"))
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(tmp_path / "vision")
    convert_video_ma2mba(original, tmp_path / "vision", tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.config.video_token_id >= 32
    assert model.config.text_config.vocab_size % 16 == 0
    assert model.config.text_config.vocab_size > model.config.video_token_id
    assert torch.equal(model.get_input_embeddings().weight[:32], mamba2.backbone.embeddings.weight)


def rewrite(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**FLAT_CONFIG, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_option": 1}, "new_option"),
        ({"d_model": "64"}, "d_model is '64'"),
        ({"ssm_cfg": {}}, "is a Mamba1 model"),
        ({"ssm_cfg": {**FLAT_CONFIG["ssm_cfg"], "norm_before_gate": True}}, "norm_before_gate=True"),
        ({"ssm_cfg": {**FLAT_CONFIG["ssm_cfg"], "other": 1}}, r"ssm_cfg\.other=1"),
        ({"attn_layer_idx": [1]}, "attention layers"),
        ({"n_layer": 3}, "tensors are missing"),
        ({"n_layer": 1}, "has no place in the new model"),
        ({"ssm_cfg": {**FLAT_CONFIG["ssm_cfg"], "d_state": 8}}, "the new model needs"),
    ],
)
def test_configs_that_do_not_fit_are_refused(original, tmp_path, changes, message):
    rewrite(original, **changes)
    with pytest.raises(ConversionError, match=message):
        convert_mamba2(original, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_fit_are_refused(original, mamba2, tmp_path):
    tensors = original_names(mamba2)
    torch.save({**tensors, "backbone.extra": torch.zeros(1)}, original / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=r"backbone\.extra has no place"):
        convert_mamba2(original, tmp_path / "out")
    torch.save({**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1}, original / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="differs from the embedding"):
        convert_mamba2(original, tmp_path / "out")
    torch.save({"model": tensors}, original / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="more than named tensors"):
        convert_mamba2(original, tmp_path / "out")
    (original / "pytorch_model.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ConversionError, match=r"pytorch_model\.bin"):
        convert_mamba2(original, tmp_path / "out")
    (original / "pytorch_model.bin").unlink()
    with pytest.raises(ConversionError, match="has no weights"):
        convert_mamba2(original, tmp_path / "out")
    (original / "config.json").write_text("not json")
    save_file({k: v.contiguous() for k, v in tensors.items()}, original / "model.safetensors")
    with pytest.raises(ConversionError, match="is not JSON"):
        convert_mamba2(original, tmp_path / "out")


class Malicious:
    def __reduce__(self):
        return (os.system, ("exit 1",))


def test_pickled_code_is_not_run(original, tmp_path):
    torch.save({"a": Malicious()}, original / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="holds more than tensors"):
        convert_mamba2(original, tmp_path / "out")


def test_an_index_cannot_leave_its_folder(mamba2, tmp_path):
    folder = tmp_path / "hf"
    mamba2.save_pretrained(folder, max_shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    content["weight_map"][name] = "../secret.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ConversionError, match="not a plain file name"):
        read_tensors(folder)
    content["weight_map"][name] = "missing.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=r"missing\.safetensors, which is missing"):
        read_tensors(folder)
