"""A stage that dies by SIGKILL at a moment that is named, for test_resume.py.

    python killed_stage.py MOMENT STAGE ARGUMENTS...        STAGE: 1, 1.5, 2, or videomamba

MOMENT is "never", "step:3" (between backward and update), or the end of a file's path, such as
"checkpoint-4/optimizer.pt": the process dies when half of that file is written. With several processes "1/" before it
names the one that dies. The numbers of the frames that a process reads are added to `numbers-RANK.jsonl` in the folder
that NUMBERS names, one line for each batch.
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch
from transformers import TrainerState, modeling_utils

from modeling_video_ma2mba.train import run_stage, run_videomamba
from modeling_video_ma2mba.train.synthetic_video import read_number
from modeling_video_ma2mba.train.trainer import VideoMa2mbaTrainer

RANK = os.environ.get("RANK", "0")


def die():
    """Kill the process group: this process and its dataloader workers; torchrun then stops the other processes."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def dying(write, moment, place):
    """Wrap a function that writes a file, whose path is argument `place`."""

    @functools.wraps(write)
    def wrapped(*args, **kwargs):
        result = write(*args, **kwargs)
        path = str(args[place])
        if path.endswith(moment):
            os.truncate(path, os.path.getsize(path) // 2)
            die()
        return result

    return wrapped


def patch(moment):
    step_of = VideoMa2mbaTrainer.training_step

    def training_step(self, model, inputs, *args):
        if "NUMBERS" in os.environ:
            numbers = [
                [read_number(source[i : i + 1][0]) for i in range(len(source))]
                for source in inputs["pixel_values_videos"]
            ]
            with open(Path(os.environ["NUMBERS"]) / f"numbers-{RANK}.jsonl", "a") as file:
                file.write(json.dumps(numbers) + "\n")
        loss = step_of(self, model, inputs, *args)
        if moment == f"step:{self.state.global_step + 1}":
            die()
        return loss

    VideoMa2mbaTrainer.training_step = training_step
    torch.save = dying(torch.save, moment, 1)
    save_file = dying(safetensors.torch.save_file, moment, 1)
    for name in [name for name, value in vars(modeling_utils).items() if value is safetensors.torch.save_file]:
        setattr(modeling_utils, name, save_file)
    TrainerState.save_to_json = dying(TrainerState.save_to_json, moment, 1)


if __name__ == "__main__":
    moment = sys.argv[1]
    rank, slash, rest = moment.partition("/")
    if slash and rank.isdigit():
        moment = rest if rank == RANK else "never"
    patch(moment)
    if sys.argv[2] == "videomamba":
        sys.exit(run_videomamba.main(sys.argv[3:]))
    sys.exit(run_stage.main(sys.argv[2], sys.argv[3:]))
