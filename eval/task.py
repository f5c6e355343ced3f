"""Benchmarks as data: `eval/tasks/*.yaml` says what is asked and how it is scored; here it is loaded and applied.

    task = load_task("mvbench")
    samples = task.read(Path("MVBench"), num_frames=16)
    score = task.score(samples[0], output)

A change of a prompt, a parser or a rule raises the file's `version`. It asks no model and no judge; summary.py counts.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from modeling_video_ma2mba.eval.parsers import LETTERS, OFFICIAL, said_choice, short_answer
from modeling_video_ma2mba.eval.samples import Output, Sample, Score, Subtitle, View
from modeling_video_ma2mba.eval.subtitles import lines_at
from modeling_video_ma2mba.eval.task_media import ENDINGS, TaskMedia
from modeling_video_ma2mba.eval.task_readers import (
    QUESTIONS,
    Part,
    Question,
    annotation_files,
    hub_rows,
    local_rows,
    with_cuts,
)
from modeling_video_ma2mba.eval.view_frames import view_times
from modeling_video_ma2mba.processing.frame_sampling import DEFAULT_FPS, check_sampling
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.annotation_files import Row, samples_from_rows
from modeling_video_ma2mba.train.data_report import BadRow, DataReport, printable
from modeling_video_ma2mba.train.media_index import NOT_FOUND

FOLDER = Path(__file__).parent / "tasks"
CUT_FILE = "cut_frame_mapping_valid.json"
NO_SUBTITLES = "No subtitles available"
SHOWN_BAD_ROWS = 5

# Parsers of open answers: an exact match, which is a lower bound, or none at all. A judge scores them.
OPEN_PARSERS = ("exact", "none")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark.

    Attributes:
        name: of the file in `eval/tasks/`.
        title, licence: for reports.
        version: of prompt, parser and rules together.
        hub: data set, split and revision on the hub (None: the newest; results name what was read), or None.
        cache_folder: below $HF_HOME, with the media, when no folder is given; where lmms-eval unpacks them.
        samples: how many the published benchmark has.
        reader: in `task_readers.QUESTIONS`.
        columns: that a row must have.
        parts: with annotation files of their own.
        roots: folders from which the parts' folders start.
        anywhere: whether a video may lie in any folder, as its name is unique.
        subtitles: `rule` ("prompt" or "interleave") and `folder`; None: the benchmark has none.
        prompt, prompt_with_subtitles, option: templates.
        system, prefix: see `View` and `Sample`.
        num_frames_sampling: of `SAMPLING_RULES`, when a number of frames is asked for; "model" else.
        parser: of `parsers.OFFICIAL` or `OPEN_PARSERS`.
        judge: names of judge prompts by part; empty: no judge is needed.
        groups: names that every sample is grouped by.
        metrics: by name: `{}` is the mean over samples, `where` a mean over those of some group, `mean_over` the mean
            of the means of a group's values (see summary.py). The first is the published figure.
        max_new_tokens: limit of an answer.
    """

    name: str
    title: str
    version: int
    licence: str
    hub: Mapping[str, Any] | None
    samples: int
    reader: str
    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    prompt: str
    parser: str
    groups: tuple[str, ...]
    metrics: Mapping[str, Mapping[str, Any]]
    max_new_tokens: int
    cache_folder: str | None = None
    roots: tuple[str, ...] = (".",)
    anywhere: bool = False
    subtitles: Mapping[str, str] | None = None
    prompt_with_subtitles: str | None = None
    option: str = ""
    system: str | None = None
    prefix: str = ""
    num_frames_sampling: str = "model"
    judge: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def annotation_files(self, data: Path) -> list[Path]:
        """Return the annotation files that `read` reads below `data`; raises ValueError where some are missing."""
        files, missing = [], []
        for part in self.parts:
            found = annotation_files(part, data)
            files += found
            missing += [] if found else [" or ".join(part.files)]
        if missing:
            more = f", and {len(missing) - SHOWN_BAD_ROWS} more" if len(missing) > SHOWN_BAD_ROWS else ""
            raise ValueError(
                f"{self.name}: {len(missing)} of {len(self.parts)} annotation files are not below {data}: "
                f"{', '.join(missing[:SHOWN_BAD_ROWS])}{more}; give the folder as {self._published_as()} has it"
            )
        return files

    def read(
        self,
        data: Path | None = None,
        *,
        fps: float | None = None,
        num_frames: int | None = None,
        subtitles: bool = False,
        limit: int | None = None,
        report: DataReport | None = None,
    ) -> list[Sample]:
        """Return the samples, in the order of the annotations.

        Args:
            data: folder with annotations and media as published. None: annotations through `datasets` from the hub or
                its cache, media from `$HF_HOME/<cache_folder>`.
            fps: frames per second to sample; 1 unless `num_frames` is given.
            num_frames: so many of every video instead.
            subtitles: ask with subtitles, by the benchmark's rule.
            limit: the first so many samples only.
            report: is told of every row that cannot be used or whose video is missing, and those are left out. Without
                it, one such row raises: a score of fewer questions is not the benchmark's.

        Raises:
            ValueError: wrong arguments, no such folder or annotations, or rows that cannot be used.
        """
        check_sampling(fps, num_frames=num_frames)
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} must be 1 or more, or None for all samples")
        if subtitles and self.subtitles is None:
            raise ValueError(f"{self.name} has no subtitles; leave subtitles out for it")
        folder = self._media_folder(data)
        if data is not None:
            self.annotation_files(data)  # all that is missing is told at once
        if subtitles and not (folder / self.subtitles["folder"]).is_dir():
            raise ValueError(f"{folder}: has no folder {self.subtitles['folder']}, where the subtitles are expected")
        made = DataReport() if report is None else report
        sampling = {"fps": DEFAULT_FPS if fps is None else fps, "num_frames": None, "sampling": "model"}
        if num_frames is not None:
            sampling = {"fps": None, "num_frames": num_frames, "sampling": self.num_frames_sampling}
        found = _SampleMaker(self, folder, sampling, subtitles).samples(data, made)
        found = tqdm(found, desc=f"reading {self.name}", unit=" samples", total=limit or self.samples, disable=None)
        samples = list(itertools.islice(found, limit))
        if report is None and made.left_out:
            shown = [
                f"{entry.file}, row {entry.row}: {entry.reason}: {printable(entry.detail)}"
                for entry in made.left_out[:SHOWN_BAD_ROWS]
            ]
            missing = sum(entry.rows for entry in made.left_out if entry.reason == NOT_FOUND)
            looked = f" {missing:,} of them because of media that were not found: {self._media_words(folder)}."
            raise ValueError(
                f"{self.name}: {made.bad_rows:,} of {made.rows.total():,} rows cannot be used; complete or correct "
                f"the folder {folder}, or go on without them with --allow-missing.{looked if missing else ''} "
                + "; ".join(shown)
                + (" ..." if made.bad_rows > SHOWN_BAD_ROWS else "")
            )
        return samples

    def score(self, sample: Sample, output: Output) -> Score:
        """Return what an output is worth without a judge.

        `parsed` is what our strict rule read. `official` is None for an error, for open answers (a judge's matter) and
        where the benchmark leaves an unread answer out. Likelihoods have no rule of the benchmark's: both scores say
        whether the right option alone is the likeliest.

        Raises:
            ValueError: the output has neither text nor one likelihood for each option.
        """
        if output.error is not None:
            return Score(parsed=None, official=None, strict=None, details={"error": output.error})
        if output.log_likelihoods is not None:
            return _likeliest(sample, output.log_likelihoods)
        if output.text is None:
            raise ValueError(f"{sample.task}, {sample.id}: an output needs text, log_likelihoods or an error")
        if self.parser == "none":
            return Score(parsed=output.text.strip() or None, official=None, strict=None)
        if self.parser == "exact":
            said = short_answer(output.text)
            return Score(parsed=said or None, official=None, strict=float(said == short_answer(sample.answer)))
        letter = said_choice(output.text, sample)
        official = OFFICIAL[self.parser](output.text, sample)
        return Score(
            parsed=letter,
            official=official.score,
            strict=float(letter == LETTERS[sample.answer]),
            details={"official_parsed": official.parsed, "guessed": official.guessed},
        )

    def _media_folder(self, data: Path | None) -> Path:
        if data is None:
            if self.hub is None:
                raise ValueError(f"{self.name} cannot be read from the hub; download it and give its folder as data")
            import huggingface_hub

            data = Path(huggingface_hub.constants.HF_HOME) / self.cache_folder
            if not data.is_dir():
                raise ValueError(
                    f"{self.name}: no --data was given, and its media are not in {data}: download "
                    f"{self._published_as()}, unpack its videos, and give the folder with --data {self.name}=FOLDER"
                )
        if not data.is_dir():
            raise ValueError(f"{data} is not a folder; give the one with the annotations and media of {self.name}")
        return data

    def _published_as(self) -> str:
        return f"the data set {self.hub['dataset']} of the Hub" if self.hub else f"{self.title}, as published"

    def _media_words(self, folder: Path) -> str:
        """Return where media are looked for, as a pattern."""
        folders = sorted({place for part in self.parts for place in (*part.folders, *part.cut)})
        more = f" and {len(folders) - SHOWN_BAD_ROWS} more folders" if len(folders) > SHOWN_BAD_ROWS else ""
        pattern = f"{folder}/{{{','.join(folders[:SHOWN_BAD_ROWS])}}}/NAME{{{','.join(ENDINGS)}}}{more}"
        return pattern + (", or a file of that name in any folder below" if self.anywhere else "")


class _SampleMaker:
    """Turns questions into samples: finds the media, renders the prompt."""

    def __init__(self, task: Task, folder: Path, sampling: dict, subtitles: bool) -> None:
        self.task = task
        self.media = TaskMedia(folder, task.roots, task.anywhere)
        self.sampling = sampling
        self.rule = task.subtitles["rule"] if subtitles else None
        self.seen: set[str] = set()
        self.times: dict[View, tuple[float, ...]] = {}

    def samples(self, data: Path | None, report: DataReport) -> Iterator[Sample]:
        for part in self.task.parts:
            for name, rows in self._rows(part, data):

                def make(number: int, row: dict, part: Part = part) -> list[Sample]:
                    questions = QUESTIONS[self.task.reader](row, number, part)
                    return [self._sample(question, part, report) for question in questions]

                yield from itertools.chain.from_iterable(samples_from_rows(name, rows, make, report))

    def _rows(self, part: Part, data: Path | None) -> Iterator[tuple[str, Iterator[Row]]]:
        task = self.task
        if data is None:
            found = [
                (f"{task.hub['dataset']}/{part.config or 'default'}", hub_rows(task.hub, part.config, task.columns))
            ]
        else:
            files = annotation_files(part, data)
            found = [(str(file), local_rows(task.reader, task.columns, file)) for file in files]
        for name, rows in found:
            yield name, with_cuts(rows, self.media.folder / CUT_FILE) if task.reader == "perceptiontest" else rows

    def _sample(self, question: Question, part: Part, report: DataReport) -> Sample:
        task = self.task
        if question.id in self.seen:
            raise BadRow("id is not unique", question.id)
        video, is_cut = self.media.find(question, part)
        start, end = (None, None) if is_cut else (question.start, question.end)
        if question.end_frame is not None and (rate := self.media.native_fps(video)) is not None:
            end = question.end_frame / rate
        view = View(
            video=video,
            start=start,
            end=end,
            folder_fps=None if is_cut else part.frame_rate,
            subtitles=self._interleaved(question) if self.rule == "interleave" else (),
            system=task.system,
            **self.sampling,
        )
        template, words = task.prompt, {"question": question.asked or question.question}
        if self.rule == "prompt":
            template, words["subtitles"] = task.prompt_with_subtitles, self._lines(question, view, report)
        words["options"] = "\n".join(
            task.option.format(letter=letter, text=text) for letter, text in zip(LETTERS, question.options)
        )
        self.seen.add(question.id)
        return Sample(
            task=task.name,
            id=question.id,
            cluster=name_of(video, self.media.folder),
            view=view,
            prompt=template.format(**words),
            prefix=task.prefix,
            question=question.question,
            options=question.options,
            answer=question.answer,
            groups=question.groups,
            max_new_tokens=task.max_new_tokens,
        )

    def _interleaved(self, question: Question) -> tuple[Subtitle, ...]:
        path = self.media.subtitle_file(self.task.subtitles["folder"], question.subtitles)
        if path is None:
            raise BadRow("subtitles not found", question.subtitles)
        return self.media.read_longvideobench(path, question.subtitle_shift, question.duration)

    def _lines(self, question: Question, view: View, report: DataReport) -> str:
        """The subtitles that coincide with the sampled frames, one a line."""
        path = self.media.subtitle_file(self.task.subtitles["folder"], question.subtitles)
        if path is None:
            report.note(f"{self.task.name}: {question.videos[0]} has no subtitles")
            return NO_SUBTITLES
        subtitles = self.media.read_srt(path)
        if view not in self.times:
            try:
                self.times[view] = view_times(view)
            except VideoReadError:
                self.times[view] = ()  # watching it will say why: such a sample is an error, whatever it asks
        return "\n".join(lines_at(self.times[view], subtitles)) or NO_SUBTITLES


def task_names() -> list[str]:
    """Return the names that `load_task` knows."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_task(name: str) -> Task:
    """Return a benchmark by name; raises ValueError for a name that is not known."""
    if name not in task_names():
        raise ValueError(f"unknown task {name!r}; known are {', '.join(task_names())}")
    fields = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    for key in ("columns", "groups", "roots"):
        if key in fields:
            fields[key] = tuple(fields[key])
    fields["parts"] = tuple(_part(entry) for entry in fields["parts"])
    return Task(name=name, **fields)


def name_of(video: Path, folder: Path) -> str:
    """Return the path of a video below the folder: what intervals cluster by, the same on every machine."""
    return video.relative_to(folder.resolve()).as_posix()


def _part(entry: dict) -> Part:
    return Part(**{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})


def _likeliest(sample: Sample, values: Sequence[float]) -> Score:
    if len(values) != len(sample.options):
        raise ValueError(f"{sample.task}, {sample.id}: {len(values)} likelihoods for {len(sample.options)} options")
    best = [place for place, value in enumerate(values) if value == max(values)]
    # Equal likelihoods name no option.
    score = float(best == [sample.answer])
    return Score(parsed=LETTERS[best[0]] if len(best) == 1 else None, official=score, strict=score)
