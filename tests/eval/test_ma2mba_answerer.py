"""Views, answers and likelihoods: equal to the whole prompt in one plain forward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_video_ma2mba import VideoMa2mbaImageProcessor, VideoMa2mbaProcessor
from modeling_video_ma2mba.eval import ma2mba_answerer
from modeling_video_ma2mba.eval.ma2mba_answerer import Ma2mbaAnswerer
from modeling_video_ma2mba.eval.samples import Sample, Subtitle, View
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.video_reader import iter_frames
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video
from tests.eval.byte_model import TOKENS_PER_FRAME, byte_model, byte_processor


@pytest.fixture(scope="module")
def tiny_words(tiny_tokenizer):
    return VideoMa2mbaProcessor(VideoMa2mbaImageProcessor(size=56), tiny_tokenizer, tokens_per_frame=4)


@pytest.fixture(scope="module")
def processor():
    return byte_processor()


@pytest.fixture(scope="module")
def model(processor):
    """fp64: what differs differs visibly."""
    return byte_model(processor, torch.float64)


@pytest.fixture
def answerer(model, processor):
    return Ma2mbaAnswerer(model, processor, "bytes")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """10 s, a new number each second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = np.repeat(np.stack(list(numbered_frames(10, 64, 64))), 5, axis=0)
    write_video(path, frames, fps=5)
    return path


def sample(view, id="1", prompt="what ?\nA. a\nB. b\nC. c\n", options=("one", "two", "three"), **fields):
    given = {"question": "what ?", "answer": 0, "cluster": "film", "max_new_tokens": 6, **fields}
    return Sample(task="t", id=id, view=view, prompt=prompt, options=options, **given)


def whole(processor, view, prompt, parts, answer=""):
    """The inputs of one forward: `parts` are frames (F, H, W, 3) and texts between them."""
    system = [] if view.system is None else [{"role": "system", "content": view.system}]
    content = [{"type": "video"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([*system, {"role": "user", "content": content}], add_generation_prompt=True)
    shown = "".join(part if isinstance(part, str) else "<video>" for part in parts)
    videos = [part for part in parts if not isinstance(part, str)]
    return processor(text=text.replace("<video>", shown) + answer, videos=videos, return_tensors="pt")


def read_frames(path, times):
    return np.concatenate([frames for _, frames in iter_frames(path, times=times)])


def generated(model, processor, inputs, tokens):
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


VIEWS = {
    "1 fps": (View(video=Path()), range(10)),
    "part": (View(video=Path(), start=2.0, end=6.5, fps=2.0), np.arange(2, 6.5, 0.5)),
    "frames": (View(video=Path(), fps=None, num_frames=4), [1.25, 3.75, 6.25, 8.75]),
    "part of frames": (View(video=Path(), fps=None, num_frames=2, start=4.0, end=8.0), [5, 7]),
    "system": (View(video=Path(), system="Look."), range(10)),
    "a benchmark's rule": (View(video=Path(), fps=None, num_frames=3, sampling="longvideobench"), [0, 3.2, 6.4]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_is_watched(answerer, model, processor, film, name):
    view, times = VIEWS[name]
    view = View(**{**vars(view), "video": film})
    asked = sample(view, prefix="Best option:(")
    seen = answerer.watch(view)
    assert seen.times == pytest.approx(list(times))
    assert seen.memory.frames_seen == len(times)
    (output,) = answerer.answer(seen, [asked])
    inputs = whole(processor, view, asked.prompt, [read_frames(film, list(times))], asked.prefix)
    assert output.text == generated(model, processor, inputs, 6)
    assert output.times == seen.times and output.error is None
    head = "<|system|>Look.<|endoftext|>" if view.system else "<|system|>You are a helpful assistant.<|endoftext|>"
    assert output.rendered == f"{head}<|user|><video>{asked.prompt}<|endoftext|><|assistant|>Best option:("


def test_subtitles_stand_between_the_frames(answerer, model, processor, film):
    subtitles = (
        Subtitle(start=-1.0, end=0.4, text="early"),  # its middle is before the first frame
        Subtitle(start=1.5, end=3.5, text="hi é"),
        Subtitle(start=1.6, end=3.6, text=" again"),
        Subtitle(start=9.5, end=20.0, text="never"),  # no frame lies inside
    )
    view = View(video=film, subtitles=subtitles)
    frames = read_frames(film, list(range(10)))
    seen = answerer.watch(view)
    inputs = whole(processor, view, "x", ["early", frames[:3], "hi é", " again", frames[3:]])
    texts = len("early") + len("hi é".encode()) + len(" again")
    (video,) = seen.memory.videos
    assert (video.frames, video.text_tokens) == (10, texts)
    assert seen.memory.state.seen_tokens == len(seen.memory.prompt_ids) + 10 * TOKENS_PER_FRAME + texts
    (output,) = answerer.answer(seen, [sample(view, prompt="x")])
    assert output.text == generated(model, processor, inputs, 6)
    assert "<|user|>early<video>hi é again<video>x<|endoftext|>" in output.rendered


def test_a_folder_of_pictures(answerer, tmp_path, model, processor):
    frames = np.stack(list(numbered_frames(7, 64, 64)))
    for number, frame in enumerate(frames, start=1):  # the first one is 1, and 10 comes after 9
        Image.fromarray(frame).save(tmp_path / f"{number + 5:05d}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    view = View(video=tmp_path, folder_fps=3.0)
    seen = answerer.watch(view)
    assert seen.times == (0.0, 1.0, 2.0)
    (output,) = answerer.answer(seen, [sample(view)])
    inputs = whole(processor, view, sample(view).prompt, [frames[[0, 3, 6]]])
    assert output.text == generated(model, processor, inputs, 6)


@pytest.mark.parametrize(
    "what", ["missing", "empty folder", "no pictures", "damaged picture", "cut", "behind the end"]
)
def test_unreadable_views(answerer, film, tmp_path, what):
    view = View(video=tmp_path / "a.mp4")
    if what == "empty folder":
        view = View(video=tmp_path / "none", folder_fps=3.0)
    elif what in ("no pictures", "damaged picture"):
        view = View(video=tmp_path, folder_fps=3.0)
        if what == "damaged picture":
            Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "00001.png")
            content = (tmp_path / "00001.png").read_bytes()
            (tmp_path / "00001.png").write_bytes(content[: len(content) // 2])
    elif what == "cut":
        content = film.read_bytes()
        (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    elif what == "behind the end":
        view = View(video=film, start=11.0)
    with pytest.raises(VideoReadError):
        answerer.watch(view)


def test_many_questions_in_one_pass(answerer, film, monkeypatch):
    """Of unequal lengths and limits, more than fit in one pass: each as if it were alone."""
    monkeypatch.setattr(ma2mba_answerer, "QUESTIONS_AT_ONCE", 3)
    view = View(video=film, fps=0.3)
    seen = answerer.watch(view)
    asked = [sample(view, str(i), "x" * (7 * i + 1), max_new_tokens=3 + i % 2, prefix="(" * (i % 3)) for i in range(5)]
    outputs = answerer.answer(seen, asked)
    assert [output.text for output in outputs] == [answerer.answer(seen, [one])[0].text for one in asked]
    assert len({output.text for output in outputs}) > 1
    scored = answerer.score_options(seen, asked)
    for one, output in zip(asked, scored):
        (alone,) = answerer.score_options(seen, [one])
        assert output.log_likelihoods == pytest.approx(alone.log_likelihoods, abs=1e-10)


def test_an_answer_in_circles_is_stopped(processor, film):
    """The head says one letter, whatever was read; the paper's rule ends that after six tokens."""
    model = byte_model(processor)
    model.model.language_model.norm_f.register_forward_hook(lambda *given: torch.ones_like(given[-1]))
    model.lm_head.weight.data.zero_()
    model.lm_head.weight.data[processor.tokenizer("Q")["input_ids"][0]] = 1.0
    answerer = Ma2mbaAnswerer(model, processor, "bytes")
    view = View(video=film, fps=0.3)
    (output,) = answerer.answer(answerer.watch(view), [sample(view, max_new_tokens=40)])
    assert output.text == "QQQQQQ"


def plain_log_likelihood(model, processor, view, prompt, frames, before, option):
    """One forward over everything, in fp64."""
    inputs = whole(processor, view, prompt, [frames], before + option)
    start = whole(processor, view, prompt, [frames], before)["input_ids"].shape[1]
    with torch.no_grad():
        scores = model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    return sum(float(scores[place - 1, ids[place]]) for place in range(start, len(ids)))


@pytest.mark.parametrize("form", ["letter", "text"])
def test_likelihoods_equal_a_plain_forward(model, processor, film, form):
    answerer = Ma2mbaAnswerer(model, processor, "bytes", option_form=form)
    view = View(video=film, fps=0.5)
    asked = [
        sample(view, "1", prefix="Best option:("),
        sample(view, "2", prompt="?", options=("x", "a longer one", "xy")),
    ]
    seen = answerer.watch(view)
    frames = read_frames(film, list(seen.times))
    for one, output in zip(asked, answerer.score_options(seen, asked)):
        assert output.text is None and output.error is None
        letters = form == "letter"
        expected = [
            plain_log_likelihood(
                model, processor, view, one.prompt if letters else one.question, frames,
                one.prefix if letters else "", "ABC"[place] if letters else option,
            )
            for place, option in enumerate(one.options)
        ]  # fmt: skip
        assert output.log_likelihoods == pytest.approx(expected, abs=1e-10)
        assert (
            one.prompt in output.rendered if letters else output.rendered.endswith("what ?<|endoftext|><|assistant|>")
        )


def test_a_letter_that_melts_with_what_is_before_it(film):
    """ "(A" is one token here, "(B" two: the bracket is scored for both."""
    processor = byte_processor(merges=[("(", "A")])
    model = byte_model(processor, torch.float64)
    answerer = Ma2mbaAnswerer(model, processor, "bytes")
    view = View(video=film, fps=0.2)
    one = sample(view, prompt="?", options=("a", "b"), prefix="Best:(")
    seen = answerer.watch(view)
    frames = read_frames(film, list(seen.times))
    (output,) = answerer.score_options(seen, [one])
    expected = [plain_log_likelihood(model, processor, view, "?", frames, "Best:", f"({letter}") for letter in "AB"]
    assert output.log_likelihoods == pytest.approx(expected, abs=1e-10)


def test_an_option_that_begins_another(model, processor, film):
    answerer = Ma2mbaAnswerer(model, processor, "bytes", option_form="text")
    view = View(video=film, fps=0.2)
    seen = answerer.watch(view)
    (output,) = answerer.score_options(seen, [sample(view, options=("1", "10"))])
    one, ten = output.log_likelihoods
    assert ten < one < 0


def test_samples_that_cannot_be_asked(answerer, film):
    view = View(video=film, fps=0.2)
    seen = answerer.watch(view)
    good, bad = answerer.answer(seen, [sample(view), sample(view, "2", prompt="a <video> b")])
    assert good.error is None and bad.text is None and "2 <video>" in bad.error
    (none,) = answerer.score_options(seen, [sample(view, options=())])
    assert "0 options" in none.error
    with pytest.raises(ValueError, match="letter, text"):
        Ma2mbaAnswerer(answerer.model, answerer.processor, "bytes", option_form="word")


def test_letters_that_the_tokenizer_does_not_know(tiny_video_model, tiny_words, film):
    answerer = Ma2mbaAnswerer(tiny_video_model, tiny_words, "words")
    view = View(video=film, fps=0.2)
    (output,) = answerer.score_options(answerer.watch(view), [sample(view)])
    assert "cannot tell the letters" in output.error and output.log_likelihoods is None


def test_description(answerer):
    described = answerer.describe()
    assert described["dtype"] == "float64" and described["name"] == "bytes" and len(described["fingerprint"]) == 64
