"""A model of transformers in the harness: it gets our frames through its own processor and template."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import is_torchvision_available

from modeling_video_ma2mba.eval import cli, evaluate_benchmarks, transformers_answerer
from modeling_video_ma2mba.eval.evaluate_benchmarks import load_answerer
from modeling_video_ma2mba.eval.results import read_result
from modeling_video_ma2mba.eval.samples import Sample, Subtitle, View
from modeling_video_ma2mba.eval.transformers_answerer import TransformersAnswerer
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, read_number, write_video
from tests.eval import byte_model
from tests.eval.fixtures import make_benchmark

SPECIAL = ["<end>", "<image>", "<video>", "<unk>"]
WORDS = [*SPECIAL, "system", "user", "assistant", *"A B C D who wins ? red blue car what is it hi Be brief".split()]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }} {% else %}<{{ part['type'] }}>{% endif %}"
    "{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
IDS = {"image_token_index": 1, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}


def build_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", unk_token="<unk>",
        additional_special_tokens=SPECIAL[1:3],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random LLaVA, whose processor knows images alone; 28 x 28 px are 4 tokens."""
    pixels = CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    processor = LlavaProcessor(
        pixels, build_tokenizer(), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(WORDS), initializer_range=0.5, eos_token_id=0, bos_token_id=0, pad_token_id=0, **SIZES
    )
    vision = CLIPVisionConfig(image_size=28, patch_size=14, initializer_range=0.5, **SIZES)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **IDS))
    path = tmp_path_factory.mktemp("llava")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path, model.eval(), processor


@pytest.fixture(scope="module")
def answerer(folder):
    path, model, processor = folder
    return TransformersAnswerer(model, processor, str(path))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    write_video(path, numbered_frames(12, 64, 96), fps=2)
    return path


def sample(view, prompt="who wins ?", **changes):
    given = {"task": "t", "id": "1", "cluster": "v", "question": prompt, "answer": 0, "max_new_tokens": 5, **changes}
    return Sample(view=view, prompt=prompt, **given)


def inputs_of(processor, text, pictures):
    return processor(text=[text], images=[list(pictures)], return_tensors="pt")


def text_of(frames, prompt="who wins ?"):
    return f"user {'<image>' * frames}{prompt} <end>assistant "


def test_frames_are_ours(answerer, film):
    seen = answerer.watch(View(video=film))
    assert seen.times == (0, 1, 2, 3, 4, 5) and list(map(read_number, seen.pictures)) == [0, 2, 4, 6, 8, 10]
    part = answerer.watch(View(video=film, fps=None, num_frames=2, start=2.0, end=6.0))
    assert part.times == (3, 5) and part.pictures.shape == (2, 64, 96, 3)


def test_answers_are_those_of_generate(answerer, film):
    view = View(video=film, fps=None, num_frames=3)
    seen = answerer.watch(view)
    listed = [sample(view), sample(view, "what is it ?", max_new_tokens=2), sample(view, prefix="red car")]
    outputs = answerer.answer(seen, listed)
    for one, output in zip(listed, outputs):
        text = text_of(3, one.prompt) + one.prefix
        inputs = inputs_of(answerer.processor, text, seen.pictures)
        out = answerer.model.generate(**inputs, do_sample=False, max_new_tokens=one.max_new_tokens)
        said = answerer.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert (output.text, output.rendered, output.times) == (said, text, seen.times)
    assert len({output.text for output in outputs}) > 1


def test_the_model_sees_the_frames(answerer, film):
    view = View(video=film, fps=None, num_frames=3)
    seen = answerer.watch(view)
    dark = transformers_answerer.Seen(view, seen.times, np.zeros_like(seen.pictures))
    options = sample(view, options=("red", "blue"))
    bright_values, dark_values = (answerer.score_options(one, [options])[0].log_likelihoods for one in (seen, dark))
    assert bright_values != dark_values


@pytest.mark.parametrize("form", ["letter", "text"])
def test_likelihoods_are_those_of_a_plain_forward(folder, film, form):
    path, model, processor = folder
    view = View(video=film, fps=None, num_frames=2)
    answerer = TransformersAnswerer(model, processor, str(path), form)
    seen = answerer.watch(view)
    asked = sample(
        view, "who wins ? A red car B blue", question="who ?", prefix="it is (", options=("red car", "blue")
    )
    (output,) = answerer.score_options(seen, [asked])
    prompt = text_of(2, asked.prompt) + asked.prefix if form == "letter" else text_of(2, "who ?")
    length = inputs_of(processor, prompt, seen.pictures)["input_ids"].shape[1]
    for word, value in zip("AB" if form == "letter" else asked.options, output.log_likelihoods):
        inputs = inputs_of(processor, f"{prompt} {word}", seen.pictures)
        with torch.no_grad():
            scores = model(**inputs).logits[0].log_softmax(-1)
        ids = inputs["input_ids"][0]
        expected = sum(float(scores[place - 1, ids[place]]) for place in range(length, len(ids)))
        assert value == pytest.approx(expected, abs=1e-5)
    assert len(output.log_likelihoods) == 2 and output.rendered == prompt


def test_system_text_and_subtitles_stand_in_their_places(answerer, film):
    subtitle = Subtitle(start=1.2, end=1.8, text="hi")
    view = View(video=film, fps=None, num_frames=2, system="Be brief", subtitles=(subtitle,))
    (output,) = answerer.answer(answerer.watch(view), [sample(view)])
    frame = "<image>"
    before, after = output.rendered.split("hi")
    assert before.startswith(f"system Be brief <end>user {frame}") and frame not in after.replace(frame, "", 1)


def test_what_cannot_be_asked_is_an_error_of_that_sample(answerer, film):
    view = View(video=film, fps=None, num_frames=2)
    asked = [sample(view, "what is <image> ?"), sample(view)]
    wrong, good = answerer.answer(answerer.watch(view), asked)
    assert (
        wrong.text is None
        and wrong.error.startswith("it cannot be asked: its text holds <image>")
        and len(wrong.times) == 2
    )
    assert good.error is None
    (output,) = answerer.score_options(answerer.watch(view), [sample(view)])
    assert "it has no options" in output.error


def test_the_beginning_is_written_once(folder, film, monkeypatch):
    """By the chat template or by the tokenizer; both would, and the model would read what it never saw."""
    path, model, processor = folder
    words = {"bos_token": "hi", "eos_token": "<end>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer().backend_tokenizer, **words)
    first = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="hi $A", special_tokens=[("hi", first)]
    )
    heard = []
    monkeypatch.setattr(model, "generate", lambda input_ids, **_: heard.append(input_ids[0].tolist()) or input_ids)
    view = View(video=film, fps=None, num_frames=1)
    for template in (TEMPLATE, "hi " + TEMPLATE):
        started = LlavaProcessor(
            processor.image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=template,
        )  # fmt: skip
        answerer = TransformersAnswerer(model, started, str(path))
        answerer.answer(answerer.watch(view), [sample(view)])
    assert heard[0] == heard[1] and heard[0][0] == first and heard[0].count(first) == 1


def test_letters_that_melt_into_the_prefix(answerer, film):
    view = View(video=film, fps=None, num_frames=1)
    asked = sample(view, prefix="it is", options=("red", "blue"))  # "isA" and "isB" are no words
    (output,) = answerer.score_options(answerer.watch(view), [asked])
    assert "the tokenizer cannot tell the options apart" in output.error


def test_videos_that_cannot_be_read(answerer, film, monkeypatch):
    with pytest.raises(VideoReadError):
        answerer.watch(View(video=Path("none.mp4")))
    monkeypatch.setattr(transformers_answerer, "MAX_PICTURE_BYTES", 5 * 64 * 96 * 3)
    with pytest.raises(VideoReadError, match=r"6 frames of 96 x 64 take .* GiB, .*Sample fewer frames"):
        answerer.watch(View(video=film))
    assert len(answerer.watch(View(video=film, fps=None, num_frames=5)).times) == 5


def test_it_says_what_it_is(answerer, folder):
    facts = answerer.describe()
    assert facts["class"] == "LlavaForConditionalGeneration" and facts["kind"] == "transformers"
    assert facts["name"] == str(folder[0]) and facts["dtype"] == "float32" and facts["frames_as"] == "images"
    with pytest.raises(ValueError, match="choose one of letter, text"):
        TransformersAnswerer(answerer.model, answerer.processor, "n", "word")


def test_a_model_without_a_template_is_refused(folder):
    _, model, processor = folder
    silent = LlavaProcessor(processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match="the-name has no chat template"):
        TransformersAnswerer(model, silent, "the-name")


def test_two_kinds_of_model_in_one_command(folder, tmp_path, monkeypatch, capsys):
    """They see the same frames and are asked the same, so that the runs can be compared."""
    monkeypatch.setattr(evaluate_benchmarks, "draw", lambda *_: [])
    byte_model.save(tmp_path / "ours")
    data = make_benchmark("video-mme", tmp_path / "video-mme", videos=1)
    words = ["--tasks", "video-mme", f"--data=video-mme={data}", "--output", str(tmp_path / "out"), "--frames", "2"]
    models = [str(tmp_path / "ours"), str(folder[0])]
    assert cli.main(["--model", *models, "--device", "cpu", "--likelihood", *words]) == 0
    ours, theirs = (tmp_path / "out" / f"{Path(name).name}-2" for name in models)
    kinds = [read_result(one)["settings"]["model"]["kind"] for one in (ours, theirs)]
    assert kinds == ["video-ma2mba", "transformers"]
    rows = [read_result(one)["tasks"]["video-mme"]["samples"] for one in (ours, theirs)]
    assert all(len(row["log_likelihoods"]) == 4 and row["error"] is None for row in [*rows[0], *rows[1]])
    assert [row["times"] for row in rows[0]] == [row["times"] for row in rows[1]] == [[1.0, 3.0]] * 3
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert all(f"| {name} | 2 frames |" in table for name in models)
    capsys.readouterr()
    assert cli.main(["compare", str(ours), str(theirs)]) == 0
    assert "| video-mme | strict | 3 of 1 videos |" in capsys.readouterr().out


@pytest.mark.skipif(not is_torchvision_available(), reason="transformers' processors of videos need torchvision")
def test_a_video_is_one_video(film, tmp_path):
    """A random LLaVA-OneVision; with subtitles between the frames they are images."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    size = {"height": 28, "width": 28}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size), build_tokenizer(), LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4, vision_feature_select_strategy="full", chat_template=TEMPLATE,
    )  # fmt: skip
    text = Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=2, initializer_range=0.5, **SIZES)
    vision = SiglipVisionConfig(image_size=28, patch_size=14, **SIZES)
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision, text_config=text, video_token_index=2, image_grid_pinpoints=[[28, 28]], **IDS
        )
    ).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    answerer = load_answerer(str(tmp_path), None, "cpu", "auto")
    assert answerer.describe()["frames_as"] == "video"
    view = View(video=film)
    seen = answerer.watch(view)
    (output,) = answerer.answer(seen, [sample(view)])
    assert output.rendered == "user <video>who wins ? <end>assistant "
    inputs = processor(text=[output.rendered], videos=[seen.pictures], do_sample_frames=False, return_tensors="pt")
    assert inputs["pixel_values_videos"].shape[:2] == (1, 6)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=5)
    said = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert output.text == said
    dark = transformers_answerer.Seen(view, seen.times, np.zeros_like(seen.pictures))
    asked = sample(view, options=("red", "blue"))
    values = [answerer.score_options(one, [asked])[0].log_likelihoods for one in (seen, dark)]
    assert values[0] != values[1]
    told = View(video=film, fps=None, num_frames=2, subtitles=(Subtitle(start=1.2, end=1.8, text="hi"),))
    (output,) = answerer.answer(answerer.watch(told), [sample(told)])
    assert output.rendered.startswith("user <image>hi <image>") and output.error is None


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")
def test_what_a_video_model_needs_is_said(tmp_path):
    """An ImportError, which every command prints as one line."""
    (tmp_path / "config.json").write_text('{"model_type": "llava_onevision"}')
    kinds = {
        f"{part}_processor": {f"{part}_processor_type": f"LlavaOnevision{part.capitalize()}Processor"}
        for part in ("image", "video")
    }
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"processor_class": "LlavaOnevisionProcessor", **kinds})
    )
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match=r"(?i)torchvision"):
        load_answerer(str(tmp_path), None, "cpu", "auto")
