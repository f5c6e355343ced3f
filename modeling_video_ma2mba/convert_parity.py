"""Compares a converted model with its original, module by module: `video-ma2mba convert --checkpoint ... --parity`.

The original is read here a second time, in fp64 and plain PyTorch, straight from the authors' files and config: no
module of this package computes anything, and names are not taken from the converter.

Dims: F frames, P patches (and CLIP's class token), D width, T tokens, H heads, E inner width, N state.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from .checkpoint_files import TensorFiles, read_json
from .modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration

_FRAMES, _WORDS = 2, 8
_ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def save_parity(original: str | Path, converted: str | Path) -> dict:
    """Run both on a fixed input; return the largest difference of each module, also written as `parity_report.json`.

    The converted model is loaded in fp32, whole. The original is computed in fp64, one layer at a time.

    Args:
        original: `llava_mamba` folder. converted: what `convert_llava_mamba` made of it.

    Returns:
        `modules`: name -> `max_difference` and `max_value` of its output; the input; the largest relative difference.
    """
    model = VideoMa2mbaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32).eval()
    config = model.config
    side = config.vision_config.image_size
    # Every number is fixed by its place: no generator, whose stream may change with versions.
    frames = (torch.arange(_FRAMES * 3 * side * side) * 2654435761 % 4294967291 // 65536 % 256).to(torch.uint8)
    frames = frames.reshape(_FRAMES, 3, side, side)
    words = torch.arange(_WORDS) * 7919 % min(config.image_token_id, config.video_token_id)
    visual = torch.full((_FRAMES * config.tokens_per_frame,), config.video_token_id)
    ids = torch.cat([words[: _WORDS // 2], visual, words[_WORDS // 2 :]])
    actual = _outputs(model, ids, frames)

    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (config.image_mean, config.image_std))
    reading = _read_original(
        Path(original), (frames / 255.0 - mean) / std, words, config.vision_config, config.feature_layers_run
    )
    modules = {}
    for name, expected in tqdm(reading, desc="parity", total=len(actual), unit=" modules", disable=None):
        found = actual[name].double().reshape(-1, actual[name].shape[-1])
        expected = expected.reshape(-1, expected.shape[-1])
        found = found[:, : expected.shape[-1]]  # rows of the vocabulary that the conversion added have no counterpart
        difference = float((found - expected).abs().max())
        modules[name] = {"max_difference": difference, "max_value": float(expected.abs().max())}
    report = {
        "input": f"{_FRAMES} frames of {side} px, {len(ids)} tokens; converted in float32, original in float64",
        "largest_relative_difference": max(m["max_difference"] / max(m["max_value"], 1e-30) for m in modules.values()),
        "modules": modules,
    }
    (Path(converted) / "parity_report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


@torch.no_grad()
def _outputs(model, ids: torch.Tensor, frames: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what every module of the converted model puts out, by the names of `_read_original`."""
    inner = model.model
    modules = {
        f"vision layer {i}": inner.vision_tower.encoder.layers[i] for i in range(inner.config.feature_layers_run)
    }
    modules |= {"projector": inner.multi_modal_projector}
    modules |= {f"layer {i}": layer for i, layer in enumerate(inner.language_model.layers)}
    modules |= {"final norm": inner.language_model.norm_f}
    outputs: dict[str, torch.Tensor] = {}

    def keep(name):
        def hook(module, inputs, output):
            assert name not in outputs, "the input is short enough for one segment"
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    inner.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: outputs.update(pooled=inputs[0]))
    outputs["logits"] = model(input_ids=ids[None], pixel_values_videos=frames[None]).logits
    for hook in hooks:
        hook.remove()
    return outputs


@torch.no_grad()
def _read_original(
    folder: Path, pixels: torch.Tensor, words: torch.Tensor, vision, layers_run: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and output of every module, in the order they run.

    Args:
        pixels: (F, 3, H, W) normalised, fp64. words: token ids before and after the video, half each.
        vision: for the tower's heads, activation and epsilon, which are in no file of the original.
        layers_run: of the tower; a file that lacks the last ones does not tell.
    """
    files, fields = TensorFiles(folder), read_json(folder / "config.json")

    def weight(end: str) -> torch.Tensor | None:
        names = [name for name in files if name == end or name.endswith("." + end)]
        assert len(names) < 2, names
        return files.read(names[0]).double() if names else None

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weight(f"{name}.weight"), weight(f"{name}.bias"))

    def layer_norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weight(f"{name}.weight"), weight(f"{name}.bias"), vision.layer_norm_eps)

    def rms_norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight(f"{name}.weight")

    # 1. the tower
    kernel = weight("embeddings.patch_embedding.weight")
    patches = F.conv2d(pixels, kernel, weight("embeddings.patch_embedding.bias"), stride=kernel.shape[-1])
    side = patches.shape[-1]
    x = patches.flatten(2).mT  # (F, D, side, side) -> (F, P, D)
    class_token = weight("embeddings.class_embedding")
    if class_token is not None:
        x = torch.cat([class_token.expand(len(x), 1, -1), x], dim=1)
    x = x + weight("embeddings.position_embedding.weight")
    if class_token is not None:
        x = layer_norm(x, "pre_layrnorm")
    for i in range(layers_run):
        name = f"encoder.layers.{i}"
        normed = layer_norm(x, f"{name}.layer_norm1")
        q, k, v = (
            linear(normed, f"{name}.self_attn.{p}_proj")
            .unflatten(-1, (vision.num_attention_heads, -1))
            .transpose(1, 2)
            for p in "qkv"
        )  # (F, H, P, D / H)
        scores = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        x = x + linear((scores @ v).transpose(1, 2).flatten(2), f"{name}.self_attn.out_proj")
        hidden = linear(layer_norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        x = x + linear(_ACTIVATIONS[vision.hidden_act](hidden), f"{name}.mlp.fc2")
        yield f"vision layer {i}", x

    # 2. pool, then project
    stride = fields.get("mm_spatial_pool_stride", 2)
    grid = x[:, -side * side :].mT.unflatten(2, (side, side))
    if stride > 1:
        grid = F.interpolate(grid, size=(math.ceil(side / stride),) * 2, mode="bilinear", align_corners=False)
    x = grid.flatten(2).mT
    yield "pooled", x
    x = linear(F.gelu(linear(x, "mm_projector.0")), "mm_projector.2")
    yield "projector", x

    # 3. Mamba-2, token by token
    embedding = weight("backbone.embedding.weight")
    before, after = embedding[words].chunk(2)
    residual = torch.cat([before, x.flatten(0, 1), after])  # (T, D)
    for i in range(fields["n_layer"]):
        name = f"backbone.layers.{i}"
        residual = residual + _mixer(rms_norm(residual, f"{name}.norm"), f"{name}.mixer", fields, weight, linear)
        yield f"layer {i}", residual
    x = rms_norm(residual, "backbone.norm_f")
    yield "final norm", x
    head = weight("lm_head.weight")
    yield "logits", x @ (embedding if head is None else head).mT


def _mixer(u: torch.Tensor, name: str, fields: dict, weight, linear) -> torch.Tensor:
    """Return a Mamba-2 mixer's output by its recurrence, (T, D) -> (T, D)."""
    ssm = fields.get("ssm_cfg") or {}
    heads, kernel = len(weight(f"{name}.A_log")), weight(f"{name}.conv1d.weight")  # (C, 1, W)
    state, groups = ssm.get("d_state", 128), ssm.get("ngroups", 1)
    projected = linear(u, f"{name}.in_proj")
    inner = len(kernel) - 2 * groups * state
    z, x, dt = projected.split([inner, len(kernel), heads], dim=-1)
    x = F.pad(x.mT[None], (kernel.shape[-1] - 1, 0))
    x = F.silu(F.conv1d(x, kernel, weight(f"{name}.conv1d.bias"), groups=len(kernel)))[0].mT
    x, B, C = x.split([inner, groups * state, groups * state], dim=-1)
    low, high = ssm.get("dt_limit", (0.0, math.inf))
    dt = F.softplus(dt + weight(f"{name}.dt_bias")).clamp(low, high)  # (T, H)
    decay = torch.exp(-dt * weight(f"{name}.A_log").exp())
    x = x.unflatten(-1, (heads, -1))  # (T, H, E / H)
    B, C = (v.unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, dim=1) for v in (B, C))  # (T, H, N)
    h = x.new_zeros(*x.shape[1:], state)  # (H, E / H, N)
    outputs = []
    for t in range(len(x)):
        h = h * decay[t, :, None, None] + (dt[t, :, None] * x[t])[..., None] * B[t, :, None, :]
        outputs.append((h * C[t, :, None, :]).sum(-1))
    y = torch.stack(outputs) + weight(f"{name}.D")[:, None] * x
    y = (y.flatten(1) * F.silu(z)).unflatten(-1, (groups, -1))
    y = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)).flatten(1) * weight(f"{name}.norm.weight")
    return linear(y, f"{name}.out_proj")


__all__ = ["save_parity"]
