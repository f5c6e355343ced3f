"""Quantised weights: the projections alone become int8, everything runs on them, and they come back from a file."""

import importlib.util
import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from modeling_video_ma2mba import model_folder
from modeling_video_ma2mba.checkpoint_budget import HeldBytes
from modeling_video_ma2mba.quantised_weights import stored_tensors
from modeling_video_ma2mba.train.lora import TARGETS
from modeling_video_ma2mba.train.synthetic_video import numbered_frames

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is missing: pip install torchao"
)
# What a quantised model may hold in few bits: big matrices in front of and behind scan, attention and MLP.
PROJECTIONS = (
    r"(model\.)?(language_model|backbone)\.layers\.\d+\.mixer\.(in_proj|out_proj)\.weight",
    r"(model\.)?multi_modal_projector\.linear_[12]\.weight",
    r"(model\.)?vision_tower\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight",
    r"(model\.)?vision_tower\.layers\.\d+\.mixer\.(in_proj|out_proj|(x|dt)_proj(_b)?)\.weight",
)


def may_be_quantised(model):
    """Return the parameters that transformers offers to torchao, by its own rules."""
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return [
        name
        for name, _ in model.named_parameters()
        if should_convert_module(name, kept)
        and name.endswith(".weight")
        and isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
    ]


@pytest.mark.parametrize("tower", ["clip", "siglip", "videomamba"])
def test_only_projections_are_offered(video_model, text_model, tower):
    model = video_model(tower)
    names = may_be_quantised(model)
    strange = [name for name in names if not any(re.fullmatch(pattern, name) for pattern in PROJECTIONS)]
    assert not [name for name in strange if not name.startswith("model.vision_tower.head.")]  # SigLIP's, never run
    assert sum("language_model" in name for name in names) == 4 and "lm_head.weight" not in names
    assert len(may_be_quantised(text_model())) == 4


class Int8Linear(nn.Module):
    """As bitsandbytes has it: the weight is int8 and says so, the rest of the module is as it was."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def test_weights_that_say_int8(video_model, prompt, frames):
    model = video_model()
    inputs = {"input_ids": prompt(3, "v4", 3)[None], "pixel_values_videos": frames(4)[None]}
    with torch.no_grad():
        exact = model(**inputs).logits
        for layer in model.model.language_model.layers:
            layer.mixer.in_proj, layer.mixer.out_proj = map(Int8Linear, (layer.mixer.in_proj, layer.mixer.out_proj))
        projector = model.model.multi_modal_projector
        projector.linear_1, projector.linear_2 = map(Int8Linear, (projector.linear_1, projector.linear_2))
        difference = (model(**inputs).logits - exact).abs().max()
    assert 0 < difference < 0.05 * exact.abs().max()
    assert model.get_video_features(frames(2)[None]).pooler_output.dtype == torch.float32


def quantised(**kwargs):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return AutoModelForImageTextToText.from_pretrained(
        model_folder("tiny"), quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), **kwargs
    ).eval()


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForImageTextToText.from_pretrained(model_folder("tiny")).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(model_folder("tiny"))


@pytest.fixture(scope="module")
def int8():
    return quantised()


def asked(processor):
    content = [{"type": "video", "video": list(numbered_frames(6, 64, 64))}, {"type": "text", "text": "who wins ?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def is_int8(parameter):
    return any(part.dtype == torch.int8 for part in stored_tensors(parameter))


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projections_become_int8_and_the_rest_stays(dtype):
    model = quantised(dtype=dtype)
    parameters = dict(model.named_parameters())
    small = {name for name, parameter in parameters.items() if is_int8(parameter)}
    assert small == set(may_be_quantised(model)) and len(small) > 2 * model.config.text_config.num_hidden_layers
    assert not [name for name in small if not any(re.fullmatch(pattern, name) for pattern in PROJECTIONS)]
    for name, parameter in parameters.items():
        if name.endswith(("A_log", ".D", "dt_bias")):
            assert parameter.dtype == torch.float32 and type(parameter.data) is torch.Tensor, name
        elif name not in small:
            assert parameter.dtype == dtype, name


@needs_torchao
def test_size_and_error_of_the_shipped_model(shipped, int8, processor):
    """Measured: 5.94 MB to 1.81 MB; largest difference of a logit 2 % of the largest logit."""
    before, after = (HeldBytes.of([model], None).weights for model in (shipped, int8))
    assert after == sum(part.nbytes for p in int8.parameters() for part in stored_tensors(p)) + sum(
        b.nbytes for b in int8.buffers()
    )
    assert after < 0.35 * before
    inputs = asked(processor)
    with torch.no_grad():
        exact, ours = shipped(**inputs).logits, int8(**inputs).logits
    difference = float((ours - exact).abs().max() / exact.abs().max())
    print(f"weights: {before} -> {after} bytes; largest difference of a logit: {difference:.4f} of the largest")
    assert 0 < difference < 0.06


@needs_torchao
def test_generate_watch_and_files(int8, processor, tmp_path):
    inputs = asked(processor)
    answer = int8.generate(**inputs, max_new_tokens=4, do_sample=False)
    memory = int8.watch(numbered_frames(6, 64, 64), processor=processor)
    said = int8.ask(memory, "who wins ?", processor=processor)
    memory.save(tmp_path / "memory.safetensors")
    int8.save_pretrained(tmp_path / "model")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(again.generate(**inputs, max_new_tokens=4, do_sample=False), answer)
    assert again.ask(again.load_memory(tmp_path / "memory.safetensors"), "who wins ?", processor=processor) == said


@needs_torchao
def test_a_memory_belongs_to_the_weights_that_made_it(shipped, int8, processor, tmp_path):
    memory = int8.watch(numbered_frames(2, 64, 64), processor=processor)
    memory.save(tmp_path / "memory.safetensors")
    with pytest.raises(ValueError, match="made by another model"):
        shipped.load_memory(tmp_path / "memory.safetensors")


@needs_torchao
def test_lora_on_int8_with_ma_gc(assert_close):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(quantised(), LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)).train()
    model.requires_grad_(False)
    trained = {n: p for n, p in model.named_parameters() if "lora_" in n and p.requires_grad_() is not None}
    words = model.config.get_text_config().vocab_size
    ids = torch.randint(4, words, (2, 40), generator=torch.Generator().manual_seed(0))
    plain = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(trained.values()))
    kwargs = {"method": "ma-gc", "layer_interval": 2, "sequence_interval": 16}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    ours = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(trained.values()))
    assert len(trained) == 4 * model.config.text_config.num_hidden_layers
    for name, expected, actual in zip(trained, plain, ours):
        assert_close(name, actual, expected, 1e-4)
        assert expected.abs().max() > 0, name
