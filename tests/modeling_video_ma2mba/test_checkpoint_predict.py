"""Predicted costs beside measured ones: device bytes within a tenth, host bytes to the byte."""

from dataclasses import replace

import pytest
import torch

from modeling_video_ma2mba import Ma2mbaConfig, Ma2mbaForCausalLM, checkpoint_engine, visual_inputs
from modeling_video_ma2mba.checkpoint_budget import HeldBytes
from modeling_video_ma2mba.checkpoint_costs import LayerCost, StepCosts, VisionCost, measure_costs, profiled_lengths
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform
from modeling_video_ma2mba.checkpoint_predict import gib, predict
from modeling_video_ma2mba.checkpoint_store import CheckpointStack, HostSlabs
from modeling_video_ma2mba.kernels import choose_backend
from modeling_video_ma2mba.live_memory import MemoryMeter

CPU = torch.device("cpu")
SHAPES = {
    "small state": {"hidden_size": 64, "num_heads": 4, "head_dim": 32, "state_size": 16, "num_hidden_layers": 6},
    "large state": {"hidden_size": 128, "num_heads": 4, "head_dim": 64, "state_size": 64, "num_hidden_layers": 5},
    "many heads": {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 32, "num_hidden_layers": 8},
}
HOST = {"states_on": "host", "boundaries_on": "host"}
NESTED, AGAIN = {"keep_boundaries": False}, {"recompute_mixer": True}
# (shape, batch size, length, segments or their length, layers of a group or 0 for all, the rest of the plan)
POINTS = [
    ("small state", 1, 1000, 1000, 0, {}),
    ("small state", 1, 1000, 1000, 0, {"keep_last_cell": False}),
    ("small state", 1, 1000, 1000, 1, {}),
    ("small state", 1, 1000, 1000, 3, {}),
    ("small state", 1, 1000, 1000, 4, AGAIN),
    ("small state", 1, 1000, 290, 0, {}),
    ("small state", 1, 1000, 290, 0, AGAIN),
    ("small state", 1, 1000, 290, 2, {}),
    ("small state", 1, 1000, 290, 2, NESTED),
    ("small state", 1, 1000, 290, 4, NESTED),
    ("small state", 1, 1000, 290, 2, HOST),
    ("small state", 1, 1000, 140, 0, {"states_on": "host"}),
    ("small state", 1, 1000, 140, 0, {"segments_per_block": 3}),
    ("small state", 1, 1000, 140, 2, NESTED | {"segments_per_block": 3}),
    ("small state", 1, 1100, (480, 330, 190, 100), 0, {}),
    ("small state", 1, 1100, (480, 330, 190, 100), 2, NESTED),
    ("large state", 3, 600, 600, 0, {}),
    ("large state", 3, 600, 600, 1, {}),
    ("large state", 3, 600, 150, 0, {}),
    ("large state", 3, 600, 150, 0, AGAIN),
    ("large state", 3, 600, 150, 2, {}),
    ("large state", 3, 600, 150, 2, NESTED | AGAIN),
    ("large state", 3, 600, 150, 2, HOST),
    ("large state", 3, 600, 90, 0, {"segments_per_block": 2}),
    ("large state", 3, 600, (260, 190, 100, 50), 0, {}),
    ("many heads", 2, 900, 900, 3, {}),
    ("many heads", 2, 900, 300, 0, {}),
    ("many heads", 2, 900, 300, 1, {}),
    ("many heads", 2, 900, 300, 1, NESTED),
    ("many heads", 2, 900, 300, 3, HOST | AGAIN),
    ("many heads", 2, 900, 130, 0, {"states_on": "host"}),
    ("many heads", 2, 900, 130, 0, {"segments_per_block": 3}),
    ("many heads", 2, 900, 130, 3, NESTED | {"segments_per_block": 3}),
    ("many heads", 2, 900, (400, 280, 150, 70), 0, {}),
]


def prepared(model):
    """Switch checkpointing on and give every trained parameter the gradient of an earlier micro-step."""
    model.train().gradient_checkpointing_enable()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return model


@pytest.fixture(scope="module")
def profiled():
    """Return a function (shape, batch size) -> model and its costs, each profiled once."""
    known = {}

    def get(shape, batch_size):
        if (shape, batch_size) not in known:
            torch.manual_seed(0)
            config = Ma2mbaConfig(
                n_groups=1, vocab_size=99, tie_word_embeddings=True, pad_token_id=0, backend="torch", **SHAPES[shape]
            )
            model = prepared(Ma2mbaForCausalLM(config))
            costs = measure_costs(model.backbone, batch_size, model.lm_head)
            held = HeldBytes.of([model.backbone, model.lm_head], optimizer_bytes=0)
            known[shape, batch_size] = model, replace(costs, **held.terms())
        return known[shape, batch_size]

    return get


def peak_of_a_step(step, sums):
    """Return device bytes of a step beyond weights, gradients and gradient sums, at their most."""
    with MemoryMeter(CPU) as meter:
        step()
    return meter.peak - sums


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point[0]}-{point[1]}x{point[2]}")
def test_activations_are_predicted_within_a_tenth(point, profiled):
    shape, batch_size, length, segments, interval, fields = point
    model, costs = profiled(shape, batch_size)
    layers = model.config.num_hidden_layers
    segments = uniform(length, segments) if isinstance(segments, int) else segments
    plan = CheckpointPlan(segments=segments, num_layers=layers, layer_interval=interval or layers, **fields)
    backend = choose_backend("torch", CPU, torch.float32)
    assert not set(segments) & set(profiled_lengths(model.backbone, batch_size, backend)), "a profiled length"
    model.backbone.checkpointing.fixed_plan = plan
    ids = torch.randint(1, 60, (batch_size, length), generator=torch.Generator().manual_seed(0))
    measured = peak_of_a_step(lambda: model(input_ids=ids, labels=ids).loss.backward(), costs.sums)
    assert predict(plan, costs).activations == pytest.approx(measured, rel=0.1)


@pytest.fixture(scope="module")
def video_costs():
    return {}


VIDEO_PLANS = [
    {"segments": (264,), "layer_interval": 2},
    {"segments": uniform(264, 70), "layer_interval": 2},
    {"segments": uniform(264, 70), "layer_interval": 1, "keep_features": False},
    {"segments": uniform(264, 70), "layer_interval": 1, "keep_boundaries": False, "frames_per_batch": 4},
    {"segments": uniform(264, 30), "layer_interval": 2, "keep_features": False, "frames_per_batch": 1},
    {"segments": (130, 70, 44, 20), "layer_interval": 2},
]


@pytest.mark.parametrize("plan", range(len(VIDEO_PLANS)))
@pytest.mark.parametrize("tower", ["trained", "frozen"])
def test_activations_with_frames_are_predicted_within_a_tenth(
    tower, plan, video_model, video_costs, prompt, frames, monkeypatch
):
    model = video_model(
        vision={"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 5, "num_attention_heads": 4}
    )
    if tower == "frozen":
        model.model.vision_tower.requires_grad_(False)
    language_model = prepared(model).model.language_model
    if tower not in video_costs:
        costs = measure_costs(language_model, 1, model.lm_head, model.model)
        held = HeldBytes.of([language_model, model.lm_head, model.model], optimizer_bytes=0)
        video_costs[tower] = replace(costs, **held.terms())
    costs = video_costs[tower]
    plan = CheckpointPlan(num_layers=2, **VIDEO_PLANS[plan])
    language_model.checkpointing.fixed_plan = plan
    ids, pixels = prompt(10, "v62", 6)[None], frames(62)[None]
    most = record_host_bytes(monkeypatch)
    used = sum(
        parameter.numel() * 4
        for name, parameter in model.model.named_parameters()
        if parameter.requires_grad and name not in model.model.unused_parameters()
    )
    assert costs.sums == used

    def step():
        model(input_ids=ids, pixel_values_videos=pixels, labels=ids).loss.backward()

    measured, predicted = peak_of_a_step(step, costs.sums), predict(plan, costs, num_frames=62)
    assert predicted.activations == pytest.approx(measured, rel=0.1)
    assert predicted.host == most()
    assert predicted.vision > 0


def record_host_bytes(monkeypatch):
    """Return a function that tells the most bytes that stacks and features have held on the host since now."""
    stacks, features, most = [], [], [0]

    class Stack(CheckpointStack):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            stacks.append(self)

        def push(self, tensors):
            super().push(tensors)
            most[0] = max(most[0], sum(stack.host_bytes for stack in stacks))

    class Slabs(HostSlabs):
        def like(self, tensor):
            features.append(tensor.nbytes)
            return super().like(tensor)

    monkeypatch.setattr(checkpoint_engine, "CheckpointStack", Stack)
    monkeypatch.setattr(visual_inputs, "HostSlabs", Slabs)
    return lambda: most[0] + sum(features)


@pytest.mark.parametrize(
    "fields",
    [
        {"segments": (3, 8, 8, 8), "layer_interval": 6, "states_on": "host"},
        {"segments": (3, 8, 8, 8), "layer_interval": 4, "states_on": "host"},
        {"segments": (3, 8, 8, 8), "layer_interval": 2, **HOST},
        {"segments": (3, 8, 8, 8), "layer_interval": 2, "keep_last_cell": False, **HOST},
        {"segments": (27,), "layer_interval": 1, **HOST},
        {"segments": (27,), "layer_interval": 6, **HOST},
        {"segments": (3, 8, 8, 8), "layer_interval": 2, **NESTED, **HOST},
        {"segments": 9 * (3,), "layer_interval": 6, "segments_per_block": 2, "states_on": "host"},
        {"segments": 9 * (3,), "layer_interval": 2, "segments_per_block": 3, **NESTED, **HOST},
    ],
)
def test_host_bytes_are_what_the_stacks_hold(fields, profiled, monkeypatch):
    model, costs = profiled("small state", 1)
    plan = CheckpointPlan(num_layers=6, **fields)
    model.backbone.checkpointing.fixed_plan = plan
    most = record_host_bytes(monkeypatch)
    ids = torch.arange(1, 28)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert predict(plan, costs).host == most()


def linear_costs(num_layers=4, **changes):
    """Return made-up costs whose seconds are exactly in proportion to tokens: 1, 1 and 2 for a token of a layer."""
    points = {n: LayerCost(n, 2 * n, n, n, n, n, 2 * n) for n in (1, 1000)}
    fields = {
        "source": "measured", "device_type": "cpu", "batch_size": 1, "num_layers": num_layers, "state_bytes": 100,
        "boundary_bytes": 1, "longest_segment": 10**6, "layers": {False: points, True: points}, "head_rows": 2**26,
        "logit_bytes": 1, "head_bytes": 1, "embedding_bytes": 1,
    }  # fmt: skip
    return StepCosts(**{**fields, **changes})


@pytest.mark.parametrize(
    "fields",
    [
        {"segments": (100,), "layer_interval": 4},
        {"segments": (100,), "layer_interval": 1},
        {"segments": (20, 40, 40), "layer_interval": 4},
        {"segments": (20, 40, 40), "layer_interval": 3},
        {"segments": (50, 30, 20), "layer_interval": 1, "keep_boundaries": False},
        {"segments": 10 * (10,), "layer_interval": 4, "segments_per_block": 3},
        {"segments": (10, *7 * (20,)), "layer_interval": 3, "segments_per_block": 2, "keep_boundaries": False},
        {"segments": (20, 40, 40), "layer_interval": 4, "keep_last_cell": False},
    ],
)
def test_seconds_are_forward_backward_and_what_is_computed_again(fields):
    plan = CheckpointPlan(num_layers=4, **fields)
    cost = predict(plan, linear_costs())
    forward = 4 * plan.sequence_length
    assert cost.plain_seconds == pytest.approx(3 * forward)
    assert cost.seconds == pytest.approx((3 + plan.extra_forwards) * forward)


@pytest.mark.parametrize(
    ("trained", "keep", "expected"), [(True, True, 1 + 5), (True, False, 2 + 5), (False, True, 6), (False, False, 8)]
)
def test_seconds_of_frames_follow_how_often_the_tower_runs(trained, keep, expected):
    """A trained tower runs for values, again where they are lost, and with graph; a frozen one without."""
    vision = {n: VisionCost(n, n, n, 5 * n) for n in (1, 4)}
    costs = linear_costs(vision=vision, tower_is_trained=trained, tokens_per_frame=4, feature_bytes=7)
    plan = CheckpointPlan(segments=(40,), num_layers=4, layer_interval=4, frames_per_batch=2, keep_features=keep)
    without = predict(plan, costs)
    cost = predict(plan, costs, num_frames=10)
    assert cost.seconds - without.seconds == pytest.approx(10 * expected)
    assert cost.plain_seconds - without.plain_seconds == pytest.approx(10 * (5 if trained else 6))
    assert cost.host == (70 if keep else 0)


def test_nothing_is_said_of_time_that_was_not_measured():
    points = {n: LayerCost(n, n, n, n) for n in (1, 1000)}
    cost = predict(
        CheckpointPlan(segments=(50, 50), num_layers=4, layer_interval=2),
        linear_costs(layers={False: points, True: points}),
    )
    assert cost.seconds is None and cost.plain_seconds is None
    assert not any("time" in line for line in cost.lines())


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1,023 B"), (2048, "2.0 KiB"), (3.5 * 2**20, "3.5 MiB"), (2**30, "1.0 GiB")]
)
def test_bytes_are_written_for_people(size, text):
    assert gib(size) == text
