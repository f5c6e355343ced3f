"""Each official rule on texts worked out by hand, flaws included, and the strict rule: nothing is right unsaid."""

from collections import Counter
from pathlib import Path

import pytest

from modeling_video_ma2mba.eval.parsers import LETTERS, OFFICIAL, read_choice, said_choice, short_answer
from modeling_video_ma2mba.eval.samples import Sample, View

OPTIONS = ("A man holds a ball.", "A dog", "The red car. It waits", "None of them")


def sample(answer=1, options=OPTIONS, prefix="", id="1"):
    return Sample(
        task="t", id=id, cluster="v", view=View(video=Path("v.mp4")), prompt="", question="", answer=answer,
        options=options, prefix=prefix,
    )  # fmt: skip


def parsed(rule, text, **more):
    return OFFICIAL[rule](text, sample(**more)).parsed


# fmt: off
VIDEO_MME_CASES = [
    ("B", "B"), ("(B)", "B"), ("B.", "B"), ("The answer is B", "B"), ("B. A man", "B"), ("A man holds B", "A"),
    ("A man is there", "A"), ("", None), ("(", None), ("b", None), ("None", None),
    # The phrases that are removed; "Answer" itself begins with a capital A.
    ("The best answer is: C", "C"), ("The correct answer is C", "C"), ("The answer C", "C"), ("Answer: C", "A"),
    # The two pairs of phrases that a missing comma makes one: they stay, and "Best answer" holds a B.
    ("The best option is: C", "C"), ("Best answer: C", "B"), ("Best option: D", "B"),
    ("The best option isThe correct option is D", "D"), ("Best answer:Best option: D", "D"),
    ("it is one of those things that nobody could ever really know", None),
]
# fmt: on


@pytest.mark.parametrize(("text", "letter"), VIDEO_MME_CASES)
def test_video_mme(text, letter):
    assert parsed("video-mme", text) == letter


def test_video_mme_leaves_unread_answers_out():
    assert OFFICIAL["video-mme"]("no idea", sample()).score is None
    assert OFFICIAL["video-mme"]("B", sample()).score == 1.0
    assert OFFICIAL["video-mme"]("C", sample()).score == 0.0


# fmt: off
FIRST_WORD_CASES = [
    ("B", "B"), ("B.", "B"), ("A man is there", "A"), ("ABC", None), ("The best option is C", "C"), ("b", None),
    ("D", "D"), ("Not A but B", "A"),  # the first one; D is read with three options, too
]
# fmt: on


@pytest.mark.parametrize(("text", "letter"), FIRST_WORD_CASES)
def test_first_word(text, letter):
    assert parsed("first-word", text, options=OPTIONS[:3]) == letter
    assert OFFICIAL["first-word"](text, sample()).score == float(letter == "B")  # an unread answer is wrong


# fmt: off
MMMU_LAST_CASES = [
    ("B", "B"), ("(B)", "B"), ("B.", "B"), ("The answer is B", "B"),
    ("B. A man", "A"),  # "A " is looked for before "B."
    ("B. The car", "B"),
    ("A man holds B", "B"),  # the last of those that stand alone
    ("(A) or (C)", "C"), ("B, not (A)", "A"),  # brackets first, the last of them
    ("PLAN B or PLAN C it is", "C"),
    ("USA was in the D ", "D"),
    ("A. or B. it", "A"),  # none stands alone: the first option
    ("I believe it shows the red car. it waits", "C"),  # an option's text, in more than five words
    ("the red car. it waits", None),  # five words only
    ("I see a dog and none of them here", "D"),  # the last option that is named
]
# fmt: on


@pytest.mark.parametrize(("text", "letter"), MMMU_LAST_CASES)
def test_mmmu_last(text, letter):
    reading = OFFICIAL["mmmu-last"](text, sample())
    assert (reading.parsed, reading.guessed) == (letter, letter is None)


# fmt: off
MMMU_FIRST_CASES = [
    ("B", "B"), ("B. A man", "B"), ("A man holds B", "A"), ("(C) or A", "C"), ("A or (C)", "A"),
    ("B or A or B", "A"),  # where B stands last counts
    ("I would say, C. the red car. it waits", "C"),  # with the letter in the option; "C." is there anyway
    ("it is c. the red car. it waits", "C"), ("it shows that the red car. it waits", None),
]
# fmt: on


@pytest.mark.parametrize(("text", "letter"), MMMU_FIRST_CASES)
def test_mmmu_first(text, letter):
    reading = OFFICIAL["mmmu-first"](text, sample())
    assert (reading.parsed, reading.guessed) == (letter, letter is None)


@pytest.mark.parametrize("rule", ["mmmu-last", "mmmu-first"])
@pytest.mark.parametrize("text", ["", "no idea", "("])
def test_random_choices_hang_on_the_sample_alone(rule, text):
    readings = [OFFICIAL[rule](text, sample(answer=0, id=str(number))) for number in range(400)]
    assert readings == [OFFICIAL[rule](text, sample(answer=0, id=str(number))) for number in range(400)]
    assert all(reading.guessed and reading.parsed is None for reading in readings)
    right = sum(reading.score for reading in readings)
    assert 70 <= right <= 130  # 100 expected, standard deviation 8.7
    counts = Counter(OFFICIAL[rule](text, sample(answer=3, id=str(number))).score for number in range(400))
    assert 70 <= counts[1.0] <= 130


# fmt: off
MVBENCH_BEHIND_ITS_PREFIX_CASES = [
    ("B) A dog", True), ("B)", True), ("B", True), ("b", True), ("B.", True), ("A) A man", False), ("C", False),
    ("", True),  # "(" is in "(b)"
    ("B) yes\nA) no", True), ("A) no\nB) yes", False),  # the first line
    ("(B)", True), ("ab)", False),
    ("The answer is B", False),  # "(the"
]
# fmt: on


@pytest.mark.parametrize(("text", "right"), MVBENCH_BEHIND_ITS_PREFIX_CASES)
def test_mvbench_behind_its_prefix(text, right):
    assert OFFICIAL["mvbench"](text, sample(prefix="Best option:(")).score == float(right)


@pytest.mark.parametrize("text", ["", "(", ")", "B", "(B) A dog"])
def test_mvbench_without_its_prefix_takes_empty_and_brackets_for_right(text):
    assert OFFICIAL["mvbench"](text, sample()).score == 1.0
    assert read_choice(text, OPTIONS) == ("B" if "B" in text else None)


# fmt: off
MLVU_CASES = [
    ("B) A dog", True), ("(B) A dog", True), ("B", True), ("B.", False), ("b", False), ("(B", False),
    ("B A dog", False), ("", False), (")", False), ("A) or B)", False),
]
# fmt: on


@pytest.mark.parametrize(("text", "right"), MLVU_CASES)
def test_mlvu(text, right):
    assert OFFICIAL["mlvu"](text, sample(prefix="Best Option: (")).score == float(right)


# fmt: off
THE_STRICT_RULE_CASES = [
    ("B", "B"), ("(B)", "B"), ("B.", "B"), ("b", "B"), ("The answer is B", "B"), ("B. A man", "B"),
    ("A man holds B", None), ("", None), ("(", None), (")", None), ("None", None), ("  B  ", "B"), ("**B**", "B"),
    ("Answer: C", "C"), ("Best option: D", "D"), ("The best answer is:\nC", "C"), ("Option C", "C"), ("[B]", "B"),
    ("The answer is B because he runs", "B"), ("The answer is a man", None), ("The answer is not B", None),
    ("The answer is A, as one sees", "A"), ("I think the correct answer is (D).", "D"), ("B:", "B"),
    ("C\nIt is red.", "C"), ("A. x\nB. y\nC. z", None), ("(A) or (B)", None), ("B. It is not (A)", None),
    ("E", None), ("(E)", None), ("The answer is E", None), ("U.S.", None), ("B.A", None), ("I", None),
    # The text of an option, and only all of it.
    ("A dog", "B"), ("a  DOG.", "B"), ("none of them", "D"), ("dog", None), ("The red car. It waits", "C"),
    ("A man holds a ball.", "A"), ("B A dog", "B"), ("B. A dog", "B"), ("A A man holds a ball", "A"),
]
# fmt: on


@pytest.mark.parametrize(("text", "letter"), THE_STRICT_RULE_CASES)
def test_the_strict_rule(text, letter):
    assert read_choice(text, OPTIONS) == letter


def test_the_strict_rule_in_hard_cases():
    # A letter with its own option is beyond doubt, whatever stands in the option.
    assert read_choice("B. point (A)", ("point (B)", "point (A)")) == "B"
    # Two options of the same words are not told apart by them; a letter is.
    assert read_choice("yes", ("yes", "Yes.")) is None
    assert read_choice("A", ("B", "A")) == "A"
    # Behind an opened bracket the letter is in brackets.
    assert said_choice("B) A dog", sample(prefix="Best option:(")) == "B"
    assert said_choice("(B) A dog", sample(prefix="Best option:(")) == "B"
    assert said_choice("", sample(prefix="Best option:(")) is None
    for number, letter in enumerate(LETTERS[:5]):
        assert read_choice(f"{letter}.", ("x",) * 5) == letter
        assert read_choice(f"{letter}.", ("x",) * number) is None


def test_short_answers():
    assert short_answer(" Yes. ") == short_answer("yes") == "yes"
    assert short_answer("two  dogs!") == "two dogs"
    assert short_answer("no, yes") != short_answer("yes")
