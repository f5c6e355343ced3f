"""The state-space duality (SSD) scan of Mamba-2 in plain PyTorch: a slow recurrence, the truth, and fast chunks.

Not here: the Triton kernel and the causal convolution (`kernels.py`); softplus, clamp and mask of dt (the mixer).

Shapes: B batch, T tokens, H heads, P head dim, G groups, N state, Q chunk length; inside a block of chunks also
K chunks and R = H / G heads per group. Head h reads group h // R of B and C.

Glossary (Mamba-2, arXiv 2405.21060; Video-Ma2mba, arXiv 2411.19460), per head, one token t:
    papers          here
    h_t             state, (P, N): the memory, one row per channel
    A_t             exp(dt_t A), a scalar between 0 and 1: how much of the memory is kept
    B_t x_t         dt_t x_t B_t^T, (P, N): what is written
    C_t             C[t], (N,): what is read
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# Chunk length. Work per token and head grows with Q (P for the Q x Q part), state traffic falls with Q (P N / Q).
CHUNK_SIZE = 64

# Elements of one block's (K, H, Q, Q) decay: what a CPU core keeps in its own cache; what keeps a GPU busy.
CPU_BLOCK_ELEMENTS = 2**19
DEVICE_BLOCK_ELEMENTS = 2**24

# Backward recomputes states from one kept every so many tokens: N P H numbers against 512 H P of x.
TOKENS_PER_KEPT_STATE = 512


def ssd_recurrence(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the SSD scan one token at a time: slow, obvious, differentiable; every other form must equal it.

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T          h_{-1} = initial_state or 0
        y_t = h_t C_t + D x_t

    Args:
        x: (B, T, H, P), T >= 1.
        dt: (B, T, H) step sizes >= 0, after softplus and clamping; 0 at a masked token, which leaves the state alone.
        A: (H,) negative.
        B, C: (B, T, G, N), G divides H.
        D: (H,) or None.
        initial_state: (B, H, P, N) or None for zeros.

    Returns:
        y (B, T, H, P) in x's dtype and the final state (B, H, P, N), fp32 or, if any input is fp64, fp64.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check_shapes(x, dt, A, B, C, D, initial_state)
    dtype = _compute_dtype(x, dt, A, B, C, D, initial_state)
    heads_per_group = x.shape[2] // B.shape[2]
    x_, dt, A = x.to(dtype), dt.to(dtype), A.to(dtype)
    B = B.to(dtype).repeat_interleave(heads_per_group, dim=2)  # (B, T, G, N) -> (B, T, H, N)
    C = C.to(dtype).repeat_interleave(heads_per_group, dim=2)  # (B, T, G, N) -> (B, T, H, N)
    batch, tokens, heads, head_dim = x.shape
    if initial_state is None:
        state = x_.new_zeros(batch, heads, head_dim, B.shape[-1])
    else:
        state = initial_state.to(dtype)
    outputs = []
    for t in range(tokens):
        decay = torch.exp(dt[:, t] * A)[..., None, None]  # (B, H, 1, 1)
        written = (dt[:, t, :, None] * x_[:, t])[..., None] * B[:, t, :, None]  # (B, H, P, 1) * (B, H, 1, N)
        state = decay * state + written  # (B, H, P, N)
        outputs.append((state * C[:, t, :, None]).sum(-1))  # (B, H, P)
    y = torch.stack(outputs, dim=1)  # (B, T, H, P)
    if D is not None:
        y = y + D.to(dtype)[:, None] * x_
    return y.to(x.dtype), state


def ssd_chunked(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the SSD scan chunk by chunk: the function of `ssd_recurrence`, computed with matrix products.

    Differentiable once in every tensor, from y, from the final state or from both. For the backward only the inputs
    and a state every `TOKENS_PER_KEPT_STATE` tokens are kept; without gradients nothing. Autocast has no influence.

    Args:
        x, dt, A, B, C, D, initial_state: as `ssd_recurrence` takes them.
        chunk_size: tokens per chunk, >= 1. Changes speed and rounding only.

    Returns:
        As `ssd_recurrence`. All is computed in the final state's dtype, fp32 or fp64.

    Raises:
        ValueError: shapes do not fit together, or chunk_size < 1.
        RuntimeError: a second derivative is asked for.
    """
    _check_shapes(x, dt, A, B, C, D, initial_state)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: a chunk holds at least 1 token; pass chunk_size >= 1")
    tensors = (x, dt, A, B, C, D, initial_state)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _ChunkedScan.apply(*tensors, chunk_size)
    with _no_autocast(x.device):
        if x.shape[1] == 1:
            return _one_token(*tensors)
        y, final_state, _ = _scan_forward(*tensors, chunk_size, keep_states=False)
    return y, final_state


class _ChunkedScan(torch.autograd.Function):
    """Give `_scan_forward` a backward written by hand: replay the states of a segment, then go back over it.

    With l_i the sum of dt A over a chunk's tokens up to i, u = dt x, S the state before the chunk and S' after it:

        y_i = sum_{j < i} exp(l_i - l_j) (C_i . B_j) u_j + exp(l_i) S C_i + (D + dt_i C_i . B_i) x_i
        S'  = exp(l_Q) S + sum_j exp(l_Q - l_j) u_j B_j^T

    Gradients of u, B, C, D and S are the transposed products, with gS' carried from the last chunk to the first:

        gS = exp(l_Q) gS' + sum_i exp(l_i) gy_i C_i^T

    A step a_t = dt_t A scales all that passes it, from j < t or from S to i >= t or to S', and its gradient is the sum
    of that. A sum over all i >= t less one over all j >= t would be cheaper, but would drown the gradient of a step
    that forgets nearly everything in the rounding of what never crosses it.
    """

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial_state, chunk_size):
        with _no_autocast(x.device):
            y, final_state, kept = _scan_forward(x, dt, A, B, C, D, initial_state, chunk_size, keep_states=True)
        ctx.save_for_backward(x, dt, A, B, C, D, initial_state, kept)
        ctx.chunk_size = chunk_size
        ctx.set_materialize_grads(False)
        return y, final_state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_final_state):
        x, dt, A, B, C, D, initial_state, kept = ctx.saved_tensors
        if grad_y is None:
            grad_y = x.new_zeros(()).expand(x.shape)
        with _no_autocast(x.device):
            grads = _scan_backward(x, dt, A, B, C, D, initial_state, kept, grad_y, grad_final_state, ctx.chunk_size)
        inputs = (x, dt, A, B, C, D, initial_state)
        return *(g.to(t.dtype) if t is not None else None for g, t in zip(grads, inputs)), None


def _scan_forward(x, dt, A, B, C, D, initial_state, chunk_size, keep_states):
    """Return y, the final state and, where asked for, the states at the start of every segment but the first."""
    dtype = _compute_dtype(x, dt, A, B, C, D, initial_state)
    row_slices, segments = _plan(x, chunk_size)
    state_shape = (x.shape[0], *x.shape[2:], B.shape[3])  # (B, H, P, N)
    y = x.new_empty(x.shape)  # (B, T, H, P)
    final_state = x.new_empty(state_shape, dtype=dtype)
    kept = x.new_empty((len(segments) - 1, *state_shape), dtype=dtype) if keep_states else None
    for rows in row_slices:
        state = _start_state(initial_state, rows, state_shape, dtype, x.device)  # (b, H, P, N)
        for index, segment in enumerate(segments):
            if keep_states and index:
                kept[index - 1, rows] = state
            for span in segment:
                block = _Block(x, dt, A, B, C, rows, span, dtype)
                part, state = _forward_block(block, D, state)
                block.cut(y).copy_(part)
        final_state[rows] = state
    return y, final_state, kept


def _scan_backward(x, dt, A, B, C, D, initial_state, kept, grad_y, grad_final_state, chunk_size):
    """Return the gradients of x, dt, A, B, C, D and the initial state in the compute dtype."""
    dtype = _compute_dtype(x, dt, A, B, C, D, initial_state)
    row_slices, segments = _plan(x, chunk_size)
    state_shape = (x.shape[0], *x.shape[2:], B.shape[3])  # (B, H, P, N)
    grad_tokens = [torch.empty_like(t, dtype=t.dtype, memory_format=torch.contiguous_format) for t in (x, dt, B, C)]
    grad_A, grad_D = x.new_zeros(2, *A.shape, dtype=dtype)  # (H,) each
    grad_initial = x.new_empty(state_shape, dtype=dtype)
    for rows in row_slices:
        grad_state = _start_state(grad_final_state, rows, state_shape, dtype, x.device)  # (b, H, P, N)
        for index in reversed(range(len(segments))):
            state = kept[index - 1, rows] if index else _start_state(initial_state, rows, state_shape, dtype, x.device)
            replayed = []
            for span in segments[index]:
                block = _Block(x, dt, A, B, C, rows, span, dtype)
                replayed.append((block, block.states(state)))
                state = replayed[-1][1][-1]
            while replayed:
                block, states = replayed.pop()
                *parts, block_A, block_D, grad_state = _backward_block(block, D, states, grad_y, grad_state)
                for grad, part in zip(grad_tokens, parts):
                    block.cut(grad).copy_(part)
                grad_A += block_A
                grad_D += block_D
        grad_initial[rows] = grad_state
    grad_x, grad_dt, grad_B, grad_C = grad_tokens
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_initial


class _Block:
    """K whole chunks of Q tokens of some rows, in the compute dtype, with what both directions need of them.

    b is the number of those rows, m = b K G; values per token are laid out (b, K, G, Q, R, P).
    """

    def __init__(self, x, dt, A, B, C, rows, span, dtype):
        self.rows, (self.start, self.chunks, self.length) = rows, span
        groups, size = B.shape[2:]
        self.x = self.load(x, groups, dtype)  # (b, K, G, Q, R, P)
        self.dt = self.load(dt, groups, dtype)  # (b, K, G, Q, R)
        self.A = A.to(dtype).view(groups, 1, -1)  # (G, 1, R)
        self.B = self.load(B, groups, dtype).reshape(-1, self.length, size)  # (m, Q, N)
        self.C = self.load(C, groups, dtype).reshape(-1, self.length, size)  # (m, Q, N)
        # Decays below exp(limit) are exactly 0: subnormal numbers are many times slower in every product. A step below
        # the floor has decay 0 in any case.
        floor = math.log(torch.finfo(dtype).tiny)
        self.limit = 0.75 * floor
        steps = self.dt * self.A  # (b, K, G, Q, R)
        self.alive = steps > floor  # (b, K, G, Q, R)
        # Log decay from the chunk's start, as coarse + fine: on this grid the coarse sums and their differences are
        # exact, so a difference of two long sums is as precise as a short sum.
        grid = torch.finfo(dtype).eps * 2.0 ** math.ceil(math.log2(-floor * self.length))
        coarse = (steps.clamp_min_(floor) / grid).round_().mul_(grid)  # (b, K, G, Q, R)
        self.coarse, self.fine = coarse.cumsum(3), steps.sub_(coarse).cumsum(3)  # (b, K, G, Q, R)
        self.from_start = self.exp_(self.coarse + self.fine)  # (b, K, G, Q, R)
        coarse, fine = (t[:, :, :, -1:] - t for t in (self.coarse, self.fine))
        self.to_end = self.exp_(coarse + fine)  # (b, K, G, Q, R)
        self.whole = self.from_start[:, :, :, -1, :, None]  # (b, K, G, R, 1)
        self.u = self.x * self.dt[..., None]  # (b, K, G, Q, R, P)

    def cut(self, t):
        """View this block's part of t: (B, T, ...) -> (b, K, Q, ...)."""
        tokens = slice(self.start, self.start + self.chunks * self.length)
        return t[self.rows, tokens].unflatten(1, (self.chunks, self.length))

    def load(self, t, groups, dtype):
        """Read this block's part of t: (B, T, G R, ...) -> (b, K, G, Q, R, ...)."""
        return self.cut(t).to(dtype).unflatten(3, (groups, -1)).transpose(2, 3)

    def exp_(self, log_decay):
        """Turn log decays into decays in place."""
        return F.threshold_(log_decay, self.limit, -torch.inf).exp_()

    def wide(self, t):
        """Lay out token values as one matrix per chunk and group: (b, K, G, Q, R, P) -> (m, Q, R P)."""
        return t.flatten(4).reshape(-1, self.length, t.shape[4] * t.shape[5])

    def tall(self, t):
        """Lay out token values as one matrix per chunk and head: (b, K, G, Q, R, P) -> (m R, Q, P)."""
        return t.transpose(3, 4).reshape(-1, self.length, t.shape[5])

    def from_tall(self, t):
        """Undo `tall`: (m R, Q, P) -> (b, K, G, Q, R, P)."""
        return t.view(*self.x.shape[:3], -1, self.length, t.shape[2]).transpose(3, 4)

    def per_chunk(self, states):
        """Lay out K states as one matrix per chunk and group: K x (b, H, P, N) -> (m, R P, N)."""
        stacked = states[0][:, None] if len(states) == 1 else torch.stack(states, 1)  # (b, K, H, P, N)
        return stacked.reshape(self.B.shape[0], -1, self.B.shape[2])

    def written(self):
        """Return what a chunk's tokens write, decayed to its end, as vectors: (m, Q, R P)."""
        return self.wide(self.u * self.to_end[..., None])

    def states(self, state):
        """Return the K + 1 states at the chunk limits, from the first one on; each (b, H, P, N)."""
        added = torch.bmm(self.written().mT, self.B)  # (m, R P, Q) (m, Q, N) -> (m, R P, N)
        return self.pass_on(added, state, range(self.chunks))

    def pass_on(self, added, state, order):
        """Carry a state, or a state's gradient in reverse order, over the chunks; each of the result (b, H, P, N)."""
        added = added.view(state.shape[0], self.chunks, state.shape[1], -1)  # (b, K, H, P N)
        whole = self.whole.flatten(2, 3)  # (b, K, H, 1)
        carried = [state]
        for k in order:
            carried.append(torch.addcmul(added[:, k], whole[:, k], carried[-1].flatten(2)).view_as(state))
        return carried

    def mixing(self):
        """Return decay exp(l_i - l_j), j < i, else 0, (m, R, Q, Q), and scores C_i . B_j, (m, Q, Q)."""
        coarse, fine = (t.transpose(3, 4).flatten(0, 2) for t in (self.coarse, self.fine))  # (m, R, Q)
        decay = coarse[..., :, None] - coarse[..., None, :]  # (m, R, Q, Q)
        decay.add_(fine[..., :, None]).sub_(fine[..., None, :])
        # -inf before exp: above the diagonal exp alone could overflow, and inf * 0 is NaN.
        decay += torch.full_like(decay[0, 0], -torch.inf).triu_()  # (Q, Q)
        return self.exp_(decay), torch.bmm(self.C, self.B.mT)

    def far(self, states):
        """Return what the state gives to y, before its decay: K states (b, H, P, N) -> (m, Q, R P)."""
        return torch.bmm(self.C, self.per_chunk(states).mT)  # (m, Q, N) (m, N, R P)

    def skip(self, D, scores):
        """Return the factor from x to y of the same token, D + dt_i C_i . B_i: (b, K, G, Q, R)."""
        own = scores.diagonal(dim1=1, dim2=2).view(*self.x.shape[:4], 1) * self.dt  # (b, K, G, Q, R)
        return own if D is None else own + D.to(own.dtype).view(1, 1, own.shape[2], 1, -1)


def _forward_block(block, D, state):
    """Return y of a block, (b, K, Q, H, P), and the state after it, (b, H, P, N)."""
    states = block.states(state)
    decay, scores = block.mixing()  # (m, R, Q, Q), (m, Q, Q)
    y = block.far(states[:-1]).view(block.x.shape).mul_(block.from_start[..., None])  # (b, K, G, Q, R, P)
    y += block.from_tall(torch.bmm(decay.mul_(scores[:, None]).flatten(0, 1), block.tall(block.u)))
    y.addcmul_(block.skip(D, scores)[..., None], block.x)
    return y.transpose(2, 3).flatten(3, 4), states[-1]


def _backward_block(block, D, states, grad_y, grad_state):
    """Return a block's gradients of x, dt, B, C, A, D and of the state before it, see `_ChunkedScan`."""
    x, dt, shape = block.x, block.dt, block.x.shape
    grad_y = block.load(grad_y, shape[2], x.dtype)  # (b, K, G, Q, R, P)

    # 1. State gradients, last chunk first: each chunk's own reads, plus what comes from later chunks.
    reads, written = block.wide(grad_y * block.from_start[..., None]), block.written()  # (m, Q, R P) each
    read_states = torch.bmm(reads.mT, block.C)  # (m, R P, Q) (m, Q, N) -> (m, R P, N)
    *ends, grad_state = block.pass_on(read_states, grad_state, reversed(range(block.chunks)))  # each (b, H, P, N)
    ends.reverse()  # K x (b, H, P, N): gradient of the state after chunk k
    grad_ends = block.per_chunk(ends)  # (m, R P, N)
    grad_written = torch.bmm(block.B, grad_ends.mT)  # (m, Q, N) (m, N, R P) -> (m, Q, R P)
    grad_B = torch.bmm(written, grad_ends)  # (m, Q, N)
    grad_C = torch.bmm(reads, block.per_chunk(states[:-1]))  # (m, Q, N)

    # 2. Log decay of what crosses the chunk's limits: into it, out of it, right through it.
    into = (reads * block.far(states[:-1])).view(shape).sum(-1)  # (b, K, G, Q, R), read at i >= t
    out = (written * grad_written).view(shape).sum(-1)  # (b, K, G, Q, R), written at j < t
    through = torch.stack([(before * end).sum((2, 3)) for before, end in zip(states, ends)], 1)  # (b, K, H)
    grad_steps = into.flip(3).cumsum(3).flip(3) + through.view(*shape[:3], 1, -1) * block.whole.transpose(3, 4)
    grad_steps[:, :, :, 1:] += out[:, :, :, :-1].cumsum(3)

    # 3. Within the chunk, j < i.
    decay, scores = block.mixing()  # (m, R, Q, Q), (m, Q, Q)
    tall_grad = block.tall(grad_y)  # (m R, Q, P)
    grad_mixed = torch.bmm(tall_grad, block.tall(block.u).mT).view_as(decay).mul_(decay)  # (m, R, Q, Q)
    grad_scores = grad_mixed.sum(1)  # (m, Q, Q)
    grad_u = grad_written.view(shape).mul_(block.to_end[..., None])  # (b, K, G, Q, R, P)
    grad_u += block.from_tall(torch.bmm(decay.mul_(scores[:, None]).flatten(0, 1).mT, tall_grad))
    later = torch.ones_like(scores[0]).triu_(1)  # (Q, Q), 1 where j < t
    crossing = (grad_mixed.mul_(scores[:, None]) @ later).mul_(1 - later)  # (m, R, Q, Q): i, t of all j < t <= i
    grad_steps += crossing.sum(2).view(*shape[:3], shape[4], -1).transpose(3, 4)

    # 4. The token itself, j = i.
    grad_skip = (grad_y * x).sum(-1)  # (b, K, G, Q, R)
    grad_scores.diagonal(dim1=1, dim2=2).add_((grad_skip * dt).sum(-1).flatten(0, 2))  # (m, Q)
    grad_C.baddbmm_(grad_scores, block.B)
    grad_B.baddbmm_(grad_scores.mT, block.C)
    grad_x = torch.addcmul(grad_u * dt[..., None], grad_y, block.skip(D, scores)[..., None])

    # 5. dt through the step a = dt A, through u = dt x, and through the token itself.
    grad_steps *= block.alive  # (b, K, G, Q, R)
    diagonal = scores.diagonal(dim1=1, dim2=2).view(*shape[:4], 1)  # (b, K, G, Q, 1)
    grad_dt = (grad_u * x).sum(-1) + diagonal * grad_skip + grad_steps * block.A
    grad_A = (grad_steps * dt).sum((0, 1, 3)).flatten()  # (H,)
    grad_D = grad_skip.sum((0, 1, 3)).flatten()  # (H,)
    tokens = (
        grad_x.transpose(2, 3).flatten(3, 4),  # (b, K, Q, H, P)
        grad_dt.transpose(2, 3).flatten(3, 4),  # (b, K, Q, H)
        grad_B.view(*shape[:4], -1).transpose(2, 3),  # (b, K, Q, G, N)
        grad_C.view(*shape[:4], -1).transpose(2, 3),  # (b, K, Q, G, N)
    )
    return *tokens, grad_A, grad_D, grad_state


def _one_token(x, dt, A, B, C, D, initial_state):
    """Take one step of the recurrence, for decoding."""
    dtype = _compute_dtype(x, dt, A, B, C, D, initial_state)
    batch, _, heads, head_dim = x.shape
    groups, size = B.shape[2:]
    own, step = x[:, 0].to(dtype), dt[:, 0].to(dtype)  # (B, H, P), (B, H)
    decay = torch.exp(step * A.to(dtype))[..., None, None]  # (B, H, 1, 1)
    state = _start_state(initial_state, slice(0, batch), (batch, heads, head_dim, size), dtype, x.device) * decay
    vectors = (own * step[..., None]).view(batch, groups, -1, 1)  # (B, G, R P, 1)
    read, write = C.to(dtype).view(batch, groups, size, 1), B.to(dtype).view(batch, groups, 1, size)
    state = state.view(batch, groups, -1, size).addcmul_(vectors, write)  # (B, G, R P, N)
    y = torch.matmul(state, read).view(batch, 1, heads, head_dim)  # (B, G, R P, 1) -> (B, 1, H, P)
    if D is not None:
        y = y + D.to(dtype)[:, None] * own[:, None]
    return y.to(x.dtype), state.view(batch, heads, head_dim, size)


def workspace_tokens(batch: int, heads: int, device: torch.device) -> int:
    """Return from how many tokens of each row on the workspace of `ssd_chunked` stays the same."""
    elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    rows = min(batch, max(1, elements // (heads * CHUNK_SIZE**2)))
    return max(TOKENS_PER_KEPT_STATE, elements // (heads * CHUNK_SIZE * rows))


def _plan(x, chunk_size):
    """Return slices of rows, and segments: lists of (first token, chunks, chunk length), in order of tokens."""
    batch, tokens, heads, _ = x.shape
    length = min(chunk_size, tokens)
    elements = CPU_BLOCK_ELEMENTS if x.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    fitting = max(1, elements // (heads * length * length))  # chunks, over all rows
    rows = min(batch, fitting)
    row_slices = [slice(first, min(first + rows, batch)) for first in range(0, batch, rows)]
    full, rest = divmod(tokens, length)
    chunks = min(full, max(1, fitting // rows))
    blocks = [(k * length, min(chunks, full - k), length) for k in range(0, full, chunks)]
    per_segment = max(1, TOKENS_PER_KEPT_STATE // (chunks * length))
    segments = [blocks[k : k + per_segment] for k in range(0, len(blocks), per_segment)]
    if rest:
        segments[-1].append((full * length, 1, rest))
    return row_slices, segments


def _start_state(state, rows, shape, dtype, device):
    """Return some rows of a (B, H, P, N) state in the compute dtype; zeros where there is none."""
    if state is None:
        return torch.zeros((rows.stop - rows.start, *shape[1:]), dtype=dtype, device=device)
    return state[rows].to(dtype)


def _compute_dtype(*tensors):
    """Return the widest dtype among the tensors that are given, at least fp32."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _no_autocast(device):
    """Return a context without autocast: the dtypes here are chosen one by one."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _check_shapes(x, dt, A, B, C, D, initial_state):
    """Raise ValueError where the shapes of a scan's inputs do not fit together."""
    if x.dim() != 4 or B.dim() != 4:
        raise ValueError(
            f"x {tuple(x.shape)} must be (B, T, H, P) and B {tuple(B.shape)} (B, T, G, N); add the missing axes"
        )
    batch, tokens, heads, head_dim = x.shape
    groups, size = B.shape[2:]
    if tokens < 1 or groups < 1 or heads % groups:
        raise ValueError(
            f"{tokens} tokens, {heads} heads, {groups} groups: pass at least 1 token, and groups that divide heads"
        )
    states, tokens_of = (batch, heads, head_dim, size), (batch, tokens, groups, size)
    expected = ((batch, tokens, heads), (heads,), tokens_of, tokens_of, (heads,), states)
    for name, tensor, shape in zip(
        ("dt", "A", "B", "C", "D", "initial_state"), (dt, A, B, C, D, initial_state), expected
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)} it must be {shape}")
