"""Places, recalls and re-ranking on matrices whose right answer is known."""

import numpy as np
import pytest

from modeling_video_ma2mba.eval.retrieval_scores import best_candidates, figures, places, reranked


def recalls(scores, is_right=None):
    right = np.eye(len(scores), dtype=bool) if is_right is None else is_right
    shown = figures(places(scores, right), list(range(len(scores))))
    return [shown[f"recall@{limit}"]["value"] for limit in (1, 5, 10)], shown["median_rank"]


def test_perfect_features_find_everything_and_none_nothing():
    assert recalls(np.eye(40)) == ([1.0, 1.0, 1.0], 1.0)
    assert recalls(-np.eye(40)) == ([0.0, 0.0, 0.0], 40.0)
    assert recalls(np.zeros((40, 40))) == ([0.0, 0.0, 0.0], 40.0)  # telling nothing apart is not finding


def test_shifted_scores_give_exactly_the_recalls_of_chance():
    """The right one stands in each place once, as in a random order on average: 1, 5 and 10 of 40."""
    order = np.arange(40)
    scores = -((order[None, :] + order[:, None]) % 40).astype(float)  # query q has column 0 in place q + 1
    is_right = np.broadcast_to(order == 0, (40, 40))
    values, median = recalls(scores, is_right)
    assert median == 20.5
    assert values == [1 / 40, 5 / 40, 10 / 40]


def test_random_features_are_at_chance():
    random = np.random.default_rng(0)
    values, median = recalls(random.standard_normal((1000, 1000)))
    assert values == pytest.approx([1 / 1000, 5 / 1000, 10 / 1000], abs=0.005) and 450 < median < 550


def test_the_best_of_several_right_answers_counts_and_ties_stand_before_it():
    scores = np.array([[0.1, 0.9, 0.5, 0.5], [0.5, 0.5, 0.4, 0.2]])
    is_right = np.array([[True, False, True, False], [False, True, False, True]])
    assert places(scores, is_right).tolist() == [3, 2]
    with pytest.raises(ValueError, match="no right answer"):
        places(scores, np.zeros((2, 4), dtype=bool))


def test_candidates_and_their_new_order():
    cosines = np.array([[0.9, 0.1, 0.8, -1.0], [0.2, 0.2, 0.2, 0.3]], dtype=np.float32)
    candidates = best_candidates(cosines, 2)
    assert candidates.tolist() == [[0, 2], [3, 0]]
    scores = reranked(cosines, candidates, np.array([[-50.0, -20.0], [4.0, 7.0]]))
    assert np.argsort(-scores, axis=1, kind="stable").tolist() == [[2, 0, 1, 3], [0, 3, 1, 2]]
    with_missing = reranked(np.array([[0.5, -np.inf]]), np.array([[0]]), np.array([[3.0]]))
    assert with_missing[0, 1] == -np.inf


def test_intervals_are_over_videos():
    shown = figures(np.array([1, 1, 9, 20]), ["a", "a", "b", "c"])
    assert shown["recall@1"]["value"] == 0.5 and shown["recall@10"]["value"] == 0.75 and shown["queries"] == 4
    assert shown["recall@1"]["low"] == 0.0 and shown["recall@1"]["high"] == 1.0 and shown["median_rank"] == 5.0
