"""The model in VLMEvalKit, against its base class where it is installed, else against what its guide says of that."""

import importlib
import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_video_ma2mba.train.synthetic_video import numbered_frames

NAME = "modeling_video_ma2mba.eval.vlmevalkit_plugin"
IS_REAL = importlib.util.find_spec("vlmeval") is not None
OPTIONS = {"stop_on_repetition": True, "do_sample": False, "max_new_tokens": 5}


class StandIn:
    """What a model of VLMEvalKit may count on: `generate` hands a list of items to `generate_inner`."""

    def generate(self, message, dataset=None):
        return self.generate_inner(message, dataset)


@pytest.fixture(scope="module")
def plugin():
    with pytest.MonkeyPatch.context() as patch, torch.enable_grad():  # VLMEvalKit turns gradients off for good
        if not IS_REAL:
            for one in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base"):
                patch.setitem(sys.modules, one, ModuleType(one))
            sys.modules["vlmeval.vlm.base"].BaseModel = StandIn
        yield importlib.import_module(NAME)
        sys.modules.pop(NAME)


@pytest.fixture
def model(plugin, byte_folder):
    return plugin.VideoMa2mba(byte_folder, max_new_tokens=5, device="cpu")


def text(value, **more):
    return {"type": "text", "value": value, **more}


def video(path):
    return {"type": "video", "value": path}


def prepare(model, nframe, fps):
    """What VLMEvalKit (inference_video.py) does to a model before each question of a data set with this sampling."""
    if getattr(model, "nframe", None) is not None and model.nframe > 0:
        if nframe > 0:
            model.nframe = nframe
        elif getattr(model, "fps", 0) == 0:
            raise ValueError("fps is not suitable")
        else:
            model.nframe = None
    if getattr(model, "fps", None) is not None and model.fps > 0:
        if fps > 0:
            model.fps = fps
        elif getattr(model, "nframe", 0) == 0:
            raise ValueError("nframe is not suitable")
        else:
            model.fps = None


def said(model, film, question, **watch):
    model, processor = model.answerer.model, model.answerer.processor
    memory = model.watch(film, processor=processor, progress=False, **watch)
    return model.ask(memory, question, processor=processor, **OPTIONS)


def test_texts_stand_behind_the_video(model, films):
    message = [text("Look."), video(films[0]), text("what ?"), text("A. red")]
    answer = model.generate(message, dataset="Video-MME")
    assert answer == said(model, films[0], "Look.\nwhat ?\nA. red", fps=1.0)
    assert answer != model.generate([video(films[1]), *message[2:]], dataset="Video-MME")


def test_roles(model, films):
    """MVBench's form: a system text, and the beginning of the answer."""
    message = [
        text("Be brief.", role="system"),
        video(films[0]),
        text("what ?"),
        text("Best option:(", role="assistant"),
    ]
    processor, net = model.answerer.processor, model.answerer.model
    frames = net.watch(films[0], processor=processor, fps=1.0, system="Be brief.", progress=False)
    content = [{"type": "video"}, {"type": "text", "text": "what ?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    _, ids = processor.split_prompt(messages, answer_start="Best option:(")
    out = net.generate(
        input_ids=torch.tensor([ids]), past_key_values=frames.state.fork(), max_new_tokens=5, do_sample=False
    )
    expected = processor.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
    assert model.generate(message, dataset="MVBench_MP4") == expected


def test_a_data_set_says_how_videos_are_sampled(model, films, monkeypatch):
    """Also where the one before said it in the other way, or none did: VLMEvalKit keeps one model for all of them."""
    views, watch = [], model.answerer.watch
    monkeypatch.setattr(model.answerer, "watch", lambda view: views.append((view.fps, view.num_frames)) or watch(view))
    for nframe, fps in ((3, -1), (0, 2.0), (5, -1), (0, -1)):
        for _ in range(2):
            prepare(model, nframe, fps)
            model.generate([video(films[0]), text("what ?")], dataset="any")
    assert views == [(None, 3), (2.0, None), (None, 5), (1.0, None)]


def test_a_video_is_watched_once_for_questions_in_a_row(model, films, monkeypatch):
    watched, watch = [], model.answerer.watch
    monkeypatch.setattr(model.answerer, "watch", lambda view: watched.append(view.video.name) or watch(view))
    answers = [
        model.generate([video(film), text(question)]) for film in films[:2] for question in ("who ?", "is it red ?")
    ]
    assert watched == ["0.mp4", "1.mp4"]
    again = [said(model, film, question, fps=1.0) for film in films[:2] for question in ("who ?", "is it red ?")]
    assert answers == again and len(set(answers)) > 1


def test_images(model, tmp_path):
    pictures = [Image.fromarray(np.ascontiguousarray(one)) for one in numbered_frames(2, 64, 64)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    items = [{"type": "image", "value": str(tmp_path / f"{number}.png")} for number in range(2)]
    answer = model.generate([items[0], text("what ?"), items[1]])
    assert answer == said(model, iter(pictures), "what ?")


def test_what_cannot_be_read_or_asked_is_a_failure_and_named(model, plugin, films, tmp_path, caplog):
    assert model.generate([video(films[2]), text("what ?")], dataset="MLVU") == plugin.FAILED
    assert "MLVU" in caplog.text and "broken.mp4" in caplog.text
    (tmp_path / "no.png").write_bytes(b"no picture")
    assert model.generate([{"type": "image", "value": str(tmp_path / "no.png")}, text("a")]) == plugin.FAILED
    assert "no.png" in caplog.text
    assert model.generate([video(films[0]), text("is <video> a word ?")]) == plugin.FAILED
    assert "cannot be asked" in caplog.text
    assert model.generate([video(films[0]), text("what ?")]) == said(model, films[0], "what ?", fps=1.0)


def test_other_mixtures_are_refused(model, films, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    image = {"type": "image", "value": str(tmp_path / "0.png")}
    for visuals, counts in (
        ([], "0 videos and 0"),
        ([video(films[0])] * 2, "2 videos and 0"),
        ([image, video(films[0])], "1 videos and 1"),
    ):
        with pytest.raises(ValueError, match=f"MLVU: a question about {counts} images"):
            model.generate([*visuals, text("what ?")], dataset="MLVU")
