"""Around the exactness of multi-axis checkpointing: what is run again, what is kept, what is refused, what breaks."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import modeling_video_ma2mba.language_model_outputs as outputs
from modeling_video_ma2mba.checkpoint_engine import RandomState
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform

LAYERS, TOKENS = 3, 23
SMALL = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_heads": 2, "head_dim": 16, "state_size": 8}
GRID = {"segments": uniform(TOKENS, 7), "layer_interval": 2}
PLANS = {
    "one cell": {"segments": (TOKENS,)},
    "layers": {"segments": (TOKENS,), "layer_interval": 1, "keep_last_cell": False},
    "grid": GRID,
    "grid on the host": {**GRID, "states_on": "host", "boundaries_on": "host", "keep_last_cell": False},
    "nested": {**GRID, "keep_boundaries": False},
    "nested layers": {**GRID, "keep_boundaries": False, "layer_interval": 1, "keep_last_cell": False},
    "blocks": {"segments": uniform(TOKENS, 3), "segments_per_block": 3},
    "nested blocks": {**GRID, "keep_boundaries": False, "segments_per_block": 2, "recompute_mixer": True},
}


def make_plan(name, **changes):
    return CheckpointPlan(**{"num_layers": LAYERS, "layer_interval": LAYERS, **PLANS[name], **changes})


def use(model, plan):
    """Switch checkpointing on, by this plan, or off."""
    model.train().gradient_checkpointing_disable()
    if plan is not None:
        model.gradient_checkpointing_enable()
        for module in model.modules():
            if hasattr(module, "checkpointing"):
                module.checkpointing.fixed_plan = plan
    return model


def gradients(model, given):
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.fixture
def model(text_model):
    return text_model(dtype=torch.float64, **SMALL)


@pytest.fixture
def given(ids):
    batch = ids(2, TOKENS)
    return {"input_ids": batch, "labels": batch}


@pytest.fixture
def check_gradients(assert_close):
    def compare(found, expected, tolerance=1e-10):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(name, found[name], expected[name], tolerance)

    return compare


# What is run


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_runs_again_what_it_says(model, given, name):
    tokens = []
    for layer in model.backbone.layers:
        layer.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    plan = make_plan(name)
    use(model, plan)(**given).loss.backward()
    assert sum(tokens) / (LAYERS * TOKENS) - 1 == pytest.approx(plan.extra_forwards, abs=1e-9)


@pytest.mark.parametrize("name", PLANS)
def test_a_gradient_is_accumulated_once_per_backward(model, given, name):
    counts = dict.fromkeys((n for n, _ in model.named_parameters()), 0)

    def count(name):
        def hook(_):
            counts[name] += 1

        return hook

    for parameter_name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(count(parameter_name))
    use(model, make_plan(name))(**given).loss.backward()
    assert set(counts.values()) == {1}, counts


def test_hooks_on_parameters_see_the_whole_gradient(model, given, check_gradients):
    seen = {}
    use(model, make_plan("grid"))
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: seen.__setitem__(name, gradient.clone()))
    found = gradients(model, given)
    check_gradients(seen, {name: gradient for name, gradient in found.items() if name != "loss"}, 0)


@pytest.mark.parametrize("name", PLANS)
def test_calls_without_gradient_know_nothing_of_checkpointing(model, given, kept_bytes, name):
    with torch.no_grad():
        expected = model.eval()(**given, use_cache=True)
    use(model, make_plan(name))
    with torch.no_grad():
        trained = model(**given).loss
    assert torch.equal(trained, expected.loss)
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            out = model.eval()(**given, use_cache=True)
        assert torch.allclose(out.logits, expected.logits, rtol=0, atol=1e-12)
        assert all(torch.allclose(a, b) for a, b in zip(out.past_key_values.ssm, expected.past_key_values.ssm))

    def run():
        with torch.no_grad():
            model.train()(**given)

    assert kept_bytes(run) == 0


def test_a_head_in_eval_mode_gives_loss_and_logits(model, given):
    expected = model(**given)
    use(model, make_plan("grid")).eval()
    model.backbone.train()
    out = model(**given)
    assert torch.equal(out.loss, expected.loss) and torch.equal(out.logits, expected.logits)


def test_logits_exist_for_a_few_positions_at_a_time(model, given, check_gradients, monkeypatch):
    expected = gradients(use(model, None), given)
    monkeypatch.setattr(outputs, "LOSS_LOGITS_BYTES", 4 * 99 * 3)
    sizes = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    for name in PLANS:
        check_gradients(gradients(use(model, make_plan(name)), given), expected)
    assert max(sizes) == 3


# What is refused


@pytest.mark.parametrize("name", ["one cell", "nested blocks"])
def test_there_is_one_backward_per_forward(model, given, name):
    hidden = use(model, make_plan(name)).backbone(given["input_ids"]).last_hidden_state
    hidden.backward(torch.ones_like(hidden))
    with pytest.raises(RuntimeError, match="one backward per forward"):
        hidden.backward(torch.ones_like(hidden))
    loss = model(**given).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"one backward per forward .*retain_graph=True"):
        loss.backward(retain_graph=True)


@pytest.mark.parametrize("name", ["one cell", "grid"])
def test_second_derivatives_are_refused(model, given, name):
    loss = use(model, make_plan(name))(**given).loss
    with pytest.raises(RuntimeError, match=r"create_graph=True.*gradient_checkpointing_disable"):
        torch.autograd.grad(loss, model.lm_head.weight, create_graph=True)


@pytest.mark.parametrize("change", ["weight", "frozen weight", "frozen head", "ids", "embeddings"])
def test_what_changes_between_forward_and_backward_is_noticed(text_model, given, change):
    model = text_model(dtype=torch.float64, **SMALL, tie_word_embeddings=False)
    if change == "embeddings":
        embeds = model.get_input_embeddings()(given["input_ids"]).detach()
        given = {"inputs_embeds": embeds, "labels": given["labels"]}
    weight = model.backbone.layers[1].mixer.in_proj.weight
    changed = {"frozen head": model.lm_head.weight, "ids": given.get("input_ids"), "embeddings": None}
    changed = given["inputs_embeds"] if change == "embeddings" else changed.get(change, weight)
    if "frozen" in change:
        changed.requires_grad_(False)
    loss = use(model, make_plan("grid"))(**given).loss
    with torch.no_grad():
        changed.add_(1 if change == "ids" else 0.1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_weights_exchanged_for_the_forward_alone_are_noticed(model, given):
    weights = {name: (2 * parameter).detach().requires_grad_() for name, parameter in model.named_parameters()}
    loss = torch.func.functional_call(use(model, make_plan("grid")), weights, (), given).loss
    with pytest.raises(RuntimeError, match="exchanged"):
        loss.backward()


# What is kept


@pytest.mark.parametrize("name", PLANS)
def test_nothing_is_left_behind_by_a_step(model, given, kept_bytes, name):
    use(model, make_plan(name))

    def step():
        model(**given).loss.backward()
        model.zero_grad()

    step()
    gc.disable()
    try:
        assert kept_bytes(step) == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("name", PLANS)
def test_a_loss_that_is_held_holds_no_checkpoints(model, given, kept_bytes, name):
    use(model, make_plan(name))

    def step():
        loss = model(**given).loss
        loss.backward()
        model.zero_grad()
        return loss

    assert kept_bytes(step) <= 64


@pytest.mark.parametrize("name", PLANS)
def test_a_forward_without_backward_leaves_nothing(model, given, kept_bytes, name):
    use(model, make_plan(name))
    assert kept_bytes(lambda: model(**given) and None) == 0


@pytest.mark.parametrize("dropout", [False, True])
def test_states_of_the_random_generators_are_kept_where_they_differ(model, given, dropout):
    if dropout:
        for layer in _layers(model):
            layer.mixer.out_proj = torch.nn.Sequential(torch.nn.Dropout(0.3), layer.mixer.out_proj)
    plan = make_plan("nested layers")
    earlier = [thing for thing in gc.get_objects() if type(thing) is RandomState]  # of other tests' steps
    loss = use(model, plan)(**given).loss
    new = [t for t in gc.get_objects() if type(t) is RandomState and not any(t is known for known in earlier)]
    assert len(new) == (LAYERS * len(plan.segments) if dropout else 1)
    loss.backward()


class _Interruption(Exception):
    pass


def _calls_of_a_step(model, given):
    """Return how often a block runs in the forward and in the whole step."""
    counts = [0]
    hooks = [layer.register_forward_pre_hook(lambda *_: counts.append(counts[-1] + 1)) for layer in _layers(model)]
    loss = model(**given).loss
    forward = counts[-1]
    loss.backward()
    [hook.remove() for hook in hooks]
    return forward, counts[-1]


def _layers(model):
    return model.backbone.layers


@pytest.mark.parametrize("name", PLANS)
def test_an_exception_anywhere_leaves_nothing(model, given, kept_bytes, check_gradients, name):
    for layer in _layers(model):
        layer.mixer.out_proj = torch.nn.Sequential(torch.nn.Dropout(0.3), layer.mixer.out_proj)
    use(model, make_plan(name))

    def seeded():
        torch.manual_seed(3)
        return gradients(model, given)

    expected = seeded()
    forward, total = _calls_of_a_step(model, given)
    for stop in sorted({1, forward // 2 + 1, forward, min(forward + 1, total), (forward + total) // 2, total}):
        calls = []

        def interrupt(*_, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) == stop:
                raise _Interruption

        hooks = [layer.register_forward_pre_hook(interrupt) for layer in _layers(model)]

        def step(stop=stop):
            try:
                loss = model(**given).loss
                before = torch.get_rng_state()
                loss.backward()
            except _Interruption:
                if stop > forward:
                    assert torch.equal(torch.get_rng_state(), before), "the backward moved the random generator"
                model.zero_grad()
            else:
                raise AssertionError("nothing was interrupted")

        def step_and_collect(step=step):
            step()
            gc.collect()

        assert kept_bytes(step_and_collect) == 0, f"interrupted at block {stop} of {total}"
        [hook.remove() for hook in hooks]
        check_gradients(seeded(), expected, 0)


@pytest.mark.parametrize("name", ["nested layers", "grid on the host"])
def test_memory_does_not_grow_with_the_length(text_model, ids, peak_bytes, name):
    """What a pass without gradient holds per token (ids, labels, their masks) is taken off."""
    model, growth, peaks = text_model(num_hidden_layers=LAYERS), [], []
    places = {"states_on": "host", "boundaries_on": "host", "keep_last_cell": False}
    for length in (256, 1024):
        batch = ids(1, length)

        def step(batch=batch):
            model.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()

        def read(batch=batch):
            with torch.no_grad():
                model(input_ids=batch, labels=batch, segment_length=32)

        use(model, make_plan(name, segments=uniform(length, 32), **places))
        step()
        peaks.append(peak_bytes(step))
        growth.append(peaks[-1] - peak_bytes(read))
    use(model, None)
    plain = peak_bytes(step)
    assert growth[1] - growth[0] < 0.01 * peaks[0], (growth, peaks)
    assert peaks[1] < plain / 10, (peaks, plain)


class Frames:
    """Frames that are no tensor: what `FrameSource` promises."""

    def __init__(self, frames):
        self.frames, self.shape = frames, tuple(frames.shape)

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index].clone()


@pytest.mark.parametrize("tower_is_trained", [False, True])
def test_memory_does_not_grow_with_the_video(video_model, frames, prompt, peak_bytes, tower_is_trained):
    model = video_model(text={"num_hidden_layers": LAYERS})
    model.model.vision_tower.requires_grad_(tower_is_trained)
    growth, peaks = [], []
    for count in (32, 128):
        film, batch = Frames(frames(count)), prompt(3, f"v{count}", 5)[None]
        given = {"input_ids": batch, "labels": batch, "pixel_values_videos": film}

        def step(given=given):
            model.zero_grad()
            model(**given).loss.backward()

        def read(given=given):
            with torch.no_grad():
                model(**given, segment_length=32)

        plan = make_plan(
            "nested layers", segments=uniform(batch.shape[1], 32), frames_per_batch=2, states_on="host"
        )  # fmt: skip
        use(model, plan)
        step()
        peaks.append(peak_bytes(step))
        growth.append(peaks[-1] - peak_bytes(read))
    use(model, None)
    plain = peak_bytes(step)
    assert growth[1] - growth[0] < 0.01 * peaks[0], (growth, peaks)
    assert peaks[1] < plain / 10, (peaks, plain)


# With others


def _compiled_gradients(model, given, blocks):
    torch._dynamo.reset()
    if not blocks:
        return gradients(torch.compile(model, backend="aot_eager"), given)
    for layer in _layers(model):
        layer.compile(backend="aot_eager")
    return gradients(model, given)


def test_blocks_may_be_compiled(text_model, ids, check_gradients):
    model, batch = text_model(dtype=torch.float64, **{**SMALL, "num_hidden_layers": 2}), ids(2, 21)
    given = {"input_ids": batch, "labels": batch}
    plan = CheckpointPlan(segments=(7, 7, 7), num_layers=2, layer_interval=1)
    expected = gradients(use(model, None), given)
    check_gradients(_compiled_gradients(use(model, plan), given, blocks=True), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grid", "nested blocks"])
def test_the_whole_model_may_be_compiled(model, given, check_gradients, name):
    expected = gradients(use(model, None), given)
    found = _compiled_gradients(use(model, make_plan(name)), given, blocks=False)
    check_gradients({key.removeprefix("_orig_mod."): value for key, value in found.items()}, expected)


DDP = """
import sys, torch, torch.distributed as dist
import modeling_video_ma2mba
from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=2)
def load():
    return VideoMa2mbaForConditionalGeneration.from_pretrained(folder + "/model", dtype=torch.float64).train()
g = torch.Generator().manual_seed(0)
film = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8, generator=g)
text = torch.randint(2, 97, (1, 31), generator=g)
video = text[:, :20].clone(); video[0, 5:13] = 98
batches = [dict(input_ids=video, labels=text[:, :20], pixel_values_videos=[film]), dict(input_ids=text, labels=text)]
model = load()
model.gradient_checkpointing_enable()
length = batches[rank]["input_ids"].shape[1]
model.model.language_model.checkpointing.fixed_plan = CheckpointPlan(
    segments=uniform(length, (9, 4)[rank]), num_layers=2, layer_interval=1, keep_boundaries=rank == 1)
parallel = torch.nn.parallel.DistributedDataParallel(model)
for step in range(2):  # an unused parameter shows in the second step
    parallel.zero_grad()
    parallel(**batches[rank]).loss.backward()
alone, grads = load(), []
for batch in batches:
    alone.zero_grad()
    alone(**batch).loss.backward()
    grads.append({n: p.grad.clone() for n, p in alone.named_parameters() if p.grad is not None})
checked = 0
for name, p in model.named_parameters():
    if p.requires_grad:
        expected = (grads[0][name] + grads[1][name]) / 2
        error = float((p.grad - expected).abs().max())
        assert error <= 1e-10 * max(1.0, float(expected.abs().max())), (name, error)
        checked += 1
dist.destroy_process_group()
print("equal", checked)
"""


def test_data_parallel_ranks_may_differ_in_length_and_video(video_model, tmp_path, fresh_process):
    model = video_model(dtype=torch.float64)
    model.save_pretrained(tmp_path / "model")
    with ThreadPoolExecutor(2) as pool:
        printed = list(pool.map(lambda rank: fresh_process(DDP, rank, tmp_path), range(2)))
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert [text.split() for text in printed] == [["equal", str(trained)]] * 2
