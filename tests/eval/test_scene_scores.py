"""Scores are the shares of right answers, and the constant answer scores what guessing by the form is worth."""

import dataclasses

import pytest

from modeling_video_ma2mba.eval.intervals import wilson_interval
from modeling_video_ma2mba.eval.scene_answers import Answer
from modeling_video_ma2mba.eval.scene_scores import (
    constant_baseline,
    length_table,
    place_of_blind,
    score_table,
    summary,
    training_questions,
)
from modeling_video_ma2mba.train.scene_questions import TYPES, Question


def made(type, frames, right, form=None, expected="red"):
    given = expected if right else "other"
    words = {"id": "", "question": "", "expected": expected, "given": given, "right": right}
    return Answer(type=type, form=form or type, frames=frames, **words)


ANSWERS = [made("edge", 8, True), made("edge", 8, False), made("edge", 16, True), made("count", 16, False)]


def test_summary_counts_by_type_and_length():
    found = summary(ANSWERS)

    def counts(scores):
        return {key: (score["right"], score["asked"]) for key, score in scores.items()}

    assert (found["all"]["right"], found["all"]["asked"], found["all"]["accuracy"]) == (2, 4, 0.5)
    assert counts(found["by_type"]) == {"edge": (2, 3), "count": (0, 1)}
    assert counts(found["by_frames"]) == {8: (1, 2), 16: (1, 2)}
    assert counts(found["by_type_and_frames"]["edge"]) == {8: (1, 2), 16: (1, 1)}
    assert counts(found["by_type_and_frames"]["count"]) == {16: (0, 1)}
    assert (found["by_type"]["edge"]["low"], found["by_type"]["edge"]["high"]) == wilson_interval(2, 3)
    with pytest.raises(ValueError, match="asked"):
        summary([])


def test_constant_answers_come_from_the_training_questions():
    def question(form, answer):
        return Question(type=form, form=form, text="", answer=answer)

    training = [question("edge", word) for word in ("red", "blue", "blue")] + [question("count", "1")]
    asked = [
        made("edge", 8, True, expected="red"),
        made("edge", 8, False, expected="blue"),
        made("count", 8, False, expected="2"),
        made("motion", 8, True, expected="left"),
    ]
    answers = constant_baseline(training, asked)
    assert [(one.given, one.right) for one in answers] == [("blue", False), ("blue", True), ("1", False), ("", False)]
    assert dataclasses.replace(answers[0], given="red", right=True) == asked[0]


def test_training_questions_are_many_and_of_every_type():
    questions = training_questions([8, 32], clips=60)
    assert questions == training_questions([8, 32], clips=60)
    assert {question.type for question in questions} == set(TYPES) and len(questions) > 60 * 15
    # Six scenes fit into 32 frames, two into 8.
    assert not any("fifth" in question.text for question in training_questions([8], clips=30))


def test_training_questions_do_not_depend_on_the_size_of_the_picture(monkeypatch):
    from modeling_video_ma2mba.eval import scene_scores

    small = training_questions([8, 16], clips=12)
    monkeypatch.setattr(scene_scores, "_SMALL", 112)
    assert training_questions([8, 16], clips=12) == small


@pytest.mark.parametrize("right, place", [(10, "below"), (28, "within"), (60, "above")])
def test_blind_controls_are_placed(right, place):
    def scored(count):
        return summary([made("edge", 8, index < count) for index in range(100)])

    constant = scored(30)
    assert 0.2 < constant["all"]["low"] < 0.28 < constant["all"]["high"] < 0.41
    summaries = {"video": scored(90), "blank": scored(right), "question-only": scored(30), "constant": constant}
    assert place_of_blind(summaries, constant) == {"blank": place, "question-only": "within"}
    assert place_of_blind({"video": scored(90)}, constant) == {}


def test_tables():
    found = {"video": summary(ANSWERS), "question-only": summary(ANSWERS)}
    assert score_table(found).splitlines() == [
        "| type | questions | video | question only |",
        "| --- | --- | --- | --- |",
        "| edge | 3 | 66.7 (21 to 94) | 66.7 (21 to 94) |",
        "| count | 1 | 0.0 (0 to 79) | 0.0 (0 to 79) |",
        "| all | 4 | 50.0 (15 to 85) | 50.0 (15 to 85) |",
    ]
    assert length_table(found["video"]).splitlines()[2:] == [
        "| edge | 50.0 | 100.0 |",
        "| count |  | 0.0 |",
        "| all | 50.0 | 50.0 |",
    ]
