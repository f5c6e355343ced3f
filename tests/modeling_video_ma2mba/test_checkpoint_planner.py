"""`find_plan`: what it returns fits, more memory is never slower, and a budget that is too small is explained."""

import re
import time
from itertools import pairwise

import pytest
import torch

from modeling_video_ma2mba import Ma2mbaConfig, Ma2mbaForCausalLM
from modeling_video_ma2mba.checkpoint_analytic import analytic_costs
from modeling_video_ma2mba.checkpoint_budget import HeldBytes
from modeling_video_ma2mba.checkpoint_costs import LayerCost, StepCosts, VisionCost
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan
from modeling_video_ma2mba.checkpoint_planner import NoPlanFits, candidates, find_plan, segment_lengths
from modeling_video_ma2mba.checkpoint_predict import predict
from modeling_video_ma2mba.live_memory import MemoryMeter

LENGTH = 2**15


def linear_costs(recompute_saves=0.5, start=0.0, **changes):
    """Return costs in proportion to tokens; a call of a layer takes `start` seconds more, whatever its length."""

    def layer(n, graph, again):
        return LayerCost(graph * n, 1.2 * graph * n, n, 1.5 * n, start + n, start + n, start + (2 + again) * n)

    points = {
        again: {n: layer(n, 20 * (1 - again * recompute_saves), float(again)) for n in (1, 10**6)}
        for again in (False, True)
    }
    fields = {
        "source": "measured", "device_type": "cpu", "batch_size": 1, "num_layers": 16, "state_bytes": 4000,
        "boundary_bytes": 2, "longest_segment": 10**6, "layers": points, "head_rows": 2**26, "logit_bytes": 1,
        "head_bytes": 1, "embedding_bytes": 1,
    }  # fmt: skip
    return StepCosts(**{**fields, **changes})


def every_candidate(costs, length, budget, host_budget=0):
    places = ("device", "host") if host_budget else ("device",)
    return [(plan, predict(plan, costs)) for plan in candidates(costs, length, budget, host_budget, 0, places)]


@pytest.mark.parametrize("budget", [3 * 10**5, 10**6, 3 * 10**6, 10**7, 3 * 10**7])
@pytest.mark.parametrize("objective", ["time", "memory"])
def test_a_plan_fits_its_budget_and_covers_the_sequence(budget, objective):
    plan = find_plan(linear_costs(), LENGTH, budget, objective=objective)
    assert plan.sequence_length == LENGTH
    assert plan.predicted == predict(plan, linear_costs())
    assert plan.predicted.activations <= budget and plan.predicted.host == 0


@pytest.mark.parametrize("start", [0.0, 300.0], ids=["linear", "with a start"])
def test_more_memory_is_never_slower(start):
    costs, seconds = linear_costs(start=start), []
    for budget in (2e5, 3e5, 5e5, 8e5, 1.3e6, 2e6, 3e6, 5e6, 8e6, 1.3e7, 2e7):
        seconds.append(find_plan(costs, LENGTH, int(budget)).predicted.seconds)
    # Plans within a percent of one another count as equally fast.
    assert all(after <= before * 1.01 for before, after in pairwise(seconds)), seconds
    assert seconds[-1] < 0.8 * seconds[0]


def test_a_generous_budget_needs_no_checkpoint():
    plan = find_plan(linear_costs(), LENGTH, 10**9, host_budget=10**9)
    assert plan.name == "none" and plan.extra_forwards == 0 and not plan.recompute_mixer
    assert plan.predicted.seconds == pytest.approx(plan.predicted.plain_seconds)


@pytest.mark.parametrize("host_budget", [0, 10**7])
def test_the_objective_memory_gives_the_smallest_of_all_candidates(host_budget):
    costs, budget = linear_costs(), 3 * 10**6
    plan = find_plan(costs, LENGTH, budget, host_budget, objective="memory")
    every = [cost.activations for _, cost in every_candidate(costs, LENGTH, budget * 0.92, host_budget)]
    assert plan.predicted.activations == min(every)
    assert plan.predicted.activations < find_plan(costs, LENGTH, budget, host_budget).predicted.activations


def test_the_plan_is_the_fastest_of_all_candidates_that_fit():
    costs, budget = linear_costs(), 10**6
    plan = find_plan(costs, LENGTH, budget)
    fitting = [c.seconds for _, c in every_candidate(costs, LENGTH, budget * 0.92) if c.activations <= budget * 0.92]
    assert plan.predicted.seconds <= 1.011 * min(fitting)


def test_checkpoints_go_to_the_host_only_within_its_budget():
    costs = linear_costs()
    for host_budget in (0, 10**5, 10**6):
        for objective in ("time", "memory"):
            plan = find_plan(costs, LENGTH, 10**6, host_budget, objective=objective)
            assert plan.predicted.host <= host_budget
            assert host_budget or (plan.states_on, plan.boundaries_on) == ("device", "device")
    roomy = find_plan(costs, LENGTH, 10**6, 10**9, objective="memory")
    assert roomy.states_on == "host" and roomy.predicted.host > 0
    features_only = find_plan(costs, LENGTH, 10**6, 10**9, objective="memory", features_only=True)
    assert (features_only.states_on, features_only.boundaries_on) == ("device", "device")


def test_every_family_is_tried():
    costs, names = linear_costs(state_bytes=20_000), set()
    for budget in (4 * 10**5, 10**6):
        names |= {plan.name for plan, _ in every_candidate(costs, LENGTH, budget, 10**9)}
    assert names == {
        "none", "per layer", "layer groups", "sequence only", "sequence only, decreasing", "grid", "nested",
        "nested, decreasing", "two-level", "two-level, nested",
    }  # fmt: skip


def test_decreasing_lengths_are_taken_where_uniform_ones_do_not_fit():
    """Earlier segments wait beside fewer states, so they may be longer: one forward instead of two."""
    costs = linear_costs(recompute_saves=0.0, state_bytes=40_000, boundary_bytes=40)
    fits_uniform = min(
        cost.activations
        for plan, cost in every_candidate(costs, LENGTH, 10**7)
        if plan.name == "sequence only" and not plan.recompute_mixer
    )
    plan = find_plan(costs, LENGTH, int(0.97 * fits_uniform / 0.92))
    assert plan.name == "sequence only, decreasing" and plan.extra_forwards < 1
    assert list(plan.segments[:-1]) == sorted(plan.segments[:-1], reverse=True)


def test_two_million_tokens_of_the_largest_preset_are_planned_in_seconds():
    costs = analytic_costs(Ma2mbaConfig.preset("2.7b"))
    start = time.process_time()
    plan = find_plan(costs, 2**21, 60 * 10**9)
    assert time.process_time() - start < 10
    assert plan.predicted.activations <= 60 * 10**9 and plan.sequence_length == 2**21


@pytest.mark.parametrize("length", [1, 3, 17])
@pytest.mark.parametrize("objective", ["time", "memory"])
def test_a_few_tokens_are_planned_too(length, objective):
    plan = find_plan(linear_costs(), length, 10**6, objective=objective)
    assert plan.sequence_length == length
    assert objective == "memory" or plan.name == "none"


def test_no_segment_is_longer_than_the_kernels_can_take():
    costs = linear_costs(longest_segment=1000)
    assert max(segment_lengths(costs, LENGTH)) == 1000
    for budget in (10**6, 10**9):
        plan = find_plan(costs, LENGTH, budget)
        assert max(plan.segments) <= 1000 and plan.sequence_length == LENGTH


def test_segments_are_whole_chunks_and_never_too_short_to_keep_a_device_busy():
    lengths = segment_lengths(linear_costs(), LENGTH)
    assert lengths[0] >= 128 and lengths[-1] == LENGTH
    assert all(n % (256 if n >= 512 else 64) == 0 for n in lengths)
    assert segment_lengths(linear_costs(batch_size=128), 17)[0] == 1  # 128 rows: one token each is enough


def test_a_budget_that_is_too_small_is_explained():
    costs = linear_costs(weights=2**30, gradients=2**30, sums=2**31, optimizer=2**31)
    with pytest.raises(NoPlanFits) as caught:
        find_plan(costs, LENGTH, 50_000)
    message = str(caught.value)
    assert "no checkpoint plan for 1 x 32,768 tokens fits" in message and "take 6.0 GiB" in message
    assert "48.8 KiB are left" in message and "a budget of 6.0 GiB in all would do" in message
    assert "\n" not in message and "host_budget" in message
    longest = int(re.search(r"([\d,]+) tokens would fit", message)[1].replace(",", ""))
    assert longest < LENGTH
    assert find_plan(costs, longest, 50_000).predicted.activations <= 50_000


def test_the_least_budget_that_is_named_is_enough():
    costs = linear_costs()
    with pytest.raises(NoPlanFits) as caught:
        find_plan(costs, LENGTH, 50_000)
    amount = float(re.search(r"budget of ([\d.]+) KiB in all", str(caught.value))[1])
    assert find_plan(costs, LENGTH, int((amount + 0.06) * 1024)).sequence_length == LENGTH
    with pytest.raises(NoPlanFits):
        find_plan(costs, LENGTH, int(0.9 * amount * 1024))


def test_nothing_fits_where_weights_take_more_than_there_is():
    with pytest.raises(NoPlanFits, match="0 B are left for activations") as caught:
        find_plan(linear_costs(), LENGTH, -(10**9))
    assert "tokens would fit" not in str(caught.value)


def test_frames_wait_on_the_host_and_their_micro_batch_leaves_room_for_the_rest():
    vision = {n: VisionCost(1000 * n, 30_000 * n, n, 3 * n) for n in (1, 4)}
    costs = linear_costs(vision=vision, tower_is_trained=True, tokens_per_frame=144, feature_bytes=1000)
    for budget, most in ((10**7, 16), (5 * 10**5, 4), (3 * 10**5, 4)):
        plan = find_plan(costs, LENGTH, budget, num_frames=200)
        assert plan.frames_per_batch <= most and plan.predicted.activations <= budget
        assert not plan.keep_features
    kept = find_plan(costs, LENGTH, 10**7, 10**6, num_frames=200, features_only=True)
    assert kept.keep_features and kept.predicted.host == 200_000


def test_without_times_fewer_forwards_count_as_faster():
    timeless = {
        again: {
            n: cost._replace(plain_seconds=None, graph_seconds=None, backward_seconds=None) for n, cost in p.items()
        }
        for again, p in linear_costs().layers.items()
    }
    costs, extra = linear_costs(layers=timeless), []
    for budget in (2e5, 1e6, 3e6, 1e7, 1e8):
        plan = find_plan(costs, LENGTH, int(budget))
        assert plan.predicted.seconds is None
        extra.append(plan.extra_forwards + plan.recompute_mixer / 4)
    assert extra == sorted(extra, reverse=True) and extra[-1] == 0


@pytest.mark.parametrize("state_bytes", [4_000, 40_000, 100_000])
def test_plans_of_decreasing_lengths_use_the_budget_and_stay_within_it(state_bytes):
    costs, found = linear_costs(state_bytes=state_bytes), 0
    for budget in (5 * 10**5, 10**6, 2 * 10**6):
        for plan, cost in every_candidate(costs, LENGTH, budget):
            if plan.name.endswith("decreasing") and not plan.recompute_mixer:
                found += 1
                assert 0.8 * budget <= cost.activations <= budget
    assert found >= 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Ma2mbaConfig(
        hidden_size=64, num_heads=4, head_dim=32, state_size=16, num_hidden_layers=6, vocab_size=99, n_groups=1,
        tie_word_embeddings=True, pad_token_id=0, backend="torch",
    )  # fmt: skip
    return Ma2mbaForCausalLM(config).train()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("share", [0.15, 0.4, 1.2])
def test_a_step_stays_within_the_budget_it_was_planned_for(model, batch_size, share):
    """`share`: the budget for activations in parts of what plain training takes."""
    length = 1500 // batch_size
    plain = CheckpointPlan(segments=(length,), num_layers=6, layer_interval=6)
    held = HeldBytes.of([model], optimizer_bytes=0)
    held_bytes = held.weights + held.gradients + held.sums
    model.gradient_checkpointing_enable({"memory_budget": 10**9, "optimizer_bytes": 0})
    model.checkpoint_plan(length, batch_size)  # measures
    (costs,) = model.backbone.checkpointing.costs.values()
    budget = int(held_bytes + share * predict(plain, costs).activations)
    model.gradient_checkpointing_enable({"memory_budget": budget, "optimizer_bytes": 0})
    model.backbone.checkpointing.costs.update({(batch_size, *_parts_key(model)): costs})
    plan = model.checkpoint_plan(length, batch_size)
    assert plan.predicted.device <= budget and (share > 1 or plan.name != "none")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.randint(1, 60, (batch_size, length), generator=torch.Generator().manual_seed(0))
    with MemoryMeter(torch.device("cpu")) as meter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert held.weights + held.gradients + meter.peak <= budget


def _parts_key(model):
    trained = sum(p.numel() for p in model.backbone.parameters()) + model.lm_head.weight.numel()
    return model.device, model.dtype, model.dtype, trained
