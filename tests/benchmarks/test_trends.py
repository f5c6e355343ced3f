"""The study of trends goes through on a random model with one step an arm, joins its arms, and is drawn and tabled."""

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeling_video_ma2mba.eval import scene_scores
from modeling_video_ma2mba.train.tiny_model import build_tiny_model

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Return the script as a module, with short videos; its results go to a folder of their own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("trends", "result", "figures", "readme_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import result
    import trends

    monkeypatch.setattr(result, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(trends, "LENGTHS", {"short": (8, 10), "long": (12,)})
    monkeypatch.setattr(trends, "FRAMES", {"2": (8, 10)})
    monkeypatch.setattr(scene_scores, "TRAINING_CLIPS", 20)
    return trends


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    for part in build_tiny_model(0):
        part.save_pretrained(path)
    return path


def words(work, folder, *more):
    starts = f"--stage1 {folder} --stage1-5 {folder} --model {folder}"
    return [*f"--work {work} {starts} --seeds 3 --videos 8 --steps 1 --questions 9".split(), *more]


def test_the_study_goes_through_and_does_nothing_twice(study, folder, tmp_path, monkeypatch, capsys):
    work = tmp_path / "work"
    some = ["8-frames", "constant", "model-8-frames"]
    assert study.main(words(work, folder, "--arms", *some)) == 0
    out = capsys.readouterr().out
    assert "[8-frames-seed3] {'loss'" in out or "[8-frames-seed3] {'train_runtime'" in out
    assert "without-stage-1.5-seed3" in out and "--collect" in out and not (tmp_path / "results").exists()
    run = json.loads((work / "models" / "8-frames-seed3" / "run.json").read_text())
    assert run["finished"] and run["options"]["init_from"] == str(folder)
    assert {key: run["recipe"][key] for key in ("name", "stage", "max_frames", "seed", "max_steps")} == {
        "name": "tiny", "stage": "2", "max_frames": 8, "seed": 3, "max_steps": 1
    }  # fmt: skip
    assert run["data"]["samples"] == 8 and run["recipe"]["global_batch_size"] == 8

    # What is done is not done again, neither by going on nor by collecting.
    for name in ("train", "evaluate", "constant_baseline", "write_data"):
        monkeypatch.setattr(study, name, None)
    assert study.main(words(work, folder, "--arms", *some)) == 0
    output = tmp_path / "new" / "trends.json"
    assert study.main(["--work", str(work), "--seeds", "3", "--collect", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["question"] == "trends" and {"commit", "versions", "hardware"} <= set(result)
    assert result["settings"]["videos"] == 8 and result["settings"]["recipe"]["learning_rate"] == 2e-3
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["8-frames", "constant", "model-8-frames"]
    assert [row["questions"] for row in rows.values()] == [18, 18, 9]
    assert set(rows["8-frames"]["scores"]["by_frames"]) == {"8", "10"}
    trained = rows["8-frames"]["trained"]["3"]
    assert trained["steps"] == 1 and trained["processes"] == 1 and trained["seconds"] > 0
    assert rows["model-8-frames"]["seeds"] == [0] and not rows["model-8-frames"]["trained"]


def test_an_arm_is_asked_with_its_frames_and_its_model(study, folder, tmp_path, monkeypatch):
    seen = {}

    def train(options, arm, seed, lock):
        return {"steps": 1, "seconds": 1.0, "processes": 1}

    def load(path, device, dtype):
        assert device == "cpu" and dtype == "float32"
        seen["path"] = path
        return None, SimpleNamespace(fps=1.0, max_frames=None)

    def ask(model, processor, data):
        seen[Path(seen["path"]).name] = (processor.max_frames, data.parent.name)
        return study.constant_baseline([], study.read_questions(data))

    for name, stand_in in {"train": train, "load_model": load, "evaluate": ask}.items():
        monkeypatch.setattr(study, name, stand_in)
    work = tmp_path / "work"
    assert study.main(words(work, folder, "--parts", "A", "B")) == 0
    del seen["path"]
    assert seen == {
        "every-frame-seed3": (None, "short-3"),
        **{f"{n}-frames-seed3": (n, "short-3") for n in (8, 16, 32)},
        "without-stage-1.5-seed3": (None, "short-3"),
    }
    assert len(list((tmp_path / "results").glob("trends_*.json"))) == 1
    assert study.main(words(work, folder, "--parts", "C", "--arms", "model-8-frames")) == 0
    assert seen[folder.name] == (8, "long-0")


def test_only_stage_1_5_is_left_out_in_b(study):
    arms = {arm.name: arm for arm in study.ARMS}
    with_it, without = arms["every-frame"], arms["without-stage-1.5"]
    assert (with_it.start, without.start) == (
        "stage1_5",
        "stage1",
    ) and with_it.max_frames is without.max_frames is None
    assert all(arm.start == "stage1_5" for arm in study.ARMS if "A" in arm.parts and arm.start)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--videos", "9"], "videos was 8, is 9"),
        (["--questions", "10"], "multiple of 9"),
        (["--processes", "3"], "batch of 8"),
        (["--stage1", "nowhere"], "nowhere: no such folder"),
        (["--parts", "C", "--arms", "8-frames"], "none of --arms 8-frames"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(study, folder, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.setattr(study, "run_arm", lambda *given: None)
    study.main(words(tmp_path, folder))
    capsys.readouterr()
    assert study.main(words(tmp_path, folder, *more)) == 2
    assert message in capsys.readouterr().err


def test_a_failed_training_shows_its_end_and_no_record(study, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "ROOT", tmp_path)  # where there is no train/stage2.py
    assert study.main(words(tmp_path, folder, "--arms", "8-frames")) == 2
    error = capsys.readouterr().err
    assert "[8-frames-seed3] stage 2 failed" in error and "stage2.py" in error
    assert not list((tmp_path / "arms").glob("*.json"))


def test_a_second_process_waits(study, tmp_path):
    path, order = tmp_path / "arm", []

    def second():
        with study.locked(path):
            order.append("second")

    with study.locked(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


def records(study):
    """One arm of each part and seed, 4 questions each: all right for seed 0, one wrong for seed 1."""
    made = []
    for arm in study.ARMS:
        if arm.name not in ("every-frame", "8-frames", "without-stage-1.5", "constant", "model-every-frame"):
            continue
        lengths = study.LENGTHS[arm.questions]
        for seed in [1, 0] if "C" not in arm.parts else [0]:
            answers = [
                {"id": str(i), "type": "edge" if i % 2 else "count", "form": "f", "frames": lengths[i % len(lengths)],
                 "question": "q", "expected": "red", "given": "red", "right": not (seed and i == 0)}
                for i in range(4)
            ]  # fmt: skip
            trained = {"steps": 5, "seconds": 1.5, "processes": 1} if arm.is_trained else None
            made.append({"arm": arm.name, "seed": seed, "trained": trained, "commit": None, "answers": answers})
    return made


def test_joining_pools_the_seeds(study):
    rows = {row["name"]: row for row in study.join(records(study)[::-1])}
    assert list(rows) == ["every-frame", "8-frames", "without-stage-1.5", "constant", "model-every-frame"]
    row = rows["8-frames"]
    assert row["seeds"] == [0, 1] and row["questions"] == 8 and row["max_frames"] == 8
    assert (row["scores"]["all"]["right"], row["scores"]["all"]["asked"]) == (7, 8)
    assert row["scores"]["all"]["low"] == pytest.approx(0.5291, abs=1e-4)  # Wilson, 7 of 8
    assert row["scores"]["by_type"]["count"]["right"] == 3 and row["scores"]["by_type"]["edge"]["accuracy"] == 1
    assert [row["by_seed"][seed]["all"]["accuracy"] for seed in (0, 1)] == [1.0, 0.75]
    assert row["trained"] == {seed: {"steps": 5, "seconds": 1.5, "processes": 1} for seed in (0, 1)}
    assert rows["constant"]["trained"] == {} and rows["model-every-frame"]["seeds"] == [0]


@pytest.fixture
def collected(study):
    """Write a result as the script does, and return it as it is read back."""
    import readme_tables
    import result

    settings = {"videos": 8, "seeds": [0, 1], "lengths": study.LENGTHS, "training_lengths": [8, 10]}
    path = result.write_result("trends", settings, study.join(records(study)))
    return readme_tables, json.loads(path.read_text()) | {"file": path.name}


def test_the_tables(collected, monkeypatch):
    readme_tables, result = collected
    monkeypatch.setattr(readme_tables, "newest", lambda question: result if question == "trends" else None)
    lines = readme_tables.trends_tables().splitlines()
    assert "| trained and asked with | 8 frames | 10 frames | all | all, seed by seed |" in lines
    cells = "75.0 (30 to 95) | 100.0 (51 to 100) | 87.5 (53 to 98) | 100.0, 75.0"
    for label in ("every frame", "8 frames", "every frame, no stage 1.5", "most frequent answer"):
        assert f"| {label} | {cells} |" in lines
    assert (
        "| frames read | 12 frames | all |" in lines
        and "| every frame | 100.0 (51 to 100) | 100.0 (51 to 100) |" in lines
    )
    assert [line for line in lines if line.startswith("| type |")] == [
        "| type | questions | every frame | 8 frames | every frame, no stage 1.5 | most frequent answer |",
        "| type | questions | every frame |",
    ]


@pytest.mark.parametrize("parts", [["A", "B", "C"], ["C"]])
def test_the_figure_has_a_panel_for_each_part_with_its_numbers(collected, monkeypatch, tmp_path, parts):
    pytest.importorskip("matplotlib")
    import figures

    result = collected[1]
    result["rows"] = [row for row in result["rows"] if set(row["parts"]) & set(parts)]
    drawn = []
    monkeypatch.setattr(figures, "newest", lambda question: result)
    monkeypatch.setattr(figures.plt, "close", drawn.append)
    figures.draw_trends(tmp_path / "trends.png")
    assert (tmp_path / "trends.png").stat().st_size > 1000
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [figures.TRENDS[part] for part in parts]
    labels = {axes.get_title(): [text.get_text() for text in axes.get_legend().texts] for axes in figure.axes}
    assert set(labels[figures.TRENDS["C"]]) == {"every frame"}
    if parts[0] == "A":
        first = figure.axes[0]
        assert set(labels[first.get_title()]) == {"every frame", "8 frames", "most frequent answer"}
        shares = first.containers[0].lines[0].get_ydata()
        assert list(shares) == [75.0, 100.0]
        (bars,) = first.containers[0].lines[2]
        low, high = bars.get_segments()[0][:, 1]
        assert (low, high) == pytest.approx((30.06, 95.44), abs=0.01)  # Wilson, 3 of 4
