"""Open answers judged by a model: ActivityNet-QA and the five aspects of VCGBench.

    judge = EndpointJudge(Endpoint(model="gpt-3.5-turbo-0125"), cache=Path("runs/judge"))      # judge_endpoint.py
    judged = judge_task(judge, load_task("activitynet-qa"), samples, outputs)

Three kinds of judge: an endpoint (judge_endpoint.py), a local model and an offline rule for tests (local_judges.py).
What different judges say cannot be compared, so the judge's label stands beside every score. Prompts and rules are in
judge_prompts.py; means are made in judged.py.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modeling_video_ma2mba.eval.judge_prompts import JudgePrompt, judge_prompt, official_verdict, strict_verdict
from modeling_video_ma2mba.eval.samples import Output, Sample, Score
from modeling_video_ma2mba.eval.task import Task


class JudgeError(ValueError):
    """The judge cannot be asked at all: a wrong key, an unknown model, nobody there. What it said so far is kept."""


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """What one reply answers; greedy, at temperature 0."""

    system: str
    user: str
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class JudgeReply:
    """Text of a judge, or why there is none, in one line."""

    text: str | None = None
    error: str | None = None


class Judge(Protocol):
    """Somebody who reads requests and replies with text.

    Attributes:
        label: kind and name, such as "endpoint gpt-3.5-turbo-0125"; stands beside every score.
    """

    label: str

    def reply(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Return a reply to each request, in their order.

        Raises:
            JudgeError: the judge cannot be asked at all.
        """

    def describe(self) -> dict[str, Any]:
        """Return what a result file must carry: kind, name, settings, what the judge says it is."""


@dataclass(frozen=True, kw_only=True)
class JudgedItem:
    """What is judged at once: one answer, or the two of a consistency pair.

    Attributes:
        questions, predictions: one each, or two.
        answer: the right one.
        error: why there is nothing to judge, such as the error of a video; the judge is not asked then.
    """

    questions: tuple[str, ...]
    answer: str
    predictions: tuple[str, ...]
    error: str | None = None

    @classmethod
    def of(cls, *answered: tuple[Sample, Output]) -> "JudgedItem":
        """Return the item of a sample with its output, or of the two of a pair.

        Raises:
            ValueError: the right answers are no texts, or differ within a pair.
        """
        answers = {sample.answer for sample, _ in answered}
        if len(answers) != 1 or not isinstance(answer := answers.pop(), str):
            raise ValueError(f"{answered[0][0].id}: a judged sample has one text as answer, given {answers!r:.80}")
        errors = [output.error or "no text" for _, output in answered if output.text is None]
        return cls(
            questions=tuple(sample.question for sample, _ in answered),
            answer=answer,
            predictions=tuple(output.text or "" for _, output in answered),
            error=errors[0] if errors else None,
        )


def judge_items(judge: Judge, asked: Sequence[tuple[str, JudgedItem]]) -> list[Score]:
    """Return the scores of answers, each judged with a prompt of `prompt_names()`; all are asked in one go.

    Returns:
        Scores in the order of `asked`. With a yes or no: `official` and `strict` are 1 or 0, and the scores of 0 to 5
        are in `details`; without: they are the scores. None by the official rule: neither yes nor no; by the strict
        one: malformed. Both None: an error, which is in `details`.

    Raises:
        JudgeError: the judge cannot be asked at all. ValueError: an unknown prompt, or items that do not suit it.
    """
    requests = [judge_request(prompt, item) for prompt, item in asked]
    open_items = [index for index, (_, item) in enumerate(asked) if item.error is None]
    replies = [JudgeReply(error=item.error) for _, item in asked]
    for index, reply in zip(open_items, judge.reply([requests[index] for index in open_items])):
        replies[index] = reply
    return [_score(judge.label, judge_prompt(prompt), reply) for (prompt, _), reply in zip(asked, replies)]


def judge_request(prompt: str, item: JudgedItem) -> JudgeRequest:
    """Return what is sent to judge an item; raises ValueError for an unknown prompt and an item that does not suit."""
    asked = judge_prompt(prompt)
    return JudgeRequest(
        system=asked.system,
        user=asked.fill(item.questions, item.answer, item.predictions),
        max_new_tokens=asked.max_new_tokens,
    )


def _score(label: str, prompt: JudgePrompt, reply: JudgeReply) -> Score:
    details = {"judge": label, "prompt": prompt.name, "prompt_version": prompt.version, "reply": reply.text}
    if reply.text is None:
        return Score(parsed=None, official=None, strict=None, details={**details, "error": reply.error})
    official, strict = official_verdict(prompt, reply.text), strict_verdict(prompt, reply.text)
    details |= {"official_malformed": official.is_malformed, "strict_malformed": strict.is_malformed}
    if not prompt.has_verdict:
        parsed = None if strict.score is None else f"{strict.score:g}"
        return Score(parsed=parsed, official=official.score, strict=strict.score, details=details)
    details |= {"official_score": official.score, "strict_score": strict.score}
    yes_no = {None: None, True: "yes", False: "no"}
    return Score(
        parsed=yes_no[strict.says_yes],
        official=None if official.says_yes is None else float(official.says_yes),
        strict=None if strict.says_yes is None else float(strict.says_yes),
        details=details,
    )


def pair_consistency(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Return which of VCGBench's consistency samples ask one thing in two ways: (first question, second question).

    They are paired by video and right answer, wherever they stand, as a video may have several pairs; several pairs
    with one answer are taken in the order of the samples.

    Args:
        samples: whose group "question" is "1" or "2".

    Raises:
        ValueError: samples without a partner.
    """
    halves: dict[tuple[str, Any], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for index, sample in enumerate(samples):
        halves[sample.cluster, sample.answer][int(sample.groups["question"]) - 1].append(index)
    alone = [samples[i].id for first, second in halves.values() if len(first) != len(second) for i in first + second]
    if alone:
        raise ValueError(
            f"{len(alone)} consistency questions have no other half with the same video and answer: "
            f"{', '.join(alone[:5])}; ask both halves (a limit may have cut one off)"
        )
    return sorted(pair for first, second in halves.values() for pair in zip(first, second))


def items_to_judge(
    task: Task, samples: Sequence[Sample], outputs: Sequence[Output]
) -> list[tuple[str, tuple[int, ...], JudgedItem]]:
    """Return what of a benchmark is judged: the prompt, the places of its sample, or of the two of a pair, the item.

    Raises:
        ValueError: the task needs no judge, or half a pair is missing.
    """
    if not task.judge:
        raise ValueError(f"{task.name} is scored without a judge; judged are activitynet-qa and videochatgpt")
    listed = []
    for part, prompts in task.judge.items():
        places = [index for index, sample in enumerate(samples) if sample.groups.get("part", part) == part]
        for prompt in prompts:
            rows = [(index,) for index in places]
            if judge_prompt(prompt).answers == 2:
                pairs = pair_consistency([samples[index] for index in places])
                rows = [(places[first], places[second]) for first, second in pairs]
            for row in rows:
                item = JudgedItem.of(*((samples[index], outputs[index]) for index in row))
                listed.append((prompt, row, item))
    return listed


def judge_task(
    judge: Judge, task: Task, samples: Sequence[Sample], outputs: Sequence[Output]
) -> dict[str, list[tuple[tuple[int, ...], Score]]]:
    """Return what a judge says about the open answers of a benchmark.

    Returns:
        By judge prompt: for each judged answer the places of its sample, or of the two of a pair, and the score.

    Raises:
        JudgeError: the judge cannot be asked at all. ValueError: as `items_to_judge`.
    """
    listed = items_to_judge(task, samples, outputs)
    judged: dict[str, list[tuple[tuple[int, ...], Score]]] = {}
    for (prompt, row, _), score in zip(listed, judge_items(judge, [(prompt, item) for prompt, _, item in listed])):
        judged.setdefault(prompt, []).append((row, score))
    return judged
