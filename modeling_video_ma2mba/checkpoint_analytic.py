"""`StepCosts` from a config alone, in bytes: for models that are not built and devices that are not here.

It counts the tensors that norms.py, kernels.py and the scan keep for the backward (a test holds the sum within 1 % of
what a block keeps); transients are rougher. Time cannot be counted and is left out.
"""

import torch

from .checkpoint_costs import LayerCost, StepCosts, VisionCost
from .configuration_video_ma2mba import Ma2mbaConfig, VideoMa2mbaConfig
from .kernels import max_segment_tokens
from .modeling_videomamba import VideoMambaModel
from .scan_orders import block_scans, directions
from .ssd import CHUNK_SIZE, CPU_BLOCK_ELEMENTS, TOKENS_PER_KEPT_STATE
from .state import RecurrentState

# Transients of a layer's backward per token, in numbers of the inner width. The Triton kernels': reference figure
# 96 kB at Mamba-2 2.7B in 16 bit.
_TRITON_TRANSIENT = 9.4
# The PyTorch scan's, in fp32 numbers, for (fp32, 16 bit) tensors, measured: of all tokens in the backward; of those
# that its workspace holds, forward and backward.
_TORCH_TRANSIENT = (3.0, 2.4)
_TORCH_WORKSPACE = (5.2, 7.6)
_TORCH_BACKWARD_WORKSPACE = (17.0, 19.5)
# Numbers of the inner width that a block of VideoMamba keeps per token, measured: once, and for each direction; and
# those a tower without graph holds at most.
_VIDEOMAMBA_KEPT = (4.0, 4.2)
_VIDEOMAMBA_PEAK = 16.0


def analytic_costs(
    config: Ma2mbaConfig | VideoMa2mbaConfig,
    batch_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    scan: str = "triton",
    tower_is_trained: bool = True,
    optimizer_bytes_per_parameter: float | None = None,
) -> StepCosts:
    """Return the costs of a model of `config` whose weights and activations are in `dtype`.

    Args:
        scan: "triton" or "torch", who runs the scan.
        optimizer_bytes_per_parameter: None: two numbers of `dtype` (Adam).
    """
    text, size = config.get_text_config(), dtype.itemsize
    layers = text.num_hidden_layers
    conv, ssm = RecurrentState.shapes(text, batch_size)
    state = _count(conv) * size + _count(ssm) * 4
    boundary = batch_size * text.hidden_size * (max(4, size) if text.residual_in_fp32 else size)
    points = (256, 8192)
    if scan == "torch":  # where its workspace stops growing, and states begin to be kept
        every = _kept_every(text, batch_size)
        points = sorted({1, max(1, _scan_tokens(text) // batch_size), every, 32 * every})
    costs = {
        recompute: {n: _layer(text, batch_size, n, size, boundary, state, scan, recompute) for n in points}
        for recompute in (False, True)
    }
    layer_weights, weights, trained = _parameters(config, tower_is_trained)
    rows = text.vocab_size
    limits = {name: getattr(text, name) for name in ("hidden_size", "intermediate_size", "conv_dim", "num_heads")}
    limits |= {name: getattr(text, name) for name in ("head_dim", "state_size", "chunk_size")}
    return StepCosts(
        source="analytic",
        device_type="cuda" if scan == "triton" else "cpu",
        batch_size=batch_size,
        num_layers=layers,
        state_bytes=layers * state,
        boundary_bytes=boundary,
        longest_segment=max_segment_tokens(batch_size=batch_size, **limits),
        layers=costs,
        head_rows=rows,
        logit_bytes=rows * (12 + (size if size < 4 else 0)),
        head_bytes=rows * text.hidden_size * size,
        embedding_bytes=rows * text.hidden_size * size,
        weights=weights * size,
        gradients=trained * size,
        sums=trained * max(4, size),
        layer_sums=layer_weights * max(4, size),
        optimizer=int(
            trained * (2 * size if optimizer_bytes_per_parameter is None else optimizer_bytes_per_parameter)
        ),
        **_vision(config, size, tower_is_trained),
    )


def _layer(text, batch_size, n, size, boundary, state, scan, recompute) -> LayerCost:
    """Count what norms.py, kernels.py and ssd.py keep; `n` tokens of each row."""
    width, inner, heads, tokens = text.hidden_size, text.intermediate_size, text.num_heads, batch_size * n
    always = tokens * ((width + inner + text.conv_dim + heads + inner) * size + 4) + n * boundary + state
    between = tokens * ((text.conv_dim + inner) * size + (2 * heads + text.n_groups) * 4)
    weights, workspace = _layer_parameters(text) * size, 0
    if scan == "torch":
        kept = max(0, n / _kept_every(text, batch_size) - 1)
        between += kept * _count(RecurrentState.shapes(text, batch_size)[1]) * 4
        # What a scan holds beside its inputs: values of the tokens (P per head) and CHUNK_SIZE decays of each.
        unit, kind = 4 * (inner + heads * CHUNK_SIZE) / 2, int(size < 4)
        held = min(tokens, _scan_tokens(text)) * unit
        workspace = held * _TORCH_WORKSPACE[kind]
        back = held * _TORCH_BACKWARD_WORKSPACE[kind] + tokens * unit * _TORCH_TRANSIENT[kind] + width * inner * size
        back = max(weights, back)
    else:
        back = weights + tokens * _TRITON_TRANSIENT * inner * size
    graph = always + (0 if recompute else between)
    plain = always + between + tokens * inner * size + workspace
    # What was not kept is made again, and stays until the backward has gone through it.
    return LayerCost(graph, plain, plain, back + (between if recompute else 0))


def _scan_tokens(text: Ma2mbaConfig) -> int:
    """Return the tokens of all rows that the PyTorch scan works on at once, on a CPU."""
    return max(CHUNK_SIZE, CPU_BLOCK_ELEMENTS // (text.num_heads * CHUNK_SIZE))


def _kept_every(text: Ma2mbaConfig, batch_size: int) -> int:
    """Return after how many tokens of a row the PyTorch scan keeps a state, on a CPU."""
    chunks = max(1, CPU_BLOCK_ELEMENTS // (text.num_heads * CHUNK_SIZE**2))
    block = chunks // min(batch_size, chunks) * CHUNK_SIZE
    return max(1, TOKENS_PER_KEPT_STATE // block) * block


def _layer_parameters(text: Ma2mbaConfig) -> int:
    projections = text.hidden_size * (2 * text.intermediate_size + text.conv_dim + text.num_heads)
    bias = (text.hidden_size + text.intermediate_size + text.conv_dim + text.num_heads) * text.use_bias
    conv = text.conv_dim * (text.conv_kernel + text.use_conv_bias)
    return projections + bias + conv + 3 * text.num_heads + text.intermediate_size + text.hidden_size


def _parameters(config, tower_is_trained: bool) -> tuple[int, int, int]:
    """Return parameters of a layer, of the model, and those that are trained."""
    text = config.get_text_config()
    layer = _layer_parameters(text)
    tied = config.tie_word_embeddings
    language = text.num_hidden_layers * layer + text.hidden_size + text.vocab_size * text.hidden_size * (2 - tied)
    if not isinstance(config, VideoMa2mbaConfig):
        return layer, language, language
    vision, width = config.vision_config, text.hidden_size
    d, patch = vision.hidden_size, vision.patch_size
    if vision.model_type == "videomamba":
        with torch.device("meta"):
            tower = sum(parameter.numel() for parameter in VideoMambaModel(vision).parameters())
    else:
        m = vision.intermediate_size
        encoder = 4 * d * d + 2 * d * m + 9 * d + m  # a layer: attention, two linear layers, two norms, biases
        places = (vision.image_size // patch) ** 2
        tower = vision.num_hidden_layers * encoder + 3 * patch * patch * d + d * places + 6 * d
    projector = width * (d + 1) + width * (width + 1)
    used = tower * config.feature_layers_run / vision.num_hidden_layers
    trained = language + projector + (used if tower_is_trained else 0)
    return layer, language + projector + tower, round(trained)


def _vision(config, size: int, tower_is_trained: bool) -> dict:
    if not isinstance(config, VideoMa2mbaConfig):
        return {"vision": {}}
    vision = config.vision_config
    d, width = vision.hidden_size, config.get_text_config().hidden_size
    graph, plain = (_clip_frame if vision.model_type == "videomamba" else _picture)(config, size)
    tokens = config.tokens_per_frame
    projector = tokens * (d + 4 * width) * size
    _, _, trained = _parameters(config, tower_is_trained)
    language = _parameters(config.get_text_config(), True)[1]
    weights = (trained - language) * size
    cost = {}
    clip = config.frames_per_clip
    for count in (1, 4, 16) if clip == 1 else (clip, 2 * clip):
        # Weight gradients take the place of the graph on the way down.
        peak = max(count * graph, weights) + count * plain if tower_is_trained else count * projector + weights
        cost[count] = VisionCost(count * plain, peak)
    return {
        "vision": cost,
        "tower_is_trained": tower_is_trained,
        "tokens_per_frame": tokens,
        "frames_per_clip": clip,
        "feature_bytes": tokens * d * size,
        "vision_sums": (trained - language) * max(4, size),
    }


def _picture(config: VideoMa2mbaConfig, size: int) -> tuple[float, float]:
    """Return bytes of a frame in CLIP or SigLIP: kept with graph, at most without."""
    vision = config.vision_config
    patches, d, m = (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size, vision.intermediate_size
    wide = 3 * m if vision.hidden_act == "quick_gelu" else 2 * m  # which keeps x, its sigmoid and their product
    scores = 0
    if vision._attn_implementation == "eager":  # softmax in fp32
        scores = vision.num_attention_heads * patches**2 * (size + (4 if size < 4 else 0))
    # Kept by a layer: two norms' inputs and outputs, q, k, v, attention's output, two linear layers' inputs.
    graph = config.feature_layers_run * (patches * (8 * d + wide) * size + scores)
    return graph, patches * (3 * d + wide) * size + scores + 3 * vision.image_size**2 * 8


def _clip_frame(config: VideoMa2mbaConfig, size: int) -> tuple[float, float]:
    """Return bytes of a frame in VideoMamba: kept with graph, at most without."""
    vision = config.vision_config
    inner = vision.patches_per_frame * vision.intermediate_size * size
    read = [directions(scan, vision.bidirectional) for scan in block_scans(vision.scan, vision.num_hidden_layers)]
    once, each = _VIDEOMAMBA_KEPT
    graph = sum(once + each * len(block) for block in read[: config.feature_layers_run]) * inner
    return graph, _VIDEOMAMBA_PEAK * inner + 3 * vision.image_size**2 * 8


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
