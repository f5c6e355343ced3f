"""The authors' checkpoints in, and back out: every key, every form, the same bits, the same numbers, little memory."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from _video_ma2mba_cli import main
from modeling_video_ma2mba import Ma2mbaForCausalLM, VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.checkpoint_files import ConversionError, read_tensors
from modeling_video_ma2mba.convert_back import convert_back
from modeling_video_ma2mba.convert_llava_mamba import convert_llava_mamba
from modeling_video_ma2mba.convert_mamba2 import convert_mamba2
from modeling_video_ma2mba.convert_parity import save_parity
from modeling_video_ma2mba.processing.load_model import load_model

_HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("llava_mamba_folder", _HERE / "llava_mamba_folder.py")
published = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(published)
TOWER = "mm_model.vision_tower.vision_tower.vision_model"


@pytest.fixture
def original(tiny_tokenizer, tmp_path):
    """`original(tensors=None, **options of write_folder)` -> folder in the published layout."""

    def make(tensors=None, name="original", **options):
        return published.write_folder(tmp_path / name, tensors or published.make_tensors(), tiny_tokenizer, **options)

    return make


@pytest.mark.parametrize(("form", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3)])
def test_every_form_becomes_a_model_that_answers_like_the_original(original, tmp_path, form, shards):
    tensors = published.make_tensors()
    folder, out = original(tensors, form=form, shards=shards), tmp_path / "out"
    report = convert_llava_mamba(folder, out)
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert report["taken"].keys() | report["left_out"].keys() == tensors.keys()
    assert report["left_out"] == {
        "lm_head.weight": "tied to the embedding",
        f"{TOWER}.embeddings.position_ids": "a counter, made anew by the model",
    }
    assert set(report["taken"].values()) == read_tensors(out).keys()
    for key, target in report["taken"].items():
        assert torch.equal(model.state_dict()[target], tensors[key]), key
    assert report["config"]["not_used"] == [
        "architectures", "mm_vision_tower_lr", "tokenizer_model_max_length", "use_mm_proj",
    ]  # fmt: skip
    assert json.loads((out / "conversion_report.json").read_text()) == report
    assert model.config.feature_layers_run == 2 and model.config.text_config.vocab_size == 32

    parity = save_parity(folder, out)
    names = ["vision layer 0", "vision layer 1", "pooled", "projector", "layer 0", "layer 1", "final norm", "logits"]
    assert list(parity["modules"]) == names
    assert parity["largest_relative_difference"] < 1e-5
    assert all(module["max_value"] > 0.1 for module in parity["modules"].values())
    assert json.loads((out / "parity_report.json").read_text()) == parity


@pytest.mark.parametrize("key", ["mixer.D", "mlp.fc2.bias", "mm_projector.2.bias", "norm_f.weight"])
def test_parity_sees_one_wrong_number(original, tmp_path, key):
    tensors = published.make_tensors()
    convert_llava_mamba(original(tensors), tmp_path / "out")
    name = next(name for name in tensors if name.endswith(key))
    tensors[name][0] += 0.5
    assert save_parity(original(tensors, name="other"), tmp_path / "out")["largest_relative_difference"] > 1e-3


def test_processor_template_and_generation(original, tmp_path):
    convert_llava_mamba(original(), tmp_path / "out", frame_fit="pad")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert processor.tokens_per_frame == model.config.tokens_per_frame == 4
    assert processor.image_processor.size == 56 and processor.image_processor.frame_fit == "pad"
    content = [{"type": "video"}, {"type": "text", "text": "who wins ?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    end = "<|endoftext|>"
    assert text == f"<|system|>You are a helpful AI assistant.{end}<|user|><video>who wins ?{end}<|assistant|>"
    assert model.generation_config.eos_token_id == 0
    frames = torch.full((2, 3, 56, 56), 99, dtype=torch.uint8)
    inputs = processor(text=text, videos=[frames], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    assert (tmp_path / "out" / "modeling_video_ma2mba.py").is_file()


def test_siglip_without_its_last_layer_and_head(original, tmp_path):
    facts = {"model_type": "siglip_vision_model", "num_attention_heads": 2, "num_hidden_layers": 4}
    folder = original(published.make_tensors(siglip=True), vision_config=facts)
    convert_llava_mamba(folder, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    # Layer -2 of four layers is the third, the last one of the file.
    assert config.feature_layers_run == config.vision_config.num_hidden_layers == 3
    assert config.image_mean == [0.5] * 3
    assert save_parity(folder, tmp_path / "out")["largest_relative_difference"] < 1e-5


def test_published_towers_are_known_and_others_need_their_config(original, tmp_path):
    folder = original(vision_config=None)
    with pytest.raises(ConversionError, match=r"nothing is known of the tower .* of width 32: .* --vision"):
        convert_llava_mamba(folder, tmp_path / "out")
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text(json.dumps(published.CONFIG["vision_config"]))
    convert_llava_mamba(folder, tmp_path / "out", vision=tmp_path / "tower")
    assert AutoConfig.from_pretrained(tmp_path / "out").vision_config.num_attention_heads == 2


def test_new_special_tokens_get_rows(original, tmp_path, tiny_tokenizer):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|endoftext|>", unk_token="<unk>"
    )
    tokenizer.add_tokens([f"word{i}" for i in range(20)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("<video>", "<clip>").replace("<image>", "<picture>"))
    tensors = published.make_tensors(dtype=torch.bfloat16)
    report = convert_llava_mamba(original(tensors), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    model = VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto")
    rows = model.get_input_embeddings().weight
    assert min(model.config.image_token_id, model.config.video_token_id) >= 32 and len(rows) % 16 == 0
    assert f"vocabulary rows 32..{len(rows) - 1}" in report["new"]
    old = tensors["backbone.embedding.weight"]
    assert torch.equal(rows[:32], old) and torch.equal(rows[-1], rows[32])
    torch.testing.assert_close(rows[-1].float(), old.float().mean(0), atol=2e-3, rtol=1e-2)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.video_token_id == model.config.video_token_id


def test_dtypes(original, tmp_path):
    tensors = published.make_tensors(dtype=torch.bfloat16)
    folder = original(tensors)
    convert_llava_mamba(folder, tmp_path / "same")
    convert_llava_mamba(folder, tmp_path / "half", dtype=torch.float16)
    for name, dtype in (("same", torch.bfloat16), ("half", torch.float16)):
        read = read_tensors(tmp_path / name)
        wide = {key for key, tensor in read.items() if tensor.dtype == torch.float32}
        assert {key.rsplit(".", 1)[-1] for key in wide} == {"A_log", "D", "dt_bias"}
        assert {tensor.dtype for key, tensor in read.items() if key not in wide} == {dtype}
        assert AutoConfig.from_pretrained(tmp_path / name).dtype == dtype


def test_back_to_the_authors_layout_and_in_again_is_bit_exact(original, tmp_path):
    tensors = published.make_tensors()
    folder = original(tensors)
    convert_llava_mamba(folder, tmp_path / "ours")
    report = convert_back(tmp_path / "ours", tmp_path / "theirs", "llava-mamba")
    back = read_tensors(tmp_path / "theirs")
    assert tensors.keys() - back.keys() == {f"{TOWER}.embeddings.position_ids"} and not back.keys() - tensors.keys()
    for name, tensor in back.items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype, name
    assert set(report["new"]) == {"lm_head.weight"}
    fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert fields["mm_vision_tower"] == published.CONFIG["mm_vision_tower"]
    assert fields["ssm_cfg"] == published.CONFIG["ssm_cfg"]
    convert_llava_mamba(tmp_path / "theirs", tmp_path / "again")
    first, again = read_tensors(tmp_path / "ours"), read_tensors(tmp_path / "again")
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    for name in ("config.json", "generation_config.json", "processor_config.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "again" / name).read_text(), name


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_back_to_state_spaces(original, tmp_path, head):
    tensors = published.make_tensors()
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + (head == "untied")
    convert_llava_mamba(original(tensors, tie_embeddings=head == "tied"), tmp_path / "ours")
    report = convert_back(tmp_path / "ours", tmp_path / "mamba2", "state-spaces")
    assert set(report["left_out"].values()) == {"not part of the language model"}
    back = torch.load(tmp_path / "mamba2" / "pytorch_model.bin", weights_only=True)
    assert back.keys() == {name for name in tensors if not name.startswith("mm_model.")}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in back.items())
    convert_mamba2(tmp_path / "mamba2", tmp_path / "text")
    convert_back(tmp_path / "text", tmp_path / "mamba2-again", "state-spaces")
    for name, tensor in read_tensors(tmp_path / "mamba2-again").items():
        assert torch.equal(tensor, back[name]), name
    files = [(tmp_path / name / "config.json").read_text() for name in ("mamba2", "mamba2-again")]
    assert files[0] == files[1]
    video = VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    text = Ma2mbaForCausalLM.from_pretrained(tmp_path / "text")
    ids = torch.arange(5, 20)[None]
    assert torch.equal(video(ids).logits, text(ids).logits)
    with pytest.raises(ConversionError, match="use --to state-spaces"):
        convert_back(tmp_path / "text", tmp_path / "x", "llava-mamba")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba2"}, "--mamba"),
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear' is not supported, 'mlp2x_gelu' is"),
        ({"mm_spatial_pool_mode": "average"}, "'bilinear' is"),
        ({"mm_new_trick": 1}, "unknown mm_new_trick=1"),
        ({"mm_vision_select_layer": "-2"}, "expected a whole number"),
        ({"mm_vision_select_layer": 9}, "mm_vision_select_layer=9 of 3 layers"),
        ({"mm_spatial_pool_stride": 0}, "spatial_pool_stride=0 must be at least 1"),
        ({"mm_hidden_size": 33}, "the tower is 32 wide"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "none of a clip_vision_model"),
        ({"vision_config": {**published.CONFIG["vision_config"], "num_attention_heads": "2"}}, "heads='2'"),
        ({"vision_config": {**published.CONFIG["vision_config"], "hidden_act": "nothing"}}, "nothing"),
        ({"vocab_size": 33}, "vocab_size is 33, the embedding has 32 rows"),
        ({"n_layer": 10**9}, "expected a whole number up to"),
        ({"n_layer": 60000}, "59998 of 60000 layers have none"),
        ({"d_model": 128}, "has width 64, d_model=128"),
        ({"ssm_cfg": {**published.CONFIG["ssm_cfg"], "headdim": 0}}, "headdim=0, expected a whole number"),
        ({"ssm_cfg": [1]}, "ssm_cfg is a list"),
        ({"tie_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_configs_that_do_not_fit_are_refused(original, tmp_path, changes, message):
    folder = original(**changes)
    with pytest.raises(ConversionError, match=message):
        convert_llava_mamba(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit_are_reported_together(original, tmp_path):
    tensors = published.make_tensors()
    tensors["mm_model.mystery.weight"] = torch.zeros(2)
    tensors["mm_model.other.weight"] = torch.zeros(2)
    with pytest.raises(ConversionError, match=r"mm_model\.mystery\.weight is no part .*mm_model\.other\.weight is no"):
        convert_llava_mamba(original(tensors), tmp_path / "out")
    tensors = published.make_tensors()
    tensors["mm_model.mm_projector.0.bias"] = torch.zeros(63)
    tensors["backbone.layers.0.mixer.extra"] = torch.zeros(2)
    del tensors["backbone.layers.1.mixer.D"]
    message = (
        r"backbone\.layers\.0\.mixer\.extra has no place.*linear_1\.bias is \(63,\), the new model needs \(64,\).*"
        r"1 tensors are missing from the source, e\.g\. model\.language_model\.layers\.1\.mixer\.D"
    )
    with pytest.raises(ConversionError, match=message):
        convert_llava_mamba(original(tensors, name="second"), tmp_path / "out")
    tensors = {**published.make_tensors(), "model.mm_projector.0.bias": torch.zeros(64)}
    with pytest.raises(ConversionError, match=r"both are linear_1\.bias of the projector"):
        convert_llava_mamba(original(tensors, name="third"), tmp_path / "out")
    tensors = published.make_tensors()
    tensors["lm_head.weight"] += 1
    with pytest.raises(ConversionError, match="differs from the embedding although they are tied"):
        convert_llava_mamba(original(tensors, name="fourth"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loading_the_original_says_what_to_do(original):
    folder = original()
    classes = (VideoMa2mbaForConditionalGeneration, AutoModelForImageTextToText, AutoConfig)
    for load in (*(kind.from_pretrained for kind in classes), load_model):
        with pytest.raises(ValueError, match=r"video-ma2mba convert --checkpoint .* --output OURS"):
            load(str(folder))


def test_commands(original, tmp_path, capsys):
    folder, ours = str(original()), str(tmp_path / "ours")
    assert main(["convert", "--checkpoint", folder, "--output", ours, "--parity"]) == 0
    printed = capsys.readouterr().out
    assert "config: mm_resampler_type is not given, taken as None" in printed and "tensors taken" in printed
    assert "parity: no module differs by more than" in printed and Path(ours, "parity_report.json").is_file()
    for layout in ("llava-mamba", "state-spaces"):
        assert main(["convert", "--checkpoint", ours, "--to", layout, "--output", str(tmp_path / layout)]) == 0
    for words, message in (
        (["--checkpoint", ours, "--output", str(tmp_path / "a")], "expected 'llava_mamba'"),
        (["--mamba", ours, "--parity", "--output", str(tmp_path / "a")], "belong to --checkpoint"),
        (
            ["--checkpoint", ours, "--to", "state-spaces", "--dtype", "float16", "--output", str(tmp_path / "a")],
            "leave",
        ),
        (["--checkpoint", folder, "--to", "state-spaces", "--output", str(tmp_path / "a")], "this package wrote"),
    ):
        assert main(["convert", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


_MEASURE = """
import gc, sys
from pathlib import Path
import torch
from modeling_video_ma2mba.convert_llava_mamba import convert_llava_mamba
from modeling_video_ma2mba.convert_back import convert_back

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def measured(convert, *arguments, **options):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    before = peak()
    convert(*arguments, **options)
    return peak() - before

small, large, folder = sys.argv[1:]
convert_llava_mamba(small, folder + "/a", dtype=torch.float32)  # brings in all that is loaded once
convert_back(folder + "/a", folder + "/b", "llava-mamba")
print(measured(convert_llava_mamba, large, folder + "/c", dtype=torch.float32))
"""


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_memory_is_a_shard_and_a_tensor(original, tmp_path, form):
    """Peak resident memory, mapped files included, of converting 100 MB in 5 shards from 16 to 32 bits."""
    tensors = published.make_tensors(dtype=torch.bfloat16, width=1024, layers=8)
    small = original(name="small", form=form)
    large = original(tensors, name="large", form=form, shards=5, d_model=1024, n_layer=8)
    shard = max(path.stat().st_size for path in large.glob(f"*.{form}"))
    tensor = max(t.numel() for t in tensors.values()) * 4  # as it is written
    allowed = 1.2 * shard + tensor
    total = sum(t.numel() for t in tensors.values()) * 2
    assert total > 1.5 * allowed, "too small to tell"
    arguments = [sys.executable, "-c", _MEASURE, *map(str, (small, large, tmp_path))]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=_HERE.parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    print(f"{form}: peak {int(done.stdout)}, allowed {allowed:.0f}, shard {shard}, tensor {tensor}, all {total}")
    assert int(done.stdout) < allowed
