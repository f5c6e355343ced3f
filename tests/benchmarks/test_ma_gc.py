"""The MA-GC benchmark runs as a whole on a tiny model, checks gradients first, and writes what the README reads."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Return the script as a module; its results go to a folder of their own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("ma_gc", "result"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import ma_gc
    import result

    monkeypatch.setattr(result, "RESULTS", tmp_path)
    return ma_gc


WORDS = "--model tiny --lengths 128 512 --segment 32 --time-lengths 128 --repeats 1 --check-length 64".split()


@pytest.mark.parametrize("vision", [False, True])
def test_a_tiny_model_goes_through(benchmark, tmp_path, vision):
    some = ["--methods", "plain", "paper's grid", "grid, host", "nested", "torch cells, paper's order"]
    benchmark.main([*WORDS, *some, *(["--vision"] if vision else ["--budgets", "1"])])
    (path,) = tmp_path.glob("ma_gc_tiny*.json")
    rows = json.loads(path.read_text())["rows"]
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("check", "memory", "time", "planned")}
    (check,) = by_kind["check"]
    assert set(check["fp64_error"]) == {"plain", *some[1:]}
    assert max(check["fp64_error"].values()) < 1e-10
    assert [row["method"] for row in by_kind["time"]] == some[1:]
    assert all(row["seconds"] and row["ratio_to_plain"] > 0 for row in by_kind["time"])
    sizes = {(row["method"], row["length"]): row["activations"] for row in by_kind["memory"]}
    assert sizes["nested", 512] < sizes["plain", 512]
    assert len(by_kind["planned"]) == (0 if vision else 2)
    host = next(row for row in by_kind["memory"] if row["method"] == "grid, host" and row["length"] == 512)
    assert host["host"] > 0


def test_wrong_gradients_are_not_measured(benchmark, monkeypatch, tmp_path):
    step = benchmark.planned_step

    def broken(model, plan):
        def run(batch):
            loss = step(model, plan)(batch)
            next(model.parameters()).grad.mul_(1.001)
            return loss

        return run

    monkeypatch.setattr(benchmark, "planned_step", broken)
    with pytest.raises(SystemExit, match="gradients are wrong"):
        benchmark.main([*WORDS, "--methods", "nested"])
    assert not list(tmp_path.iterdir())
