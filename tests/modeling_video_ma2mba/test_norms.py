"""RMSNorm against its formula in fp64, forward and backward, and what it keeps for the backward."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from modeling_video_ma2mba import kernels
from modeling_video_ma2mba.norms import Ma2mbaRMSNorm, rms_norm

EPS = 1e-5
SHAPES = [(6,), (1, 6), (1, 1, 34), (2, 7, 10), (3, 65, 2)]
PIECES = (2, 150, 6)  # 300 rows; pieces are at least 64


def plain(x, weight, n_groups=1, gate=None):
    """Return the norm in the order that checkpoints were trained with, by autograd."""
    v = x.to(torch.promote_types(x.dtype, torch.float32))
    if gate is not None:
        v = v * F.silu(gate.to(v.dtype))
    groups = v.unflatten(-1, (n_groups, -1))
    groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + EPS)
    return weight * groups.flatten(-2).to(weight.dtype)


def draw(*shape, gated=True, dtype=torch.float64, seed=0):
    """Return x, weight, gate, a gradient; the gate is a slice of something wider, as in the mixer."""
    generator = torch.Generator().manual_seed(seed)
    width = shape[-1]
    x, weight, wide, grad = (
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)
        for s in (shape, (width,), (*shape[:-1], width + 3), shape)
    )
    gate = (2 * wide)[..., :width].requires_grad_() if gated else None
    return x.requires_grad_(), weight.requires_grad_(), gate, grad


def gradients(y, leaves, grad):
    return torch.autograd.grad(y, [t for t in leaves if t is not None and t.requires_grad], grad)


@pytest.mark.parametrize("shape", [*SHAPES, PIECES], ids=str)
@pytest.mark.parametrize("n_groups", [1, 2])
@pytest.mark.parametrize("gated", [True, False])
def test_equals_the_formula(shape, n_groups, gated, monkeypatch):
    monkeypatch.setattr(kernels, "CPU_PIECE_ELEMENTS", 1)
    x, weight, gate, grad = draw(*shape, gated=gated)
    ours, truth = rms_norm(x, weight, EPS, n_groups, gate), plain(x, weight, n_groups, gate)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-10)
    leaves = (x, weight, gate)
    for actual, expected in zip(gradients(ours, leaves, grad), gradients(truth, leaves, grad)):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, weight, EPS, n_groups, gate), ours)


@pytest.mark.parametrize("n_groups", [1, 2])
@pytest.mark.parametrize("gated", [True, False])
def test_gradcheck(n_groups, gated):
    x, weight, gate, _ = draw(2, 3, 4, gated=gated)
    leaves = [t for t in (x, weight, gate) if t is not None]
    assert torch.autograd.gradcheck(lambda x, w, g=None: rms_norm(x, w, EPS, n_groups, g), leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pieces", [2**17, 1])
def test_every_bit_is_that_of_the_formula(dtype, weight_dtype, pieces, monkeypatch):
    monkeypatch.setattr(kernels, "CPU_PIECE_ELEMENTS", pieces)
    for shape, gated in itertools.product([(2, 150, 66), (1, 1, 130)], (True, False)):
        x, weight, gate, _ = draw(*shape, gated=gated, dtype=dtype)
        weight = weight.to(weight_dtype)
        y = rms_norm(x, weight, EPS, 2, gate)
        assert y.dtype == weight_dtype
        assert torch.equal(y, plain(x, weight, 2, gate))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(rms_norm(x, weight, EPS, 2, gate), y)


@pytest.mark.parametrize("gated", [True, False])
def test_bf16_is_rounded_at_the_end_only(gated):
    # Forward: the normed value and its product with the weight are rounded, 2^-8 each. Gradients: once.
    x, weight, gate, grad = draw(2, 40, 64, gated=gated, dtype=torch.bfloat16)
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, gate)]
    ours, truth = rms_norm(x, weight, EPS, 2, gate), plain(*wide[:2], 2, wide[2])
    torch.testing.assert_close(ours.double(), truth, rtol=2**-7 + 2**-16, atol=0)
    actual, expected = gradients(ours, (x, weight, gate), grad), gradients(truth, wide, grad.double())
    assert {t.dtype for t in actual} == {torch.bfloat16}
    for one, two in zip(actual, expected):
        torch.testing.assert_close(one.double(), two, rtol=2**-8, atol=1e-5)


def test_dtypes_may_differ():
    x, weight, gate, grad = draw(2, 9, 8, dtype=torch.float32)
    gate = gate.detach().bfloat16().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    actual = gradients(rms_norm(x, weight, EPS, 1, gate), (x, weight, gate), grad.double())
    expected = gradients(plain(x, weight, 1, gate), (x, weight, gate), grad.double())
    assert [t.dtype for t in actual] == [torch.float32, torch.float64, torch.bfloat16]
    for one, two, tolerance in zip(actual, expected, (1e-5, 1e-5, 2**-7)):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_what_is_frozen_gets_no_gradient(frozen):
    x, weight, gate, grad = leaves = draw(2, 9, 8)
    all_of_them = gradients(rms_norm(x, weight, EPS, 1, gate), leaves[:3], grad)
    for k in frozen:
        leaves[k].requires_grad_(False)
    rms_norm(x, weight, EPS, 1, gate).backward(grad)
    for k, expected in enumerate(all_of_them):
        assert leaves[k].grad is None if k in frozen else torch.equal(leaves[k].grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
def test_keeps_its_inputs_and_one_number_per_group(dtype, gated, kept_bytes, peak_bytes, monkeypatch):
    monkeypatch.setattr(kernels, "CPU_PIECE_ELEMENTS", 2**13)
    tokens, width, n_groups = 4096, 128, 2
    x, _, gate, grad = draw(1, tokens, width, gated=gated, dtype=dtype)
    norm = Ma2mbaRMSNorm(width, EPS, n_groups).to(dtype)
    output, statistics = dtype.itemsize * width, 4 * n_groups
    assert kept_bytes(lambda: norm(x, gate)) == tokens * (output + statistics)
    y = norm(x, gate)
    with torch.no_grad():
        assert kept_bytes(lambda: norm(x, gate)) == tokens * output
    pieces = 12 * 4 * 2**13  # what is computed on the way: at most 12 tensors of one piece, in fp32
    assert peak_bytes(lambda: norm(x, gate)) <= tokens * (output + statistics) + pieces
    leaves = [t for t in (x, gate) if t is not None]
    assert peak_bytes(lambda: torch.autograd.grad(y, leaves, grad)) <= len(leaves) * tokens * output + pieces


def test_nothing_is_kept_without_gradients():
    x, weight, gate, _ = (t.detach() for t in draw(2, 9, 8))
    assert rms_norm(x, weight, EPS, 1, gate).grad_fn is None
    with torch.no_grad():
        assert not rms_norm(x, weight.requires_grad_(), EPS, 1, gate).requires_grad


def test_second_derivative_is_refused():
    x, weight, _, _ = draw(2, 4)
    (grad,) = torch.autograd.grad(rms_norm(x, weight, EPS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
