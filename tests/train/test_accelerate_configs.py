"""The configurations in train/accelerate, and the engines behind them in two processes on a CPU.

accelerate starts ZeRO and FSDP on GPUs only. ENGINE_ON_CPU lets it take them for gloo; the rest is the real thing:
`accelerate launch`, the configuration, train/stage2.py's `main`, saving.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.synthetic_video import write_video

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "train" / "accelerate"
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason='DeepSpeed is not installed: pip install -e ".[deepspeed]"'
)
CELLS = "--override=checkpointing={method: ma-gc, layer_interval: 1, sequence_interval: 7}"
ENGINE_ON_CPU = """
import os, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
if "ACCELERATE_USE_CPU" not in os.environ:
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
if "ACCELERATE_USE_DEEPSPEED" in os.environ:
    import deepspeed
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled, which takes a minute
from modeling_video_ma2mba.train.run_stage import main
sys.exit(main("2"))
"""


@pytest.fixture(scope="module")
def given(shared_video_config, processor, tmp_path_factory):
    """A folder with a model to begin with and four clips with a question each, some longer than others."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    VideoMa2mbaForConditionalGeneration(shared_video_config).save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    (folder / "stage2_on_cpu.py").write_text(ENGINE_ON_CPU)
    rows = []
    for i, colour in enumerate(("red", "blue", "red", "blue")):
        pixel = (200, 30, 30) if colour == "red" else (30, 30, 200)
        write_video(folder / f"{i}.mp4", np.full((20 + 20 * i, 64, 64, 3), pixel, dtype=np.uint8), fps=10)
        turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": f"a {colour} car"}]
        rows.append({"id": i, "video": f"{i}.mp4", "conversations": turns})
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def train(given, tmp_path_factory):
    """`train(launcher, port, environment, *more)` -> the folder of a run of two steps in two processes."""

    def run(launcher, port, environment, *more):
        output = tmp_path_factory.mktemp("run")
        command = [sys.executable, "-m", *launcher[:1], port, *launcher[1:], str(given / "stage2_on_cpu.py")]
        command += ["--recipe", "tiny", "--init-from", str(given / "start"), "--data", str(given / "questions.json")]
        command += ["--output", str(output), "--report-to", "none", "--workers", "0"]
        command += ["--override", "global_batch_size=4", "--override", "max_steps=2", "--override", "warmup_ratio=0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        states = list(output.glob("checkpoint-2/rng_state_*.pth"))
        assert len(states) == 2, "two processes each leave a random state"
        return output

    return run


@pytest.fixture(scope="module")
def plain(train):
    """The weights after plain data-parallel training without checkpointing."""
    launcher = ["torch.distributed.run", "--nproc_per_node=2"]
    more = ("--device", "cpu", "--override", "checkpointing=null")
    return weights(train(launcher, "--master_port=29771", {"ACCELERATE_USE_CPU": "true"}, *more))


def weights(folder):
    return dict(VideoMa2mbaForConditionalGeneration.from_pretrained(folder).named_parameters())


def launch(train, config, folder, *more):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    launcher = ["accelerate.commands.launch", f"--config_file={path}", "--num_processes=2"]
    return train(launcher, "--main_process_port=29772", environment, *more)


def read(name):
    return yaml.safe_load((CONFIGS / name).read_text())


def assert_same(found, expected, start):
    """Adam's step is the learning rate (1e-3 here) whatever the gradient, so 1e-5 is a hundredth of a step; the sums
    over processes and segments run in another order."""
    assert found.keys() == expected.keys()
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    for name in expected:
        assert (found[name] - expected[name]).abs().max() <= 1e-5, name


def test_fsdp2_with_checkpoint_cells_trains_as_plain_data_parallel(train, plain, given, tmp_path):
    config = read("fsdp2.yaml") | {"mixed_precision": "no"}
    output = launch(train, config, tmp_path, CELLS)
    assert_same(weights(output), plain, weights(given / "start"))
    # FSDP2 changes the model's class; the folder has the model's code all the same.
    assert {path.name for path in (given / "start").glob("*.py")} == {path.name for path in output.glob("*.py")}
    maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (given / "start", output)]
    assert maps[0] == maps[1]


@needs_deepspeed
def test_zero1_with_checkpointing_trains_as_plain_data_parallel(train, plain, given, tmp_path):
    config = read("zero1.yaml")
    config["deepspeed_config"]["deepspeed_config_file"] = str(CONFIGS / "zero1.json")
    assert_same(weights(launch(train, config, tmp_path, CELLS)), plain, weights(given / "start"))


@needs_deepspeed
def test_deepspeed_reads_the_zero_settings(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = json.loads((CONFIGS / "zero1.json").read_text())
    automatic = {key for key, value in settings.items() if value == "auto"}
    assert automatic == {
        "gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size",
    }  # fmt: skip
    settings |= {  # what the Trainer fills in
        "gradient_clipping": 1.0, "gradient_accumulation_steps": 4, "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": 4, "bf16": {"enabled": True},
    }  # fmt: skip
    config = DeepSpeedConfig(settings)
    assert config.zero_optimization_stage == 1 and config.zero_enabled and config.bfloat16_config.enabled
    assert config.zero_allow_untested_optimizer and config.gradient_clipping == 1.0


def test_every_configuration_names_what_exists():
    import modeling_video_ma2mba.modeling_ma2mba as language_model

    assert hasattr(language_model, read("fsdp2.yaml")["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"])
    assert (ROOT / read("zero1.yaml")["deepspeed_config"]["deepspeed_config_file"]).is_file()
