"""Names of models that are nothing: told in one line, before data is read and anything is loaded."""

from pathlib import Path

from transformers import AutoConfig

from modeling_video_ma2mba.shipped_model import SHIPPED


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
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:  # the second where a name cannot be one, or its kind is unknown
        said = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name}: there is no such folder here{known}, and as a Hub name it cannot be loaded ({said})"
        ) from error
