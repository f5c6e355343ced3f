"""Reads a folder of weights, safetensors or `.bin`, whole or in shards, and accounts for every key of a conversion.

Nothing is unpickled but plain tensors (`weights_only`), and no file outside the folder is opened.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


class ConversionError(ValueError):
    """A checkpoint that cannot be converted: says which folder, what is wrong and what to do."""


def read_json(path: Path) -> dict:
    """Return the object in a JSON file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"{path} is missing: give a folder with {path.name} and weights") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def read_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the folder's checkpoint by name, on the CPU."""
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder, folder / f"{name}.index.json")
    raise ConversionError(f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, or their index")


def _read_shards(folder: Path, index: Path) -> dict[str, torch.Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index} has no weight_map")
    tensors = {}
    for name in sorted(set(weight_map.values())):
        if not isinstance(name, str) or Path(name).name != name:
            raise ConversionError(f"{index} names {name!r}, which is not a plain file name in its folder")
        if not (folder / name).is_file():
            raise ConversionError(f"{index} names {name}, which is missing: download the whole folder")
        shard = _read_file(folder / name)
        if duplicates := tensors.keys() & shard.keys():
            raise ConversionError(f"{folder / name} repeats {sorted(duplicates)[:3]} of an earlier shard")
        tensors.update(shard)
    if missing := weight_map.keys() - tensors.keys():
        raise ConversionError(f"{index} lists {len(missing)} tensors that no shard holds, e.g. {min(missing)}")
    return tensors


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ConversionError(f"{path} is damaged or not a checkpoint: {str(error).splitlines()[0]}") from error
    except Exception as error:  # torch raises pickle.UnpicklingError, whose text advises to switch the check off
        raise ConversionError(f"{path} holds more than tensors and is not loaded: {type(error).__name__}") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise ConversionError(f"{path} holds more than named tensors")
    return tensors


class KeyLedger:
    """Accounts for every key of a conversion: taken, left out with a reason, or new.

    Args:
        expected: name -> shape of everything the new model needs.
    """

    def __init__(self, expected: dict[str, torch.Size]):
        self.expected = expected
        self.tensors: dict[str, torch.Tensor] = {}
        self.taken: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.new: dict[str, str] = {}

    def take(self, source_key: str, target_key: str, tensor: torch.Tensor) -> None:
        """Use a tensor; its target must exist, have this shape and not be filled yet."""
        if target_key not in self.expected:
            raise ConversionError(f"{source_key} has no place in the new model (looked for {target_key})")
        if target_key in self.tensors:
            raise ConversionError(f"{source_key} and {self.taken_from(target_key)} both claim {target_key}")
        if tensor.shape != self.expected[target_key]:
            raise ConversionError(
                f"{source_key} is {tuple(tensor.shape)}, the new model needs {tuple(self.expected[target_key])}"
            )
        self.tensors[target_key] = tensor
        self.taken[source_key] = target_key

    def taken_from(self, target_key: str) -> str:
        return next((source for source, target in self.taken.items() if target == target_key), "another tensor")

    def leave_out(self, source_key: str, reason: str) -> None:
        self.left_out[source_key] = reason

    def add_new(self, target_key: str, tensor: torch.Tensor, reason: str) -> None:
        self.tensors[target_key] = tensor
        self.new[target_key] = reason

    def finish(self) -> dict:
        """Return the report; raise if the new model lacks a tensor."""
        if missing := sorted(self.expected.keys() - self.tensors.keys()):
            raise ConversionError(f"{len(missing)} tensors are missing from the source, e.g. {', '.join(missing[:3])}")
        return {"taken": self.taken, "left_out": self.left_out, "new": self.new}
