"""The parallel selective scan against the recurrence, and the recurrence against numbers worked out by hand."""

import math

import pytest
import torch

from modeling_video_ma2mba import selective_scan
from modeling_video_ma2mba.selective_scan import selective_scan_chunked, selective_scan_recurrence

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
CHUNK = 8


def scan_inputs(tokens, *, batch=2, channels=5, state=3, dtype=torch.float64, seed=0):
    """Return x, delta, A, B, C, D, delta_bias as leaves that need gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    read = (batch, tokens, state)
    tensors = [normal(batch, tokens, channels), normal(batch, tokens, channels), -normal(channels, state).exp()]
    tensors += [normal(*read), normal(*read), normal(channels), normal(channels)]
    return [tensor.requires_grad_() for tensor in tensors]


def gradients(scan, inputs, **options):
    """Return y and the gradients of all inputs, for a random gradient of y."""
    y = scan(*inputs, **options)
    arriving = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    given = [tensor for tensor in inputs if tensor is not None]
    return y, torch.autograd.grad(y, given, arriving)


def test_recurrence_equals_numbers_by_hand():
    # One channel, N = 2. The steps are ln 2 and 2 ln 2, so A = -1 halves and quarters, A = -2 does so twice.
    delta = torch.tensor([0.0, math.log(3)], dtype=torch.float64).view(1, 2, 1)
    x = torch.tensor([3.0, 5.0], dtype=torch.float64).view(1, 2, 1)
    A = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    B = torch.tensor([[1.0, 2.0], [1.0, 0.0]], dtype=torch.float64).view(1, 2, 2)
    C = torch.tensor([[1.0, 1.0], [8.0, 16.0]], dtype=torch.float64).view(1, 2, 2)
    D = torch.tensor([10.0], dtype=torch.float64)
    # t = 0: h = ln 2 * 3 * (1, 2) = ln 2 (3, 6);                         y = 9 ln 2 + 30
    # t = 1: h = ln 2 (3 / 4, 6 / 16) + 2 ln 2 * 5 * (1, 0);              y = ln 2 (8 * 10.75 + 16 * 0.375) + 50
    expected = torch.tensor([9 * math.log(2) + 30, 92 * math.log(2) + 50], dtype=torch.float64)
    for scan in (selective_scan_recurrence, selective_scan_chunked):
        torch.testing.assert_close(scan(x, delta, A, B, C, D).flatten(), expected, rtol=0, atol=1e-12)
        shifted = scan(x, delta - 2, A, B, C, D, torch.tensor([2.0], dtype=torch.float64))
        torch.testing.assert_close(shifted.flatten(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step_elements", [8, 24, 2**13])  # tiles of channels, of rows, chunks side by side
@pytest.mark.parametrize("tokens", [1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_chunked_equals_recurrence(tokens, step_elements, monkeypatch, assert_close):
    monkeypatch.setattr(selective_scan, "CPU_STEP_ELEMENTS", step_elements)
    inputs = scan_inputs(tokens)
    truth, expected = gradients(selective_scan_recurrence, inputs)
    y, actual = gradients(selective_scan_chunked, inputs, chunk_size=CHUNK)
    assert_close("y", y, truth, 1e-10)
    for name, ours, theirs in zip(NAMES, actual, expected):
        assert_close(name, ours, theirs, 1e-10)
    with torch.no_grad():
        assert torch.equal(selective_scan_chunked(*inputs, chunk_size=CHUNK), y)


def test_without_skip_and_bias(assert_close):
    inputs = [*scan_inputs(11)[:5], None, None]
    truth, expected = gradients(selective_scan_recurrence, inputs)
    y, actual = gradients(selective_scan_chunked, inputs, chunk_size=4)
    assert_close("y", y, truth, 1e-10)
    for name, ours, theirs in zip(NAMES, actual, expected):
        assert_close(name, ours, theirs, 1e-10)


def test_gradients_come_only_where_they_are_wanted():
    inputs = [tensor.detach() for tensor in scan_inputs(11)]
    expected = gradients(selective_scan_chunked, scan_inputs(11))[1]
    for k in range(len(inputs)):
        leaves = [tensor.clone().requires_grad_(k == i) for i, tensor in enumerate(inputs)]
        y = selective_scan_chunked(*leaves)
        arriving = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.testing.assert_close(torch.autograd.grad(y, leaves[k], arriving)[0], expected[k], rtol=0, atol=0)


def test_fast_forgetting_stays_finite_and_exact():
    # Decays over a chunk underflow to zero: exp(-16 * 64 * 7).
    inputs = scan_inputs(200, channels=4, state=16, dtype=torch.float32)
    with torch.no_grad():
        inputs[1] += 6
        inputs[2].copy_(-torch.arange(1.0, 17))
    exact = [tensor.detach().double() for tensor in inputs]
    for tensor in exact:
        tensor.requires_grad_()
    truth, expected = gradients(selective_scan_recurrence, exact)
    y, actual = gradients(selective_scan_chunked, inputs)
    for name, ours, theirs in zip(("y", *NAMES), (y, *actual), (truth, *expected)):
        assert ours.isfinite().all(), name
        error = (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
        assert error < 1e-5, f"{name}: relative RMS {error:.2g}"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_narrow_inputs_are_computed_in_fp32(dtype, tolerance):
    inputs = scan_inputs(150, channels=8, state=16)
    narrow = [t.detach().to(dtype if name in ("x", "delta", "B", "C") else torch.float32) for name, t in
              zip(NAMES, inputs)]  # fmt: skip
    truth = selective_scan_recurrence(*(t.double() for t in narrow))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = selective_scan_chunked(*narrow)
    assert y.dtype == dtype
    # bf16 is rounded once, at the end.
    torch.testing.assert_close(y.double(), truth, rtol=tolerance, atol=1e-5 * float(truth.abs().max()))


def test_what_is_kept_and_the_workspace_do_not_grow(kept_bytes, peak_bytes):
    def leaves(tokens):
        return scan_inputs(tokens, batch=1, channels=64, state=16, dtype=torch.float32)

    short, long = leaves(1024), leaves(2048)
    # Of the forward: y, and a state of 16 numbers a channel for every 64 tokens or more.
    assert kept_bytes(lambda: selective_scan_chunked(*long)) <= 4 * 64 * 2048 * (1 + 16 / 64)
    peaks = []
    for inputs in (short, long):
        y = selective_scan_chunked(*inputs)
        arriving = torch.ones_like(y)
        results = 4 * y.shape[1] * (2 * 64 + 2 * 16)
        peaks.append(peak_bytes(lambda y=y, i=inputs, a=arriving: torch.autograd.grad(y, i, a)) - results)
    assert peaks[1] <= 1.01 * peaks[0]


def test_shapes_that_do_not_fit():
    x, delta, A, B, C, D, bias = scan_inputs(4)
    for scan in (selective_scan_recurrence, selective_scan_chunked):
        with pytest.raises(ValueError, match=r"B has shape \(2, 3, 3\); .* must be \(2, 4, 3\)"):
            scan(x, delta, A, B[:, :3], C, D, bias)
        with pytest.raises(ValueError, match="T >= 1"):
            scan(x[:, :0], delta[:, :0], A, B[:, :0], C[:, :0], D, bias)
    with pytest.raises(ValueError, match="chunk_size=0"):
        selective_scan_chunked(x, delta, A, B, C, D, bias, chunk_size=0)
