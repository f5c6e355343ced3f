"""The demo: the shipped model answers held-out questions; a model that has learned nothing fails it."""

import time

import pytest

from modeling_video_ma2mba.eval import demo
from modeling_video_ma2mba.train.tiny_model import build_tiny_model


def test_the_shipped_model_passes(tmp_path, capsys):
    start = time.perf_counter()
    assert demo.run_demo(str(tmp_path), seed=1, questions=27) == 0
    # Under a minute is promised; here other programs may run beside it.
    assert time.perf_counter() - start < 180
    shown = capsys.readouterr().out
    assert "PASSED: " in shown and shown.count(".mp4 ") == 27
    assert len(list((tmp_path / "evaluation").glob("*.mp4"))) == 27


def test_a_model_that_has_learned_nothing_fails(tmp_path, capsys, monkeypatch):
    model, processor = build_tiny_model(seed=0)
    model.save_pretrained(tmp_path / "random")
    processor.save_pretrained(tmp_path / "random")
    real = demo.pipeline
    monkeypatch.setattr(demo, "pipeline", lambda task: real(task, model=str(tmp_path / "random")))
    assert demo.run_demo(str(tmp_path), seed=1, questions=9) == 1
    assert "FAILED: " in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="questions=0 must be at least 1"):
        demo.run_demo(str(tmp_path), seed=0, questions=0)
