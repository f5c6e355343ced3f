"""`MemoryMeter`: bytes of tensors, exactly."""

import torch

from modeling_video_ma2mba.live_memory import MemoryMeter

CPU = torch.device("cpu")


def test_tensors_count_while_they_live():
    with MemoryMeter(CPU) as meter:
        one = torch.zeros(100)
        two = one + 1
        assert (meter.live, meter.peak) == (800, 800)
        del one
        assert (meter.live, meter.peak) == (400, 800)
        meter.restart()
        assert meter.peak == 400
        three = two * 2
        assert meter.peak == 800
        del two, three
        assert meter.live == 0


def test_views_and_changes_in_place_take_nothing():
    before = torch.ones(100)
    with MemoryMeter(CPU) as meter:
        before.add_(1)
        kept = [before[:10], before.view(10, 10), before.detach()]
        assert meter.live == meter.peak == 0
        own = torch.ones(50)
        kept += [own[10:], own.expand(3, 50)]
        assert meter.live == 200
        del own
        assert meter.live == 200
        kept.clear()
        assert meter.live == 0


def test_what_was_there_before_does_not_count_when_it_goes():
    before = torch.ones(1000) + 0
    with MemoryMeter(CPU) as meter:
        del before
        assert meter.live == 0


def test_graphs_and_gradients_count():
    weight = torch.ones(100, requires_grad=True)
    with MemoryMeter(CPU) as meter:
        loss = weight.exp().sum()
        assert meter.live == 400 + 4
        loss.backward()
        del loss
        assert meter.live == 400 and weight.grad.nbytes == 400
        assert meter.peak >= 800


def test_what_is_measured_stays_the_same():
    with MemoryMeter(CPU):
        found = torch.arange(4.0).cumsum(0)
    assert found.tolist() == [0, 1, 3, 6]
