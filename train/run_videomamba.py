"""Training of VideoMamba from the command line, of a classifier or masked: `train/videomamba.py` calls `main`.

    accelerate launch train/videomamba.py --recipe k400-m --override frames=16 --output runs/k400-m \\
        --init-from videomamba_m16_in1k_res224.pth \\
        --data train.csv,k400/train --val val.csv,k400/val --test test.csv,k400/val

A run that was stopped goes on from its newest complete checkpoint when it is started again with the same `--output`.
With `--val` the epoch with the best one-view result is kept, as published; `--test` looks at all views.

Recipes with a mask learn from clips alone and from the CLIP model in `--teacher`; what they leave in `--output` is
what `--init-from` of a classifier takes:

    accelerate launch train/videomamba.py --recipe masked-k400-m --teacher clip-vit-base-patch16 \\
        --data train.csv,k400/train --output runs/masked
    accelerate launch train/videomamba.py --recipe k400-m-masked --init-from runs/masked --output runs/k400-m ...
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import EvalPrediction, set_seed

from modeling_video_ma2mba.configuration_videomamba import VideoMambaConfig
from modeling_video_ma2mba.convert_videomamba import convert_videomamba
from modeling_video_ma2mba.modeling_videomamba import (
    VideoMambaForImageClassification,
    VideoMambaForVideoClassification,
    VideoMambaModel,
)
from modeling_video_ma2mba.processing.image_processing_videomamba import VideoMambaImageProcessor
from modeling_video_ma2mba.processing.processing_videomamba import VideoMambaProcessor
from modeling_video_ma2mba.shipped_model import SHIPPED, model_folder
from modeling_video_ma2mba.train.augmentation import ClipAugmentation, require_extra
from modeling_video_ma2mba.train.checkpoints import last_complete_checkpoint
from modeling_video_ma2mba.train.clip_masks import masked_units
from modeling_video_ma2mba.train.clip_set import ClipCollator, ClipTrainingSet, ClipValidationSet
from modeling_video_ma2mba.train.clip_teacher import ClipTeacher, load_clip_teacher
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.masked_pretraining import VideoMambaForMaskedPretraining
from modeling_video_ma2mba.train.masked_trainer import MaskedClipCollator, MaskedPretrainingTrainer
from modeling_video_ma2mba.train.multi_scale_crop import MultiScaleCrop
from modeling_video_ma2mba.train.multi_view import test_clips
from modeling_video_ma2mba.train.read_clips import CLIP_READERS, LabelledClip, read_clip_data
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
from modeling_video_ma2mba.train.run_record import manifest, write_run
from modeling_video_ma2mba.train.self_distillation import (
    VideoMambaStudentForImageClassification,
    VideoMambaStudentForVideoClassification,
    load_teacher,
    without_teacher,
)
from modeling_video_ma2mba.train.videomamba_recipes import (
    VALUES,
    VideoMambaRecipe,
    load_videomamba_recipe,
    schedule_arguments,
    videomamba_recipe_fields,
    videomamba_recipe_names,
    with_labels,
)
from modeling_video_ma2mba.train.videomamba_trainer import VideoMambaTrainer


def main(argv: list[str] | None = None) -> int:
    """Run a training; return the exit code: 0 done, 2 bad input."""
    options = _parser().parse_args(argv)
    return run_command("videomamba", lambda: run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a VideoMamba: a classifier of clips or images, or masked pre-training on clips.",
        epilog=f"Readers of data: {', '.join(CLIP_READERS)}. Fields of a recipe: "
        f"{', '.join(videomamba_recipe_fields())}.",
    )
    add_recipe_options(parser, videomamba_recipe_names(), "videomamba_recipes.yaml")
    parser.add_argument(
        "--values",
        choices=VALUES,
        default=VALUES[0],
        help="whose, where the paper and the public implementation differ (default: %(default)s)",
    )
    data = "READER:ANNOTATIONS,MEDIA,..., or a csv of path,label, or a folder of classes"
    parser.add_argument("--data", action="append", required=True, help=f"what to train on: {data}")
    parser.add_argument("--val", action="append", default=[], help="looked at after each epoch, to keep the best")
    parser.add_argument("--test", action="append", default=[], help="looked at in the end, in all views")
    parser.add_argument("--class-names", metavar="FILE", help="names of the classes, one on each line")
    parser.add_argument(
        "--init-from", help="published .pth file or folder of a VideoMamba (default: a new model, from nothing)"
    )
    parser.add_argument(
        "--teacher",
        help="for recipes with distillation: folder of a trained, smaller model; for recipes with a mask: folder of a "
        f'CLIP model, or of a Video-Ma²mba with a CLIP tower ("{SHIPPED}": the one that comes along)',
    )
    add_run_options(
        parser, "clips", batch_size=8, logging_steps=10, save_steps="with --val every epoch is saved; without it "
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Train, keep the best epoch, test; write the model, the log and everything needed to repeat it to `--output`."""
    recipe = load_videomamba_recipe(options.recipe, options.values, options.override)
    check_options(options, recipe)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    world_size, rank = processes()
    names = None if options.class_names is None else read_class_names(options.class_names, recipe)

    report = DataReport()
    try:
        known = recipe.classes if names is None else len(names)
        parts = {
            part: [clip for argument in given for clip in read_clip_data(argument, report, known)]
            for part, given in (("data", options.data), ("val", options.val), ("test", options.test))
        }
        report.check_limit(recipe.max_bad_share)
    finally:
        if rank == 0:
            report.write(output / "left_out_rows.jsonl")
    clips = parts["data"]
    classes = None if recipe.mask else count_classes(clips, known)
    described = [f"{part} {clip!r}" for part, own in parts.items() for clip in own]
    record = manifest(recipe, options, described, len(clips), world_size)
    if not is_to_run(output, record, rank):
        return
    if rank == 0:
        write_run(output, record)
        print(report.summary())
    checkpoint = last_complete_checkpoint(output, world_size)
    scaled = recipe.scaled()
    arguments = run_arguments(
        scaled,
        options,
        world_size,
        **schedule_arguments(scaled),
        **_keeping(classes) if options.val else {},
        per_device_eval_batch_size=options.batch_size,
    )
    set_seed(recipe.seed)
    with arguments.main_process_first(desc="preparing the model"):
        model, teacher = build_model(options, recipe, classes, names, output, rank == 0 and checkpoint is None)
    image_processor = build_processor(recipe)
    augment = MultiScaleCrop(recipe) if recipe.crop_sides else None
    if recipe.needs_extra:
        augment = ClipAugmentation(recipe, image_processor, model.config)
    kind = MaskedPretrainingTrainer if recipe.mask else VideoMambaTrainer
    bad_list = output / "left_out_media.jsonl"
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=ClipTrainingSet(clips, recipe, image_processor, augment, bad_list),
        eval_dataset=ClipValidationSet(parts["val"], recipe, image_processor, bad_list) if options.val else None,
        data_collator=(
            MaskedClipCollator(model.config.patches_per_frame) if recipe.mask else ClipCollator(recipe, classes)
        ),
        compute_metrics=squared_error if classes == 1 else top1,
        recipe=scaled,
        teacher=teacher,
    )
    train_to_the_end(trainer, checkpoint)
    if recipe.distillation:
        trainer.model = without_teacher(trainer.accelerator.unwrap_model(trainer.model)).to(arguments.device)
    if not recipe.mask:
        trainer.save_model(str(output))
    elif rank == 0:
        trainer.accelerator.unwrap_model(trainer.model).save_encoder(output)
    trainer.save_state()
    if rank == 0:  # not the Trainer, which looks for a tokenizer in it
        VideoMambaProcessor(image_processor).save_pretrained(output)
    if options.test:
        found = test_clips(
            trainer.accelerator.unwrap_model(trainer.model).eval(),
            image_processor,
            parts["test"],
            views=(recipe.test_clips, recipe.test_crops),
            at_once=options.batch_size,
            workers=options.workers,
            process=(rank, world_size),
        )
        if rank == 0:
            (output / "test.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(", ".join(f"{name} {found[name]:.4f}" for name in list(found)[: 1 if classes == 1 else 2]), end="")
            print(f" over {found['clips']} clips, {len(found['not_read'])} not read; see {output / 'test.json'}")
    if rank == 0:
        write_run(output, record, finished=True)


def check_options(options: argparse.Namespace, recipe: VideoMambaRecipe) -> None:
    """Refuse what cannot be run before anything is read.

    Raises:
        ValueError, ImportError: naming the option, what it may be and what to do.
    """
    require_extra(recipe)
    check_run_options(options)
    if recipe.mask:
        _check_masks(options, recipe)
    elif recipe.distillation != (options.teacher is not None):
        raise ValueError(
            f"recipe {recipe.name} has distillation={recipe.distillation} and --teacher is {options.teacher}: give a "
            "teacher's folder, or --override distillation=false"
            if recipe.distillation
            else f"--teacher {options.teacher}: recipe {recipe.name} has no distillation; add --override "
            "distillation=true"
        )
    at_once = options.batch_size * recipe.views_at_once
    if (recipe.mixup or recipe.cutmix) and at_once % 2:
        raise ValueError(
            f"--batch-size {options.batch_size}: {at_once} clips at a time cannot be mixed in pairs; give an even one"
        )
    if options.init_from is not None and not Path(options.init_from).exists():
        raise ValueError(f"--init-from {options.init_from}: no such file or folder")
    if options.teacher is not None and not Path(_teacher_folder(options, recipe)).is_dir():
        raise ValueError(f"--teacher {options.teacher}: no such folder")


def _check_masks(options: argparse.Namespace, recipe: VideoMambaRecipe) -> None:
    given = [f"--{name.replace('_', '-')}" for name in ("val", "test", "class_names") if getattr(options, name)]
    if given:
        raise ValueError(
            f"{', '.join(given)}: recipe {recipe.name} learns without classes; give them when its result is "
            "fine-tuned (--init-from)"
        )
    if options.teacher is None:
        raise ValueError(
            f"recipe {recipe.name} learns from a CLIP model: give its folder as --teacher, or --teacher {SHIPPED}"
        )
    config = recipe.config(None)
    masked_units(recipe.mask, recipe.mask_ratio, recipe.frames, config.image_size // config.patch_size)


def _teacher_folder(options: argparse.Namespace, recipe: VideoMambaRecipe) -> str:
    """Return the folder of --teacher; only masks can learn from the shipped model."""
    return model_folder(options.teacher) if recipe.mask else options.teacher


def read_class_names(path: str, recipe: VideoMambaRecipe) -> list[str]:
    """Return the lines of a file, the names of the classes in their order.

    Raises:
        ValueError: it cannot be read, names are missing or twice, or not as many as the recipe has classes.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--class-names {path}: cannot be read ({error}); give a text file, a name a line") from None
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"--class-names {path}: give two or more names, each once; it has {len(names)}")
    if recipe.classes not in (None, len(names)):
        raise ValueError(f"--class-names {path}: {len(names)} names, but recipe {recipe.name} has {recipe.classes}")
    return names


def count_classes(clips: Sequence[LabelledClip], known: int | None) -> int:
    """Return the classes of the head: those that are known, else up to the largest label.

    Raises:
        ValueError: there is nothing to tell apart.
    """
    if known is not None:
        return known
    found = 1 + max(int(clip.label) for clip in clips)
    if found < 2:
        raise ValueError("all clips have the label 0: give clips of two classes or more, or --override classes=...")
    return found


def build_processor(recipe: VideoMambaRecipe) -> VideoMambaImageProcessor:
    """Return the processor that a trained model is saved with: images as tested by timm, clips as published."""
    if recipe.frames is None:
        return VideoMambaImageProcessor(size=recipe.image_size)
    return VideoMambaImageProcessor(
        size=recipe.image_size,
        crop_ratio=1.0,
        resample="bilinear",
        num_frames=recipe.frames,
        sampling=recipe.sampling,
    )


def build_model(
    options: argparse.Namespace,
    recipe: VideoMambaRecipe,
    classes: int | None,
    names: list[str] | None,
    output: Path,
    converts: bool,
) -> tuple[torch.nn.Module, VideoMambaModel | ClipTeacher | None]:
    """Return the model to train and its teacher.

    Args:
        classes: of the head; None: there is none. output: where the converted `--init-from` is put, as `start`.
        converts: this process does that.

    Raises:
        ValueError: the checkpoint or the teacher does not fit the recipe.
    """
    if options.init_from is None:
        config = recipe.config(classes, names)
    else:
        start = output / "start"
        if converts:
            convert_videomamba(
                options.init_from,
                start,
                num_frames=recipe.frames,
                image_size=recipe.image_size,
                num_labels=classes,
                sampling=recipe.sampling,
                dtype=torch.float32,
                seed=recipe.seed,
            )
        config = VideoMambaConfig.from_pretrained(start)
        if config.num_frames != recipe.frames:
            raise ValueError(f"--init-from {options.init_from}: a clip model cannot become an image model")
        wanted = recipe.config(classes, names)
        for name in ("hidden_size", "num_hidden_layers", "patch_size"):
            if getattr(config, name) != getattr(wanted, name):
                raise ValueError(
                    f"--init-from {options.init_from}: its {name} is {getattr(config, name)}, the recipe's "
                    f"{getattr(wanted, name)}; take the recipe of its size"
                )
        config.drop_path_rate = recipe.drop_path
        if classes is not None:
            config = with_labels(config, classes, names)
    if recipe.mask:
        teacher = load_clip_teacher(_teacher_folder(options, recipe), config, recipe.aligned_layers)
        more = (teacher.width, recipe.aligned_layers)
        if options.init_from is None:
            model = VideoMambaForMaskedPretraining(config, *more)
        else:
            model = VideoMambaForMaskedPretraining.from_pretrained(start, *more, config=config, dtype=torch.float32)
        model.freeze_unused()
        return model, teacher
    teacher = None if options.teacher is None else load_teacher(options.teacher, config)
    kinds, more = (VideoMambaForImageClassification, VideoMambaForVideoClassification), ()
    if teacher is not None:
        kinds = (VideoMambaStudentForImageClassification, VideoMambaStudentForVideoClassification)
        more = (teacher.config.hidden_size,)
    kind = kinds[recipe.frames is not None]
    if options.init_from is None:
        return kind(config, *more), teacher
    return kind.from_pretrained(start, *more, config=config, dtype=torch.float32), teacher


def _keeping(classes: int | None) -> dict:
    """Return transformers' arguments for a validation after every epoch, the best of which is kept."""
    return {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "mean_squared_error" if classes == 1 else "top1",
        "greater_is_better": classes != 1,
    }


def top1(found: EvalPrediction) -> dict[str, float]:
    """Return the share of clips whose class is the likeliest."""
    return {"top1": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def squared_error(found: EvalPrediction) -> dict[str, float]:
    """Return the mean squared error of predicted numbers."""
    return {"mean_squared_error": float(((found.predictions[:, 0] - found.label_ids) ** 2).mean())}
