"""Captions of drawn clips, and questions about them with exact answers. It draws nothing and writes no file.

    clip = make_clip(seed=0, num_frames=32, combinations=combinations("training"))
    describe(clip)  # red circle left . blue square up . digit 7 .
    ask(clip, count=20, seed=0)  # Question(type="edge", text="which colour was shown first ?", answer="red"), ...

What is held out is fixed: `combinations` of colour, shape and direction here, `wordings` in `scene_wordings`. Words
are separated by spaces, signs too, so that a tokenizer of whole words needs `vocabulary()` only.

A question names a scene by colour and shape only where no other scene of the clip has both.
"""

import itertools
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from modeling_video_ma2mba.train.scene_wordings import HELD_OUT_WORDINGS, TRAINING_WORDINGS
from modeling_video_ma2mba.train.synthetic_video import COLOURS, DIRECTIONS, SHAPES, Clip, Combination, Scene

SPLITS = ("training", "held-out")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PLACE_BOUNDS = (0.4, 0.6)  # of the frame; a shape's centre stays between 0.16 and 0.84
NONE = "none"
DURATION_RATIO = 2  # lengths of two scenes are compared when one is at least so many times the other

# How often each type is asked. These take longest to learn: the next scene is a chain of two look-ups, a count has
# one answer that is often right by chance.
TYPE_WEIGHTS = {
    "edge": 1,
    "index": 1,
    "after": 2,
    "before": 2,
    "count": 2,
    "motion": 1,
    "order": 1,
    "duration": 1,
    "needle": 1,
}
TYPES = tuple(TYPE_WEIGHTS)

_WORDINGS = {"training": TRAINING_WORDINGS, "held-out": HELD_OUT_WORDINGS}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something true about a clip that can be asked.

    Attributes:
        type: one of `TYPES`.
        subject: what it is about; two facts with one subject say the same, and only one of them is asked.
        slots: the words that fill the wordings of the type.
        answer: one or two words.
    """

    type: str
    subject: tuple[str, ...]
    slots: dict[str, str]
    answer: str

    @property
    def form(self) -> str:
        """What a question gives away of its possible answers, such as "edge colour" or "duration first last"."""
        if self.type == "duration":
            return " ".join(["duration", *sorted(self.slots.values())])
        if self.type == "count":
            return "count colour" if self.slots["kind"] in COLOURS else "count shape"
        return f"{self.type} {self.slots['attribute']}" if "attribute" in self.slots else self.type


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question in words and its only right answer; `form`: see `Fact`."""

    type: str
    form: str
    text: str
    answer: str


def is_held_out(combination: Combination) -> bool:
    """Say whether no training clip shows this colour, shape and direction together.

    Of the 16 pairs of shape and direction each has one held-out colour; no pair of colour and shape loses more than
    one direction.
    """
    colour, shape, direction = combination
    pair = SHAPES.index(shape) * len(DIRECTIONS) + list(DIRECTIONS).index(direction)
    return list(COLOURS).index(colour) == pair % len(COLOURS)


def combinations(split: str) -> tuple[Combination, ...]:
    """Return the (colour, shape, direction) of a split, "training" (80) or "held-out" (16)."""
    _check_split(split)
    every = itertools.product(COLOURS, SHAPES, DIRECTIONS)
    return tuple(one for one in every if is_held_out(one) == (split == "held-out"))


def wordings(split: str) -> dict[str, tuple[str, ...]]:
    """Return the wordings of each type, and of the request to "describe", for "training" or "held-out" questions."""
    _check_split(split)
    return dict(_WORDINGS[split])


def vocabulary() -> list[str]:
    """Return every word of questions, answers, captions and descriptions, sorted."""
    texts = [template for split in SPLITS for templates in _WORDINGS[split].values() for template in templates]
    # The slots stand for words that are listed below.
    texts = ["".join(text for text, *_ in string.Formatter().parse(template)) for template in texts]
    words = {word for text in texts for word in text.split()}
    words |= {*COLOURS, *SHAPES, *DIRECTIONS, *ORDINALS, *ROWS, *COLUMNS, *map(str, range(10))}
    return sorted(words | {"colour", "shape", "last", "yes", "no", "digit", ".", NONE})


def frame_caption(clip: Clip, frame: int) -> str:
    """Return what one frame shows: "red circle top left . digit 7 ."; without a digit it says nothing of it."""
    scene = next(scene for scene in clip.scenes if scene.start_frame <= frame < scene.end_frame)
    x, y = scene.centres[frame - scene.start_frame]
    row, column = (sum(part > bound for bound in PLACE_BOUNDS) for part in (y, x))
    shown = f"{name(scene)} {ROWS[row]} {COLUMNS[column]} ."
    return shown + (f" digit {clip.needle.digit} ." if clip.needle is not None and clip.needle.frame == frame else "")


def scene_caption(clip: Clip, index: int) -> str:
    """Return what one scene shows: "red circle left . digit 7 ."; without a digit it says nothing of it."""
    scene = clip.scenes[index]
    shown = f"{name(scene)} {scene.direction} ."
    has_digit = clip.needle is not None and scene.start_frame <= clip.needle.frame < scene.end_frame
    return shown + (f" digit {clip.needle.digit} ." if has_digit else "")


def describe(clip: Clip) -> str:
    """Return all scenes in order, then the digit or that there is none: "red circle left . ... digit none ."."""
    shown = [f"{name(scene)} {scene.direction} ." for scene in clip.scenes]
    return " ".join([*shown, f"digit {_digit(clip)} ."])


def name(scene: Scene) -> str:
    return f"{scene.colour} {scene.shape}"


def facts(clip: Clip, type: str) -> list[Fact]:
    """Return all that can be asked about a clip with questions of one type, in a fixed order; it can be empty.

    - edge, index: colour or shape of the first and the last scene, or of the second, third, ...
    - after, before: colour and shape of the scene next to one that is unique.
    - count: how many scenes have a shape or a colour; 0 too.
    - motion: where a unique scene's shape moves.
    - order: whether one unique scene comes before another, near or far.
    - duration: which of two scenes is longer, by their places: "first", "second", ..., "last" for the final one.
    - needle: the digit, or "none".
    """
    if type not in _FACTS:
        raise ValueError(f"type={type!r} is unknown; choose one of {', '.join(TYPES)}")
    found = _FACTS[type](clip)
    return [Fact(type=type, subject=(type, *subject), slots=slots, answer=answer) for subject, slots, answer in found]


def ask(clip: Clip, count: int, seed: int | Sequence[int], split: str = "training") -> list[Question]:
    """Return up to `count` questions of mixed types (`TYPE_WEIGHTS`), no two about the same fact, in random order.

    A short clip has fewer facts than a long list needs.
    """
    random = np.random.default_rng(seed)
    _check_split(split)
    left = {type: found for type in TYPES if (found := facts(clip, type))}
    questions: list[Question] = []
    while left and len(questions) < count:
        weights = np.array([TYPE_WEIGHTS[type] for type in left], dtype=np.float64)
        type = list(left)[int(random.choice(len(left), p=weights / weights.sum()))]
        fact = _pick(left[type], random)
        left[type] = [other for other in left[type] if other.subject != fact.subject]
        if not left[type]:
            del left[type]
        questions.append(_in_words(fact, random, split))
    # Types with few facts run out: drawn in this order, the end would be left to the others.
    return [questions[index] for index in random.permutation(len(questions))]


def ask_one(clip: Clip, type: str, seed: int | Sequence[int], split: str = "training") -> Question | None:
    """Return a question of one type, or None where the clip has nothing unique to ask about."""
    _check_split(split)
    random = np.random.default_rng(seed)
    found = facts(clip, type)
    return _in_words(_pick(found, random), random, split) if found else None


def constant_answers(questions: Iterable[Question]) -> dict[str, str]:
    """Return the most frequent answer of each form: the best that can be said without looking at a video.

    Chosen on training questions and counted on held-out ones, it is a guess rate that no small sample flatters.
    """
    answers: dict[str, Counter[str]] = {}
    for question in questions:
        answers.setdefault(question.form, Counter())[question.answer] += 1
    return {form: max(sorted(counts), key=counts.get) for form, counts in answers.items()}


def request_description(seed: int | Sequence[int], split: str = "training") -> str:
    """Return a wording of the request that `describe` answers."""
    return _choose(np.random.default_rng(seed), wordings(split)["describe"])


def _pick(found: list[Fact], random: np.random.Generator) -> Fact:
    """Choose the answer first where answers are few and uneven: most counts are 0 or 1."""
    if found[0].type == "count":
        answer = _choose(random, sorted({fact.answer for fact in found}))
        found = [fact for fact in found if fact.answer == answer]
    return _choose(random, found)


def _in_words(fact: Fact, random: np.random.Generator, split: str) -> Question:
    text = _choose(random, _WORDINGS[split][fact.type]).format(**fact.slots)
    return Question(type=fact.type, form=fact.form, text=text, answer=fact.answer)


def _choose(random: np.random.Generator, options: Sequence):
    return options[int(random.integers(len(options)))]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")


def _digit(clip: Clip) -> str:
    return NONE if clip.needle is None else str(clip.needle.digit)


def _unique(clip: Clip) -> list[int]:
    """Return the indices of the scenes whose colour and shape no other scene has."""
    names = Counter(map(name, clip.scenes))
    return [index for index, scene in enumerate(clip.scenes) if names[name(scene)] == 1]


# One function for each type: (subject, slots, answer) of its facts.
def _edge(clip: Clip):
    return _attributes([("first", clip.scenes[0]), ("last", clip.scenes[-1])])


def _index(clip: Clip):
    return _attributes(list(zip(ORDINALS, clip.scenes))[1:])


def _attributes(places: list[tuple[str, Scene]]):
    for (place, scene), attribute in itertools.product(places, ("colour", "shape")):
        yield (place, attribute), {"place": place, "attribute": attribute}, getattr(scene, attribute)


def _after(clip: Clip):
    return _neighbours(clip, 1)


def _before(clip: Clip):
    return _neighbours(clip, -1)


def _neighbours(clip: Clip, step: int):
    for index in _unique(clip):
        if 0 <= index + step < len(clip.scenes):
            known = name(clip.scenes[index])
            yield (known,), {"scene": known}, name(clip.scenes[index + step])


def _count(clip: Clip):
    for attribute, kinds in (("colour", COLOURS), ("shape", SHAPES)):
        for kind in kinds:
            yield (kind,), {"kind": kind}, str(sum(getattr(scene, attribute) == kind for scene in clip.scenes))


def _motion(clip: Clip):
    for index in _unique(clip):
        scene = clip.scenes[index]
        yield (name(scene),), {"scene": name(scene)}, scene.direction


def _order(clip: Clip):
    for one, other in itertools.permutations(_unique(clip), 2):
        names = [name(clip.scenes[index]) for index in (one, other)]
        yield tuple(sorted(names)), {"scene": names[0], "other": names[1]}, "yes" if one < other else "no"


def _duration(clip: Clip):
    lengths = [scene.end_frame - scene.start_frame for scene in clip.scenes]
    places = [*ORDINALS[: len(lengths) - 1], "last"]
    for one, other in itertools.permutations(range(len(lengths)), 2):
        if max(lengths[one], lengths[other]) >= DURATION_RATIO * min(lengths[one], lengths[other]):
            longer = one if lengths[one] > lengths[other] else other
            slots = {"place": places[one], "other": places[other]}
            yield tuple(sorted(slots.values())), slots, places[longer]


def _needle(clip: Clip):
    yield (), {}, _digit(clip)


_FACTS = {
    "edge": _edge,
    "index": _index,
    "after": _after,
    "before": _before,
    "count": _count,
    "motion": _motion,
    "order": _order,
    "duration": _duration,
    "needle": _needle,
}
