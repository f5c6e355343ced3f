"""Choose who runs scan and causal convolution: PyTorch, or the optional kernels of mamba-ssm and causal-conv1d.

Not here: the scans (`ssd.py`, `selective_scan.py`) and the splitting of long work into segments (the model).

Shapes: B batch, T tokens, H heads, P head dim, G groups, N state, C channels of the convolution, W its width, E
channels of the selective scan.
"""

import functools
import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .selective_scan import selective_scan_chunked
from .ssd import ssd_chunked

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "triton")

# The kernels compute offsets in 32 bits and return wrong numbers beyond (state-spaces/mamba issue 1015).
MAX_OFFSET = 2**31 - 1

# The CUDA selective scan's widest state, and the tokens of one of its chunks.
MAX_SELECTIVE_STATE = 256
_SELECTIVE_CHUNK = 2048

# Numbers of one piece of convolution or norm: what a CPU core keeps in its own cache; what keeps a GPU busy.
CPU_PIECE_ELEMENTS = 2**17
DEVICE_PIECE_ELEMENTS = 2**24

_SCAN_INSTALL = 'install it with `pip install --no-build-isolation "mamba-ssm>=2.3"` or pass backend="torch"'
_CONV_INSTALL = 'install it with `pip install --no-build-isolation "causal-conv1d>=1.5"` or pass backend="torch"'


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Who runs what: scan is "torch", "triton" (SSD) or "cuda" (selective scan), conv is "torch" or "causal_conv1d".

    reason: why.

    recompute: keep only the projection and the states for the backward; convolution, scan and gated norm run again
    there.
    """

    scan: str
    conv: str
    reason: str
    recompute: bool = False


@functools.cache
def load_scan_kernel() -> Callable | str:
    """Import mamba-ssm's `mamba_chunk_scan_combined` once; return it, or the reason why it cannot be had."""
    name = "mamba_ssm.ops.triton.ssd_combined"
    try:
        spec = importlib.util.find_spec("mamba_ssm")
        if spec is None:
            return "mamba-ssm is not installed"
        before = set(sys.modules)
        try:
            importlib.import_module("mamba_ssm")
            return _with_wide_state_gradients(importlib.import_module(name))
        except Exception:  # a compiled package raises anything: what it is matters only if the next way fails, too
            _forget_modules(before)
        # The package's __init__ needs compiled parts, the SSD kernel does not: import the module without it. Then take
        # all of it out of sys.modules again, or others would find half a package: transformers looks for mamba_ssm
        # when its Mamba-2 file is imported, and would call Triton kernels on a CPU. The function keeps its modules.
        package = types.ModuleType("mamba_ssm")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["mamba_ssm"] = package
        try:
            return _with_wide_state_gradients(importlib.import_module(name))
        finally:
            _forget_modules(before)
    except Exception as error:
        return f"mamba-ssm is installed, but its scan kernel cannot be imported ({type(error).__name__}: {error})"


def _with_wide_state_gradients(module: types.ModuleType) -> Callable:
    """Return mamba-ssm's scan with the gradient of the initial state in fp32 for 16-bit x, too.

    Its backward allocates that gradient, like those of the states between chunks, in x's dtype, though the kernel
    computes it in fp32. It crosses every segment's border in training, so it must not be rounded there. The kernels
    convert these states where they load them, so wider ones need nothing else.
    """
    pass_back = module._state_passing_bwd

    @functools.wraps(pass_back)
    def pass_back_wide(*args, has_initial_states=None, dstates_dtype=None, **kwargs):
        if has_initial_states:
            dstates_dtype = torch.float32
        return pass_back(*args, has_initial_states=has_initial_states, dstates_dtype=dstates_dtype, **kwargs)

    if not hasattr(pass_back, "__wrapped__"):
        module._state_passing_bwd = pass_back_wide
    return module.mamba_chunk_scan_combined


@functools.cache
def load_conv_kernel() -> Callable | str:
    """Import causal-conv1d's `causal_conv1d_fn` once; return it, or the reason why it cannot be had."""
    try:
        if importlib.util.find_spec("causal_conv1d") is None:
            return "causal-conv1d is not installed"
        return importlib.import_module("causal_conv1d").causal_conv1d_fn
    except Exception as error:
        return f"causal-conv1d is installed, but cannot be imported ({type(error).__name__}: {error})"


@functools.cache
def load_selective_scan_kernel() -> Callable | str:
    """Import mamba-ssm's `selective_scan_fn` (Mamba-1, CUDA) once; return it, or the reason why it cannot be had."""
    before = set(sys.modules)
    try:
        if importlib.util.find_spec("mamba_ssm") is None:
            return "mamba-ssm is not installed"
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except Exception as error:
        _forget_modules(before)
        return f"mamba-ssm is installed, but its selective scan cannot be imported ({type(error).__name__}: {error})"


def choose_backend(requested: str, device: torch.device, dtype: torch.dtype, scan: str = "ssd") -> Backend:
    """Return who runs the scan and the convolution on this device in this dtype.

    "triton" names mamba-ssm's scan; the convolution then takes causal-conv1d if it is there, else PyTorch; `reason`
    says so. "auto" is "triton" on a CUDA device where that is possible, else "torch"; it logs its choice once per
    device type.

    Args:
        scan: which one is wanted: "ssd" (Mamba-2), or "selective" (Mamba-1, whose kernel is CUDA and not Triton).

    Raises:
        ValueError: requested is not one of `BACKENDS`.
        ImportError: "triton" and mamba-ssm's kernel is missing.
        RuntimeError: "triton" and the device is not CUDA, or the dtype is wider than float32.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend={requested!r}; allowed are {', '.join(map(repr, BACKENDS))}")
    if requested == "torch":
        return Backend(scan="torch", conv="torch", reason="torch was asked for")
    obstacle, error = None, RuntimeError
    if torch.device(device).type != "cuda":
        obstacle = (
            f'the Triton kernels need a CUDA device, not "{device}"; move the model to one or pass backend="torch"'
        )
    elif dtype not in (torch.float32, torch.bfloat16, torch.float16):
        obstacle = (
            f'the Triton kernels take float32, bfloat16 or float16, not {dtype}; convert or pass backend="torch"'
        )
    elif isinstance(kernel := load_scan_kernel() if scan == "ssd" else load_selective_scan_kernel(), str):
        obstacle, error = f"{kernel}; {_SCAN_INSTALL}", ImportError
    if requested == "triton" and obstacle:
        raise error(f'backend="triton" cannot be used: {obstacle}')
    if obstacle:
        backend = Backend(scan="torch", conv="torch", reason=obstacle)
    else:
        conv = load_conv_kernel()
        language = "triton" if scan == "ssd" else "cuda"
        if isinstance(conv, str):
            backend = Backend(scan=language, conv="torch", reason=f"the scan kernel is there; {conv}")
        else:
            backend = Backend(scan=language, conv="causal_conv1d", reason="both kernels are there")
    _log_once(requested, torch.device(device).type, backend, scan)
    return backend


@functools.cache
def _log_once(requested, device_type, backend, scan):
    """Log a choice the first time it is made for a device type."""
    logger.info(
        "backend=%r on %s: %s scan by %s, convolution by %s (%s)",
        requested,
        device_type,
        scan,
        backend.scan,
        backend.conv,
        backend.reason,
    )


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    backend: Backend,
    chunk_size: int = 256,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the SSD scan on the chosen backend.

    One token without gradients is one step of the recurrence in PyTorch on every backend.

    Args:
        x: (B, T, H, P). dt: (B, T, H), after softplus, 0 at masked tokens. A: (H,), negative. B, C: (B, T, G, N).
        D: (H,) or None. initial_state: (B, H, P, N) or None.
        chunk_size: the Triton kernel's chunk length; `ssd_chunked` has its own.

    Returns:
        y (B, T, H, P) in x's dtype and the final state (B, H, P, N) in fp32 or wider, as is the gradient of
        initial_state.

    Raises:
        ImportError: the backend's kernel is missing.
        ValueError: the work is longer than the kernel's 32-bit offsets reach, or float64 meets the Triton kernel.
    """
    batch, tokens, heads, head_dim = x.shape
    if backend.scan == "torch" or (tokens == 1 and not torch.is_grad_enabled()):
        return ssd_chunked(x, dt, A, B, C, D, initial_state)
    if x.dtype == torch.float64:
        raise ValueError('x is float64 and the Triton scan computes in float32; convert x or pass backend="torch"')
    stride = max(heads * head_dim, *(t.stride(1) for t in (x, dt, B, C)))
    _check_length("the Triton scan", tokens, safe_tokens(stride, batch))
    chunks = safe_tokens(heads * head_dim * B.shape[-1], batch)
    _check_length("the Triton scan's chunk states", tokens, chunks * chunk_size)
    kernel = load_scan_kernel()
    if isinstance(kernel, str):
        raise ImportError(f"{kernel}; {_SCAN_INSTALL}")
    return kernel(x, dt, A, B, C, chunk_size, D=D, initial_states=initial_state, return_final_states=True)


def selective_scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    delta_bias: torch.Tensor,
    backend: Backend,
) -> torch.Tensor:
    """Run the selective scan of Mamba-1 on the chosen backend.

    Args:
        x: (B, T, E). delta: (B, T, E), before softplus. A: (E, N), negative, fp32. B, C: (B, T, N).
        D, delta_bias: (E,), fp32.

    Returns:
        y (B, T, E) in x's dtype; all is computed in fp32 or wider.

    Raises:
        ImportError: the backend's kernel is missing.
        ValueError: the work is longer than the kernel's 32-bit offsets reach, the state is wider than it takes, or
            float64 meets it.
    """
    if backend.scan == "torch":
        return selective_scan_chunked(x, delta, A, B, C, D, delta_bias)
    if x.dtype == torch.float64:
        raise ValueError('x is float64 and the CUDA scan computes in float32; convert x or pass backend="torch"')
    (batch, tokens, channels), size = x.shape, A.shape[1]
    if size > MAX_SELECTIVE_STATE:
        raise ValueError(f'a state of {size}; the CUDA scan takes at most {MAX_SELECTIVE_STATE}: pass backend="torch"')
    if batch > selective_scan_rows(tokens, channels, size):
        raise ValueError(
            f"{batch} rows of {tokens} tokens in one call of the CUDA scan; its 32-bit offsets reach "
            f'{selective_scan_rows(tokens, channels, size)} rows: pass fewer, or backend="torch"'
        )
    kernel = load_selective_scan_kernel()
    if isinstance(kernel, str):
        raise ImportError(f"{kernel}; {_SCAN_INSTALL}")
    # The kernel reads tokens innermost, and B and C in x's dtype: (B, T, c) -> (B, c, T).
    x, delta, B, C = (t.to(x.dtype).mT.contiguous() for t in (x, delta, B, C))
    return kernel(x, delta, A.float(), B, C, D.float(), delta_bias=delta_bias.float(), delta_softplus=True).mT


def selective_scan_rows(tokens: int, channels: int, state_size: int) -> int:
    """Return the most rows of `tokens` that a mixer may give the kernels at once; 0 where even one is too long."""
    projected = 2 * channels * tokens  # x and gate, of which the kernels read one half
    kept = 2 * channels * state_size * -(-tokens // _SELECTIVE_CHUNK)  # states and decays at the end of each chunk
    return MAX_OFFSET // max(projected, kept)


def causal_conv(
    xBC: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_state: torch.Tensor,
    backend: Backend,
) -> torch.Tensor:
    """Return silu of the depthwise causal convolution over what came before and xBC.

    Args:
        xBC: (B, T, C), any T >= 1.
        weight: (C, 1, W) or (C, W); the last tap is the token's own. bias: (C,) or None.
        conv_state: (B, W-1, C), the W-1 inputs before xBC; zeros at a sequence's start.

    Returns:
        (B, T, C) in xBC's dtype, computed in fp32 or wider. Differentiable once where PyTorch runs it; for the
        backward only the inputs are kept.

    Raises:
        ImportError: the backend's kernel is missing.
        ValueError: shapes do not fit, or the work is longer than the kernel's 32-bit offsets reach.
    """
    batch, tokens, channels = xBC.shape
    width = weight.shape[-1]
    if weight.numel() != channels * width or tuple(conv_state.shape) != (batch, width - 1, channels):
        raise ValueError(
            f"xBC {tuple(xBC.shape)}, weight {tuple(weight.shape)}, conv_state {tuple(conv_state.shape)}: "
            f"weight must be ({channels}, 1, W) or ({channels}, W) and conv_state ({batch}, W - 1, {channels})"
        )
    weight = weight.reshape(channels, width)  # (C, 1, W) -> (C, W)
    if backend.conv == "torch":
        tensors = (xBC, weight, bias, conv_state)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            return _TorchConv.apply(*tensors)
        return _torch_conv(*tensors)
    _check_length("causal-conv1d", tokens, safe_tokens(max(channels, xBC.stride(1)), batch))
    kernel = load_conv_kernel()
    if isinstance(kernel, str):
        raise ImportError(f"{kernel}; {_CONV_INSTALL}")
    # Incoming states need channel-last memory whose other strides are multiples of 8.
    if xBC.stride(2) != 1 or xBC.stride(1) % 8 or xBC.stride(0) % 8:
        xBC = xBC.contiguous()
    states = conv_state.to(xBC.dtype).contiguous()
    u = kernel(xBC.mT, weight, bias, initial_states=states.mT, activation="silu")  # (B, C, T)
    return u.mT


class _TorchConv(torch.autograd.Function):
    """Keep the inputs alone, and add them up again in the backward."""

    @staticmethod
    def forward(ctx, xBC, weight, bias, conv_state):
        ctx.save_for_backward(xBC, weight, bias, conv_state)
        return _torch_conv(xBC, weight, bias, conv_state)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_u):
        xBC, weight, bias, conv_state = ctx.saved_tensors
        need_xBC, need_weight, need_bias, need_state = ctx.needs_input_grad
        batch, tokens, channels = xBC.shape
        taps, offset = _taps(weight, bias, at_least_fp32(xBC.dtype))  # (W, C), (C,)
        grad_xBC = xBC.new_empty(xBC.shape) if need_xBC else None
        grad_taps = torch.zeros_like(taps) if need_weight else None
        grad_bias = torch.zeros_like(taps[0]) if need_bias else None
        # From the last piece to the first: the inputs before a piece, W-1 of them, have more gradient to come.
        before = torch.zeros_like(conv_state, dtype=taps.dtype)  # (B, W-1, C)
        for piece in reversed(token_pieces(tokens, batch * channels, xBC.device)):
            inputs = _conv_inputs(xBC, conv_state, piece, taps.dtype)  # (B, W-1+M, C)
            grad = grad_u[:, piece].to(taps.dtype)  # (B, M, C)
            grad = torch.ops.aten.silu_backward(grad, _add_up(inputs, taps, offset))
            length = grad.shape[1]
            if need_bias:
                grad_bias += grad.sum((0, 1))
            if need_weight:
                for k in range(len(taps)):
                    grad_taps[k] += (grad * inputs[:, k : k + length]).sum((0, 1))
            if need_xBC or need_state:
                grad_inputs = torch.zeros_like(inputs)  # (B, W-1+M, C)
                grad_inputs[:, length:] = before
                for k in range(len(taps)):
                    grad_inputs[:, k : k + length].addcmul_(grad, taps[k])
                before, own = grad_inputs.split([len(taps) - 1, length], dim=1)
                if need_xBC:
                    grad_xBC[:, piece] = own
        return (
            grad_xBC,
            grad_taps.t().to(weight.dtype) if need_weight else None,
            grad_bias.to(bias.dtype) if need_bias else None,
            before.to(conv_state.dtype, copy=True) if need_state else None,  # a view would keep the whole piece
        )


def _torch_conv(xBC, weight, bias, conv_state):
    """Add up the W shifted inputs: on a CPU faster than conv1d with one group per channel, forward and backward."""
    batch, tokens, channels = xBC.shape
    taps, offset = _taps(weight, bias, at_least_fp32(xBC.dtype))
    pieces = token_pieces(tokens, batch * channels, xBC.device)
    if len(pieces) == 1:
        return F.silu(_add_up(_conv_inputs(xBC, conv_state, pieces[0], taps.dtype), taps, offset)).to(xBC.dtype)
    u = xBC.new_empty(xBC.shape)
    for piece in pieces:
        u[:, piece] = F.silu(_add_up(_conv_inputs(xBC, conv_state, piece, taps.dtype), taps, offset))
    return u


def _taps(weight, bias, dtype):
    """Return the convolution's weight (C, W) as (W, C) and its bias (C,) or None."""
    return weight.to(dtype).t().contiguous(), None if bias is None else bias.to(dtype)


def _conv_inputs(xBC, conv_state, piece, dtype):
    """Return a piece of xBC with the W-1 inputs before it, (B, W-1+M, C)."""
    own = xBC[:, max(0, piece.start - conv_state.shape[1]) : piece.stop]
    return torch.cat([conv_state[:, piece.start :].to(dtype), own.to(dtype)], dim=1)


def _add_up(inputs, taps, bias):
    """Return the convolution before silu: (B, W-1+M, C) -> (B, M, C)."""
    tokens = inputs.shape[1] - len(taps) + 1
    total = inputs[:, :tokens] * taps[0]
    for k in range(1, len(taps)):
        total.addcmul_(inputs[:, k : k + tokens], taps[k])
    return total if bias is None else total.add_(bias)


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in."""
    return torch.promote_types(dtype, torch.float32)


def token_pieces(tokens: int, width: int, device: torch.device) -> list[slice]:
    """Return slices of `tokens`, short enough for what is computed of them to stay in a CPU core's cache.

    Args:
        width: numbers of one token.
    """
    elements = CPU_PIECE_ELEMENTS if device.type == "cpu" else DEVICE_PIECE_ELEMENTS
    # In steps of 64, so that a cut falls between a vector unit's registers: what is left over is computed otherwise,
    # and can differ in the last bit.
    length = max(64, elements // width // 64 * 64)
    return [slice(start, min(start + length, tokens)) for start in range(0, tokens, length)]


def safe_tokens(row_stride: int, batch_size: int) -> int:
    """Return the most tokens for which batch_size x tokens x row_stride elements stay within 32-bit offsets."""
    if row_stride < 1 or batch_size < 1:
        raise ValueError(f"row_stride={row_stride}, batch_size={batch_size}: both must be at least 1")
    return MAX_OFFSET // (batch_size * row_stride)


def max_segment_tokens(
    *,
    hidden_size: int,
    intermediate_size: int,
    conv_dim: int,
    num_heads: int,
    head_dim: int,
    state_size: int,
    chunk_size: int,
    batch_size: int,
) -> int:
    """Return the most tokens a layer may be given at once so that every kernel in it stays within 32-bit offsets.

    Args:
        conv_dim: intermediate_size + 2 G N, the channels of the convolution.
        batch_size: rows of the batch; 0 tokens come back where even one token of so many rows is too much.
    """
    rows = (
        intermediate_size + conv_dim + num_heads,  # projection: gate, x, B, C, dt
        conv_dim,  # convolution
        intermediate_size,  # gated norm
        hidden_size,  # norm
    )
    chunks = safe_tokens(num_heads * head_dim * state_size, batch_size)
    return min(*(safe_tokens(row, batch_size) for row in rows), chunks * chunk_size)


def _check_length(what, tokens, most):
    """Raise where a kernel is given more tokens than its offsets reach."""
    if tokens > most:
        raise ValueError(
            f"{tokens} tokens in one call of {what}; with these shapes its 32-bit offsets reach {most}; "
            "split the sequence and pass each part's final state on to the next"
        )


def _forget_modules(before):
    """Take every mamba_ssm module out of sys.modules that was not there before."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "mamba_ssm" and name not in before:
            del sys.modules[name]
