"""Wilson intervals against values worked out by hand."""

import pytest

from modeling_video_ma2mba.eval.intervals import wilson_interval

# z = 1.9599639845, z^2 = 3.8414588207.
# 0 of 10: high is z^2 / (10 + z^2). 8 of 10: centre (0.8 + z^2 / 20) / (1 + z^2 / 10) = 0.7167401,
# half z / (1 + z^2 / 10) * sqrt(0.016 + z^2 / 400) = 0.2265776. 50 of 100: 0.5 -+ 0.0961684.
PINNED = {
    (0, 10): (0.0, 0.2775327999),
    (10, 10): (0.7224672001, 1.0),
    (8, 10): (0.4901625, 0.9433178),
    (50, 100): (0.4038316, 0.5961684),
    (1, 1): (0.2065493, 1.0),  # 1 / (1 + z^2)
}


@pytest.mark.parametrize("counts", PINNED)
def test_hand_worked_values(counts):
    assert wilson_interval(*counts) == pytest.approx(PINNED[counts], abs=1e-6)


def test_confidence_widens_it():
    # z = 1 at 68.27 %: centre 0.5, half 1 / (1 + 1/4) * sqrt(1/16 + 1/64) = 0.2236068.
    assert wilson_interval(2, 4, 0.6826894921) == pytest.approx((0.2763932, 0.7236068), abs=1e-6)
    low, high = wilson_interval(2, 4, 0.99)
    assert low < 0.2 and high > 0.8


@pytest.mark.parametrize("given", [(1, 0), (-1, 3), (4, 3), (1, 3, 0.0), (1, 3, 95)])
def test_impossible_numbers_are_refused(given):
    with pytest.raises(ValueError, match="must"):
        wilson_interval(*given)
