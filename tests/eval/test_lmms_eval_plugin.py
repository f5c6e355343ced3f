"""The model in lmms-eval, against its base class where it is installed, else against what its guide says of that."""

import abc
import importlib
import importlib.util
import string
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_video_ma2mba.eval import lmms_eval_manifest
from modeling_video_ma2mba.processing.video_reader import iter_frames
from modeling_video_ma2mba.train.synthetic_video import numbered_frames

ROOT = Path(__file__).resolve().parents[2]
IS_REAL = importlib.util.find_spec("lmms_eval") is not None
needs_lmms_eval = pytest.mark.skipif(
    not IS_REAL, reason="lmms-eval is missing: pip install --no-deps lmms-eval && pip install loguru pytz"
)
QUESTIONS = ["what ?", "who wins ?", "is it red ?"]


class StandIn(abc.ABC):
    """What a model of lmms-eval 0.7 may count on."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = SimpleNamespace(add_partial=lambda attribute, request, result: None)

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @property
    def rank(self):
        return self._rank

    def clean(self):
        del self.model


@pytest.fixture(scope="module")
def plugin():
    name = "modeling_video_ma2mba.eval.lmms_eval_plugin"
    with pytest.MonkeyPatch.context() as patch:
        if not IS_REAL:
            for one in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
                patch.setitem(sys.modules, one, ModuleType(one))
            sys.modules["lmms_eval.api.model"].lmms = StandIn
        yield importlib.import_module(name)
        sys.modules.pop(name)


@pytest.fixture(scope="module", params=["simple", "chat"])
def form(request, plugin, byte_folder):
    """A model in one of the two forms, with `ask(rows, **settings)`: what it says to (visuals, question) rows."""
    kind = {"simple": plugin.VideoMa2mbaSimple, "chat": plugin.VideoMa2mbaChat}[request.param]
    model = kind(byte_folder, batch_size="2", device="cpu")

    def ask(rows, model=model, **settings):
        model.task_dict = {"task": {"test": rows}}
        settings = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, "until": [], **settings}
        if request.param == "simple":
            middle = settings, lambda row: row[0]
        else:
            middle = messages, settings
        arguments = [(row[1], *middle, place, "task", "test") for place, row in enumerate(rows)]
        return model.generate_until([SimpleNamespace(args=one) for one in arguments])

    model.ask = ask
    return model


def messages(row):
    """One turn of a user, as lmms-eval's tasks write it."""
    kinds = ({"type": "video" if isinstance(one, str) else "image", "url": one} for one in row[0])
    return [{"role": "user", "content": [*kinds, {"type": "text", "text": row[1]}]}]


def said(form, film, question, **more):
    memory = form.model.watch(film, processor=form.processor, fps=1.0, progress=False)
    return form.model.ask(memory, question, processor=form.processor, do_sample=False, max_new_tokens=5, **more)


def test_answers_are_those_of_the_model(form, films, monkeypatch):
    """Each video is watched once, wherever its questions stand; a batch answers as each of its questions alone."""
    rows = [([film], question) for question in QUESTIONS for film in films[:2]]
    watched, watch = [], form.answerer.watch
    monkeypatch.setattr(form.answerer, "watch", lambda view: watched.append(view.video.name) or watch(view))
    answers = form.ask(rows)
    assert answers == [said(form, visuals[0], question, stop_on_repetition=True) for visuals, question in rows]
    assert watched == ["0.mp4", "1.mp4"] and len(set(answers)) > 2
    monkeypatch.setattr(form, "batch_size", 1)
    assert form.ask(rows) == answers


def test_an_answer_ends_before_a_stop(form, films):
    (whole,) = form.ask([([films[0]], QUESTIONS[0])])
    assert len(whole) >= 3
    assert form.ask([([films[0]], QUESTIONS[0])], until=whole[2]) == [whole.partition(whole[2])[0]]
    assert form.ask([([films[0]], QUESTIONS[0])], until=["no such text", whole[1:3]]) == [
        whole.partition(whole[1:3])[0]
    ]


def test_images(form):
    pictures = [Image.fromarray(np.ascontiguousarray(one)) for one in numbered_frames(2, 64, 64)]
    (answer,) = form.ask([(pictures, QUESTIONS[0])])
    memory = form.model.watch(iter(pictures), processor=form.processor, progress=False)
    options = {"max_new_tokens": 5, "stop_on_repetition": True, "do_sample": False}
    assert answer == form.model.ask(memory, QUESTIONS[0], processor=form.processor, **options)


def test_a_broken_video_has_no_answer_and_is_named(form, films, caplog):
    answers = form.ask([([films[2]], "a"), ([films[0]], QUESTIONS[0]), ([films[2]], "b")])
    assert answers[0] == answers[2] == "" and answers[1] != ""
    assert "broken.mp4" in caplog.text and "2 of 3 requests are about videos that cannot be read" in caplog.text


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 3}])
def test_answers_are_greedy_or_refused(form, films, settings):
    with pytest.raises(ValueError, match="answers are greedy here"):
        form.ask([([films[0]], "a")], **settings)


def test_what_it_cannot_look_at_is_refused(form, films):
    for visuals in ([], films[:2]):
        with pytest.raises(ValueError, match=f"a request with {len(visuals)} visuals"):
            form.ask([(visuals, "a")])
    with pytest.raises(NotImplementedError, match="several rounds"):
        form.generate_until_multi_round([])


def test_likelihoods_are_mean_losses(form, films):
    """By a plain forward over the whole prompt; the smallest loss is the best option for lmms-eval."""
    options, film = [" red", " a car", "?"], films[0]
    form.task_dict = {"task": {"test": [{"film": film, "target": "who"}]}}
    arguments = [
        ("who ?", one, lambda row: [row["film"]], 0, "task", "test") for one in [*options, lambda row: row["target"]]
    ]
    found = form.loglikelihood([SimpleNamespace(args=one) for one in arguments])
    content = [{"type": "video"}, {"type": "text", "text": "who ?"}]
    text = form.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    frames = np.concatenate([frames for _, frames in iter_frames(film, times=range(4))])
    for (loss, is_greedy), option in zip(found, [*options, "who"]):
        inputs = form.processor(text=text + option, videos=[frames], return_tensors="pt")
        with torch.no_grad():
            scores = form.model(**inputs).logits[0].log_softmax(-1)[-len(option) - 1 : -1]  # a byte is a token
        targets = inputs["input_ids"][0, -len(option) :]
        assert loss == pytest.approx(float(-scores.gather(1, targets[:, None]).mean()), abs=1e-4)
        assert is_greedy == bool((scores.argmax(-1) == targets).all())


def test_a_greedy_continuation_is_called_one(form, films):
    rows = [([films[0]], question) for question in string.ascii_lowercase]
    said = zip(rows, form.ask(rows, max_new_tokens=1))
    row, best = next((row, text) for row, text in said if text.isascii() and len(text) == 1)  # a byte of its own
    form.task_dict = {"task": {"test": [row]}}
    other = "b" if best == "a" else "a"
    arguments = [(row[1], word, lambda row: row[0], 0, "task", "test") for word in (best, other)]
    (loss, is_greedy), (higher, is_other) = form.loglikelihood([SimpleNamespace(args=one) for one in arguments])
    assert is_greedy and not is_other and loss < higher


def test_a_continuation_without_tokens_is_refused(form, films):
    form.task_dict = {"task": {"test": [([films[0]],)]}}
    with pytest.raises(ValueError, match="has no tokens of its own"):
        form.loglikelihood([SimpleNamespace(args=("a", "", lambda row: row[0], 0, "task", "test"))])


def test_a_part_of_a_video_and_a_system_text(plugin, byte_folder, films):
    """What the chat form alone can say."""
    model = plugin.VideoMa2mbaChat(byte_folder, fps=2.0, device="cpu")
    told = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    content = [
        {"type": "video", "url": films[0], "start_time": 1.0, "end_time": 3.0},
        {"type": "text", "text": "what ?"},
    ]
    rows = {
        "good": [told, {"role": "user", "content": content}],
        "turns": [{"role": "assistant", "content": []}],
        "sound": [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}],
    }
    model.task_dict = {"task": {"test": rows}}

    def ask(name):
        arguments = ("", lambda row: row, {"max_new_tokens": 5}, name, "task", "test")
        return model.generate_until([SimpleNamespace(args=arguments)])

    memory = model.model.watch(
        films[0], processor=model.processor, fps=2.0, start=1.0, end=3.0, system="Be brief.", progress=False
    )
    assert memory.frames_seen == 4
    options = {"max_new_tokens": 5, "stop_on_repetition": True, "do_sample": False}
    assert ask("good") == [model.model.ask(memory, "what ?", processor=model.processor, **options)]
    with pytest.raises(ValueError, match="task: a conversation of several turns"):
        ask("turns")
    with pytest.raises(ValueError, match="content of type 'audio'"):
        ask("sound")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fps": 1, "num_frames": 4}, "exclude each other"),
        ({"batch_size": "auto"}, "batch_size='auto' must be a whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"pretrained": "/no/such"}, "no model folder /no/such"),
    ],
)
def test_wrong_arguments(plugin, options, message):
    with pytest.raises(ValueError, match=message):
        plugin.VideoMa2mbaSimple(**{"pretrained": "tiny", "device": "cpu", **options})


def test_the_entry_point_names_the_manifest():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, function = points["video_ma2mba"].partition(":")
    assert getattr(importlib.import_module(module), function) is lmms_eval_manifest.manifest


@needs_lmms_eval
def test_lmms_eval_finds_and_makes_the_model(plugin, byte_folder):
    """As its command does: the manifest in its registry, then the words of --model_args."""
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(lmms_eval_manifest.manifest())
    assert registry.get_model_class("video_ma2mba") is plugin.VideoMa2mbaChat
    simple = registry.get_model_class("video_ma2mba", force_simple=True)
    assert simple is plugin.VideoMa2mbaSimple
    more = {"batch_size": "4", "max_batch_size": None, "device": "cpu"}
    model = simple.create_from_arg_string(f"pretrained={byte_folder},num_frames=3,dtype=float32", more)
    assert (model.num_frames, model.fps, model.batch_size, model.rank, model.world_size) == (3, None, 4, 0, 1)
    assert model.device.type == "cpu"
    model.clean()
    assert not {"model", "answerer"} & set(vars(model))
