"""Toy models and measuring tools shared by the tests of this folder, as fixtures.

Toy language model: D 64, 2 layers, 4 heads of 32, state 16, 99 words. Toy tower: 56 px, patch 14, so 4 x 4 patches and
2 x 2 = 4 visual tokens a frame. Weights are drawn from a fixed seed and made lively: no bias is zero, no norm weight
one, step sizes reach 1, so that a state or a parameter that is forgotten shows.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_video_ma2mba import (
    Ma2mbaConfig,
    Ma2mbaForCausalLM,
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
)
from modeling_video_ma2mba.live_memory import MemoryMeter

ROOT = Path(__file__).resolve().parents[2]
IMAGE, VIDEO = 97, 98
TEXT_FIELDS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "head_dim": 32,
    "state_size": 16,
    "n_groups": 1,
    "vocab_size": 99,
    "chunk_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,  # answers in these tests have a fixed length
    "tie_word_embeddings": True,
    "backend": "torch",
}
VISION_FIELDS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 56,
}
VIDEOMAMBA_FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "patch_size": 14,
    "image_size": 56,
    "num_frames": 4,
    "scan": "alternating",
    "backend": "torch",
}


def _close(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, expected {expected.dtype}"
    assert torch.isfinite(actual).all(), f"{name}: {int((~torch.isfinite(actual)).sum())} numbers are not finite"
    if actual.numel() == 0:
        return
    difference = (actual - expected).detach().double()
    scale = expected.detach().double()
    largest, rms = float(difference.abs().max()), float(difference.norm() / scale.norm().clamp(min=1e-300))
    limit = tolerance * max(1.0, float(scale.abs().max()))
    assert largest <= limit, f"{name}: max abs error {largest:.3g} over {limit:.3g}, relative RMS {rms:.3g}"


def _lively(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if name.endswith("dt_bias"):
                parameter.copy_(noise * 1.5 - 1.5)  # softplus: 0.01 ... 2
            elif name.endswith("A_log"):
                parameter.copy_(noise * 0.7 - 1)  # decays from forgetful to long
            elif name.endswith("conv1d.weight"):
                parameter.copy_(noise * 0.5)
            elif "pos_embed" in name:  # VideoMamba's; new ones of frames are zero, and its projections next to it
                parameter.copy_(noise * 0.5)
            elif "vision_tower" in name and "mixer" in name and name.endswith(("proj.weight", "proj_b.weight")):
                parameter.mul_(5)
            elif parameter.ndim == 1:
                parameter.add_(noise * 0.2)


@pytest.fixture
def assert_close():
    """`assert_close(name, actual, expected, tolerance)`: absolute, relative to the largest expected number above 1."""
    return _close


@pytest.fixture
def text_config():
    """`text_config(**overrides)` -> `Ma2mbaConfig` of the toy language model."""
    return lambda **overrides: Ma2mbaConfig(**{**TEXT_FIELDS, **overrides})


@pytest.fixture
def text_model(text_config):
    """`text_model(seed=0, dtype=torch.float32, **config overrides)` -> lively `Ma2mbaForCausalLM` in eval mode."""

    def build(seed=0, dtype=torch.float32, **overrides):
        torch.manual_seed(seed)
        model = Ma2mbaForCausalLM(text_config(**overrides))
        _lively(model, seed)
        return model.to(dtype).eval()

    return build


@pytest.fixture
def video_config(text_config):
    """`video_config(tower="clip", text={}, vision={}, **overrides)` -> `VideoMa2mbaConfig` of the toy video model.

    Towers: clip, siglip, videomamba (clips of 4 frames).
    """

    def build(tower="clip", text=None, vision=None, **overrides):
        sizes = {"model_type": f"{tower}_vision_model", **VISION_FIELDS}
        if tower == "videomamba":
            sizes = {"model_type": tower, **VIDEOMAMBA_FIELDS}
        fields = {
            "vision_config": {**sizes, **(vision or {})},
            "text_config": text_config(**(text or {})),
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
        }
        return VideoMa2mbaConfig(**{**fields, **overrides})

    return build


@pytest.fixture
def video_model(video_config):
    """`video_model(tower="clip", seed=0, dtype=torch.float32, **overrides)` -> lively model, in eval mode."""

    def build(tower="clip", seed=0, dtype=torch.float32, **overrides):
        torch.manual_seed(seed)
        model = VideoMa2mbaForConditionalGeneration(video_config(tower, **overrides))
        _lively(model, seed)
        return model.to(dtype).eval()

    return build


@pytest.fixture
def ids():
    """`ids(rows, length, seed=0)` -> random words, never a placeholder and never the padding id."""

    def draw(rows, length, seed=0):
        return torch.randint(2, IMAGE, (rows, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def frames():
    """`frames(count, seed=0)` -> uint8 (count, 3, 56, 56)."""

    def draw(count, seed=0):
        generator = torch.Generator().manual_seed(1000 + seed)
        return torch.randint(0, 256, (count, 3, 56, 56), dtype=torch.uint8, generator=generator)

    return draw


@pytest.fixture
def prompt(ids):
    """`prompt(5, "v2", 3, "i", seed=0)` -> ids (T,): 5 words, 2 frames of video (8 ids), 3 words, an image (4 ids)."""

    def write(*parts, seed=0):
        pieces = []
        for k, part in enumerate(parts):
            if isinstance(part, int):
                pieces.append(ids(1, part, seed=100 * seed + k)[0])
            else:
                token, count = (VIDEO if part[0] == "v" else IMAGE), int(part[1:] or 1)
                pieces.append(torch.full((4 * count,), token))
        return torch.cat(pieces)

    return write


@pytest.fixture
def pad():
    """`pad(rows, side)` -> ids (B, T) and mask (B, T); side is left, right, inside or both."""

    def build(rows, side, extra=3):
        length = max(len(row) for row in rows) + extra
        batch, mask = (
            torch.zeros(len(rows), length, dtype=torch.long),
            torch.zeros(len(rows), length, dtype=torch.long),
        )
        for i, row in enumerate(rows):
            count, missing = len(row), length - len(row)
            if side == "left":
                places = torch.arange(missing, length)
            elif side == "right":
                places = torch.arange(count)
            elif side == "both":
                places = torch.arange(count) + missing // 2
            else:  # holes, other ones in every row
                generator = torch.Generator().manual_seed(i)
                places = torch.randperm(length, generator=generator)[:count].sort().values
            batch[i, places], mask[i, places] = row, 1
        return batch, mask

    return build


@pytest.fixture
def peak_bytes():
    """`peak_bytes(function)` -> the most bytes of new tensors alive at once while `function()` runs."""

    def measure(function):
        with MemoryMeter(torch.device("cpu")) as tracker:
            result = function()
        del result
        return tracker.peak

    return measure


@pytest.fixture
def kept_bytes():
    """`kept_bytes(function)` -> the bytes of new tensors still alive when `function()` has returned its result."""

    def measure(function):
        with MemoryMeter(torch.device("cpu")) as tracker:
            result = function()
            kept = tracker.live
        del result
        return kept

    return measure


@pytest.fixture
def fresh_process():
    """`fresh_process(code, *arguments)` -> what a new Python prints; fails with its stderr."""

    def run(code, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
