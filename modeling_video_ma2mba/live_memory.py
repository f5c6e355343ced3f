"""`MemoryMeter`: bytes of tensors alive, now and at most, while a block of code runs.

On a GPU it reads the allocator's own counters. Elsewhere it watches every operation and adds up the storages that are
new, which is exact for tensors and blind to what libraries allocate inside.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter:
    """A context that counts tensor bytes on one device.

    Attributes:
        live: bytes alive now beyond those at the start (`peak` likewise: the most at any time since `restart`).
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.watcher = None if device.type == "cuda" else _Watcher()

    def __enter__(self):
        if self.watcher is not None:
            self.watcher.__enter__()
        else:
            torch.cuda.synchronize(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *exception):
        if self.watcher is not None:
            self.watcher.__exit__(*exception)

    @property
    def live(self) -> int:
        if self.watcher is not None:
            return self.watcher.live
        return torch.cuda.memory_allocated(self.device) - self.start

    @property
    def peak(self) -> int:
        if self.watcher is not None:
            return self.watcher.peak
        return torch.cuda.max_memory_allocated(self.device) - self.start

    def restart(self) -> None:
        """Count the peak from now on."""
        if self.watcher is not None:
            self.watcher.peak = self.watcher.live
        else:
            torch.cuda.reset_peak_memory_stats(self.device)


class _Watcher(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet()

    def _forget(self, size):
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs or {})) if torch.is_tensor(t)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in given and storage not in self.known:
                    self.known.add(storage)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out
