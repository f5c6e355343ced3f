"""RMSNorm, plain and gated, that keeps only its inputs for the backward: no wide copies, nothing in between."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .kernels import at_least_fp32, token_pieces


class Ma2mbaRMSNorm(nn.Module):
    """RMSNorm over groups of the last dimension, optionally of `x * silu(gate)`; statistics in fp32 or better."""

    def __init__(self, width: int, eps: float, n_groups: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.n_groups = n_groups

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise `x` (..., width); return it in the dtype of the weight."""
        return rms_norm(x, self.weight, self.eps, self.n_groups, gate)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    n_groups: int = 1,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `weight * v / sqrt(mean(v * v) + eps)` with v = x, or x * silu(gate); a mean over each of the groups.

    Differentiable once, in x, gate and weight.

    Args:
        x: (..., width), any floating dtype; all is computed in fp32, or fp64 if x is.
        weight: (width,). gate: as x, or None.

    Returns:
        (..., width) in weight's dtype.

    Raises:
        RuntimeError: a second derivative is asked for.
    """
    tensors = (x, gate, weight)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _RMSNorm.apply(*tensors, eps, n_groups)
    return _norm(*tensors, eps, n_groups)[0]


class _RMSNorm(torch.autograd.Function):
    """Keep x, gate, weight and one number per group, and go through the norm again in the backward.

    With v = x silu(gate), r = 1 / sqrt(mean(v v) + eps), n = v r and g = gy weight:

        gv = r (g - n mean(g n))        gx = gv silu(gate)        ggate = gv x silu'(gate)        gweight = sum gy n
    """

    @staticmethod
    def forward(ctx, x, gate, weight, eps, n_groups):
        y, rstd = _norm(x, gate, weight, eps, n_groups)
        ctx.save_for_backward(x, gate, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, gate, weight, rstd = ctx.saved_tensors
        need_x, need_gate, need_weight = ctx.needs_input_grad[:3]
        shape, dtype, n_groups = x.shape, rstd.dtype, rstd.shape[1]
        x, gate, grad_y = _rows(x), _rows(gate), _rows(grad_y)
        scale = weight.to(dtype)
        grad_x = x.new_empty(shape) if need_x else None
        grad_gate = gate.new_empty(shape) if need_gate else None
        grad_weight = torch.zeros_like(scale) if need_weight else None
        for piece in token_pieces(*x.shape, x.device):
            own, grad = x[piece].to(dtype), grad_y[piece].to(dtype)  # (M, width)
            if gate is None:
                n = _times(own, rstd[piece])
            else:
                z = gate[piece].to(dtype)
                silu = F.silu(z)
                n = _times(silu * own, rstd[piece])
            product = grad * n
            if need_weight:
                grad_weight += product.sum(0)
            if not (need_x or need_gate):
                continue
            mean = product.mul_(scale).unflatten(-1, (n_groups, -1)).mean(-1, keepdim=True)  # (M, G, 1)
            grad_v = _times(_times(n, mean.neg_()).addcmul_(grad, scale), rstd[piece])
            if need_x:
                _rows(grad_x)[piece] = grad_v if gate is None else silu.mul_(grad_v)
            if need_gate:
                _rows(grad_gate)[piece] = torch.ops.aten.silu_backward(grad_v.mul_(own), z)
        if need_weight:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_x, grad_gate, grad_weight, None, None


def _norm(x, gate, weight, eps, n_groups):
    """Return the norm of x (..., width) and 1 / root mean square of the groups of its M rows, (M, G, 1)."""
    pieces = token_pieces(x.numel() // x.shape[-1], x.shape[-1], x.device)
    if len(pieces) == 1:
        return _norm_piece(x, gate, weight, eps, n_groups)
    y = x.new_empty(x.shape, dtype=weight.dtype)
    x, gate, rows = _rows(x), _rows(gate), _rows(y)
    rstd = x.new_empty((x.shape[0], n_groups, 1), dtype=at_least_fp32(x.dtype))
    for piece in pieces:
        gate_piece = None if gate is None else gate[piece]
        rows[piece], rstd[piece] = _norm_piece(x[piece], gate_piece, weight, eps, n_groups)
    return y, rstd


def _norm_piece(x, gate, weight, eps, n_groups):
    """Compute `_norm` of few enough tokens."""
    v = x.to(at_least_fp32(x.dtype))
    if gate is not None:
        v = F.silu(gate.to(v.dtype)).mul_(v)
    groups = v.unflatten(-1, (n_groups, -1))  # (..., G, width / G)
    rstd = torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)  # (..., G, 1)
    return weight * (groups * rstd).flatten(-2).to(weight.dtype), rstd.view(-1, n_groups, 1)


def _rows(t):
    """View (..., width) as (M, width)."""
    return None if t is None else t.reshape(-1, t.shape[-1])


def _times(v, factors):
    """Multiply v (M, width) by one factor per group, (M, G, 1)."""
    return (v.unflatten(-1, (factors.shape[1], -1)) * factors).flatten(-2)
