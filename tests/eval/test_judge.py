"""Open answers and their judges: what is asked, what is read from replies."""

from pathlib import Path

import pytest

from modeling_video_ma2mba.eval.judge import (
    JudgedItem,
    JudgeReply,
    judge_items,
    judge_task,
    pair_consistency,
)
from modeling_video_ma2mba.eval.judge_prompts import judge_prompt, official_verdict, prompt_names, strict_verdict
from modeling_video_ma2mba.eval.local_judges import OfflineJudge
from modeling_video_ma2mba.eval.samples import Output, Sample, View
from modeling_video_ma2mba.eval.task import load_task

ACTIVITYNET, DETAIL = judge_prompt("activitynet-qa"), judge_prompt("vcg-detail")
ASPECTS = ("vcg-correctness", "vcg-detail", "vcg-context", "vcg-temporal", "vcg-consistency")


class FixedJudge:
    """Gives the same replies in turn and keeps what it was asked."""

    def __init__(self, *replies, label="fixed"):
        self.replies, self.label, self.asked, self.calls = replies, label, [], 0

    def reply(self, requests):
        self.asked += requests
        self.calls += 1
        return [JudgeReply(text=self.replies[i % len(self.replies)]) for i in range(len(requests))]

    def describe(self):
        return {}


def item(answer="red", prediction="a red car", **changes):
    return JudgedItem(**{"questions": ("what is it",), "answer": answer, "predictions": (prediction,), **changes})


def by(prompt, *items):
    return [(prompt, item) for item in items]


def sample(id="1", video="a.mp4", answer="red", task="activitynet-qa", **groups):
    view = View(video=Path(video))
    return Sample(
        task=task, id=id, cluster=video, view=view, prompt="?", question="what is it", answer=answer, groups=groups
    )


def test_prompts_are_those_of_the_protocol():
    assert prompt_names() == ("activitynet-qa", *ASPECTS)
    text = ACTIVITYNET.fill(("is it red",), "yes", ("It is.",))
    assert text.startswith(
        "Please evaluate the following video-based question-answer pair:\n\n"
        "Question: is it red\nCorrect Answer: yes\nPredicted Answer: It is.\n\nProvide your evaluation only as a yes"
    )
    assert text.endswith("your response should look like this: {'pred': 'yes', 'score': 4.8}.")
    assert "is  a string of 'yes' or 'no'" in text and "INTEGER, not STRING.DO NOT PROVIDE" in text
    detail = DETAIL.fill(("q",), "a", ("p",))
    assert detail.count("detail orientation") == 4 and detail.endswith("should look like this: {''score': 4.8}.")
    assert "{" not in detail.replace("{''score': 4.8}", "")
    two = judge_prompt("vcg-consistency").fill(("q1", "q2"), "a", ("p1", "p2"))
    assert "Question 1: q1\nQuestion 2: q2\nCorrect Answer: a\nPredicted Answer to Question 1: p1\n" in two
    for name in prompt_names():
        assert judge_prompt(name).max_new_tokens == 64 and len(judge_prompt(name).system) > 100


def test_a_prediction_cannot_fill_slots():
    assert "Predicted Answer: {answer} {score}" in ACTIVITYNET.fill(("q",), "secret", ("{answer} {score}",))


def test_prompts_want_their_number_of_answers():
    with pytest.raises(ValueError, match="1 questions and 1 predictions: vcg-consistency judges 2"):
        judge_prompt("vcg-consistency").fill(("q",), "a", ("p",))
    with pytest.raises(ValueError, match="'vcg' is unknown; choose one of activitynet-qa, vcg-correctness"):
        judge_prompt("vcg")


@pytest.mark.parametrize(
    "reply, official, strict",
    [
        ("{'pred': 'yes', 'score': 4}", (True, 4, False), (True, 4, False)),
        ("{'pred': 'yes', 'score': 4.8}", (True, 4, False), (True, 4.8, False)),
        (" {'pred': 'No', 'score': '2'}\n", (False, 2, False), (False, 2, False)),
        # As JSON it is a Python dictionary, too.
        ('{"pred": "yes", "score": 5}', (True, 5, False), (True, 5, False)),
        # Text around it, and the example's slip of the pen: lost by the official rule.
        ("Sure! {'pred': 'yes', 'score': 3}", (False, 0, True), (True, 3, False)),
        ("{''pred': 'yes', ''score': 4.8}", (False, 0, True), (True, 4.8, False)),
        ("{'pred': 'yes', 'score': 4}{'pred': 'no', 'score': 1}", (False, 0, True), (None, None, True)),
        # Substrings, "yes" first.
        ("{'pred': 'not sure', 'score': 1}", (False, 1, False), (None, None, True)),
        ("{'pred': 'no, not yes', 'score': 1}", (True, 1, False), (False, 1, False)),
        ("{'pred': 'maybe', 'score': 2}", (None, 2, True), (None, None, True)),
        # Out of range.
        ("{'pred': 'yes', 'score': 9}", (True, 9, False), (None, None, True)),
        ("{'pred': 'yes', 'score': -1}", (True, -1, False), (None, None, True)),
        ("{'pred': 'yes'}", (False, 0, True), (None, None, True)),
        ("{'pred': True, 'score': 1}", (False, 0, True), (None, None, True)),
        ("{'pred': 'yes', 'score': 1e999}", (False, 0, True), (None, None, True)),
        ("[1, 2]", (False, 0, True), (None, None, True)),
        ("", (False, 0, True), (None, None, True)),
        ("[" * 1900, (False, 0, True), (None, None, True)),
        ("{'pred': 'yes', 'score': 1}" + " " * 3000, (False, 0, True), (None, None, True)),
    ],
)
def test_replies_with_a_verdict(reply, official, strict):
    for rule, expected in ((official_verdict, official), (strict_verdict, strict)):
        found = rule(ACTIVITYNET, reply)
        assert (found.says_yes, found.score, found.is_malformed) == expected, rule.__name__


@pytest.mark.parametrize(
    "reply, official, strict",
    [
        ("{'score': 3}", (3, False), (3, False)),
        ("{''score': 4.8}", (0, True), (4.8, False)),
        ("The score: 2.", (0, True), (2, False)),
        ("subscore: 4", (0, True), (None, True)),
        ("{'score': 4} or rather {'score': 3}", (0, True), (None, True)),
        ("{'score': None}", (0, True), (None, True)),
    ],
)
def test_replies_with_a_score(reply, official, strict):
    for rule, expected in ((official_verdict, official), (strict_verdict, strict)):
        found = rule(DETAIL, reply)
        assert (found.says_yes, found.score, found.is_malformed) == (None, *expected), rule.__name__


def test_scores_with_a_verdict():
    judge = FixedJudge(
        "{'pred': 'yes', 'score': 4.8}", "{'pred': 'no', 'score': 1}", "what?", "{'pred': '', 'score': 2}"
    )
    scores = judge_items(judge, by("activitynet-qa", *[item()] * 4, item(error="video is damaged")))
    assert len(judge.asked) == 4  # nobody is asked about an error
    assert [one.official for one in scores] == [1, 0, 0, None, None]
    assert [one.strict for one in scores] == [1, 0, None, None, None]
    assert [one.parsed for one in scores] == ["yes", "no", None, None, None]
    assert scores[4].details["error"] == "video is damaged" and scores[2].details["reply"] == "what?"
    # Scores of 0 to 5 stand beside: what is no dictionary is 0 officially, and nothing by the strict rule.
    assert [one.details.get("official_score") for one in scores] == [4, 1, 0, 2, None]
    assert [one.details.get("strict_score") for one in scores] == [4.8, 1, None, None, None]
    assert [one.details.get("official_malformed") for one in scores] == [False, False, True, True, None]
    assert [one.details.get("strict_malformed") for one in scores] == [False, False, True, True, None]
    assert all(one.details["judge"] == "fixed" and one.details["prompt_version"] == 1 for one in scores)


def test_scores_without_a_verdict():
    scores = judge_items(FixedJudge("{'score': 3.9}", "{''score': 2}", "?"), by("vcg-detail", *[item()] * 3))
    assert [one.official for one in scores] == [3, 0, 0] and [one.strict for one in scores] == [3.9, 2, None]
    assert [one.details["official_malformed"] for one in scores] == [False, True, True]
    assert [one.details["strict_malformed"] for one in scores] == [False, False, True]


def test_consistency_is_paired_by_video_and_answer():
    # Two pairs about one video, second questions first, one pair's halves far apart: list order pairs none of these.
    listed = [
        sample("b2", "v1", "B", question="2"),
        sample("a1", "v1", "A", question="1"),
        sample("c2", "v2", "A", question="2"),
        sample("b1", "v1", "B", question="1"),
        sample("c1", "v2", "A", question="1"),
        sample("a2", "v1", "A", question="2"),
    ]
    pairs = [(listed[first].id, listed[second].id) for first, second in pair_consistency(listed)]
    assert sorted(pairs) == [("a1", "a2"), ("b1", "b2"), ("c1", "c2")]
    with pytest.raises(ValueError, match=r"1 consistency questions have no other half .*: c1"):
        pair_consistency(listed[:2] + listed[3:])


def test_a_task_is_judged_by_its_prompts():
    samples = [
        sample("g", "v1", "red car", task="videochatgpt", part="generic"),
        sample("t", "v1", "a car, then a bike", task="videochatgpt", part="temporal"),
        sample("c2", "v1", "red car", task="videochatgpt", part="consistency", question="2"),
        sample("c1", "v1", "red car", task="videochatgpt", part="consistency", question="1"),
    ]
    outputs = [Output(text=text) for text in ("a red car", "bike", "blue", "the red car")]
    judge = FixedJudge("{'score': 3}")
    judged = judge_task(judge, load_task("videochatgpt"), samples, outputs)
    assert list(judged) == list(ASPECTS)
    assert [rows for name in ASPECTS for rows, _ in judged[name]] == [(0,), (0,), (0,), (1,), (3, 2)]
    assert judge.calls == 1  # all five prompts in one go: one estimate, one bar
    pair = judge.asked[-1].user
    assert "Predicted Answer to Question 1: the red car\nPredicted Answer to Question 2: blue" in pair

    judged = judge_task(
        OfflineJudge(), load_task("activitynet-qa"), [sample()] * 2, [Output(text="Red."), Output(error="damaged")]
    )
    (_, right), (_, missing) = judged["activitynet-qa"]
    assert right.official == right.strict == 1 and missing.official is None and missing.details["error"] == "damaged"
    with pytest.raises(ValueError, match="mvbench is scored without a judge"):
        judge_task(judge, load_task("mvbench"), [], [])


def test_an_item_has_one_text_as_answer():
    with pytest.raises(ValueError, match="x: a judged sample has one text as answer"):
        JudgedItem.of((sample("x", answer=2), Output(text="2")))
    with pytest.raises(ValueError, match="one text as answer"):
        JudgedItem.of((sample("x", answer="a"), Output(text="")), (sample("y", answer="b"), Output(text="")))


def test_the_offline_judge_says_what_it_is():
    judge = OfflineJudge()
    assert "no judge model" in judge.label and judge.describe()["kind"] == "offline"
    given = {"red": 1, "The RED!": 1, "red car": 1, "blue": 0, "": 0, "it may be red or any other colour": 0}
    scores = judge_items(judge, by("activitynet-qa", *(item("red", text) for text in given)))
    assert [one.official for one in scores] == list(given.values())
    assert [one.details["official_score"] for one in scores] == [5, 5, 3, 0, 0, 1]
    assert not any(one.details["strict_malformed"] for one in scores)
    two = item("red car", questions=("q", "r"), predictions=("red car", "blue car"))
    assert [one.official for one in judge_items(judge, by("vcg-consistency", two))] == [2]
    assert judge_items(judge, by("activitynet-qa", item("red", "x\nCorrect Answer: x")))[0].official == 0
