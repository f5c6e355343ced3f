"""What only a GPU shows of "ma-gc": copies to the host beside compute, the allocator's own peak, the kernels.

Everything else about the engine is tested on the CPU (test_checkpoint_engine.py, test_checkpoint_predict.py).
"""

import pytest
import torch

from modeling_video_ma2mba.checkpoint_costs import measure_costs
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform
from modeling_video_ma2mba.checkpoint_predict import predict
from modeling_video_ma2mba.checkpoint_store import CheckpointStack
from modeling_video_ma2mba.kernels import choose_backend, ssd
from modeling_video_ma2mba.live_memory import MemoryMeter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHAPE = {"hidden_size": 256, "num_heads": 8, "head_dim": 64, "state_size": 64, "num_hidden_layers": 6}
PLANS = {
    "none": {"segments": (2048,), "layer_interval": 6},
    "sequence only": {"segments": uniform(2048, 256), "layer_interval": 6},
    "nested": {"segments": uniform(2048, 256), "layer_interval": 2, "keep_boundaries": False},
    "grid, host": {
        "segments": uniform(2048, 256), "layer_interval": 2, "states_on": "host", "boundaries_on": "host",
    },
    "lean mixer": {"segments": uniform(2048, 256), "layer_interval": 6, "recompute_mixer": True},
}  # fmt: skip


def gradients(model, plan, ids):
    model.zero_grad(set_to_none=True)
    if plan is None:
        model.gradient_checkpointing_disable()
    else:
        model.gradient_checkpointing_enable()
        model.backbone.checkpointing.fixed_plan = CheckpointPlan(num_layers=6, **plan)
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("name", PLANS)
def test_gradients_equal_those_of_plain_training(text_model, ids, name, backend):
    model = text_model(backend=backend, **SHAPE).cuda().train()
    batch = ids(1, 2048).cuda()
    expected, actual = gradients(model, None, batch), gradients(model, PLANS[name], batch)
    for key, gradient in expected.items():
        error = float((actual[key] - gradient).norm() / gradient.norm())
        assert error < 1e-3, f"{key}: {error:.2g}"


def test_entries_come_back_from_the_host_as_they_went():
    stack = CheckpointStack(True, torch.device("cuda"))
    numbers = [torch.full((300, 700), float(i), device="cuda") for i in range(9)]
    for number in numbers:
        stack.push([number * 2, number[0].bfloat16()])  # the sources are gone before the copy may have run
        torch.full((300, 700), -1.0, device="cuda")  # takes freed memory at once
    for number in reversed(numbers):
        wide, narrow = stack.pop()
        assert torch.equal(wide, number * 2)
        assert torch.equal(narrow, number[0].bfloat16())
    assert stack.host_bytes == 0


@pytest.mark.parametrize("name", PLANS)
def test_predicted_peaks_are_within_a_tenth(text_model, ids, name):
    model = text_model(**SHAPE).cuda().train()
    batch = ids(1, 2048).cuda()
    gradients(model, PLANS[name], batch)
    sums = sum(p.numel() * 4 for p in model.parameters())
    with MemoryMeter(torch.device("cuda")) as meter:
        model(input_ids=batch, labels=batch).loss.backward()
    costs = measure_costs(model.backbone, 1, model.lm_head)
    predicted = predict(CheckpointPlan(num_layers=6, **PLANS[name]), costs).activations
    assert predicted == pytest.approx(meter.peak - sums, rel=0.1)


def test_the_gradient_that_crosses_borders_is_not_rounded():
    """16-bit inputs: the initial state's gradient has more digits than they have."""
    backend = choose_backend("triton", torch.device("cuda"), torch.bfloat16)
    generator = torch.Generator("cuda").manual_seed(0)
    x, B, C = (
        torch.randn(1, 512, *shape, device="cuda", generator=generator) for shape in ((4, 64), (1, 64), (1, 64))
    )
    dt, A = torch.rand(1, 512, 4, device="cuda", generator=generator) * 0.01, -torch.ones(4, device="cuda")
    state = torch.randn(1, 4, 64, 64, device="cuda", generator=generator).requires_grad_()
    y, _ = ssd(x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16(), None, state, backend)
    (gradient,) = torch.autograd.grad(y.float().sum(), state)
    assert gradient.dtype == torch.float32
    assert (gradient.bfloat16().float() != gradient).any()
