"""Sample videos of the web page: scenes drawn and encoded when the page starts, with questions to try."""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from modeling_video_ma2mba.train.make_synthetic_data import FPS
from modeling_video_ma2mba.train.scene_questions import ask, combinations
from modeling_video_ma2mba.train.synthetic_video import make_clip, write_video

# As large as a person likes to see; the model takes them down to its own size.
SIZE = 224
SECONDS = (16, 32, 48)
QUESTIONS = 4


@dataclass(frozen=True)
class Sample:
    """A video and questions that fit it. `name` is what a person sees."""

    name: str
    path: Path
    questions: tuple[str, ...]


def make_samples(folder: Path) -> list[Sample]:
    """Write the sample videos into an existing folder: MP4, H.264, 4:2:0, which every browser plays."""
    samples = []
    for seed, seconds in enumerate(tqdm(SECONDS, desc="sample videos", unit="video")):
        clip = make_clip(seed, seconds * FPS, SIZE, combinations=combinations("held-out"))
        path = folder / f"sample_{seconds}_seconds.mp4"
        write_video(path, clip.frames, fps=FPS, container_options={"movflags": "faststart"})
        questions = tuple(question.text for question in ask(clip, QUESTIONS, seed))
        samples.append(Sample(f"{len(clip.scenes)} scenes, {seconds} s", path, questions))
    return samples
