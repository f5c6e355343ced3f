"""A run killed by SIGKILL at any moment and started again ends with the very weights of a run that was not.

The runs are processes of their own; `killed_stage.py` says where they die. Kinds: one process, one that streams with
two dataloader workers, two processes; two that stream are marked slow.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.run_stage import main
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("killed_stage.py")
SECONDS = (3, 2, 7, 1, 5, 2, 4, 6)  # of the clips, a frame a second; frame k of clip i shows 10 i + k
LAST = "parts/model.safetensors"  # the trained model
STEPS = 7  # of 4 clips: two an epoch, so that the last one is in the middle of an epoch


@pytest.fixture(scope="module")
def folder(shared_video_config, processor, tmp_path_factory):
    """A model to begin with, and questions about clips of unequal lengths."""
    folder = tmp_path_factory.mktemp("resume")
    torch.manual_seed(0)
    VideoMa2mbaForConditionalGeneration(shared_video_config).save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    with open(folder / "questions.jsonl", "w") as rows:
        for i, seconds in enumerate(SECONDS):
            write_video(folder / f"{i}.mp4", numbered_frames(seconds, 64, 64, first=10 * i), fps=1)
            for question, answer in (("what is it ?", "red"), ("who wins ?", "a car")):
                turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
                rows.write(json.dumps({"id": f"{i}-{answer}", "video": f"{i}.mp4", "conversations": turns}) + "\n")
    return folder


def command(folder, output, kind, moment):
    words = ["--recipe", "tiny", "--init-from", str(folder / "start"), "--data", str(folder / "questions.jsonl")]
    words += ["--output", str(output), "--override", "global_batch_size=4", "--override", f"max_steps={STEPS}"]
    words += ["--device", "cpu", "--report-to", "none", "--save-steps", "3", "--workers", "0"]
    if "streams" in kind:
        words += ["--streaming", "--shuffle-buffer", "5", "--workers", "2"]
    launcher = [sys.executable]
    if "two" in kind:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29743"]
    return [*launcher, str(DRIVER), moment, "2", *words]


def start(folder, output, kind, moment="never"):
    output.mkdir(exist_ok=True)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(folder, output, kind, moment),
        env={**environment, "NUMBERS": str(output)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        start_new_session=True,
    )


def run(folder, output, kind, moment="never"):
    """Run to the moment or the end; return what was printed."""
    process = start(folder, output, kind, moment)
    printed, _ = process.communicate(timeout=200)
    killed = process.returncode == -signal.SIGKILL or "SIGKILL" in printed  # which torchrun tells and survives
    assert killed if moment != "never" else process.returncode == 0, printed[-3000:]
    return printed


def assert_same_weights(one, two):
    one, two = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def frames_read(output, ranks):
    """The numbers of the frames of each step, over all processes."""
    lines = [(output / f"numbers-{rank}.jsonl").read_text().splitlines() for rank in range(ranks)]
    batches = [[json.loads(line) for line in rank] for rank in lines]
    per_step = 4 // ranks  # batches of one clip
    return [
        [clip for rank in batches for batch in rank[step : step + per_step] for clip in batch]
        for step in range(0, len(batches[0]), per_step)
    ]


@pytest.fixture(scope="module")
def whole(folder):
    """Runs that were not killed, by kind."""
    done = {}

    def get(kind):
        if kind not in done:
            done[kind] = folder / f"whole {kind}"
            run(folder, done[kind], kind)
        return done[kind]

    return get


@pytest.mark.parametrize(
    "kind, moments",
    [
        (
            "one",
            ("step:2", "checkpoint-3/model.safetensors", "checkpoint-6/optimizer.pt", "-6/trainer_state.json", LAST),
        ),
        ("one streams", ("any time", "checkpoint-6/scheduler.pt")),
        ("two", ("1/checkpoint-6/rng_state_1.pth",)),
        pytest.param("two streams", ("0/checkpoint-6/model.safetensors", "1/step:5"), marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again_it_ends_with_the_same_weights(folder, whole, tmp_path, kind, moments):
    output = tmp_path / "parts"
    for moment in moments:
        if moment == "any time":
            kill_all(start(folder, output, kind), output / "checkpoint-3")
        else:
            run(folder, output, kind, moment)
        assert (output / "model.safetensors").exists() == (moment == LAST)
    run(folder, output, kind)
    assert_same_weights(whole(kind), output)


def kill_all(process, path):
    """Kill a run with its dataloader workers once a path is there."""
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("kind", ["one streams", "two", pytest.param("two streams", marks=pytest.mark.slow)])
def test_every_frame_arrives_once_an_epoch(folder, whole, kind):
    steps = frames_read(whole(kind), 2 if "two" in kind else 1)
    clips = [list(range(10 * i, 10 * i + seconds)) for i, seconds in enumerate(SECONDS)]
    assert len(steps) == STEPS and all(len(step) == 4 for step in steps)
    for epoch in range(0, STEPS - 1, 2):
        assert sorted(steps[epoch] + steps[epoch + 1]) == clips
    read = Counter(map(tuple, steps[6]))
    assert max(read.values()) == 1 and set(read) <= set(map(tuple, clips))


def test_a_run_does_not_go_on_with_another_number_of_processes(folder, whole, capsys):
    words = command(folder, whole("two"), "one", "never")
    assert main("2", words[words.index("2") + 1 :]) == 2
    assert "processes were 2, are 1" in capsys.readouterr().err
