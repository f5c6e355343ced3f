"""`model_fingerprint`: tells whether a memory was made by this very model."""

import hashlib
import json

import torch
from torch import nn

from .quantised_weights import stored_tensors

# Numbers taken of each parameter, evenly spaced: enough for any training step to show somewhere.
SAMPLES = 64
# These are fp32 whatever the model's dtype, so they are compared exactly.
_EXACT = ("A_log", "D", "dt_bias")


def model_fingerprint(model: nn.Module) -> str:
    """Return a SHA-256, as hex, of what a memory depends on: sizes, settings and a sample of every parameter.

    Samples are rounded to bfloat16, so that a model has the same fingerprint on any device, loaded as float64,
    float32 or bfloat16 (float16 rounds otherwise, and quantised weights are others). Training shows: full training in
    the fp32 parameters of every layer, adapters by their names, or in the weights they were merged into.
    """
    config = model.config
    text = config.get_text_config()
    settings = {
        name: getattr(config, name) for name in ("tokens_per_frame", "feature_layers_run", "spatial_pool_stride")
    }
    settings |= {name: list(map(float, getattr(config, name))) for name in ("image_mean", "image_std")}
    settings |= {name: getattr(text, name) for name in ("head_dim", "state_size", "n_groups", "conv_kernel")}
    settings["time_step_limit"] = [str(float(limit)) for limit in text.time_step_limit]
    if hasattr(config.vision_config, "scan"):  # VideoMamba: orders of reading leave no trace in the parameters
        settings["scan"] = config.vision_config.scan
    parameters = sorted(model.named_parameters())
    settings["parameters"] = [[name, list(parameter.shape)] for name, parameter in parameters]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    device = parameters[0][1].device
    samples = [
        _sample(name, part).to(device)
        for name, parameter in parameters
        if parameter.device.type != "meta"
        for part in stored_tensors(parameter)
    ]
    if samples:
        digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()


def _sample(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return at most `SAMPLES` numbers, 1-D fp32."""
    flat = tensor.detach().reshape(-1)
    numbers = flat[:: -(-flat.numel() // SAMPLES) or 1]
    if name.rpartition(".")[2] not in _EXACT:
        numbers = numbers.to(torch.bfloat16)
    return numbers.to(torch.float32)
