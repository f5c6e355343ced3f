"""What a weight is made of, quantised or not. Quantising itself is left to transformers and the packages it calls."""

import torch


def stored_tensors(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that hold a weight: itself, or for a quantised one of torchao its numbers and scales.

    Such a weight shows the dtype and size that it stands for, and most operations on it are missing.
    """
    is_sharded = hasattr(weight, "device_mesh")  # a DTensor stands for the whole weight and has all operations
    if is_sharded or not hasattr(weight, "__tensor_flatten__"):
        return [weight]
    names, _ = weight.__tensor_flatten__()
    return [part for name in names for part in stored_tensors(getattr(weight, name))]
