"""How gradient checkpointing is switched on and off: the same words on every model, clear refusals, no traces."""

import math
import warnings

import pytest
import torch

from modeling_video_ma2mba import Ma2mbaForCausalLM, Ma2mbaModel, VideoMa2mbaForConditionalGeneration, VideoMa2mbaModel
from modeling_video_ma2mba.checkpointing import Checkpointing, CheckpointSettings, parse_bytes

MODELS = [Ma2mbaModel, Ma2mbaForCausalLM, VideoMa2mbaModel, VideoMa2mbaForConditionalGeneration]
INTERVALS = {"layer_interval": 1, "sequence_interval": 5}
ENABLE = ["gradient_checkpointing_enable", "activation_checkpointing_enable"]


@pytest.fixture
def build(text_config, video_config):
    """`build(class)` -> a toy model of it, in training."""

    def make(kind):
        torch.manual_seed(0)
        video = kind in (VideoMa2mbaModel, VideoMa2mbaForConditionalGeneration)
        return kind(video_config() if video else text_config()).double().train()

    return make


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def model(request, build):
    return build(request.param)


@pytest.fixture
def causal(text_model):
    return text_model(dtype=torch.float64).train()


def language_model(model):
    (found,) = (module for module in model.modules() if hasattr(module, "checkpointing"))
    return found


def is_checkpointing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renamed the property in 5.23
        return model.is_gradient_checkpointing


def output(model, ids):
    """A number that every used weight of the language model has a part in."""
    out = model(input_ids=ids)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).square().sum()


def gradients(model, ids):
    model.zero_grad()
    output(model, ids).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {(name, kind): len(getattr(m, kind)) for name, m in model.named_modules() for kind in kinds}


def flags(model):
    named = ((name, getattr(module, "gradient_checkpointing", None)) for name, module in model.named_modules())
    return {name: flag for name, flag in named if flag is not None}


def count_block_runs(model):
    runs = []
    language_model(model).layers[0].mixer.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


# On


@pytest.mark.parametrize("enable", ENABLE)
def test_every_model_trains_by_a_plan_once_enabled(model, ids, assert_close, enable):
    batch = ids(2, 13)
    expected = gradients(model, batch)
    runs = count_block_runs(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(model, enable)(INTERVALS)
        found = gradients(model, batch)
    assert is_checkpointing(model)
    assert len(runs) == 2 * 3, "three segments, forward and again"
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(name, found[name], expected[name], 1e-10)


@pytest.mark.parametrize("enable", ENABLE)
@pytest.mark.parametrize(
    "kwargs",
    [
        None,
        {},
        {"method": "ma-gc"},
        {"use_reentrant": False},
        {"use_reentrant": True, "preserve_rng_state": True, "determinism_check": "none", "debug": False},
    ],
)
def test_multi_axis_is_the_default(model, enable, kwargs):
    before = None if kwargs is None else dict(kwargs)
    getattr(model, enable)(kwargs)
    checkpointing = language_model(model).checkpointing
    assert isinstance(checkpointing, Checkpointing) and checkpointing.settings == CheckpointSettings()
    assert is_checkpointing(model) and kwargs == before


def test_keywords_reach_the_settings(causal):
    causal.gradient_checkpointing_enable(
        {"memory_budget": "24GiB", "host_budget": 10**9, "objective": "memory", "optimizer_bytes": "1.5 kB"}
    )
    settings = causal.backbone.checkpointing.settings
    assert settings.memory_budget == 24 * 2**30 and settings.host_budget == 10**9
    assert settings.objective == "memory" and settings.optimizer_bytes == 1500


def test_intervals_make_the_plan(causal):
    causal.gradient_checkpointing_enable({"layer_interval": 99, "sequence_interval": 5})
    plan = causal.checkpoint_plan(sequence_length=13, batch_size=2)
    assert plan.segments == (3, 5, 5) and plan.layer_interval == 2 and plan.sequence_length == 13


def test_enabling_again_replaces_what_was(causal):
    causal.gradient_checkpointing_enable({"method": "layer"})
    causal.gradient_checkpointing_enable(INTERVALS)
    assert not any(flags(causal.backbone.layers).values())
    assert causal.backbone.checkpointing.settings == CheckpointSettings(**INTERVALS)
    causal.gradient_checkpointing_enable({"sequence_interval": 13})
    assert causal.backbone.checkpointing.settings == CheckpointSettings(sequence_interval=13)
    causal.gradient_checkpointing_enable({"method": "layer"})
    assert causal.backbone.checkpointing is None and all(flags(causal.backbone.layers).values())


@pytest.mark.parametrize("enable", ENABLE)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layer_is_the_one_of_transformers(model, ids, assert_close, enable):
    batch = ids(2, 13)
    expected = gradients(model, batch)
    runs = count_block_runs(model)
    getattr(model, enable)({"method": "layer"})
    assert is_checkpointing(model) and language_model(model).checkpointing is None
    found = gradients(model, batch)
    assert len(runs) == 2
    for name in expected:
        assert_close(name, found[name], expected[name], 1e-10)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layer_takes_what_transformers_takes(causal, ids):
    causal.gradient_checkpointing_enable({"method": "layer", "use_reentrant": False}, every_n_layers=2)
    gradients(causal, ids(1, 5))
    assert sum(layer.gradient_checkpointing for layer in causal.backbone.layers) == 1


# Refused


@pytest.mark.parametrize("enable", ENABLE)
def test_unknown_keys_are_named_with_the_known_ones(model, enable):
    with pytest.raises(ValueError, match=r"unknown keys 'budget', 'segment';.*'memory_budget'.*'use_reentrant'"):
        getattr(model, enable)({"segment": 5, "budget": 3})
    assert not is_checkpointing(model)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "grid"}, r"method='grid'; allowed are 'ma-gc', 'layer'"),
        ({"layer_interval": 0}, r"layer_interval=0 .*1 or more"),
        ({"layer_interval": 1.5}, r"layer_interval=1.5"),
        ({"sequence_interval": "7"}, r"sequence_interval='7'"),
        ({"sequence_interval": True}, r"sequence_interval=True"),
        ({"sequence_interval": -3}, r"sequence_interval=-3"),
        ({"objective": "speed"}, r"objective='speed'; allowed are 'time', 'memory'"),
        ({"memory_budget": "24 gigs"}, r"memory_budget='24 gigs' is no size.*GiB"),
        ({"host_budget": -1}, r"host_budget=-1 is no size"),
        ({"optimizer_bytes": [1]}, r"optimizer_bytes=\[1\] is no size"),
    ],
)
def test_wrong_values_are_refused(causal, kwargs, message):
    with pytest.raises(ValueError, match=message):
        causal.gradient_checkpointing_enable(kwargs)


@pytest.mark.parametrize("options", [{"every_n_layers": 2}, {"offload": True}])
def test_settings_of_the_other_method_are_refused(causal, options):
    with pytest.raises(ValueError, match=r'"method": "layer".*layer_interval and host_budget'):
        causal.gradient_checkpointing_enable(**options)
    with pytest.raises(ValueError, match=r'"method": "layer"'):
        causal.activation_checkpointing_enable(INTERVALS, **options)


def test_a_refusal_leaves_what_was(causal):
    causal.gradient_checkpointing_enable(INTERVALS)
    for wrong in ({"budget": 1}, {"method": "grid"}, {"layer_interval": 0}):
        with pytest.raises(ValueError):
            causal.gradient_checkpointing_enable(wrong)
        assert is_checkpointing(causal)
        assert causal.backbone.checkpointing.settings == CheckpointSettings(**INTERVALS)


def test_a_plan_needs_checkpointing(model):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"gradient_checkpointing_enable\(\)"):
            model.checkpoint_plan(100)
        model.gradient_checkpointing_enable(INTERVALS)
        model.gradient_checkpointing_disable()


def test_hidden_states_of_all_layers_are_refused_in_training(causal, ids):
    causal.gradient_checkpointing_enable(INTERVALS)
    with pytest.raises(ValueError, match=r"output_hidden_states.*gradient_checkpointing_disable"):
        causal(input_ids=ids(1, 5), output_hidden_states=True)
    causal.gradient_checkpointing_disable()
    assert len(causal(input_ids=ids(1, 5), output_hidden_states=True).hidden_states) == 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (123, 123),
        (1e9, 10**9),
        ("123", 123),
        ("24GiB", 24 * 2**30),
        (" 1.5 gb ", 1_500_000_000),
        ("500MB", 500_000_000),
        ("2kib", 2048),
        ("1TiB", 2**40),
        ("7B", 7),
    ],
)
def test_sizes_are_numbers_or_text(size, expected):
    assert parse_bytes(size, "name") == expected


@pytest.mark.parametrize("size", ["", "GiB", "1,5GB", "-1", "1e9", "5 GX", -1, True, None, [], math.nan, math.inf])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match=r"name=.* is no size; give bytes"):
        parse_bytes(size, "name")


# Off


@pytest.mark.parametrize("disable", ["gradient_checkpointing_disable", "activation_checkpointing_disable"])
@pytest.mark.parametrize("kwargs", [INTERVALS, {"method": "layer"}], ids=["ma-gc", "layer"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_switching_off_leaves_no_trace(model, ids, kwargs, disable):
    batch, before = ids(1, 13), (hooks(model), flags(model))
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable(kwargs)
    gradients(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(model, disable)()
    assert not is_checkpointing(model) and language_model(model).checkpointing is None
    assert (hooks(model), flags(model)) == before
    runs = count_block_runs(model)
    found = gradients(model, batch)
    assert len(runs) == 1 and all(torch.equal(found[name], expected[name]) for name in expected)


def test_eval_and_generation_are_unaffected(build, ids):
    model, batch = build(Ma2mbaForCausalLM), ids(2, 9)
    options = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        expected = model.eval()(batch).logits
    text = model.generate(batch, **options)
    model.gradient_checkpointing_enable(INTERVALS)
    runs = count_block_runs(model)
    assert torch.equal(model.eval()(batch, output_hidden_states=True).logits, expected)
    model(batch, labels=batch).loss.backward()
    assert len(runs) == 2, "no plan in eval mode, with or without gradients"
    assert torch.equal(model.generate(batch, **options), text)
    assert torch.equal(model.train().generate(batch, **options), text)


def test_a_saved_model_knows_nothing_of_checkpointing(causal, ids, tmp_path):
    causal.gradient_checkpointing_enable(INTERVALS)
    causal(ids(1, 9), labels=ids(1, 9)).loss.backward()
    causal.save_pretrained(tmp_path)
    assert "checkpointing" not in (tmp_path / "config.json").read_text()
    assert not is_checkpointing(Ma2mbaForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ("ma-gc", "must be a dictionary"),
        ({"method": "layer", "memory_budget": "24GiB"}, "does not take 'memory_budget'"),
        ({"memory_budget": "24"}, "less than 1 KiB"),
        ({"memory_budget": "24GiB", "sequence_interval": 512}, "one or the other"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(text_model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        text_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def test_a_budget_holds_when_more_is_trained_later(text_model):
    model = text_model()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    model.gradient_checkpointing_enable({"memory_budget": "12MB"})
    assert model.checkpoint_plan(600).predicted.device <= 12e6
    model.requires_grad_(True)
    assert model.checkpoint_plan(600).predicted.device <= 12e6
