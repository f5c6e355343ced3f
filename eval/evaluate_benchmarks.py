"""The command `video-ma2mba eval`: from names to results.json, a report and figures, for every model and every way of
sampling; in one process, or in those that accelerate or torchrun started.
"""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from modeling_video_ma2mba.eval.figures import draw, draw_frames
from modeling_video_ma2mba.eval.journal import read_journals
from modeling_video_ma2mba.eval.judge import Judge, items_to_judge, judge_request
from modeling_video_ma2mba.eval.judge_endpoint import CHARACTERS_PER_TOKEN, DEFAULT_URL, Endpoint, EndpointJudge
from modeling_video_ma2mba.eval.likelihoods import check_letters
from modeling_video_ma2mba.eval.local_judges import LocalJudge
from modeling_video_ma2mba.eval.ma2mba_answerer import Ma2mbaAnswerer
from modeling_video_ma2mba.eval.report import grid_markdown, markdown
from modeling_video_ma2mba.eval.results import FILE, check_folder, make_result, write_json
from modeling_video_ma2mba.eval.run import TaskSamples, answer_all, read_questions, samples_hash
from modeling_video_ma2mba.eval.samples import Answerer, Output
from modeling_video_ma2mba.eval.transformers_answerer import TransformersAnswerer
from modeling_video_ma2mba.processing.load_model import check_model, load_model
from modeling_video_ma2mba.train.data_report import printable

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
FRAMES_PLOT = "frames.png"
# A process that is done waits for the others, however long their videos are.
_PATIENCE = timedelta(days=30)


def evaluate(
    *,
    models: Sequence[str],
    tasks: Sequence[str],
    data: Mapping[str, Path],
    frames: Sequence[tuple[str, Mapping[str, Any]]],
    output: Path,
    limit: int | None = None,
    subtitles: bool = False,
    likelihood: str | None = None,
    allow_missing: bool = False,
    judge: str | None = None,
    judge_url: str | None = None,
    judge_max_dollars: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Run every model with every way of sampling, each in a folder of its own below `output`.

    Each folder gets journals, results.json, results.md and figures; with more than one of them `output` gets
    comparison.md, a table as the paper's Table 4, and with more than one way of sampling a figure of it, frames.png.

    Args:
        frames: names and sampling, such as `[("8", {"num_frames": 8}), ("1fps", {"fps": 1.0})]`.
        likelihood: "letter" or "text": score options; None: ask for texts.
        judge: name of the model behind an endpoint at `judge_url`, or "local:FOLDER"; None: no judge.
        judge_max_dollars: refuse to begin where judging all runs may cost more.
        The rest: as `run.read_questions` and `load_model` take them.

    Raises:
        ValueError, OSError: something that was given cannot be used, found before the first video where possible; or
            all questions of a task failed in some run, which is told once everything is written.
    """
    check_folder(output)
    process = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_PATIENCE)
    if process.num_processes > 1 and device != "cpu" and torch.cuda.is_available():
        device = str(process.device)
    for model in models:
        check_model(model, device)
    asks = None
    if (judge, judge_url, judge_max_dollars) != (None, None, None):
        asks = _judge(judge, judge_url, judge_max_dollars, output / "judge", device)
    questions = {
        name: read_questions(tasks, data, subtitles=subtitles, limit=limit, allow_missing=allow_missing, **sampling)
        for name, sampling in frames
    }
    if asks is not None:
        _announce(process, asks, next(iter(questions.values())), len(models) * len(frames))
    annotations = {name: _annotation_hashes(next(iter(questions.values())), name, data.get(name)) for name in tasks}
    results, failed = [], []
    for model, short in zip(models, _short_names(models)):
        answerer = load_answerer(model, likelihood, device, dtype)
        described = answerer.describe()
        for name, sampling in frames:
            settings = {
                "model": described,
                "fps": sampling.get("fps"),
                "num_frames": sampling.get("num_frames"),
                "subtitles": subtitles,
                "likelihood": likelihood,
                "limit": limit,
                "tasks": {one.task.name: _task_settings(one, annotations) for one in questions[name]},
            }
            folder = output / f"{short}-{name}"
            folder.mkdir(parents=True, exist_ok=True)
            print_once(process, f"{model}, {name}: {folder}")
            answer_all(
                questions[name],
                answerer,
                folder,
                settings,
                likelihood=likelihood is not None,
                rank=process.process_index,
                processes=process.num_processes,
                wait_for_everyone=process.wait_for_everyone,
            )
            if process.is_main_process:
                outputs, _ = read_journals(folder, settings)
                results.append(_write(make_result(questions[name], outputs, settings, asks), folder))
                failed += _failures(results[-1], folder)
        del answerer
    if process.is_main_process and len(results) > 1:
        text = grid_markdown(results)
        (output / "comparison.md").write_text(text, encoding="utf-8")
        print(f"\n{text}\nwrote {output / 'comparison.md'}")
        if len(frames) > 1 and HAS_MATPLOTLIB and draw_frames(results, output / FRAMES_PLOT):
            print(f"wrote {output / FRAMES_PLOT}")
    process.wait_for_everyone()
    if failed:
        raise ValueError(failed[0] + (f"; {len(failed) - 1} more like this" if len(failed) > 1 else ""))


def load_answerer(model: str, likelihood: str | None, device: str, dtype: str) -> Answerer:
    """Return a model in the harness: a Video-Ma²mba, or any other model of transformers that sees videos or images.

    Raises:
        OSError, ValueError: it cannot be loaded. ImportError: its processor needs a package that is missing, such as
            torchvision for videos.
    """
    loaded, processor = load_model(model, device, dtype)
    if likelihood == "letter":
        check_letters(processor.tokenizer, model)
    kind = Ma2mbaAnswerer if loaded.config.model_type == "video_ma2mba" else TransformersAnswerer
    return kind(loaded, processor, model, likelihood or "letter")


def print_once(process: PartialState, text: str) -> None:
    """Print to standard error, in one process of all."""
    if process.is_main_process:
        print(text, file=sys.stderr)


def _write(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    write_json(result, folder / FILE)
    text = markdown(result)
    (folder / "results.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwrote {folder / FILE} and results.md")
    if not HAS_MATPLOTLIB:
        print('no figures: they need matplotlib, pip install "video-ma2mba[eval]"', file=sys.stderr)
    else:
        for path in draw(result, folder):
            print(f"wrote {path}")
    return result


def _failures(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Return a line for each task of which nothing was answered."""
    lines = []
    for name, task in result["tasks"].items():
        summary = task["summary"]
        if summary["errors"] == summary["samples"]:
            first = printable(task["samples"][0]["error"])
            lines.append(f"{name}: not one of {summary['samples']:,} questions could be asked: {first} ({folder})")
    return lines


def _announce(process: PartialState, judge: Judge, questions: Sequence[TaskSamples], runs: int) -> None:
    """Print what the judge of one run will be asked, at most; raise ValueError where it could not judge it at all."""
    requests = []
    for one in questions:
        if one.task.judge:
            longest = [Output(text="x" * CHARACTERS_PER_TOKEN * sample.max_new_tokens) for sample in one.samples]
            listed = items_to_judge(one.task, one.samples, longest)
            requests += [judge_request(prompt, item) for prompt, _, item in listed]
    if not requests:
        raise ValueError("--judge: no task here has open answers; leave it out")
    if isinstance(judge, EndpointJudge):
        judge.check(requests, runs)
    estimate = judge.estimate(requests) if isinstance(judge, EndpointJudge) else f"{len(requests):,} requests"
    print_once(process, f"{judge.label}, for each run: {estimate}")


def _judge(model: str | None, url: str | None, max_dollars: float | None, cache: Path, device: str) -> Judge:
    if model is None:
        raise ValueError("--judge-url and --judge-max-dollars need --judge with the name of the model there")
    if model.startswith("local:"):
        if url is not None or max_dollars is not None:
            raise ValueError(f"--judge {model} is a model here: leave --judge-url and --judge-max-dollars out")
        return LocalJudge(model.removeprefix("local:"), device=device)
    return EndpointJudge(Endpoint(model=model, base_url=url or DEFAULT_URL, max_dollars=max_dollars), cache=cache)


def _task_settings(one: TaskSamples, annotations: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": one.task.version,
        "hub": None if annotations[one.task.name] is not None else one.task.hub,
        "annotations": annotations[one.task.name],
        "samples": len(one.samples),
        "samples_sha256": samples_hash(one.samples),
    }


def _annotation_hashes(questions: Sequence[TaskSamples], name: str, data: Path | None) -> dict[str, str] | None:
    """Return the SHA-256 of each annotation file by its path in the folder; None for those of the hub."""
    if data is None:
        return None
    task = next(one.task for one in questions if one.task.name == name)
    hashes = {}
    for path in task.annotation_files(data):
        with open(path, "rb") as file:
            hashes[path.relative_to(data).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _short_names(models: Sequence[str]) -> list[str]:
    """Return a name for the folder of each model: its own, or its whole path where two have the same."""
    last = [Path(model).name for model in models]
    names = [one if last.count(one) == 1 else model for one, model in zip(last, models)]
    names = [re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model" for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"a model twice: {', '.join(models)}")
    return names
