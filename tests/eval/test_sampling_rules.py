"""Sampling rules of benchmarks on lengths worked out by hand."""

import pytest

from modeling_video_ma2mba.eval.sampling_rules import SAMPLING_RULES, longvideobench_times
from modeling_video_ma2mba.eval.task import load_task, task_names

# fmt: off
LONGVIDEOBENCH_CASES = [
    (10.0, 30.0, 4, [0.0, 2.5, 5.0, 7.5]),  # 300 frames, each 75th
    (10.0, 25.0, 3, [0.0, 83 / 25, 166 / 25]),  # 250 / 3 is rounded down
    (3.9, 10.0, 8, [0.0, 1.3, 2.6]),  # three whole seconds: three frames, each 13th of 39
    (0.5, 10.0, 8, [0.0]),
    (100.0, 10.0, 1, [0.0]),
]
# fmt: on


@pytest.mark.parametrize(("duration", "fps", "frames", "expected"), LONGVIDEOBENCH_CASES)
def test_longvideobench(duration, fps, frames, expected):
    assert longvideobench_times(duration, fps, frames).tolist() == pytest.approx(expected, abs=1e-12)


def test_tasks_name_rules_that_exist():
    named = {load_task(name).num_frames_sampling for name in task_names()}
    assert named - {"model"} == set(SAMPLING_RULES)
