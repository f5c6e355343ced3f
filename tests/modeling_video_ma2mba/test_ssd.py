"""The chunked SSD scan against the recurrence, and the recurrence against numbers worked out by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from modeling_video_ma2mba.ssd import ssd_chunked, ssd_recurrence

NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")
CHUNK = 8


def scan_inputs(tokens, *, batch=2, heads=4, head_dim=5, groups=2, state=6, dtype=torch.float64, seed=0):
    """Return x, dt, A, B, C, D, initial_state as leaves that need gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = (
        normal(batch, tokens, heads, head_dim),
        F.softplus(normal(batch, tokens, heads) - 1),
        -torch.exp(normal(heads)),
        normal(batch, tokens, groups, state),
        normal(batch, tokens, groups, state),
        normal(heads),
        normal(batch, heads, head_dim, state),
    )
    return [t.to(dtype).requires_grad_() for t in tensors]


def outgoing(y, final_state, seed=1):
    """Return random gradients for y and the final state."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, final_state)]


def errors(name, actual, expected):
    """Return (name, largest absolute error, error relative to the expected RMS)."""
    difference = actual.double() - expected.double()
    rms = expected.double().square().mean().sqrt()
    return name, difference.abs().max().item(), (difference.square().mean().sqrt() / rms.clamp_min(1e-300)).item()


def assert_close(names, actual, expected, *, absolute=None, relative=None):
    for name, ours, truth in zip(names, actual, expected):
        name, worst, rms = errors(name, ours, truth)
        report = f"{name}: max abs {worst:.3g}, relative RMS {rms:.3g}"
        assert ours.isfinite().all(), f"{name} is not finite"
        assert absolute is None or worst <= absolute, report
        assert relative is None or rms <= relative, report


def test_recurrence_equals_numbers_by_hand():
    # One head, P = 1, N = 2, A = -ln 2, so that dt = 1 halves the state and dt = 2 quarters it.
    x = torch.tensor([3.0, 5.0], dtype=torch.float64).view(1, 2, 1, 1)
    dt = torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 2, 1)
    A = -torch.tensor([2.0], dtype=torch.float64).log()
    B = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64).view(1, 2, 1, 2)
    C = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64).view(1, 2, 1, 2)
    D = torch.tensor([10.0], dtype=torch.float64)
    start = torch.tensor([4.0, 8.0], dtype=torch.float64).view(1, 1, 1, 2)
    # t = 0: (4, 8) / 2 + 1 * 3 * (1, 0) = (5, 4);            y = 5 + 4 + 30 = 39
    # t = 1: (5, 4) / 4 + 2 * 5 * (1, 2) = (11.25, 21);       y = 21 + 50 = 71
    for scan in (ssd_recurrence, ssd_chunked):
        y, final_state = scan(x, dt, A, B, C, D, start)
        torch.testing.assert_close(y.flatten(), torch.tensor([39.0, 71.0], dtype=torch.float64))
        torch.testing.assert_close(final_state.flatten(), torch.tensor([11.25, 21.0], dtype=torch.float64))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_chunked_equals_recurrence(tokens, groups):
    inputs = scan_inputs(tokens, groups=groups)
    truth = ssd_recurrence(*inputs)
    ours = ssd_chunked(*inputs, chunk_size=CHUNK)
    arriving = outgoing(*truth)
    assert_close(("y", "final_state"), ours, truth, absolute=1e-10)
    for both in ((0,), (1,), (0, 1)):  # gradients that arrive at y, at the final state, at both
        expected = torch.autograd.grad(
            [truth[k] for k in both], inputs, [arriving[k] for k in both], retain_graph=True, allow_unused=True
        )
        actual = torch.autograd.grad([ours[k] for k in both], inputs, [arriving[k] for k in both], retain_graph=True)
        expected = [torch.zeros_like(t) if g is None else g for g, t in zip(expected, inputs)]
        assert_close(NAMES, actual, expected, absolute=1e-10)
    with torch.no_grad():
        assert_close(("y", "final_state"), ssd_chunked(*inputs, chunk_size=CHUNK), truth, absolute=1e-10)


@pytest.mark.parametrize("batch, heads, tokens", [(1, 8, 1100), (3, 140, 130)])
def test_many_blocks_equal_the_recurrence(batch, heads, tokens):
    # The first needs several kept states; the second is more than one block of rows.
    inputs = scan_inputs(tokens, batch=batch, heads=heads, head_dim=2, groups=2, state=3)
    truth, ours = ssd_recurrence(*inputs), ssd_chunked(*inputs)
    arriving = outgoing(*truth)
    assert_close(("y", "final_state"), ours, truth, absolute=1e-10)
    expected = torch.autograd.grad(truth, inputs, arriving)
    # A sums over 1,000 tokens: relative there.
    assert_close(NAMES, torch.autograd.grad(ours, inputs, arriving), expected, relative=1e-12)


def test_optional_inputs():
    inputs = scan_inputs(11)
    for D, start in itertools.product((None, inputs[5]), (None, inputs[6])):
        given = [*inputs[:5], *(t for t in (D, start) if t is not None)]
        truth = ssd_recurrence(*inputs[:5], D, start)
        ours = ssd_chunked(*inputs[:5], D, start, chunk_size=CHUNK)
        assert_close(("y", "final_state"), ours, truth, absolute=1e-10)
        arriving = outgoing(*truth)
        pairs = [torch.autograd.grad(outputs, given, arriving) for outputs in (ours, truth)]
        assert_close(NAMES, *pairs, absolute=1e-10)


@pytest.mark.parametrize("cut", [1, 7, 8, 13, 19])
def test_split_anywhere_equals_whole(cut):
    x, dt, A, B, C, D, start = inputs = scan_inputs(20)
    whole = ssd_chunked(*inputs, chunk_size=CHUNK)
    first, state = ssd_chunked(x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], D, start, chunk_size=CHUNK)
    second, state = ssd_chunked(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], D, state, chunk_size=CHUNK)
    parts = torch.cat([first, second], 1), state
    arriving = outgoing(*whole)
    assert_close(("y", "final_state"), parts, whole, absolute=1e-10)
    expected = torch.autograd.grad(whole, inputs, arriving)
    assert_close(NAMES, torch.autograd.grad(parts, inputs, arriving), expected, absolute=1e-10)


def test_a_masked_token_leaves_the_state():
    x, dt, A, B, C, D, start = (t.detach() for t in scan_inputs(20))
    keep = torch.tensor([0, 1, 4, 9, 10, 18])
    masked = torch.zeros_like(dt)
    masked[:, keep] = dt[:, keep]
    y, state = ssd_chunked(x, masked, A, B, C, D, start, chunk_size=CHUNK)
    alone = ssd_chunked(x[:, keep], dt[:, keep], A, B[:, keep], C[:, keep], D, start, chunk_size=CHUNK)
    assert_close(("y", "final_state"), (y[:, keep], state), alone, absolute=1e-10)
    _, state = ssd_chunked(x, torch.zeros_like(dt), A, B, C, D, start, chunk_size=CHUNK)
    assert torch.equal(state, start)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, bound):
    # bf16: y and the gradients are rounded once, 2^-9 relative; inputs are the same numbers on both sides.
    inputs = scan_inputs(200, dtype=dtype, head_dim=16, state=16)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    ours, truth = ssd_chunked(*inputs), ssd_recurrence(*wide)
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32
    assert_close(("y", "final_state"), ours, truth, relative=bound)
    arriving = outgoing(*ours)
    actual = torch.autograd.grad(ours, inputs, arriving)
    expected = torch.autograd.grad(truth, wide, [g.double() for g in arriving])
    assert [g.dtype for g in actual] == [dtype] * 7
    assert_close(NAMES, actual, expected, relative=bound)


def test_autocast_has_no_influence():
    inputs = scan_inputs(30, dtype=torch.float32)
    plain = ssd_chunked(*inputs)
    arriving = outgoing(*plain)
    expected = torch.autograd.grad(plain, inputs, arriving)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ssd_chunked(*inputs)
        actual = torch.autograd.grad(cast, inputs, arriving)
        with torch.no_grad():
            inference = ssd_chunked(*inputs)
    assert all(torch.equal(a, b) for a, b in zip((*cast, *actual, *inference), (*plain, *expected, *plain)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 30.0, 1e6, "mixed"])
def test_extreme_decay(scale, dtype):
    inputs = scan_inputs(40, dtype=dtype)
    with torch.no_grad():
        if scale == "mixed":  # steps that forget everything beside steps that forget nothing
            inputs[1][:, ::5] = 1e6
            inputs[1][:, 1::5] = 1e-6
        else:
            inputs[1].mul_(scale)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    ours, truth = ssd_chunked(*inputs), ssd_recurrence(*wide)
    arriving = outgoing(*truth)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert_close(("y", "final_state"), ours, truth, relative=bound)
    actual = torch.autograd.grad(ours, inputs, [g.to(dtype) for g in arriving])
    expected = torch.autograd.grad(truth, wide, arriving)
    for name, ours_, truth_ in zip(NAMES, actual, expected):
        if truth_.abs().max() > 1e-12:  # else the truth is an underflow; finite is all that can be asked
            assert_close([name], [ours_], [truth_], relative=bound)
        assert ours_.isfinite().all(), name


def test_nothing_is_kept_without_gradients():
    inputs = scan_inputs(20)
    with torch.no_grad():
        assert all(t.grad_fn is None and not t.requires_grad for t in ssd_chunked(*inputs))
    plain = [t.detach() for t in inputs]
    assert all(t.grad_fn is None for t in ssd_chunked(*plain))


def test_second_derivative_is_refused():
    inputs = scan_inputs(9)
    y, _ = ssd_chunked(*inputs)
    (grad,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_views_of_one_tensor_and_expanded_gradients():
    # The mixer passes slices of the convolution's output; sum().backward() sends an expanded gradient.
    u = torch.randn(2, 21, 4 * 5 + 2 * 2 * 6, dtype=torch.float64, requires_grad=True)
    _, dt, A, _, _, D, start = scan_inputs(21)
    grads = []
    for scan in (ssd_recurrence, ssd_chunked):
        x, B, C = u.split([20, 12, 12], -1)
        y, _ = scan(x.view(2, 21, 4, 5), dt, A, B.view(2, 21, 2, 6), C.view(2, 21, 2, 6), D, start)
        grads.append(torch.autograd.grad(y.sum(), u))
    assert_close(("u",), grads[1], grads[0], absolute=1e-10)


def test_meta_tensors_give_shapes():
    inputs = [t.detach().to("meta") for t in scan_inputs(20, dtype=torch.bfloat16)]
    y, state = ssd_chunked(*inputs)
    assert y.shape == (2, 20, 4, 5) and y.dtype == torch.bfloat16
    assert state.shape == (2, 4, 5, 6) and state.dtype == torch.float32


@pytest.mark.parametrize("name, shape", [("dt", (2, 9, 3)), ("A", (3,)), ("C", (2, 9, 2, 5)), ("D", (4, 5))])
def test_wrong_shapes_are_named(name, shape):
    inputs = dict(zip(NAMES, scan_inputs(9)))
    inputs[name] = torch.zeros(shape)
    for scan in (ssd_recurrence, ssd_chunked):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            scan(**inputs)


def test_wrong_sizes_are_refused():
    inputs = scan_inputs(9)
    with pytest.raises(ValueError, match="chunk_size=0"):
        ssd_chunked(*inputs, chunk_size=0)
    with pytest.raises(ValueError, match="groups that divide"):
        ssd_chunked(*inputs[:3], inputs[3].repeat(1, 1, 2, 1)[:, :, :3], *inputs[4:])
    with pytest.raises(ValueError, match="at least 1 token"):
        ssd_chunked(*(t[:, :0] if t.dim() > 2 and t.shape[1] == 9 else t for t in inputs))
