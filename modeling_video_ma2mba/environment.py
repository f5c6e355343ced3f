"""What this machine would use and why: scan, convolution, decoder, dtype, versions. `video-ma2mba env` prints it."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .kernels import choose_backend

_PACKAGES = (
    "video-ma2mba", "torch", "transformers", "accelerate", "datasets", "peft", "safetensors", "av", "pillow", "numpy",
    "triton", "mamba-ssm", "causal-conv1d", "deepspeed", "decord", "evaluate",
)  # fmt: skip


def describe_environment() -> list[tuple[str, str, str]]:
    """Return (what, choice, reason) for every choice that is made automatically, then (package, version, "")."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    backend = choose_backend("auto", device, dtype)
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    rows = [
        ("python", platform.python_version(), ""),
        ("device", device.type, name),
        ("dtype", str(dtype).removeprefix("torch."), "what `video-ma2mba ask` loads unless told otherwise"),
        ("scan", backend.scan, backend.reason),
        ("convolution", backend.conv, backend.reason),
        ("decoder", "pyav", "the default; decord is used when asked for by name"),
    ]
    return rows + [(package, _version(package), "") for package in _PACKAGES]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
