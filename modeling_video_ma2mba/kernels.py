"""Choose who runs scan and causal convolution: PyTorch, or the optional kernels of mamba-ssm and causal-conv1d.

Not here: the scan itself (`ssd.py`) and the splitting of long work into segments (the model).

Shapes: B batch, T tokens, H heads, P head dim, G groups, N state, C channels of the convolution, W its width.
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

from .ssd import ssd_chunked

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "triton")

# The kernels compute offsets in 32 bits and return wrong numbers beyond (state-spaces/mamba issue 1015).
MAX_OFFSET = 2**31 - 1

_SCAN_INSTALL = 'install it with `pip install --no-build-isolation "mamba-ssm>=2.3"` or pass backend="torch"'
_CONV_INSTALL = 'install it with `pip install --no-build-isolation "causal-conv1d>=1.5"` or pass backend="torch"'


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Who runs what: scan is "torch" or "triton", conv is "torch" or "causal_conv1d", reason says why."""

    scan: str
    conv: str
    reason: str


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
            return importlib.import_module(name).mamba_chunk_scan_combined
        except Exception:
            _forget_modules(before)
        # The package's __init__ needs compiled parts, the SSD kernel does not: import the module without it. Then take
        # all of it out of sys.modules again, or others would find half a package: transformers looks for mamba_ssm
        # when its Mamba-2 file is imported, and would call Triton kernels on a CPU. The function keeps its modules.
        package = types.ModuleType("mamba_ssm")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["mamba_ssm"] = package
        try:
            return importlib.import_module(name).mamba_chunk_scan_combined
        finally:
            _forget_modules(before)
    except Exception as error:
        return f"mamba-ssm is installed, but its scan kernel cannot be imported ({type(error).__name__}: {error})"


@functools.cache
def load_conv_kernel() -> Callable | str:
    """Import causal-conv1d's `causal_conv1d_fn` once; return it, or the reason why it cannot be had."""
    try:
        if importlib.util.find_spec("causal_conv1d") is None:
            return "causal-conv1d is not installed"
        return importlib.import_module("causal_conv1d").causal_conv1d_fn
    except Exception as error:
        return f"causal-conv1d is installed, but cannot be imported ({type(error).__name__}: {error})"


def choose_backend(requested: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return who runs the scan and the convolution on this device in this dtype.

    "triton" names the scan; the convolution then takes causal-conv1d if it is there, else PyTorch; `reason` says so.
    "auto" is "triton" on a CUDA device where that is possible, else "torch"; it logs its choice once per device type.

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
    elif isinstance(kernel := load_scan_kernel(), str):
        obstacle, error = f"{kernel}; {_SCAN_INSTALL}", ImportError
    if requested == "triton" and obstacle:
        raise error(f'backend="triton" cannot be used: {obstacle}')
    if obstacle:
        backend = Backend(scan="torch", conv="torch", reason=obstacle)
    else:
        conv = load_conv_kernel()
        if isinstance(conv, str):
            backend = Backend(scan="triton", conv="torch", reason=f"the scan kernel is there; {conv}")
        else:
            backend = Backend(scan="triton", conv="causal_conv1d", reason="both kernels are there")
    _log_once(requested, torch.device(device).type, backend)
    return backend


@functools.cache
def _log_once(requested, device_type, backend):
    """Log a choice the first time it is made for a device type."""
    logger.info(
        "backend=%r on %s: scan by %s, convolution by %s (%s)",
        requested,
        device_type,
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
        y (B, T, H, P) in x's dtype and the final state (B, H, P, N) in fp32 or wider. With 16-bit x the Triton kernel
        rounds the gradient of initial_state to x's dtype; PyTorch does not.

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
        (B, T, C) in xBC's dtype, computed in fp32 or wider.

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
        return _torch_conv(xBC, weight, bias, conv_state)
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


def _torch_conv(xBC, weight, bias, conv_state):
    """Add up the W shifted inputs: on a CPU faster than conv1d with one group per channel, forward and backward."""
    tokens = xBC.shape[1]
    dtype = torch.promote_types(xBC.dtype, torch.float32)
    inputs = torch.cat([conv_state.to(dtype), xBC.to(dtype)], dim=1)  # (B, W-1+T, C)
    taps = weight.to(dtype).t().contiguous()  # (W, C)
    u = inputs[:, :tokens] * taps[0]  # (B, T, C)
    for k in range(1, taps.shape[0]):
        u = torch.addcmul(u, inputs[:, k : k + tokens], taps[k])  # (B, T, C)
    if bias is not None:
        u = u + bias.to(dtype)
    return F.silu(u).to(xBC.dtype)


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
