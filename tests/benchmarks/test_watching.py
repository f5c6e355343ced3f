"""The benchmark of watching runs on short videos, extrapolates what was not read, and is tabled and drawn."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from modeling_video_ma2mba import VideoMa2mbaConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WORDS = "--lengths 32 96 --film-seconds 2 --prefill 64 --repeats 2".split()
TINY_TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "state_size": 16,
             "n_groups": 1, "vocab_size": 400, "chunk_size": 16, "pad_token_id": 0, "bos_token_id": 0,
             "eos_token_id": 0, "tie_word_embeddings": True}  # fmt: skip
TINY_TOWER = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "patch_size": 14, "image_size": 28}  # fmt: skip


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Return the script as a module; every point runs in this process, layers are compiled without code generation."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("watching", "ma_gc", "video_decoding", "result", "figures", "readme_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import result
    import watching

    def measure(arguments, kind, frames):
        return watching.measure(watching.build_parser().parse_args(arguments), kind, frames)

    monkeypatch.setattr(watching, "measure_in_own_process", measure)
    monkeypatch.setattr(watching, "COMPILER", "eager")
    monkeypatch.setattr(result, "RESULTS", tmp_path / "benchmarks" / "results")
    return watching


def read(tmp_path):
    (path,) = (tmp_path / "benchmarks" / "results").glob("watching_*.json")
    return json.loads(path.read_text())


def test_the_small_model_goes_through(benchmark, tmp_path, monkeypatch, capsys):
    benchmark.main(WORDS)
    result = read(tmp_path)
    assert result["question"] == "watching_tiny"
    rows = {(row["kind"], row["frames"]): row for row in result["rows"]}
    assert list(rows) == [(kind, n) for kind in ("watch", "transformer") for n in (32, 96)] + [
        ("film", 2),
        ("speed", 0),
    ]
    short, long = rows["watch", 32], rows["watch", 96]
    assert short["memory_bytes"] == long["memory_bytes"] > 0
    assert long["peak_tensor_bytes"] < 1.1 * short["peak_tensor_bytes"]
    assert 0 < long["drawing_cpu_seconds"] < long["seconds"] and len(long["answer_seconds"]) == 2
    short, long = rows["transformer", 32], rows["transformer", 96]
    assert long["cache_bytes"] == 3 * short["cache_bytes"] == 96 * 4 * 2 * 6 * 160 * 4
    assert abs(long["parameters"] / long["parameters_of_ours"] - 1) < 0.05
    assert not long["extrapolated"] and long["seconds"] == long["seconds_read"]
    assert rows["speed", 0]["compiled_says_the_same"] is True

    import readme_tables

    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    lines = readme_tables.watching_table().splitlines()
    (line,) = [line for line in lines if line.startswith("| 1.6 min |")]
    assert "| 2.9 MB |" in line and "*" not in line
    assert lines[-3].startswith("A file (H.264, 224 px, 30 FPS, 2 s)") and lines[-1].startswith("Tokens per second")

    pytest.importorskip("matplotlib")
    import figures

    monkeypatch.setattr(figures, "FIGURES", tmp_path / "figures")
    capsys.readouterr()
    figures.main()
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"ma_gc_grid.png", "watching.png"}
    out = capsys.readouterr().out
    assert "ma_gc_memory.png was not drawn" in out and "no trends_*.json" in out


def test_the_path_of_the_large_preset(benchmark, tmp_path, monkeypatch):
    config = VideoMa2mbaConfig(vision_config=TINY_TOWER, text_config=TINY_TEXT, image_token_id=2, video_token_id=3)
    assert config.tokens_per_frame == 1

    def preset(name, image_token_id, video_token_id):
        assert name == "3.1b" and (image_token_id, video_token_id) == (2, 3)
        return config

    monkeypatch.setattr(benchmark.VideoMa2mbaConfig, "preset", preset)
    benchmark.main([*WORDS, "--preset", "3.1b", "--time-limit", "0", "--cache-limit", "0.00005"])
    result = read(tmp_path)
    assert result["question"] == "watching_31b" and not [row for row in result["rows"] if "failure" in row]
    short, long = [row for row in result["rows"] if row["kind"] == "transformer"]
    assert short["frames_read"] == 32 and short["extrapolated"] == []
    # Behind the limit of bytes nothing is measured, and one length alone gives no line.
    assert long["frames_read"] == 32 and "answer" not in long and long["cache_bytes"] == 96 * 2 * 2 * 64 * 4


def test_what_was_not_read_follows_the_laws(benchmark):
    read = {"kind": "transformer", "piece_tokens": 10, "seconds_read": 9}
    pieces = [(n, 2 + 0.1 * n) for n in (0, 10, 20)]
    rows = [
        read | {"frames": 5, "frames_read": 5, "tokens": 20, "pieces": [], "answer_seconds": [1, 1]},
        read | {"frames": 9, "frames_read": 7, "tokens": 40, "pieces": pieces, "answer_seconds": [2]},
        read | {"frames": 20, "frames_read": 7, "tokens": 80, "pieces": []},
    ]
    benchmark.extrapolate(rows)
    assert [row["extrapolated"] for row in rows] == [[], ["seconds"], ["seconds", "answer"]]
    assert rows[0]["seconds"] == 9
    assert rows[1]["seconds"] == pytest.approx(4 * 2 + 0.1 * (0 + 10 + 20 + 30))
    assert rows[2]["seconds"] == pytest.approx(8 * 2 + 0.1 * 280)
    assert rows[2]["answer"] == pytest.approx(4.0)


def test_a_point_has_a_process_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "watching", raising=False)
    import watching

    row = watching.measure_in_own_process([*WORDS, "--threads", "1"], "watch", 32)
    assert row["kind"] == "watch" and row["frames"] == 32 and row["threads"] == 1 and row["rss_growth_bytes"] >= 0
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    failed = watching.measure_in_own_process(WORDS, "watch", 32)
    assert failed == {"kind": "watch", "frames": 32, "failure": "exit code 1"}
