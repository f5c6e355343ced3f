"""Checkpoint cells, the route of multi-axis checkpointing for sharded weights: exact, alone and under FSDP2."""

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_video_ma2mba import checkpointing
from modeling_video_ma2mba.checkpoint_cells import shards_weights
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform

LAYERS, TOKENS = 4, 64
GRID = {"segments": uniform(TOKENS, 10), "layer_interval": 2}
PLANS = {
    "grid": GRID,
    "grid, last cell again": {**GRID, "keep_last_cell": False, "layer_interval": 3},
    "sequence": {"segments": (30, 16, 9, 5, 3, 1), "recompute_mixer": True},
    "nested": {**GRID, "keep_boundaries": False},
    "nested, last cell again": {**GRID, "keep_boundaries": False, "keep_last_cell": False, "layer_interval": 1},
    "blocks": {"segments": uniform(TOKENS, 10), "segments_per_block": 3, "keep_last_cell": False},
    "nested blocks": {**GRID, "keep_boundaries": False, "segments_per_block": 2, "keep_features": False},
    "host": {**GRID, "states_on": "host", "boundaries_on": "host"},
    "nested blocks, states on the host": {
        **GRID, "keep_boundaries": False, "segments_per_block": 2, "states_on": "host",
    },
    "layers": {"segments": (TOKENS,), "layer_interval": 1},
}  # fmt: skip


def make_plan(name, **changes):
    fields = {"num_layers": LAYERS, "layer_interval": LAYERS, "frames_per_batch": 2, **PLANS[name], **changes}
    return CheckpointPlan(**fields)


@pytest.fixture
def cells(monkeypatch):
    """`cells(model, plan)`: train by `plan` in cells, though nothing is sharded."""

    def enable(model, plan):
        monkeypatch.setattr(checkpointing, "shards_weights", lambda *modules: "FSDP2")
        model.gradient_checkpointing_enable()
        (stack,) = (module for module in model.modules() if hasattr(module, "checkpointing"))
        stack.checkpointing.fixed_plan = plan

    return enable


@pytest.fixture
def build(video_model):
    """`build()` -> lively video model of 4 layers in fp64, training, with the same weights every time."""
    return lambda **text: video_model(dtype=torch.float64, text={"num_hidden_layers": LAYERS, **text}).train()


@pytest.fixture
def given(prompt, frames, pad):
    """Two rows of different lengths, both with a video, one with an image, padded on both sides."""
    rows = [prompt(3, "v4", 15, "i", 8, seed=1), prompt(17, "v2", 9, seed=2)]
    ids, mask = pad(rows, "both")
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -100)
    videos = {"pixel_values_videos": [frames(4), frames(2, seed=1)], "pixel_values": frames(1, seed=2)}
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **videos}


def train(model, given, state=None):
    """Return loss and gradients; with a state also its gradient, and the final state takes part in the loss."""
    model.zero_grad()
    out = model(**given, past_key_values=state.fork() if state else None, use_cache=state is not None)
    loss = out.loss
    if state is not None:
        after = out.past_key_values
        loss = loss + sum((i + 1) * (t * t).sum() for i, t in enumerate((*after.conv, *after.ssm))) / 1000
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if state is not None:
        found |= {f"state {i}": tensor.grad.clone() for i, tensor in enumerate((*state.conv, *state.ssm))}
    return {"loss": loss.detach(), **found}


def given_state(model):
    generator = torch.Generator().manual_seed(5)
    state = model.model.language_model.new_state(2)
    return state.map(lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype).requires_grad_())


@pytest.mark.parametrize("frozen", ["nothing", "tower and embeddings"])
@pytest.mark.parametrize("name", PLANS)
def test_cells_give_the_gradients_of_plain_training(build, given, cells, assert_close, name, frozen):
    model = build(tie_word_embeddings=False)
    if frozen != "nothing":
        model.model.vision_tower.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(False)
    expected = train(model, given, given_state(model))
    cells(model, make_plan(name))
    found = train(model, given, given_state(model))
    assert found.keys() == expected.keys()
    for key in expected:
        assert_close(key, found[key], expected[key], 1e-10)


@pytest.mark.parametrize("name", ["grid", "nested blocks"])
def test_outputs_without_labels(build, given, cells, assert_close, name):
    model, given = build(), {key: value for key, value in given.items() if key != "labels"}
    results = []
    for plan in (None, make_plan(name)):
        if plan is not None:
            cells(model, plan)
        model.zero_grad()
        logits = model(**given).logits
        logits.square().sum().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert_close("logits", results[1][0], results[0][0], 1e-10)
    for key, expected in results[0][1].items():
        assert_close(key, results[1][1][key], expected, 1e-10)


@pytest.mark.parametrize("name", ["grid", "nested", "nested blocks", "sequence"])
def test_dropout_draws_the_same_again(build, given, cells, assert_close, name):
    """The derivative along the gradient is its square, if forward and backward see the same dropout."""
    model = build()
    model.model.vision_tower.requires_grad_(False)
    for layer in model.model.vision_tower.encoder.layers:  # features that are kept draw nothing when run again
        layer.mlp.register_forward_hook(lambda module, args, out: F.dropout(out, 0.1))
    for layer in model.model.language_model.layers:
        layer.mixer.in_proj.register_forward_hook(lambda module, args, out: F.dropout(out, 0.3))
    cells(model, make_plan(name))

    def loss():
        torch.manual_seed(7)
        return model(**given).loss

    model.zero_grad()
    loss().backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad.clone() for p in parameters]
    square, step, values = sum((g * g).sum() for g in gradients), 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                parameter.add_(gradient, alpha=sign * step)
        values.append(loss().detach())
    assert_close("derivative", (values[0] - values[1]) / (2 * step), square, 1e-6)


def test_memory_of_the_plans(text_model, ids, cells, peak_bytes):
    model = text_model(num_hidden_layers=8, chunk_size=64).train()
    row = ids(1, 2048)

    def peak(plan):
        model.gradient_checkpointing_disable()
        if plan is not None:
            cells(model, plan)
        model.zero_grad()
        return peak_bytes(lambda: model(input_ids=row, labels=row).loss.backward())

    fields = {"segments": uniform(2048, 256), "num_layers": 8, "layer_interval": 1}
    grid, nested = CheckpointPlan(**fields), CheckpointPlan(**fields, keep_boundaries=False)
    assert peak(nested) < 0.8 * peak(grid) < 0.2 * peak(None)


# Which route


def test_engines_are_found_by_what_they_leave_on_a_model(build):
    model = build()
    assert shards_weights(model) is None
    model.lm_head.weight.ds_id = 3
    assert shards_weights(model.model.language_model, model.lm_head) == "ZeRO-3"
    model.model.vision_tower._is_fsdp_managed_module = True
    assert shards_weights(model) == "FSDP"
    flat = nn.Linear(2, 2)
    flat.weight._is_flat_param = True
    assert shards_weights(flat) == "FSDP"


def test_other_models_take_the_other_route(build, given, monkeypatch, caplog):
    monkeypatch.setattr(checkpointing, "run_cells", None)
    model = build()
    model.gradient_checkpointing_enable()
    with caplog.at_level(logging.INFO):
        model(**given).loss.backward()
    assert "shards" not in caplog.text


# FSDP2, two processes. "expected" are the gradients of one process, averaged over both ranks' batches.

FSDP = """
import datetime, logging, pickle, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import modeling_video_ma2mba
from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan
rank, folder = int(sys.argv[1]), sys.argv[2]
with open(folder + "/cases", "rb") as file:
    tower_is_sharded, ends_are_sharded, frozen, cases = pickle.load(file)
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("modeling_video_ma2mba.checkpointing").addHandler(handler)
logging.getLogger("modeling_video_ma2mba.checkpointing").setLevel(logging.INFO)
limit = datetime.timedelta(seconds=120)
dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=2, timeout=limit)
mesh = dist.init_device_mesh("cpu", (2,))
model = VideoMa2mbaForConditionalGeneration.from_pretrained(folder + "/model", dtype=torch.float64).train()
for name in frozen:
    model.get_submodule(name).requires_grad_(False)
for layer in model.model.language_model.layers:
    fully_shard(layer, mesh=mesh)
if tower_is_sharded:
    for layer in model.model.vision_tower.encoder.layers:
        fully_shard(layer, mesh=mesh)
if ends_are_sharded:  # as accelerate does
    fully_shard(model.model.language_model.embeddings, mesh=mesh)
    fully_shard(model.lm_head, mesh=mesh, reshard_after_forward=False)
fully_shard(model, mesh=mesh)
layers, most = model.model.language_model.layers, 0
def count(*_):
    global most
    most = max(most, sum(not isinstance(layer.mixer.D, torch.distributed.tensor.DTensor) for layer in layers))
for layer in layers:
    layer.mixer.in_proj.register_forward_hook(count)
for plan, batches, expected in cases:
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model.model.language_model.checkpointing.fixed_plan = CheckpointPlan(**plan)
    model(**batches[rank]).loss.backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == (name in expected) == (p.grad is not None), name
        if p.requires_grad:
            error = float((p.grad.full_tensor() - expected[name]).abs().max())
            assert error <= 1e-10 * max(1.0, float(expected[name].abs().max())), (name, error, plan)
print("equal", len(cases), "gathered", most)
assert len(lines) == len(cases) and "FSDP2 shards the weights" in lines[0], lines
dist.destroy_process_group()
"""


@pytest.fixture
def batch(ids, frames):
    """`batch(length, frames, seed)` -> one row with a video behind 3 words, or without one."""

    def draw(length, count, seed):
        row, labels = ids(1, length, seed), ids(1, length, seed + 100)
        labels[:, : length // 2 : 2] = -100
        given = {"input_ids": row, "labels": labels}
        if count:
            row[0, 3 : 3 + 4 * count] = 98
            given["pixel_values_videos"] = [frames(count, seed)]
        return given

    return draw


@pytest.mark.parametrize(
    ("tower_is_sharded", "ends_are_sharded", "frozen"),
    [
        (False, True, ["model.vision_tower", "model.language_model.embeddings"]),
        (True, False, []),
        pytest.param(False, True, [], marks=pytest.mark.slow),
    ],
)
def test_two_ranks_of_fsdp2(build, batch, tmp_path, fresh_process, tower_is_sharded, ends_are_sharded, frozen):
    model = build(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "model")
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    pairs = {
        "same lengths": ((64, 5), (64, 5)),
        "different lengths and numbers of segments": ((64, 9), (13, 1)),
        "one rank without video": ((40, 3), (40, 0)),
        "a short rank without video": ((9, 0), (64, 6)),
    }
    cases = []
    for k, pair in enumerate(pairs.values()):
        batches = [batch(*part, seed=2 * k + i) for i, part in enumerate(pair)]
        alone = [train(model, given) for given in batches]
        expected = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0] if name != "loss"}
        for name in ("grid", "nested", "nested blocks", "sequence"):
            cases.append((vars(make_plan(name)), batches, expected))
    with open(tmp_path / "cases", "wb") as file:
        pickle.dump((tower_is_sharded, ends_are_sharded, frozen, cases), file)
    with ThreadPoolExecutor(2) as pool:
        printed = list(pool.map(lambda rank: fresh_process(FSDP, rank, tmp_path), range(2)))
    # One block runs again while another waits for its backward; without a remedy all four would be gathered.
    assert [text.split() for text in printed] == [["equal", str(len(cases)), "gathered", "2"]] * 2
