"""Shares by length and depth, counted by hand."""

import pytest

from modeling_video_ma2mba.eval.intervals import wilson_interval
from modeling_video_ma2mba.eval.needle_report import Found, cells, draw, lost_at, table


def found(trial, length, depth, whole, exact):
    words = {"needle": "n", "place": 0, "question": "q", "expected": "a", "said": "b"}
    return Found(trial=trial, length=length, depth=depth, whole=whole, exact=exact, **words)


LISTED = [
    *(found(trial, 1000, 0.0, trial < 1, trial < 3) for trial in range(4)),
    *(found(trial, 1000, 1.0, True, True) for trial in range(4)),
    *(found(trial, 2000, 0.0, False, trial < 1) for trial in range(4)),
    *(found(trial, 2000, 1.0, trial < 3, True) for trial in range(4)),
]


def test_cells():
    rows = {(row["length"], row["depth"]): row for row in cells(LISTED)}
    right = {place: (row["asked"], row["whole"]["right"], row["exact"]["right"]) for place, row in rows.items()}
    assert right == {
        (1000, 0): (4, 1, 3), (1000, 1): (4, 4, 4), (2000, 0): (4, 0, 1), (2000, 1): (4, 3, 4),
        (1000, None): (8, 5, 7), (2000, None): (8, 3, 5), (None, None): (16, 8, 12),
    }  # fmt: skip
    whole = rows[2000, None]["whole"]
    assert (whole["share"], whole["low"], whole["high"]) == (3 / 8, *wilson_interval(3, 8))


def test_the_length_at_which_half_are_lost():
    rows = cells(LISTED)
    assert lost_at(rows, "whole") == 2000 and lost_at(rows, "exact") is None
    assert lost_at(cells([found(0, 10, 0.0, True, True), found(1, 10, 0.0, False, False)]), "whole") is None  # half


def test_table():
    assert table(cells(LISTED), "whole").splitlines() == [
        "| frames | depth 0 | depth 1 | all depths |",
        "| --- | --- | --- | --- |",
        "| 1,000 | 25 | 100 | 62 (31 to 86) |",
        "| 2,000 | 0 | 75 | 38 (14 to 69) |",
    ]


def test_heat_map(tmp_path):
    pytest.importorskip("matplotlib")
    draw(cells(LISTED), "a title", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    draw(cells(LISTED[:4]), "one cell", tmp_path / "one.png")
