"""Sums of gradients: fp32 or better, rounded once, each tensor its own."""

import pytest
import torch

from modeling_video_ma2mba.gradient_sums import GradientSums


def gradients(count, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_in_16_bit_are_rounded_once(dtype):
    sums, tensor, parts = GradientSums(), torch.zeros(64, dtype=dtype), gradients(200, 64, dtype=dtype)
    for part in parts:
        sums.add(tensor, part)
    total = sums.pop(tensor)
    assert total.dtype == dtype
    assert torch.equal(total, torch.stack(parts).double().sum(0).to(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-14)])
def test_wider_numbers_are_summed_as_they_are(dtype, tolerance):
    sums, tensor, parts = GradientSums(), torch.zeros(8, dtype=dtype), gradients(50, 8, dtype=dtype)
    for part in parts:
        sums.add(tensor, part)
    torch.testing.assert_close(sums.pop(tensor), torch.stack(parts).sum(0), rtol=tolerance, atol=tolerance)


def test_what_is_added_is_not_written_to():
    sums, tensor, parts = GradientSums(), torch.zeros(4), gradients(2, 4)
    copies = [part.clone() for part in parts]
    for part in parts:
        sums.add(tensor, part)
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies))
    assert torch.equal(tensor, torch.zeros(4))


def test_a_broadcast_gradient_becomes_memory_of_its_own():
    sums, tensor = GradientSums(), torch.zeros(3, 4)
    sums.add(tensor, torch.ones(1, 1).expand(3, 4))
    sums.add(tensor, torch.ones(3, 4))
    assert torch.equal(sums.pop(tensor), torch.full((3, 4), 2.0))


def test_each_tensor_has_its_own_sum():
    sums, tensors, parts = GradientSums(), [torch.zeros(4), torch.zeros(4), torch.zeros(4)], gradients(2, 4)
    sums.add_all(tensors, [parts[0], None, parts[1]])
    sums.add_all(tensors[:2], [parts[1], None])
    assert torch.equal(sums.pop(tensors[0]), parts[0] + parts[1])
    assert sums.pop(tensors[1]) is None
    assert torch.equal(sums.pop(tensors[2]), parts[1])


def test_a_sum_is_forgotten_once_it_is_taken():
    sums, tensor = GradientSums(), torch.zeros(4)
    sums.add(tensor, torch.ones(4))
    assert sums.pop(tensor) is not None and sums.pop(tensor) is None
    sums.add(tensor, torch.ones(4))
    assert torch.equal(sums.pop(tensor), torch.ones(4))


def test_segments_write_their_own_part():
    sums, tensor = GradientSums(), torch.zeros(2, 7, 3, dtype=torch.bfloat16)
    parts = gradients(2, 2, 3, 3, dtype=torch.bfloat16)
    sums.write(tensor, 4, 7, parts[0])
    sums.write(tensor, 0, 3, parts[1])
    total = sums.pop(tensor)
    assert torch.equal(total, torch.cat([parts[1], torch.zeros(2, 1, 3), parts[0]], dim=1).bfloat16())
