"""Questions about drawn clips: answers are true, splits are disjoint, seeds decide, guessing does not pay."""

import itertools
from collections import Counter

import numpy as np
import pytest

from modeling_video_ma2mba.processing.video_reader import iter_frames
from modeling_video_ma2mba.train.scene_questions import (
    NONE,
    ORDINALS,
    SPLITS,
    TYPES,
    ask,
    ask_one,
    combinations,
    constant_answers,
    describe,
    facts,
    frame_caption,
    is_held_out,
    request_description,
    scene_caption,
    vocabulary,
    wordings,
)
from modeling_video_ma2mba.train.synthetic_video import COLOURS, DIRECTIONS, SHAPES, make_clip, write_video

LENGTHS = (8, 16, 32, 64)


def clips(split, count, first=0, size=16):
    for seed in range(first, first + count):
        yield make_clip((9, seed), LENGTHS[seed % len(LENGTHS)], size, combinations=combinations(split))


def read_answer(clip, type, text):
    """Answer a question by its words alone: a second reading of text and clip, which shares no code with the first."""
    words = text.split()
    looks = [f"{scene.colour} {scene.shape}" for scene in clip.scenes]
    named = [f"{a} {b}" for a, b in itertools.pairwise(words) if a in COLOURS and b in SHAPES]
    assert all(looks.count(look) == 1 for look in named), text
    positions = {**{word: i for i, word in enumerate(ORDINALS)}, "last": len(looks) - 1}
    places = [word for word in words if word in positions]
    if type in ("edge", "index"):
        (attribute,) = {"colour", "shape"} & set(words)
        return getattr(clip.scenes[positions[places[0]]], attribute)
    if type in ("after", "before"):
        place = looks.index(named[0]) + (1 if "after" in words else -1)
        assert place >= 0 and ("after" in words) != ("before" in words)
        return looks[place]
    if type == "count":
        (kind,) = [word for word in words if word in COLOURS or word in SHAPES]
        return str(sum(kind in look.split() for look in looks))
    if type == "motion":
        return clip.scenes[looks.index(named[0])].direction
    if type == "order":
        return "yes" if looks.index(named[0]) < looks.index(named[1]) else "no"
    if type == "duration":
        lengths = {word: len(clip.scenes[positions[word]].centres) for word in places}
        assert len(lengths) == 2 and max(lengths.values()) >= 2 * min(lengths.values())
        return max(lengths, key=lengths.get)
    assert type == "needle" and "digit" in words
    return NONE if clip.needle is None else str(clip.needle.digit)


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_true(split):
    seen = Counter()
    for number, clip in enumerate(clips(split, 120)):
        questions = ask(clip, 20, number, split) + [ask_one(clip, type, number, split) for type in TYPES]
        for question in filter(None, questions):
            assert question.answer == read_answer(clip, question.type, question.text), (question, clip.scenes)
            assert 1 <= len(question.answer.split()) <= 2
            seen[question.type] += 1
    assert set(seen) == set(TYPES) and min(seen.values()) >= 100


def test_captions_are_true():
    for clip in clips("training", 30):
        told = describe(clip).removesuffix(" .").split(" . ")
        assert told == [f"{s.colour} {s.shape} {s.direction}" for s in clip.scenes] + [
            f"digit {NONE if clip.needle is None else clip.needle.digit}"
        ]
        captions = [scene_caption(clip, i) for i in range(len(clip.scenes))]
        assert [caption.split(" . ")[0].removesuffix(" .") for caption in captions] == told[:-1]
        with_digit = [i for i, caption in enumerate(captions) if "digit" in caption]
        frames = [frame_caption(clip, i) for i in range(len(clip.frames))]
        shown = [i for i, caption in enumerate(frames) if "digit" in caption]
        if clip.needle is None:
            assert with_digit == shown == []
        else:
            (scene,) = with_digit
            assert clip.scenes[scene].start_frame <= clip.needle.frame < clip.scenes[scene].end_frame
            assert captions[scene].endswith(f" digit {clip.needle.digit} .") and shown == [clip.needle.frame]


def test_places_in_frame_captions_follow_the_motion():
    clip = make_clip(1, 8, 56, num_scenes=1, combinations=[("red", "circle", "right")])
    columns = [frame_caption(clip, i).split()[3] for i in range(8)]
    assert columns == sorted(columns, key=["left", "centre", "right"].index) and columns[0] == "left"
    assert columns[-1] == "right" and len({frame_caption(clip, i).split()[2] for i in range(8)}) == 1
    for i in set(range(8)) - {clip.needle and clip.needle.frame}:
        y, x = np.nonzero(np.abs(clip.frames[i].astype(int) - clip.scenes[0].background).sum(axis=2) > 100)
        assert ((x.mean() + 0.5) / 56, (y.mean() + 0.5) / 56) == pytest.approx(clip.scenes[0].centres[i], abs=0.02)


def nearest_colour(pixels):
    seen = np.median(pixels, axis=0)
    return min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name]).sum())


@pytest.mark.parametrize("seed", range(4))
def test_answers_hold_for_the_decoded_video(tmp_path, seed):
    clip = make_clip((5, seed), 24, 112, combinations=combinations("held-out"))
    write_video(tmp_path / "a.mp4", clip.frames, fps=1, options={"crf": "18"})
    frames = [np.asarray(frame) for _, chunk in iter_frames(tmp_path / "a.mp4", fps=1.0) for frame in chunk]
    assert len(frames) == 24
    # The digit is the only pure white.
    white = [int((frame.min(axis=2) > 248).sum()) for frame in frames]
    assert [i for i, count in enumerate(white) if count > 60] == ([] if clip.needle is None else [clip.needle.frame])
    colours, centres = [], []
    for frame in frames:
        background = np.median([frame[0, 0], frame[0, -1], frame[-1, 0], frame[-1, -1]], axis=0)
        y, x = np.nonzero(np.abs(frame.astype(int) - background).sum(axis=2) > 120)
        colours.append(nearest_colour(frame[y, x]))
        centres.append((x.mean(), y.mean()))
    clear = [i for i in range(24) if clip.needle is None or clip.needle.frame != i]
    for scene in clip.scenes:
        inside = [i for i in clear if scene.start_frame <= i < scene.end_frame]
        assert {colours[i] for i in inside} == {scene.colour}
        if len(inside) > 1:
            moved = np.subtract(centres[inside[-1]], centres[inside[0]])
            assert max(DIRECTIONS, key=lambda name: moved @ np.array(DIRECTIONS[name])) == scene.direction
    if 0 in clear:
        answers = {f.slots["place"]: f.answer for f in facts(clip, "edge") if f.slots["attribute"] == "colour"}
        assert answers["first"] == colours[0]


def test_the_seed_decides():
    clip = make_clip((9, 1), 32, 16)
    assert ask(clip, 20, 3) == ask(clip, 20, 3) and ask(clip, 20, 3) != ask(clip, 20, 4)
    assert ask(clip, 20, 3) != ask(clip, 20, 3, "held-out")
    assert {request_description(seed) for seed in range(100)} == set(wordings("training")["describe"])
    with pytest.raises(ValueError, match="held-out"):
        ask(clip, 1, 0, "test")
    with pytest.raises(ValueError, match="needle"):
        facts(clip, "colour")


PINNED_DESCRIPTION = (
    "yellow cross up . white triangle left . yellow circle right . "
    "yellow triangle down . white cross right . purple square down . digit 6 ."
)
PINNED_QUESTIONS = [
    ("count colour", "the number of white scenes shown ?", "2"),
    ("duration first last", "the last or the first scene : which lasted longer ?", "last"),
    ("edge colour", "what colour was first ?", "yellow"),
    ("motion", "the yellow triangle : what way was it moving ?", "down"),
]


def test_questions_of_a_seed_are_pinned():
    clip = make_clip(0, 32, 16, combinations=combinations("training"))
    assert describe(clip) == PINNED_DESCRIPTION
    assert [(q.form, q.text, q.answer) for q in ask(clip, 4, 0)] == PINNED_QUESTIONS


def test_a_fact_is_asked_once():
    for number, clip in enumerate(clips("training", 40)):
        questions = ask(clip, 20, number)
        assert len(questions) == 20
        assert sum(question.type == "needle" for question in questions) <= 1
        pairs = [
            frozenset(w for w in zip(q.text.split(), q.text.split()[1:]) if w[0] in COLOURS and w[1] in SHAPES)
            for q in questions
            if q.type == "order"
        ]
        assert len(pairs) == len(set(pairs))


def test_combinations_of_the_splits_are_disjoint():
    training, held_out = (set(combinations(split)) for split in SPLITS)
    assert not training & held_out and len(training | held_out) == 96 and len(held_out) == 16
    assert all(is_held_out(one) for one in held_out)
    # Every pair of shape and direction is held out for one colour; every pair of colour and shape is trained on.
    assert {one[1:] for one in held_out} == {(shape, way) for shape in SHAPES for way in DIRECTIONS}
    assert min(Counter(one[:2] for one in training).values()) == 3
    assert set(Counter(one[0] for one in held_out).values()) == {2, 3}
    for split, allowed in (("training", training), ("held-out", held_out)):
        drawn = {(s.colour, s.shape, s.direction) for clip in clips(split, 100) for s in clip.scenes}
        assert drawn <= allowed and len(drawn) > 0.8 * len(allowed)


def test_wordings_of_the_splits_are_disjoint():
    texts = {}
    for split in SPLITS:
        known = wordings(split)
        assert set(known) == {*TYPES, "describe"} and all(len(known[type]) >= 3 for type in TYPES)
        texts[split] = {
            wording.format(**fact.slots)
            for clip in clips("training", 20)
            for type in TYPES
            for fact in facts(clip, type)
            for wording in known[type]
        } | set(known["describe"])
    assert not texts["training"] & texts["held-out"]
    words = {split: {word for text in texts[split] for word in text.split()} for split in SPLITS}
    assert words["held-out"] <= words["training"] <= set(vocabulary())


def test_vocabulary_has_every_word_and_no_other():
    said = set()
    for split in SPLITS:
        for number, clip in enumerate(clips(split, 60)):
            texts = [describe(clip), request_description(number, split)]
            texts += [frame_caption(clip, i) for i in range(len(clip.frames))]
            for type in TYPES:
                for fact in facts(clip, type):
                    texts += [fact.answer, *(wording.format(**fact.slots) for wording in wordings(split)[type])]
            said |= {word for text in texts for word in text.split()}
    assert said == set(vocabulary()) and vocabulary() == sorted(set(vocabulary()))


GUESS_LIMITS = {
    "edge": 0.30,
    "index": 0.30,
    "after": 0.12,
    "before": 0.12,
    "count": 0.50,
    "motion": 0.33,
    "order": 0.57,
    "duration": 0.57,
    "needle": 0.28,
}


def test_guessing_does_not_pay():
    drawn = {
        split: [q for n, c in enumerate(clips(split, 400, first)) for t in TYPES if (q := ask_one(c, t, n, split))]
        for split, first in zip(SPLITS, (1000, 2000))
    }
    constants = constant_answers(drawn["training"])
    for type in TYPES:
        questions = [question for question in drawn["held-out"] if question.type == type]
        assert len(questions) > 300
        right = sum(constants[question.form] == question.answer for question in questions) / len(questions)
        most = Counter(question.answer for question in questions).most_common(1)[0][1] / len(questions)
        assert right < GUESS_LIMITS[type] and most < GUESS_LIMITS[type], (type, right, most)


@pytest.mark.parametrize("num_scenes, num_frames", [(1, 2), (3, 6), (8, 64)])
def test_number_of_scenes_can_be_given(num_scenes, num_frames):
    clip = make_clip(0, num_frames, 28, num_scenes=num_scenes)
    assert len(clip.scenes) == num_scenes and clip.scenes[-1].end_frame == num_frames


def test_impossible_clips_are_refused():
    with pytest.raises(ValueError, match="at least 6"):
        make_clip(0, 4, num_scenes=3)
    with pytest.raises(ValueError, match="num_scenes=0"):
        make_clip(0, 8, num_scenes=0)
    with pytest.raises(ValueError, match="neighbours"):
        make_clip(0, 8, combinations=[("red", "circle", "left"), ("red", "circle", "up")])
