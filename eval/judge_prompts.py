"""What a judge is asked, and what is read from its replies: the prompts of judge_prompts.yaml and two rules for each.

It asks nobody. The official rule is the published one, flaws included: a reply that is no Python dictionary becomes
("no", 0), and 4.8 becomes 4. The strict rule reads the number and the verdict wherever they stand, and takes nothing
that is missing, contradictory or out of range: such a reply is malformed, which is no wrong answer.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

MAX_SCORE = 5
# Longer replies to a request for 64 tokens are not read: Python's own parser takes its time with deep brackets.
MAX_REPLY = 2000

# Stands beside every judged score.
PROMPTS_NOTE = "user prompts as published, system prompts reworded"

_SLOT = re.compile(r"\{(question|question_1|question_2|answer|prediction|prediction_1|prediction_2)\}")
_KEY = r"(?<![a-z_])['\"]{0,2}%s['\"]{0,2}\s*:\s*['\"]?"
_VERDICT = re.compile(_KEY % "pred" + r"(yes|no)(?![a-z])", re.IGNORECASE)
_SCORE = re.compile(_KEY % "score" + r"(-?\d+(?:\.\d+)?)(?!\w|\.\d)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """One way of asking a judge.

    Attributes:
        name: such as "activitynet-qa" or "vcg-detail".
        system, user: the texts; `user` has slots in braces.
        has_verdict: whether yes or no is asked for beside the score of 0 to 5.
        answers: how many predictions it judges at once: 1, or 2 for consistency.
        max_new_tokens: limit of the reply.
        version: of judge_prompts.yaml.
    """

    name: str
    system: str
    user: str
    has_verdict: bool
    answers: int
    max_new_tokens: int
    version: int

    def fill(self, questions: tuple[str, ...], answer: str, predictions: tuple[str, ...]) -> str:
        """Return the user's text about `answers` questions with one right answer.

        Raises:
            ValueError: another number of questions or predictions than this prompt judges.
        """
        if not len(questions) == len(predictions) == self.answers:
            raise ValueError(
                f"{len(questions)} questions and {len(predictions)} predictions: {self.name} judges {self.answers}"
            )
        values = {"answer": answer}
        for name, texts in (("question", questions), ("prediction", predictions)):
            values |= {name: texts[0]} if self.answers == 1 else {f"{name}_{i}": t for i, t in enumerate(texts, 1)}
        # In one pass: a prediction may hold words in braces itself.
        return _SLOT.sub(lambda slot: values[slot[1]], self.user)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a reply says by one rule.

    Attributes:
        says_yes: None where nothing was asked for, or nothing readable said.
        score: 0 to 5; None: malformed, by the strict rule.
        is_malformed: the reply is not what was asked for.
    """

    says_yes: bool | None
    score: float | None
    is_malformed: bool


def prompt_names() -> tuple[str, ...]:
    """Return the names that `judge_prompt` takes."""
    return tuple(_data()["prompts"])


@cache
def judge_prompt(name: str) -> JudgePrompt:
    """Return a prompt of judge_prompts.yaml; raises ValueError for an unknown name."""
    data = _data()
    if name not in data["prompts"]:
        raise ValueError(f"judge prompt {name!r} is unknown; choose one of {', '.join(prompt_names())}")
    entry = data["prompts"][name]
    demand = data["demands"][entry["demand"]]
    for slot in ("name", "level"):
        demand = demand.replace(f"{{{slot}}}", entry.get(slot, ""))
    return JudgePrompt(
        name=name,
        system=entry["system"],
        user=f"{data['heads'][entry['head']]}\n\n{demand}",
        has_verdict=entry["demand"] != "score",
        answers=1 if entry["head"] == "one" else 2,
        max_new_tokens=data["max_new_tokens"],
        version=data["version"],
    )


def default_model() -> str:
    """Return the judge of the paper."""
    return _data()["model"]


def prices(model: str) -> tuple[float, float] | None:
    """Return US dollars for a million tokens read and written; None: not known for this model."""
    known: Mapping[str, list[float]] = _data()["prices"]
    return tuple(known[model]) if model in known else None


def official_verdict(prompt: JudgePrompt, reply: str) -> Verdict:
    """Read a reply by the published rule.

    A Python dictionary: "yes" anywhere in `pred` is yes, else "no" anywhere is no, else neither; `int(score)`. All
    that fails is ("no", 0), as the harnesses record it.
    """
    try:
        given = ast.literal_eval(_readable(reply).strip())
        score = float(int(given["score"]))
        said = given["pred"].lower() if prompt.has_verdict else ""
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, MemoryError):
        return Verdict(says_yes=False if prompt.has_verdict else None, score=0, is_malformed=True)
    says_yes = True if "yes" in said else False if "no" in said else None
    return Verdict(says_yes=says_yes, score=score, is_malformed=prompt.has_verdict and says_yes is None)


def strict_verdict(prompt: JudgePrompt, reply: str) -> Verdict:
    """Read a reply by our rule: each key that is asked for says one thing, the score lies within 0 to 5."""
    reply = _readable(reply)
    scores = {float(number) for number in _SCORE.findall(reply)}
    verdicts = {word.lower() for word in _VERDICT.findall(reply)}
    score = scores.pop() if len(scores) == 1 else None
    is_malformed = score is None or not 0 <= score <= MAX_SCORE or (prompt.has_verdict and len(verdicts) != 1)
    if is_malformed:
        return Verdict(says_yes=None, score=None, is_malformed=True)
    return Verdict(says_yes=verdicts == {"yes"} if prompt.has_verdict else None, score=score, is_malformed=False)


def _readable(reply: str) -> str:
    return reply if len(reply) <= MAX_REPLY else ""


@cache
def _data() -> dict:
    return yaml.safe_load((Path(__file__).parent / "judge_prompts.yaml").read_text(encoding="utf-8"))
