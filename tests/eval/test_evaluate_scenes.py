"""The command from end to end with a random model, and one line for bad input."""

import json
import subprocess
import sys

import pytest

from modeling_video_ma2mba.eval import evaluate_scenes, scene_answers, scene_scores
from modeling_video_ma2mba.eval.scene_answers import Answer, evaluate
from modeling_video_ma2mba.eval.scene_scores import summary
from modeling_video_ma2mba.train.scene_questions import TYPES


@pytest.fixture(scope="module")
def folder(scene_model, scene_processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    scene_model.save_pretrained(path)
    scene_processor.save_pretrained(path)
    return path


def test_the_command(folder, annotations, scene_model, scene_processor, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scene_scores, "TRAINING_CLIPS", 40)
    output = tmp_path / "new" / "results.json"
    words = f"--model {folder} --data {annotations} --output {output} --num-frames 4 --limit 9 --batch-size 5".split()
    assert evaluate_scenes.main(words) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "| type | questions | video | blank | shuffled | question only | video, 4 frames | constant |" in lines
    assert [line.split(" | ")[0] for line in lines if line.startswith("|")] == [
        *("| type", "| ---", *(f"| {type}" for type in TYPES), "| all"),
        *("| type", "| ---", *(f"| {type}" for type in TYPES), "| all"),
    ]
    assert "blank: " in out and "question only: " in out

    result = json.loads(output.read_text())
    listed: dict[str, list[Answer]] = {}
    for line in output.with_suffix(".answers.jsonl").read_text().splitlines():
        row = json.loads(line)
        listed.setdefault(row.pop("control"), []).append(Answer(**row))
    assert list(listed) == ["video", "blank", "shuffled", "question-only", "video, 4 frames"]
    for name, options in {"shuffled": {"control": "shuffled"}, "video, 4 frames": {"num_frames": 4}}.items():
        expected = evaluate(scene_model, scene_processor, annotations, limit=9, **options)
        assert listed[name] == expected
        assert result["summaries"][name]["all"] == summary(expected)["all"]
    assert set(result["place_of_blind"]) == {"blank", "question-only"}
    assert result["summaries"]["constant"]["all"]["asked"] == 9
    assert result["settings"]["num_frames"] == [4] and result["settings"]["model"] == str(folder)
    assert {"python", "torch", "transformers", "av"} <= set(result["versions"])
    assert set(result["commit"]) == {"commit", "dirty"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--model": "nowhere"}, "no config.json"),
        ({"--data": "nowhere.json"}, "nowhere.json: no such file"),
        ({"--num-frames": "0"}, "num_frames=0"),
        ({"--batch-size": "0"}, "batch_size=0"),
        ({"--output": "."}, "directory"),
    ],
)
def test_bad_input_is_one_line(folder, annotations, tmp_path, capsys, changes, message):
    words = {"--model": folder, "--data": annotations, "--output": tmp_path / "a.json", **changes}
    assert evaluate_scenes.main([str(word) for pair in words.items() for word in pair]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("evaluate_scenes: error: ") and message in error


def test_the_controls_are_those_of_the_library():
    assert evaluate_scenes.CONTROLS == scene_answers.CONTROLS


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['evaluate_scenes', '--help']\n"
        "try:\n"
        f"    runpy.run_path({evaluate_scenes.__file__!r}, run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--controls" in done.stdout, done.stderr
