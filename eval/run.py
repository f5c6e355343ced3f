"""Run benchmarks: every video is watched once for all questions about it, by one process or several, and a run that
was killed goes on where it stopped.

    questions = read_questions(["video-mme"], data={"video-mme": Path("Video-MME")}, fps=1.0)
    answer_all(questions, answerer, folder, settings, rank=0, processes=1)
    outputs, _ = read_journals(folder, settings)

It scores nothing; results.py does, from the journal.
"""

import hashlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from modeling_video_ma2mba.eval.journal import Journal, Key, read_journals
from modeling_video_ma2mba.eval.progress import Progress
from modeling_video_ma2mba.eval.samples import Answerer, Output, Sample, View
from modeling_video_ma2mba.eval.task import Task, load_task
from modeling_video_ma2mba.eval.view_frames import view_times
from modeling_video_ma2mba.processing.frame_sampling import MAX_SAMPLES
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.data_report import DataReport, LeftOut

# No camera of any benchmark takes more.
MAX_FPS = 1000


@dataclass(frozen=True)
class TaskSamples:
    """A task with its samples, as they are asked in this run; rows that were left out, and notes about the data."""

    task: Task
    samples: Sequence[Sample]
    left_out: Sequence[LeftOut] = ()
    notes: Sequence[str] = ()


class Watch(NamedTuple):
    """A view, the questions about it, and how many frames it has, 0 where it cannot be read."""

    view: View
    samples: Sequence[Sample]
    frames: int


def read_questions(
    tasks: Sequence[str],
    data: Mapping[str, Path],
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    subtitles: bool = False,
    limit: int | None = None,
    allow_missing: bool = False,
) -> list[TaskSamples]:
    """Return the samples of tasks, by name.

    Args:
        data: the folder of a task, by its name; a task without one is fetched by `datasets`.
        fps, num_frames: how videos are sampled; one of the two.
        limit: the first so many samples of each task.
        allow_missing: leave out rows that cannot be used and those without their video, in place of raising.

    Raises:
        ValueError: an unknown task, data that cannot be used, or more frames than can be sampled.
    """
    for name, given, most in (("a number of frames", num_frames, MAX_SAMPLES), ("frames a second", fps, MAX_FPS)):
        if given is not None and given > most:
            raise ValueError(f"--frames: {given:,} is too much: {name} is at most {most:,}")
    unknown = sorted(set(data) - set(tasks))
    if unknown:
        raise ValueError(f"--data for {', '.join(unknown)}, which is not among the tasks: {', '.join(tasks)}")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"a task twice: {', '.join(tasks)}")
    read = []
    for name in tasks:
        task, report = load_task(name), DataReport()
        asked = {"fps": fps, "num_frames": num_frames, "subtitles": subtitles, "limit": limit}
        samples = task.read(data.get(name), **asked, report=report if allow_missing else None)
        if not samples:
            raise ValueError(f"{name}: not one sample can be used. {report.summary()}")
        read.append(TaskSamples(task, samples, report.left_out, report.notes))
    return read


def samples_hash(samples: Sequence[Sample]) -> str:
    """Return a SHA-256, as hex, of everything that is asked, wherever the videos lie."""
    asked = (replace(one, view=replace(one.view, video=PurePosixPath(one.cluster))) for one in samples)
    return hashlib.sha256("\n".join(map(repr, asked)).encode("utf-8", "surrogateescape")).hexdigest()


def plan_watches(questions: Sequence[TaskSamples], done: set[Key], processes: int, show: bool) -> list[list[Watch]]:
    """Return the watches of each process: one for each view that has a question left, the longest first.

    Each goes to the process that has the fewest frames so far, so that they end at about the same time. The plan
    depends on nothing but the files: all processes make the same one.
    """
    views: dict[View, list[Sample]] = {}
    for sample in (sample for one in questions for sample in one.samples):
        views.setdefault(sample.view, []).append(sample)
    left = {view: [one for one in samples if _key(one) not in done] for view, samples in views.items()}
    left = {view: samples for view, samples in left.items() if samples}
    bar = tqdm(left.items(), desc="looking", unit=" videos", disable=None if show else True)
    watches = [Watch(view, samples, _frames(view)) for view, samples in bar]
    shares: list[list[Watch]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for watch in sorted(watches, key=lambda watch: -watch.frames):
        least = loads.index(min(loads))
        shares[least].append(watch)
        loads[least] += watch.frames + 1
    return shares


def answer_all(
    questions: Sequence[TaskSamples],
    answerer: Answerer,
    folder: Path,
    settings: dict[str, Any],
    *,
    likelihood: bool = False,
    rank: int = 0,
    processes: int = 1,
    wait_for_everyone=lambda: None,
) -> None:
    """Ask what no journal in `folder` answers yet, and write it there.

    Args:
        settings: plain data that decides the answers; the journals in `folder` must have the same.
        likelihood: score the options where there are some, in place of asking for a text.
        rank, processes: this process's number from 0, and how many there are.
        wait_for_everyone: returns when all processes have called it.

    Raises:
        ValueError: the folder holds a run with other settings, or a journal is damaged.
    """
    outputs, unreadable = read_journals(folder, settings)
    share = plan_watches(questions, set(outputs) - unreadable, processes, show=rank == 0)[rank]
    # Nobody writes before everybody has read: they must all make the same plan.
    wait_for_everyone()
    title = f"process 1 of {processes}" if processes > 1 else "asking"
    total = sum(watch.frames for watch in share)
    with (
        Journal(folder, rank, settings) as journal,
        Progress(title, len(share), total, show=rank == 0) as progress,
    ):
        if rank == 0 and len(outputs) > len(unreadable):
            tqdm.write(f"going on: {len(outputs) - len(unreadable)} questions are answered already", file=sys.stderr)
        for watch in share:
            read = itertools.count()

            def on_frame(read: Iterator[int] = read) -> None:
                next(read)
                progress.read()

            found, is_unreadable = _answer(answerer, watch, likelihood, on_frame)
            journal.add(watch.samples, found, is_unreadable)
            progress.video_done(max(0, watch.frames - next(read)), sum(output.error is not None for output in found))
    wait_for_everyone()


def _answer(
    answerer: Answerer, watch: Watch, likelihood: bool, on_frame: Callable[[], None]
) -> tuple[list[Output], bool]:
    """Return the outputs of a watch, and whether the video could not be read."""
    try:
        seen = answerer.watch(watch.view, on_frame)
    except VideoReadError as error:
        return [Output(error=" ".join(str(error).split()))] * len(watch.samples), True
    outputs: dict[Key, Output] = {}
    for is_scored, give in ((False, answerer.answer), (True, answerer.score_options)):
        asked = [one for one in watch.samples if (likelihood and bool(one.options)) == is_scored]
        if asked:
            outputs |= {_key(one): _checked(one, output) for one, output in zip(asked, give(seen, asked))}
    return [outputs[_key(one)] for one in watch.samples], False


def _checked(sample: Sample, output: Output) -> Output:
    """Return the output; likelihoods of a model that computes nonsense are an error, and no answer."""
    values = output.log_likelihoods
    if values is None or (len(values) == len(sample.options) and all(map(math.isfinite, values))):
        return output
    return Output(error=f"the model gives log-likelihoods {values} to {len(sample.options)} options")


def _key(sample: Sample) -> Key:
    return sample.task, sample.id


def _frames(view: View) -> int:
    try:
        return len(view_times(view))
    except VideoReadError:
        return 0  # `watch` says why
