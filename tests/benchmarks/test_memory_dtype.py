"""Memories in bfloat16 against float32: both are asked, and a difference would be counted."""

import importlib.util
import sys
from pathlib import Path

import pytest

from modeling_video_ma2mba.eval.scene_answers import read_questions
from modeling_video_ma2mba.train.make_synthetic_data import Plan, write_data
from modeling_video_ma2mba.train.tiny_model import build_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("memory_dtype", ROOT / "benchmarks" / "memory_dtype.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "memory_dtype", module)
    spec.loader.exec_module(module)
    return module


def test_both_files_are_asked(module, tmp_path, monkeypatch):
    model, processor = build_tiny_model(seed=0)
    data = write_data(Plan(part="evaluation", output=tmp_path, count=3, frames=(8,), seed=5))
    questions = read_questions(data)
    said = iter(["red", "red", "red", "blue", "7", "7"])
    monkeypatch.setattr(type(model), "ask", lambda *arguments, **options: next(said))
    single, half = module.compare(model.eval(), processor, questions)
    assert (single["dtype"], half["dtype"]) == ("float32", "bfloat16")
    assert (single["other_answers_than_float32"], half["other_answers_than_float32"]) == (0, 1)
    assert 0.4 < half["file_bytes"] / single["file_bytes"] < 0.8
