"""Reports of runs: what is partial is marked wherever a number stands, and no score is made of nothing."""

import itertools
import json

import pytest

from modeling_video_ma2mba.eval.compare import compare, comparison_text
from modeling_video_ma2mba.eval.figures import draw, draw_frames
from modeling_video_ma2mba.eval.judge import JudgeReply
from modeling_video_ma2mba.eval.local_judges import OfflineJudge
from modeling_video_ma2mba.eval.model_index import model_index
from modeling_video_ma2mba.eval.report import figure_rows, grid_markdown, headlines, markdown
from modeling_video_ma2mba.eval.results import FILE, make_result, partial_words, read_result, write_json
from modeling_video_ma2mba.eval.run import TaskSamples
from modeling_video_ma2mba.eval.samples import Output
from modeling_video_ma2mba.eval.task import load_task
from tests.eval.fixtures import say

MALFORMED = "I would say that is right."


class Speaker:
    """A judge that says one thing."""

    label = "speaker"

    def __init__(self, text):
        self.text = text

    def reply(self, requests):
        return [JudgeReply(text=self.text(one) if callable(self.text) else self.text) for one in requests]

    def describe(self):
        return {}


@pytest.fixture(scope="module")
def results(benchmarks):
    """Makes a result: every `wrong`-th answer wrong, the last `errors` questions without an answer."""

    def make(name="video-mme", judge=None, wrong=3, errors=0, model="m", **settings):
        task = load_task(name)
        samples = task.read(benchmarks[name])
        outputs = {}
        for number, one in enumerate(samples):
            shift = number % wrong == 0
            said = say(one, (one.answer + shift) % len(one.options)) if one.options else Output(text=one.answer)
            is_error = number >= len(samples) - errors
            outputs[one.task, one.id] = Output(error="it is broken") if is_error else said
        given = {"model": {"name": model}, "fps": 1.0, "num_frames": None, "subtitles": False, "likelihood": None}
        return make_result([TaskSamples(task, samples)], outputs, {**given, "limit": None, **settings}, judge)

    return make


def whole(result, name="video-mme"):
    """Return the result as if its samples were the whole benchmark."""
    task = result["tasks"][name]
    published = task["summary"]["samples"]
    changed = {**task, "published": published, "partial": partial_words(task["samples"], published)}
    return {**result, "tasks": {name: changed}}


def test_how_much_was_answered():
    rows = [{"error": None}] * 5 + [{"error": "broken"}]
    assert partial_words(rows, 1337) == "5 of 1,337 questions"
    assert partial_words(rows, 5) is None
    assert partial_words(rows, 4) == "5 in place of 4 questions"


def test_a_partial_run_is_marked_wherever_its_numbers_stand(results, tmp_path):
    result = results(errors=2)
    task = result["tasks"]["video-mme"]
    assert (task["published"], task["partial"]) == (2700, "4 of 2,700 questions")
    text = markdown(result)
    assert "## Video-MME (partial: 4 of 2,700 questions)" in text
    assert "these are not: they cannot be compared.\n\n|  | questions | official" in text
    assert "| m | 1 frame a second | 4 of 2,700 questions | official |" in grid_markdown([result])
    assert "partial: video-mme, 4 of 2,700 questions in B" in comparison_text(compare(whole(results()), result))
    (entry,) = model_index(result, "mine")[0]["results"]
    assert entry["dataset"]["name"] == "Video-MME (4 of 2,700 questions)"
    assert entry["metrics"][0]["args"]["partial"] == "4 of 2,700 questions"
    with pytest.raises(ValueError, match="without --limit"):
        model_index(results(limit=6), "mine")


def test_a_whole_run_is_not_marked(results):
    result = whole(results())
    text = markdown(result)
    assert "## Video-MME\n" in text and "partial" not in text and "cannot be compared" not in text
    assert "| m | 1 frame a second | 6 questions | official |" in grid_markdown([result])
    assert "partial" not in comparison_text(compare(result, result))
    assert model_index(result, "mine")[0]["results"][0]["dataset"]["name"] == "Video-MME"


@pytest.mark.parametrize("damage", ["none", 5])
def test_a_result_that_does_not_say_how_much_it_is_of_is_refused(results, tmp_path, damage):
    result = json.loads(json.dumps(results()))
    write_json(result, tmp_path / FILE)
    assert read_result(tmp_path) == result
    task = result["tasks"]["video-mme"]
    if damage == "none":
        del task["partial"]
    else:
        task["partial"] = damage
    write_json(result, tmp_path / FILE)
    with pytest.raises(ValueError, match="does not say whether it is partial"):
        read_result(tmp_path)


def test_the_grid_has_both_rules_and_the_judge(results):
    table = grid_markdown([results("activitynet-qa", OfflineJudge())])
    head, _, official, strict = [line.strip("| ").split(" | ") for line in table.splitlines() if line[:1] == "|"]
    assert head[-4:] == ["accuracy", "judged accuracy", "judged score", "errors"]
    assert official[3] == "official" and official[-4] == "-" and official[-2] == "5.00"
    assert strict[3] == "strict" and strict[-4].startswith("100.0 [") and strict[-2] == "5.00"
    assert "-: no score by this rule; open answers have an official one from a judge alone" in table
    assert "Percent, but for a judge's scores of 0 to 5; with 95 % intervals" in table
    plain = grid_markdown([results()])
    assert "-: no score" not in plain and "\nPercent, with 95 % intervals" in plain


def test_no_group_stands_twice(results):
    """ActivityNet-QA's metrics are about its classes, and three of its types are classes."""
    labels = [label for label, _ in figure_rows(results("activitynet-qa")["tasks"]["activitynet-qa"])]
    types = ("yes/no", "colour", "object", "location", "number", "other")
    metrics = [(name,) for name in ("accuracy", "motion", "spatial", "temporal", "free")]
    assert labels[:5] == metrics and set(labels[5:]) == {("type", one) for one in types} and len(labels) == 11
    # A group that holds all samples is another matter.
    assert ("domain", "Knowledge") in [label for label, _ in figure_rows(results()["tasks"]["video-mme"])]


def test_a_judges_table_stands_alone(results):
    assert "No score without a judge." in markdown(results("videochatgpt"))
    text = markdown(results("videochatgpt", OfflineJudge()))
    assert "No score without a judge." not in text and "| judged score | 5.00" in text
    assert "user prompts as published, system prompts reworded; 18 replies, malformed: 0 by the official rule" in text


def test_malformed_replies_are_no_score(results):
    result = results("activitynet-qa", Speaker(MALFORMED))
    judged = result["tasks"]["activitynet-qa"]["judged"]
    assert judged["replies"] == 20 and judged["malformed"] == {"official": 20, "strict": 20}
    assert all(figures == {"official": None, "strict": None} for figures in judged["figures"].values())
    text = markdown(result)
    assert "No score: all 20 replies are malformed." in text and "0.0" not in text.split("Judge:")[1]
    with pytest.raises(ValueError, match="no score by an official rule"):
        model_index(result, "mine")


def test_one_aspect_that_is_malformed_spoils_the_mean_of_five(results):
    judge = Speaker(lambda request: MALFORMED if "detail" in request.user else "{'score': 4}")
    judged = results("videochatgpt", judge)["tasks"]["videochatgpt"]["judged"]["figures"]
    assert judged["vcg-detail"] == judged["judged score"] == {"official": None, "strict": None}
    assert judged["vcg-context"]["official"]["value"] == 4.0
    # A few malformed replies count as the official rule has them: as 0.
    said = itertools.chain([MALFORMED], itertools.repeat("{'score': 4}"))
    judged = results("videochatgpt", Speaker(lambda _: next(said)))["tasks"]["videochatgpt"]["judged"]["figures"]
    assert (judged["vcg-correctness"]["official"]["value"], judged["vcg-correctness"]["strict"]["value"]) == (3, 4)


def test_a_figure_by_frames(results, tmp_path):
    pytest.importorskip("matplotlib")
    ways = ({"num_frames": 8}, {"num_frames": 32}, {})
    runs = [results(model=model, wrong=number + 2, **way) for model in "ab" for number, way in enumerate(ways)]
    open_ones = [results("activitynet-qa", **way) for way in ways]
    for run, other in zip(runs, open_ones):
        run["tasks"] |= other["tasks"]
    assert draw_frames(runs, tmp_path / "frames.png")
    assert (tmp_path / "frames.png").stat().st_size > 20_000
    nothing = results("videochatgpt")
    assert not draw_frames([nothing, nothing], tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    assert not headlines(nothing["tasks"]["videochatgpt"])
    assert [path.name for path in draw(runs[0], tmp_path)] == ["video-mme.png", "activitynet-qa.png"]
