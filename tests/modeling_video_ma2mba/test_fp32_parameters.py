"""Parameters that stay in fp32 whatever a module is converted to."""

import torch
from torch import nn

from modeling_video_ma2mba.fp32_parameters import KeepsFp32


class Part(KeepsFp32):
    fp32_parameters = ("decay", "step.bias")

    def __init__(self):
        super().__init__()
        self.decay, self.free = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.step = nn.Linear(2, 2)


def dtypes(module):
    return {name: parameter.dtype for name, parameter in module.named_parameters()}


def test_named_parameters_and_their_gradients_stay_wide():
    whole = nn.Sequential(Part(), nn.Linear(2, 2))
    sum(p.sum() for p in whole.parameters()).backward()
    for convert in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()):
        narrow = convert(whole)
        wide = {name for name, dtype in dtypes(narrow).items() if dtype == torch.float32}
        assert wide == {"0.decay", "0.step.bias"}
        for name, parameter in narrow.named_parameters():
            assert parameter.grad.dtype == parameter.dtype, name
    assert set(dtypes(whole.double()).values()) == {torch.float64}
    assert set(dtypes(whole.to(torch.bfloat16)).values()) == {torch.bfloat16, torch.float32}
