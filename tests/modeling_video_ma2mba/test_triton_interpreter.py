"""The Triton SSD kernel through our binding, on a CPU in Triton's interpreter, against the fp64 recurrence.

In a process of its own, because the interpreter is switched on before Triton is imported and needs parts of torch and
triton replaced. float32 only: the interpreter gives garbage in bfloat16.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

_SCRIPT = """
import contextlib, types
import torch, triton

# No CUDA device: nothing to switch to, nothing to ask, nothing to time configurations on.
torch.cuda.device = lambda index: contextlib.nullcontext()
torch.cuda.get_device_properties = lambda index=None: types.SimpleNamespace(multi_processor_count=4)
autotune = triton.autotune
triton.autotune = lambda configs, key, **options: autotune(configs[:1], key, **options)

from modeling_video_ma2mba.kernels import Backend, load_scan_kernel, ssd
from modeling_video_ma2mba.ssd import ssd_recurrence

kernel = load_scan_kernel()
assert callable(kernel), kernel
backend = Backend(scan="triton", conv="torch", reason="test")
generator = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=generator)


# One group over two chunks and a part of one; two groups, shorter than a chunk.
for batch, tokens, heads, head_dim, groups, state, chunk in ((1, 37, 2, 16, 1, 16, 16), (2, 15, 2, 16, 2, 16, 16)):
    dt = torch.nn.functional.softplus(normal(batch, tokens, heads) - 1)
    dt[-1, -4:] = 0  # the last row's last four tokens are padding
    inputs = [
        normal(batch, tokens, heads, head_dim),
        dt,
        -torch.exp(normal(heads)),
        normal(batch, tokens, groups, state),
        normal(batch, tokens, groups, state),
        normal(heads),
        normal(batch, heads, head_dim, state),
    ]
    ours_in = [t.clone().requires_grad_() for t in inputs]
    true_in = [t.double().requires_grad_() for t in inputs]
    ours = ssd(*ours_in, backend=backend, chunk_size=chunk)
    truth = ssd_recurrence(*true_in)
    arriving = [normal(*t.shape) for t in truth]
    actual = [*ours, *torch.autograd.grad(ours, ours_in, arriving)]
    expected = [*truth, *torch.autograd.grad(truth, true_in, [g.double() for g in arriving])]
    names = ("y", "final_state", "x", "dt", "A", "B", "C", "D", "initial_state")
    for name, a, e in zip(names, actual, expected, strict=True):
        worst = (a.double() - e).abs().max().item()
        rms = ((a.double() - e).square().mean().sqrt() / e.square().mean().sqrt()).item()
        report = f"T={tokens} G={groups} {name}: max abs {worst:.3g}, relative RMS {rms:.3g}"
        print(report)
        # fp32 sums of some tens of terms.
        assert a.isfinite().all() and rms < 5e-6, report
    # At a padded tail the state stands still: the row without it ends in the same state.
    short = [t[-1:, :-4] if k in (0, 1, 3, 4) else t for k, t in enumerate(inputs)]
    short[6] = inputs[6][-1:]
    _, end = ssd_recurrence(*(t.double() for t in short))
    assert (ours[1][-1:].double() - end).abs().max() < 1e-5
print("equal")
"""


@pytest.mark.triton_interpreter
def test_kernel_equals_recurrence():
    for package in ("triton", "einops", "mamba_ssm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the Triton scan cannot be run in the interpreter")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _SCRIPT]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "equal" in result.stdout, result.stdout + result.stderr
