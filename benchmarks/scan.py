"""How fast is our chunked SSD scan on a CPU, beside transformers' torch fallback and the machine's limit?

Both get the same x, dt, A, B, C, D, are checked against the fp64 recurrence first, and take turns. It does not measure
the Triton kernel or a whole model.

    python benchmarks/scan.py --heads 32 80 --tokens 2048 --threads 1 2 --repeats 5
"""

import argparse
import statistics
import sys
import time

HEAD_DIM, STATE, THEIR_CHUNK = 64, 128, 256
OUR_CHUNKS = (32, 64, 128, 256)
# Heads are independent, and the recurrence keeps every state for its backward: a few heads do for the gate.
GATE_HEADS = 4
# Relative RMS error against the fp64 recurrence, of y or a gradient, above which no time is measured.
GATES = {"ours": 2e-6, "transformers": 2e-5}


def make_inputs(heads, tokens):
    """Return x, dt before softplus, A, B, C, D, and a gradient of y; dt and A as a Mamba-2 model starts with."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    raw = torch.log(torch.expm1(torch.exp(torch.empty(heads).uniform_(-6.9, -2.3, generator=generator))))
    A = -torch.empty(heads).uniform_(1, 16, generator=generator)
    x, dt = normal(1, tokens, heads, HEAD_DIM), raw + normal(1, tokens, heads)
    inputs = [x, dt, A, normal(1, tokens, 1, STATE), normal(1, tokens, 1, STATE), normal(heads)]
    return [t.requires_grad_() for t in inputs], normal(1, tokens, heads, HEAD_DIM)


def our_scan(chunk_size):
    """Return our scan as a function of `make_inputs`' tensors."""
    import torch.nn.functional as F

    from modeling_video_ma2mba.ssd import ssd_chunked

    return lambda x, dt, A, B, C, D: ssd_chunked(x, F.softplus(dt), A, B, C, D, chunk_size=chunk_size)[0]


def their_scan(x, dt, A, B, C, D):
    """Run transformers' torch fallback with the arguments of its mixer."""
    import torch
    from transformers.models.mamba2 import modeling_mamba2

    return modeling_mamba2.mamba2_chunk_scan(
        x,
        dt,
        A,
        B,
        C,
        chunk_size=THEIR_CHUNK,
        D=D,
        z=None,
        return_final_states=False,
        dt_bias=torch.zeros_like(A),
        dt_softplus=True,
        initial_states=None,
        dt_limit=(0.0, float("inf")),
    )


def peak_tensor_bytes(scan, inputs, grad_y):
    """Return the most bytes of tensors alive at once beyond the inputs, in a forward and backward."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    known = {t.untyped_storage()._cdata for t in (*inputs, grad_y)}
    alive = {"now": 0, "peak": 0}

    class Tracker(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in known:
                    self.follow(tensor.untyped_storage())
            return result

        def follow(self, storage):
            key, size = storage._cdata, storage.nbytes()
            known.add(key)
            alive["now"] += size
            alive["peak"] = max(alive["peak"], alive["now"])
            weakref.finalize(storage, self.forget, key, size)

        def forget(self, key, size):
            known.discard(key)
            alive["now"] -= size

    with Tracker():
        torch.autograd.grad(scan(*inputs), inputs, grad_y)
    return alive["peak"]


def relative_errors(scan, tokens):
    """Return the relative RMS error of y and of each gradient against the fp64 recurrence."""
    import torch
    import torch.nn.functional as F

    from modeling_video_ma2mba.ssd import ssd_recurrence

    inputs, grad_y = make_inputs(GATE_HEADS, tokens)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    truth = ssd_recurrence(wide[0], F.softplus(wide[1]), *wide[2:])[0]
    y = scan(*inputs)
    actual = [y, *torch.autograd.grad(y, inputs, grad_y)]
    expected = [truth, *torch.autograd.grad(truth, wide, grad_y.double())]
    pairs = zip(("y", "x", "dt", "A", "B", "C", "D"), actual, expected)
    return {name: ((a - e).square().mean() / e.square().mean()).sqrt().item() for name, a, e in pairs}


def measure(scans, inputs, grad_y, repeats):
    """Time the scans in turns; return median and spread of wall and CPU seconds of each."""
    import torch

    samples = {name: {"forward": [], "forward_backward": [], "forward_backward_cpu": []} for name in scans}
    for turn in range(repeats + 1):
        for name, scan in scans.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            y = scan(*inputs)
            middle = time.perf_counter()
            torch.autograd.grad(y, inputs, grad_y)
            end, end_cpu = time.perf_counter(), time.process_time()
            del y
            if turn:  # the first is the warm-up
                values = (middle - start, end - start, end_cpu - start_cpu)
                for kind, value in zip(samples[name], values):
                    samples[name][kind].append(value)
            print(f"turn {turn}: {name} {end - start:.3f} s", file=sys.stderr)
    return {
        name: {kind: {"median": statistics.median(v), "min": min(v), "max": max(v)} for kind, v in of_scan.items()}
        for name, of_scan in samples.items()
    }


def matmul_peak(repeats):
    """Return GFLOP/s of a large fp32 matrix product, the best of some."""
    import torch

    a, b = torch.randn(2, 1024, 1024)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best / 1e9


def least_work(heads, tokens, chunk):
    """Return the fp32 FLOPs of the matrix products and the bytes of inputs and outputs, at the least.

    Forward: scores once per chunk, then per head their product with u, the state written, the state read.
    Backward: two products for each of them. Recomputation is not counted.
    """
    per_token = 2 * chunk * STATE + heads * HEAD_DIM * (2 * chunk + 4 * STATE)
    inputs = heads * HEAD_DIM + heads + 2 * STATE
    forward = 4 * tokens * (inputs + heads * HEAD_DIM)
    backward = 4 * tokens * (2 * inputs + heads * HEAD_DIM)
    return {"flop": 3 * tokens * per_token, "bytes": forward + backward}


def row_for(heads, tokens, threads, repeats):
    """Measure one size with one number of threads."""
    import torch

    from modeling_video_ma2mba.ssd import CHUNK_SIZE

    torch.set_num_threads(threads)
    peak = matmul_peak(20)
    inputs, grad_y = make_inputs(heads, tokens)
    pair = {"ours": our_scan(CHUNK_SIZE), "transformers": their_scan}
    memory = {name: peak_tensor_bytes(scan, inputs, grad_y) for name, scan in pair.items()}
    timed = measure(pair, inputs, grad_y, repeats)
    chunks = measure({f"chunk_{c}": our_scan(c) for c in OUR_CHUNKS}, inputs, grad_y, repeats)
    ours, theirs = timed["ours"], timed["transformers"]
    work = least_work(heads, tokens, CHUNK_SIZE)
    reached = work["flop"] / ours["forward_backward"]["median"] / 1e9
    kinds = ("forward", "forward_backward", "forward_backward_cpu")
    return {
        "heads": heads,
        "tokens": tokens,
        "threads": threads,
        "seconds": timed,
        "speed_ratio": {kind: theirs[kind]["median"] / ours[kind]["median"] for kind in kinds},
        "peak_tensor_bytes": memory,
        "least_work": work,
        "gflops_reached": reached,
        "gflops_matmul": peak,
        "share_of_matmul_peak": reached / peak,
        "seconds_by_chunk": chunks,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="+", default=[32, 80])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    from result import write_result

    from modeling_video_ma2mba.ssd import CHUNK_SIZE

    scans = {"ours": our_scan(CHUNK_SIZE), "transformers": their_scan}
    errors = {name: relative_errors(scan, arguments.tokens) for name, scan in scans.items()}
    for name, of_scan in errors.items():
        worst = max(of_scan, key=of_scan.get)
        if not of_scan[worst] <= GATES[name]:
            sys.exit(f"{name} differs from the fp64 recurrence by {of_scan[worst]:.2g} in {worst}: not timed")
    rows = [
        row_for(heads, arguments.tokens, threads, arguments.repeats)
        for heads in arguments.heads
        for threads in arguments.threads
    ]
    settings = {**vars(arguments), "head_dim": HEAD_DIM, "state": STATE, "batch": 1, "gate_heads": GATE_HEADS}
    print(write_result("scan", {**settings, "errors": errors}, rows))


if __name__ == "__main__":
    main()
