"""Which frames make a clip: the published formulas, worked out one frame at a time."""

import numpy as np
import pytest

from modeling_video_ma2mba.processing.clip_sampling import clip_indices, random_clip_indices


@pytest.mark.parametrize("total, frames", [(250, 8), (300, 16), (37, 8), (9, 8), (8, 8), (5, 8), (1, 4)])
def test_the_rules_frame_by_frame(total, frames):
    gap = (total - 1) / frames
    one = [min(total - 1, round(gap * i) + int(gap / 2)) for i in range(frames)]
    assert clip_indices(total, frames).tolist() == one
    for view in range(4):
        several = [min(total - 1, round(gap * i) + int(gap / 5 * (view + 1))) for i in range(frames)]
        assert clip_indices(total, frames, "sparse", view, 4).tolist() == several
    length = total / frames
    middle = [int(length / 2 + length * i) for i in range(frames)]
    assert clip_indices(total, frames, "ssv2").tolist() == middle
    merged = sorted(middle + [int(length * i) for i in range(frames)])
    assert clip_indices(total, frames, "ssv2", 0, 2).tolist() == merged[::2]
    assert clip_indices(total, frames, "ssv2", 1, 2).tolist() == merged[1::2]


def test_known_clips():
    # 250 frames, g = 31.125, int(g / 2) = 15.
    assert clip_indices(250, 8).tolist() == [15, 46, 77, 108, 139, 171, 202, 233]
    assert clip_indices(64, 4, "middle").tolist() == [7, 23, 39, 55]
    assert clip_indices(3, 5, "middle").tolist() == [0, 1, 2, 2, 2]
    assert clip_indices(1, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rule", ["sparse", "ssv2", "middle"])
@pytest.mark.parametrize("total, frames", [(250, 8), (17, 8), (8, 8), (3, 8), (1, 2)])
def test_training_draws_one_from_each_part(rule, total, frames):
    drawn = np.stack(
        [random_clip_indices(total, frames, rule, np.random.default_rng(seed)) for seed in range(400)]
    )  # (draws, frames)
    assert drawn.shape == (400, frames) and drawn.dtype == np.int64
    assert drawn.min() >= 0 and drawn.max() < total and (np.diff(drawn) >= 0).all()
    repeated = random_clip_indices(total, frames, rule, np.random.default_rng(3))
    assert np.array_equal(repeated, drawn[3])
    if rule == "sparse":
        gap = (total - 1) / frames
        for i in range(frames):
            low, high = min(round(gap * i), total - 1), min(round(gap * (i + 1)), total - 1)
            assert (drawn[:, i].min(), drawn[:, i].max()) == (low, high)
    if rule == "ssv2" and total >= frames:
        length = total // frames
        assert drawn.min(0).tolist() == [length * i for i in range(frames)]
        assert drawn.max(0).tolist() == [length * i + length - 1 for i in range(frames)]


def test_what_is_refused():
    with pytest.raises(ValueError, match="'dense' is unknown; choose one of sparse, ssv2, middle"):
        clip_indices(10, 2, "dense")
    with pytest.raises(ValueError, match="0 frames of a video of 10"):
        clip_indices(10, 0)
    with pytest.raises(ValueError, match="'ssv2' has at most 2 views"):
        clip_indices(10, 2, "ssv2", 0, 3)
    with pytest.raises(ValueError, match="view=2 of views=2"):
        clip_indices(10, 2, "sparse", 2, 2)
    with pytest.raises(ValueError, match="unknown"):
        random_clip_indices(10, 2, "dense", np.random.default_rng(0))
