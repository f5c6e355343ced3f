"""Haystacks and needles: long videos, and what is hidden in them with a question that nothing else answers.

Haystacks are drawn (moving shapes, any length) or are the user's own videos. Needles are drawn into a copy of the
haystack's picture, or are the user's own pictures and short videos. needle_pass.py puts them into their places.

Pictures are uint8 (H, W, 3), RGB.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_video_ma2mba.eval.view_frames import read_picture
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.video_reader import iter_frames, probe
from modeling_video_ma2mba.train.annotation_files import json_rows, samples_from_rows, words_of
from modeling_video_ma2mba.train.data_report import BadRow, DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex
from modeling_video_ma2mba.train.scene_questions import wordings
from modeling_video_ma2mba.train.synthetic_video import COLOURS, DESIGN_SIZE, DIGITS, make_clip

PICTURE_SIZE = 112  # of drawn haystacks, in pixels
CLIP_FRAMES = 32  # of the clips that a drawn haystack is made of
MOST_EVENT_FRAMES = 64  # of a needle that is a video
ATTEMPTS = 1000  # clips tried for one with a given digit; one in twelve has it
# First numbers of seeds: make_synthetic_data.py has 1 to 4, so that no part shares a clip with another.
_HAYSTACK, _NEEDLE, _DISTRACTOR = 5, 6, 7
# A video that several needles are hidden in has its distractors in other colours than all needles.
NEEDLE_COLOURS, OTHER_COLOURS = tuple(COLOURS)[:3], tuple(COLOURS)[3:]
CARD_QUESTION = (
    "One frame of the video shows a {colour} card with a number on it. Which number is it? "
    "Answer with the number only."
)

Picture = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Needle:
    """Something to be found.

    Attributes:
        name: for reports.
        question, answer: what is asked, and the only right answer.
        show: returns its pictures, one or more, given the haystack's picture before it.
    """

    name: str
    question: str
    answer: str
    show: Callable[[Picture], list[Picture]]


def digit_needle(seed: int, trial: int) -> Needle:
    """Return the digit `trial % 10`, somewhere on the haystack's picture, as the small model was trained to see it."""
    random = np.random.default_rng((_NEEDLE, seed, trial))
    digit = trial % len(DIGITS)
    box = _digit_box((_NEEDLE, seed, trial), digit)
    questions = wordings("held-out")["needle"]
    place = random.uniform(size=2)
    return Needle(
        name=f"digit {digit}",
        question=questions[int(random.integers(len(questions)))],
        answer=str(digit),
        show=lambda picture: [_with_box(picture, box, place)],
    )


def digit_distractor(picture: Picture, random: np.random.Generator) -> Picture:
    """Return the picture with a box like a digit's, whose dots are in no order: it stands out and says nothing."""
    dots = np.zeros((9, 7), dtype=np.uint8)
    dots[1:8, 1:6] = random.permuted(np.arange(35) < 16).reshape(7, 5)
    box = np.repeat(np.repeat(dots * 255, 2, axis=0), 2, axis=1)[:, :, None].repeat(3, axis=2)
    return _with_box(picture, box, random.uniform(size=2))


def card_needle(seed: int, trial: int) -> Needle:
    """Return a card that fills the picture: a colour, and a number of three digits."""
    random = np.random.default_rng((_NEEDLE, seed, trial))
    colour, number = NEEDLE_COLOURS[trial % len(NEEDLE_COLOURS)], str(random.integers(100, 1000))
    return Needle(
        name=f"{colour} card {number}",
        question=CARD_QUESTION.format(colour=colour),
        answer=number,
        show=lambda picture: [_card(picture.shape, colour, number)],
    )


def card_distractor(picture: Picture, random: np.random.Generator) -> Picture:
    """Return a card of another colour with another number in the picture's place."""
    colour = OTHER_COLOURS[int(random.integers(len(OTHER_COLOURS)))]
    return _card(picture.shape, colour, str(random.integers(100, 1000)))


# By name: what is hidden, and what stands in its light.
KINDS: dict[str, tuple[Callable[[int, int], Needle], Callable[[Picture, np.random.Generator], Picture]]] = {
    "digit": (digit_needle, digit_distractor),
    "card": (card_needle, card_distractor),
}


def file_needles(path: Path, fps: float) -> list[Needle]:
    """Return the needles of a json list or jsonl file: rows of `image` or `video`, `question` and `answer`.

    Media lie below the file's folder; of a video every frame at `fps` is shown, up to `MOST_EVENT_FRAMES`.

    Raises:
        ValueError: the file or a row cannot be used; a medium cannot be read.
    """
    media, report = MediaIndex([path.parent]), DataReport()

    def make(number: int, row: dict) -> Needle:
        kinds = [kind for kind in ("image", "video") if row.get(kind)]
        if len(kinds) != 1:
            raise BadRow("wrong media", f"has {' and '.join(kinds) or 'neither image nor video'}, needs one of them")
        found = media.find(words_of(row, kinds[0]), kinds[0])
        pictures = [read_picture(found)] if kinds == ["image"] else _event(found, fps)
        name = f"{number}: {found.name}"
        question, answer = words_of(row, "question"), words_of(row, "answer")
        return Needle(name=name, question=question, answer=answer, show=lambda picture: pictures)

    needles = list(samples_from_rows(path, json_rows(path, ["question", "answer"]), make, report))
    if report.left_out:
        bad = report.left_out[0]
        raise ValueError(f"{path}: row {bad.row} cannot be used: {bad.reason} {bad.detail}".strip())
    return needles


def drawn_haystack(seed: int, trial: int) -> Iterator[Picture]:
    """Yield pictures of moving shapes without end, none of which shows a digit."""
    for number in itertools.count():
        clip = make_clip((_HAYSTACK, seed, trial, number), CLIP_FRAMES, PICTURE_SIZE)
        hidden = None if clip.needle is None else clip.needle.frame
        yield from (picture for place, picture in enumerate(clip.frames) if place != hidden)


def video_haystack(path: Path, fps: float, frames: int) -> Iterator[Picture]:
    """Yield the first `frames` pictures of a video, sampled at `fps`.

    Raises:
        VideoReadError: (at once) it cannot be read, or is shorter than that.
    """
    seconds = probe(path).duration
    if seconds * fps < frames:
        raise VideoReadError(
            path,
            f"it lasts {seconds:.0f} s, which are {int(seconds * fps):,} frames at {fps:g} fps, and {frames:,} are "
            "asked for",
            advice="Give a longer video, smaller lengths, or a higher fps.",
        )
    chunks = iter_frames(path, fps=fps, end=frames / fps, chunk=4)
    return itertools.islice((picture for _, chunk in chunks for picture in chunk), frames)


def with_distractors(pictures: Iterator[Picture], distract: Callable, share: float, seed: int) -> Iterator[Picture]:
    """Yield the pictures; each is a distractor with probability `share`, the same ones for the same seed."""
    for number, picture in enumerate(pictures):
        random = np.random.default_rng((_DISTRACTOR, seed, number))
        yield distract(picture, random) if random.random() < share else picture


def _digit_box(seed: Sequence[int], digit: int) -> np.ndarray:
    """Cut the box of a digit out of a drawn clip, uint8 (h, w, 3)."""
    for attempt in range(ATTEMPTS):
        clip = make_clip((*seed, attempt), 8)
        if clip.needle is not None and clip.needle.digit == digit:
            left, top, right, bottom = clip.needle.box
            return clip.frames[clip.needle.frame, top:bottom, left:right].copy()
    raise RuntimeError(f"{ATTEMPTS} clips do not show the digit {digit}")


def _with_box(picture: Picture, box: np.ndarray, place: np.ndarray) -> Picture:
    """Return a copy of the picture with a box of DESIGN_SIZE's scale on it; place: 0 to 1, down and across."""
    times = max(1, round(min(picture.shape[:2]) / DESIGN_SIZE))
    box = box.repeat(times, axis=0).repeat(times, axis=1)
    top, left = ((np.array(picture.shape[:2]) - box.shape[:2]).clip(0) * place).astype(int)
    shown = picture.copy()
    height, width = shown[top : top + box.shape[0], left : left + box.shape[1]].shape[:2]
    shown[top : top + height, left : left + width] = box[:height, :width]
    return shown


def _card(shape: tuple[int, ...], colour: str, number: str) -> Picture:
    rows = [np.array(DIGITS[int(sign)])[:, None] >> np.arange(5, -1, -1) & 1 for sign in number]  # a gap and 5 dots
    dots = np.pad(np.concatenate(rows, axis=1), ((0, 0), (0, 1)))  # (7, 6 for each sign + 1)
    dot = max(1, min(shape[0] // (dots.shape[0] + 4), shape[1] // (dots.shape[1] + 2)))
    text = dots.repeat(dot, axis=0).repeat(dot, axis=1)[: shape[0], : shape[1]]
    card = np.empty(shape, dtype=np.uint8)
    card[:] = COLOURS[colour]
    top, left = (shape[0] - text.shape[0]) // 2, (shape[1] - text.shape[1]) // 2
    card[top : top + text.shape[0], left : left + text.shape[1]][text == 1] = 0
    return card


def _event(path: Path, fps: float) -> list[Picture]:
    if probe(path).duration * fps > MOST_EVENT_FRAMES:
        raise BadRow("event is too long", f"{path.name}: more than {MOST_EVENT_FRAMES} frames at {fps:g} fps")
    return [picture for _, chunk in iter_frames(path, fps=fps) for picture in chunk]
