"""What a model's text says: the benchmarks' own rules with their flaws, and ours: nothing is right that was not said.

Official rules (`OFFICIAL`) take a text and its sample and return a `Reading`. Facts on each are from the code named
beside it. Where a benchmark answers at random for a model that gave no answer, the choice depends on the sample's id
only, so that scoring again gives the same.

It judges no open answer; a judge does.

Dims: N options.
"""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from modeling_video_ma2mba.eval.samples import Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an official rule makes of a text.

    Attributes:
        parsed: what it read; None if nothing.
        score: 1.0 or 0.0; None: the benchmark leaves it out of its mean.
        guessed: it read nothing and answered at random.
    """

    parsed: str | None
    score: float | None
    guessed: bool = False


def _video_mme(text: str, sample: Sample) -> Reading:
    """evaluation/eval_your_results.py of BradyFU/Video-MME: the first capital A to D; unread answers are left out.

    A comma is missing twice in its list of phrases, so four of them are never removed. (lmms-eval, with the same
    expression, counts an unread answer as wrong.)
    """
    phrases = ("The best answer is", "The correct answer is", "The answer is", "The answer")
    phrases += ("The best option isThe correct option is", "Best answer:Best option:")
    text = text.strip()
    for phrase in phrases:
        text = text.replace(phrase, "")
    found = re.search("[ABCD]", text)
    return _letter(found[0], sample) if found else Reading(parsed=None, score=None)


def _first_word(text: str, sample: Sample) -> Reading:
    """lmms-eval, perceptiontest/val: the first A to D that is a word, also where there are three options."""
    found = re.search(r"\b([A-D])\b", text.strip())
    return _letter(found[1], sample) if found else Reading(parsed=None, score=0.0)


def _mmmu_last(text: str, sample: Sample) -> Reading:
    """MMMU's rule in lmms-eval (nextqa; longvideobench at v0.2.4): the last letter in one of three forms, in turn.

    "(A)"; else "A " where a word ends with the letter, so that "B. A man" is A; else "A."; else, in more than five
    words, an option's text. Of several of the second form that are no words of their own, and of several of the third,
    the first option wins.
    """
    text = _stripped(text)
    letters = LETTERS[: len(sample.options)]
    for form in ("({})", "{} ", "{}."):
        found = [letter for letter in letters if form.format(letter) in text]
        if found:
            mark = "({})" if form == "({})" else " {} "
            return _letter(max(found, key=lambda letter: text.rfind(mark.format(letter))), sample)
    lower = text.lower()
    if len(text.split()) > 5:
        found = [letter for letter, option in zip(letters, sample.options) if option.lower() in lower]
        if found:
            last = max(found, key=lambda letter: lower.rfind(sample.options[letters.index(letter)].lower()))
            return _letter(last, sample)
    return _guess(sample)


def _mmmu_first(text: str, sample: Sample) -> Reading:
    """lmms-eval, egoschema: MMMU's rule with all three forms at once, of which the first is taken.

    Each form counts where it occurs last. Options are compared with their letter ("A. text").
    """
    text = _stripped(text)
    letters = LETTERS[: len(sample.options)]
    forms = [(form.format(letter), letter) for form in ("({})", "{} ", "{}.") for letter in letters]
    found = [(form, letter) for form, letter in forms if form in text]
    if not found and len(text.split()) > 5:
        text = text.lower()
        options = [(f"{letter}. {option}".lower(), letter) for letter, option in zip(letters, sample.options)]
        found = [(option, letter) for option, letter in options if option in text]
    if not found:
        return _guess(sample)
    return _letter(min(found, key=lambda pair: text.rfind(pair[0]))[1], sample)


def _mvbench(text: str, sample: Sample) -> Reading:
    """video_chat2/mvbench.ipynb of OpenGVLab/Ask-Anything: one of "(a)" and the first word contains the other.

    So an empty answer is right, and so are "(" and ")"; later versions ask for a letter a to g first.
    """
    bracket = "(" if sample.prefix.endswith("(") else ""
    said = (bracket + text.strip().split("\n")[0]).lower().split(" ")[0]
    right = f"({LETTERS[sample.answer]})".lower()
    score = float(said.replace(".", "") in right or right in said)
    return Reading(parsed=said or None, score=score)


def _mlvu(text: str, sample: Sample) -> Reading:
    """JUNJIE99/MLVU: the character before the first ")", or else the whole text, must be the letter.

    The copies in that repository differ in whether all before the bracket counts; with the prefix "(" they agree.
    """
    said = text.strip()
    if ")" in said:
        place = said.index(")")
        said = said[max(0, place - 1) : place]
    return Reading(parsed=said[:40] or None, score=float(said == LETTERS[sample.answer]))


OFFICIAL = {
    "video-mme": _video_mme,
    "mmmu-last": _mmmu_last,
    "mmmu-first": _mmmu_first,
    "first-word": _first_word,
    "mvbench": _mvbench,
    "mlvu": _mlvu,
}


def _letter(letter: str, sample: Sample) -> Reading:
    return Reading(parsed=letter, score=float(LETTERS.index(letter) == sample.answer))


def _guess(sample: Sample) -> Reading:
    letter = random.Random(f"{sample.task}/{sample.id}").choice(LETTERS[: len(sample.options)])
    guessed = _letter(letter, sample)
    return Reading(parsed=None, score=guessed.score, guessed=True)


def _stripped(text: str) -> str:
    """MMMU's first step: one kind of mark after the other off the ends, then blanks around."""
    for mark in ",.!?;:'":
        text = text.strip(mark)
    return f" {text} "


# "The best answer is:", "Answer:", "Option", "The correct choice is" ...
_PHRASE = r"(?:the\s+)?(?:best\s+|correct\s+|right\s+|final\s+)?(?:answer|option|choice)(?:\s+is|\s*:|\s*=)*"
_MARKS = r"[*\"'\[]*"
# The letter, in brackets, or with a mark or the end of the line behind it.
_LETTER = r"(?:\(([A-Z])\)|([A-Z])(?=[*\"'\])]|[.:](?!\w)|[ \t]*(?:\n|$)))"
_HEAD = re.compile(rf"^\s*(?:{_PHRASE}\s*(?:option\s+)?)?{_MARKS}{_LETTER}", re.IGNORECASE | re.MULTILINE)
# "The answer is B because": only a capital that is no word of its own, or an A with a comma.
_CAPITAL = r"(?-i:([B-HJ-Z])\b|(A),)"
_SAID = re.compile(
    rf"\b(?:answer|option|choice)(?:\s+is|\s*:|\s*=)+\s*(?:option\s+)?{_MARKS}(?:{_LETTER}|{_CAPITAL})",
    re.IGNORECASE | re.MULTILINE,
)
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


def read_choice(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the one option that the text names, or None. Ours, the strict rule.

    A letter counts alone ("B", "b", "B.", "(B)", "**B**"), before an option ("B. A man"), or behind words such as "The
    answer is"; and so does the whole text of one option, case and blanks aside. A letter that is a word of a sentence
    ("A man holds B") counts for nothing, nor does a text that names two options, or one that does not exist.

    Args:
        text: what the model said.
        options: (N,) texts without letters, 26 at most.
    """
    text = text.strip()
    letters = LETTERS[: len(options)]
    plain = [short_answer(option) for option in options]
    # A letter with its option is beyond doubt, whatever letters stand in the option.
    whole = re.match(rf"^\s*(?:{_PHRASE}\s*)?\(?([A-Za-z])[).:]?\s+(.+)$", text, re.IGNORECASE | re.DOTALL)
    if whole and whole[1].upper() in letters and short_answer(whole[2]) == plain[letters.index(whole[1].upper())]:
        return whole[1].upper()
    found = itertools.chain.from_iterable(rule.finditer(text) for rule in (_HEAD, _SAID, _IN_BRACKETS))
    claims = {next(filter(None, claim.groups())).upper() for claim in found}
    if claims:
        return claims.pop() if len(claims) == 1 and claims <= set(letters) else None
    named = [letter for letter, option in zip(letters, plain) if option and option == short_answer(text)]
    return named[0] if len(named) == 1 else None


def said_choice(text: str, sample: Sample) -> str | None:
    """Return `read_choice` of a text that goes on from the sample's prefix, such as "Best option:("."""
    return read_choice(_behind_bracket(text.strip(), sample), sample.options)


def _behind_bracket(text: str, sample: Sample) -> str:
    """Put the bracket that a prefix opened before what was said behind it."""
    return f"({text}" if sample.prefix.endswith("(") and not text.startswith("(") else text


def short_answer(text: str) -> str:
    """Return a short answer so that it can be compared: lower case, single blanks, no marks around."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'")
