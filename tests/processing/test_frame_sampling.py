"""Sample times: the rate, the frame limit, the exact number, and what is refused."""

import numpy as np
import pytest

from modeling_video_ma2mba.processing.frame_sampling import MAX_SAMPLES, sample_times


def test_rate_stops_before_the_end():
    assert sample_times(4.0).tolist() == [0, 1, 2, 3]
    assert sample_times(4.001).tolist() == [0, 1, 2, 3, 4]
    assert sample_times(0.5).tolist() == [0]
    assert sample_times(0.0).tolist() == [0]
    assert sample_times(2.0, fps=2).tolist() == [0, 0.5, 1, 1.5]
    assert sample_times(2.0).dtype == np.float64


@pytest.mark.parametrize("fps", [0.1, 0.3, 7.5, 10, 23.976, 29.97])
@pytest.mark.parametrize("count", [1, 3, 10, 1001])
def test_rate_is_not_fooled_by_rounding(fps, count):
    # count / fps is rarely exact in binary; neither one sample too many nor one too few.
    assert len(sample_times(count / fps, fps=fps)) == count


def test_part_of_a_video():
    assert sample_times(100.0, start=10.5, end=13.0).tolist() == [10.5, 11.5, 12.5]
    assert sample_times(12.0, start=10.5, end=99.0).tolist() == [10.5, 11.5]


def test_frame_limit_spreads_uniformly_only_when_it_binds():
    assert sample_times(4.0, max_frames=4).tolist() == [0, 1, 2, 3]
    assert sample_times(100.0, max_frames=4).tolist() == [12.5, 37.5, 62.5, 87.5]
    assert sample_times(100.0, max_frames=2, start=50).tolist() == [62.5, 87.5]


def test_exact_number_at_centres_of_equal_parts():
    assert sample_times(8.0, num_frames=4).tolist() == [1, 3, 5, 7]
    assert len(sample_times(0.01, num_frames=16)) == 16
    assert sample_times(0.0, num_frames=3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("duration", "kwargs", "message"),
    [
        (10, {"fps": 0}, "fps=0"),
        (10, {"fps": -1}, "fps=-1"),
        (10, {"fps": float("nan")}, "fps=nan"),
        (10, {"num_frames": 0}, "num_frames=0"),
        (10, {"max_frames": 0}, "max_frames=0"),
        (10, {"num_frames": 4, "fps": 1}, "excludes fps=1"),
        (10, {"num_frames": 4, "max_frames": 4}, "excludes"),
        (10, {"start": -1}, "start=-1"),
        (10, {"start": 5, "end": 5}, "end=5"),
        (10, {"start": 10}, "behind the end"),
        (float("inf"), {}, "duration=inf"),
        (-1, {}, "duration=-1"),
        (MAX_SAMPLES + 1.0, {}, "lower fps"),
        (10, {"num_frames": MAX_SAMPLES + 1}, "lower fps"),
    ],
)
def test_refused(duration, kwargs, message):
    with pytest.raises(ValueError, match=message):
        sample_times(duration, **kwargs)


def test_frame_limit_helps_where_the_rate_is_refused():
    assert len(sample_times(MAX_SAMPLES * 10.0, max_frames=32)) == 32
