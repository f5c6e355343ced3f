"""The selective scan of Mamba-1 in plain PyTorch: a slow recurrence, the truth, and a form that is parallel in time.

Not here: mamba-ssm's CUDA kernel and the choice between them (`kernels.py`); convolution, gate and the order in which
tokens are read (the mixer). There is no state in or out: VideoMamba reads a clip whole, in both directions.

Shapes: B batch, T tokens, E channels, N state; inside a block b rows, e channels, K chunks side by side of Q tokens.

Glossary (Mamba, arXiv 2312.00752; VideoMamba, arXiv 2403.06977, section 3.1), per channel, one token t:
    papers          here
    Delta_t         dt = softplus(delta_t + delta_bias)
    A-bar           exp(dt A), (N,): how much of the memory is kept; zero-order hold
    B-bar x_t       dt B_t x_t, (N,): what is written; Euler's step, as the published model computes it, not equation 4
    C_t             what is read, (N,)
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .ssd import _compute_dtype, _no_autocast

# Tokens of a chunk, which are read one after another. For the backward one state is kept for every chunk or more.
CHUNK_SIZE = 64

# Numbers of one step: enough to be worth a call, few enough for the steps of a chunk to stay near a CPU core.
CPU_STEP_ELEMENTS = 2**13
DEVICE_STEP_ELEMENTS = 2**19


def selective_scan_recurrence(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the selective scan one token at a time: slow, obvious, differentiable; every other form must equal it.

        dt  = softplus(delta_t + delta_bias)
        h_t = exp(dt A) h_{t-1} + dt x_t B_t            h_{-1} = 0
        y_t = h_t C_t + D x_t

    Args:
        x: (B, T, E), T >= 1. delta: (B, T, E), before softplus.
        A: (E, N), negative. B, C: (B, T, N). D, delta_bias: (E,) or None.

    Returns:
        y (B, T, E) in x's dtype, computed in fp32 or, if any input is fp64, fp64.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check_shapes(x, delta, A, B, C, D, delta_bias)
    dtype = _compute_dtype(x, delta, A, B, C, D, delta_bias)
    x_, A, B, C = x.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype)
    dt = F.softplus(delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype))
    state = x_.new_zeros(x.shape[0], *A.shape)  # (B, E, N)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)  # (B, E, 1) * (E, N) -> (B, E, N)
        state = decay * state + (dt[:, t] * x_[:, t])[..., None] * B[:, t, None]  # (B, E, 1) * (B, 1, N)
        outputs.append((state * C[:, t, None]).sum(-1))  # (B, E)
    y = torch.stack(outputs, dim=1)  # (B, T, E)
    if D is not None:
        y = y + D.to(dtype) * x_
    return y.to(x.dtype)


def selective_scan_chunked(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> torch.Tensor:
    """Run the selective scan with chunks side by side: the function of `selective_scan_recurrence`.

    Differentiable once in every tensor. For the backward only the inputs and at most one state (E, N) for every
    `chunk_size` tokens are kept; the memory on the way does not grow with the length. Autocast has no influence.

    Args:
        x, delta, A, B, C, D, delta_bias: as `selective_scan_recurrence` takes them.
        chunk_size: tokens per chunk, >= 1. Changes speed and rounding only.

    Returns:
        As `selective_scan_recurrence`.

    Raises:
        ValueError: shapes do not fit, or chunk_size < 1. RuntimeError: a second derivative is asked for.
    """
    _check_shapes(x, delta, A, B, C, D, delta_bias)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: a chunk holds at least 1 token; pass chunk_size >= 1")
    tensors = (x, delta, A, B, C, D, delta_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _SelectiveScan.apply(*tensors, chunk_size)
    with _no_autocast(x.device):
        return _scan_forward(*tensors, chunk_size, keep_states=False)[0]


class _SelectiveScan(torch.autograd.Function):
    """Give `_scan_forward` a backward written by hand: compute a block's states again, then go back over it.

    With g_t the gradient of h_t, a_t = exp(dt A):

        g_t = gy_t C_t + a_{t+1} g_{t+1}
        gB_t = sum_e g_t dt x_t        gC_t = sum_e gy_t h_t        gx_t = dt g_t B_t + D gy_t
        gdt = x_t g_t B_t + sum_n g_t a_t h_{t-1} A                 gA = sum_t g_t a_t h_{t-1} dt
    """

    @staticmethod
    def forward(ctx, x, delta, A, B, C, D, delta_bias, chunk_size):
        with _no_autocast(x.device):
            y, kept = _scan_forward(x, delta, A, B, C, D, delta_bias, chunk_size, keep_states=True)
        ctx.save_for_backward(x, delta, A, B, C, D, delta_bias, kept)
        ctx.chunk_size = chunk_size
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        *inputs, kept = ctx.saved_tensors
        with _no_autocast(grad_y.device):
            grads = _scan_backward(*inputs, kept, grad_y, ctx.chunk_size)
        return *(None if t is None else g.to(t.dtype) for g, t in zip(grads, inputs)), None


def _scan_forward(x, delta, A, B, C, D, delta_bias, chunk_size, keep_states):
    """Return y and, where asked for, the states before every span but the first, (spans - 1, B, N, E)."""
    dtype = _compute_dtype(x, delta, A, B, C, D, delta_bias)
    size = A.shape[1]
    tiles, spans = _plan(x, size, chunk_size)
    y = torch.empty_like(x)
    kept = x.new_empty((len(spans) - 1, x.shape[0], size, x.shape[2]), dtype=dtype) if keep_states else None
    for rows, channels in tiles:
        state = None
        for index, span in enumerate(spans):
            if keep_states and index:
                kept[index - 1, rows, :, channels] = state
            block = _Block(x, delta, A, B, C, delta_bias, rows, channels, span, dtype)
            out, state = _forward_block(block, state)
            if D is not None:
                out.addcmul_(block.x, D[channels].to(dtype))
            block.cut(y, channels).copy_(out)
    return y, kept


def _scan_backward(x, delta, A, B, C, D, delta_bias, kept, grad_y, chunk_size):
    """Return the gradients of x, delta, A, B, C, D and delta_bias."""
    dtype = _compute_dtype(x, delta, A, B, C, D, delta_bias)
    tiles, spans = _plan(x, A.shape[1], chunk_size)
    grad_x, grad_delta = torch.empty_like(x), torch.empty_like(delta)
    grad_B, grad_C = torch.zeros_like(B, dtype=dtype), torch.zeros_like(C, dtype=dtype)
    grad_A, grad_D = torch.zeros_like(A, dtype=dtype), A.new_zeros(A.shape[0], dtype=dtype)
    grad_bias = torch.zeros_like(grad_D)
    for rows, channels in tiles:
        grad_state = None
        for index in reversed(range(len(spans))):
            block = _Block(x, delta, A, B, C, delta_bias, rows, channels, spans[index], dtype)
            gy = block.cut(grad_y, channels).to(dtype)  # (Q, b, K, e)
            state = kept[index - 1, rows, :, channels] if index else None
            own, raw, block_A, block_B, block_C, grad_state = _backward_block(block, state, gy, grad_state)
            if D is not None:
                own.addcmul_(gy, D[channels].to(dtype))
                grad_D[channels] += (gy * block.x).sum((0, 1, 2))
            block.cut(grad_x, channels).copy_(own)
            block.cut(grad_delta, channels).copy_(raw)
            block.cut(grad_B).add_(block_B)
            block.cut(grad_C).add_(block_C)
            grad_A[channels] += block_A
            grad_bias[channels] += raw.sum((0, 1, 2))
    return grad_x, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias


class _Block:
    """K chunks of Q tokens of some rows and channels, in the compute dtype; a step q of all chunks is contiguous."""

    def __init__(self, x, delta, A, B, C, delta_bias, rows, channels, span, dtype):
        self.rows, (self.start, self.chunks, self.length) = rows, span
        self.x = self.cut(x, channels).to(dtype)  # (Q, b, K, e)
        self.raw = self.cut(delta, channels).to(dtype)  # (Q, b, K, e)
        if delta_bias is not None:
            self.raw = self.raw + delta_bias[channels].to(dtype)
        self.dt = F.softplus(self.raw)  # (Q, b, K, e)
        self.A = A[channels].to(dtype).T.contiguous()  # (N, e)
        self.B, self.C = self.cut(B).to(dtype), self.cut(C).to(dtype)  # (Q, b, K, N)

    def cut(self, t, channels=slice(None)):
        """View this block's part of t: (B, T, c) -> (Q, b, K, c)."""
        tokens = slice(self.start, self.start + self.chunks * self.length)
        return t[self.rows, tokens, channels].unflatten(1, (self.chunks, self.length)).permute(2, 0, 1, 3)

    def states(self, state):
        """Return decays and states of every token, (Q, b, K, N, e) each, and the states before and behind.

        Args:
            state: (b, N, e) before the block, or None for zeros.

        Returns:
            decays; states; the states before each chunk, (b, K, N, e) or None for zeros; the one behind, (b, N, e).
        """
        a = torch.mul(self.dt[..., None, :], self.A).exp_()  # (Q, b, K, 1, e) * (N, e) -> (Q, b, K, N, e)
        h = (self.dt * self.x)[..., None, :] * self.B[..., None]  # (Q, b, K, N, e)
        before = None if state is None else state[:, None]  # (b, 1, N, e)
        if self.chunks == 1 and before is not None:
            h[0].addcmul_(a[0], before)
        steps_h, steps_a = h.unbind(), a.unbind()
        for q in range(1, self.length):
            steps_h[q].addcmul_(steps_a[q], steps_h[q - 1])
        if self.chunks > 1:  # each chunk began with nothing: bring the others' past to it
            before = self.carry(h[-1], state, range(self.chunks))
            h.addcmul_(self.decay(self.dt.cumsum(0)), before)
        # A view would keep the block's states for as long as this one is needed.
        return a, h, before, h[-1, :, -1].clone()

    def state_gradients(self, a, gy, grad_state):
        """Return the gradients of the states of every token, (Q, b, K, N, e), and of the one before, (b, N, e).

        Args:
            a: decays. gy: (Q, b, K, e). grad_state: (b, N, e) of the state behind the block, or None for zeros.
        """
        g = gy[..., None, :] * self.C[..., None]  # (Q, b, K, N, e)
        if self.chunks == 1 and grad_state is not None:
            g[-1] += grad_state[:, None]
        steps_g, steps_a = g.unbind(), a.unbind()
        for q in reversed(range(self.length - 1)):
            steps_g[q].addcmul_(steps_a[q + 1], steps_g[q + 1])
        if self.chunks > 1:
            behind = self.carry(a[0] * g[0], grad_state, reversed(range(self.chunks)))
            later = self.dt.sum(0, keepdim=True) - self.dt.cumsum(0)  # (Q, b, K, e), dt of the tokens behind
            g.addcmul_(self.decay(later), behind)
        return g, a[0, :, 0] * g[0, :, 0]

    def carry(self, own, state, order):
        """Return what reaches each chunk from those before it in `order`, (b, K, N, e).

        Args:
            own: (b, K, N, e), what each chunk passes on by itself. state: (b, N, e) or None.
        """
        whole = self.decay(self.dt.sum(0))  # (b, K, N, e)
        reaching = torch.empty_like(own)
        state = torch.zeros_like(own[:, 0]) if state is None else state
        for k in order:
            reaching[:, k] = state
            state = torch.addcmul(own[:, k], whole[:, k], state)
        return reaching

    def decay(self, dt):
        """Return exp(dt A) of several tokens' dt: (..., e) -> (..., N, e)."""
        log_decay = dt[..., None, :] * self.A
        # Below this it is exactly 0: subnormal numbers are many times slower in every product.
        return F.threshold_(log_decay, 0.75 * math.log(torch.finfo(log_decay.dtype).tiny), -torch.inf).exp_()


def _forward_block(block, state):
    """Return y of a block, without the skip, (Q, b, K, e), and the state behind it, (b, N, e)."""
    _, h, _, state = block.states(state)
    return torch.matmul(block.C[..., None, :], h).squeeze(-2), state  # (1, N) (N, e) -> (1, e)


def _backward_block(block, state, gy, grad_state):
    """Return a block's gradients of x, without the skip, delta, A, B, C and of the state before it.

    Args:
        state: (b, N, e) before the block. gy: (Q, b, K, e). grad_state: (b, N, e) of the state behind it. None: zeros.
    """
    a, h, before, _ = block.states(state)
    g, grad_state = block.state_gradients(a, gy, grad_state)
    grad_C = torch.matmul(h, gy[..., None]).squeeze(-1)  # (N, e) (e, 1) -> (Q, b, K, N)
    grad_B = torch.matmul(g, (block.dt * block.x)[..., None]).squeeze(-1)
    read = torch.matmul(block.B[..., None, :], g).squeeze(-2)  # (1, N) (N, e) -> (Q, b, K, e)
    through = a.mul_(g)  # gradient of dt A: (Q, b, K, N, e)
    through[1:] *= h[:-1]
    through[0] *= 0 if before is None else before
    grad_dt = block.x * read + torch.mul(through, block.A, out=g).sum(-2)  # (Q, b, K, e)
    grad_A = through.mul_(block.dt[..., None, :]).sum((0, 1, 2)).T  # (e, N)
    return read * block.dt, grad_dt * torch.sigmoid(block.raw), grad_A, grad_B, grad_C, grad_state


def _plan(x, size, chunk_size):
    """Return tiles (rows, channels), each read from front to back, and spans (first token, chunks, chunk length)."""
    batch, tokens, channels = x.shape
    elements = CPU_STEP_ELEMENTS if x.device.type == "cpu" else DEVICE_STEP_ELEMENTS
    wide = min(channels, max(1, elements // size))
    rows = min(batch, max(1, elements // (channels * size)))
    tiles = [
        (slice(row, min(row + rows, batch)), slice(channel, min(channel + wide, channels)))
        for row in range(0, batch, rows)
        for channel in range(0, channels, wide)
    ]
    length = min(chunk_size, tokens)
    full, rest = divmod(tokens, length)
    chunks = min(full, max(1, elements // (rows * wide * size)))
    spans = [(k * length, min(chunks, full - k), length) for k in range(0, full, chunks)]
    if rest:
        spans.append((full * length, 1, rest))
    return tiles, spans


def _check_shapes(x, delta, A, B, C, D, delta_bias):
    """Raise ValueError where the shapes of a scan's inputs do not fit together."""
    if x.dim() != 3 or x.shape[1] < 1 or A.dim() != 2:
        raise ValueError(f"x {tuple(x.shape)} must be (B, T, E) with T >= 1, and A {tuple(A.shape)} (E, N)")
    (batch, tokens, channels), size = x.shape, A.shape[1]
    read = (batch, tokens, size)
    expected = (tuple(x.shape), (channels, size), read, read, (channels,), (channels,))
    names = ("delta", "A", "B", "C", "D", "delta_bias")
    for name, tensor, shape in zip(names, (delta, A, B, C, D, delta_bias), expected):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)} it must be {shape}")
