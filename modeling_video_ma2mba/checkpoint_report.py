"""`video-ma2mba plan`: what training a model on so many tokens costs by every method, without building its weights.

Costs are counted from the config; on this machine (`device="here"`) one layer with random weights is measured as well.
Not here: what a plan costs (checkpoint_predict.py), which one is taken (checkpoint_planner.py).
"""

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from .checkpoint_analytic import analytic_costs
from .checkpoint_budget import free_bytes
from .checkpoint_costs import StepCosts, measure_costs
from .checkpoint_files import read_json
from .checkpoint_plan import CheckpointPlan
from .checkpoint_planner import NoPlanFits, candidates, decreasing, find_plan
from .checkpoint_predict import PlanCosts, gib, predict
from .configuration_video_ma2mba import Ma2mbaConfig, VideoMa2mbaConfig
from .environment import describe_environment
from .kernels import choose_backend
from .modeling_ma2mba import Ma2mbaModel

# Memory in bytes, as the vendor's data sheet names it (1 GB = 10^9 bytes).
DEVICES = {
    "h200": 141e9, "h100": 80e9, "a100": 80e9, "a100-40": 40e9, "l40s": 48e9, "rtx4090": 24e9, "rtx3090": 24e9,
}  # fmt: skip
LEFT_ALONE = 0.05
# Words of a question and an answer around a video.
_WORDS = 300
# Shorter segments are left to the planner: they need the least memory, and leave a GPU idle.
_SHORTEST = 1024
_LENGTHS = [2**n for n in range(12, 25)]

# Peak memory of a training step without weights and gradients in GB, bf16, at 2^10, 2^11, ... tokens: the paper's own
# measurements of its multi-axis checkpointing (arXiv 2411.19460, table 3).
PUBLISHED = {
    "370m": (0.3, 0.5, 0.6, 1.1, 1.6, 2.4, 3.8, 5.5, 8.8, 15.4, 23.1, 40.2),
    "1.3b": (0.5, 0.9, 1.2, 2.1, 3.7, 4.8, 7.4, 11.3, 17.7, 30.8, 45.8),
    "2.7b": (0.7, 1.1, 1.8, 2.7, 4.2, 6.9, 10.5, 17.2, 25.9, 42.2),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked for.

    Attributes:
        config, name: of the model. tokens: of each row. frames: of all rows. batch_size.
        budget, host_budget: bytes on the device in all, and on the host. objective: as `find_plan` takes it.
        costs: of a step with this batch size.
    """

    config: Ma2mbaConfig | VideoMa2mbaConfig
    name: str
    tokens: int
    frames: int
    budget: int
    host_budget: int
    objective: str
    costs: StepCosts

    @property
    def held(self) -> int:
        """Bytes of weights, gradients, their sums and the optimizer."""
        costs = self.costs
        return costs.weights + costs.gradients + costs.sums + costs.optimizer

    def frames_in(self, length: int) -> int:
        """Return the frames of a sequence of another length, in proportion."""
        return math.ceil(self.frames * length / self.tokens)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at its smallest: its plan and costs at the length asked for, and the longest sequence that fits."""

    method: str
    plan: CheckpointPlan
    cost: PlanCosts
    longest: int


def parse_tokens(text: str) -> int:
    """Read 512k (k = 1,000), 512Ki (Ki = 1,024), 1M, 1Mi, 2^20 or 1048576.

    Raises:
        ValueError: it is none of these, or less than 1.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKM]?)(i?)\s*", text.replace(",", "").replace("_", ""))
    power = re.fullmatch(r"\s*2\s*(?:\^|\*\*)\s*(\d{1,2})\s*", text)
    count = 0.0
    if power:
        count = 2 ** int(power[1])
    elif match and (match[2] or not match[3]):
        base = 1024 if match[3] else 1000
        count = float(match[1]) * base ** {"": 0, "k": 1, "m": 2}[match[2].lower()]
    if count < 1 or count != int(count):
        raise ValueError(f"--tokens {text}: give a number such as 1048576, 512k (512,000), 512Ki (524,288) or 2^20")
    return int(count)


def parse_duration(text: str) -> float:
    """Read 2h, 90m, 45s or 1h30m; return seconds.

    Raises:
        ValueError: it is none of these, or no time at all.
    """
    match = re.fullmatch(r"\s*(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?\s*", text)
    seconds = sum(float(n or 0) * unit for n, unit in zip(match.groups(), (3600, 60, 1))) if match else 0
    if seconds <= 0:
        raise ValueError(f"--video {text}: give a length such as 2h, 90m, 45s or 1h30m")
    return seconds


def read_config(model: str) -> Ma2mbaConfig | VideoMa2mbaConfig:
    """Return the config of a preset, or of a folder with a config.json.

    Raises:
        ValueError: it is neither.
    """
    for kind in (Ma2mbaConfig, VideoMa2mbaConfig):
        try:
            return kind.preset(model.lower())
        except ValueError:
            continue
    path = Path(model) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"--model {model}: neither a preset (370m, 1.3b, 2.7b; video: 0.7b, 1.8b, 3.1b) nor a folder with a "
            "config.json"
        )
    model_type = read_json(path).get("model_type")
    return (VideoMa2mbaConfig if model_type == "video_ma2mba" else Ma2mbaConfig).from_pretrained(model)


def ask(
    model: str,
    tokens: int | None,
    seconds: float | None,
    fps: float,
    batch_size: int,
    budget: int | None,
    host_budget: int,
    device: str | None,
    dtype: torch.dtype,
    objective: str,
    tower_is_trained: bool,
) -> Question:
    """Return the question with the costs of a step; `seconds` of video at `fps` stand for tokens.

    Raises:
        ValueError: values that do not fit together.
    """
    config = read_config(model)
    is_video = isinstance(config, VideoMa2mbaConfig)
    if (tokens is None) == (seconds is None):
        raise ValueError("give one of --tokens and --video")
    if seconds is not None and not is_video:
        raise ValueError(f"--video needs a video model; {model} is a language model: give --tokens")
    if batch_size < 1 or not 0 < fps < math.inf:
        raise ValueError(f"--batch {batch_size} and --fps {fps:g} must be at least 1 and above 0")
    if device not in (None, "here", *DEVICES):
        raise ValueError(f"--device {device}: known are here, {', '.join(DEVICES)}")
    if budget is None and device is None:
        raise ValueError("give --budget, or --device for its memory less 5 %")
    per_frame = config.tokens_per_frame if is_video else 0
    if seconds is not None:
        frames = max(1, round(seconds * fps))
        tokens = frames * per_frame + _WORDS
    else:
        frames = tokens // per_frame if is_video else 0  # the most they can cost
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if budget is None:
        budget = int((1 - LEFT_ALONE) * (free_bytes(here) if device == "here" else DEVICES[device]))
    if device == "here":
        costs = _measured(config, batch_size, dtype, here, tower_is_trained)
    else:
        costs = analytic_costs(config, batch_size, dtype, "triton", tower_is_trained)
    return Question(
        config=config,
        name=model,
        tokens=tokens,
        frames=frames * batch_size,
        budget=budget,
        host_budget=host_budget,
        objective=objective,
        costs=costs,
    )


def _measured(config, batch_size, dtype, device, tower_is_trained) -> StepCosts:
    """Count everything but the layers; measure one of those. The tower's time is left out."""
    text = config.get_text_config()
    one_layer = type(text).from_dict({**text.to_dict(), "num_hidden_layers": 1, "vocab_size": 8, "pad_token_id": 0})
    scan = choose_backend(text.backend, device, dtype).scan
    costs = analytic_costs(config, batch_size, dtype, scan, tower_is_trained)
    model = Ma2mbaModel(one_layer).to(device=device, dtype=dtype)
    vision = {n: cost._replace(plain_seconds=0.0, graph_seconds=0.0) for n, cost in costs.vision.items()}
    layers = measure_costs(model, batch_size).layers
    return replace(costs, source="measured", device_type=device.type, layers=layers, vision=vision)


# Method -> whether a candidate of the planner is one of its plans.
_FAMILIES = {
    "paper's grid": lambda p: p.name == "grid" and p.states_on == "device" and not p.recompute_mixer,
    "sequence only": lambda p: p.name == "sequence only" and p.states_on == "device",
    "nested": lambda p: p.name == "nested" and p.states_on == "device",
    "two-level": lambda p: p.segments_per_block > 1,
    "decreasing": lambda p: p.name.endswith("decreasing"),
    "sequence only, host": lambda p: p.name == "sequence only" and p.states_on == "host",
    "nested, host": lambda p: p.name == "nested" and p.states_on == "host",
    "grid, host": lambda p: p.name == "grid" and p.states_on == "host",
}
METHODS = ("no checkpointing", "layer by layer", "every sqrt(L) layers", *_FAMILIES)


def _fixed(question: Question, method: str, length: int) -> CheckpointPlan:
    layers = question.config.get_text_config().num_hidden_layers
    interval = {"no checkpointing": layers, "layer by layer": 1}.get(method, math.ceil(math.sqrt(layers)))
    fields = {"num_layers": layers, "layer_interval": interval, "keep_features": False}
    return CheckpointPlan(segments=(length,), keep_last_cell=interval == layers, **fields)


def _plans(question: Question, length: int) -> Iterator[tuple[str, CheckpointPlan]]:
    """Yield (method, plan) of every method."""
    costs, frames, room = question.costs, question.frames_in(length), question.budget - question.held
    for method in METHODS[:3]:
        yield method, _fixed(question, method, length)
    host = question.host_budget or math.inf
    smallest = {}
    for plan in candidates(costs, length, room, host, frames, ("device", "host")):
        if len(plan.segments) > 1 and max(plan.segments) < min(_SHORTEST, length):
            continue
        for method, belongs in _FAMILIES.items():
            if belongs(plan):
                yield method, plan
                if method in ("sequence only", "nested"):
                    size = predict(plan, costs, frames).activations
                    if size < smallest.get(method, (math.inf,))[0]:
                        smallest[method] = size, plan
    for size, plan in smallest.values():
        base = {name: getattr(plan, name) for name in ("num_layers", "recompute_mixer", "keep_features")}
        base["frames_per_batch"] = plan.frames_per_batch
        for share in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65):
            shorter = decreasing(costs, length, share * size, plan.layer_interval, base, frames)
            if shorter is not None:
                yield "decreasing", shorter


def smallest_plans(question: Question, length: int) -> dict[str, tuple[CheckpointPlan, PlanCosts]]:
    """Return every method's plan with the fewest device bytes, and what it costs."""
    found = {}
    for method, plan in _plans(question, length):
        cost = predict(plan, question.costs, question.frames_in(length))
        if question.host_budget and cost.host > question.host_budget:
            continue
        if method not in found or cost.activations < found[method][1].activations:
            found[method] = plan, cost
    return found


@dataclass(frozen=True, kw_only=True)
class Report:
    """The answer: the chosen plan (None: nothing fits, `reason` says why), the table, and the curves of the plot."""

    question: Question
    plan: CheckpointPlan | None
    reason: str
    rows: list[Row]
    curves: dict[str, dict[int, int]]  # method -> tokens -> device bytes beyond weights, gradients and optimizer

    def text(self) -> str:
        """Return the report for a terminal."""
        question, costs = self.question, self.question.costs
        lines = [
            f"{question.name}, batch {costs.batch_size} x {question.tokens:,} tokens"
            + (f" with {question.frames:,} frames" if question.frames else "")
            + f", {gib(question.budget)} on the device, "
            + (f"{gib(question.host_budget)} on the host" if question.host_budget else "nothing on the host"),
            "",
            self.reason if self.plan is None else self.plan.summary(),
            "",
            "every method at its smallest, segments of at least 1,024 tokens; forwards and time of one step:",
        ]
        head = ("method", "device", "host", "forwards again", "time", "by", "longest that fits")
        body = [_cells(row, row.method) for row in self.rows]
        if self.plan is not None:
            body.append(_cells(Row(method="", plan=self.plan, cost=self.plan.predicted, longest=0), "chosen plan"))
        widths = [max(len(line[k]) for line in (head, *body)) for k in range(len(head))]
        for line in (head, *body):
            cells = [c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def save(self, folder: str | Path) -> list[Path]:
        """Write plan.json and plan.png; return their paths.

        Raises:
            ImportError: matplotlib is missing.
        """
        require_matplotlib()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(self._data(), indent=1) + "\n", encoding="utf-8")
        self._plot(folder / "plan.png")
        return [folder / "plan.json", folder / "plan.png"]

    def _data(self) -> dict:
        question, costs = self.question, self.question.costs

        def entry(plan, cost):
            fields = {k: v for k, v in asdict(replace(plan, predicted=None)).items() if k != "predicted"}
            return {
                "name": plan.name,
                **fields,
                "extra_forwards": plan.extra_forwards,
                "costs": {**asdict(cost), "activations": cost.activations},
            }

        return {
            "model": question.name,
            "batch_size": costs.batch_size,
            "tokens": question.tokens,
            "frames": question.frames,
            "budget": question.budget,
            "host_budget": question.host_budget,
            "objective": question.objective,
            "source": costs.source,
            "plan": None if self.plan is None else entry(self.plan, self.plan.predicted),
            "reason": self.reason,
            "methods": [{"method": r.method, "longest": r.longest, **entry(r.plan, r.cost)} for r in self.rows],
            "curves": self.curves,
            "versions": {what: choice for what, choice, _ in describe_environment()},
        }

    def _plot(self, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5.6), layout="constrained")
        axes = figure.add_subplot()
        for k, (method, points) in enumerate(self.curves.items()):
            known = method in METHODS[:4]
            style = {"color": f"C{k % 10}", "linestyle": "--" if known else "-", "linewidth": 1.4 if known else 1.8}
            if k >= 10:
                style["color"] = "black"
            axes.plot(list(points), [size / 1e9 for size in points.values()], label=method, **style)
        published = PUBLISHED.get(self.question.name.lower(), ())
        if published:
            lengths = [2 ** (10 + k) for k in range(len(published))]
            axes.plot(lengths, published, "k^", markersize=6, label="paper's grid, measured (table 3)")
        room = (self.question.budget - self.question.held) / 1e9
        if room > 0:
            axes.axhline(room, color="grey", linewidth=1)
            axes.annotate(
                f"budget: {room:.1f} GB", (_LENGTHS[0], room), (2, 3), textcoords="offset points", color="grey"
            )
        axes.axvline(self.question.tokens, color="grey", linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        top = max(room * 8, max(published, default=0) * 2, 1e-3)
        low = min(min(points.values()) for points in self.curves.values()) / 1e9
        axes.set_ylim(low * 0.8, top)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("tokens per row")
        axes.set_ylabel("device memory without weights, gradients and optimizer (GB)")
        axes.set_title(f"{self.question.name}, batch {self.question.costs.batch_size} ({self.question.costs.source})")
        axes.grid(which="major", alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        FigureCanvasAgg(figure).print_png(path)


def _cells(row: Row, name: str) -> tuple[str, ...]:
    cost = row.cost
    time = "" if cost.seconds is None else f"{cost.seconds:.3g} s"
    longest = f"{'>' * (row.longest == _LENGTHS[-1])}{row.longest:,}" if row.longest else "-"
    return (
        name,
        gib(cost.device),
        gib(cost.host) if cost.host else "-",
        f"{row.plan.extra_forwards:.2f}",
        time,
        cost.source,
        longest if row.method else "",
    )


def require_matplotlib() -> None:
    """Raise ImportError naming the extra where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('--output draws with matplotlib: pip install "video-ma2mba[eval]"')


def make_report(question: Question) -> Report:
    """Answer the question."""
    room = question.budget - question.held
    plan, reason = None, ""
    try:
        plan = find_plan(
            question.costs, question.tokens, room, question.host_budget, question.objective, question.frames
        )
    except NoPlanFits as error:
        reason = str(error)
    curves = {method: {} for method in METHODS}
    for length in _LENGTHS:
        for method, (_, cost) in smallest_plans(question, length).items():
            curves[method][length] = cost.activations
    rows = [
        Row(method=method, plan=plan_, cost=cost, longest=_longest(curves[method], room))
        for method, (plan_, cost) in smallest_plans(question, question.tokens).items()
    ]
    rows.sort(key=lambda row: METHODS.index(row.method))
    return Report(
        question=question, plan=plan, reason=reason, rows=rows, curves={k: v for k, v in curves.items() if v}
    )


def _longest(points: dict[int, int], room: float) -> int:
    """Return the tokens at which a curve meets the room, to two digits; 0 below the curve, its end beyond it."""
    before = None
    for length, size in points.items():
        if size > room:
            if before is None:
                return 0
            share = math.log(room / before[1]) / math.log(size / before[1])
            return _two_digits(before[0] * (length / before[0]) ** share)
        before = length, size
    return before[0] if before else 0


def _two_digits(count: float) -> int:
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return int(count // unit * unit)
