"""Needles in one pass: every row has seen exactly its own video, and the model says what it says about that alone."""

import argparse
import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_video_ma2mba.eval import needle_videos
from modeling_video_ma2mba.eval.needle import find_needles
from modeling_video_ma2mba.eval.needle_pass import (
    MAX_NEW_TOKENS,
    Cost,
    Heard,
    MemoryReader,
    NeedlePass,
    place_needles,
    split_placements,
)
from modeling_video_ma2mba.eval.needle_report import cells, lost_at
from modeling_video_ma2mba.eval.needle_videos import Needle, digit_needle, drawn_haystack
from modeling_video_ma2mba.processing.frame_source import FrameSource
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, read_number

HIDDEN = 10_000  # number of the first needle's picture


class Noting:
    """A reader whose state is what each row has seen, as numbers; it answers with what `say` makes of that."""

    def __init__(self, say=None, at_once=5):
        self.say, self.at_once, self.asked, self.most = say or (lambda seen: str(seen)), at_once, [], 0

    def start(self):
        return [()]

    def read(self, state, pictures):
        self.most = max(self.most, len(state))
        return [row + tuple(map(read_number, pictures)) for row in state]

    def join(self, states):
        return [row for state in states for row in state]

    def select(self, state, rows):
        return [state[row] for row in rows]

    def ask(self, state, needles):
        self.asked += list(zip(state, needles))
        said = [self.say(row) for row in state]
        return [Heard(said=text, is_exact=text == needle.answer) for text, needle in zip(said, needles)]

    def frames_at_once(self, rows):
        return self.at_once


def numbered_needle(trial, count=1):
    def show(picture):
        return list(numbered_frames(count, *picture.shape[:2], first=HIDDEN + 10 * trial))

    return Needle(name=f"n{trial}", question="which ?", answer=str(HIDDEN + 10 * trial), show=show)


def perfect(seen):
    return next((str(number) for number in seen if number >= HIDDEN), "none")


def options(**changes):
    settings = {"lengths": [16, 48], "depths": [0.0, 0.5, 1.0], "rows": 32, "video": [], "distractors": 0.0, "seed": 0}
    return argparse.Namespace(**{**settings, **changes})


@pytest.mark.parametrize("at_once", [1, 5, 100])
@pytest.mark.parametrize("rows", [2, 3, 100])
def test_every_row_sees_its_own_video(at_once, rows):
    lengths, depths = [3, 10, 21], [0.0, 0.3, 0.35, 0.5, 1.0]
    needles = [(0, numbered_needle(0)), (1, numbered_needle(1, count=3))]
    reader, told, cost = Noting(at_once=at_once), [], Cost()
    for part in split_placements(place_needles(needles, lengths, depths), rows):
        one = NeedlePass(reader, part, cost)
        steps = list(one.run(numbered_frames(one.frames, 16, 16)))
        assert sum(step for step in steps if isinstance(step, int)) == one.frames
        told += [step for step in steps if not isinstance(step, int)]
    asked = set()
    for placed, length, heard in told:
        count = 3 if placed.trial else 1
        hidden = range(HIDDEN + 10 * placed.trial, HIDDEN + 10 * placed.trial + count)
        assert heard.said == str((*range(placed.place), *hidden, *range(placed.place, length)))
        for depth in placed.lengths[length]:
            assert placed.place == int(depth * length)
            asked.add((placed.trial, length, depth))
    assert asked == set(itertools.product([0, 1], lengths, depths))
    # Depths 0.35 and 0.5 are one place in 3 frames, 0.3 and 0.35 in 10: asked once for both.
    assert len(told) == 2 * (3 + 4 + 5) and reader.most <= rows


def test_what_it_costs():
    """Five depths of 100 frames: the tower sees 100 frames and 5 needles, rows leave at 0, 25, 50, 75 and 100."""
    cost = Cost()
    (part,) = split_placements(place_needles([(0, numbered_needle(0))], [100], [0, 0.25, 0.5, 0.75, 1]), 32)
    list(NeedlePass(Noting(), part, cost).run(numbered_frames(100, 16, 16)))
    assert cost == Cost(frames_encoded=105, frames_read=105 + 100 + 75 + 50 + 25, frames_read_apart=500, passes=1)


def test_short_lengths_do_not_read_on():
    parts = split_placements(place_needles([(0, numbered_needle(0))], [10, 1000], [0.5, 1]), 3)
    assert [NeedlePass(Noting(), part).frames for part in parts] == [10, 1000]


def test_a_haystack_that_ends_too_early():
    (part,) = split_placements(place_needles([(0, numbered_needle(0))], [20], [1]), 32)
    with pytest.raises(ValueError, match="the haystack has 12 frames, and 20 are needed"):
        list(NeedlePass(Noting(), part).run(numbered_frames(12, 16, 16)))


def test_places_are_those_of_the_protocol():
    def places(length, depths):
        return {
            depth: one.place for one in place_needles([(0, None)], [length], depths) for depth in one.lengths[length]
        }

    assert places(200, [0, 0.2, 0.4, 0.6, 0.8, 1.0]) == {0: 0, 0.2: 40, 0.4: 80, 0.6: 120, 0.8: 160, 1.0: 200}
    assert places(100, [0.29, 0.57]) == {0.29: 29, 0.57: 57}  # 28.99... and 56.99... in floating point
    with pytest.raises(ValueError, match="rows=1 must be 2 or more"):
        split_placements([], 1)


def haystack_numbers(monkeypatch):
    monkeypatch.setattr(needle_videos, "drawn_haystack", lambda seed, trial: numbered_frames(64, 16, 16))


def test_a_perfect_reader_finds_all(monkeypatch):
    haystack_numbers(monkeypatch)
    found, _ = find_needles(Noting(perfect), options(), [numbered_needle(trial) for trial in range(4)])
    assert len(found) == 4 * 2 * 3
    rows = cells(found)
    assert all(row[rule]["share"] == 1 for row in rows for rule in ("whole", "exact"))
    assert lost_at(rows, "whole") is None


def test_a_forgetful_reader_loses_what_is_far_back(monkeypatch):
    """It knows its last 10 frames: a needle that is less than 10 frames from the end."""
    haystack_numbers(monkeypatch)
    reader = Noting(lambda seen: perfect(seen[-10:]))
    found, _ = find_needles(reader, options(), [numbered_needle(trial) for trial in range(3)])
    shares = {(row["length"], row["depth"]): row["whole"]["share"] for row in cells(found)}
    assert shares == {
        (16, 0): 0, (16, 0.5): 1, (16, 1): 1, (48, 0): 0, (48, 0.5): 0, (48, 1): 1,
        (16, None): 2 / 3, (48, None): 1 / 3, (None, None): 1 / 2,
    }  # fmt: skip
    assert lost_at(cells(found), "exact") == 48


def test_distractors_are_not_the_needle(monkeypatch):
    """A reader that takes whatever stands out says something else as soon as there are distractors."""
    haystack_numbers(monkeypatch)
    distractor = lambda picture, random: next(numbered_frames(1, 16, 16, first=30_000))  # noqa: E731
    monkeypatch.setitem(needle_videos.KINDS, "digit", (None, distractor))
    needles = [numbered_needle(trial) for trial in range(4)]
    salient = Noting(lambda seen: str(next(number for number in seen if number >= HIDDEN)))
    found, _ = find_needles(salient, options(distractors=0.2, needles="digit", depths=[1.0]), needles)
    assert not any(one.whole for one in found) and {one.said for one in found} == {"30000"}
    found, _ = find_needles(salient, options(needles="digit", depths=[1.0]), needles)
    assert all(one.whole for one in found)


@pytest.fixture(scope="module")
def exact_model(scene_model):
    return copy.deepcopy(scene_model).double()


def alone(model, processor, pictures, needle):
    """Return what the model says about a video in one prompt, and the likeliest tokens behind its question."""
    content = [{"type": "video"}, {"type": "text", "text": needle.question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    video = FrameSource(np.stack([processor.fit_frame(picture) for picture in pictures]))
    inputs = processor(text=text, videos=[video], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    said = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    forced = processor(text=text + needle.answer, videos=[video], return_tensors="pt")
    count = forced["input_ids"].shape[1] - inputs["input_ids"].shape[1]
    with torch.no_grad():
        best = model(**forced).logits[0, -count - 1 : -1].argmax(-1)
    return Heard(said=said, is_exact=torch.equal(best, forced["input_ids"][0, -count:]))


def test_the_model_says_what_it_says_about_the_video_alone(exact_model, scene_processor):
    pictures = list(itertools.islice(drawn_haystack(0, 0), 9))
    digit = digit_needle(0, 1)
    # One answer is what the random model really says, and has two words; two pictures are a needle, too.
    first = alone(exact_model, scene_processor, [*pictures[:4], *digit.show(pictures[3])], digit)
    said = " ".join(first.said.split()[:2])
    needles = [
        digit,
        Needle(name="said", question=digit.question, answer=said, show=digit.show),
        Needle(name="event", question="what is red ?", answer="red circle", show=lambda p: [p, 255 - p]),
    ]
    reader, seen = MemoryReader(exact_model, scene_processor), []
    for part in split_placements(place_needles(list(enumerate(needles)), [4, 9], [0, 1]), 5):
        for told in NeedlePass(reader, part).run(iter(pictures)):
            if isinstance(told, int):
                continue
            placed, length, heard = told
            before = pictures[max(0, placed.place - 1)]
            video = [*pictures[: placed.place], *placed.needle.show(before), *pictures[placed.place : length]]
            assert heard == alone(exact_model, scene_processor, video, placed.needle), (placed, length)
            seen.append(heard)
    assert len(seen) == 3 * 2 * 2 and len({heard.said for heard in seen}) > 3
    assert any(heard.is_exact for heard in seen) and not all(heard.is_exact for heard in seen)


def test_an_answer_without_tokens_is_refused(scene_model, scene_processor):
    reader = MemoryReader(scene_model, scene_processor)
    needle = Needle(name="empty", question="what is it ?", answer="", show=None)
    with pytest.raises(ValueError, match="empty: the answer '' has no tokens of its own"):
        reader.ask(reader.start(), [needle])


def test_a_tower_that_reads_clips_is_refused():
    with pytest.raises(ValueError, match="clips of 4 frames"):
        MemoryReader(SimpleNamespace(config=SimpleNamespace(frames_per_clip=4)), processor=None)
