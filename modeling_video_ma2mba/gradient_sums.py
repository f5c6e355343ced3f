"""`GradientSums`: gradients of tensors that are used in many segments, summed in fp32 or better."""

import torch


class GradientSums:
    """Adds up what each segment contributes to a tensor's gradient.

    A sum over segments in 16 bit loses accuracy with every one of them (1.7x the error at 128 segments), so sums are
    fp32 or better and rounded once, at the end.
    """

    def __init__(self):
        self.sums = {}  # id of a tensor -> sum

    def add(self, tensor: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Add a segment's gradient; None adds nothing."""
        if gradient is None:
            return
        if id(tensor) in self.sums:
            self.sums[id(tensor)].add_(gradient)
        else:
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            self.sums[id(tensor)] = gradient.to(dtype, copy=True, memory_format=torch.contiguous_format)

    def add_all(self, tensors: list[torch.Tensor], gradients) -> None:
        """Add one gradient (or None) to each tensor's sum."""
        for tensor, gradient in zip(tensors, gradients):
            self.add(tensor, gradient)

    def write(self, tensor: torch.Tensor, start: int, stop: int, gradient: torch.Tensor) -> None:
        """Set the gradient of `tensor[:, start:stop]`, a part that no other segment uses."""
        if id(tensor) not in self.sums:
            self.sums[id(tensor)] = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        self.sums[id(tensor)][:, start:stop] = gradient

    def pop(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the gradient in the tensor's dtype, None if there was none, and forget it."""
        total = self.sums.pop(id(tensor), None)
        return None if total is None else total.to(tensor.dtype)
