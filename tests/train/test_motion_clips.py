"""Clips in which motion decides: a pair of classes is one film, forwards and backwards."""

import itertools

import numpy as np
import pytest

from modeling_video_ma2mba.processing.video_reader import iter_frames
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.motion_clips import MOTIONS, draw_motion, main
from modeling_video_ma2mba.train.read_clips import read_clip_data


@pytest.mark.parametrize("pair", range(len(MOTIONS) // 2))
def test_a_pair_is_one_film_forwards_and_backwards(pair):
    forwards, backwards = draw_motion((7, pair), 2 * pair), draw_motion((7, pair), 2 * pair + 1)
    assert forwards.shape == (16, 32, 32, 3) and forwards.dtype == np.uint8
    assert np.array_equal(forwards[::-1], backwards) and not np.array_equal(forwards, backwards)
    assert not np.array_equal(forwards, draw_motion((8, pair), 2 * pair))


def bright_columns(frame):
    return np.flatnonzero((frame.max(-1) > 100).any(0))


def test_what_the_names_say():
    right = draw_motion(3, MOTIONS.index("moves right"))
    assert bright_columns(right[0])[0] < bright_columns(right[-1])[0]
    opens = draw_motion(3, MOTIONS.index("opens"))
    assert len(bright_columns(opens[0])) == 32 > len(bright_columns(opens[-1]))
    order = draw_motion(3, MOTIONS.index("red, then blue"))
    changes = [not np.array_equal(a, b) for a, b in itertools.pairwise(order)]
    assert sum(changes) == 1
    redness = order[..., 0].max((1, 2)) > order[..., 2].max((1, 2))
    assert redness[0] and not redness[-1]


def test_files_for_the_reader(tmp_path):
    assert main(["--output", str(tmp_path), "--count", "12", "--size", "32"]) == 0
    clips = read_clip_data(str(tmp_path / "train.csv"), DataReport(), len(MOTIONS))
    assert [clip.label for clip in clips] == [*range(6), *range(6)]
    assert (tmp_path / "classes.txt").read_text().splitlines() == list(MOTIONS)
    frames = np.concatenate([chunk for _, chunk in iter_frames(clips[1].medium.path, fps=8)])
    difference = np.abs(frames.astype(int) - draw_motion((0, 0, 1), 1).astype(int)).mean()
    assert frames.shape == (16, 32, 32, 3) and difference < 6
    assert len(read_clip_data(str(tmp_path / "test.csv"), DataReport(), len(MOTIONS))) == 6
    assert main(["--output", str(tmp_path), "--count", "3"]) == 2
