"""The command from end to end with a random model, and one line for bad input."""

import json
import subprocess
import sys

import pytest

import _video_ma2mba_cli as console
from modeling_video_ma2mba.eval import needle
from modeling_video_ma2mba.eval.needle_videos import KINDS
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video


@pytest.fixture(scope="module")
def folder(scene_model, scene_processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    scene_model.save_pretrained(path)
    scene_processor.save_pretrained(path)
    return path


def run(folder, output, *words):
    assert console.main(["needle", "--model", str(folder), "--output", str(output), "--device", "cpu", *words]) == 0
    answers = [json.loads(line) for line in (output / needle.ANSWERS).read_text().splitlines()]
    return json.loads((output / needle.RESULT).read_text()), answers


def test_the_command(folder, tmp_path, capsys):
    output = tmp_path / "new" / "needles"
    words = ["--lengths", "8", "4", "8", "--depths", "0", "1", "0.5", "--trials", "2"]
    result, answers = run(folder, output, *words)
    out = capsys.readouterr().out
    assert (
        "| frames | depth 0 | depth 0.5 | depth 1 | all depths |" in out and "V-NIAH's exact match: under half" in out
    )
    assert result["settings"]["lengths"] == [4, 8] and result["settings"]["depths"] == [0, 0.5, 1]
    assert result["settings"]["seed"] == 0 and result["model"]["tokens_per_frame"] == 4
    assert {"python", "torch", "transformers"} <= set(result["versions"]) and "commit" in result
    places = [(one["trial"], one["length"], one["depth"], one["place"]) for one in answers]
    assert places == [(t, n, d, int(d * n)) for t in range(2) for n in (4, 8) for d in (0, 0.5, 1)]
    assert [one["expected"] for one in answers[::6]] == ["0", "1"]
    assert [row["asked"] for row in result["cells"]] == [2] * 6 + [6] * 2 + [12]
    # Each trial: 8 frames once; needles behind 0, 2, 4 and 8 of them, the one behind 4 being in both lengths.
    assert result["cost"]["frames_encoded"] == 2 * (8 + 4) and result["cost"]["frames_read_apart"] == 2 * 3 * 12
    assert (output / needle.PLOT).is_file() == ("heat map" not in capsys.readouterr().err)

    again, same = run(folder, tmp_path / "again", *words, "--rows", "3")
    assert same == answers and (result["cost"]["passes"], again["cost"]["passes"]) == (2, 4)
    moved = run(folder, tmp_path / "other", *words, "--seed", "1", "--trials", "1")[1]
    assert [one["question"] for one in moved] != [one["question"] for one in answers[:6]]


def test_an_earlier_result_stays(folder, tmp_path, capsys):
    (tmp_path / needle.RESULT).write_text("earlier")
    assert console.main(["needle", "--model", str(folder), "--output", str(tmp_path), "--lengths", "4"]) == 2
    assert "is the result of an earlier run: choose another --output" in capsys.readouterr().err
    assert (tmp_path / needle.RESULT).read_text() == "earlier" and len(list(tmp_path.iterdir())) == 1


def test_the_shipped_model_finds_digits(tmp_path, capsys):
    """Whoever guesses one of ten finds half of twenty once in a million times."""
    words = "--lengths 16 --depths 0.5 1 --trials 10 --device cpu".split()
    assert console.main(["needle", *words, "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / needle.RESULT).read_text())
    everywhere = result["cells"][-1]
    assert everywhere["length"] is everywhere["depth"] is None and everywhere["asked"] == 20
    assert everywhere["whole"]["right"] >= 10
    assert result["settings"]["model"] == "tiny" and not {"command", "run"} & set(result["settings"])
    assert "whole answer: half or more at every length" in capsys.readouterr().out


def test_own_video_and_needles(folder, tmp_path):
    write_video(tmp_path / "film.mp4", numbered_frames(12, 64, 96), fps=1)
    write_video(tmp_path / "event.mp4", numbered_frames(2, 64, 96), fps=1)
    rows = [{"video": "event.mp4", "question": "what is it ?", "answer": "red"}] * 2
    (tmp_path / "needles.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--video", str(tmp_path / "film.mp4"), "--needles", str(tmp_path / "needles.jsonl")]
    result, answers = run(folder, tmp_path / "out", *words, "--lengths", "10", "--depths", "0", "1")
    assert len(answers) == 4 and {one["needle"] for one in answers} == {"1: event.mp4", "2: event.mp4"}
    # One pass for both needles at both depths: 10 frames, and two for each of the four.
    assert result["cost"]["passes"] == 1 and result["cost"]["frames_encoded"] == 10 + 4 * 2


@pytest.mark.parametrize(
    "words, message",
    [
        ("--model /nowhere", "there is no model folder /nowhere"),
        ("--device foo", "device='foo': this PyTorch has cpu"),
        ("--output {0}/file/below", "file is a file; give a folder"),
        ("--lengths 0", "--lengths 0: a haystack has 1 frame or more"),
        ("--depths 0 1.5", "they lie between 0 (the start) and 1"),
        ("--trials 0", "--trials 0"),
        ("--rows 1", "--rows 1"),
        ("--distractors 0.9", "give a share from 0 to 0.5"),
        ("--needles words", "--needles words: give digit, card, or a .json"),
        ("--needles words.json --distractors 0.1", "leave it out with needles of a file"),
        ("--needles {0}/none.json", "none.json"),
        ("--video {0}/none.mp4", "none.mp4"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, words, message, capsys):
    (tmp_path / "file").write_text("")
    words = words.format(tmp_path).split()
    if "--model" not in words:
        words += ["--model", str(folder)]
    assert console.main(["needle", "--output", str(tmp_path / "out"), "--lengths", "4", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("video-ma2mba: error: ") and message in error


def test_the_help_does_not_wait_for_torch():
    assert tuple(KINDS) == needle.KINDS
    code = (
        "import sys, _video_ma2mba_cli as console\n"
        "try: console.main(['needle', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--lengths" in done.stdout and done.stdout.strip().endswith("False")
