"""Does VideoMamba read motion? Small models trained from nothing on clips in which motion alone decides the class.

    python benchmarks/videomamba_evidence.py

Arms, each over the same seeds and clips (`train/motion_clips.py`: one class of a pair is the other played backwards):

    both directions         the model
    one direction           without the forward branches: read backwards, where the class token comes last
    shuffled frames         the model, trained and tested on clips whose frames are in random order: 1/2 at best
    wider                   a model of twice the width
    wider, distilled        the same with "both directions" of its seed as teacher
    finer                   the model with patches of half the side
    finer, pre-trained      masked pre-training on the same clips without their labels, then the same as "finer"; the
                            teacher is the vision tower of the shipped model, which has seen single pictures only

It trains with the project's trainer on clips in memory. Accuracy is over held-out clips, with Wilson's interval.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from result import write_result
from torch.utils.data import Dataset
from transformers import set_seed

from modeling_video_ma2mba import VideoMambaForVideoClassification, VideoMambaModel
from modeling_video_ma2mba.eval.intervals import wilson_interval
from modeling_video_ma2mba.shipped_model import SHIPPED, model_folder
from modeling_video_ma2mba.train.clip_set import ClipCollator, ClipViews
from modeling_video_ma2mba.train.clip_teacher import load_clip_teacher
from modeling_video_ma2mba.train.masked_pretraining import VideoMambaForMaskedPretraining
from modeling_video_ma2mba.train.masked_trainer import MaskedClipCollator, MaskedPretrainingTrainer
from modeling_video_ma2mba.train.motion_clips import MOTIONS, draw_motion
from modeling_video_ma2mba.train.recipes import training_arguments
from modeling_video_ma2mba.train.self_distillation import VideoMambaStudentForVideoClassification, without_teacher
from modeling_video_ma2mba.train.videomamba_recipes import load_videomamba_recipe, schedule_arguments
from modeling_video_ma2mba.train.videomamba_trainer import VideoMambaTrainer

PRE_TRAINED = "finer, pre-trained"
ARMS = (
    "both directions", "one direction", "shuffled frames", "wider", "wider, distilled", "finer", PRE_TRAINED,
)  # fmt: skip
FRAMES, SIZE, PATCH, LAYERS, WIDTH = 8, 16, 8, 2, 32
TEST_CLIPS = 300


class MotionSet(Dataset):
    """Clips drawn into memory, classes in turn, frames (F, 3, H, W) uint8; drawn by a `ClipSampler`."""

    def __init__(self, count: int, seed: int, shuffled: bool):
        self.labels = [index % len(MOTIONS) for index in range(count)]
        self.clips = []
        for index, label in enumerate(self.labels):
            frames = draw_motion((seed, index), label, FRAMES, SIZE).transpose(0, 3, 1, 2)
            order = np.random.default_rng((seed, index, 1)).permutation(FRAMES) if shuffled else slice(None)
            self.clips.append(torch.from_numpy(np.ascontiguousarray(frames[order])))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw) -> ClipViews:
        return ClipViews([self.clips[draw.index]], self.labels[draw.index], tuple(draw[:2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=1200, help="to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=5e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--pretraining-epochs", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="default: all")
    options = parser.parse_args()
    sizes = [
        "global_batch_size=32",
        "rate_batch=32",
        f"image_size={SIZE}",
        f"frames={FRAMES}",
        f"size={{hidden_size: {WIDTH}, num_hidden_layers: {LAYERS}, patch_size: {PATCH}}}",
    ]
    recipe = load_videomamba_recipe(
        "tiny", overrides=[f"epochs={options.epochs}", f"learning_rate={options.rate}", *sizes]
    )
    masked = load_videomamba_recipe("masked-tiny", overrides=[f"epochs={options.pretraining_epochs}", *sizes])
    settings = {"recipe": recipe.as_dict(), "pretraining": masked.as_dict()}
    settings |= {"train_clips": options.clips, "test_clips": TEST_CLIPS}
    settings["threads"] = torch.get_num_threads()
    rows = []
    for seed in range(options.seeds):
        teacher = None
        for arm in options.arms:
            recipes = [dataclasses.replace(one, seed=seed) for one in (recipe, masked)]
            row, model = run_arm(arm, *recipes, options.clips, teacher)
            teacher = model if arm == "both directions" else teacher
            rows.append(row)
            print(row, flush=True)
        # After each seed: a run that is stopped leaves those that were finished.
        print(f"wrote {write_result('videomamba_evidence', settings, rows)}", flush=True)


def run_arm(arm: str, recipe, masked, count: int, teacher) -> tuple[dict, torch.nn.Module]:
    """Train and test one arm; return its row and the model.

    Args:
        masked: the recipe of pre-training.
    """
    shuffled, start = arm == "shuffled frames", time.process_time()
    config = recipe.config(len(MOTIONS), list(MOTIONS))
    config.bidirectional = arm != "one direction"
    if "wider" in arm:
        config.hidden_size *= 2
    if "finer" in arm:
        config.patch_size //= 2
    encoder = pretrain(masked, config, count) if arm == PRE_TRAINED else None
    set_seed(recipe.seed)
    if arm == "wider, distilled":
        if teacher is None:
            raise ValueError('the teacher is the arm "both directions"; add it to --arms, before this one')
        model = VideoMambaStudentForVideoClassification(config, teacher.config.hidden_size)
        teacher = teacher.videomamba
    else:
        model, teacher = VideoMambaForVideoClassification(config), None
    if encoder is not None:
        model.videomamba.load_state_dict(encoder.state_dict())
    recipe, clips = recipe.scaled(), MotionSet(count, 2 * recipe.seed, shuffled)
    train(VideoMambaTrainer, model, recipe, clips, ClipCollator(recipe, len(MOTIONS)), teacher)
    model = (model if teacher is None else without_teacher(model)).eval()
    test = MotionSet(TEST_CLIPS, 2 * recipe.seed + 1, shuffled)
    with torch.no_grad():
        answers = [
            model(pixel_values_videos=torch.stack(test.clips[i : i + 50])).logits for i in range(0, len(test), 50)
        ]
    answers, labels = torch.cat(answers).argmax(-1), torch.tensor(test.labels)
    right = int((answers == labels).sum())
    low, high = wilson_interval(right, len(test))
    pairs = {
        f"pair {MOTIONS[2 * pair]}": round((answers == labels)[labels // 2 == pair].float().mean().item(), 3)
        for pair in range(len(MOTIONS) // 2)
    }
    row = {
        "arm": arm,
        "seed": recipe.seed,
        "right": right,
        "asked": len(test),
        "low": round(low, 4),
        "high": round(high, 4),
        **pairs,
        "right_pair": round((answers // 2 == labels // 2).float().mean().item(), 3),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    return row, model


def pretrain(recipe, config, count: int) -> VideoMambaModel:
    """Return an encoder that has seen the clips of its seed, masked and without labels."""
    teacher = load_clip_teacher(model_folder(SHIPPED), config)
    set_seed(recipe.seed)
    model, recipe = VideoMambaForMaskedPretraining(config, teacher.width), recipe.scaled()
    model.freeze_unused()
    clips = MotionSet(count, 2 * recipe.seed, shuffled=False)
    train(MaskedPretrainingTrainer, model, recipe, clips, MaskedClipCollator(config.patches_per_frame), teacher)
    return model.videomamba


def train(kind, model, recipe, clips: MotionSet, collator, teacher) -> None:
    """Train a model in place, by a scaled recipe."""
    with TemporaryDirectory() as folder:
        arguments = training_arguments(
            recipe, folder, 32, 1, **schedule_arguments(recipe), save_strategy="no", report_to=[], use_cpu=True,
            logging_strategy="no",
        )  # fmt: skip
        trainer = kind(
            model=model,
            args=arguments,
            train_dataset=clips,
            data_collator=collator,
            recipe=recipe,
            teacher=teacher,
        )
        trainer.train()


if __name__ == "__main__":
    main()
