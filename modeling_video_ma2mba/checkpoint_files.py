"""Reads a folder of weights, safetensors or `.bin`, whole or in shards, and accounts for every key of a conversion.

The files may come from anywhere. Names, shapes and sizes are checked before a tensor is read, nothing is unpickled but
plain tensors (`weights_only`), and no file outside the folder is opened.
"""

import copy
import gc
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open

# A 3B model's header is 0.2 MB, its index 0.1 MB; a pickle without its tensors is as small.
_MAX_JSON_BYTES = _MAX_HEADER_BYTES = 16 << 20
_MAX_PICKLE_BYTES = 64 << 20
_MAX_NAME, _MAX_DIMS, _MAX_SIDE = 512, 8, 1 << 40
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# What torch raises for files that are cut off or are no checkpoints (UnpicklingError is told apart).
_TORCH_ERRORS = (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError, TypeError, IndexError)


class ConversionError(ValueError):
    """A checkpoint that cannot be converted: says which folder, what is wrong and what to do."""


def check_inside(path: Path) -> Path:
    """Return a path if it leads to a file of its own folder; a link elsewhere raises.

    The Hub's cache is made of links: from `snapshots/<commit>/` to `blobs/` of the same repository.
    """
    folder = path.parent.resolve()
    target = path.resolve()
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else None
    if path.is_symlink() and not target.is_relative_to(folder) and target.parent != blobs:
        raise ConversionError(f"{path} is a link to {target}, outside its folder: put the file itself there")
    return path


def read_json(path: Path) -> dict:
    """Return the object in a JSON file of up to 16 MiB, in which no name comes twice."""
    try:
        if check_inside(path).stat().st_size > _MAX_JSON_BYTES:
            raise ConversionError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_JSON_BYTES} are read")
        return _parse_object(path.read_bytes(), path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConversionError(f"{path} is missing: give a folder with {path.name} and weights") from error


def _parse_object(data: bytes, path: Path) -> dict:
    def unique(pairs: list[tuple]) -> dict:
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ConversionError(f"{path} holds a name twice")
        return value

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except ConversionError:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of thousands of digits; too deep
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


class TensorFiles:
    """The tensors of a folder's checkpoint by name: all shapes at once, the numbers one tensor at a time.

    Opening reads headers alone. One shard is open at a time, so whoever goes through `names` in order and lets go of
    each tensor holds one shard, mapped into memory, and one tensor.

    Raises:
        ConversionError: missing, damaged or hostile files.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.shards: dict[str, Path] = {}  # tensor -> file
        self.meta: dict[str, torch.Tensor] = {}  # tensor -> its shape and dtype, as a tensor without numbers
        self._keys: dict[str, str] = {}  # of a part: its names -> those in the file
        self._open: tuple[Path, object] | None = None
        for path in self._paths():
            meta = _safetensors_meta(path) if path.suffix == ".safetensors" else _bin_meta(path)
            if duplicates := self.meta.keys() & meta.keys():
                raise ConversionError(f"{path} repeats {sorted(duplicates)[:3]} of an earlier shard")
            self.meta.update(meta)
            self.shards.update(dict.fromkeys(meta, path))
        if missing := self._listed - self.meta.keys():
            raise ConversionError(
                f"the index in {self.folder} lists {len(missing)} tensors that no shard holds, e.g. {min(missing)!r}"
            )

    def _paths(self) -> list[Path]:
        self._listed: set[str] = set()
        for name in ("model.safetensors", "pytorch_model.bin"):
            path, index = self.folder / name, self.folder / f"{name}.index.json"
            if path.is_file():
                return [check_inside(path)]
            if index.is_file():
                weight_map = read_json(index).get("weight_map")
                if not isinstance(weight_map, dict) or not weight_map:
                    raise ConversionError(f"{index} has no weight_map")
                for shard in weight_map.values():
                    if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard:
                        raise ConversionError(f"{index} names {shard!r}, which is not a plain file name in its folder")
                    if not (self.folder / shard).is_file():
                        raise ConversionError(f"{index} names {shard}, which is missing: download the whole folder")
                self._listed = set(weight_map)
                return [check_inside(self.folder / shard) for shard in sorted(set(weight_map.values()))]
        raise ConversionError(
            f"{self.folder} has no weights: expected model.safetensors or pytorch_model.bin, or their index"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU; its numbers are read from the file when they are used."""
        path, key = self.shards[name], self._keys.get(name, name)
        if self._open is None or self._open[0] != path:
            if self._open is not None:
                self._open = None
                gc.collect()  # what opened the last shard may stand in a cycle, with the whole shard in it
            is_bin = path.suffix != ".safetensors"
            self._open = path, _load_bin(path) if is_bin else safe_open(path, framework="pt")
        source = self._open[1]
        return source[key] if isinstance(source, dict) else source.get_tensor(key)

    def close(self) -> None:
        """Let go of the shard that is open; reading opens it again."""
        self._open = None

    def part(self, names: dict[str, str]) -> "TensorFiles":
        """Return a view of some tensors under other names: new name -> name here."""
        view = copy.copy(self)
        view.meta = {name: self.meta[key] for name, key in names.items()}
        view.shards = {name: self.shards[key] for name, key in names.items()}
        view._keys = {name: self._keys.get(key, key) for name, key in names.items()}
        return view


def read_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the folder's checkpoint by name, on the CPU."""
    files = TensorFiles(folder)
    return {name: files.read(name) for name in files}


def _safetensors_meta(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
            raise ConversionError(
                f"{path} is damaged: its header claims {length} bytes, more than {_MAX_HEADER_BYTES} or than the file"
            )
        header = _parse_object(file.read(length), path)
    header.pop("__metadata__", None)
    meta = {}
    for name, entry in header.items():
        entry = entry if isinstance(entry, dict) else {}
        if entry.get("dtype") not in tuple(_DTYPES):
            raise ConversionError(f"{path}: {name!r:.80} has dtype {entry.get('dtype')!r:.80}; known: {list(_DTYPES)}")
        meta[name] = _without_numbers(path, name, entry.get("shape"), _DTYPES[entry["dtype"]])
    try:  # offsets: inside the file, no holes, no overlap, as many bytes as the shape needs
        with safe_open(path, framework="pt"):
            return meta
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is damaged or not a checkpoint: {error}") from error


def _bin_meta(path: Path) -> dict[str, torch.Tensor]:
    return {name: _without_numbers(path, name, list(t.shape), t.dtype) for name, t in _load_bin(path).items()}


def _without_numbers(path: Path, name: object, shape: object, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise ConversionError(f"{path} holds a tensor named {name!r:.80}: no name of a parameter")
    sides = shape if isinstance(shape, list) else [None]
    if len(sides) > _MAX_DIMS or not all(type(side) is int and 0 < side <= _MAX_SIDE for side in sides):
        raise ConversionError(f"{path}: {name} has the shape {shape!r:.80}, which no parameter has")
    try:
        return torch.empty(sides, dtype=dtype, device="meta")
    except RuntimeError as error:  # more bytes than can be counted
        raise ConversionError(f"{path}: {name} has the shape {shape!r:.80}, which no parameter has") from error


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.bin`, mapped into memory; each has as many numbers in the file as it claims."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch unpacks what is packed; the numbers must lie there as they are, to be mapped.
            packed = [e.filename for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED]
            pickles = [e.file_size for e in archive.infolist() if e.filename.endswith(".pkl")]
        if packed or max(pickles, default=0) > _MAX_PICKLE_BYTES:
            raise ConversionError(f"{path} holds packed parts or a huge pickle; torch.save writes neither")
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except ConversionError:
        raise
    except UnpicklingError as error:  # its text advises to switch the check off
        raise ConversionError(f"{path} holds more than tensors and is not loaded: UnpicklingError") from error
    except (zipfile.BadZipFile, *_TORCH_ERRORS) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConversionError(f"{path} is damaged or not a checkpoint of torch 1.6 or newer: {reason}") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise ConversionError(f"{path} holds more than named tensors")
    for name, tensor in tensors.items():
        is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # A view that repeats a few stored numbers can claim any size.
        if not is_plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConversionError(f"{path}: {name!r:.80} claims {tuple(tensor.shape)} and has not so many numbers")
    return tensors


class KeyLedger:
    """Accounts for every key of a conversion: taken, left out with a reason, or new.

    What does not fit is collected; `finish` raises with all of it.

    Args:
        expected: name -> shape of everything the new model needs.
    """

    def __init__(self, expected: dict[str, torch.Size]):
        self.expected = expected
        self.tensors: dict[str, torch.Tensor] = {}
        self.taken: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.new: dict[str, str] = {}
        self.problems: list[str] = []

    def take(self, source_key: str, target_key: str, tensor: torch.Tensor) -> None:
        """Use a tensor; its target must exist, have this shape and not be filled yet."""
        if target_key not in self.expected:
            self.refuse(f"{source_key} has no place in the new model (looked for {target_key})")
        elif target_key in self.tensors:
            self.refuse(f"{source_key} and {self.taken_from(target_key)} both claim {target_key}")
        else:
            if tensor.shape != self.expected[target_key]:
                self.refuse(
                    f"{source_key} is {tuple(tensor.shape)}, the new model needs {tuple(self.expected[target_key])}"
                )
            elif not tensor.is_floating_point():
                self.refuse(f"{source_key} is {tensor.dtype}, parameters are floating point numbers")
            self.tensors[target_key] = tensor
            self.taken[source_key] = target_key

    def taken_from(self, target_key: str) -> str:
        return next((source for source, target in self.taken.items() if target == target_key), "another tensor")

    def leave_out(self, source_key: str, reason: str) -> None:
        self.left_out[source_key] = reason

    def add_new(self, target_key: str, tensor: torch.Tensor, reason: str) -> None:
        self.tensors[target_key] = tensor
        self.new[target_key] = reason

    def refuse(self, problem: str) -> None:
        self.problems.append(problem)

    def finish(self) -> dict:
        """Return the report; raise with all problems if the checkpoint does not fit the new model."""
        if missing := sorted(self.expected.keys() - self.tensors.keys()):
            self.refuse(f"{len(missing)} tensors are missing from the source, e.g. {', '.join(missing[:3])}")
        if self.problems:
            shown, more = self.problems[:8] + self.problems[8:][-1:], len(self.problems) - 9
            raise ConversionError("; ".join(shown) + (f"; and {more} more problems" if more > 0 else ""))
        return {"taken": self.taken, "left_out": self.left_out, "new": self.new}
