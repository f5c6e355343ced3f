"""Write synthetic videos and their annotations, in the published formats that the readers take.

    python train/make_synthetic_data.py 2 --output data --count 7000 --frames 8 16 32 64 --workers 2

writes `data/stage2.json` and `data/stage2/*.mp4`. The parts, with the reader that takes each:

- `1`: `stage1.json` (llava-pretrain); one scene each, a video and "red circle left .", or an image and "red circle at
  top left .".
- `1.5`: `stage1_5.jsonl` (scenewalk-videos); whole videos with a caption for each scene.
- `2`: `stage2.json` (llava); 20 questions about each video, the description last, or a single question.
- `evaluation`: `evaluation.json` (llava); one question about each video, with its `type`, `form` and `frames`;
  held-out combinations and wordings, the types and lengths in equal shares.

Videos have 1 frame per second, so that a model that reads 1 FPS sees every frame. The same arguments give the same
files, whatever the number of workers; no two parts share a clip.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FILES = {"1": "stage1.json", "1.5": "stage1_5.jsonl", "2": "stage2.json", "evaluation": "evaluation.json"}
PARTS = tuple(FILES)
FRAMES = {
    "1": (4, 8),
    "1.5": (8, 16, 24, 32),
    "2": (8, 16, 24, 32, 48, 64),
    "evaluation": (8, 16, 24, 32, 48, 64),
}
QUESTIONS = 20  # about a video of stage 2
SPLITS = ("training", "held-out")
ATTEMPTS = 100  # clips tried for a question of a given type: some have nothing unique to ask about
FPS = 1
# Compression that keeps a thin digit. The bytes are the same every time: one thread, and no macroblock tree, whose
# choices in x264 differ from process to process.
ENCODER = {"preset": "veryfast", "crf": "18", "threads": "1", "x264-params": "mbtree=0"}
# Of a seed, next to the user's: parts draw different clips.
_PART_SEEDS = {"1": 1, "1.5": 2, "2": 3, "evaluation": 4}
_CHUNK = 16  # rows handed to a worker at a time


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call of `write_data` writes.

    Attributes:
        part: one of `PARTS`.
        output: folder for the annotation file, with the media in a folder of its name.
        count: rows, each with a video or image of its own.
        frames: lengths of the videos, taken in turn.
        size: side of a frame in pixels.
        seed: another seed gives other clips.
        image_share: part 1: share of images.
        single_share: part 2: share of rows with one question and no description.
        combinations, wordings: evaluation: "held-out", or "training" to see what each costs.
    """

    part: str
    output: Path
    count: int
    frames: tuple[int, ...]
    size: int = 112
    seed: int = 0
    image_share: float = 0.5
    single_share: float = 0.2
    combinations: str = "held-out"
    wordings: str = "held-out"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part={self.part!r} is unknown; choose one of {', '.join(PARTS)}")
        fewest = 2 if self.part == "1" else 8
        if self.count < 1 or self.seed < 0:
            raise ValueError(f"count={self.count} must be 1 or more and seed={self.seed} 0 or more")
        if self.size < 28 or self.size % 2:
            raise ValueError(f"size={self.size} must be even and 28 or more: the codec halves it, a digit has to fit")
        if not self.frames or min(self.frames) < fewest:
            raise ValueError(f"frames={self.frames} of part {self.part} must be lengths of {fewest} or more")
        for field in ("image_share", "single_share"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)} must lie between 0 and 1")
        for field in ("combinations", "wordings"):
            if getattr(self, field) not in SPLITS:
                raise ValueError(f"{field}={getattr(self, field)!r} is unknown; choose one of {', '.join(SPLITS)}")

    @property
    def annotations(self) -> Path:
        return self.output / FILES[self.part]

    @property
    def media(self) -> Path:
        return self.annotations.with_suffix("")


def write_data(plan: Plan, workers: int = 0) -> Path:
    """Write media and annotations; return the annotation file, which is written last.

    Args:
        plan: what to write.
        workers: processes; 0 is this one.
    """
    from tqdm import tqdm

    plan.media.mkdir(parents=True, exist_ok=True)
    rows = list(tqdm(_rows(plan, workers), total=plan.count, desc=plan.annotations.name))
    with open(plan.annotations, "w", encoding="utf-8") as file:
        if plan.annotations.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            json.dump(rows, file, indent=1)
    return plan.annotations


def _rows(plan: Plan, workers: int) -> Iterator[dict]:
    if workers == 0:
        yield from (make_row(plan, index) for index in range(plan.count))
        return
    # Not forked: the caller may have threads, of torch for instance.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(make_row, [plan] * plan.count, range(plan.count), chunksize=_CHUNK)


def make_row(plan: Plan, index: int) -> dict:
    """Write the video or image of one row and return the row."""
    return _MAKERS[plan.part](plan, index)


def clip_seed(plan: Plan, index: int, attempt: int = 0) -> tuple[int, ...]:
    """Return the seed of a row's clip: another one for each part, seed, row and attempt."""
    return (_PART_SEEDS[plan.part], plan.seed, index, attempt)


# The seeds of a row's other choices: its clip's and one more number.
def _choice_seed(plan: Plan, index: int) -> tuple[int, ...]:
    return (*clip_seed(plan, index), 1)


def _request_seed(plan: Plan, index: int) -> tuple[int, ...]:
    return (*clip_seed(plan, index), 2)


def _question_seed(plan: Plan, index: int, attempt: int = 0) -> tuple[int, ...]:
    return (*clip_seed(plan, index, attempt), 3)


def _draw(plan: Plan, index: int, attempt: int = 0, *, frames: int | None = None, num_scenes: int | None = None):
    from modeling_video_ma2mba.train.scene_questions import combinations
    from modeling_video_ma2mba.train.synthetic_video import make_clip

    split = plan.combinations if plan.part == "evaluation" else "training"
    return make_clip(
        clip_seed(plan, index, attempt),
        plan.frames[index % len(plan.frames)] if frames is None else frames,
        plan.size,
        num_scenes=num_scenes,
        combinations=combinations(split),
    )


def _stage1(plan: Plan, index: int) -> dict:
    import numpy as np
    from PIL import Image

    from modeling_video_ma2mba.train.scene_questions import frame_caption, request_description, scene_caption

    random = np.random.default_rng(_choice_seed(plan, index))
    clip = _draw(plan, index, num_scenes=1)
    if random.random() >= plan.image_share:
        media, caption = {"video": _write(plan, index, clip)}, scene_caption(clip, 0)
    else:
        frame = int(random.integers(len(clip.frames)))
        # Else few pictures would have a digit.
        if clip.needle is not None and random.random() < 0.5:
            frame = clip.needle.frame
        path = plan.media / f"{index:06d}.png"
        Image.fromarray(clip.frames[frame]).save(path)
        media, caption = {"image": _relative(plan, path)}, frame_caption(clip, frame)
    question = request_description(_request_seed(plan, index))
    return {"id": _id(plan, index), **media, "conversations": _turns([(question, caption)], *media)}


def _stage1_5(plan: Plan, index: int) -> dict:
    from modeling_video_ma2mba.train.scene_questions import request_description, scene_caption

    clip = _draw(plan, index)
    scenes = [
        {"start_frame": scene.start_frame, "end_frame": scene.end_frame, "start_fps": FPS, "end_fps": FPS}
        for scene in clip.scenes
    ]
    question = request_description(_request_seed(plan, index))
    captions = [(question, scene_caption(clip, place)) for place in range(len(clip.scenes))]
    return {
        "id": _id(plan, index),
        "video": _write(plan, index, clip),
        "total_time": len(clip.frames) / FPS,
        "clip_num": len(scenes),
        "scenes": scenes,
        "conversations": _turns(captions),
    }


def _stage2(plan: Plan, index: int) -> dict:
    import numpy as np

    from modeling_video_ma2mba.train.scene_questions import ask, describe, request_description

    is_single = np.random.default_rng(_choice_seed(plan, index)).random() < plan.single_share
    clip = _draw(plan, index)
    questions = ask(clip, 1 if is_single else QUESTIONS, _question_seed(plan, index))
    asked = [(question.text, question.answer) for question in questions]
    if not is_single:
        asked.append((request_description(_request_seed(plan, index)), describe(clip)))
    return {"id": _id(plan, index), "video": _write(plan, index, clip), "conversations": _turns(asked, "video")}


def _evaluation(plan: Plan, index: int) -> dict:
    from modeling_video_ma2mba.train.scene_questions import TYPES, ask_one

    type, turn = TYPES[index % len(TYPES)], index // len(TYPES)
    frames = plan.frames[turn % len(plan.frames)]
    for attempt in range(ATTEMPTS):
        clip = _draw(plan, index, attempt, frames=frames)
        question = ask_one(clip, type, _question_seed(plan, index, attempt), plan.wordings)
        if question is not None:
            return {
                "id": _id(plan, index),
                "video": _write(plan, index, clip),
                "type": type,
                "form": question.form,
                "frames": frames,
                "conversations": _turns([(question.text, question.answer)], "video"),
            }
    raise RuntimeError(f"{ATTEMPTS} clips of {frames} frames have nothing to ask for type {type!r}; row {index}")


_MAKERS = {"1": _stage1, "1.5": _stage1_5, "2": _stage2, "evaluation": _evaluation}


def _id(plan: Plan, index: int) -> str:
    return f"{plan.media.name}-{plan.seed}-{index:06d}"


def _write(plan: Plan, index: int, clip) -> str:
    from modeling_video_ma2mba.train.synthetic_video import write_video

    path = plan.media / f"{index:06d}.mp4"
    write_video(path, clip.frames, fps=FPS, options=ENCODER)
    return _relative(plan, path)


def _relative(plan: Plan, path: Path) -> str:
    return path.relative_to(plan.output).as_posix()


def _turns(asked: Sequence[tuple[str, str]], media: str | None = None) -> list[dict]:
    """Return `conversations`; the first question names the media, if given."""
    turns = []
    for place, (question, answer) in enumerate(asked):
        head = f"<{media}>\n" if media and place == 0 else ""
        turns += [{"from": "human", "value": head + question}, {"from": "gpt", "value": answer}]
    return turns


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input."""
    options = _parser().parse_args(argv)
    words = vars(options)
    workers = words.pop("workers")
    words["frames"] = tuple(options.frames or FRAMES[options.part])
    try:
        print(f"wrote {write_data(Plan(**words), workers)}")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"make_synthetic_data: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write synthetic videos with captions or questions about them.")
    parser.add_argument("part", choices=PARTS, help="training stage, or evaluation")
    parser.add_argument("--output", type=Path, required=True, help="folder for the annotations and their media")
    parser.add_argument("--count", type=int, required=True, help="rows, each with a video or image of its own")
    parser.add_argument(
        "--frames", type=int, nargs="+", help="lengths of the videos, taken in turn (default: 8 to 64, by part)"
    )
    parser.add_argument("--size", type=int, default=112, help="side of a frame in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other clips (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: this one alone)")
    parser.add_argument("--image-share", type=float, default=0.5, help="part 1: of the rows (default: %(default)s)")
    parser.add_argument(
        "--single-share", type=float, default=0.2, help="part 2: rows with one question only (default: %(default)s)"
    )
    for field in ("combinations", "wordings"):
        parser.add_argument(f"--{field}", choices=SPLITS, default="held-out", help="evaluation (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
