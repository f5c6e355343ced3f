"""Load a model and its processor for a command; a folder or device that will not do is named in clear words."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from modeling_video_ma2mba.shipped_model import model_folder


def check_model(model_path: str, device: str) -> None:
    """Raise ValueError for a folder that is no model and a device that is not there; costs nothing."""
    if model_path.startswith(("/", ".", "~")) and not Path(model_path).is_dir():
        raise ValueError(
            f"there is no model folder {model_path}: give a folder written by save_pretrained or a Hub name"
        )
    if Path(model_path).is_dir() and not (Path(model_path) / "config.json").is_file():
        raise ValueError(f"{model_path} has no config.json: it is not a model folder")
    if device != "auto" and device not in (found := devices()):
        raise ValueError(f"device={device!r}: this PyTorch has {', '.join(found)} here; use --device {found[-1]}")


def devices() -> list[str]:
    """Return the names of the devices that PyTorch can use here, "cpu" among them."""
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator().type
    return ["cpu", *(f"{kind}:{number}" for number in range(torch.accelerator.device_count())), kind]


def load_model(
    model_path: str, device: str = "auto", dtype: str = "auto", auto_class: type = AutoModelForImageTextToText
):
    """Return model, in eval mode on its device, and processor; "auto" is a GPU in bfloat16, else a CPU in float32.

    Args:
        auto_class: transformers' Auto class that loads the model.

    Raises:
        OSError, ValueError: the model cannot be loaded.
    """
    check_model(model_path, device)
    model_path = model_folder(model_path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    logging.disable_progress_bar()
    AutoConfig.from_pretrained(model_path)  # refuses the authors' layout with the command that converts it
    processor = AutoProcessor.from_pretrained(model_path)
    model = auto_class.from_pretrained(model_path, dtype=getattr(torch, dtype)).to(device).eval()
    return model, processor
