"""Load a model and its processor for a command; a folder or device that will not do is named in clear words."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig
from transformers.utils import logging

from modeling_video_ma2mba.checkpoint_files import TensorFiles
from modeling_video_ma2mba.folder_fields import check_folder_fields
from modeling_video_ma2mba.shipped_model import SHIPPED, model_folder

# What transformers raises for values of the wrong kind in a folder's files, beside ValueError and OSError.
_RAISED = (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, AssertionError)


def check_model(model_path: str, device: str) -> None:
    """Raise ValueError for a model that is not to be had and a device that is not there; loads nothing."""
    check_name(model_path)
    if Path(model_path).is_dir() and not (Path(model_path) / "config.json").is_file():
        raise ValueError(f"{model_path} has no config.json: it is not a model folder")
    if device != "auto" and device not in (found := devices()):
        raise ValueError(f"device={device!r}: this PyTorch has {', '.join(found)} here; use --device {found[-1]}")


def check_name(name: str, shipped: tuple[str, ...] = (SHIPPED,)) -> None:
    """Raise ValueError for a name that is no folder, no shipped model and not to be had from the Hub.

    Args:
        shipped: names of models that come with the package; empty where none will do.
    """
    if name in shipped or Path(name).is_dir():
        return
    known = f", no shipped model (shipped: {', '.join(shipped)})" if shipped else ""
    if name.startswith(("/", ".", "~")):
        raise ValueError(f"there is no model folder {name}{known}: give a folder with a model, or a Hub name")
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:  # the second where a name cannot be one, or its kind is unknown
        said = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name}: there is no such folder here{known}, and as a Hub name it cannot be loaded ({said})"
        ) from error


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
    is_local = Path(model_path).is_dir()
    if is_local:
        check_folder_fields(model_path)
    try:
        # Refuses the authors' layout with the command that converts it. Nothing here runs a folder's own code.
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=False)
        if is_local:
            _check_weights(Path(model_path), config, auto_class)
        model, found = auto_class.from_pretrained(
            model_path, dtype=getattr(torch, dtype), trust_remote_code=False, output_loading_info=True
        )
    except _RAISED as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{model_path} does not load: {type(error).__name__}: {reason:.500}") from error
    if found["missing_keys"]:
        raise ValueError(
            f"{model_path}: {len(found['missing_keys'])} parameters of its {config.model_type} model are not in its "
            f"weights, e.g. {min(found['missing_keys'])}"
        )
    return model.to(device).eval(), processor


def _check_weights(folder: Path, config: PreTrainedConfig, auto_class: type) -> None:
    """Raise ValueError where a config describes other sizes than the weights have, or far more; takes no memory."""
    stored = TensorFiles(folder).meta
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=False)
    if not hasattr(config, "quantization_config"):  # whose numbers are packed
        for name, tensor in model.state_dict().items():
            if name in stored and stored[name].shape != tensor.shape:
                raise ValueError(
                    f"{folder}: {name} is {tuple(stored[name].shape)} in the weights and {tuple(tensor.shape)} by "
                    "config.json"
                )
    held = sum(tensor.numel() for tensor in stored.values())
    described = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if described > 4 * held + (1 << 20):  # 4 bits are packed in pairs; buffers are in no file
        raise ValueError(f"{folder}: its config describes {described} numbers, its weights hold {held}")
