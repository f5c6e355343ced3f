"""Samples of one step are about equally long, and the order hangs on seed and epoch alone."""

import numpy as np
import pytest

from modeling_video_ma2mba.train.length_sampler import LengthSampler

FRAMES = (8, 16, 32, 64, 128)


@pytest.fixture
def lengths():
    """Tokens of 1,003 samples: 144 a frame for one of five numbers of frames, and some text."""
    random = np.random.default_rng(0)
    return random.choice(FRAMES, 1003) * 144 + random.integers(20, 200, 1003)


def order(lengths, size, seed=0, epoch=0):
    steps = -(-len(lengths) // size)
    return list(LengthSampler(lengths, size, seed, lambda: epoch * steps))


def padding(lengths, indices, size):
    """The share of a batch that is padding, over the epoch."""
    batches = [lengths[indices[i : i + size]] for i in range(0, len(indices), size)]
    return 1 - sum(batch.sum() for batch in batches) / sum(batch.max() * len(batch) for batch in batches)


@pytest.mark.parametrize("size", [4, 32])
def test_little_is_padded(lengths, size):
    shuffled = np.random.default_rng(1).permutation(len(lengths))
    assert padding(lengths, shuffled, size) > 0.4
    assert padding(lengths, order(lengths, size), size) < 0.1
    assert padding(lengths, order(lengths, size), 2) < 0.02  # a device's batch within the step


@pytest.mark.parametrize("count, size", [(1003, 32), (960, 32), (5, 8), (1, 1), (7, 1), (8, 8)])
def test_every_sample_comes_once(lengths, count, size):
    assert sorted(order(lengths[:count], size)) == list(range(count))


def test_the_longest_come_first(lengths):
    assert lengths[order(lengths, 32)[:32]].max() == lengths.max()


def test_steps_are_not_sorted_by_length(lengths):
    indices = order(lengths, 32)
    means = [lengths[indices[i : i + 32]].mean() for i in range(32, 960, 32)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_seed_and_epoch_give_the_order(lengths):
    assert order(lengths, 8) == order(lengths, 8)
    assert order(lengths, 8) != order(lengths, 8, seed=1)
    assert order(lengths, 8) != order(lengths, 8, epoch=1)
    together = [
        {frozenset(o[i : i + 8]) for i in range(0, 960, 8)} for o in (order(lengths, 8, epoch=e) for e in (0, 1))
    ]
    assert len(together[0] & together[1]) < 12  # other samples meet in the next epoch


def test_the_epoch_follows_from_the_steps_done(lengths):
    done = 0
    sampler = LengthSampler(lengths[:50], 20, 0, lambda: done)  # three steps an epoch
    first = list(sampler)
    done = 2
    assert list(sampler) == first
    done = 3
    assert list(sampler) != first
