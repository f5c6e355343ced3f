"""One training stage from the command line: `train/stage1.py`, `stage1_5.py` and `stage2.py` call `main`.

    accelerate launch train/stage2.py --recipe 3.1b --init-from runs/stage1_5 --data qa.json --output runs/stage2

A run that was stopped goes on from its newest complete checkpoint when it is started again with the same `--output`.
"""

import argparse
import functools
import shutil
import textwrap
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments, set_seed

from modeling_video_ma2mba.shipped_model import SHIPPED, model_folder
from modeling_video_ma2mba.train.checkpoints import last_complete_checkpoint, read_state
from modeling_video_ma2mba.train.collator import SampleCollator
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.lora import add_lora
from modeling_video_ma2mba.train.new_words import learn_words, unknown_words
from modeling_video_ma2mba.train.parameter_groups import set_trained_parts
from modeling_video_ma2mba.train.readers import data_help, parse_data_argument, read_id_list
from modeling_video_ma2mba.train.recipes import Recipe, load_recipe, recipe_fields, recipe_names
from modeling_video_ma2mba.train.run_command import (
    add_recipe_options,
    add_run_options,
    check_run_options,
    is_to_run,
    processes,
    run_arguments,
    run_command,
    train_to_the_end,
)
from modeling_video_ma2mba.train.run_record import describe_run, write_run
from modeling_video_ma2mba.train.sample_lengths import read_lengths, write_lengths
from modeling_video_ma2mba.train.samples import Sample
from modeling_video_ma2mba.train.stage_data import load_samples, measured, stream_samples
from modeling_video_ma2mba.train.streaming import DecodingCollator, StreamingSet
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
    return run_command(f"stage {stage}", lambda: run(stage, options))


def _parser(stage: str) -> argparse.ArgumentParser:
    fields = textwrap.fill(f"Fields of a recipe: {', '.join(recipe_fields())}.", 100)
    parser = argparse.ArgumentParser(
        description=f"Stage {stage}, {_PURPOSES[stage]}.",
        epilog=f"{data_help()}\n\n{fields}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_options(parser, recipe_names(), "recipes.yaml")
    parser.add_argument("--data", action="append", required=True, help="READER:ANNOTATIONS,MEDIA,..., see below")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="FILE",
        help="videos not to train on, such as those of an evaluation: text with a name a line, or its csv or json",
    )
    parser.add_argument(
        "--streaming", action="store_true", help="read rows one by one and hold none; needs max_steps, see README"
    )
    parser.add_argument(
        "--shuffle-buffer",
        type=int,
        default=1000,
        help="samples of a stream that are shuffled at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--init-from",
        default=SHIPPED,
        help="model folder: a converted one, or an earlier stage's output (default: the small shipped model)",
    )
    add_run_options(parser, "samples", batch_size=1, logging_steps=1)
    return parser


def run(stage: str, options: argparse.Namespace) -> None:
    """Train one stage and write the model, the log and everything needed to repeat it to `--output`."""
    recipe = load_recipe(options.recipe, stage, options.override)
    check_options(options, recipe)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    world_size, rank = processes()

    excluded = frozenset().union(*map(read_id_list, options.exclude))
    report = DataReport()
    try:
        samples = None if options.streaming else load_samples(options.data, recipe, report, excluded)
    finally:
        if rank == 0 and not options.streaming:
            report.write(output / "left_out_rows.jsonl")
    manifest = describe_run(recipe, options, samples, world_size)
    if not is_to_run(output, manifest, rank):
        return
    checkpoint = last_complete_checkpoint(output, world_size)
    set_seed(recipe.seed)
    folder = model_folder(options.init_from)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    words = [] if samples is None else unknown_words(processor.tokenizer, samples)
    if words and "language_model" in recipe.trains:
        learn_words(model, processor.tokenizer, words)
    set_trained_parts(model, recipe.trains)
    if recipe.lora_rank is not None:
        model = add_lora(model, recipe)

    if rank == 0:
        write_run(output, manifest)
        if not options.streaming:
            print(report.summary())
        if words:
            print(f"{len(words)} words are new to the tokenizer: {' '.join(words[:20])}{' ...' * (len(words) > 20)}")
    frames = output / f"frames-{rank}"
    shutil.rmtree(frames, ignore_errors=True)  # of a run that was killed
    frames.mkdir()
    decoder = MediaDecoder(processor.image_processor.fit, recipe.fps, recipe.max_frames, frames)
    # A stream skips by itself, without decoding.
    arguments = run_arguments(recipe, options, world_size, ignore_data_skip=options.streaming)
    collator, bad_list = SampleCollator(processor), output / "left_out_media.jsonl"
    if samples is None:
        start = 0 if checkpoint is None else read_state(checkpoint)["global_step"] * recipe.global_batch_size
        bad_rows = output / "left_out_rows.jsonl" if rank == 0 else None
        read = functools.partial(stream_samples, options.data, recipe, excluded, bad_rows)
        at_once = options.batch_size * world_size
        data = StreamingSet(read, at_once, options.shuffle_buffer, recipe.seed, start)
        collator = DecodingCollator(decoder, collator, bad_list)
    else:
        is_new = checkpoint is None
        samples, tokens = with_lengths(samples, recipe, arguments, collator, output, is_new)
        data = TrainingSet(samples, decoder, bad_list, recipe.max_bad_share, tokens)
    trainer = VideoMa2mbaTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collator,
        processing_class=processor,
        recipe=recipe,
    )
    try:
        train_to_the_end(trainer, checkpoint)
    finally:
        shutil.rmtree(frames, ignore_errors=True)
    if recipe.lora_rank is not None:
        if rank == 0:
            model.save_pretrained(output / "adapter")
        trainer.model = model.merge_and_unload()
    trainer.save_model(str(output))
    trainer.save_state()
    if rank == 0:
        write_run(output, manifest, finished=True)
        print(f"the model is in {output}, the log of its training in {output / 'trainer_state.json'}")


def check_options(options: argparse.Namespace, recipe: Recipe) -> None:
    """Refuse what cannot be run before anything is read.

    Raises:
        ValueError: naming the option, what it may be and what to do.
    """
    if not Path(options.init_from).exists() and options.init_from.startswith((".", "/", "~")):
        raise ValueError(f"--init-from {options.init_from}: no such folder")
    check_run_options(options)
    if options.streaming and recipe.max_steps is None:
        raise ValueError("--streaming: how many rows there are is not known; add --override max_steps=...")
    if options.shuffle_buffer < 1:
        raise ValueError(f"--shuffle-buffer {options.shuffle_buffer}: at least 1, which keeps the order of the rows")
    for argument in options.data:
        parse_data_argument(argument)


def with_lengths(
    samples: list[Sample],
    recipe: Recipe,
    arguments: TrainingArguments,
    collator: SampleCollator,
    output: Path,
    is_new: bool,
) -> tuple[list[Sample], list[int]]:
    """Return the samples whose media can be opened, and their tokens; one process of a machine looks.

    A run that goes on keeps the order of its samples, and so their lengths, even if media have changed.

    Raises:
        ValueError: no sample is left. RuntimeError: too many have bad media.
    """
    path, bad_list = output / "lengths.jsonl", output / "left_out_media.jsonl"
    with arguments.main_process_first(desc="measuring samples"):
        if arguments.local_process_index == 0 and (is_new or not path.is_file()):
            write_lengths(path, measured(samples, recipe, collator, bad_list))
    lengths = read_lengths(path)
    usable = [(sample, one.tokens) for sample, one in zip(samples, lengths, strict=True) if one.problem is None]
    if not usable:
        raise ValueError(f"none of {len(samples)} samples can be used; see {bad_list}")
    return [sample for sample, _ in usable], [tokens for _, tokens in usable]
