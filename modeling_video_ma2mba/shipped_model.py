"""Where the small model is that ships with the project; "tiny" stands for it wherever a model is asked for."""

from importlib.resources import files
from pathlib import Path

SHIPPED = "tiny"


def model_folder(name: str) -> str:
    """Return the folder of the shipped model for "tiny", any other name as it is.

    Raises:
        FileNotFoundError: this installation came without the weights.
    """
    if name != SHIPPED:
        return name
    if not is_shipped():
        raise FileNotFoundError(f"{_folder()} has no weights: this installation came without the shipped model")
    return str(_folder())


def is_shipped() -> bool:
    """Return whether the weights of the shipped model are there."""
    return (_folder() / "model.safetensors").is_file()


def _folder() -> Path:
    return Path(str(files("modeling_video_ma2mba.hub_cards"))) / SHIPPED
