"""`video-ma2mba demo`: the shipped model answers questions about videos that it has never seen.

The videos are made on the spot, as mp4 files. Combinations of colour, shape and direction, and wordings of questions
are those that were held out of its training. It knows this kind of video and nothing else.
"""

import time
from pathlib import Path

from tqdm import tqdm
from transformers import pipeline
from transformers.utils import logging

from modeling_video_ma2mba.eval.intervals import wilson_interval
from modeling_video_ma2mba.eval.scene_answers import MAX_NEW_TOKENS, Answer, answer, read_questions
from modeling_video_ma2mba.train.make_synthetic_data import Plan, write_data

FRAMES = (16, 32, 64)
# Of the videos: another one than that of the evaluation whose scores are in the card.
_FIRST_SEED = 1000
NEEDED = 0.7  # of the answers right, or something is broken


def run_demo(output: str, seed: int, questions: int) -> int:
    """Make videos, ask about them, print every answer; return the exit code: 0 passed, 1 too many answers wrong."""
    if questions < 1:
        raise ValueError(f"questions={questions} must be at least 1")
    folder = Path(output)
    print(f"1. Videos: {questions} of {', '.join(map(str, FRAMES))} s, drawn and encoded into {folder / 'evaluation'}")
    plan = Plan(part="evaluation", output=folder, count=questions, frames=FRAMES, seed=_FIRST_SEED + seed)
    asked = read_questions(write_data(plan))

    print('2. Ask: pipeline("video-qa"), one question about each video', flush=True)
    logging.set_verbosity_error()  # that no model was named is the point here
    qa = pipeline("video-qa")
    start = time.perf_counter()
    answers = [
        answer(one, qa(video=str(one.video), question=one.question, max_new_tokens=MAX_NEW_TOKENS)["answer"])
        for one in tqdm(asked, desc="asking", unit="question")
    ]
    seconds = time.perf_counter() - start
    for one, row in zip(asked, answers):
        print(format_answer(row, one.video.name))

    right = sum(row.right for row in answers)
    low, high = wilson_interval(right, len(answers))
    passed = right >= NEEDED * len(answers)
    print(
        f"{'PASSED' if passed else 'FAILED'}: {right} of {len(answers)} answers right ({right / len(answers):.0%}, "
        f"95 % interval {low:.0%} to {high:.0%}) about videos and wordings held out of training, in {seconds:.0f} s"
    )
    return 0 if passed else 1


def format_answer(row: Answer, video: str) -> str:
    """Return a line: what was asked, what was said, and what would have been right if that was wrong."""
    verdict = "right" if row.right else f"wrong: {row.expected}"
    return f"{video}  {row.frames:3} s  {row.type:8}  {row.question:60}  {row.given:16}  {verdict}"
