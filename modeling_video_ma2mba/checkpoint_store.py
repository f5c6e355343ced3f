"""Where checkpoints wait for the backward: `CheckpointStack`, on the device or in (pinned) host memory.

The backward takes in exactly the reverse order of the forward, so a stack is enough, and the next entry can be fetched
while the last one is in use.
"""

import numpy as np
import torch

# Pinned memory is cached in powers of two: entries share slabs of this size, which wastes little.
_SLAB_BYTES = 2**30


class CheckpointStack:
    """A stack of lists of tensors.

    On the host, copies to and from a GPU run on streams of their own, overlapped with compute: `push` returns at once
    and keeps the source alive until it is copied, `pop` starts the copy of the entry below.

    Attributes:
        host_bytes: bytes that wait on the host now.
    """

    def __init__(self, on_host: bool, device: torch.device):
        self.on_host = on_host
        self.device = device
        self.host_bytes = 0
        self.entries = []
        self.fetched = None  # (tensors on the device, event) of the top entry
        self.slabs = HostSlabs(pinned=device.type == "cuda") if on_host else None
        self.streams = (torch.cuda.Stream(device), torch.cuda.Stream(device)) if on_host and self._is_cuda else None

    @property
    def _is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def __len__(self) -> int:
        return len(self.entries)

    def push(self, tensors: list[torch.Tensor]) -> None:
        """Keep `tensors`, which nobody writes to."""
        if not self.on_host:
            self.entries.append(list(tensors))
            return
        kept = [self.slabs.like(tensor) for tensor in tensors]
        if self._is_cuda:
            stream = self.streams[0]
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                for tensor, copy in zip(tensors, kept):
                    copy.copy_(tensor, non_blocking=True)
                    tensor.record_stream(stream)
        else:
            for tensor, copy in zip(tensors, kept):
                copy.copy_(tensor)
        self.host_bytes += sum(tensor.nbytes for tensor in kept)
        self.entries.append(kept)

    def pop(self) -> list[torch.Tensor]:
        """Return the entry that was pushed last, on the device."""
        if not self.on_host:
            return self.entries.pop()
        if self.fetched is None:
            self._fetch()
        tensors, event = self.fetched
        self.fetched = None
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for tensor in tensors:
                tensor.record_stream(stream)
        kept = self.entries.pop()
        self.host_bytes -= sum(tensor.nbytes for tensor in kept)
        self.slabs.give_back(kept)
        if self.entries and self._is_cuda:
            self._fetch()
        return tensors

    def _fetch(self) -> None:
        """Start to copy the top entry to the device."""
        if not self._is_cuda:
            self.fetched = [tensor.clone() for tensor in self.entries[-1]], None
            return
        down, up = self.streams
        up.wait_stream(down)  # the entry may still be on its way to the host
        with torch.cuda.stream(up):
            tensors = [tensor.to(self.device, non_blocking=True) for tensor in self.entries[-1]]
            self.fetched = tensors, up.record_event()


class HostSlabs:
    """Host memory for tensors, handed out from large pieces and taken back in reverse order; pinned if wanted."""

    def __init__(self, pinned: bool):
        self.pinned = pinned
        self.slabs = []  # [memory (bytes,) uint8, bytes used]

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return uninitialised host memory of the shape and dtype of `tensor`."""
        size = -(-tensor.nbytes // 64) * 64
        if not self.slabs or self.slabs[-1][1] + size > len(self.slabs[-1][0]):
            self.slabs.append([self._allocate(max(size, self._slab_bytes(size))), 0])
        slab, used = self.slabs[-1]
        self.slabs[-1][1] = used + size
        return slab[used : used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def give_back(self, tensors: list[torch.Tensor]) -> None:
        """Take back what was handed out last."""
        for tensor in reversed(tensors):
            size = -(-tensor.nbytes // 64) * 64
            while self.slabs and self.slabs[-1][1] == 0:
                self.slabs.pop()
            self.slabs[-1][1] -= size

    def _slab_bytes(self, size: int) -> int:
        """Grow with what is asked for, so that a small model does not take a large slab."""
        taken = sum(len(slab) for slab, _ in self.slabs)
        return min(_SLAB_BYTES, 1 << max(16 * size, taken, 1).bit_length())

    def _allocate(self, size: int) -> torch.Tensor:
        if self.pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(np.empty(size, dtype=np.uint8))
