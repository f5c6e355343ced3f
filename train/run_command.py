"""What the commands that train share: their options, the line about bad input, the start and the end of a run."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import Trainer, TrainingArguments

from modeling_video_ma2mba.train.checkpoints import read_state
from modeling_video_ma2mba.train.recipes import training_arguments
from modeling_video_ma2mba.train.run_record import check_same_run, is_finished

# Every error about input is one of these, with a message for the person who gave it.
_BAD_INPUT = (
    ValueError, OSError, ImportError, FloatingPointError, RuntimeError, StrictDataclassError, SafetensorError,
)  # fmt: skip


def run_command(title: str, run: Callable[[], None]) -> int:
    """Run a training; return the exit code: 0 done, 2 bad input, 130 interrupted, both said in one line."""
    try:
        run()
    except _BAD_INPUT as error:
        print(f"{title}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{title}: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def add_recipe_options(parser: argparse.ArgumentParser, names: Sequence[str], file: str) -> None:
    """Add --recipe and --override, for the recipes of a file in train/."""
    parser.add_argument("--recipe", required=True, choices=names, help=f"settings, see train/{file}")
    parser.add_argument(
        "--override", action="append", default=[], metavar="FIELD=VALUE", help="change a setting, see below"
    )


def add_run_options(
    parser: argparse.ArgumentParser, samples: str, batch_size: int, logging_steps: int, save_steps: str = ""
) -> None:
    """Add the options of output, batches, checkpoints, logs and device.

    Args:
        samples: what a batch is of. batch_size, logging_steps: defaults. save_steps: when that option counts.
    """
    parser.add_argument("--output", required=True, help="folder for checkpoints, logs and the trained model")
    parser.add_argument(
        "--batch-size", type=int, default=batch_size, help=f"{samples} on a device at a time (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: %(default)s)")
    parser.add_argument(
        "--save-steps", type=float, default=0.1, help=f"{save_steps}steps, or share of the run (default: %(default)s)"
    )
    parser.add_argument("--logging-steps", type=int, default=logging_steps, help="default: %(default)s")
    parser.add_argument(
        "--report-to", default="auto", help="none, tensorboard, wandb, ... (default: tensorboard if installed)"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="default: a GPU if there is one")


def check_run_options(options: argparse.Namespace) -> None:
    """Refuse values of `add_run_options` that cannot be.

    Raises:
        ValueError: naming the option and what it may be.
    """
    if not options.save_steps > 0:
        raise ValueError(
            f"--save-steps {options.save_steps:g}: give a number of steps, 1 or more, or a share of the run above 0"
        )
    for name, lowest in (("batch_size", 1), ("workers", 0), ("logging_steps", 1)):
        if getattr(options, name) < lowest:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give {lowest} or more")


def processes() -> tuple[int, int]:
    """Return how many processes train together, and the number of this one."""
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


def run_arguments(recipe: Any, options: argparse.Namespace, world_size: int, **others) -> TrainingArguments:
    """Return transformers' arguments for a recipe and the shared options; `others` are further fields of theirs.

    Raises:
        ValueError: processes were launched together that would train alone, each over the same output.
    """
    arguments = training_arguments(
        recipe,
        options.output,
        options.batch_size,
        world_size,
        save_steps=options.save_steps,
        save_total_limit=2,
        logging_steps=options.logging_steps,
        report_to=_reporters(options.report_to),
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=options.device != "cpu" and torch.accelerator.is_available(),  # else torch warns
        use_cpu=options.device == "cpu",
        ddp_find_unused_parameters=False,
        **others,
    )
    if arguments.world_size != world_size:
        raise ValueError(
            f"{world_size} processes were launched, but each would train alone, on {arguments.device}: without GPUs "
            "launch with `accelerate launch --cpu --num_processes N`; configs with FSDP or DeepSpeed need as many "
            "GPUs as processes"
        )
    return arguments


def is_to_run(output: Path, record: dict, rank: int) -> bool:
    """Return whether a run has not come to its end; say so if it has.

    Raises:
        ValueError: it was begun with other settings.
    """
    if any(output.glob("checkpoint-*")):
        check_same_run(output, record)
    if is_finished(output) and rank == 0:
        print(f"already finished; the model is in {output}")
    return not is_finished(output)


def train_to_the_end(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train, from a checkpoint if there is one; of the last step, load the weights that the run would have kept."""
    state = None if checkpoint is None else read_state(checkpoint)
    if state is None or state["global_step"] < state["max_steps"]:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    # `train` would go on to the end of the epoch.
    best = state["best_model_checkpoint"]
    trainer._load_from_checkpoint(str(checkpoint if best is None else checkpoint.parent / Path(best).name))


def _reporters(name: str) -> list[str]:
    if name != "auto":
        return [] if name == "none" else [name]
    return ["tensorboard"] if find_spec("tensorboard") else []
