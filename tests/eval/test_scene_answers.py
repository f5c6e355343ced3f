"""Asking about generated videos: right is right, controls show what they say, prompts are the pipeline's."""

import json

import numpy as np
import pytest
import torch

from modeling_video_ma2mba import VideoQAPipeline
from modeling_video_ma2mba.eval.scene_answers import (
    CONTROLS,
    GREY,
    MAX_NEW_TOKENS,
    answer,
    evaluate,
    evaluate_controls,
    make_prompts,
    read_questions,
)
from modeling_video_ma2mba.processing.frame_source import FrameSource


class Spy:
    """A model that says what `say(question, frames)` says, and keeps what it was shown: {question, frames bytes}."""

    def __init__(self, tokenizer, say=lambda question, frames: "red"):
        self.tokenizer, self.say, self.seen = tokenizer, say, []

    def generate(self, input_ids, attention_mask, pixel_values_videos=None, **settings):
        assert settings["do_sample"] is False and settings["max_new_tokens"] <= 16
        videos = [None] * len(input_ids) if pixel_values_videos is None else pixel_values_videos
        said = []
        for ids, mask, video in zip(input_ids, attention_mask, videos):
            words = self.tokenizer.convert_ids_to_tokens(ids[mask.bool()].tolist())
            asked = words[words.index("<|user|>") + 1 :]
            asked = asked[: asked.index("<|endoftext|>")]
            assert words[-1] == "<|assistant|>" and asked.count("<video>") == 4 * len(video or [])
            question = " ".join(word for word in asked if word != "<video>")
            frames = None if video is None else np.asarray(video[0 : len(video)])
            self.seen.append((question, frames))
            said.append(self.tokenizer(self.say(question, frames))["input_ids"])
        longest = max(map(len, said))
        ends = [[*ids, *[self.tokenizer.eos_token_id] * (longest + 1 - len(ids))] for ids in said]
        return torch.cat([input_ids, torch.tensor(ends)], dim=1)


@pytest.fixture(scope="module")
def true_frames(annotations, scene_processor):
    """For each row, the frames that the processor itself makes of its file."""

    def read(question, **sampling):
        found = scene_processor(text="<video>", videos=str(question.video), return_tensors="pt", **sampling)
        return found["pixel_values_videos"][0].numpy()

    return read


def spied(processor, annotations, control, **options):
    spy = Spy(processor.tokenizer)
    evaluate(spy, processor, annotations, control=control, **options)
    return spy.seen


def test_a_perfect_answerer_is_right_everywhere(annotations, scene_processor, true_frames):
    questions = read_questions(annotations)
    truth = {(q.question, true_frames(q).tobytes()): q.expected for q in questions}
    assert len(truth) == 18
    spy = Spy(scene_processor.tokenizer, lambda question, frames: truth[question, frames.tobytes()])
    answers = evaluate(spy, scene_processor, annotations, batch_size=5)
    assert all(one.right for one in answers)
    # In the order of the file, whatever the batches.
    assert [(one.id, one.question, one.expected) for one in answers] == [
        (q.id, q.question, q.expected) for q in questions
    ]
    rows = json.loads(annotations.read_text())
    assert [(one.id, one.type, one.form, one.frames) for one in answers] == [
        (row["id"], row["type"], row["form"], row["frames"]) for row in rows
    ]
    assert "<video>" not in answers[0].question and answers[0].given == rows[0]["conversations"][1]["value"]


def test_the_whole_answer_has_to_match(annotations):
    question = next(q for q in read_questions(annotations) if q.type == "after")
    colour, shape = question.expected.split()
    for given, right in {
        f"{colour} {shape}": True,
        f" {colour.upper()}   {shape}\n": True,
        colour: False,
        f"{shape} {colour}": False,
        f"{colour} {shape} .": False,
        "": False,
    }.items():
        assert answer(question, given).right is right, given


def test_blank_is_as_many_grey_frames(annotations, scene_processor):
    seen = spied(scene_processor, annotations, "blank")
    assert sorted(len(frames) for _, frames in seen) == [8] * 9 + [12] * 9
    assert {value for _, frames in seen for value in np.unique(frames).tolist()} == {GREY}


def test_shuffled_has_the_same_frames_in_another_order(annotations, scene_processor, true_frames):
    questions = read_questions(annotations, 9)
    whole = [true_frames(question) for question in questions]
    assert len({question.question for question in questions}) == 9
    first = dict(spied(scene_processor, annotations, "shuffled", limit=9))
    again = dict(spied(scene_processor, annotations, "shuffled", limit=9, batch_size=2))
    other = dict(spied(scene_processor, annotations, "shuffled", limit=9, seed=1))
    for question, frames in zip(questions, whole):
        shown = first[question.question]
        assert not np.array_equal(shown, frames)
        assert sorted(map(np.ndarray.tobytes, shown)) == sorted(map(np.ndarray.tobytes, frames))
        assert np.array_equal(shown, again[question.question])
        assert not np.array_equal(shown, other[question.question])


def test_question_only_has_no_video_and_no_placeholder(annotations, scene_processor, monkeypatch):
    # It does not even open the files.
    monkeypatch.setattr("modeling_video_ma2mba.eval.scene_answers.iter_frames", None)
    seen = spied(scene_processor, annotations, "question-only")
    assert len(seen) == 18 and all(frames is None for _, frames in seen)


@pytest.mark.parametrize("count", [3, 20])
def test_num_frames_samples_uniformly(annotations, scene_processor, true_frames, count):
    shown = dict(spied(scene_processor, annotations, "video", limit=9, num_frames=count))
    for question in read_questions(annotations, 9):
        assert np.array_equal(shown[question.question], true_frames(question, num_frames=count))
        assert len(shown[question.question]) == count


def test_controls_share_one_decoding(annotations, scene_processor, monkeypatch):
    from modeling_video_ma2mba.eval import scene_answers

    opened, real = [], scene_answers.iter_frames
    monkeypatch.setattr(scene_answers, "iter_frames", lambda path, **k: opened.append(path) or real(path, **k))
    spy = Spy(scene_processor.tokenizer)
    answers = evaluate_controls(spy, scene_processor, annotations, CONTROLS, batch_size=4)
    assert len(opened) == len(set(opened)) == 18 and list(answers) == list(CONTROLS)
    assert len(spy.seen) == 4 * 18


def test_prompts_are_the_pipelines(scene_model, scene_processor, annotations, true_frames):
    pipe = VideoQAPipeline(model=scene_model, processor=scene_processor)
    for question in read_questions(annotations, 3):
        source = FrameSource(true_frames(question))
        ours = make_prompts(scene_processor, [question.question], [source])["input_ids"]
        theirs = pipe.preprocess({"video": str(question.video), "question": question.question})["prompt"].inputs
        assert torch.equal(ours, theirs["input_ids"])


def test_answers_are_the_pipelines(scene_model, scene_processor, annotations):
    pipe = VideoQAPipeline(model=scene_model, processor=scene_processor)
    answers = evaluate(scene_model, scene_processor, annotations, limit=4)
    for one, question in zip(answers, read_questions(annotations, 4)):
        said = pipe(video=str(question.video), question=question.question, max_new_tokens=MAX_NEW_TOKENS)
        assert one.given == said["answer"]


@pytest.mark.parametrize("control", CONTROLS)
def test_batches_equal_single_rows(scene_model, scene_processor, annotations, control):
    single = evaluate(scene_model, scene_processor, annotations, control=control, batch_size=1)
    batched = evaluate(scene_model, scene_processor, annotations, control=control, batch_size=7)
    assert single == batched
    assert len({one.given for one in single}) > 3  # else equality would say nothing


def test_the_model_sees_the_controls(scene_model, scene_processor, annotations):
    answers = evaluate_controls(scene_model, scene_processor, annotations, CONTROLS)
    given = [[one.given for one in answers[control]] for control in CONTROLS]
    assert all(one != other for i, one in enumerate(given) for other in given[:i])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"control": "white"}, "white: choose from video, blank"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"limit": 0}, "limit=0"),
        ({"num_frames": 0}, "num_frames=0"),
    ],
)
def test_wrong_arguments_are_refused(scene_processor, annotations, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(None, scene_processor, annotations, **options)


def change(row, **changes):
    return {name: value for name, value in {**row, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"form": None}, "row 2: missing column: form"),
        ({"frames": "many"}, "row 2: wrong type: frames"),
        ({"video": "evaluation/none.mp4"}, "row 2 cannot be used"),
        ({"conversations": None}, "row 2 cannot be used"),
        ({"conversations": [{"from": "human", "value": "a ?"}, {"from": "gpt", "value": "b"}] * 2}, "2 questions"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(annotations, changes, message):
    rows = json.loads(annotations.read_text())
    path = annotations.with_name("changed.json")
    for place in (1, len(rows) - 1):  # the last row, too, where no other follows
        wrong = [change(row, **changes) if index == place else row for index, row in enumerate(rows)]
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message.replace("row 2", f"row {place + 1}")):
            read_questions(path)
    assert len(read_questions(path, 17)) == 17
