"""Intervals and comparisons over clusters, against values worked out by hand and all resamples of small cases."""

import itertools
import math

import numpy as np
import pytest

from modeling_video_ma2mba.eval import clusters
from modeling_video_ma2mba.eval.clusters import mean_interval, paired_difference
from modeling_video_ma2mba.eval.intervals import wilson_interval

# Videos with 3, 1, 2, 2 and 1 questions.
VALUES = [1, 0, 1, 0, 1, 1, 0, 0, 1]
VIDEOS = ["a", "a", "a", "b", "c", "c", "d", "d", "e"]


def every_resample(values, videos):
    """The means of all G^G resamples of G videos."""
    inside = [[value for value, video in zip(values, videos) if video == name] for name in dict.fromkeys(videos)]
    drawn = itertools.product(inside, repeat=len(inside))
    return np.array([np.mean(list(itertools.chain.from_iterable(parts))) for parts in drawn])


def test_the_bootstrap_against_all_resamples():
    means = every_resample(VALUES, VIDEOS)  # 3,125 of them
    low, high = mean_interval(VALUES, VIDEOS)
    for end, share in ((low, 0.025), (high, 0.975)):
        # The shares of all resamples below the end and up to it enclose the one asked for, to 3 errors of the draws.
        error = 3 * math.sqrt(share * (1 - share) / clusters.RESAMPLES)
        assert (means < end - 1e-9).mean() - error <= share <= (means <= end + 1e-9).mean() + error
    assert mean_interval(VALUES, VIDEOS) == (low, high)
    assert mean_interval(VALUES, VIDEOS, seed=1) == pytest.approx((low, high), abs=0.05)


def test_many_videos_against_the_formula():
    """The error of a ratio of cluster sums: sqrt(G / (G - 1) * sum((s - n * mean)^2)) / N."""
    random = np.random.default_rng(3)
    videos = np.repeat(np.arange(400), 3)
    chances = np.repeat(random.random(400), 3)  # questions about one video resemble each other
    values = (random.random(1200) < chances).astype(float)
    sums = values.reshape(400, 3).sum(axis=1)
    error = math.sqrt(400 / 399 * ((sums - 3 * values.mean()) ** 2).sum()) / 1200
    low, high = mean_interval(values, videos.tolist())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.03)
    alone_low, alone_high = mean_interval(values, list(range(1200)))
    assert alone_high - alone_low < 0.9 * (high - low)


def test_the_mean_of_groups():
    """Group x has 1 and 0 in video a and 1 in b, group y 0 in a and 0 in b: of the four resamples of two videos,
    a a gives (1/2 + 0) / 2, a b and b a (2/3 + 0) / 2, b b (1 + 0) / 2."""
    values, videos, groups = [1, 0, 1, 0, 0], list("aabab"), list("xxxyy")
    low, high = mean_interval(values, videos, groups)
    assert (low, high) == pytest.approx((0.25, 0.5))


def test_all_alike_and_one_video():
    assert mean_interval([1, 1, 1, 1], list("aabb")) == wilson_interval(2, 2)
    assert mean_interval([0, 0, 0], list("abc")) == wilson_interval(0, 3)
    assert mean_interval([0.5, 0.5], list("ab")) is None
    assert mean_interval([1, 0], list("aa")) is None
    with pytest.raises(ValueError, match="2 values in 1 clusters"):
        mean_interval([1, 0], ["a"])
    with pytest.raises(ValueError, match="0 values"):
        mean_interval([], [])


def test_videos_that_are_all_alike_give_no_interval():
    # One of three questions right in each video: no draw differs, which is no certainty.
    assert mean_interval([1, 0, 0] * 4, np.repeat(range(4), 3).tolist()) is None
    assert mean_interval([1, 0, 0] * 3 + [0, 0, 0], np.repeat(range(4), 3).tolist()) is not None


def test_in_pieces_it_is_the_same(monkeypatch):
    whole = mean_interval(VALUES, VIDEOS)
    monkeypatch.setattr(clusters, "_AT_ONCE", 700)
    assert mean_interval(VALUES, VIDEOS) == whole


@pytest.mark.parametrize(
    "differences, p_value",
    [
        ([1, 1, 1, 1], 2 / 16),  # only all plus or all minus are as far
        ([1, 1, 1, -1], 10 / 16),  # sums of -4, -2, 2, 4: all but the six with 0
        ([1, -1], 1.0),
        ([2, 1], 2 / 4),  # 3, 1, -1, -3
        ([0, 0, 0], 1.0),
    ],
)
def test_p_values_by_hand(differences, p_value):
    """One question for each video; the two runs exchanged in every possible way."""
    first = [0.0] * len(differences)
    difference, _, p = paired_difference(first, differences, list(range(len(differences))))
    assert p == pytest.approx(p_value) and difference == pytest.approx(np.mean(differences))


def test_clusters_are_exchanged_as_one():
    """Two videos of two questions: 4 exchanges, not 16."""
    _, _, p = paired_difference([0, 0, 0, 0], [1, 1, 1, 1], list("aabb"))
    assert p == 0.5


def test_random_exchanges_against_all(monkeypatch):
    random = np.random.default_rng(0)
    first, second = random.integers(0, 2, 12), random.integers(0, 2, 12)
    exact = paired_difference(first, second, list(range(12)))[2]
    monkeypatch.setattr(clusters, "MOST_EXACT", 3)
    drawn = paired_difference(first, second, list(range(12)))[2]
    assert drawn == pytest.approx(exact, abs=0.02) and drawn != exact


def test_the_interval_of_a_difference():
    first, second = [0, 0, 1, 0, 1, 0], [1, 0, 1, 1, 0, 1]
    difference, (low, high), _ = paired_difference(first, second, list("aabbcc"))
    values = np.subtract(second, first)
    means = every_resample(values, "aabbcc")
    assert difference == pytest.approx(2 / 6)
    assert low == pytest.approx(means.min()) and high == pytest.approx(means.max())  # 1 in 27 each, more than 2.5 %
    assert paired_difference([0, 0], [1, 1], list("ab"))[1] is None
