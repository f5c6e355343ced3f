"""Multi-modal pre-training of VideoMamba from the command line: `train/videomamba_multimodal.py` calls `main`.

    accelerate launch train/videomamba_multimodal.py --recipe masked-5m --teacher clip-vit-base-patch16 \\
        --vision-from videomamba_m16_k400_mask_pt_f8_res224.pth --text-from bert-base-uncased \\
        --data captions:webvid_train.json,webvid --data captions:cc3m_train.json,cc3m --output runs/masked
    accelerate launch train/videomamba_multimodal.py --recipe unmasked-5m --init-from runs/masked \\
        --data captions:webvid_train.json,webvid --data captions:cc3m_train.json,cc3m --output runs/5m

A run that was stopped goes on from its newest complete checkpoint when it is started again with the same `--output`.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, BertForMaskedLM, BertTokenizer, set_seed

from modeling_video_ma2mba.convert_videomamba import convert_videomamba
from modeling_video_ma2mba.convert_videomamba_multimodal import load_bert_tokenizer
from modeling_video_ma2mba.modeling_videomamba import VideoMambaModel
from modeling_video_ma2mba.modeling_videomamba_multimodal import VideoMambaMultiModalModel
from modeling_video_ma2mba.processing.image_processing_videomamba import VideoMambaImageProcessor
from modeling_video_ma2mba.processing.processing_videomamba_multimodal import (
    VideoMambaMultiModalProcessor,
    clean_caption,
)
from modeling_video_ma2mba.shipped_model import SHIPPED, model_folder
from modeling_video_ma2mba.train.augmentation import ClipAugmentation, require_extra
from modeling_video_ma2mba.train.checkpoints import last_complete_checkpoint
from modeling_video_ma2mba.train.clip_set import ClipTrainingSet
from modeling_video_ma2mba.train.clip_teacher import load_clip_teacher
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.multimodal_pretraining import (
    VideoMambaMultiModalForMaskedPretraining,
    without_decoder,
)
from modeling_video_ma2mba.train.multimodal_recipes import (
    MultiModalRecipe,
    load_multimodal_recipe,
    multimodal_recipe_fields,
    multimodal_recipe_names,
)
from modeling_video_ma2mba.train.multimodal_set import PairCollator, pairs_of
from modeling_video_ma2mba.train.multimodal_trainer import MultiModalTrainer
from modeling_video_ma2mba.train.read_captions import CAPTION_SETS, CaptionedClip, joined, read_caption_data
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

# Tokens that BERT needs, in the places of its published vocabulary that matter: padding is 0.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Words of a new tokenizer; BERT's has as many pieces.
MAX_WORDS = 30_522


def main(argv: list[str] | None = None) -> int:
    """Run a training; return the exit code: 0 done, 2 bad input."""
    options = _parser().parse_args(argv)
    return run_command("videomamba_multimodal", lambda: run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Pre-train a VideoMamba on videos and images with captions.",
        epilog=f"Sets of data: {', '.join(CAPTION_SETS)}. Fields of a recipe: "
        f"{', '.join(multimodal_recipe_fields())}.",
    )
    add_recipe_options(parser, multimodal_recipe_names(), "multimodal_recipes.yaml")
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="SET:ANNOTATIONS,MEDIA",
        help="a set below, its json and the folders of its videos and images",
    )
    parser.add_argument("--init-from", help="folder of a multi-modal VideoMamba to go on from")
    parser.add_argument("--vision-from", help="published .pth file or folder of a VideoMamba (default: a new one)")
    parser.add_argument("--text-from", help="folder of a BERT with its tokenizer (default: new ones)")
    parser.add_argument(
        "--teacher",
        help="for recipes with masks: folder of a CLIP model, or of a Video-Ma²mba with a CLIP tower "
        f'("{SHIPPED}": the one that comes along)',
    )
    add_run_options(parser, "pairs", batch_size=8, logging_steps=10)
    return parser


def run(options: argparse.Namespace) -> None:
    """Train; write the model, its processor, the log and everything needed to repeat it to `--output`."""
    recipe = load_multimodal_recipe(options.recipe, options.override)
    check_options(options, recipe)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    world_size, rank = processes()

    report = DataReport()
    try:
        clips = joined(clip for argument in options.data for clip in read_caption_data(argument, report))
        report.check_limit(recipe.max_bad_share)
    finally:
        if rank == 0:
            report.write(output / "left_out_rows.jsonl")
    record = manifest(recipe, options, [repr(clip) for clip in clips], len(clips), world_size)
    if not is_to_run(output, record, rank):
        return
    if rank == 0:
        write_run(output, record)
        print(report.summary())
    checkpoint = last_complete_checkpoint(output, world_size)
    arguments = run_arguments(recipe, options, world_size)
    set_seed(recipe.seed)
    with arguments.main_process_first(desc="preparing the model"):
        processor = build_processor(options, recipe, clips)
        model, teacher = build_model(options, recipe, processor, output, rank == 0 and checkpoint is None)
    augment = None
    if recipe.needs_extra:
        augment = ClipAugmentation(recipe, processor.image_processor, model.config.vision_config)
    trainer = MultiModalTrainer(
        model=model,
        args=arguments,
        train_dataset=ClipTrainingSet(
            pairs_of(clips), recipe, processor.image_processor, augment, output / "left_out_media.jsonl"
        ),
        data_collator=PairCollator(recipe, processor, model.config.vision_config.patches_per_frame),
        recipe=recipe,
        teacher=teacher,
    )
    train_to_the_end(trainer, checkpoint)
    if recipe.is_masked:
        trainer.model = without_decoder(trainer.accelerator.unwrap_model(trainer.model)).to(arguments.device)
    trainer.save_model(str(output))
    trainer.save_state()
    if rank == 0:
        processor.save_pretrained(output)
        write_run(output, record, finished=True)


def check_options(options: argparse.Namespace, recipe: MultiModalRecipe) -> None:
    """Refuse what cannot be run before anything is read.

    Raises:
        ValueError, ImportError: naming the option, what it may be and what to do.
    """
    require_extra(recipe)
    check_run_options(options)
    if options.batch_size < 2:
        raise ValueError(f"--batch-size {options.batch_size}: pairs are told from each other, so give at least 2")
    if recipe.is_masked != (options.teacher is not None):
        raise ValueError(
            f"recipe {recipe.name} aligns to a CLIP model: give its folder as --teacher, or --teacher {SHIPPED}"
            if recipe.is_masked
            else f"--teacher {options.teacher}: recipe {recipe.name} has no masks; take one that has"
        )
    if options.init_from is not None and (options.vision_from or options.text_from):
        raise ValueError(
            "--init-from has a vision and a text encoder already; leave out --vision-from and --text-from"
        )
    for name in ("init_from", "text_from", "teacher"):
        given = getattr(options, name)
        if given is not None and not Path(model_folder(given) if name == "teacher" else given).is_dir():
            raise ValueError(f"--{name.replace('_', '-')} {given}: no such folder")
    if options.vision_from is not None and not Path(options.vision_from).exists():
        raise ValueError(f"--vision-from {options.vision_from}: no such file or folder")


def build_processor(
    options: argparse.Namespace, recipe: MultiModalRecipe, clips: Sequence[CaptionedClip]
) -> VideoMambaMultiModalProcessor:
    """Return the processor: frames stretched, as published; a tokenizer of the captions' words if none is given."""
    images = VideoMambaImageProcessor(
        size=recipe.image_size, frame_fit="stretch", num_frames=recipe.frames, sampling=recipe.sampling
    )
    folder = options.init_from or options.text_from
    if folder is not None:
        tokenizer = load_bert_tokenizer(folder)
    else:
        tokenizer = new_tokenizer(caption for clip in clips for caption in clip.captions)
    return VideoMambaMultiModalProcessor(images, tokenizer, recipe.max_text_tokens)


def new_tokenizer(captions) -> BertTokenizer:
    """Return a tokenizer of the most frequent words of captions, cleaned."""
    counts = Counter(word for caption in captions for word in clean_caption(caption).split())
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: MAX_WORDS - len(SPECIAL)]
    return BertTokenizer(vocab={word: place for place, word in enumerate([*SPECIAL, *frequent])})


def build_model(
    options: argparse.Namespace,
    recipe: MultiModalRecipe,
    processor: VideoMambaMultiModalProcessor,
    output: Path,
    converts: bool,
):
    """Return the model to train and its teacher, None without masks.

    Args:
        output: where the converted `--vision-from` is put, as `start`. converts: this process does that.

    Raises:
        ValueError: a folder does not fit the recipe.
    """
    vocabulary = len(processor.tokenizer)
    before = None
    if options.init_from is not None:
        before = VideoMambaMultiModalModel.from_pretrained(options.init_from, dtype=torch.float32)
        config = before.config
        wanted = recipe.config(config.text_config, vocabulary)
        for name in ("num_frames", "image_size", "hidden_size", "num_hidden_layers", "patch_size"):
            ours, theirs = getattr(wanted.vision_config, name), getattr(config.vision_config, name)
            if ours != theirs:
                raise ValueError(f"--init-from {options.init_from}: its {name} is {theirs}, the recipe's {ours}")
        config.vision_config.drop_path_rate = recipe.drop_path
    else:
        bert = None if options.text_from is None else _load_bert(options.text_from)
        config = recipe.config(None if bert is None else bert.config, vocabulary)
    text = config.text_config
    if vocabulary > text.vocab_size or recipe.max_text_tokens > text.max_position_embeddings:
        raise ValueError(
            f"a text encoder of {text.vocab_size} words and {text.max_position_embeddings} positions cannot read "
            f"{vocabulary} words and {recipe.max_text_tokens} positions: give the tokenizer of this BERT, or "
            "--override max_text_tokens=..."
        )
    teacher, kind, more = None, VideoMambaMultiModalModel, ()
    if recipe.is_masked:
        teacher = load_clip_teacher(model_folder(options.teacher), config.vision_config)
        kind, more = VideoMambaMultiModalForMaskedPretraining, (teacher.width,)
    model = kind(config, *more)
    if before is not None:
        _load(model, before.state_dict(), lambda name: ".clip_decoder." in name, options.init_from)
    if options.vision_from is not None:
        start = output / "start"
        if converts:
            convert_videomamba(
                options.vision_from, start, num_frames=recipe.frames, image_size=recipe.image_size, dtype=torch.float32
            )
        encoder = VideoMambaModel.from_pretrained(start, dtype=torch.float32).state_dict()
        own = (".pool_norm.", "pool_norm.", "clip_decoder.")
        _load(model.vision_encoder, encoder, lambda name: name.startswith(own), options.vision_from)
    if options.text_from is not None:
        _load(model.text_encoder, bert.state_dict(), lambda name: ".crossattention." in name, options.text_from)
    return model, teacher


def _load_bert(folder: str) -> BertForMaskedLM:
    """Return the BERT of a folder with its head of masked words; a tower without one is refused."""
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind != "bert":
        raise ValueError(f"--text-from {folder} holds a {kind!r} model; give a BERT's folder")
    try:
        bert, info = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"--text-from {folder}: its weights are damaged ({error})") from error
    if info["missing_keys"]:
        raise ValueError(
            f"--text-from {folder}: its weights lack {min(info['missing_keys'])}; give a BERT with its head of masked "
            "words, such as bert-base-uncased"
        )
    return bert


def _load(module: torch.nn.Module, tensors: dict, is_new, where: str) -> None:
    """Load tensors into a module that has some more, for which `is_new` is true."""
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # sizes that differ; the text lists them all
        raise ValueError(f"{where} has other sizes than the recipe: {str(error).splitlines()[-1].strip()}") from error
    wrong = [*unexpected, *(name for name in missing if not is_new(name))]
    if wrong:
        raise ValueError(f"{where} does not fit the recipe, e.g. {wrong[0]}")
