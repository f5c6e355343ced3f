"""Shares of right answers about generated videos, with intervals, and what a guess without a model would have scored.

It asks no model and draws no pixels that anybody looks at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from modeling_video_ma2mba.eval.intervals import wilson_interval
from modeling_video_ma2mba.eval.scene_answers import Answer, answer
from modeling_video_ma2mba.train.make_synthetic_data import QUESTIONS, Plan, clip_seed
from modeling_video_ma2mba.train.scene_questions import Question, ask, combinations, constant_answers
from modeling_video_ma2mba.train.synthetic_video import make_clip

TRAINING_CLIPS = 2000
BLIND = ("blank", "question-only")  # controls in which nothing of the video is left
_SMALL = 28  # side of a frame in pixels: the story of a clip is the same at any size, and small ones are drawn faster


def summary(answers: Sequence[Answer]) -> dict:
    """Return the scores of all answers, and of those of each type, length of video, and both.

    Returns:
        `{"all": score, "by_type": {type: score}, "by_frames": {frames: score}, "by_type_and_frames": {type: {frames:
        score}}}`, where a score is `{"asked", "right", "accuracy", "low", "high"}`: a share and its 95 % Wilson
        interval.
    """
    lengths = sorted({answer.frames for answer in answers})
    by_type: dict[str, list[Answer]] = {}
    for one in answers:
        by_type.setdefault(one.type, []).append(one)
    return {
        "all": _score(answers),
        "by_type": {type: _score(some) for type, some in by_type.items()},
        "by_frames": _by_frames(answers, lengths),
        "by_type_and_frames": {type: _by_frames(some, lengths) for type, some in by_type.items()},
    }


def training_questions(lengths: Sequence[int], clips: int | None = None) -> list[Question]:
    """Return the questions about `clips` training videos (`TRAINING_CLIPS`), their lengths in frames taken in turn.

    Drawn as `make_synthetic_data.py 2` draws them, but no file is written.
    """
    count = TRAINING_CLIPS if clips is None else clips
    plan = Plan(part="2", output=Path(), count=count, frames=tuple(lengths), size=_SMALL)
    seen, questions = combinations("training"), []
    for index in tqdm(range(count), desc="training questions", leave=False):
        seed = clip_seed(plan, index)
        clip = make_clip(seed, plan.frames[index % len(plan.frames)], _SMALL, combinations=seen)
        questions += ask(clip, QUESTIONS, seed)
    return questions


def constant_baseline(training_questions: Sequence[Question], answers: Sequence[Answer]) -> list[Answer]:
    """Answer the same questions with the most frequent training answer of each one's form.

    It is the best that can be said from the form of a question alone. A form that training never asked stays without
    an answer.
    """
    constants = constant_answers(training_questions)
    return [answer(one, constants.get(one.form, "")) for one in answers]


def place_of_blind(summaries: Mapping[str, dict], constant: dict) -> dict[str, str]:
    """Say for each blind control whether it scores "within" the constant answer's interval, "above" or "below" it.

    Above it, the questions or the lengths of the videos give answers away.
    """
    low, high = constant["all"]["low"], constant["all"]["high"]
    scores = {control: summaries[control]["all"]["accuracy"] for control in BLIND if control in summaries}
    return {
        control: "below" if score < low else "above" if score > high else "within" for control, score in scores.items()
    }


def score_table(summaries: Mapping[str, dict]) -> str:
    """Return a Markdown table: a row for each type and for all, a column for each summary, in percent."""
    first = next(iter(summaries.values()))
    rows = []
    for type in [*first["by_type"], "all"]:
        scores = [found["all"] if type == "all" else found["by_type"][type] for found in summaries.values()]
        cells = [f"{100 * s['accuracy']:.1f} ({100 * s['low']:.0f} to {100 * s['high']:.0f})" for s in scores]
        rows.append([type, f"{scores[0]['asked']:,}", *cells])
    return _table(["type", "questions", *(name.replace("-", " ") for name in summaries)], rows)


def length_table(found: dict) -> str:
    """Return a Markdown table of one summary, also one read from JSON: rows as above, a column for each length."""
    rows = []
    for type in [*found["by_type"], "all"]:
        scores = found["by_frames"] if type == "all" else found["by_type_and_frames"][type]
        cells = [f"{100 * scores[n]['accuracy']:.1f}" if n in scores else "" for n in found["by_frames"]]
        rows.append([type, *cells])
    return _table(["type", *(f"{int(n):,} frames" for n in found["by_frames"])], rows)


def _by_frames(answers: Sequence[Answer], lengths: Sequence[int]) -> dict[int, dict]:
    groups = {frames: [one for one in answers if one.frames == frames] for frames in lengths}
    return {frames: _score(some) for frames, some in groups.items() if some}


def _score(answers: Sequence[Answer]) -> dict:
    asked, right = len(answers), sum(one.right for one in answers)
    low, high = wilson_interval(right, asked)
    return {"asked": asked, "right": right, "accuracy": right / asked, "low": low, "high": high}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
