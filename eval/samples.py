"""What every benchmark becomes: samples to ask, outputs of a model, scores.

A task (`eval/tasks/`) reads its annotations into `Sample`s, an `Answerer` turns each into an `Output`, and the task
scores it. Samples with one `view` see the same thing, which is watched once for all of their questions.

Dims: N options.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Subtitle:
    """A line of text with its time in the video that is shown, in seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, kw_only=True)
class View:
    """What a model sees before a question: a video, or a part of it, and how it is sampled.

    Attributes:
        video: a video file, or a folder of numbered pictures at `folder_fps`.
        start, end: part to show, in seconds; None: from the first or to the last frame.
        fps, num_frames: sampling, one of the two; `fps=1` is every second.
        sampling: "model" (`frame_sampling.sample_times`), or the name of a benchmark's own rule.
        subtitles: shown between the frames, by the task's rule; empty: none.
        system: text of the system turn; None: the chat template's own.
    """

    video: Path
    start: float | None = None
    end: float | None = None
    fps: float | None = 1.0
    num_frames: int | None = None
    sampling: str = "model"
    folder_fps: float | None = None
    subtitles: tuple[Subtitle, ...] = ()
    system: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A question about a view, as it is asked.

    Attributes:
        id: unique within the task.
        cluster: the video that it stands or falls with; intervals are computed over clusters.
        prompt: text of the user's turn behind the frames, rendered by the task.
        prefix: beginning of the answer that the model is given, such as "Best option:("; not part of the output.
        question: as annotated, for judges and reports.
        options: texts of the options without letters; empty for an open question.
        answer: the right one: an option's index, or a text.
        groups: names and values to report by, such as {"duration": "short"}.
        max_new_tokens: limit of the answer.
    """

    task: str
    id: str
    cluster: str
    view: View
    prompt: str
    question: str
    answer: int | str | None
    options: tuple[str, ...] = ()
    prefix: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    max_new_tokens: int = 16


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model said: text, or the log-likelihood of each option in nats, (N,).

    `error`: why there is none, in one line; it counts as an error and not as a wrong answer.
    """

    text: str | None = None
    log_likelihoods: tuple[float, ...] | None = None
    rendered: str = ""
    times: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """An output judged.

    Attributes:
        parsed: what was read from the text: a letter, a number, a text; None if nothing could be.
        official: by the benchmark's own rule, its flaws included; None: left out of the official mean.
        strict: by our rule: nothing is right that was not said; None where there is no such rule.
        details: more, such as a judge's verdict.
    """

    parsed: str | None
    official: float | None
    strict: float | None
    details: Mapping[str, Any] = field(default_factory=dict)


class Answerer(Protocol):
    """A model in the harness: it looks once, then answers."""

    def watch(self, view: View, on_frame: Callable[[], None]) -> Any:
        """Return what has been seen, to be given to `answer` and `score_options`; `on_frame` is called for each frame.

        Raises:
            VideoReadError: the video cannot be read; it is shown as an error.
        """

    def answer(self, seen: Any, samples: Sequence[Sample]) -> list[Output]:
        """Return a text for each sample, greedy."""

    def score_options(self, seen: Any, samples: Sequence[Sample]) -> list[Output]:
        """Return the log-likelihoods of each sample's options."""

    def describe(self) -> dict[str, Any]:
        """Return what a result file must carry: name, revision or fingerprint, dtype, device, versions."""
