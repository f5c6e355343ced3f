"""One training stage from the command line: `train/stage1.py`, `stage1_5.py` and `stage2.py` call `main`.

    accelerate launch train/stage2.py --recipe 3.1b --init-from runs/stage1_5 --data qa.json --output runs/stage2

A run that was stopped goes on from its newest complete checkpoint when it is started again with the same `--output`.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from modeling_video_ma2mba.environment import describe_environment
from modeling_video_ma2mba.train.checkpoints import last_complete_checkpoint
from modeling_video_ma2mba.train.collator import SampleCollator
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.lora import add_lora
from modeling_video_ma2mba.train.parameter_groups import set_trained_parts
from modeling_video_ma2mba.train.readers import read_data
from modeling_video_ma2mba.train.recipes import Recipe, load_recipe, recipe_names, training_arguments
from modeling_video_ma2mba.train.samples import Sample, grouped
from modeling_video_ma2mba.train.trainer import VideoMa2mbaTrainer
from modeling_video_ma2mba.train.training_set import MediaDecoder, TrainingSet

_PURPOSES = {
    "1": "alignment: the projector learns to caption images and short videos",
    "1.5": "long-video knowledge: clips and their captions in turn, over whole long videos",
    "2": "supervised fine-tuning: questions and answers, all about one video in one sample",
}


def main(stage: str, argv: list[str] | None = None) -> int:
    """Run a stage; return the exit code: 0 done, 2 bad input."""
    options = _parser(stage).parse_args(argv)
    try:
        run(stage, options)
    except (ValueError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        print(f"stage {stage}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser(stage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"Stage {stage}, {_PURPOSES[stage]}.")
    parser.add_argument("--recipe", required=True, choices=recipe_names(), help="settings, see train/recipes.yaml")
    parser.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE", help="change one of them")
    parser.add_argument("--data", action="append", required=True, help="data, see `video-ma2mba data --help`")
    parser.add_argument(
        "--init-from", required=True, help="model folder: a converted one, or an earlier stage's output"
    )
    parser.add_argument("--output", required=True, help="folder for checkpoints, logs and the trained model")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="samples on a device at a time (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: %(default)s)")
    parser.add_argument(
        "--save-steps", type=float, default=0.1, help="steps, or share of the run (default: %(default)s)"
    )
    parser.add_argument("--logging-steps", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--report-to", default="auto", help="none, tensorboard, wandb, ... (default: tensorboard if installed)"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="default: a GPU if there is one")
    return parser


def run(stage: str, options: argparse.Namespace) -> None:
    """Train one stage and write the model, the log and everything needed to repeat it to `--output`."""
    recipe = load_recipe(options.recipe, stage, options.override)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))

    if not Path(options.init_from).exists() and options.init_from.startswith((".", "/", "~")):
        raise ValueError(f"--init-from {options.init_from}: no such folder")
    report = DataReport()
    try:
        samples = load_samples(options.data, recipe, report)
    finally:
        if rank == 0:
            report.write(output / "left_out_rows.jsonl")
    checkpoint = last_complete_checkpoint(output, world_size)
    manifest = describe_run(recipe, options, samples)
    if checkpoint is not None:
        check_same_run(output / "run.json", manifest)
    set_seed(recipe.seed)
    processor = AutoProcessor.from_pretrained(options.init_from)
    model = AutoModelForImageTextToText.from_pretrained(options.init_from, dtype=torch.float32)
    set_trained_parts(model, recipe.trains)
    if recipe.lora_rank is not None:
        model = add_lora(model, recipe)

    if rank == 0:
        (output / "run.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        print(report.summary())
    frames = output / f"frames-{rank}"
    shutil.rmtree(frames, ignore_errors=True)  # of a run that was killed
    frames.mkdir()
    decoder = MediaDecoder(processor.image_processor.fit, recipe.fps, recipe.max_frames, frames)
    arguments = training_arguments(
        recipe,
        str(output),
        options.batch_size,
        world_size,
        save_steps=options.save_steps,
        save_total_limit=2,
        logging_steps=options.logging_steps,
        report_to=_reporters(options.report_to),
        dataloader_num_workers=options.workers,
        use_cpu=options.device == "cpu",
        ddp_find_unused_parameters=False,
    )
    trainer = VideoMa2mbaTrainer(
        model=model,
        args=arguments,
        train_dataset=TrainingSet(samples, decoder, output / "left_out_media.jsonl", recipe.max_bad_share),
        data_collator=SampleCollator(processor),
        processing_class=processor,
        recipe=recipe,
    )
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        shutil.rmtree(frames, ignore_errors=True)
    if recipe.lora_rank is not None:
        if rank == 0:
            model.save_pretrained(output / "adapter")
        trainer.model = model.merge_and_unload()
    trainer.save_model(str(output))


def _reporters(name: str) -> list[str]:
    if name != "auto":
        return [] if name == "none" else [name]
    return ["tensorboard"] if find_spec("tensorboard") else []


def load_samples(data: list[str], recipe: Recipe, report: DataReport) -> list[Sample]:
    """Return all samples of the `--data` arguments; in stage 2 those about one video are joined.

    Raises:
        ValueError: too many rows are bad, or nothing is left.
    """
    samples = list(read_data(data, recipe.stage, report, recipe.seed))
    report.check_limit(recipe.max_bad_share)
    if recipe.stage == "2":
        samples = grouped(samples, report)
    if not samples:
        raise ValueError(f"no sample in {', '.join(data)}")
    return samples


def describe_run(recipe: Recipe, options: argparse.Namespace, samples: list[Sample]) -> dict:
    """Return what is run: the resolved recipe, options, versions, and the data by number and content."""
    described = [repr(sample.pieces) for sample in samples]
    return {
        "recipe": recipe.as_dict(),
        "options": vars(options),
        "versions": {what: choice for what, choice, _ in describe_environment()},
        "data": {
            "arguments": options.data,
            "samples": len(samples),
            "sha256": hashlib.sha256("\n".join(described).encode()).hexdigest(),
        },
    }


def check_same_run(path: Path, manifest: dict) -> None:
    """Refuse to go on with a run under other settings: optimizer and schedule would keep the old ones.

    Raises:
        ValueError: naming what differs from `run.json`.
    """
    if not path.is_file():
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    old, new = earlier.get("recipe", {}), manifest["recipe"]
    differing = [f"{key} was {old.get(key)!r}, is {new[key]!r}" for key in new if old.get(key) != new[key]]
    if earlier.get("data", {}).get("sha256") != manifest["data"]["sha256"]:
        differing.append("the data are others")
    if differing:
        raise ValueError(
            f"{path.parent} holds a run with other settings ({'; '.join(differing)}): go on with the same ones, or "
            "choose another --output (with --init-from a checkpoint's folder to start from its weights)"
        )
