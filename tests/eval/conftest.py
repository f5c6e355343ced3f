"""What tests of the evaluation share: generated videos with questions, and a tiny model that knows their words."""

import copy
import shutil
import threading
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration, VideoMa2mbaImageProcessor, VideoMa2mbaProcessor
from modeling_video_ma2mba.train.make_synthetic_data import Plan, write_data
from modeling_video_ma2mba.train.scene_questions import vocabulary
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video
from tests.eval import byte_model
from tests.eval.fixtures import SAMPLES, make_benchmark
from tests.eval.judge_server import Server

SPECIAL = ["<image>", "<video>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="session")
def annotations(tmp_path_factory):
    """18 questions: each type about a video of 8 and one of 12 frames."""
    plan = Plan(part="evaluation", output=tmp_path_factory.mktemp("scenes"), count=18, frames=(8, 12), size=56)
    return write_data(plan)


@pytest.fixture(scope="session")
def scene_processor():
    words = ["<|endoftext|>", "<unk>", *SPECIAL, *"You are a helpful assistant".split()]
    words += [word for word in vocabulary() if word not in words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL,
    )
    return VideoMa2mbaProcessor(VideoMa2mbaImageProcessor(size=56, frame_fit="pad"), fast, tokens_per_frame=4)


@pytest.fixture(scope="session")
def scene_model(shared_video_config, scene_processor):
    """A random model; tests must not change it."""
    config = copy.deepcopy(shared_video_config)
    config.text_config.vocab_size = len(scene_processor.tokenizer)
    torch.manual_seed(0)
    return VideoMa2mbaForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory):
    """The folder of every benchmark, by name, with two videos a part; tests must not change them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    return {name: make_benchmark(name, folder / name) for name in SAMPLES}


@pytest.fixture(scope="session")
def byte_folder(tmp_path_factory):
    """The folder of a tiny random model whose tokens are bytes; tests must not change it."""
    path = tmp_path_factory.mktemp("bytes")
    byte_model.save(path)
    return str(path)


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """The paths of two videos of 4 s, and of one that is none; tests must not change them."""
    path = tmp_path_factory.mktemp("films")
    for index in range(2):
        write_video(path / f"{index}.mp4", numbered_frames(8, 64, 64 + 32 * index), fps=2)
    (path / "broken.mp4").write_bytes(b"no video")
    return [str(path / name) for name in ("0.mp4", "1.mp4", "broken.mp4")]


@pytest.fixture
def benchmark_copy(benchmarks, tmp_path):
    """Makes a copy of a benchmark that a test may damage, and returns its folder."""

    def copied(name):
        return Path(shutil.copytree(benchmarks[name], tmp_path / name))

    return copied


@pytest.fixture
def serve():
    """Starts a `Server` with a script."""
    servers = []

    def start(script):
        server = Server(script)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
