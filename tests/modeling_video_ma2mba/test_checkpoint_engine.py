"""Multi-axis checkpointing is exact: any plan gives the gradients of plain training, in fp64 to 1e-10."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform
from modeling_video_ma2mba.language_model_outputs import NextTokenLoss
from modeling_video_ma2mba.row_layout import Rows

LAYERS, TOKENS = 3, 23
SMALL = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_heads": 2, "head_dim": 16, "state_size": 8}
GRID = {"segments": uniform(TOKENS, 7), "layer_interval": 2}
FAMILIES = {
    "none": {"segments": (TOKENS,)},
    "layers": {"segments": (TOKENS,), "layer_interval": 1, "keep_last_cell": False},
    "uneven groups": {"segments": (TOKENS,), "layer_interval": 2},
    "grid": {**GRID, "keep_last_cell": False},
    "grid, last cell kept": GRID,
    "sequence": {"segments": uniform(TOKENS, 7)},
    "nested": {**GRID, "keep_boundaries": False, "keep_last_cell": False},
    "nested layers, last cell kept": {**GRID, "layer_interval": 1, "keep_boundaries": False},
    "blocks of 2": {"segments": uniform(TOKENS, 5), "segments_per_block": 2},
    "blocks of 3": {"segments": uniform(TOKENS, 3), "segments_per_block": 3, "keep_last_cell": False},
    "nested blocks of 2": {**GRID, "keep_boundaries": False, "segments_per_block": 2},
    "nested blocks of 3": {
        "segments": uniform(TOKENS, 3), "layer_interval": 1, "keep_boundaries": False, "segments_per_block": 3,
        "keep_last_cell": False,
    },
    "decreasing": {"segments": (11, 6, 4, 2), "layer_interval": 2},
    "shorter than the convolution": {"segments": uniform(TOKENS, 2), "layer_interval": 2},
    "single tokens": {"segments": uniform(TOKENS, 1), "keep_boundaries": False, "layer_interval": 2},
}  # fmt: skip
FEW = ["none", "grid, last cell kept", "nested blocks of 2", "single tokens"]


def make_plan(family, **changes):
    return CheckpointPlan(**{"num_layers": LAYERS, "layer_interval": LAYERS, **FAMILIES[family], **changes})


def language_model(model):
    (found,) = (module for module in model.modules() if hasattr(module, "checkpointing"))
    return found


def train(model, plan, step):
    """Return loss and gradients of `step(model) -> loss, leaves by name`; without a plan those of plain training."""
    model.train().gradient_checkpointing_disable()
    if plan is not None:
        model.gradient_checkpointing_enable()
        language_model(model).checkpointing.fixed_plan = plan
    model.zero_grad()
    loss, leaves = step(model)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, tensor in (*model.named_parameters(), *leaves.items()):
        if tensor.grad is not None:
            found[f"d {name}"] = tensor.grad.clone()
    return found


@pytest.fixture
def model(text_model):
    return text_model(dtype=torch.float64, **SMALL)


@pytest.fixture
def rows(ids, pad):
    """`rows(kind)` -> input_ids, attention_mask and labels of a batch of unequal rows; some labels are ignored."""

    def build(kind="whole"):
        lengths = {"whole": [TOKENS], "one empty": [TOKENS - 3, 0, 4]}.get(kind, [TOKENS - 3, 5, 13])
        batch = [ids(1, length, seed=i)[0] for i, length in enumerate(lengths)]
        if kind == "whole":
            given = {"input_ids": batch[0][None]}
        else:
            batch, mask = pad(batch, "left" if kind == "one empty" else kind)
            given = {"input_ids": batch, "attention_mask": mask}
        ignored = torch.rand(given["input_ids"].shape, generator=torch.Generator().manual_seed(1)) < 0.3
        return {**given, "labels": given["input_ids"].masked_fill(ignored, -100)}

    return build


@pytest.fixture
def check(assert_close):
    """`check(model, step, families, plain=None)`: every plan gives what plain training gives."""

    def compare(model, step, families=FEW, plain=None):
        expected = train(model, None, step) if plain is None else plain
        plans = [make_plan(family) if isinstance(family, str) else family for family in families]
        for plan in plans:
            found = train(model, plan, step)
            assert found.keys() == expected.keys(), (plan, found.keys() ^ expected.keys())
            for name in expected:
                assert_close(f"{name} of {plan}", found[name], expected[name], 1e-10)
        return expected

    return compare


def numbers(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def given_state(model, batch_size):
    """A state as something before it might have left it, with gradients."""
    backbone = language_model(model)
    state = backbone.new_state(batch_size).map(lambda t: torch.zeros(t.shape, dtype=torch.float64))
    tensors = [*state.conv, *state.ssm]
    for i, tensor in enumerate(tensors):
        tensor.copy_(numbers(*tensor.shape, seed=i)).requires_grad_()
    names = [f"{kind}{i}" for kind in ("conv", "ssm") for i in range(len(state.conv))]
    return state, dict(zip(names, tensors))


def weighted(state):
    """A number that depends on every entry of a state."""
    return sum((t * numbers(*t.shape, seed=40 + i)).sum() for i, t in enumerate((*state.conv, *state.ssm)))


# What is trained


def step_of(given):
    """A step on tokens with labels."""
    return lambda model: (model(**given).loss, {})


def step_of_states(given, parts, **options):
    """A step whose loss is that of the labels, of the states behind the tokens, or both."""

    def step(model):
        state, leaves = given_state(model, len(given["input_ids"]))
        out = model(**given, past_key_values=state, use_cache=True, **options)
        return sum({"loss": out.loss, "states": weighted(out.past_key_values)}[part] for part in parts), leaves

    return step


def step_of_outputs(length, batch_size=2, mask=None):
    """A step on embeddings whose loss is of the backbone's output at every position."""

    def step(model):
        width = model.config.hidden_size
        embeds = numbers(batch_size, length, width, seed=7).requires_grad_()
        out = language_model(model)(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        return (out * numbers(*out.shape, seed=8)).sum(), {"inputs_embeds": embeds}

    return step


@pytest.mark.parametrize("family", FAMILIES)
def test_every_plan_gives_the_gradients_of_plain_training(model, rows, check, family):
    plans = [
        make_plan(family, states_on=states, boundaries_on=boundaries, recompute_mixer=recompute)
        for states, boundaries, recompute in (
            ("device", "device", False),
            ("host", "host", True),
            ("host", "device", True),
            ("device", "host", False),
        )
    ]
    steps = [
        step_of(rows()),
        step_of(rows("inside")),
        step_of_states(rows("left"), ["loss", "states"]),
        step_of_outputs(TOKENS),
    ]
    for step in steps:
        check(model, step, plans)


# Rows


@pytest.mark.parametrize("length", [1, 2, 6, 7, 14, 21])
def test_shorter_sequences_take_the_end_of_the_plan(model, ids, check, length):
    given = ids(2, length)
    step = step_of({"input_ids": given, "labels": given})
    check(model, step, [*FEW, "decreasing", "blocks of 3"])
    check(model, step_of_outputs(length))


@pytest.mark.parametrize("kind", ["left", "right", "inside", "both", "one empty"])
def test_padding_is_invisible(model, rows, check, kind):
    given = rows(kind)
    check(model, step_of(given))
    check(model, step_of_outputs(given["input_ids"].shape[1], len(given["input_ids"]), given["attention_mask"]))
    check(model, step_of_states(given, ["states"]))


@pytest.mark.parametrize("parts", [["loss"], ["states"], ["loss", "states"]])
def test_gradients_pass_through_states(model, rows, check, parts):
    plain = check(model, step_of_states(rows("both"), parts))
    assert all(plain[f"d {kind}{i}"].any() for kind in ("conv", "ssm") for i in range(LAYERS))


def test_a_chain_of_steps_is_one_sequence(model, ids, check):
    batch = ids(2, 2 * TOKENS)

    def whole(model):
        return model(input_ids=batch, labels=batch, num_items_in_batch=9).loss, {}

    def in_parts(model):
        first = language_model(model)(input_ids=batch[:, :TOKENS], use_cache=True)
        rest = language_model(model)(input_ids=batch[:, TOKENS:], past_key_values=first.past_key_values)
        hidden = torch.cat([first.last_hidden_state, rest.last_hidden_state], dim=1)
        logits = model.lm_head(hidden[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum") / 9, {}

    check(model, in_parts, plain=train(model, None, whole))


@pytest.mark.parametrize("keep", [0, 1, 5, torch.tensor([0, 3, 3, -1, 11])])
@pytest.mark.parametrize("kind", ["whole", "inside"])
def test_logits_without_labels_have_gradients(model, rows, check, kind, keep):
    given = rows(kind)
    del given["labels"]

    def step(model):
        logits = model(**given, logits_to_keep=keep).logits
        return (logits * numbers(*logits.shape, seed=3)).sum(), {}

    check(model, step)


def test_embeddings_given_by_a_computation_pass_their_gradient_on(model, rows, check):
    given = rows("inside")
    batch, mask = given["input_ids"], given["attention_mask"]

    def step(model):
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        embeds = model.get_input_embeddings()(batch) * scale
        return model(inputs_embeds=embeds, attention_mask=mask, labels=given["labels"]).loss, {"scale": scale}

    check(model, step)


@pytest.mark.parametrize("count", [None, 7, torch.tensor(7)])
def test_nothing_to_learn_gives_zeros(model, ids, check, count):
    batch = ids(2, TOKENS)
    given = {"input_ids": batch, "labels": torch.full_like(batch, -100), "num_items_in_batch": count}
    plain = check(model, step_of(given))
    assert len(plain) == 1 + len(list(model.parameters())) and not any(value.any() for value in plain.values())


def test_the_loss_is_divided_by_the_items_of_the_batch(model, rows, check):
    for count in (3, torch.tensor(50)):
        check(model, step_of({**rows("left"), "num_items_in_batch": count}))


# Models


@pytest.mark.parametrize(
    "fields",
    [{"residual_in_fp32": True}, {"n_groups": 2}, {"use_bias": True, "use_conv_bias": False}, {"conv_kernel": 2}],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False])
def test_every_kind_of_model(text_model, rows, check, fields, tied):
    model = text_model(dtype=torch.float64, **{**SMALL, **fields}, tie_word_embeddings=tied)
    check(model, step_of(rows("inside")))


TRAINED = {
    "all but the embeddings": lambda name: "embeddings" not in name,
    "upper layers": lambda name: "layers.2" in name or "norm_f" in name or "lm_head" in name,
    "middle layer": lambda name: "layers.1" in name,
    "lowest layer": lambda name: "layers.0" in name,
    "head": lambda name: "lm_head" in name,
    "norm_f": lambda name: "norm_f" in name,
    "embeddings": lambda name: "embeddings" in name,
    "mixed": lambda name: "layers.1.mixer.D" in name or "layers.2.mixer.out_proj" in name,
}


@pytest.mark.parametrize("part", TRAINED)
def test_frozen_parts_stay_without_gradient(text_model, rows, check, part):
    model = text_model(dtype=torch.float64, **SMALL, tie_word_embeddings=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(TRAINED[part](name))
    trained = {f"d {name}" for name, parameter in model.named_parameters() if parameter.requires_grad}
    plain = check(model, step_of(rows("inside")), [*FEW, "nested", "blocks of 3", "layers", "grid"])
    assert set(plain) == {"loss", *trained} and trained
    check(model, step_of_states(rows("left"), ["loss", "states"]))


def test_everything_frozen_is_no_training(model, rows):
    given = rows()
    model.requires_grad_(False).train().gradient_checkpointing_enable({"sequence_interval": 5})
    assert not model(**given).loss.requires_grad


def test_layers_may_share_their_weights(model, rows, check):
    model.backbone.layers[2] = model.backbone.layers[0]
    check(model, step_of(rows("inside")), list(FAMILIES))


def test_gradients_of_micro_steps_add_up(model, rows, check):
    batches = [rows("left"), rows("inside")]

    def step(model):
        model(**batches[0]).loss.backward()
        return model(**batches[1]).loss, {}

    check(model, step)


def test_two_forwards_before_one_backward(model, rows, check):
    batches = [rows("left"), rows()]
    check(model, lambda model: (sum(model(**given).loss for given in batches), {}))


def test_adapters_get_their_gradients(model, rows, check):
    model = get_peft_model(model, LoraConfig(r=3, target_modules=["in_proj", "out_proj"], lora_dropout=0.0))
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            parameter.data = numbers(*parameter.shape, seed=i)
    plain = check(model.double(), step_of(rows("inside")), [*FEW, "nested", "layers"])
    assert len(plain) == 1 + LAYERS * 4 and all(value.any() for value in plain.values())
    plain = check(model, step_of_states(rows("inside"), ["loss", "states"]))
    assert len(plain) == 1 + LAYERS * 4 + LAYERS * 2


# Chance


def run_in_pieces(model, plan, given):
    """Return the loss of plain training that runs segment by segment, as the plan does: the same draws."""
    backbone, ids = model.backbone, given["input_ids"]
    state = backbone.new_state(len(ids))
    loss = NextTokenLoss(Rows(ids, None, None, None), given["labels"], model.lm_head)
    for start, stop in plan.spans(ids.shape[1]):
        hidden, state = backbone.segment(backbone.embeddings(ids[:, start:stop]), state)
        loss.add(start, hidden)
    return loss.result()


@pytest.mark.parametrize("where", ["layers", "input", "head", "everywhere"])
def test_dropout_draws_the_same_again(model, rows, assert_close, where):
    given = rows()
    if where in ("layers", "everywhere"):
        for layer in model.backbone.layers:
            layer.mixer.out_proj = torch.nn.Sequential(torch.nn.Dropout(0.3), layer.mixer.out_proj)
    if where in ("input", "everywhere"):
        model.backbone.embeddings.register_forward_hook(lambda module, _, out: F.dropout(out, 0.3, module.training))
    if where in ("head", "everywhere"):
        model.lm_head.register_forward_pre_hook(lambda module, inputs: F.dropout(inputs[0], 0.3, module.training))

    def seeded(run):
        def step(model):
            torch.manual_seed(5)
            return run(model), {}

        return step

    for i, family in enumerate(FAMILIES):
        plan = make_plan(family, recompute_mixer=i % 2 == 1)
        expected = train(model, None, seeded(lambda model, plan=plan: run_in_pieces(model, plan, given)))
        found = train(model, plan, seeded(lambda model: model(**given).loss))
        for name in expected:
            assert_close(f"{name} of {family}", found[name], expected[name], 1e-10)


def test_dropout_of_accumulated_steps_draws_the_same_again(model, rows, assert_close):
    given, plan = rows(), make_plan("grid, last cell kept")
    for layer in model.backbone.layers:
        layer.mixer.out_proj = torch.nn.Sequential(torch.nn.Dropout(0.3), layer.mixer.out_proj)

    def seeded(run):
        def step(model):
            torch.manual_seed(5)
            first = run(model)
            return first + 2 * run(model), {}

        return step

    expected = train(model, None, seeded(lambda model: run_in_pieces(model, plan, given)))
    found = train(model, plan, seeded(lambda model: model(**given).loss))
    for name in expected:
        assert_close(name, found[name], expected[name], 1e-10)


@pytest.mark.parametrize("family", FEW)
def test_the_backward_leaves_the_random_generators_as_they_were(model, rows, family):
    for layer in model.backbone.layers:
        layer.mixer.out_proj = torch.nn.Sequential(torch.nn.Dropout(0.3), layer.mixer.out_proj)
    model.train().gradient_checkpointing_enable()
    model.backbone.checkpointing.fixed_plan = make_plan(family)
    loss = model(**rows()).loss
    torch.manual_seed(11)
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


# Precision


def error(found, truth):
    """Relative error of all gradients together."""
    names = [name for name in truth if name != "loss"]
    return float(
        sum((found[n].double() - truth[n]).square().sum() for n in names).sqrt()
        / sum(truth[n].square().sum() for n in names).sqrt()
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_autocast_costs_no_accuracy(text_model, ids, seed):
    fields = {**SMALL, "hidden_size": 64, "num_heads": 4, "head_dim": 32}
    batch = ids(2, 64, seed)
    given = {"input_ids": batch, "labels": batch}
    truth = train(text_model(seed, torch.float64, **fields), None, step_of(given))
    model = text_model(seed, **fields)

    def step(model):
        with torch.autocast("cpu", torch.bfloat16):
            return model(**given).loss, {}

    plain = error(train(model, None, step), truth)
    assert 1e-3 < plain < 0.2, plain
    for interval, layers, recompute in ((64, LAYERS, True), (13, 1, True), (13, LAYERS, False), (2, 1, False)):
        plan = make_plan(
            "none", segments=uniform(64, interval), layer_interval=layers, keep_boundaries=recompute,
            recompute_mixer=recompute,
        )  # fmt: skip
        found = train(model, plan, step)
        assert error(found, truth) <= 1.2 * plain, (plan, error(found, truth), plain)
        assert all(found[f"d {name}"].dtype == parameter.dtype for name, parameter in model.named_parameters())


def test_sums_over_segments_cost_no_accuracy_in_16_bit(text_model, ids):
    fields = {**SMALL, "hidden_size": 64, "num_heads": 4, "head_dim": 32}
    batch = ids(1, 256)
    given = {"input_ids": batch, "labels": batch}
    model = text_model(dtype=torch.bfloat16, **fields)
    exact = text_model(dtype=torch.float64, **fields)
    exact.load_state_dict(model.state_dict())
    truth = train(exact, None, step_of(given))
    one_piece = error(train(model, None, step_of(given)), truth)
    for layers, recompute in itertools.product((LAYERS, 2), (False, True)):
        plan = make_plan("none", segments=uniform(256, 4), layer_interval=layers, recompute_mixer=recompute)
        found = error(train(model, plan, step_of(given)), truth)
        assert found <= 1.1 * one_piece, (plan, found, one_piece)
