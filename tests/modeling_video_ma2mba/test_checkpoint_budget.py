"""How much memory a step may use: what a model holds, what is free, what a budget leaves."""

import os

import pytest
import torch

from modeling_video_ma2mba import checkpoint_budget
from modeling_video_ma2mba.checkpoint_budget import HeldBytes, free_bytes, free_host_bytes, total_budget

CPU = torch.device("cpu")


def test_shared_tensors_count_once(text_model):
    model = text_model()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    for modules in ([model], [model, model.backbone, model.lm_head], [model.backbone, model.lm_head]):
        held = HeldBytes.of(modules, None)
        assert held.weights == held.gradients == held.sums == weights
        assert held.optimizer == 2 * weights and held.missing == 4 * weights


def test_buffers_and_frozen_weights_have_no_gradients():
    model = torch.nn.BatchNorm1d(10)
    model.weight.requires_grad_(False)
    held = HeldBytes.of([model], None)
    assert held.weights == 4 * 10 * 4 + 8 and held.gradients == held.sums == 40


def test_gradients_are_summed_in_fp32_whatever_the_weights_are():
    held = HeldBytes.of([torch.nn.Linear(10, 10, bias=False).bfloat16()], None)
    assert (held.weights, held.gradients, held.sums, held.optimizer) == (200, 200, 400, 400)
    assert HeldBytes.of([torch.nn.Linear(10, 10, bias=False).double()], None).sums == 800


def test_the_optimizer_takes_what_is_said():
    model = torch.nn.Linear(10, 10)
    assert HeldBytes.of([model], 0).optimizer == 0 and HeldBytes.of([model], 77).optimizer == 77


def test_gradients_that_exist_are_not_missing():
    model = torch.nn.Linear(10, 10, bias=False)
    missing = HeldBytes.of([model], 0).missing
    model.weight.grad = torch.zeros_like(model.weight)
    assert HeldBytes.of([model], 0).missing == missing - 400


def test_a_given_budget_is_for_everything():
    held = HeldBytes.of([torch.nn.Linear(10, 10, bias=False)], 1000)
    assert held.total == 3 * 400 + 1000
    assert set(held.terms()) == {"weights", "gradients", "sums", "optimizer"}


def test_without_a_budget_it_is_what_is_free_less_a_margin(monkeypatch):
    monkeypatch.setattr(checkpoint_budget, "free_host_bytes", lambda: 10**6)
    held = HeldBytes.of([torch.nn.Linear(10, 10, bias=False)], 0)
    assert free_bytes(CPU) == 10**6
    assert total_budget(held, CPU) - held.total == 950_000 - held.missing


def test_free_host_memory_is_plausible():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < free_host_bytes() <= total


@pytest.mark.parametrize(("limit", "expected"), [("3000000", 2_000_000), ("500000", 0), ("max", 8 * 1024**2)])
def test_the_limit_of_a_control_group_counts(limit, expected, monkeypatch, tmp_path):
    texts = {
        "/proc/meminfo": "MemTotal: 9999 kB\nMemAvailable:    8192 kB\n",
        "/sys/fs/cgroup/memory.max": limit + "\n",
    }
    texts["/sys/fs/cgroup/memory.current"] = "1000000\n"
    paths = {}
    for name, text in texts.items():
        paths[name] = tmp_path / name.replace("/", "_")
        paths[name].write_text(text)
    monkeypatch.setattr(checkpoint_budget, "Path", lambda name: paths[name])
    assert free_host_bytes() == expected
