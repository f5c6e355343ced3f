"""Samples hold only what can be trained on, and grouping by video loses nothing and does not depend on the order."""

import itertools
import pickle
from pathlib import Path

import pytest

from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.samples import (
    Media,
    Sample,
    Text,
    Turn,
    captioned,
    conversation,
    grouped,
    interleaved,
)

FILM = Media(kind="video", path=Path("/data/film.mp4"))
PHOTO = Media(kind="image", path=Path("/data/photo.jpg"))


def asked(media, *turns, id="row", source="set"):
    return conversation(id=id, source=source, media=media, turns=[Turn(*turn) for turn in turns])


def roles(sample):
    return ["media" if isinstance(piece, Media) else piece.role for piece in sample.pieces]


def test_the_three_stages_in_one_representation():
    one = captioned(id="a", source="s", media=PHOTO, caption="a boat")
    assert one.pieces == (PHOTO, Text(role="caption", text="a boat"))

    clips = [Media(kind="video", path=FILM.path, start=i, end=i + 1) for i in range(2)]
    long = interleaved(id="b", source="s", clips=zip(clips, ["first", "second"]))
    assert roles(long) == ["media", "caption", "media", "caption"] and long.media == tuple(clips) and not long.turns

    talk = asked(FILM, ("who?", "she"), ("where?", "there"))
    assert roles(talk) == ["media", "user", "assistant", "user", "assistant"]
    assert talk.turns == (Turn("who?", "she"), Turn("where?", "there"))
    assert [piece.text for piece in talk.pieces[1:] if piece.is_target] == ["she", "there"]
    assert pickle.loads(pickle.dumps(talk)) == talk and hash(talk) == hash(pickle.loads(pickle.dumps(talk)))


@pytest.mark.parametrize(
    "pieces, message",
    [
        ((), "no image or video"),
        ((Text(role="user", text="q"), Text(role="assistant", text="a")), "no image or video"),
        ((FILM, Text(role="user", text="q")), "ends with an answer"),
        ((FILM, Text(role="assistant", text="a")), "needs a question"),
        ((FILM, Text(role="caption", text="c"), FILM), "captions come as"),
        ((FILM, FILM, Text(role="caption", text="c")), "captions come as"),
        ((FILM, Text(role="caption", text="c"), Text(role="user", text="q")), "captions come as"),
    ],
)
def test_orders_that_cannot_be_trained_on_are_refused(pieces, message):
    with pytest.raises(ValueError, match=message) as raised:
        Sample(id="x7", source="set", pieces=pieces)
    assert "'x7' of set" in str(raised.value)


@pytest.mark.parametrize("text", ["", " \n", "see <image>", "<video>", "end<|endoftext|>", "<|user|>hi"])
def test_empty_and_reserved_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"empty|reserved word"):
        Text(role="assistant", text=text)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "sound"},
        {"kind": "video", "start": -1.0},
        {"kind": "video", "start": 2.0, "end": 2.0},
        {"kind": "video", "end": float("nan")},
        {"kind": "video", "fps": 2.0},
        {"kind": "frames"},
        {"kind": "frames", "fps": 0.0},
        {"kind": "image", "end": 1.0},
    ],
)
def test_impossible_media_are_refused(fields):
    with pytest.raises(ValueError, match=r"film\.mp4"):
        Media(path=FILM.path, **fields)


def test_grouping_joins_the_rows_of_one_video_with_the_video_once():
    other = Media(kind="video", path=Path("/data/other.mp4"))
    long = "word " * 61
    rows = [
        asked(FILM, ("describe it", long), id="1"),
        asked(other, ("who?", "he"), id="2"),
        asked(FILM, ("what?", "a dog"), ("where is it?", "on the lawn"), id="3", source="other"),
        asked(FILM, ("which?\nA. x.\nB. y.", "B. y."), id="4"),
        asked(FILM, ("what?", "a dog"), id="5"),  # all of it is in row 3
    ]
    report = DataReport()
    first, second = grouped(rows, report)
    assert (first.id, first.source, second.id) == ("1", "set+other", "2")
    assert first.media == (FILM,) and second == rows[1]
    answers = [turn.answer for turn in first.turns]
    assert answers[-1] == long.strip() or answers[-1] == long  # the description comes last
    assert sorted(answers[:-1]) == ["B. y.", "a dog", "on the lawn"]
    assert answers.index("on the lawn") == answers.index("a dog") + 1  # a row's turns stay together
    assert "5 samples grouped by image or video into 2 (2.50 to 1)" in report.summary()


def test_grouped_order_does_not_depend_on_the_order_of_rows():
    rows = [asked(FILM, (f"question {i}?", f"answer {i}")) for i in range(5)]
    orders = {tuple(grouped(order)[0].turns) for order in itertools.permutations(rows)}
    assert len(orders) == 1
    # A fixed shuffle, not the order of the files: each question may stand right behind the video.
    assert orders.pop() != tuple(turn for row in rows for turn in row.turns)


def test_parts_of_a_video_and_samples_that_are_no_plain_conversation_stay_apart():
    cut = Media(kind="video", path=FILM.path, end=3.0)
    in_place = Sample(
        id="5",
        source="s",
        pieces=(Text(role="user", text="this"), PHOTO, PHOTO, Text(role="assistant", text="same")),
    )
    rows = [
        asked(FILM, ("q", "a")),
        asked(cut, ("q", "a")),
        captioned(id="3", source="s", media=FILM, caption="c"),
        captioned(id="4", source="s", media=FILM, caption="c"),
        in_place,
        in_place,
    ]
    assert grouped(iter(rows)) == rows


def test_grouping_nothing():
    report = DataReport()
    assert grouped([], report) == [] and "0 samples" in report.summary()
