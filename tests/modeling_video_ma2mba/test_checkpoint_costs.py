"""What a layer, the head and the frames cost: measured without a trace, and counted from a config."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModel

from modeling_video_ma2mba import (
    Ma2mbaConfig,
    Ma2mbaForCausalLM,
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
)
from modeling_video_ma2mba.checkpoint_analytic import analytic_costs
from modeling_video_ma2mba.checkpoint_budget import HeldBytes
from modeling_video_ma2mba.checkpoint_costs import LayerCost, StepCosts, measure_costs
from modeling_video_ma2mba.live_memory import MemoryMeter
from modeling_video_ma2mba.vision_features import encode_frames

SIZES = {"hidden_size": 256, "num_heads": 8, "head_dim": 64, "state_size": 128, "num_hidden_layers": 2}


@pytest.fixture
def wide_model(text_model):
    return lambda dtype=torch.float32, **changes: text_model(dtype=dtype, **{**SIZES, **changes}).train()


def test_few_lengths_of_one_layer_are_run(text_model):
    model = text_model(num_hidden_layers=5).train()
    lengths, layers = set(), set()

    def note(module, given):
        layers.add(module)
        lengths.add(given[0].shape[1])

    for layer in model.backbone.layers:
        layer.register_forward_pre_hook(note)
    costs = measure_costs(model.backbone, 2, model.lm_head)
    assert len(layers) == 1 and len(lengths) <= 4
    assert set(costs.layers[False]) == set(costs.layers[True]) == lengths


def test_measuring_leaves_no_trace(video_model):
    model = video_model().train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.lm_head.weight.grad = None
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    random = torch.get_rng_state()
    measure_costs(model.model.language_model, 1, model.lm_head, model.model)
    assert torch.equal(torch.get_rng_state(), random)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is gradients[name], name
        assert parameter.grad is None or (parameter.grad == 1).all(), name


def test_costs_lie_on_lines_between_the_points_and_beyond():
    points = {10: LayerCost(100, 10, 10, 10), 20: LayerCost(300, 10, 10, 10), 40: LayerCost(500, 10, 10, 10, 1, 2, 3)}
    costs = StepCosts(
        source="measured", device_type="cpu", batch_size=1, num_layers=1, state_bytes=1, boundary_bytes=1,
        longest_segment=99, layers={False: points}, head_rows=1, logit_bytes=1, head_bytes=1, embedding_bytes=1,
    )  # fmt: skip
    expected = {10: 100, 15: 200, 20: 300, 30: 400, 40: 500, 80: 900, 5: 50, 1: 10}
    assert {n: costs.layer(n, False).graph for n in expected} == expected
    assert costs.layer(15, False).plain_seconds is None
    assert costs.layer(80, False).graph_peak == 10


def test_frozen_layers_are_measured_as_they_are(wide_model):
    trained, frozen = wide_model(), wide_model()
    frozen.backbone.layers.requires_grad_(False)
    costs = [measure_costs(model.backbone, 1, model.lm_head) for model in (trained, frozen)]
    assert costs[0].layer_sums == 4 * sum(p.numel() for p in trained.backbone.layers[0].parameters())
    assert costs[1].layer_sums == 0
    n = min(costs[0].layers[False])
    assert costs[1].layers[False][n].backward_peak < costs[0].layers[False][n].backward_peak


def test_layers_with_lora_are_measured_as_they_are(wide_model):
    plain = measure_costs(wide_model().backbone, 1)
    lora = get_peft_model(wide_model(), LoraConfig(r=4, target_modules=["in_proj", "out_proj"]))
    model = lora.get_base_model()
    costs = measure_costs(model.backbone, 1, model.lm_head)
    adapters = [p for p in model.backbone.layers[0].parameters() if p.requires_grad]
    assert costs.layer_sums == 4 * sum(p.numel() for p in adapters) < plain.layer_sums
    n = max(costs.layers[False])
    assert costs.layers[False][n].graph != plain.layers[False][n].graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_counted_bytes_of_a_layer_are_the_measured_ones(dtype, batch_size, wide_model):
    model = wide_model(dtype)
    measured = measure_costs(model.backbone, batch_size, model.lm_head)
    counted = analytic_costs(model.config, batch_size, dtype, "torch")
    assert counted.source == "analytic" and measured.source == "measured"
    for name in ("state_bytes", "boundary_bytes", "num_layers", "longest_segment", "head_rows", "head_bytes",
                 "embedding_bytes", "device_type"):  # fmt: skip
        assert getattr(counted, name) == getattr(measured, name), name
    for again in (False, True):
        for n, cost in measured.layers[again].items():
            expected = counted.layer(n, again)
            # The scan keeps whole states, the count a part of one.
            assert expected.graph == pytest.approx(cost.graph, rel=0.02, abs=counted.state_bytes / 2)
            for name in ("graph_peak", "plain_peak", "backward_peak"):
                assert getattr(expected, name) == pytest.approx(getattr(cost, name), rel=0.35), (again, n, name)


@pytest.mark.parametrize(
    ("name", "parameters"), [("0.7b", 673_953_280), ("1.8b", 1_653_560_320), ("3.1b", 3_015_287_296)]
)
def test_parameters_of_the_presets_are_counted(name, parameters):
    config = VideoMa2mbaConfig.preset(name)
    with torch.device("meta"):
        model = VideoMa2mbaForConditionalGeneration(config)
    held = HeldBytes.of([model], None)
    costs = analytic_costs(config, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == parameters == costs.weights // 4
    # The tower's last layer does not run; its size is known, its share of the other parts' rounded.
    assert costs.gradients == pytest.approx(held.gradients, rel=0.002)
    model.model.vision_tower.requires_grad_(False)
    frozen = analytic_costs(config, dtype=torch.float32, tower_is_trained=False)
    assert frozen.gradients == HeldBytes.of([model], None).gradients
    assert frozen.vision_sums == 4 * sum(p.numel() for p in model.model.multi_modal_projector.parameters())


@pytest.mark.parametrize("name", ["370m", "2.7b"])
def test_parameters_of_the_language_presets_are_counted(name):
    config = Ma2mbaConfig.preset(name)
    with torch.device("meta"):
        model = Ma2mbaForCausalLM(config)
    costs = analytic_costs(config, dtype=torch.bfloat16, optimizer_bytes_per_parameter=8)
    count = sum(p.numel() for p in model.parameters())
    assert costs.weights == costs.gradients == 2 * count and costs.sums == 4 * count and costs.optimizer == 8 * count
    assert costs.layer_sums == 4 * sum(p.numel() for p in model.backbone.layers[0].parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_frame_of_the_clip_tower_takes_what_is_counted(attention, dtype):
    """Two layers of the real width, one frame: layers are alike."""
    preset = VideoMa2mbaConfig.preset("0.7b")
    fields = {**preset.vision_config.to_dict(), "num_hidden_layers": 2}
    config = VideoMa2mbaConfig(vision_config=fields, vision_feature_layer=2, text_config=preset.text_config.to_dict())
    config.vision_config._attn_implementation = attention
    tower = CLIPVisionModel._from_config(CLIPVisionConfig(**fields), attn_implementation=attention).to(dtype)
    tower = getattr(tower, "vision_model", tower)
    pixels = torch.zeros(1, 3, 336, 336, dtype=dtype)

    def encode():
        return encode_frames(tower, pixels, 2, 2)

    with MemoryMeter(torch.device("cpu")) as meter:
        features = encode()
        torch.autograd.grad(features.sum(), list(tower.parameters()), allow_unused=True)
        graph_peak = meter.peak
        del features
    with MemoryMeter(torch.device("cpu")) as meter, torch.no_grad():
        encode()
        plain_peak = meter.peak
    costs = analytic_costs(config, 1, dtype)
    assert costs.frames(1).graph_peak == pytest.approx(graph_peak, rel=0.15)
    assert costs.frames(1).plain_peak == pytest.approx(plain_peak, rel=0.35)
    assert costs.frames(16).graph_peak > 7 * graph_peak


def test_a_frame_of_the_paper_tower_takes_half_a_gigabyte():
    """545 MB of graph in 16 bit where all 23 layers that run are trained."""
    costs = analytic_costs(VideoMa2mbaConfig.preset("3.1b"))
    per_frame = (costs.frames(16).graph_peak - costs.frames(4).graph_peak) / 12
    assert 545e6 - 5e6 < per_frame - costs.frames(1).plain_peak < 545e6 + 5e6


def test_frozen_and_trained_towers_are_told_apart(video_model):
    for frozen in (False, True):
        model = video_model().train()
        if frozen:
            model.model.vision_tower.requires_grad_(False)
        costs = measure_costs(model.model.language_model, 1, model.lm_head, model.model)
        assert costs.tower_is_trained is not frozen and costs.tokens_per_frame == 4
        cost = costs.frames(4)
        assert (cost.graph_peak > cost.plain_peak) is not frozen
        assert cost.plain_seconds > 0 and cost.graph_seconds > 0
    model.model.multi_modal_projector.requires_grad_(False)
    nothing = measure_costs(model.model.language_model, 1, model.lm_head, model.model)
    assert nothing.vision_sums == 0 and nothing.frames(4).graph_peak == 0


def test_the_loss_has_logits_of_a_few_positions_at_a_time():
    costs = analytic_costs(Ma2mbaConfig.preset("370m"))
    assert costs.loss_positions(10) == 10 and costs.loss_positions(10**6) == 2**28 // (4 * 50288)
    assert SimpleNamespace(**costs.__dict__).logit_bytes == 14 * 50288
