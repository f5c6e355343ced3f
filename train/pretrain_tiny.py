"""Pre-train the parts of the small model that ships with the project, in place of CLIP and Mamba-2 weights.

    python train/pretrain_tiny.py --output runs/tiny/start

The vision tower learns to name colour, shape, digit and place in single pictures, with linear heads that are thrown
away. The language model learns from text alone: a story that says what each frame shows, then questions about it. The
two run side by side, as processes with one thread each, and end in one model folder that `stage1.py` starts from. The
projector stays random. Nothing held out (combinations, wordings) is seen.

Dims: P pictures, B stories, T tokens, V visual tokens of a picture, D width of the tower.
"""

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

TOWER_STEPS, PICTURES, TOWER_RATE = 2750, 128, 1e-3
LANGUAGE_STEPS, STORIES, LANGUAGE_RATE = 2400, 8, 3e-3
PICTURES_PER_CLIP, CLIP_FRAMES = 4, 8
STORY_FRAMES = (6, 12, 24, 48)  # each a sentence of about five words; longer stories join in later
TEXT_SHARE = 0.5  # of the steps: to predict the story helps to remember it, and once that is learned only adds noise
STORY_SIZE = 28  # pixels; nobody looks at a story's frames
QUESTIONS = 20
# Of a seed, behind the user's: no other part of the training draws these clips.
_TOWER_SEED, _STORY_SEED = 101, 102


def pretrain(output: Path, seed: int, tower_steps: int, language_steps: int) -> None:
    """Train both parts and write model and processor to `output`; their logs stand beside them."""
    from safetensors.torch import load_file

    from modeling_video_ma2mba.train.tiny_model import build_tiny_model

    output.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")  # not forked: torch has threads
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        tower = pool.submit(_train_tower, output, seed, tower_steps)
        language = pool.submit(_train_language, output, seed, language_steps)
        weights = [load_file(done.result()) for done in (tower, language)]
    model, processor = build_tiny_model(seed)
    model.model.vision_tower.load_state_dict(weights[0])
    # The head is tied to the embedding, which is in here.
    model.model.language_model.load_state_dict(weights[1])
    model.save_pretrained(output)
    processor.save_pretrained(output)


def _train_tower(output: Path, seed: int, steps: int) -> Path:
    """Train tower and heads on single pictures; return the file with the tower's weights."""
    import torch
    from torch.utils.data import Dataset
    from transformers import Trainer

    from modeling_video_ma2mba.train.picture_heads import TowerWithHeads, draw_pictures
    from modeling_video_ma2mba.train.tiny_model import build_tiny_model

    torch.set_num_threads(1)
    model, processor = build_tiny_model(seed)

    class Pictures(Dataset):
        def __len__(self):
            return steps

        def __getitem__(self, index):
            seeds = [(_TOWER_SEED, seed, index, clip) for clip in range(PICTURES // PICTURES_PER_CLIP)]
            return draw_pictures(seeds, CLIP_FRAMES, PICTURES_PER_CLIP, processor.image_processor.fit)

    heads = TowerWithHeads(model)
    arguments = _arguments(output / "tower", steps, TOWER_RATE, seed)
    trainer = Trainer(model=heads, args=arguments, train_dataset=Pictures(), data_collator=lambda batches: batches[0])
    return _train(trainer, heads.tower, output / "tower")


def _train_language(output: Path, seed: int, steps: int) -> Path:
    """Train the language model on stories; return the file with its weights."""
    import torch
    from torch.utils.data import Dataset

    from modeling_video_ma2mba.train.parameter_groups import set_trained_parts
    from modeling_video_ma2mba.train.recipes import Recipe
    from modeling_video_ma2mba.train.stories import StoryCollator, tell_story
    from modeling_video_ma2mba.train.tiny_model import build_tiny_model
    from modeling_video_ma2mba.train.trainer import VideoMa2mbaTrainer

    torch.set_num_threads(1)
    model, processor = build_tiny_model(seed)
    recipe = Recipe(
        name="tiny",
        stage="language",
        trains=("language_model",),
        learning_rate=LANGUAGE_RATE,
        global_batch_size=STORIES,
        epochs=1,
    )
    set_trained_parts(model, recipe.trains)

    class Stories(Dataset):
        def __len__(self):
            return steps

        def __getitem__(self, index):
            lengths = 1 + len(STORY_FRAMES) * index // steps
            frames = STORY_FRAMES[index % lengths]
            seeds = [(_STORY_SEED, seed, index, row) for row in range(STORIES)]
            learn_text = index < TEXT_SHARE * steps
            return [tell_story(one, frames, STORY_SIZE, QUESTIONS, learn_text) for one in seeds]

    trainer = VideoMa2mbaTrainer(
        model=model,
        args=_arguments(output / "language", steps, LANGUAGE_RATE, seed),
        train_dataset=Stories(),
        data_collator=StoryCollator(processor),
        recipe=recipe,
    )
    return _train(trainer, model.model.language_model, output / "language")


def _arguments(output: Path, steps: int, rate: float, seed: int):
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=1,  # an item is a batch
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 25),
        adam_beta2=0.95,
        weight_decay=0.05,
        logging_steps=max(1, steps // 50),
        train_sampling_strategy="sequential",  # every item is new, and the stories get longer
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=True,
        seed=seed,
    )


def _train(trainer, part, output: Path) -> Path:
    from safetensors.torch import save_model

    trainer.train()
    output.mkdir(parents=True, exist_ok=True)
    trainer.state.save_to_json(str(output / "trainer_state.json"))
    save_model(part, str(output / "weights.safetensors"))
    return output / "weights.safetensors"


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Pre-train vision tower and language model of the small model.")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS, help="default: %(default)s")
    parser.add_argument("--language-steps", type=int, default=LANGUAGE_STEPS, help="default: %(default)s")
    options = parser.parse_args(argv)
    if min(options.tower_steps, options.language_steps) < 1 or options.seed < 0:
        print("pretrain_tiny: error: steps must be at least 1, the seed at least 0", file=sys.stderr)
        return 2
    try:
        pretrain(options.output, options.seed, options.tower_steps, options.language_steps)
    except OSError as error:
        print(f"pretrain_tiny: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
