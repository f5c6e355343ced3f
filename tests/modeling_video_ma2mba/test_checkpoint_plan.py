"""`CheckpointPlan`: spans, groups, forwards computed again, names and text, and what is refused."""

from itertools import pairwise

import pytest

from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform
from modeling_video_ma2mba.checkpoint_predict import PlanCosts

LAYERS = 5
FAMILIES = {
    "none": {"segments": (29,), "layer_interval": 5},
    "whole": {"segments": (29,), "layer_interval": 5, "keep_last_cell": False},
    "per layer": {"segments": (29,), "layer_interval": 1},
    "layer groups": {"segments": (29,), "layer_interval": 2},
    "sequence only": {"segments": (5, 8, 8, 8), "layer_interval": 5},
    "sequence only, last cell run again": {"segments": (5, 8, 8, 8), "layer_interval": 5, "keep_last_cell": False},
    "sequence only, decreasing": {"segments": (14, 9, 4, 2), "layer_interval": 5},
    "grid": {"segments": (5, 8, 8, 8), "layer_interval": 2},
    "grid on the host": {"segments": (5, 8, 8, 8), "layer_interval": 2, "states_on": "host", "boundaries_on": "host"},
    "grid, mixers again": {"segments": (5, 8, 8, 8), "layer_interval": 2, "recompute_mixer": True},
    "nested": {"segments": (5, 8, 8, 8), "layer_interval": 2, "keep_boundaries": False},
    "nested, even groups": {"segments": (15, 14), "layer_interval": 1, "keep_boundaries": False},
    "nested, last cell run again": {
        "segments": (5, 8, 8, 8), "layer_interval": 2, "keep_boundaries": False, "keep_last_cell": False,
    },
    "nested, decreasing": {"segments": (14, 9, 4, 2), "layer_interval": 3, "keep_boundaries": False},
    "two-level": {"segments": (2, *9 * (3,)), "layer_interval": 5, "segments_per_block": 3},
    "two-level, full blocks": {"segments": 9 * (3,), "layer_interval": 5, "segments_per_block": 3},
    "two-level, one block": {"segments": 3 * (4,), "layer_interval": 5, "segments_per_block": 8},
    "two-level, nested": {
        "segments": (2, *9 * (3,)), "layer_interval": 2, "segments_per_block": 4, "keep_boundaries": False,
    },
}  # fmt: skip


def plan_of(num_layers=LAYERS, **fields):
    return CheckpointPlan(**{"segments": (8,), "layer_interval": num_layers, **fields}, num_layers=num_layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_forwards_computed_again_are_those_of_a_real_step(family, text_model, ids):
    plan = plan_of(**FAMILIES[family])
    model = text_model(num_hidden_layers=LAYERS).train()
    model.gradient_checkpointing_enable()
    model.backbone.checkpointing.fixed_plan = plan
    tokens = []
    for layer in model.backbone.layers:
        layer.register_forward_pre_hook(lambda module, given: tokens.append(given[0].shape[1]))
    batch = ids(2, plan.sequence_length)
    model(input_ids=batch, labels=batch).loss.backward()
    assert sum(tokens) == pytest.approx((1 + plan.extra_forwards) * LAYERS * plan.sequence_length, abs=1e-6)


@pytest.mark.parametrize(
    ("family", "expected"),
    [("none", 0), ("whole", 1), ("per layer", 1 - 1 / 5), ("sequence only", 1 - 8 / 29), ("grid", 1 - 8 / 29 / 5)],
)
def test_forwards_computed_again_of_the_simple_families(family, expected):
    assert plan_of(**FAMILIES[family]).extra_forwards == pytest.approx(expected)


@pytest.mark.parametrize("segments", [(8,), (3, 4, 4), (14, 9, 4, 2), (1, 1, 1)])
def test_spans_of_any_length_meet_and_lack_only_the_first_tokens(segments):
    plan = plan_of(segments=segments)
    for length in range(1, sum(segments) + 1):
        spans = plan.spans(length)
        sizes = [stop - start for start, stop in spans]
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(before[1] == after[0] for before, after in pairwise(spans))
        assert sizes[1:] == list(segments)[len(segments) - len(sizes) + 1 :]
        assert 1 <= sizes[0] <= segments[-len(sizes)]


@pytest.mark.parametrize("length", [0, -1, 12])
def test_spans_of_a_length_that_does_not_fit_are_refused(length):
    with pytest.raises(ValueError, match=f"{length} tokens do not fit a plan for 11"):
        plan_of(segments=(3, 4, 4)).spans(length)


def test_a_step_on_fewer_tokens_than_the_plan_has_gives_the_same_gradients(text_model, ids, assert_close):
    batch = ids(2, 11)
    expected = text_model(num_hidden_layers=3).train()
    expected(input_ids=batch, labels=batch).loss.backward()
    model = text_model(num_hidden_layers=3).train()
    model.gradient_checkpointing_enable()
    plan = plan_of(segments=(9, 6, 4, 3), num_layers=3, layer_interval=2, keep_boundaries=False)
    model.backbone.checkpointing.fixed_plan = plan
    model(input_ids=batch, labels=batch).loss.backward()
    for (name, one), two in zip(model.named_parameters(), expected.parameters()):
        assert_close(name, one.grad, two.grad, 1e-5)


@pytest.mark.parametrize(
    ("length", "interval", "expected"),
    [(12, 4, (4, 4, 4)), (13, 4, (1, 4, 4, 4)), (3, 4, (3,)), (4, 4, (4,)), (3, 1, (1, 1, 1)), (1, 1, (1,))],
)
def test_uniform_segments_leave_the_rest_to_the_first(length, interval, expected):
    assert uniform(length, interval) == expected


@pytest.mark.parametrize(("interval", "expected"), [(5, [5]), (1, 5 * [1]), (2, [2, 2, 1]), (3, [3, 2]), (4, [4, 1])])
def test_groups_cover_every_layer_once_lowest_first(interval, expected):
    groups = plan_of(layer_interval=interval).groups
    assert [len(group) for group in groups] == expected
    assert [layer for group in groups for layer in group] == list(range(LAYERS))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segments": ()}, r"segments=\(\): at least one"),
        ({"segments": (4, 0)}, r"segments=\(4, 0\): at least one, each of at least 1 token"),
        ({"layer_interval": 0}, r"layer_interval=0 is outside 1\.\.5"),
        ({"layer_interval": 6}, r"layer_interval=6 is outside 1\.\.5"),
        ({"segments_per_block": 0}, "segments_per_block=0, frames_per_batch=16: both must be at least 1"),
        ({"frames_per_batch": 0}, "segments_per_block=1, frames_per_batch=0: both must be at least 1"),
        ({"segments_per_block": 2, "layer_interval": 2}, "pass keep_boundaries=False"),
        ({"states_on": "disk"}, "states_on='disk'; allowed are 'device' and 'host'"),
        ({"boundaries_on": "cpu"}, "boundaries_on='cpu'; allowed are 'device' and 'host'"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_names_its_family(family):
    known = {
        "sequence only, last cell run again": "sequence only",
        "grid on the host": "grid",
        "grid, mixers again": "grid",
        "nested, even groups": "nested",
        "nested, last cell run again": "nested",
        "two-level, full blocks": "two-level",
        "two-level, one block": "two-level",
    }
    assert plan_of(**FAMILIES[family]).name == known.get(family, family)


def test_a_first_segment_that_takes_the_rest_makes_no_plan_decreasing():
    assert plan_of(segments=(1, 4, 4)).name == "sequence only"
    assert plan_of(segments=(6, 4, 4)).name == "sequence only"  # two lengths, as after a division with a rest
    assert plan_of(segments=(6, 5, 4)).name == "sequence only, decreasing"


def test_the_summary_says_what_is_kept_where_and_what_it_costs():
    plan = plan_of(segments=(1000, 4096, 4096), layer_interval=2, states_on="host", recompute_mixer=True)
    assert plan.summary() == (
        "plan: grid; 3 segments of 4,096 tokens, 3 groups of 2 of 5 layers\n"
        "states on the host, boundaries on the device, mixers computed again\n"
        "forwards computed again: 0.91"
    )
    plan = plan_of(segments=(9, 6, 4), layer_interval=2, keep_boundaries=False, segments_per_block=2)
    assert "3 segments of 9..4 tokens" in plan.summary()
    assert "states on the device, one in 2 kept, boundaries computed again" in plan.summary()
    costs = PlanCosts(
        checkpoints=2**30, working=3 * 2**20, vision=2**20, host=5 * 2**10, seconds=3.0, plain_seconds=2.0,
        weights=2**31, gradients=2**31, sums=2**32, optimizer=0, source="measured",
    )  # fmt: skip
    assert costs.activations == 2**30 + 3 * 2**20 and costs.device == costs.activations + 2**33
    text = plan_of(predicted=costs).summary()
    for piece in ("device: 9.0 GiB (measured)", "host: 5.0 KiB", "3 s, 1.50 of plain training", "of which vision"):
        assert piece in text
    assert text.count("\n") == 12


def test_plans_are_equal_whatever_was_predicted():
    assert plan_of() == plan_of(predicted="anything")
    assert plan_of(segments=(3, 5, 5, 5)).length_counts == {3: 1, 5: 3}
