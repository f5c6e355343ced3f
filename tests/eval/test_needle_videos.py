"""Haystacks without needles, needles that can be read, and files of needles that are checked."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from modeling_video_ma2mba.eval.needle_videos import (
    CLIP_FRAMES,
    KINDS,
    NEEDLE_COLOURS,
    OTHER_COLOURS,
    card_needle,
    digit_needle,
    drawn_haystack,
    file_needles,
    video_haystack,
    with_distractors,
)
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.scene_questions import vocabulary
from modeling_video_ma2mba.train.synthetic_video import COLOURS, DIGITS, numbered_frames, read_number, write_video

GREY = np.full((112, 112, 3), 90, dtype=np.uint8)


def dots(rows):
    """Return a digit's rows of five bits as an array (7, 5)."""
    return np.array(rows)[:, None] >> np.arange(4, -1, -1) & 1


def test_a_haystack_shows_no_digit_and_does_not_end():
    """Digits are white on a black box; nothing else is pure white or has so much pure black."""
    pictures = list(itertools.islice(drawn_haystack(0, 3), 4 * CLIP_FRAMES))
    assert all(picture.shape == GREY.shape and picture.dtype == np.uint8 for picture in pictures)
    for picture in pictures:
        assert not ((picture == 255).all(axis=2)).any()
    again = itertools.islice(drawn_haystack(0, 3), 8)
    assert all(np.array_equal(one, other) for one, other in zip(pictures, again))
    for other in (drawn_haystack(0, 4), drawn_haystack(1, 3)):
        assert not np.array_equal(next(other), pictures[0])


@pytest.mark.parametrize("trial", range(10))
def test_a_digit_stands_on_the_picture_before_it(trial):
    needle = digit_needle(0, trial)
    (shown,) = needle.show(GREY)
    assert np.array_equal(GREY, np.full_like(GREY, 90))  # the haystack is not touched
    changed = np.argwhere((shown != 90).any(axis=2))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
    assert (bottom - top, right - left) == (36, 28)  # 9 x 7 dots of four pixels, as in training at this size
    box = shown[top:bottom:4, left:right:4, 0]
    assert np.array_equal(box[1:8, 1:6] == 255, dots(DIGITS[trial])) and needle.answer == str(trial)
    assert set(np.unique(box)) == {0, 255}
    assert set(needle.question.split()) <= set(vocabulary())
    assert all(np.array_equal(one, other) for one, other in zip(digit_needle(0, trial).show(GREY), [shown]))


def test_a_digit_fits_any_picture():
    for shape in ((56, 56, 3), (720, 1280, 3), (20, 30, 3)):
        picture = np.full(shape, 90, dtype=np.uint8)
        (shown,) = digit_needle(0, 7).show(picture)
        assert shown.shape == shape and (shown != 90).any()


def read_card(shown):
    """Return colour and number of a card, read from its dots."""
    (corner,) = {tuple(shown[y, x].tolist()) for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    colour = next(name for name, rgb in COLOURS.items() if rgb == corner)
    ink = (shown == 0).all(axis=2)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    dot = (rows[-1] + 1 - rows[0]) // 7
    # Digits may begin with an empty column: all of them lie on one grid, whose middle is the card's.
    left = round((shown.shape[1] - 19 * dot) // 2)
    grid = ink[rows[0] :: dot, left::dot][:7, :19].astype(int)
    signs = [grid[:, 1 + 6 * i : 6 + 6 * i] for i in range(3)]
    numbers = [next(str(n) for n, bits in enumerate(DIGITS) if np.array_equal(dots(bits), sign)) for sign in signs]
    assert columns[0] >= left
    return colour, "".join(numbers)


@pytest.mark.parametrize("shape", [(112, 112, 3), (240, 426, 3)])
def test_a_card_shows_what_is_asked(shape):
    for trial in range(6):
        needle = card_needle(0, trial)
        (shown,) = needle.show(np.zeros(shape, dtype=np.uint8))
        colour, number = read_card(shown)
        assert number == needle.answer and f"a {colour} card" in needle.question and colour in NEEDLE_COLOURS
    assert len({card_needle(0, trial).answer for trial in range(20)}) > 15


def test_distractors_never_answer():
    random = np.random.default_rng(0)
    for _ in range(50):
        colour, number = read_card(KINDS["card"][1](GREY, random))
        assert colour in OTHER_COLOURS and len(number) == 3
        shown = KINDS["digit"][1](GREY, random)
        (top, left), _ = np.argwhere((shown != 90).any(axis=2))[[0, -1]]
        grid = (shown[top : top + 36 : 4, left : left + 28 : 4, 0] == 255)[1:8, 1:6]
        assert grid.sum() == 16 and not any(np.array_equal(grid, dots(digit)) for digit in DIGITS)
    assert not set(OTHER_COLOURS) & set(NEEDLE_COLOURS)


def test_distractors_have_their_share_and_their_places():
    mark = lambda picture, random: np.zeros_like(picture)  # noqa: E731

    def places(share, seed):
        shown = with_distractors(iter([GREY] * 1000), mark, share, seed)
        return [number for number, picture in enumerate(shown) if not picture.any()]

    assert 60 < len(places(0.1, 0)) < 140 and places(0.1, 0) == places(0.1, 0) != places(0.1, 1)
    assert places(0, 0) == [] and len(places(1, 0)) == 1000


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    write_video(path, numbered_frames(20, 64, 96), fps=2)
    return path


def test_a_video_is_a_haystack(film):
    assert list(map(read_number, video_haystack(film, 1.0, 9))) == list(range(0, 18, 2))
    assert list(map(read_number, video_haystack(film, 2.0, 20))) == list(range(20))
    with pytest.raises(VideoReadError, match=r"10 frames at 1 fps, and 11 are asked for.*Give a longer video"):
        video_haystack(film, 1.0, 11)
    with pytest.raises(VideoReadError):
        video_haystack(film.with_name("none.mp4"), 1.0, 1)


def needles_file(folder, *rows):
    Image.fromarray(GREY).save(folder / "a.png")
    path = folder / "needles.json"
    path.write_text(json.dumps(rows))
    return path


def test_needles_of_a_file(film):
    rows = [
        {"image": "a.png", "question": "which ?", "answer": "B"},
        {"video": "film.mp4", "question": "what ?", "answer": "a word"},
    ]
    first, second = file_needles(needles_file(film.parent, *rows), 1.0)
    (picture,) = first.show(None)
    assert np.array_equal(picture, GREY) and (first.question, first.answer) == ("which ?", "B")
    assert list(map(read_number, second.show(None))) == list(range(0, 20, 2)) and second.name == "2: film.mp4"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "q", "answer": "a"}, "row 1 cannot be used: wrong media has neither image nor video"),
        ({"image": "a.png", "video": "film.mp4", "question": "q", "answer": "a"}, "has image and video"),
        ({"image": "none.png", "question": "q", "answer": "a"}, "media not found none.png"),
        ({"image": "../a.png", "question": "q", "answer": "a"}, "row 1 cannot be used: media path refused"),
        ({"image": "a.png", "question": "q"}, "answer"),
        ({"image": "a.png", "question": "q", "answer": ""}, "answer"),
        ({"image": "bad.png", "question": "q", "answer": "a"}, "bad.png.*no picture that can be read"),
    ],
)
def test_a_bad_row_is_named(film, row, message):
    (film.parent / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=message):
        file_needles(needles_file(film.parent, row), 1.0)


def test_an_event_is_short(film):
    row = {"video": "film.mp4", "question": "q", "answer": "a"}
    with pytest.raises(ValueError, match=r"event is too long film.mp4: more than 64 frames at 10 fps"):
        file_needles(needles_file(film.parent, row), 10.0)
