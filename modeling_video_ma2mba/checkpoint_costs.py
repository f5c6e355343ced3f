"""What one layer, the head, the input and the vision tower cost in bytes and seconds: measured, or from the config.

`measure_costs` runs one layer of the given model at four lengths and a few frames; `analytic_costs` counts the tensors
a config implies, without time. Both give `StepCosts`, from which checkpoint_planner.py predicts every plan.

Dims: B batch, n tokens of a segment, D model width, E inner width, C convolution channels, H heads, V vocabulary.
"""

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from .checkpoint_engine import RandomState
from .kernels import choose_backend
from .language_model_outputs import LOSS_LOGITS_BYTES
from .live_memory import MemoryMeter
from .ssd import workspace_tokens
from .vision_features import encode_frames, frame_sequence

# Tokens (over all rows) at which a layer is measured: enough to see what grows and what does not.
POINTS = {"cuda": (1024, 2048, 4096, 8192), "cpu": (64, 256, 512, 2048)}
FRAMES = (1, 4, 8)
_REPEATS = 3


class LayerCost(NamedTuple):
    """One layer on one segment: bytes above what was there before, and seconds (None: not measured)."""

    graph: float  # kept for the backward, output and new state included
    graph_peak: float  # at most while the graph is made
    plain_peak: float  # at most without graph
    backward_peak: float  # at most in the backward, above the graph and the incoming gradient
    plain_seconds: float | None = None
    graph_seconds: float | None = None
    backward_seconds: float | None = None


class VisionCost(NamedTuple):
    """A micro-batch of frames, from uint8 pixels to tokens; bytes and seconds as in `LayerCost`."""

    plain_peak: float  # tower, pooling and projector without graph
    graph_peak: float  # with graph and backward, weight gradients included; only the projector if the tower is frozen
    plain_seconds: float | None = None
    graph_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Everything the planner knows about a model, a batch size and a device.

    Attributes:
        source: "measured" or "analytic".
        batch_size, num_layers.
        state_bytes: conv + SSM state of all layers. boundary_bytes: a layer's input, per position of all rows.
        longest_segment: tokens that the kernels can take at once.
        layers: {recompute_mixer: {n: LayerCost}}.
        vision: {frames: VisionCost}, empty without a tower. tower_is_trained: gradients reach the tower.
        head_rows: rows of the vocabulary. head_bytes: a weight of head and embedding, each.
        logit_bytes: at most held of logits, their gradients included, per supervised position.
        feature_bytes: pooled features of one frame on the host.
        tokens_per_frame: 0 without a tower. frames_per_clip: frames that the tower reads together.
        weights, gradients, sums, optimizer: bytes of those on the device. layer_sums, vision_sums: sums of one layer,
            of tower and projector.
    """

    source: str
    device_type: str
    batch_size: int
    num_layers: int
    state_bytes: int
    boundary_bytes: int
    longest_segment: int
    layers: dict[bool, dict[int, LayerCost]]
    head_rows: int
    logit_bytes: int
    head_bytes: int
    embedding_bytes: int
    weights: int = 0
    gradients: int = 0
    sums: int = 0
    layer_sums: int = 0
    vision_sums: int = 0
    optimizer: int = 0
    vision: dict[int, VisionCost] = None
    tower_is_trained: bool = False
    tokens_per_frame: int = 0
    frames_per_clip: int = 1
    feature_bytes: int = 0

    def layer(self, n: int, recompute: bool) -> LayerCost:
        """Return the cost of a layer on a segment of `n` tokens, between or beyond the measured lengths."""
        return _interpolate(self.layers[recompute], n)

    def frames(self, count: int) -> VisionCost:
        """Return the cost of a micro-batch of `whole_clips(count)` frames."""
        return _interpolate(self.vision, self.whole_clips(count))

    def whole_clips(self, count: int) -> int:
        """Return the frames of the largest micro-batch of at most `count` frames, or of one clip."""
        return max(count // self.frames_per_clip, 1) * self.frames_per_clip

    def loss_positions(self, n: int) -> int:
        """Return how many supervised positions of a segment have logits at a time."""
        return min(self.batch_size * n, max(1, LOSS_LOGITS_BYTES // (4 * self.head_rows)))


def _interpolate(points: dict[int, NamedTuple], x: float) -> NamedTuple:
    """Go through the points in straight lines, beyond the last one on with its slope."""
    xs = sorted(points)
    if len(xs) == 1:
        return points[xs[0]]
    right = next((k for k in range(1, len(xs)) if x <= xs[k]), len(xs) - 1)
    low, high = points[xs[right - 1]], points[xs[right]]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    values = [None if a is None else max(a + share * (b - a), 0.0) for a, b in zip(low, high)]
    if x < xs[0]:  # never less than in proportion
        values = [None if v is None else max(v, a * x / xs[0]) for v, a in zip(values, low)]
    return type(low)(*values)


def measure_costs(model, batch_size: int, head=None, vision=None) -> StepCosts:
    """Measure one layer of `model` (a `Ma2mbaModel`), and tower and projector of `vision` (a `VideoMa2mbaModel`).

    Autocast is taken as it is now. Weights, gradients and random generators stay as they are.
    """
    device = model.norm_f.weight.device
    with RandomState(device).kept():
        layers = {flag: _measure_layer(model, batch_size, flag) for flag in (False, True)}
        hidden = _layer_input(model, batch_size, 1)
        frames = {count: _measure_frames(vision, count) for count in _frame_counts(vision)}
    state = model.new_state(batch_size)
    costs = StepCosts(
        source="measured",
        device_type=device.type,
        batch_size=batch_size,
        num_layers=len(model.layers),
        state_bytes=state.nbytes,
        boundary_bytes=hidden.nbytes,
        longest_segment=model.longest_segment(batch_size),
        layers=layers,
        layer_sums=_sums_of(model.layers[0].parameters()),
        vision=frames,
        **_head_costs(model, head),
    )
    return costs if vision is None else replace(costs, **_vision_facts(vision))


def _head_costs(model, head) -> dict:
    weight = model.embeddings.weight if head is None else head.weight
    rows = weight.shape[0]
    casts = torch.is_autocast_enabled(weight.device.type)
    size = torch.get_autocast_dtype(weight.device.type).itemsize if casts else weight.element_size()
    # Log-softmax, its gradient, that of the loss, and, where the head computes in 16 bit, the gradient in 16 bit.
    per_position = rows * (12 if size >= 4 else 12 + size)
    return {
        "head_rows": rows,
        "logit_bytes": per_position * max(1, weight.element_size() // 4),
        "head_bytes": weight.nbytes,
        "embedding_bytes": model.embeddings.weight.nbytes,
    }


def _sums_of(parameters) -> int:
    """Return bytes of the gradient sums of those parameters that are trained."""
    return sum(p.numel() * max(4, p.element_size()) for p in parameters if p.requires_grad)


def _vision_facts(vision) -> dict:
    config = vision.config
    return {
        "vision_sums": _sums_of([*vision.vision_tower.parameters(), *vision.multi_modal_projector.parameters()]),
        "tower_is_trained": any(parameter.requires_grad for parameter in vision.vision_tower.parameters()),
        "tokens_per_frame": config.tokens_per_frame,
        "frames_per_clip": config.frames_per_clip,
        "feature_bytes": config.tokens_per_frame
        * config.vision_config.hidden_size
        * vision.multi_modal_projector.dtype.itemsize,
    }


def _layer_input(model, batch_size: int, n: int) -> torch.Tensor:
    """Return random numbers in shape and dtype of what a layer in the middle of the stack reads."""
    embeds = model.embeddings.weight.new_empty(batch_size, n, model.config.hidden_size).normal_()
    dtype = torch.promote_types(embeds.dtype, torch.float32) if model.config.residual_in_fp32 else embeds.dtype
    return embeds.to(dtype)


def _measure_layer(model, batch_size: int, recompute: bool) -> dict[int, LayerCost]:
    device = model.norm_f.weight.device
    block = model.layers[len(model.layers) // 2]
    backend = replace(choose_backend(model.config.backend, device, model.norm_f.weight.dtype), recompute=recompute)
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    zeros = model.new_state(batch_size)
    costs = {}
    for n in profiled_lengths(model, batch_size, backend):
        hidden = _layer_input(model, batch_size, n).requires_grad_()
        leaves = [hidden, zeros.conv[0].clone().requires_grad_(), zeros.ssm[0].clone().requires_grad_()]

        def plain(leaves=leaves):
            with torch.no_grad():
                return block(*leaves, None, backend)

        def graph(leaves=leaves):
            with torch.enable_grad():
                return block(*leaves, None, backend)

        def backward(outputs, gradients, leaves=leaves):
            return torch.autograd.grad(outputs, [*leaves, *parameters], gradients, allow_unused=True)

        gradients = [torch.ones_like(t) for t in plain()]
        with MemoryMeter(device) as meter:
            plain()
            plain_peak = meter.peak
            meter.restart()
            outputs = graph()
            kept, graph_peak = meter.live, meter.peak
            meter.restart()
            found = backward(outputs, gradients)
            backward_peak = meter.peak - kept
        del outputs, found
        seconds = [_seconds(device, plain), *_graph_seconds(device, graph, backward, gradients)]
        costs[n] = LayerCost(kept, graph_peak, plain_peak, backward_peak, *seconds)
    return costs


def profiled_lengths(model, batch_size: int, backend) -> list[int]:
    """Return the four segment lengths a layer is measured at.

    Costs of the kernels grow evenly; the PyTorch scan's workspace grows up to a length, which is one of the four.
    """
    if backend.scan == "triton":
        return [max(1, tokens // batch_size) for tokens in (1024, 2048, 4096, 8192)]
    full = workspace_tokens(batch_size, model.config.num_heads, model.norm_f.weight.device)
    return [full // 8, full // 2, full, 2 * full]


def _frame_counts(vision) -> tuple[int, ...]:
    """Return the numbers of frames that a tower is measured at: a few, or one clip and two."""
    if vision is None:
        return ()
    clip = vision.config.frames_per_clip
    return FRAMES if clip == 1 else (clip, 2 * clip)


def _measure_frames(vision, count: int) -> VisionCost:
    config, tower, projector = vision.config, vision.vision_tower, vision.multi_modal_projector
    size = config.vision_config.image_size
    frames = frame_sequence(config, torch.zeros(1, count, 3, size, size, dtype=torch.uint8), "pixel_values_videos")
    trained = [p for module in (tower, projector) for p in module.parameters() if p.requires_grad]
    tower_is_trained = any(p.requires_grad for p in tower.parameters())

    def encode():
        pixels = frames.load(0, count, projector.device, tower.dtype)
        features = encode_frames(
            tower, pixels, config.feature_layers_run, config.spatial_pool_stride, config.frames_per_clip
        )
        return features.to(projector.dtype)

    def plain():
        with torch.no_grad():
            return projector(encode().flatten(0, 1))

    with torch.no_grad():
        features = encode()

    def graph():
        with torch.enable_grad():
            tokens = projector((encode() if tower_is_trained else features).flatten(0, 1))
        return torch.autograd.grad(tokens, trained, torch.ones_like(tokens), allow_unused=True)

    peaks, seconds = [0.0, 0.0], [0.0, 0.0]
    for k, function in enumerate((plain, graph) if trained else (plain,)):
        with MemoryMeter(projector.device) as meter:
            function()
            peaks[k] = meter.peak
        seconds[k] = _seconds(projector.device, function)
    return VisionCost(*peaks, *seconds)


def _seconds(device, function) -> float:
    """Return the least of a few runs: what else the machine does can only add to it."""
    taken = []
    for _ in range(_REPEATS):
        start = _now(device)
        function()
        taken.append(_now(device) - start)
    return min(taken)


def _graph_seconds(device, graph, backward, gradients) -> tuple[float, float]:
    forward, back = [], []
    for _ in range(_REPEATS):
        start = _now(device)
        outputs = graph()
        middle = _now(device)
        backward(outputs, gradients)
        forward.append(middle - start)
        back.append(_now(device) - middle)
    return min(forward), min(back)


def _now(device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
