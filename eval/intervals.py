"""How sure a share of right answers is, in float64. It counts nothing itself.

The file is not called `statistics`: scripts of this folder would then hide Python's own module of that name.
"""

import math
from statistics import NormalDist


def wilson_interval(right: int, asked: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of the share `right / asked`, within 0 to 1.

    It holds for few questions and for shares near 0 and 1, where the usual "share plus or minus two errors" does not.

    Args:
        right: answers that were right, 0 to `asked`.
        asked: answers in all, 1 or more, each right or wrong independently of the others.
        confidence: how often such an interval holds the true share, above 0 and below 1.

    Raises:
        ValueError: numbers outside of these.
    """
    if asked < 1 or not 0 <= right <= asked:
        raise ValueError(f"right={right} of asked={asked}: asked must be 1 or more, right 0 to asked")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = right / asked, 1 + z * z / asked
    centre = (share + z * z / (2 * asked)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / asked + (z / (2 * asked)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)
