"""What `video-ma2mba plan` is made of: numbers read from text, the table of methods, their curves."""

import pytest
import torch

from modeling_video_ma2mba import Ma2mbaConfig, VideoMa2mbaConfig
from modeling_video_ma2mba.checkpoint_report import (
    DEVICES,
    METHODS,
    PUBLISHED,
    ask,
    make_report,
    parse_duration,
    parse_tokens,
    read_config,
    smallest_plans,
)

GB = 10**9


@pytest.fixture(scope="module")
def question():
    """`question(**changes)` -> the 370M language model at 2^16 tokens on a GPU of 24 GB."""

    def build(**changes):
        fields = {
            "model": "370m", "tokens": 2**16, "seconds": None, "fps": 1.0, "batch_size": 1, "budget": 24 * GB,
            "host_budget": 0, "device": None, "dtype": torch.bfloat16, "objective": "time", "tower_is_trained": True,
        }  # fmt: skip
        return ask(**{**fields, **changes})

    return build


@pytest.fixture(scope="module")
def report(question):
    return make_report(question())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1048576", 2**20), ("1,048,576", 2**20), ("512k", 512_000), ("512K", 512_000), ("512Ki", 2**19),
        ("1M", 10**6), ("1Mi", 2**20), ("1.5k", 1500), ("2^20", 2**20), ("2**10", 1024), (" 7 ", 7),
    ],
)  # fmt: skip
def test_tokens_are_read_from_text(text, count):
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "0", "-5", "1.5", "12q", "512i", "k", "2^", "1e6", "2^-3"])
def test_text_that_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(ValueError, match="give a number such as 1048576"):
        parse_tokens(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("45s", 45), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_durations_are_read_from_text(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "0s", "h", "1d", "-1h", "30m1h"])
def test_text_that_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="give a length such as 2h"):
        parse_duration(text)


def test_models_are_presets_or_folders(tmp_path, text_config, video_config):
    assert read_config("2.7B").hidden_size == 2560 and isinstance(read_config("3.1b"), VideoMa2mbaConfig)
    text_config().save_pretrained(tmp_path / "text")
    video_config().save_pretrained(tmp_path / "video")
    assert isinstance(read_config(str(tmp_path / "text")), Ma2mbaConfig)
    assert isinstance(read_config(str(tmp_path / "video")), VideoMa2mbaConfig)
    with pytest.raises(ValueError, match="neither a preset"):
        read_config(str(tmp_path))


def test_a_video_stands_for_its_frames_and_some_text(question):
    asked = question(model="0.7b", tokens=None, seconds=3600.0, fps=0.5, batch_size=2)
    assert asked.frames == 2 * 1800 and 1800 * 144 < asked.tokens < 1800 * 144 + 1000
    assert asked.frames_in(asked.tokens // 2) == 1800


def test_tokens_of_a_video_model_count_as_frames(question):
    assert question(model="0.7b", tokens=14_400).frames == 100


def test_the_budget_of_a_device_is_its_memory_less_a_margin(question):
    for name, memory in DEVICES.items():
        assert question(budget=None, device=name).budget == pytest.approx(0.95 * memory, abs=1)
    assert question(device="a100").budget == 24 * GB


def test_every_method_is_in_the_table_in_order(report):
    assert [row.method for row in report.rows] == list(METHODS)
    sizes = {row.method: row.cost.activations for row in report.rows}
    assert sizes["no checkpointing"] > sizes["layer by layer"] > sizes["paper's grid"] < sizes["every sqrt(L) layers"]
    assert sizes["paper's grid"] > sizes["nested"] > sizes["decreasing"] > sizes["two-level"] > sizes["grid, host"]
    forwards = {row.method: row.plan.extra_forwards for row in report.rows}
    assert forwards["no checkpointing"] == 0 and forwards["paper's grid"] <= 1 < forwards["nested"] <= 2
    assert all(row.cost.host == 0 for row in report.rows if "host" not in row.method)
    assert all(row.cost.host > 0 for row in report.rows if "host" in row.method)


def test_the_chosen_plan_fits_and_is_printed(report):
    assert report.plan.predicted.device <= 24 * GB
    text = report.text()
    assert report.plan.summary() in text and "chosen plan" in text
    assert all(line == line.rstrip() and len(line) < 120 for line in text.splitlines())


def test_the_longest_sequence_of_a_method_fits_and_a_longer_one_does_not(question, report):
    asked = question()
    for row in report.rows:
        if row.longest in (0, 2**24):
            continue
        for factor, fits in ((0.8, True), (1.25, False)):
            _, cost = smallest_plans(asked, int(factor * row.longest))[row.method]
            assert (cost.device <= asked.budget) == fits, row.method


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_papers_grid_takes_what_the_paper_measured(model, question):
    """Theirs keeps the residual twice and picks its own intervals: a third either way, above the fixed costs."""
    asked = question(model=model, budget=80 * GB)
    for power in (14, 16, 18):
        _, cost = smallest_plans(asked, 2**power)["paper's grid"]
        assert cost.activations / 1e9 == pytest.approx(PUBLISHED[model][power - 10], rel=0.35), power


def test_what_fits_nowhere_is_explained_beside_the_table(question):
    answer = make_report(question(budget=5 * GB, tokens=2**14))
    assert answer.plan is None and "no checkpoint plan for 1 x 16,384 tokens fits" in answer.text()
    assert len(answer.rows) == len(METHODS) and "chosen plan" not in answer.text()


def test_a_host_budget_limits_the_methods_that_use_it(question):
    asked = question(host_budget=GB)
    found = smallest_plans(asked, 2**16)
    assert all(cost.host <= GB for _, cost in found.values())


def test_a_layer_is_measured_here(question, text_config, tmp_path):
    text_config(num_hidden_layers=3).save_pretrained(tmp_path)
    asked = question(model=str(tmp_path), device="here", dtype=torch.float32, tokens=5000, budget=GB)
    assert asked.costs.source == "measured" and asked.costs.num_layers == 3 and asked.costs.device_type == "cpu"
    _, cost = smallest_plans(asked, 5000)["nested"]
    assert cost.seconds > cost.plain_seconds * 0.8 and cost.source == "measured"
