"""How much memory a training step may use: what is there, less what weights, gradients and optimizer take.

`memory_budget` is everything that training this model may hold on the device; what else the process holds there is
not counted. Nothing is known of the optimizer before its first
step, so its state counts as two numbers per trained parameter (Adam) unless `optimizer_bytes` says otherwise.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from .quantised_weights import stored_tensors

# Left alone on the device, of what is free: the allocator's own losses, and what others take meanwhile.
_MARGIN = 0.05


@dataclass(frozen=True, kw_only=True)
class HeldBytes:
    """Device bytes of a model in training besides activations.

    Attributes:
        weights: all parameters and buffers. gradients: of the trained ones. optimizer: its state.
        sums: gradients summed over segments in fp32 or better; while those of an earlier micro-step wait in `.grad`.
        missing: the part of these that does not exist yet.
    """

    weights: int
    gradients: int
    sums: int
    optimizer: int
    missing: int

    @classmethod
    def of(cls, modules: list[torch.nn.Module], optimizer_bytes: int | None) -> "HeldBytes":
        """Count what the modules hold; tensors they share count once."""
        tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}.values()
        trained = [t for t in tensors if t.requires_grad]
        gradients = sum(t.nbytes for t in trained)
        sums = sum(t.numel() * max(4, t.element_size()) for t in trained)
        optimizer = 2 * gradients if optimizer_bytes is None else optimizer_bytes
        existing = sum(t.grad.nbytes for t in trained if t.grad is not None)
        return cls(
            weights=sum(part.nbytes for t in tensors for part in stored_tensors(t)),
            gradients=gradients,
            sums=sums,
            optimizer=optimizer,
            missing=gradients - existing + sums + optimizer,
        )

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.sums + self.optimizer

    def terms(self) -> dict[str, int]:
        """Return the sizes under the names they have in `StepCosts`."""
        return {name: getattr(self, name) for name in ("weights", "gradients", "sums", "optimizer")}


def total_budget(held: HeldBytes, device: torch.device) -> int:
    """Return the budget where none was given: what this model holds already, and what is free less a margin."""
    return int(free_bytes(device) * (1 - _MARGIN)) + held.total - held.missing


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process could still take on `device`."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_host_bytes()


def free_host_bytes() -> int:
    """Return the bytes of host memory that are available, within the limit of the control group this runs in."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if Path("/proc/meminfo").exists():
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return max(0, available)
