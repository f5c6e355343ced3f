"""The choice of a backend, the causal convolution, and the lengths the kernels may be given."""

import importlib.util
import logging
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from modeling_video_ma2mba import kernels
from modeling_video_ma2mba.kernels import (
    Backend,
    causal_conv,
    choose_backend,
    load_conv_kernel,
    load_scan_kernel,
    load_selective_scan_kernel,
    max_segment_tokens,
    safe_tokens,
    selective_scan,
    selective_scan_rows,
    ssd,
)

TORCH = Backend(scan="torch", conv="torch", reason="test")
TRITON = Backend(scan="triton", conv="causal_conv1d", reason="test")
SIZES_2P7B = {
    "hidden_size": 2560,
    "intermediate_size": 5120,
    "conv_dim": 5376,
    "num_heads": 80,
    "head_dim": 64,
    "state_size": 128,
    "chunk_size": 256,
}


def pretend(monkeypatch, *, scan, conv):
    monkeypatch.setattr(kernels, "load_scan_kernel", lambda: scan)
    monkeypatch.setattr(kernels, "load_conv_kernel", lambda: conv)


def a_kernel(*args, **kwargs):
    raise AssertionError("the kernel was called")


@pytest.mark.parametrize(
    "requested, device, dtype, scan, conv, expected",
    [
        ("torch", "cuda", torch.float32, a_kernel, a_kernel, ("torch", "torch", "asked for")),
        ("auto", "cpu", torch.float32, a_kernel, a_kernel, ("torch", "torch", "CUDA")),
        ("auto", "cuda", torch.float64, a_kernel, a_kernel, ("torch", "torch", "float64")),
        ("auto", "cuda", torch.bfloat16, "no scan", a_kernel, ("torch", "torch", "no scan")),
        ("auto", "cuda", torch.bfloat16, a_kernel, a_kernel, ("triton", "causal_conv1d", "both")),
        ("auto", "cuda:1", torch.float32, a_kernel, "no conv", ("triton", "torch", "no conv")),
        ("triton", "cuda", torch.float16, a_kernel, "no conv", ("triton", "torch", "no conv")),
    ],
)
def test_choice(monkeypatch, requested, device, dtype, scan, conv, expected):
    pretend(monkeypatch, scan=scan, conv=conv)
    backend = choose_backend(requested, torch.device(device), dtype)
    assert (backend.scan, backend.conv) == expected[:2]
    assert expected[2] in backend.reason


def test_choice_of_the_selective_scan(monkeypatch):
    pretend(monkeypatch, scan="no SSD", conv=a_kernel)
    monkeypatch.setattr(kernels, "load_selective_scan_kernel", lambda: a_kernel)
    backend = choose_backend("auto", torch.device("cuda"), torch.bfloat16, scan="selective")
    assert (backend.scan, backend.conv) == ("cuda", "causal_conv1d")
    monkeypatch.setattr(kernels, "load_selective_scan_kernel", lambda: "it is not there")
    assert choose_backend("auto", torch.device("cuda"), torch.bfloat16, scan="selective").scan == "torch"
    with pytest.raises(ImportError, match="it is not there; install it"):
        choose_backend("triton", torch.device("cuda"), torch.bfloat16, scan="selective")


def test_a_named_backend_that_cannot_be_used_raises(monkeypatch):
    pretend(monkeypatch, scan="mamba-ssm is not installed", conv=a_kernel)
    with pytest.raises(ImportError, match="mamba-ssm is not installed; install it with `pip install"):
        choose_backend("triton", torch.device("cuda"), torch.float32)
    pretend(monkeypatch, scan=a_kernel, conv=a_kernel)
    with pytest.raises(RuntimeError, match="float64"):
        choose_backend("triton", torch.device("cuda"), torch.float64)
    with pytest.raises(RuntimeError, match="CUDA device"):
        choose_backend("triton", torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="'auto', 'torch', 'triton'"):
        choose_backend("cuda", torch.device("cpu"), torch.float32)


def test_auto_says_what_it_took_once(caplog):
    kernels._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=kernels.__name__):
        for _ in range(3):
            choose_backend("auto", torch.device("cpu"), torch.float32)
            choose_backend("torch", torch.device("cpu"), torch.float32)
    assert len(caplog.records) == 1
    assert "scan by torch" in caplog.text and "CUDA" in caplog.text


def test_a_missing_kernel_is_an_error_not_a_fallback(monkeypatch):
    pretend(monkeypatch, scan="mamba-ssm is not installed", conv="causal-conv1d is not installed")
    with pytest.raises(ImportError, match="mamba-ssm is not installed; install"):
        ssd(*scan_inputs(), backend=TRITON)
    with pytest.raises(ImportError, match="causal-conv1d is not installed; install"):
        causal_conv(torch.zeros(1, 2, 3), torch.zeros(3, 1, 4), None, torch.zeros(1, 3, 3), TRITON)


def test_loaders_return_a_function_or_a_reason():
    for load in (load_scan_kernel, load_conv_kernel, load_selective_scan_kernel):
        kernel = load()
        assert load() is kernel
        assert callable(kernel) or (isinstance(kernel, str) and kernel)


def test_loading_leaves_no_half_package_behind():
    # A process of its own: what others import must be as if the kernel had never been looked for.
    if importlib.util.find_spec("mamba_ssm") is None:
        pytest.skip("mamba_ssm is not installed: nothing to leave behind")
    code = """
import importlib, sys
def outcome():
    try:
        importlib.import_module("mamba_ssm")
        return "imported"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
def modules():
    return {name for name in sys.modules if name.split(".")[0] == "mamba_ssm"}
expected = outcome()
from modeling_video_ma2mba import kernels
from modeling_video_ma2mba.kernels import load_scan_kernel
before = modules()
assert expected == "imported" or "mamba_ssm.ops.triton.ssd_combined" not in before, "imported with our module"
load_scan_kernel()
assert expected == "imported" or modules() == before, modules() - before
kernels.load_selective_scan_kernel()
assert expected == "imported" or modules() == before, modules() - before
assert outcome() == expected, outcome()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def scan_inputs(dtype=torch.float32):
    """Return x, dt, A, B, C, D and no state."""
    x, read = torch.randn(1, 5, 2, 3, dtype=dtype), torch.randn(1, 5, 1, 4, dtype=dtype)
    return x, torch.rand(1, 5, 2), -torch.rand(2), read, read + 1, torch.rand(2), None


def test_ssd_passes_arguments_to_the_kernel(monkeypatch):
    seen = {}

    def kernel(*args, **kwargs):
        seen.update(args=args, kwargs=kwargs)
        return "y", "state"

    pretend(monkeypatch, scan=kernel, conv=None)
    inputs = scan_inputs()
    assert ssd(*inputs, backend=TRITON, chunk_size=32) == ("y", "state")
    assert all(a is b for a, b in zip(seen["args"], inputs[:5])) and seen["args"][5] == 32
    assert seen["kwargs"] == {"D": inputs[5], "initial_states": None, "return_final_states": True}
    with pytest.raises(ValueError, match="float64"):
        ssd(*scan_inputs(torch.float64), backend=TRITON)


def test_one_token_without_gradients_needs_no_kernel(monkeypatch):
    pretend(monkeypatch, scan=a_kernel, conv=None)
    x, dt, A, B, C, D, _ = scan_inputs()
    one = (x[:, :1], dt[:, :1], A, B[:, :1], C[:, :1], D, torch.randn(1, 2, 3, 4))
    with torch.no_grad():
        pairs = zip(ssd(*one, backend=TRITON), ssd(*one, backend=TORCH))
    assert all(torch.equal(a, b) for a, b in pairs)


def test_lengths_are_pinned():
    # The numbers of the 2.7B model at batch 1 and 4.
    projection, conv, gated_norm, norm, states = 5120 + 5376 + 80, 5376, 5120, 2560, 80 * 64 * 128
    rows = (projection, conv, gated_norm, norm, states)
    assert [safe_tokens(row, 1) for row in rows] == [203_052, 399_457, 419_430, 838_860, 3_276]
    assert [safe_tokens(row, 4) for row in rows] == [50_763, 99_864, 104_857, 209_715, 819]
    assert max_segment_tokens(**SIZES_2P7B, batch_size=1) == 203_052
    assert max_segment_tokens(**SIZES_2P7B, batch_size=4) == 50_763
    # Short chunks of large states are the limit here: 3,276 chunks of 16 tokens.
    assert max_segment_tokens(**{**SIZES_2P7B, "chunk_size": 16}, batch_size=1) == 3_276 * 16
    with pytest.raises(ValueError, match="row_stride=0"):
        safe_tokens(0, 1)


def test_longer_work_is_refused(monkeypatch):
    pretend(monkeypatch, scan=a_kernel, conv=a_kernel)

    def empty(*shape):
        return torch.empty(shape, device="meta")

    def scan(tokens, chunk_size=256):
        read = empty(1, tokens, 1, 128)
        inputs = (empty(1, tokens, 80, 64), empty(1, tokens, 80), empty(80), read, read, empty(80), None)
        return ssd(*inputs, backend=TRITON, chunk_size=chunk_size)

    with pytest.raises(ValueError, match=r"419431 tokens .* reach 419430; split"):
        scan(419_431)
    with pytest.raises(ValueError, match=r"chunk states.* reach 209664"):
        scan(209_665, chunk_size=64)
    with pytest.raises(AssertionError, match="the kernel was called"):
        scan(419_430)
    with pytest.raises(ValueError, match=r"399458 tokens .* reach 399457; split"):
        causal_conv(empty(1, 399_458, 5376), empty(5376, 1, 4), None, empty(1, 3, 5376), TRITON)


def selective_inputs(tokens=5, channels=4, size=3, dtype=torch.float32):
    """Return x, delta, A, B, C, D, delta_bias on the meta device: only shapes matter."""
    shapes = ((2, tokens, channels), (2, tokens, channels), (channels, size), (2, tokens, size), (2, tokens, size))
    return [torch.empty(s, dtype=dtype, device="meta") for s in (*shapes, (channels,), (channels,))]


def test_the_selective_scan_kernel_is_kept_within_its_limits(monkeypatch):
    cuda = Backend(scan="cuda", conv="torch", reason="test")
    monkeypatch.setattr(kernels, "load_selective_scan_kernel", lambda: a_kernel)
    with pytest.raises(ValueError, match="float64"):
        selective_scan(*selective_inputs(dtype=torch.float64), cuda)
    with pytest.raises(ValueError, match="a state of 257; the CUDA scan takes at most 256"):
        selective_scan(*selective_inputs(size=257), cuda)
    # Base has 1,536 channels; 64 frames of 224 px are 12,545 tokens. The projection's rows have two halves.
    assert selective_scan_rows(12_545, 1536, 16) == 55
    most = (2**31 - 1) // (2 * 2 * 1536)
    with pytest.raises(AssertionError, match="the kernel was called"):
        selective_scan(*selective_inputs(most, 1536, 16), cuda)
    with pytest.raises(ValueError, match=r"2 rows of 349526 tokens in one call of the CUDA scan.* reach 1 rows"):
        selective_scan(*selective_inputs(most + 1, 1536, 16), cuda)
    # Short rows are limited by what the kernel keeps: a state and a decay for every 2,048 tokens.
    assert selective_scan_rows(1, 1536, 16) == (2**31 - 1) // (2 * 1536 * 16)
    monkeypatch.setattr(kernels, "load_selective_scan_kernel", lambda: "it is not there")
    with pytest.raises(ImportError, match="it is not there; install it"):
        selective_scan(*selective_inputs(), cuda)


def naive_conv(xBC, weight, bias, conv_state):
    """Return silu of the convolution, one token and one tap at a time."""
    inputs = torch.cat([conv_state, xBC], 1)
    width = weight.shape[-1]
    outputs = []
    for t in range(xBC.shape[1]):
        total = torch.zeros_like(xBC[:, 0]) if bias is None else bias.expand_as(xBC[:, 0])
        for k in range(width):
            total = total + inputs[:, t + k] * weight.view(-1, width)[:, k]
        outputs.append(total * torch.sigmoid(total))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 17])
def test_conv_equals_naive(tokens, with_bias):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, tokens, 6), (6, 1, 4), (6,), (2, 3, 6)]
    xBC, weight, bias, state = (
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes
    )
    if not with_bias:
        bias = None
    leaves = [t for t in (xBC, weight, bias, state) if t is not None]
    ours, truth = causal_conv(xBC, weight, bias, state, TORCH), naive_conv(xBC, weight, bias, state)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    arriving = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    pairs = zip(torch.autograd.grad(ours, leaves, arriving), torch.autograd.grad(truth, leaves, arriving))
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours, causal_conv(xBC, weight.view(6, 4), bias, state, TORCH), rtol=0, atol=0)


def test_conv_split_anywhere_equals_whole():
    xBC, weight, bias = torch.randn(2, 9, 6).double(), torch.randn(6, 1, 4).double(), torch.randn(6).double()
    state = torch.zeros(2, 3, 6).double()
    whole = causal_conv(xBC, weight, bias, state, TORCH)
    for cut in range(1, 9):
        first = causal_conv(xBC[:, :cut], weight, bias, state, TORCH)
        passed = torch.cat([state, xBC[:, :cut]], 1)[:, -3:]
        second = causal_conv(xBC[:, cut:], weight, bias, passed, TORCH)
        torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, roundings", [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 10)])
def test_conv_keeps_the_dtype_and_rounds_16_bit_once(dtype, roundings):
    # Sums are fp32: 16-bit results are rounded at the end only; fp32 rounds at each of the five terms and in silu.
    xBC, weight, bias, state = (torch.randn(s).to(dtype) for s in [(2, 40, 6), (6, 1, 4), (6,), (2, 3, 6)])
    u = causal_conv(xBC, weight, bias, state, TORCH)
    exact = naive_conv(*(t.double() for t in (xBC, weight, bias, state)))
    assert u.dtype == dtype
    epsilon = roundings * torch.finfo(dtype).eps
    torch.testing.assert_close(u.double(), exact, rtol=epsilon, atol=epsilon)


def test_conv_equals_conv1d():
    xBC, weight, bias = torch.randn(2, 30, 6).double(), torch.randn(6, 1, 4).double(), torch.randn(6).double()
    expected = F.silu(F.conv1d(xBC.mT, weight, bias, padding=3, groups=6)[..., :30]).mT
    torch.testing.assert_close(causal_conv(xBC, weight, bias, torch.zeros(2, 3, 6).double(), TORCH), expected)


def conv_leaves(tokens, width=4, with_bias=True, batch=2, dtype=torch.float64):
    """Return xBC, a slice of something wider as in the mixer, weight, bias or None, conv_state."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(batch, tokens, 9), (6, 1, width), (6,), (batch, width - 1, 6)]
    xBC, weight, bias, state = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    leaves = (xBC[..., 1:7], weight, bias if with_bias else None, state)
    return [t if t is None else t.requires_grad_() for t in leaves]


def conv1d_reference(xBC, weight, bias, conv_state):
    """Return the convolution by PyTorch's own, and autograd's gradients with it."""
    return F.silu(F.conv1d(torch.cat([conv_state, xBC], 1).mT, weight, bias, groups=xBC.shape[2])).mT


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
@pytest.mark.parametrize("with_bias", [True, False])
def test_conv_gradcheck(tokens, width, with_bias):
    xBC, weight, bias, state = conv_leaves(tokens, width, with_bias, batch=1)
    inputs = (xBC, weight, state, *([bias] if with_bias else []))
    assert torch.autograd.gradcheck(lambda x, w, s, b=None: causal_conv(x, w, b, s, TORCH), inputs)


@pytest.mark.parametrize("width", [1, 4, 70])  # with 70 a token reads from two pieces before its own
@pytest.mark.parametrize("tokens", [1, 2, 3, 64, 65, 66, 200])
@pytest.mark.parametrize("with_bias", [True, False])
def test_conv_in_pieces_equals_conv1d(tokens, width, with_bias, monkeypatch):
    leaves = conv_leaves(tokens, width, with_bias)
    row = conv_leaves(tokens, width, with_bias, batch=1)
    whole = causal_conv(*row, TORCH)
    monkeypatch.setattr(kernels, "CPU_PIECE_ELEMENTS", 1)  # 64 tokens a piece
    assert torch.equal(causal_conv(*row, TORCH), whole)
    ours, truth = causal_conv(*leaves, TORCH), conv1d_reference(*leaves)
    with torch.no_grad():
        assert torch.equal(causal_conv(*leaves, TORCH), ours)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-10)
    given = [t for t in leaves if t is not None]
    arriving = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = zip(torch.autograd.grad(ours, given, arriving), torch.autograd.grad(truth, given, arriving))
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_conv_gradients_in_bf16_are_rounded_once():
    leaves = conv_leaves(100, dtype=torch.bfloat16)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    ours, truth = causal_conv(*leaves, TORCH), conv1d_reference(*wide)
    arriving = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = torch.autograd.grad(truth, wide, arriving.double())
    for one, two in zip(torch.autograd.grad(ours, leaves, arriving), expected):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), two, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("learnt", range(4))
def test_conv_gives_gradients_only_where_they_are_wanted(learnt):
    leaves = conv_leaves(20)
    expected = torch.autograd.grad(causal_conv(*leaves, TORCH).sum(), leaves)[learnt]
    frozen = [t.detach().requires_grad_(k == learnt) for k, t in enumerate(leaves)]
    causal_conv(*frozen, TORCH).sum().backward()
    assert torch.equal(frozen[learnt].grad, expected)
    assert sum(t.grad is not None for t in frozen) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conv_keeps_its_inputs_alone(dtype, kept_bytes, peak_bytes, monkeypatch):
    monkeypatch.setattr(kernels, "CPU_PIECE_ELEMENTS", 2**13)
    leaves = conv_leaves(2**16, batch=1, dtype=dtype)
    output = dtype.itemsize * leaves[0].numel()
    taps = 4 * (leaves[1].numel() + leaves[2].numel())
    assert kept_bytes(lambda: causal_conv(*leaves, TORCH)) == output
    u, arriving = causal_conv(*leaves, TORCH), torch.ones_like(leaves[0])
    pieces = 12 * 4 * 2**13  # what is computed on the way: at most 12 tensors of one piece, in fp32
    assert peak_bytes(lambda: causal_conv(*leaves, TORCH)) <= output + taps + pieces
    assert peak_bytes(lambda: torch.autograd.grad(u, leaves, arriving)) <= output + 4 * taps + pieces


def test_conv_kernel_gets_channel_last_memory(monkeypatch):
    seen = {}

    def kernel(x, weight, bias, **kwargs):
        seen.update(x=x, weight=weight, **kwargs)
        return x

    pretend(monkeypatch, scan=None, conv=kernel)
    wide = torch.randn(2, 5, 19)
    u = causal_conv(wide[..., 1:17], torch.randn(16, 1, 4), None, torch.randn(2, 3, 16), TRITON)
    assert u.shape == (2, 5, 16)
    assert seen["x"].stride() == (80, 1, 16) and seen["initial_states"].stride(1) == 1
    assert seen["weight"].shape == (16, 4) and seen["activation"] == "silu"


def test_conv_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="conv_state"):
        causal_conv(torch.zeros(1, 2, 3), torch.zeros(3, 1, 4), None, torch.zeros(1, 2, 3), TORCH)
    with pytest.raises(ValueError, match="weight must be"):
        causal_conv(torch.zeros(1, 2, 3), torch.zeros(4, 1, 4), None, torch.zeros(1, 3, 3), TORCH)


def test_the_state_gradient_is_asked_for_in_fp32(monkeypatch):
    """mamba-ssm's own backward asks for x's dtype; seen on the call, since 16 bit needs a GPU."""
    import types

    asked = []
    module = types.SimpleNamespace(
        _state_passing_bwd=lambda *args, **kwargs: asked.append(kwargs["dstates_dtype"]),
        mamba_chunk_scan_combined=lambda: module._state_passing_bwd(
            1, has_initial_states=True, dstates_dtype=torch.bfloat16, states_dtype=torch.bfloat16
        ),
    )
    for _ in range(2):
        kernels._with_wide_state_gradients(module)()
    module._state_passing_bwd(1, has_initial_states=False, dstates_dtype=torch.bfloat16)
    assert asked == [torch.float32, torch.float32, torch.bfloat16]
