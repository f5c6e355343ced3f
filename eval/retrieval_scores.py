"""Scores of a retrieval: places of the right answers, recalls, median place. Arithmetic on matrices; it runs no model.

Dims: Q queries, C things that are searched, K candidates of a query that were judged again.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from modeling_video_ma2mba.eval.clusters import mean_interval

RECALLS = (1, 5, 10)


def best_candidates(similarity: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` most similar of each row, best first, int64 (Q, count); of equals the earlier one."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def reranked(similarity: np.ndarray, candidates: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Return scores (Q, C) float64 by which the candidates stand in the order judged, before all others.

    The others keep the order of their similarity. The published rule gives them one constant instead, which makes the
    same recalls up to K and leaves places behind open.

    Args:
        similarity: (Q, C), at most 1. candidates: (Q, K) int. judged: (Q, K), any numbers.
    """
    scores = similarity.astype(np.float64)
    lowest = judged.min(axis=1, keepdims=True)
    np.put_along_axis(scores, candidates, judged.astype(np.float64) - lowest + 2, axis=1)
    return scores


def places(scores: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """Return the place of the best right answer of each query, from 1, int64 (Q,).

    Wrong answers with the same score stand before it: a model that tells nothing apart finds nothing.

    Args:
        scores: (Q, C). is_right: (Q, C) bool, with at least one right answer in each row.
    """
    if not is_right.any(axis=1).all():
        raise ValueError("a query has no right answer")
    best = np.where(is_right, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best) & ~is_right).sum(axis=1)


def figures(found: np.ndarray, clusters: Sequence[Hashable]) -> dict[str, Any]:
    """Return recalls in 0 to 1 with their 95 % intervals, the median place and the number of queries.

    Args:
        found: `places`. clusters: the video of each query; captions of one stand or fall together.
    """
    shown: dict[str, Any] = {"queries": len(found), "median_rank": float(np.median(found))}
    for limit in RECALLS:
        hits = (found <= limit).astype(float)
        interval = mean_interval(hits, clusters)
        low, high = interval if interval is not None else (None, None)
        shown[f"recall@{limit}"] = {"value": float(hits.mean()), "low": low, "high": high}
    return shown
