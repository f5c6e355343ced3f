"""Means of scores that come in clusters, several questions to a video: intervals, and the comparison of two runs.

Questions about one video stand or fall together, so that the videos are what was sampled, and not the questions.

Dims: G clusters, R resamples.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from modeling_video_ma2mba.eval.intervals import wilson_interval

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
# Up to so many clusters all 2^G exchanges of two runs are tried, and the p-value is exact.
MOST_EXACT = 16
_AT_ONCE = 2**22  # numbers drawn at a time


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable], groups: Sequence[Hashable] | None = None, seed: int = SEED
) -> tuple[float, float] | None:
    """Return the 95 % interval (low, high) of a mean, by the bootstrap over clusters; None without spread.

    G clusters are drawn with replacement, all their values with them, `RESAMPLES` times; the interval is the 2.5 % and
    97.5 % quantile of `sum of values / number of values`. Where all values are 0, or all are 1, resampling shows no
    spread, and it is Wilson's for G answers. One cluster, or clusters that are all alike, say nothing about others:
    None, and not an interval of no width.

    Args:
        values: scores. clusters: the video of each.
        groups: the mean is that of the groups' means, those without a value in a resample being left out.
        seed: of the draws; the same numbers give the same interval.

    Raises:
        ValueError: no values, or as many clusters or groups as values were not given.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or len(clusters) != len(values) or len(groups or values) != len(values):
        raise ValueError(f"{len(values)} values in {len(clusters)} clusters: give one cluster for each of 1 or more")
    count = len(set(clusters))
    if count < 2:
        return None
    if set(values.tolist()) in ({0.0}, {1.0}):
        return wilson_interval(int(values[0]) * count, count, CONFIDENCE)
    sums, sizes = _totals(values, clusters, groups)  # (groups, G)
    means = np.concatenate([_means(drawn @ sums.T, drawn @ sizes.T) for drawn in _draws(count, seed)])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if high - low < 1e-9:  # sums in another order differ by rounding
        return None
    return float(low), float(high)


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[float, tuple[float, float] | None, float]:
    """Return how much higher the second run's mean is, the 95 % interval of that, and the two-sided p-value.

    The interval is `mean_interval`'s for the differences (a bootstrap without spread has none, so it is None there).
    The p-value is that of exchanging the two runs cluster by cluster: the share of exchanges whose mean difference is
    at least as far from 0. All 2^G of them are tried for up to `MOST_EXACT` clusters, else `RESAMPLES` random ones, of
    which `(1 + so far away) / (1 + RESAMPLES)` is taken.

    Args:
        first, second: scores of the same samples in the same order. clusters: the video of each.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    interval = None
    if len(set(differences.tolist())) > 1:
        interval = mean_interval(differences, clusters)
    totals = _totals(differences, clusters, None)[0][0]  # (G,)
    observed = abs(totals.sum()) - 1e-9  # sums in another order differ by rounding
    is_exact = len(totals) <= MOST_EXACT
    signs = _all_signs(len(totals)) if is_exact else _random_signs(len(totals))
    far = sum(int((np.abs(drawn @ totals) >= observed).sum()) for drawn in signs)
    p_value = far / 2 ** len(totals) if is_exact else (1 + far) / (1 + RESAMPLES)
    return float(differences.mean()), interval, float(p_value)


def _totals(values: np.ndarray, clusters: Sequence, groups: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """Return sums and numbers of the values of each group in each cluster, (groups, G)."""
    cluster_places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    group_places = {group: place for place, group in enumerate(dict.fromkeys(groups or [None]))}
    sums = np.zeros((len(group_places), len(cluster_places)))
    sizes = np.zeros_like(sums)
    for value, cluster, group in zip(values, clusters, groups or itertools.repeat(None)):
        where = group_places[group], cluster_places[cluster]
        sums[where] += value
        sizes[where] += 1
    return sums, sizes


def _means(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the mean over groups of each resample, (R,), given (R, groups)."""
    is_there = sizes > 0
    means = np.divide(sums, sizes, out=np.zeros_like(sums), where=is_there)
    return means.sum(axis=1) / is_there.sum(axis=1)


def _draws(count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each cluster is drawn, (R, G)."""
    random = np.random.default_rng(seed)
    yield from _in_pieces(count, lambda rows: random.multinomial(count, np.full(count, 1 / count), size=rows))


def _random_signs(count: int) -> Iterator[np.ndarray]:
    """Yield -1 or 1 for each cluster, (R, G)."""
    random = np.random.default_rng(SEED)
    yield from _in_pieces(count, lambda rows: random.integers(0, 2, size=(rows, count)) * 2 - 1)


def _in_pieces(count: int, draw: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    at_once = max(1, _AT_ONCE // count)
    for begin in range(0, RESAMPLES, at_once):
        yield draw(min(at_once, RESAMPLES - begin))


def _all_signs(count: int) -> Iterator[np.ndarray]:
    yield np.array(list(itertools.product((-1, 1), repeat=count)))
