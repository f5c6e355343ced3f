"""`pipeline("video-qa")` and the folder it loads from, with and without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
from transformers import pipeline

from modeling_video_ma2mba import VideoQAPipeline
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.synthetic_video import write_video

# A random model would end at once, or answer outside its vocabulary; to be compared, answers have to be words.
NOT_WORDS = [*range(7), *range(25, 32)]


@pytest.fixture(scope="module")
def folder(tiny_video_model, processor, tmp_path_factory):
    """A saved model with its processor."""
    path = tmp_path_factory.mktemp("model")
    tiny_video_model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(1)
    for seconds in (1, 2, 4):
        frames = np.repeat(random.integers(0, 255, (seconds, 4, 4, 3), dtype=np.uint8), 5, axis=0)
        write_video(path / f"{seconds}.mp4", frames.repeat(16, axis=1).repeat(16, axis=2), fps=5)
    return [str(path / f"{seconds}.mp4") for seconds in (1, 2, 4)]


@pytest.fixture(scope="module")
def qa(folder):
    pipe = pipeline("video-qa", model=str(folder), device="cpu")
    assert type(pipe) is VideoQAPipeline
    pipe.model.generation_config.suppress_tokens = NOT_WORDS
    return pipe


def test_one_answer(qa, videos):
    answer = qa(video=videos[0], question="who wins ?", max_new_tokens=6)
    assert set(answer) == {"answer"} and len(answer["answer"].split()) >= 1
    assert answer == qa({"video": videos[0], "question": "who wins ?"}, max_new_tokens=6)


def test_lists_and_batches_agree(qa, videos):
    one_by_one = [qa(video=v, question="what is it ?", max_new_tokens=6) for v in videos]
    assert qa(video=videos, question="what is it ?", max_new_tokens=6) == one_by_one
    assert qa(video=videos, question="what is it ?", max_new_tokens=6, batch_size=3) == one_by_one
    assert qa(video=videos, question="what is it ?", max_new_tokens=6, batch_size=2) == one_by_one
    pairs = [{"video": v, "question": "what is it ?"} for v in videos]
    assert qa(pairs, max_new_tokens=6) == one_by_one
    questions = ["who wins ?", "what is it ?"]
    several = qa(video=videos[2], question=questions, max_new_tokens=6)
    assert several == [qa(video=videos[2], question=q, max_new_tokens=6) for q in questions]


def test_answers_depend_on_sampling_and_generation_options(qa, videos):
    frames = []
    hook = qa.model.model.vision_tower.embeddings.register_forward_hook(lambda _, __, y: frames.append(len(y)))
    qa(video=videos[2], question="who wins ?", max_new_tokens=1, fps=2.0)
    qa(video=videos[2], question="who wins ?", max_new_tokens=1, num_frames=3)
    qa(video=videos[2], question="who wins ?", max_new_tokens=1, max_frames=2)
    hook.remove()
    assert frames == [8, 3, 2]
    beams = qa(video=videos[0], question="who wins ?", max_new_tokens=4, num_beams=3)
    assert len(beams["answer"].split()) <= 4


def test_repetition_stop_is_the_default_and_can_be_switched_off(qa, videos):
    lengths = {}
    for stop in (True, False):
        answer = qa(video=videos[0], question="who wins ?", max_new_tokens=60, stop_on_repetition=stop)
        lengths[stop] = len(answer["answer"].split())
    assert lengths[False] == 60
    assert lengths[True] < 60


def test_errors(qa, videos, tmp_path):
    with pytest.raises(ValueError, match="give video= and question="):
        qa(video=videos[0])
    with pytest.raises(ValueError, match="3 videos and 2 questions"):
        qa(video=videos, question=["a", "b"])
    with pytest.raises(ValueError, match="the question must be text"):
        qa({"video": videos[0], "question": 3})
    with pytest.raises(ValueError, match="expected"):
        qa("film.mp4")
    with pytest.raises(VideoReadError, match=r"none\.mp4"):
        qa(video=str(tmp_path / "none.mp4"), question="who ?")
    with pytest.raises(ValueError, match="nonsense"):
        qa(video=videos[0], question="who ?", nonsense=1)
    with pytest.raises(ValueError, match="one answer a question"):
        qa(video=videos[0], question="who ?", max_new_tokens=2, num_beams=2, num_return_sequences=2)


def _python(code: str, cwd, with_package: bool, tmp_path) -> str:
    """Run code in a process that finds this package or does not; return what it prints."""
    import os
    from pathlib import Path

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    if with_package:
        environment["PYTHONPATH"] = str(root)
    else:
        # An editable install would make the package importable: a finder that refuses it stands in for its absence.
        code = (
            "import sys, importlib.abc\n"
            "class Absent(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] == 'modeling_video_ma2mba':\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Absent())\n"
        ) + code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_fresh_process_with_the_package(folder, videos, tmp_path):
    code = f"""
import modeling_video_ma2mba
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers import pipeline
for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor):
    loaded = auto.from_pretrained({str(folder)!r})
    print(type(loaded).__module__.split(".")[0], type(loaded).__name__)
print(pipeline("video-qa", model={str(folder)!r})(video={videos[0]!r}, question="who wins ?", max_new_tokens=3))
"""
    lines = _python(code, tmp_path, True, tmp_path).splitlines()
    assert lines[:5] == [
        "modeling_video_ma2mba VideoMa2mbaConfig",
        "modeling_video_ma2mba VideoMa2mbaModel",
        "modeling_video_ma2mba VideoMa2mbaForConditionalGeneration",
        "modeling_video_ma2mba VideoMa2mbaForConditionalGeneration",
        "modeling_video_ma2mba VideoMa2mbaProcessor",
    ]
    assert lines[5].startswith("{'answer':")


def test_a_fresh_process_without_the_package(folder, videos, tmp_path, qa):
    code = f"""
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers import pipeline
for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor):
    loaded = auto.from_pretrained({str(folder)!r}, trust_remote_code=True)
    print(type(loaded).__module__.split(".")[0], type(loaded).__name__)
pipe = pipeline("video-qa", model={str(folder)!r}, trust_remote_code=True)
pipe.model.generation_config.suppress_tokens = {NOT_WORDS}
print(pipe(video={videos[2]!r}, question="who wins ?", max_new_tokens=5)["answer"])
pipe.model.save_pretrained("again")
print("pipeline_video_qa.py" in __import__("os").listdir("again"))
"""
    lines = _python(code, tmp_path, False, tmp_path).splitlines()
    assert lines[:5] == [
        "transformers_modules VideoMa2mbaConfig",
        "transformers_modules VideoMa2mbaModel",
        "transformers_modules VideoMa2mbaForConditionalGeneration",
        "transformers_modules VideoMa2mbaForConditionalGeneration",
        "transformers_modules VideoMa2mbaProcessor",
    ]
    assert lines[5] == qa(video=videos[2], question="who wins ?", max_new_tokens=5)["answer"]
    assert lines[6] == "True"


def test_the_saved_config_names_code_and_pipeline_and_memory_does_not(folder, tiny_video_model):
    config = json.loads((folder / "config.json").read_text())
    assert set(config["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoProcessor"
    }  # fmt: skip
    assert set(config["custom_pipelines"]) == {"video-qa"}
    for reference in config["auto_map"].values():
        assert (folder / f"{reference.split('.')[0]}.py").is_file()
    assert not hasattr(tiny_video_model.config, "custom_pipelines")
