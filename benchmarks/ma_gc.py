"""Memory and time of a training step by every checkpointing method, on one model, in one run.

python benchmarks/ma_gc.py --model small                                 # a CPU is enough; minutes
python benchmarks/ma_gc.py --model 2.7b --device cuda --dtype bfloat16 --lengths 16384 524288 --time-lengths 16384
python benchmarks/ma_gc.py --model small --vision                        # frames, tower and projector in the step

Weights are random. Before anything is measured, every method's gradients are checked against plain training in fp64 on
a small model of the same layout, and on the measured model in its own precision. "activations" are the most bytes
alive beyond weights, gradients and the fp32 sums of gradients, which stand in a column of their own; the loss is that
of an answer of 64 tokens at the end. Times are medians over steps of all methods in turn, as a ratio to plain.
"""

import argparse
import gc
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from result import write_result

from modeling_video_ma2mba import (
    Ma2mbaConfig,
    Ma2mbaForCausalLM,
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
    checkpoint_engine,
    checkpoint_store,
)
from modeling_video_ma2mba.checkpoint_costs import measure_costs
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform
from modeling_video_ma2mba.checkpoint_planner import find_plan
from modeling_video_ma2mba.kernels import choose_backend
from modeling_video_ma2mba.language_model_outputs import NextTokenLoss
from modeling_video_ma2mba.live_memory import MemoryMeter
from modeling_video_ma2mba.row_layout import Rows
from modeling_video_ma2mba.segment_inputs import TextInputs
from modeling_video_ma2mba.visual_inputs import VisualInputs

ANSWER = 64
SMALL = {
    "tiny": {"hidden_size": 32, "num_heads": 2, "head_dim": 32, "state_size": 16, "num_hidden_layers": 4},
    "small": {"hidden_size": 256, "num_heads": 8, "head_dim": 64, "state_size": 64, "num_hidden_layers": 16},
}
TOWERS = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
    "small": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4},
}
# The paper's own memory in GB (its Table 3): powers of 2 of the length -> GB.
PAPER_2_7B = {14: 4.2, 15: 6.9, 16: 10.5, 17: 17.2, 18: 25.9, 19: 42.2}


def build(name: str, vision: bool, dtype: torch.dtype, device: torch.device, seed: int) -> torch.nn.Module:
    """Return a model with random weights, in training mode."""
    torch.manual_seed(seed)
    fields = {"n_groups": 1, "vocab_size": 512, "pad_token_id": 0, "tie_word_embeddings": True}
    text = Ma2mbaConfig(**SMALL[name], **fields) if name in SMALL else Ma2mbaConfig.preset(name)
    with torch.device(device):
        if not vision:
            return Ma2mbaForCausalLM(text).to(dtype).train()
        tower = {"model_type": "clip_vision_model", "patch_size": 14, "image_size": 112, **TOWERS[name]}
        config = VideoMa2mbaConfig(vision_config=tower, text_config=text, image_token_id=510, video_token_id=511)
        return VideoMa2mbaForConditionalGeneration(config).to(dtype).train()


def batch_of(model: torch.nn.Module, length: int, device: torch.device, seed: int) -> dict:
    """Return random ids with an answer at the end; of a video model, frames before it, which stay on the host."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 500, (1, length), generator=generator)
    labels = torch.full_like(ids, -100)
    answer = min(ANSWER, length // 2)
    labels[:, -answer:] = ids[:, -answer:]
    batch = {"input_ids": ids.to(device), "labels": labels.to(device)}
    if hasattr(model, "model"):
        config = model.config
        frames = (length - answer - 1) // config.tokens_per_frame
        batch["input_ids"][:, 1 : 1 + frames * config.tokens_per_frame] = config.video_token_id
        batch["pixel_values_videos"] = RandomFrames(frames, config.vision_config.image_size, seed)
    return batch


class RandomFrames:
    """Frames made when they are read, the same every time: nothing of the video's length is in memory."""

    def __init__(self, count: int, size: int, seed: int):
        self.shape, self.seed = (count, 3, size, size), seed

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, span: slice) -> torch.Tensor:
        made = []
        for i in range(*span.indices(len(self))):
            generator = torch.Generator().manual_seed(self.seed + i)
            made.append(torch.randint(0, 256, self.shape[1:], dtype=torch.uint8, generator=generator))
        return torch.stack(made)


def language_model(model: torch.nn.Module) -> torch.nn.Module:
    return model.backbone if hasattr(model, "backbone") else model.model.language_model


# Methods: a name, and a function that makes ready and returns a step.


def methods(model: torch.nn.Module, length: int, segment: int, names: list[str]) -> dict:
    """Return {name: (settings, step)} of the methods to compare; `step(batch)` runs forward and backward."""
    layers = language_model(model).config.num_hidden_layers
    s, interval = min(segment, length), max(1, round(layers / 4))
    per_block = max(2, round((length / s) ** 0.5))
    root = max(1, round(layers**0.5))
    segments = uniform(length, s)

    def plan(**fields):
        common = {"segments": segments, "num_layers": layers, "layer_interval": layers, "frames_per_batch": 4}
        return CheckpointPlan(**{**common, **fields})

    whole = {"segments": (length,)}
    plans = {
        "plain in the node": plan(**whole),
        "layer groups, sqrt(L)": plan(**whole, layer_interval=root),
        "paper's grid": plan(layer_interval=interval, keep_last_cell=False),
        "grid": plan(layer_interval=interval),
        "sequence only": plan(),
        "sequence only, lean mixer": plan(recompute_mixer=True),
        "decreasing": plan(segments=decreasing(length, s)),
        "nested": plan(layer_interval=interval, keep_boundaries=False),
        "nested, lean mixer": plan(layer_interval=max(1, interval // 2), keep_boundaries=False, recompute_mixer=True),
        "two-level": plan(keep_boundaries=False, segments_per_block=per_block),
        "two-level, nested": plan(layer_interval=interval, keep_boundaries=False, segments_per_block=per_block),
        "grid, host": plan(layer_interval=interval, states_on="host", boundaries_on="host"),
        "sequence only, host": plan(states_on="host"),
        "nested, host": plan(layer_interval=interval, keep_boundaries=False, states_on="host"),
    }
    found = {
        "plain": ({}, plain_step(model, None)),
        "transformers, per layer": ({}, plain_step(model, {"method": "layer"})),
        "torch cells, paper's order": ({"s": s, "l": interval}, cells_step(model, s, interval)),
    }
    found |= {name: (describe(p), planned_step(model, p)) for name, p in plans.items()}
    return {name: found[name] for name in (names or found)}


def decreasing(length: int, s: int) -> tuple[int, ...]:
    """Return segments from twice `s` down to half of it."""
    sizes, left, step = [], length, max(1, s // 4)
    while left > 0:
        size = max(s // 2, 2 * s - step * (len(sizes) // 2))
        sizes.append(min(size, left))
        left -= sizes[-1]
    return tuple(sizes)


def describe(plan: CheckpointPlan) -> dict:
    settings = {"s": max(plan.segments), "segments": len(plan.segments), "l": plan.layer_interval}
    settings |= {"extra_forwards": round(plan.extra_forwards, 3), "states_on": plan.states_on}
    return settings | {"segments_per_block": plan.segments_per_block, "recompute_mixer": plan.recompute_mixer}


def plain_step(model, kwargs):
    def step(batch):
        model.gradient_checkpointing_disable()
        if kwargs:
            model.gradient_checkpointing_enable(kwargs)
        loss = model(**batch).loss
        loss.backward()
        return loss.detach()

    return step


def planned_step(model, plan):
    def step(batch):
        model.gradient_checkpointing_enable()
        language_model(model).checkpointing.fixed_plan = plan
        loss = model(**batch).loss
        loss.backward()
        return loss.detach()

    return step


def cells_step(model, s, interval):
    """Return the paper's grid as anybody would write it: torch's checkpoint cells, groups of layers outside."""

    def step(batch):
        model.gradient_checkpointing_disable()
        backbone = language_model(model)
        rows = Rows(batch["input_ids"], None, None, None)
        if hasattr(model, "model"):
            inputs = VisualInputs(model.model, rows, None, batch.get("pixel_values_videos"))
        else:
            inputs = TextInputs(rows, backbone.embeddings)
        state = backbone.new_state(1)
        backend = choose_backend(backbone.config.backend, rows.device, backbone.norm_f.weight.dtype)
        spans = [(start, min(start + s, rows.length)) for start in range(0, rows.length, s)]
        pieces = [checkpoint(inputs, *span, use_reentrant=False) for span in spans]
        for first in range(0, len(backbone.layers), interval):
            group = range(first, min(first + interval, len(backbone.layers)))

            def run(hidden, *states, group=group):
                after = []
                for i, conv, ssm in zip(group, states[::2], states[1::2]):
                    hidden, conv, ssm = backbone.layers[i](hidden, conv, ssm, None, backend)
                    after += [conv, ssm]
                return hidden, *after

            states = [t for i in group for t in (state.conv[i], state.ssm[i])]
            for j, hidden in enumerate(pieces):
                pieces[j], *states = checkpoint(run, hidden, *states, use_reentrant=False)
        loss = NextTokenLoss(rows, batch["labels"], model.lm_head)
        for (start, _), hidden in zip(spans, pieces):
            loss.add(start, backbone.norm_f(hidden))
        loss.result().backward()
        return loss.result().detach()

    return step


# Checking.


def check_gradients(vision: bool, device: torch.device, seed: int, names: list[str]) -> dict[str, float]:
    """Return each method's largest gradient error in fp64, relative to the largest gradient; on the tiny model."""
    worst, expected = {}, None
    model = build("tiny", vision, torch.float64, device, seed)
    model.config.get_text_config().backend = "torch"
    batch = batch_of(model, 193, device, seed)
    for method, (_, step) in {"plain": ({}, plain_step(model, None)), **methods(model, 193, 25, names)}.items():
        model.zero_grad(set_to_none=True)
        step(batch)
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        expected = gradients if expected is None else expected
        assert gradients.keys() == expected.keys(), f"{method}: other parameters have gradients"
        # Of the weight's own largest gradient, or, where that is nothing but rounding, of a part of the model's.
        floor = 1e-3 * max(float(e.abs().max()) for e in expected.values())
        worst[method] = max(
            float((gradients[n] - e).abs().max()) / max(float(e.abs().max()), floor) for n, e in expected.items()
        )
    wrong = {method: error for method, error in worst.items() if error > 1e-10}
    if wrong:
        raise SystemExit(f"gradients are wrong, nothing was measured: {wrong}")
    return worst


def check_in_own_precision(model, options: argparse.Namespace, device) -> dict[str, float]:
    """Return each method's largest gradient error against `--reference`, over norms, in the measured precision."""
    batch, errors, expected = batch_of(model, options.check_length, device, options.seed), {}, None
    found = methods(model, options.check_length, max(1, options.check_length // 5), [])
    for method in [options.reference, *[m for m in (options.methods or found) if m != options.reference]]:
        model.zero_grad(set_to_none=True)
        found[method][1](batch)
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        expected = {n: g.clone() for n, g in gradients.items()} if expected is None else expected
        floor = 1e-3 * max(float(e.float().norm()) for e in expected.values())
        norms = [
            float((gradients[n].float() - e.float()).norm()) / max(float(e.float().norm()), floor)
            for n, e in expected.items()
        ]
        errors[method] = max(norms)
        model.zero_grad(set_to_none=True)
    return errors


# Measuring.


@contextmanager
def separate_sums(model):
    """Make gradient sums beforehand, so that a step's peak is without them; yield their bytes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    sums = {id(p): torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in trained}
    own = checkpoint_engine.GradientSums

    class Prepared(own):
        def __init__(self):
            self.sums = {key: total.zero_() for key, total in sums.items()}

    checkpoint_engine.GradientSums = Prepared
    try:
        yield sum(total.nbytes for total in sums.values())
    finally:
        checkpoint_engine.GradientSums = own


class HostBytes:
    """Records the most that waits on the host in checkpoint stacks."""

    def __init__(self):
        self.most = 0

    def __enter__(self):
        self.push = push = checkpoint_store.CheckpointStack.push
        self.stacks = {}

        def recorded(stack, tensors):
            push(stack, tensors)
            self.stacks[id(stack)] = stack.host_bytes
            self.most = max(self.most, sum(self.stacks.values()))

        checkpoint_store.CheckpointStack.push = recorded
        return self

    def __exit__(self, *exception):
        checkpoint_store.CheckpointStack.push = self.push


def measure_memory(model, step, batch, device) -> dict:
    """Return activations, sums and host bytes of a step; gradients exist before it."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    with separate_sums(model) as sums, HostBytes() as host, MemoryMeter(device) as meter:
        step(batch)
        peak = meter.peak
    return {"activations": peak, "sums": sums, "host": host.most}


def paper_formula(model, length: int, s: int, interval: int) -> int:
    """Return the bytes of the paper's formula (section 3.2) with its constants, for this model's shapes and dtype."""
    config = language_model(model).config
    layers, inner, size = config.num_hidden_layers, config.intermediate_size, model.lm_head.weight.element_size()
    state = inner * config.state_size
    of_layer, of_state = config.hidden_size, state + (config.conv_kernel - 1) * config.conv_dim
    of_grid = 2 * inner + (config.conv_dim - inner) + config.num_heads + inner
    elements = layers * length / interval * of_layer + layers * length / s * of_state
    return round((elements + interval * s * of_grid + s * (state + config.conv_dim)) * size)


def measure_times(model, steps: dict, batch, device, repeats: int) -> dict[str, list[float]]:
    """Return seconds of every method, all in turn, so that what disturbs hits all of them."""
    seconds = {name: [] for name in steps}
    for round_ in range(repeats + 1):
        for name, step in steps.items():
            model.zero_grad(set_to_none=True)
            start = now(device)
            step(batch)
            if round_:
                seconds[name].append(now(device) - start)
    return seconds


def now(device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run(options: argparse.Namespace) -> list[dict]:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    exact = check_gradients(options.vision, device, options.seed, options.methods)
    print(f"gradients in fp64: {max(exact.values()):.1e} at most", flush=True)
    model = build(options.model, options.vision, dtype, device, options.seed)
    own = check_in_own_precision(model, options, device)
    print(
        f"gradients in {options.dtype} at {options.check_length} tokens: {max(own.values()):.1e} at most", flush=True
    )
    rows = [
        {"kind": "check", "fp64_error": exact, f"{options.dtype}_error": own, "check_length": options.check_length}
    ]
    for length in options.lengths:
        batch = batch_of(model, length, device, options.seed)
        for name, (settings, step) in methods(model, length, options.segment, options.methods).items():
            row = {"kind": "memory", "length": length, "method": name, **settings}
            if name in ("plain", "plain in the node", "transformers, per layer") and length > options.plain_limit:
                continue
            try:
                row |= measure_memory(model, step, batch, device)
            except torch.OutOfMemoryError:
                row["failure"] = "out of memory"
            if name == "paper's grid":
                row["paper_formula"] = paper_formula(model, length, row["s"], row["l"])
            rows.append(row)
            size, host = row.get("activations", 0) / 1e9, row.get("host", 0) / 1e9
            print(f"{length:>9,} {name:<28} {size:8.3f} GB  host {host:.3f}", flush=True)
    for length in options.time_lengths:
        batch, found = (
            batch_of(model, length, device, options.seed),
            methods(model, length, options.segment, options.methods),
        )
        seconds = measure_times(
            model, {name: step for name, (_, step) in found.items()}, batch, device, options.repeats
        )
        for name, (settings, _) in found.items():
            median = statistics.median(seconds[name])
            row = {"kind": "time", "length": length, "method": name, **settings, "seconds": seconds[name]}
            if "plain" in seconds:
                row["ratio_to_plain"] = median / statistics.median(seconds["plain"])
            rows.append(row)
            print(f"{length:>9,} {name:<28} {median:8.3f} s  {row.get('ratio_to_plain', 0):.2f}", flush=True)
    for budget in options.budgets:
        rows += planned_rows(model, options, budget, device)
    return rows


def planned_rows(model, options, budget: float, device) -> list[dict]:
    """Return what the planner chooses for a budget of GB of activations, predicted and measured."""
    rows = []
    vision = model.model if options.vision else None
    costs = measure_costs(language_model(model), 1, model.lm_head, vision)
    for length in options.lengths:
        batch = batch_of(model, length, device, options.seed)
        frames = len(batch["pixel_values_videos"]) if options.vision else 0
        plan = find_plan(costs, length, int(budget * 1e9), int(options.host_budget * 1e9), num_frames=frames)
        step = planned_step(model, plan)
        step(batch)
        start = now(device)
        step(batch)
        seconds = now(device) - start
        row = {"kind": "planned", "length": length, "budget": budget, **describe(plan), "plan": plan.name}
        row |= {"predicted": plan.predicted.activations, "predicted_seconds": plan.predicted.seconds}
        rows.append(row | {"seconds": seconds} | measure_memory(model, step, batch, device))
        print(plan.summary(), f"\nmeasured {rows[-1]['activations'] / 1e9:.3f} GB, {seconds:.2f} s", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=(*SMALL, "370m", "1.3b", "2.7b"), default="small")
    parser.add_argument("--vision", action="store_true", help="train tower and projector on frames as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="weights and residual")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], help="tokens, for memory")
    parser.add_argument("--time-lengths", type=int, nargs="*", default=[2048], help="tokens, for time")
    parser.add_argument("--segment", type=int, default=256, help="tokens of a segment")
    parser.add_argument("--check-length", type=int, default=512, help="tokens of the check in the model's precision")
    parser.add_argument("--reference", default="plain", help="method that others are checked against")
    parser.add_argument("--plain-limit", type=int, default=4096, help="longest sequence of methods without segments")
    parser.add_argument("--methods", nargs="*", default=[], help="names (default: all)")
    parser.add_argument("--budgets", type=float, nargs="*", default=[], help="GB of activations to plan for")
    parser.add_argument("--host-budget", type=float, default=0, help="GB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = run(options)
    question = f"ma_gc_{options.model.replace('.', '')}" + ("_vision" if options.vision else "")
    settings = vars(options) | {"threads": torch.get_num_threads(), "answer_tokens": ANSWER, "residual": options.dtype}
    print(write_result(question, settings, rows))


if __name__ == "__main__":
    main()
