"""The evidence for VideoMamba goes through, two steps an arm; the control has the same frames in another order."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """Return the script as a module; its results go to a folder of their own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("videomamba_evidence", "result"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import result
    import videomamba_evidence

    monkeypatch.setattr(result, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(videomamba_evidence, "TEST_CLIPS", 12)
    return videomamba_evidence


def test_every_arm_gives_a_row(evidence, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["x", "--seeds", "1", "--clips", "32", "--epochs", "2", "--pretraining-epochs", "2"]
    )
    moved = []
    load = evidence.VideoMambaModel.load_state_dict
    monkeypatch.setattr(evidence.VideoMambaModel, "load_state_dict", lambda *a: moved.append(load(*a)))
    evidence.main()
    assert len(moved) == 1  # one arm starts from what was pre-trained
    (path,) = (tmp_path / "results").glob("videomamba_evidence_*.json")
    rows = {row["arm"]: row for row in json.loads(path.read_text())["rows"]}
    assert tuple(rows) == evidence.ARMS and all(row["asked"] == 12 for row in rows.values())
    sizes = {arm: row["parameters"] for arm, row in rows.items()}
    assert sizes["one direction"] < sizes["both directions"] == sizes["shuffled frames"] < sizes["wider"]
    assert sizes["wider"] == sizes["wider, distilled"]  # the projection to the teacher is gone
    assert sizes["finer"] == sizes["finer, pre-trained"] != sizes["both directions"]


def test_the_control_has_the_same_frames_in_another_order(evidence):
    plain, shuffled = evidence.MotionSet(12, 0, False), evidence.MotionSet(12, 0, True)
    assert plain.labels == shuffled.labels
    moved = 0
    for one, other in zip(plain.clips, shuffled.clips):
        frames, seen = ([frame.numpy().tobytes() for frame in clip] for clip in (one, other))
        assert sorted(frames) == sorted(seen)
        moved += frames != seen
    assert moved >= 10


def test_a_student_needs_its_teacher(evidence, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--seeds", "1", "--clips", "32", "--arms", "wider, distilled"])
    with pytest.raises(ValueError, match='the teacher is the arm "both directions"'):
        evidence.main()
