"""How gradient checkpointing is switched on: `gradient_checkpointing_enable` of every model, and what it leads to.

"ma-gc" (the default) runs training steps by a `CheckpointPlan`; "layer" is transformers' own, layer by layer.
"""

import logging
import math
import re
from contextlib import suppress
from dataclasses import dataclass, fields, replace

import torch
from transformers import PreTrainedModel

from .checkpoint_analytic import analytic_costs
from .checkpoint_budget import HeldBytes, free_host_bytes, total_budget
from .checkpoint_cells import run_cells, shards_weights
from .checkpoint_costs import StepCosts, measure_costs
from .checkpoint_engine import run_checkpointed
from .checkpoint_plan import CheckpointPlan, uniform
from .checkpoint_planner import NoPlanFits, find_plan
from .checkpoint_predict import predict
from .kernels import choose_backend
from .visual_inputs import VisualInputs

logger = logging.getLogger(__name__)

METHODS = ("ma-gc", "layer")
OBJECTIVES = ("time", "memory")
# What torch.utils.checkpoint takes; without meaning for "ma-gc", which is always exact and never reentrant.
_TORCH_KEYS = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "context_fn")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """What the user asked for.

    Attributes:
        memory_budget: bytes that training this model may hold on the device in all: weights, gradients, fp32 sums of
            them, optimizer state and activations. None: what is free when training starts, less a margin.
        host_budget: bytes of host memory for checkpoints. None: half of what is free.
        layer_interval, sequence_interval: the paper's l (layers) and s (tokens); given, nothing is planned.
        objective: "time" takes the fastest plan that fits, "memory" the smallest one.
        optimizer_bytes: size of the optimizer's state on this device. None: two numbers per trained parameter (Adam).
    """

    memory_budget: int | None = None
    host_budget: int | None = None
    layer_interval: int | None = None
    sequence_interval: int | None = None
    objective: str = "time"
    optimizer_bytes: int | None = None

    @classmethod
    def from_kwargs(cls, kwargs: dict) -> "CheckpointSettings":
        """Read `gradient_checkpointing_kwargs`; sizes are bytes or text such as "24GiB".

        Raises:
            ValueError: an unknown key, or a value that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ValueError(
                f"gradient_checkpointing_kwargs has unknown keys {', '.join(map(repr, unknown))}; known are 'method', "
                f"{', '.join(map(repr, known))}, and torch's {', '.join(map(repr, _TORCH_KEYS))}"
            )
        values = dict(kwargs)
        for name in ("memory_budget", "host_budget", "optimizer_bytes"):
            if values.get(name) is not None:
                values[name] = parse_bytes(values[name], name)
        for name in ("layer_interval", "sequence_interval"):
            value = values.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number, 1 or more")
        if values.get("memory_budget") is not None and values["memory_budget"] < 2**10:
            raise ValueError(f'memory_budget={kwargs["memory_budget"]!r} is less than 1 KiB; write a unit: "24GiB"')
        planned = {"memory_budget", "host_budget", "objective"} & set(values)
        if planned and (values.get("layer_interval") or values.get("sequence_interval")):
            raise ValueError(
                f"layer_interval and sequence_interval are taken as they are, {', '.join(sorted(planned))} would plan "
                "them: give one or the other"
            )
        if values.get("objective", "time") not in OBJECTIVES:
            raise ValueError(f"objective={values['objective']!r}; allowed are {', '.join(map(repr, OBJECTIVES))}")
        return cls(**values)


def parse_bytes(size: int | str, name: str) -> int:
    """Return bytes from a number or from text such as "24GiB" or "500 MB".

    Raises:
        ValueError: naming `name` and what is allowed.
    """
    if isinstance(size, (int, float)) and not isinstance(size, bool) and 0 <= size < math.inf:
        return int(size)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", size) if isinstance(size, str) else None
    if match is None or match[2].upper() not in _UNITS:
        units = ", ".join(unit for unit in ("KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"))
        raise ValueError(f'{name}={size!r} is no size; give bytes, or text such as "24GiB" (units: {units})')
    return int(float(match[1]) * _UNITS[match[2].upper()])


class Checkpointing:
    """Multi-axis checkpointing of one language model: settings, and the plans made so far."""

    def __init__(self, settings: CheckpointSettings):
        self.settings = settings
        self.fixed_plan = None  # tests and benchmarks: run this one
        self.engine = None  # that shards the weights, once found
        self.budgets = None  # (device in all, host), once known
        self.costs, self.plans = {}, {}

    def read(self, model, rows, inputs, sink, state):
        """Read `rows` by a plan into `sink`, a `NextTokenLoss` or `KeptOutputs`; return the state behind them."""
        loss = sink if hasattr(sink, "part") else None
        vision = inputs.model if isinstance(inputs, VisualInputs) else None
        engine = self._sharded_by(model, inputs, loss)
        parts = _Parts(model, None if loss is None else loss.head, vision, engine is not None)
        frames = 0 if vision is None else inputs.num_frames
        plan = self.plan(parts, rows.length, rows.batch_size, frames)
        run = run_checkpointed if engine is None else run_cells
        output, state = run(model, inputs, rows.length, state, rows.layout, plan, loss)
        if loss is None:
            sink.add(0, output)
        else:
            loss.total = output
        return state

    def _sharded_by(self, model, inputs, loss) -> str | None:
        """Return the engine that shards a weight of language model, head or vision; log its name once."""
        vision = [inputs.model] if hasattr(inputs, "model") else []
        engine = shards_weights(model, *vision, *([] if loss is None else [loss.head]))
        if engine is not None and engine != self.engine:
            logger.info('%s shards the weights: the "ma-gc" plan runs as checkpoint cells', engine)
        self.engine = engine
        return engine

    def plan(self, parts: "_Parts", sequence_length: int, batch_size: int, num_frames: int) -> CheckpointPlan:
        """Return the plan for this many tokens of each row and frames of all."""
        if self.fixed_plan is not None:
            return self.fixed_plan
        settings = self.settings
        if settings.layer_interval or settings.sequence_interval:
            layers = parts.model.config.num_hidden_layers
            longest = min(sequence_length, parts.model.longest_segment(batch_size))
            return CheckpointPlan(
                segments=uniform(sequence_length, min(settings.sequence_interval or longest, longest)),
                num_layers=layers,
                layer_interval=min(settings.layer_interval or layers, layers),
            )
        # Few different lengths are planned for; a length that fits on its own must not fail for that.
        rounded = _round_up(sequence_length)
        with suppress(NoPlanFits):
            return self._planned(parts, rounded, batch_size, math.ceil(num_frames * rounded / sequence_length))
        return self._planned(parts, sequence_length, batch_size, num_frames)

    def _planned(self, parts, sequence_length, batch_size, num_frames) -> CheckpointPlan:
        key = (sequence_length, batch_size, _round_up(num_frames), *parts.key())
        if key not in self.plans:
            self.plans[key] = self._find(parts, sequence_length, batch_size, num_frames)
            logger.info("batch of %d x %d tokens:\n%s", batch_size, sequence_length, self.plans[key].summary())
        return self.plans[key]

    def _find(self, parts, sequence_length, batch_size, num_frames) -> CheckpointPlan:
        device = parts.model.norm_f.weight.device
        costs = self.step_costs(parts, batch_size)
        held = HeldBytes.of(parts.modules, self.settings.optimizer_bytes)
        if self.budgets is None:  # once: later on, the steps before have left something of what is free now
            budget, host = self.settings.memory_budget, self.settings.host_budget
            self.budgets = (
                total_budget(held, device) if budget is None else budget,
                free_host_bytes() // (2 if device.type == "cuda" else 4) if host is None else host,
            )
        room, host_room = self.budgets[0] - held.total, self.budgets[1]
        costs = replace(costs, **held.terms())
        # On a CPU host memory is device memory: checkpoints are no better off there, unless somebody wants to see it.
        features_only = device.type == "cpu" and self.settings.host_budget is None
        return find_plan(
            costs, sequence_length, room, host_room, self.settings.objective, num_frames, features_only=features_only
        )

    def step_costs(self, parts: "_Parts", batch_size: int) -> StepCosts:
        """Return what a layer, the head and the frames cost: measured once for each batch size and dtype."""
        key = (batch_size, *parts.key())
        if key not in self.costs:
            if parts.is_sharded:  # a layer of its own cannot be run without the other ranks
                config = parts.model.config if parts.vision is None else parts.vision.config
                self.costs[key] = analytic_costs(config, batch_size, parts.dtype, parts.scan)
            else:
                self.costs[key] = measure_costs(parts.model, batch_size, parts.head, parts.vision)
        return self.costs[key]


@dataclass(frozen=True)
class _Parts:
    """The modules of a training step: language model, head and video model, which may be None."""

    model: torch.nn.Module
    head: torch.nn.Module | None
    vision: torch.nn.Module | None
    is_sharded: bool

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [module for module in (self.model, self.head, self.vision) if module is not None]

    @property
    def dtype(self) -> torch.dtype:
        device = self.model.norm_f.weight.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.model.norm_f.weight.dtype

    @property
    def scan(self) -> str:
        weight = self.model.norm_f.weight
        return choose_backend(self.model.config.backend, weight.device, weight.dtype).scan

    def key(self) -> tuple:
        """Return what costs depend on besides sizes."""
        weight = self.model.norm_f.weight
        trained = sum(p.numel() for module in self.modules for p in module.parameters() if p.requires_grad)
        return weight.device, weight.dtype, self.dtype, trained


def _round_up(length: int) -> int:
    """Return the next quarter of a power of 2, so that few plans are made."""
    return 0 if length == 0 else math.ceil(2 ** (math.ceil(4 * math.log2(length)) / 4))


class CheckpointingMixin:
    """`gradient_checkpointing_enable` and its newer name for every model with a `Ma2mbaModel` inside."""

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Switch checkpointing on for training.

        Args:
            gradient_checkpointing_kwargs: `{"method": "ma-gc", ...}` with the fields of `CheckpointSettings` (the
                default, with an automatic budget), or `{"method": "layer"}` with what torch's `checkpoint` takes.
            every_n_layers, offload: for "layer" only.

        Raises:
            ValueError: unknown keys or values, or settings of the other method.
        """
        if not isinstance(gradient_checkpointing_kwargs or {}, dict):
            raise ValueError(
                f"gradient_checkpointing_kwargs={gradient_checkpointing_kwargs!r} must be a dictionary such as "
                '{"method": "ma-gc", "memory_budget": "24GiB"}'
            )
        kwargs = dict(gradient_checkpointing_kwargs or {})
        method = kwargs.pop("method", "ma-gc")
        if method not in METHODS:
            raise ValueError(f"method={method!r}; allowed are {', '.join(map(repr, METHODS))}")
        if method == "layer":
            foreign = sorted(set(kwargs) - set(_TORCH_KEYS))
            if foreign:
                raise ValueError(
                    f'{{"method": "layer"}} does not take {", ".join(map(repr, foreign))}; it takes '
                    f"{', '.join(map(repr, _TORCH_KEYS))}, every_n_layers and offload"
                )
            self.gradient_checkpointing_disable()
            _enable_per_layer(self, {"use_reentrant": False} | kwargs, every_n_layers, offload)
            return
        if every_n_layers != 1 or offload:
            raise ValueError(
                'every_n_layers and offload belong to {"method": "layer"}; '
                '"ma-gc" takes layer_interval and host_budget'
            )
        settings = CheckpointSettings.from_kwargs({k: v for k, v in kwargs.items() if k not in _TORCH_KEYS})
        self.gradient_checkpointing_disable()
        for model in _language_models(self):
            model.checkpointing = Checkpointing(settings)
            model.gradient_checkpointing = True  # what `is_gradient_checkpointing` and the Trainer read

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """`gradient_checkpointing_enable` under the name that transformers gave it in 5.23."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Switch checkpointing off; training keeps every activation again."""
        for model in _language_models(self):
            model.checkpointing = None
        PreTrainedModel._set_gradient_checkpointing(self, enable=False)
        self.disable_input_require_grads()  # which "layer" enables

    def activation_checkpointing_disable(self) -> None:
        """`gradient_checkpointing_disable` under the name that transformers gave it in 5.23."""
        self.gradient_checkpointing_disable()

    def checkpoint_plan(self, sequence_length: int, batch_size: int = 1) -> CheckpointPlan:
        """Return the plan that a training step on this many tokens of each row would run by, and what it costs.

        A video model's tokens count as frames throughout, which is the most they can cost.

        Raises:
            ValueError: checkpointing is off, or nothing fits the budget.
        """
        model = next(iter(_language_models(self)))
        if model.checkpointing is None:
            raise ValueError('no plan without "ma-gc": call gradient_checkpointing_enable() first')
        for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name}={value!r} must be a whole number")
        if sequence_length < 1 or batch_size < 1:
            raise ValueError(f"sequence_length={sequence_length}, batch_size={batch_size}: both must be at least 1")
        vision = next((module for module in self.modules() if hasattr(module, "vision_tower")), None)
        parts = _Parts(model, getattr(self, "lm_head", None), vision, shards_weights(self) is not None)
        per_frame = 0 if vision is None else vision.config.tokens_per_frame
        frames = batch_size * sequence_length // per_frame if per_frame else 0
        plan = model.checkpointing.plan(parts, sequence_length, batch_size, frames)
        if plan.predicted is None:
            held = HeldBytes.of(parts.modules, model.checkpointing.settings.optimizer_bytes)
            costs = replace(model.checkpointing.step_costs(parts, batch_size), **held.terms())
            plan = replace(plan, predicted=predict(plan, costs, frames))
        return plan


def _language_models(model: torch.nn.Module):
    return [module for module in model.modules() if hasattr(module, "checkpointing")]


def _enable_per_layer(model, kwargs: dict, every_n_layers: int, offload: bool) -> None:
    """Call transformers' own implementation, whose name changed after 5.17."""
    own = getattr(PreTrainedModel, "_activation_checkpointing_enable", PreTrainedModel.gradient_checkpointing_enable)
    own(model, kwargs, every_n_layers=every_n_layers, offload=offload)
