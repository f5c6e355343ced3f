"""The benchmark of VideoMamba's efficiency runs at toy size, goes on where it stopped, and is drawn."""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WORDS = "--size tiny --image-size 32 --frames 4 2 --repeats 2 --threads 1".split()


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Return the script as a module; every cell runs in this process and is noted in `cells`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("videomamba_efficiency", "result", "figures", "readme_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import result
    import videomamba_efficiency

    def measure(arguments, name, frames):
        videomamba_efficiency.cells.append((name, frames))
        return videomamba_efficiency.measure(videomamba_efficiency.build_parser().parse_args(arguments), name, frames)

    videomamba_efficiency.cells = []
    monkeypatch.setattr(videomamba_efficiency, "measure_in_own_process", measure)
    monkeypatch.setattr(result, "RESULTS", tmp_path / "benchmarks" / "results")
    return videomamba_efficiency


def test_cells_are_measured_once_and_drawn(benchmark, tmp_path, monkeypatch, capsys):
    words = [*WORDS, "--work", str(tmp_path / "work")]
    assert benchmark.main([*words, "--models", "videomamba"]) == 0
    assert benchmark.cells == [("videomamba", 2), ("videomamba", 4)]
    benchmark.cells.clear()
    assert benchmark.main(words) == 0
    assert benchmark.cells == [(name, n) for n in (2, 4) for name in ("attention", "fused attention")]
    (path,) = (tmp_path / "benchmarks" / "results").glob("videomamba_efficiency_*.json")
    result = json.loads(path.read_text())
    assert [(row["model"], row["frames"]) for row in result["rows"]] == [
        (m, n) for n in (2, 4) for m in benchmark.MODELS
    ]
    assert result["settings"]["batch"] == 1 and result["settings"]["image_size"] == 32
    for row in result["rows"]:
        assert row["clips_per_second"] > 0 and len(row["seconds"]) == 2 and row["peak_tensor_bytes"] > 0
    sizes = {(row["model"], row["frames"]): row["peak_tensor_bytes"] for row in result["rows"]}
    assert sizes["attention", 4] > sizes["attention", 2]

    assert benchmark.main([*words, "--repeats", "3"]) == 2
    assert "other settings (repeats)" in capsys.readouterr().err
    for bad in (["--batch", "0"], ["--image-size", "30"], ["--frames", "0"]):
        assert benchmark.main([*words, *bad]) == 2

    pytest.importorskip("matplotlib")
    import figures

    monkeypatch.setattr(figures, "newest", lambda question: result)
    figures.draw_videomamba(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 1000


def test_a_failed_cell_is_told_and_tried_again(benchmark, tmp_path, monkeypatch, capsys):
    words = [*WORDS, "--work", str(tmp_path / "work"), "--models", "videomamba"]
    works = benchmark.measure_in_own_process
    failed = {"model": "videomamba", "frames": 2, "failure": "exit code 1"}
    monkeypatch.setattr(benchmark, "measure_in_own_process", lambda *_: failed)
    assert benchmark.main(words) == 0 and "exit code 1" in capsys.readouterr().out
    monkeypatch.setattr(benchmark, "measure_in_own_process", works)
    assert benchmark.main(words) == 0
    assert benchmark.cells == [("videomamba", 2), ("videomamba", 4)]


def test_a_batch_that_does_not_fit_is_halved(benchmark, monkeypatch):
    options = benchmark.build_parser().parse_args([*WORDS, "--work", "unused", "--batch", "6"])
    tried = []

    def measure(options, name, model, pixels):
        tried.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError
        return {"seconds": [1.0]}

    monkeypatch.setattr(benchmark, "_measure", measure)
    assert benchmark.measure(options, "videomamba", 2)["batch"] == 1 and tried == [6, 3, 1]


def test_models_have_the_published_sizes(benchmark):
    counts = {name: sum(p.numel() for p in benchmark.build(name, "ti", 8, 224).parameters())
              for name in benchmark.MODELS}  # fmt: skip
    assert counts["videomamba"] == 7_033_744  # the paper's, 8 x 224, 400 classes
    assert counts["attention"] == counts["fused attention"] and 5.4e6 < counts["attention"] < 5.8e6  # DeiT-Ti
    benchmark.check("tiny")


def test_a_cell_has_a_process_of_its_own(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "videomamba_efficiency", raising=False)
    import videomamba_efficiency

    row = videomamba_efficiency.measure_in_own_process([*WORDS, "--work", str(tmp_path)], "fused attention", 2)
    assert row["model"] == "fused attention" and row["frames"] == 2 and row["clips_per_second"] > 0
