"""Model cards: figures come from files or the planner, every snippet runs, what is not known is not said."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import _video_ma2mba_cli as cli
from modeling_video_ma2mba import VideoMa2mbaConfig
from modeling_video_ma2mba.checkpoint_analytic import analytic_costs
from modeling_video_ma2mba.checkpoint_planner import find_plan
from modeling_video_ma2mba.eval.results import FORMAT
from modeling_video_ma2mba.hub_cards.card import PLACEHOLDER, write_card
from modeling_video_ma2mba.hub_cards.folder_check import check_card
from modeling_video_ma2mba.hub_cards.preset_cards import FOLDER, preset_cards
from modeling_video_ma2mba.train.synthetic_video import write_video


@pytest.fixture
def folder(model_folders, tmp_path, monkeypatch):
    """`folder(name)`: a copy of one of the models, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda name: Path(shutil.copytree(model_folders / name, tmp_path / name))


@pytest.mark.parametrize("name", ["qa", "text", "clips", "images"])
def test_every_snippet_runs(folder, name):
    path = write_card(folder(name), name, "apache-2.0")
    write_video("film.mp4", np.full((20, 64, 64, 3), 99, dtype=np.uint8), fps=10)
    Image.new("RGB", (40, 30), "red").save("photo.png")
    snippets = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) == (1 if name == "text" else 2)
    names = {}
    for snippet in snippets:
        exec(compile(snippet, str(path), "exec"), names)
    if name == "qa":
        assert Path("film.safetensors").is_file()
    if name == "images":
        assert names["features"].shape == (1, 16)


def test_what_nobody_knows_is_left_open_and_not_pushed(folder, capsys):
    path = folder("qa")
    assert cli.main(["card", str(path), "me/mine", "--license", "mit"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(PLACEHOLDER) == 4 and "where the weights come from" in printed
    with pytest.raises(ValueError, match="still to be filled in"):
        check_card(path / "README.md")
    assert cli.main(["push", str(path), "me/mine", "--dry-run"]) == 2
    assert "still to be filled in" in capsys.readouterr().err
    assert cli.main(["card", str(path), "me/mine", "--license", "mit"]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_joined_model_says_that_it_is_not_trained(folder):
    path = folder("qa")
    report = {"taken": {}, "left_out": {}, "new": {"model.multi_modal_projector.linear_1.weight": "new projector"}}
    (path / "conversion_report.json").write_text(json.dumps(report))
    card = write_card(path, "me/mine", "other")
    text = card.read_text(encoding="utf-8")
    assert "**It is not trained.**" in text and "None: it is not trained." in text and PLACEHOLDER not in text
    check_card(card)


def test_a_run_and_its_results_are_told(folder, tmp_path):
    path = folder("qa")
    run = {
        "recipe": {"name": "0.7b", "stage": "2", "learning_rate": 4e-5, "max_frames": None},
        "data": {"arguments": ["llava:/home/somebody/private/questions.json,/media"], "samples": 1300},
        "finished": False,
    }
    (path / "run.json").write_text(json.dumps(run))
    figure = {"official": {"value": 0.4521, "samples": 2700}, "strict": None}
    task = {
        "title": "Video-MME", "version": 1, "hub": {"dataset": "lmms-lab/Video-MME", "split": "test"},
        "summary": {"samples": 2700, "errors": 0, "metrics": {"accuracy": figure}}, "left_out": [],
        "samples": [], "metrics": {}, "partial": None, "published": 2700,
    }  # fmt: skip
    settings = {"limit": None, "subtitles": False, "likelihood": False, "fps": 1.0, "frames": "1fps"}
    settings |= {"num_frames": None, "max_frames": None}
    result = {"format": FORMAT, "settings": settings, "tasks": {"video-mme": task}}
    (tmp_path / "results.json").write_text(json.dumps(result))
    text = write_card(path, "me/mine", "mit", tmp_path).read_text(encoding="utf-8")
    assert "recipe `0.7b`, stage 2" in text and "did not come to its end" in text
    assert "`questions.json`, 1,300 samples" in text and "somebody" not in text
    assert "| learning_rate | 4e-05 |" in text and "max_frames" not in text
    assert "| Video-MME | accuracy | 45.21 | 2,700 |" in text
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "mit" and head["model-index"][0]["results"][0]["metrics"][0]["value"] == 45.21


def test_hostile_words_stay_words(folder):
    path = folder("clips")
    run = {"recipe": {"name": "a`|\n# b", "x": "{{citation}}"}, "data": "none", "finished": True}
    (path / "run.json").write_text(json.dumps(run))
    (path / "test.json").write_text(json.dumps({"top1": 0.5, "clips": 1200, "not_read": []}))
    text = write_card(path, "me/mine", "mit").read_text(encoding="utf-8")
    assert "recipe `a'/?# b`" in text and "{{citation}}" in text and text.count("@misc{lee2024") == 1
    assert "| top1 | 0.5 |" in text and "| clips | 1,200 |" in text and "not_read" not in text


@pytest.mark.parametrize(
    "repo_id, licence, reason",
    [
        ("me/a/b", "mit", "no name of a repository"),
        ('x"); import os', "mit", "no name"),
        ("me/a", "MIT licence", "--license"),
    ],
)
def test_bad_words_are_refused(folder, repo_id, licence, reason):
    path = folder("clips")
    with pytest.raises(ValueError, match=reason):
        write_card(path, repo_id, licence)
    assert not (path / "README.md").exists()


def test_a_model_without_a_template(folder):
    path = folder("clips")
    config = json.loads((path / "config.json").read_text()) | {"architectures": ["VideoMambaModel"]}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"Write README\.md by hand"):
        write_card(path, "me/mine", "mit")


def test_the_presets_cards_are_up_to_date():
    """Write them again with `python hub_cards/preset_cards.py`."""
    cards = preset_cards()
    assert {path.name for path in FOLDER.iterdir()} == set(cards) and len(cards) == 7
    for name, text in cards.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name
        assert "It is not trained" in text and PLACEHOLDER not in text


def test_what_fits_is_what_the_planner_plans(folder):
    """Of the table's row for 1 h: it fits exactly where the planner finds a plan."""
    row = next(line for line in (FOLDER / "video-ma2mba-0.7b.md").read_text().splitlines() if line.startswith("| 1 h"))
    costs = analytic_costs(VideoMa2mbaConfig.preset("0.7b"))
    held = costs.weights + costs.gradients + costs.sums + costs.optimizer
    plan = find_plan(costs, 3600 * 144 + 300, int(0.95 * 24e9) - held, objective="memory", num_frames=3600)
    assert row.split("|")[5].strip() == "fits" and plan.predicted.device < 0.95 * 24e9


@pytest.mark.parametrize("new", [3, None, ["projector"], "projector", {"a.projector.b": "new"}])
def test_reports_that_hold_anything(folder, new):
    path = folder("text")
    (path / "conversion_report.json").write_text(json.dumps({"new": new}))
    text = write_card(path, "me/mine", "mit").read_text(encoding="utf-8")
    assert ("it is not trained" in text) == isinstance(new, dict)
