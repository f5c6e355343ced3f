"""`video-ma2mba demo`: train a very small model on a few clips, save it, load it in a fresh process and ask it.

The weights start random and the training is minutes, so the model knows these kinds of clips and nothing else. What
is asked, and what counts as right, is in `demo_questions.py`.

    video-ma2mba demo --output runs/demo --seed 0

Dims: B batch, T tokens, F frames.
"""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

import modeling_video_ma2mba
from modeling_video_ma2mba import (
    Ma2mbaConfig,
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
    VideoMa2mbaImageProcessor,
    VideoMa2mbaProcessor,
)
from modeling_video_ma2mba.processing.frame_source import FrameSource
from modeling_video_ma2mba.processing.video_reader import iter_frames
from modeling_video_ma2mba.train.collator import IGNORE_INDEX, answer_positions
from modeling_video_ma2mba.train.demo_questions import (
    NUM_FRAMES,
    Ask,
    DemoClip,
    Verdict,
    asks_about,
    count_right,
    find_real_clips,
    format_answers,
    make_clips,
    pick_clips,
    swap_videos,
    vocabulary,
)

TRAIN_SEEDS, HELD_OUT_SEEDS = 500, 10  # of drawn clips; a seed gives none, one or two
ASKED_PER_KIND = 4  # drawn clips of one scene that are asked about, and as many of two
STEPS, BATCH_SIZE, LEARNING_RATE = 700, 24, 1.5e-3
REAL_SHARE = 0.05  # of the training samples, all real clips together
HELD_OUT_NEEDED = 0.75  # of the answers about clips never trained on; one colour in six is right by chance
SYSTEM_WORDS = "You are a helpful assistant .".split()

# All that the fresh process runs: no code of the training is in it.
_ASK_SCRIPT = """
import json, sys
import modeling_video_ma2mba
from tqdm import tqdm
from transformers import pipeline

asks = json.load(sys.stdin)
qa = pipeline("video-qa", model=sys.argv[1])
answers = [qa(max_new_tokens=12, **ask)["answer"] for ask in tqdm(asks, desc="asking")]
json.dump(answers, sys.stdout)
"""


def build_tiny_model(seed: int) -> tuple[VideoMa2mbaForConditionalGeneration, VideoMa2mbaProcessor]:
    """Return a model with random weights and its processor: frames of 56 px, 4 tokens each, the demo's own words."""
    special = ["<image>", "<video>", "<|system|>", "<|user|>", "<|assistant|>"]
    words = ["<|endoftext|>", "<unk>", *special, *SYSTEM_WORDS]
    words += [word for word in vocabulary() if word not in words]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=special,
    )
    text_config = Ma2mbaConfig(
        hidden_size=128,
        num_heads=8,
        head_dim=32,
        n_groups=1,
        num_hidden_layers=3,
        state_size=32,
        chunk_size=32,
        vocab_size=len(words),
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    vision_config = {
        "model_type": "clip_vision_model",
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,  # the last one is behind the feature layer and never runs
        "num_attention_heads": 4,
        "patch_size": 14,
        "image_size": 56,
    }
    config = VideoMa2mbaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=words.index("<image>"),
        video_token_id=words.index("<video>"),
    )
    torch.manual_seed(seed)
    model = VideoMa2mbaForConditionalGeneration(config)
    image_processor = VideoMa2mbaImageProcessor(size=56, frame_fit="pad")
    return model, VideoMa2mbaProcessor(image_processor, tokenizer, tokens_per_frame=config.tokens_per_frame)


class ClipQuestions(Dataset):
    """A sample is a clip with all its questions in a random order: `{"frames": FrameSource, "turns": [(str, str)]}`.

    Each file is read and fitted once; the frames are kept as uint8. Real clips and clips of one scene appear both at
    the processor's own rate and as `NUM_FRAMES` frames.
    """

    def __init__(self, clips: Sequence[DemoClip], processor: VideoMa2mbaProcessor, seed: int):
        self.clips, self.random = list(clips), random.Random(seed)
        fit = processor.image_processor.fit
        self.sources = {}
        for path in tqdm(dict.fromkeys(clip.path for clip in clips), desc="reading clips", leave=False):
            self.sources[path] = [_read(path, fit, fps=processor.fps)]
            if len(self.sources[path][0]) != NUM_FRAMES:
                self.sources[path].append(_read(path, fit, num_frames=NUM_FRAMES))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        clip = self.clips[index]
        turns = list(clip.answers.items())
        # Any question may be the first, the only one that has no earlier answers to lean on.
        self.random.shuffle(turns)
        return {"frames": self.random.choice(self.sources[clip.path]), "turns": turns}


def _read(path: Path, fit: Callable, **sampling) -> FrameSource:
    return FrameSource(np.stack([fit(frame) for _, chunk in iter_frames(str(path), **sampling) for frame in chunk]))


class QuestionCollator:
    """Makes a batch of conversations, with labels on the answers alone."""

    def __init__(self, processor: VideoMa2mbaProcessor):
        self.processor = processor

    def __call__(self, samples: list[dict]) -> dict:
        """Return `input_ids`, `attention_mask` and `labels`, (B, T), and `pixel_values_videos`, `FrameSource`s."""
        texts = [self.processor.apply_chat_template(_conversation(sample["turns"])) for sample in samples]
        batch = dict(self.processor(text=texts, videos=[sample["frames"] for sample in samples], return_tensors="pt"))
        tokenizer = self.processor.tokenizer
        assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
        rows = [answer_positions(ids, assistant, tokenizer.eos_token_id) for ids in batch["input_ids"]]
        batch["labels"] = batch["input_ids"].masked_fill(~torch.stack(rows), IGNORE_INDEX)
        return batch


def _conversation(turns: list[tuple[str, str]]) -> list[dict]:
    """Return chat messages about one video, which stands before the first question."""
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    messages[0]["content"].insert(0, {"type": "video"})
    return messages


def train(model, processor, clips: Sequence[DemoClip], output: Path, seed: int, steps: int) -> None:
    """Train in place with transformers' Trainer; progress bar with the time left."""
    arguments = TrainingArguments(
        output_dir=str(output / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        adam_beta2=0.95,
        weight_decay=0.05,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,  # frames are no tensors
        seed=seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=ClipQuestions(clips, processor, seed),
        data_collator=QuestionCollator(processor),
    )
    trainer.train()


def ask_fresh_process(model_path: Path, asks: Sequence[Ask]) -> list[str]:
    """Load the saved model in a new Python process through `pipeline("video-qa")` and return its answers."""
    # As many frames of every clip: its length must not give the answer away.
    questions = [{"video": str(a.clip.path), "question": a.question, "num_frames": NUM_FRAMES} for a in asks]
    # A bare checkout is found by the child where this process found it.
    root = str(Path(modeling_video_ma2mba.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", _ASK_SCRIPT, str(model_path)],
        input=json.dumps(questions),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise ChildProcessError(
            f"the process that loads {model_path} ended with code {done.returncode}; its error is above"
        )
    return json.loads(done.stdout)


def run_demo(output: str, seed: int = 0, steps: int | None = None) -> int:
    """Train, save, load and ask, printing each step; return 0 if the answers are right and follow the videos, else 1.

    Args:
        output: folder for the clips and the model; made if missing, files of an earlier run are overwritten.
        seed: of the weights and of the order of the training samples; the clips are always the same.
        steps: training steps; None: as many as the questions need.
    """
    # Tensors this small gain little from a second thread, and where another program keeps the cores busy, threads
    # that wait for each other at every operation take thirty times as long.
    torch.set_num_threads(1)
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1; leave it out for {STEPS}")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)

    real = find_real_clips()
    print(f"1. Clips: {len(real)} real ones, and drawn ones into {folder / 'clips'}", flush=True)
    drawn = make_clips(folder / "clips", TRAIN_SEEDS, first_seed=0)
    held_out = make_clips(folder / "held_out_clips", HELD_OUT_SEEDS, first_seed=TRAIN_SEEDS)
    seen = asks_about([*real, *pick_clips(drawn, ASKED_PER_KIND)])
    unseen = asks_about([*find_real_clips(held_out=True), *held_out])
    swapped = swap_videos(seen)

    model, processor = build_tiny_model(seed)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"2. Train: {size / 1e6:.1f} million random weights, {steps} steps of {BATCH_SIZE} clips", flush=True)
    real_repeats = round(REAL_SHARE * len(drawn) / len(real))
    train(model, processor, [*drawn, *real * real_repeats], folder, seed, steps)

    model_path = folder / "model"
    print(f"3. Save: {model_path}", flush=True)
    model.save_pretrained(model_path)
    processor.save_pretrained(model_path)

    print('4. Ask: a fresh process loads it through pipeline("video-qa")', flush=True)
    # One process for everything: loading takes longer than answering.
    answers = iter(ask_fresh_process(model_path, [*seen, *swapped, *unseen]))
    seen_answers, swapped_answers, unseen_answers = ([next(answers) for _ in asks] for asks in (seen, swapped, unseen))
    print(format_answers("clips of the training", seen, seen_answers))
    print(format_answers("the same questions with the videos swapped", swapped, swapped_answers))
    print(format_answers("clips never trained on", unseen, unseen_answers))
    return conclude(
        Verdict(seen, seen_answers, swapped, swapped_answers), count_right(unseen, unseen_answers), len(unseen)
    )


def conclude(verdict: Verdict, held_out_right: int, held_out_asked: int) -> int:
    """Print the last line; return the exit code: 0 passed, 1 not."""
    asked, needed = len(verdict.asks), math.ceil(HELD_OUT_NEEDED * held_out_asked)
    passed = verdict.passed and held_out_right >= needed
    print(
        f"{'PASSED' if passed else 'FAILED'}: {asked - verdict.wrong} of {asked} answers right; with the videos "
        f"swapped {asked - verdict.swapped_wrong} of {asked} followed the video, {verdict.stuck} stayed as they were; "
        f"{held_out_right} of {held_out_asked} right about clips never trained on (at least {needed} needed)",
        flush=True,
    )
    return 0 if passed else 1
