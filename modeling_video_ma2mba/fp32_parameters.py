"""Parameters that no conversion of a module takes below fp32: steps and decays of a scan do not survive 16 bits."""

import torch
from torch import nn


class KeepsFp32(nn.Module):
    """A module whose parameters named in `fp32_parameters` follow `.to`, `.half` and `.bfloat16` to a device alone.

    `.double()` raises them. Names may have dots: `dt_proj.bias`.
    """

    fp32_parameters: tuple[str, ...] = ()

    def _apply(self, fn, recurse=True):
        # `.to`, `.half` and `.bfloat16` of this module and of those around it pass through here.
        named = dict(self.named_parameters())
        kept = {id(named[name]) for name in self.fp32_parameters}
        kept |= {id(named[name].grad) for name in self.fp32_parameters if named[name].grad is not None}

        def apply(tensor):
            moved = fn(tensor)
            if id(tensor) in kept and moved.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(device=moved.device, dtype=torch.float32)
            return moved

        return super()._apply(apply, recurse)
