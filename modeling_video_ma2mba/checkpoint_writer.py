"""Writes a safetensors file tensor by tensor: a model is converted in the memory of its largest tensor.

safetensors' own `save_file` wants all tensors at once.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tqdm import tqdm

_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(
    path: Path,
    tensors: dict[str, tuple[torch.Size, torch.dtype]],
    pieces: Callable[[str], Iterable[torch.Tensor]],
) -> None:
    """Write tensors in the order given; the file appears when it is complete.

    Args:
        tensors: name -> shape and dtype.
        pieces: name -> the tensor's numbers in order, of the right dtype, in one or more pieces.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in tensors.items()}
    offsets, end = {}, 0
    # Wide numbers first: then each lies at a multiple of its own width.
    for name in sorted(tensors, key=lambda name: -tensors[name][1].itemsize):
        offsets[name], end = end, end + sizes[name]
    header: dict = {"__metadata__": {"format": "pt"}}
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: offsets[item[0]]):
        span = [offsets[name], offsets[name] + sizes[name]]
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": span}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file, tqdm(total=end, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in tensors:
            file.seek(8 + len(text) + offsets[name])
            written = 0
            for piece in pieces(name):
                data = piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
                file.write(data)
                written += len(data)
                bar.update(len(data))
                del piece, data  # before the next one is made
            if written != sizes[name]:
                raise ValueError(f"{name}: {written} bytes came for a tensor of {sizes[name]}")
    partial.replace(path)
