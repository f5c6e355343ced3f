"""`results.json`: everything that a run of benchmarks asked, heard and scored, and what is needed to do it again.

    result = make_result(questions, outputs, settings)
    write_json(result, folder / FILE)
    result = read_result(folder)

Scores are made from the outputs alone, and can be made again. `FORMAT` changes when the meaning of a field does.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modeling_video_ma2mba.environment import describe_environment
from modeling_video_ma2mba.eval.clusters import CONFIDENCE, RESAMPLES, SEED
from modeling_video_ma2mba.eval.journal import Key
from modeling_video_ma2mba.eval.judge import Judge
from modeling_video_ma2mba.eval.judged import judged_figures
from modeling_video_ma2mba.eval.run import TaskSamples
from modeling_video_ma2mba.eval.samples import Output, Sample, Score
from modeling_video_ma2mba.eval.summary import summarise
from modeling_video_ma2mba.train.annotation_files import read_json

FORMAT = "video-ma2mba-eval-2"
FILE = "results.json"

# What the comparison of two runs needs of a sample, with the types that it may have.
_FIELDS = {
    "id": str, "cluster": str, "groups": dict, "prompt": str, "prefix": str, "system": str | None, "question": str,
    "options": list, "answer": int | str | None, "parsed": str | None, "official": float | int | None,
    "strict": float | int | None, "error": str | None, "times": list,
}  # fmt: skip


def make_result(
    questions: Sequence[TaskSamples],
    outputs: Mapping[Key, Output],
    settings: Mapping[str, Any],
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Return the result of a run, as plain data.

    Args:
        questions: the tasks with all samples. outputs: for each of them. settings: those of the journal.
        judge: scores the open answers of the tasks that need one; None: they stay without a score.

    Raises:
        JudgeError: the judge cannot be asked. ValueError: it needs a sample that was not asked.
    """
    tasks = {}
    for one in questions:
        task, samples = one.task, one.samples
        given = [outputs[sample.task, sample.id] for sample in samples]
        rows = [_row(sample, output, task.score(sample, output)) for sample, output in zip(samples, given)]
        tasks[task.name] = {
            "title": task.title,
            "version": task.version,
            "licence": task.licence,
            "hub": task.hub,
            "metrics": dict(task.metrics),
            "published": task.samples,
            "partial": partial_words(rows, task.samples),
            "summary": summarise(rows, task.metrics),
            "left_out": [asdict(entry) for entry in one.left_out],
            "notes": list(one.notes),
            "samples": rows,
        }
        if judge is not None and task.judge:
            tasks[task.name]["judged"] = judged_figures(judge, task, samples, given)
    return {
        "format": FORMAT,
        **provenance(),
        "settings": dict(settings),
        "statistics": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED, "clusters": "videos"},
        "tasks": tasks,
    }


def partial_words(rows: Sequence[Mapping[str, Any]], published: int) -> str | None:
    """Return how many of a benchmark's questions the figures are about; None: about all of them, and only those.

    What was not asked is not in them, whatever the reason: a limit, a folder with less in it, missing videos, errors.
    """
    answered = sum(row["error"] is None for row in rows)
    if answered == published:
        return None
    return f"{answered:,} {'of' if answered < published else 'in place of'} {published:,} questions"


def check_folder(output: Path) -> None:
    """Raise ValueError where `--output` can be no folder, because it or one above is a file."""
    file = next((path for path in (output, *output.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise ValueError(f"--output {output}: {file} is a file; give a folder, which is made if it is not there")


def write_json(value: Any, path: Path) -> None:
    """Write JSON, whole or not at all, on one line: sample times alone would be millions of them."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_result(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote of a result: a results.json, or the one in a folder.

    Raises:
        ValueError, OSError: there is none, or it is damaged.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the folder of one run, such as OUTPUT/tiny-1fps")
    result = read_json(path)
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path}: no result of `video-ma2mba eval` in this version's format ({FORMAT})")
    tasks, settings = result.get("tasks"), result.get("settings")
    if not isinstance(tasks, dict) or not isinstance(settings, dict):
        raise ValueError(f"{path}: damaged: it needs tasks and settings")
    for name, task in tasks.items():
        rows = task.get("samples") if isinstance(task, dict) else None
        if not isinstance(rows, list) or not isinstance(task.get("metrics"), dict):
            raise ValueError(f"{path}: damaged: task {name!r:.60} needs samples and metrics")
        if not isinstance(task.get("partial", 0), str | None):
            raise ValueError(f"{path}: damaged: task {name!r:.60} does not say whether it is partial")
        for number, row in enumerate(rows, start=1):
            bad = [
                field for field, type_ in _FIELDS.items()
                if not isinstance(row, dict) or field not in row or not isinstance(row[field], type_)
            ]  # fmt: skip
            if bad:
                raise ValueError(f"{path}: damaged: task {name!r:.60}, sample {number}: {', '.join(bad)}")
    return result


def provenance() -> dict[str, Any]:
    """Return "date", "versions" of what matters and "commit": by what, and when, a result was made."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {what: choice for what, choice, _ in describe_environment()},
        "commit": code_commit(),
    }


def code_commit() -> dict | None:
    """Return the commit of a checkout; an installed package has no `benchmarks` and none."""
    try:
        from modeling_video_ma2mba.benchmarks.result import git_commit
    except ImportError:
        return None
    return git_commit()


def _row(sample: Sample, output: Output, score: Score) -> dict[str, Any]:
    view = sample.view
    return {
        "id": sample.id,
        "cluster": sample.cluster,
        "groups": dict(sample.groups),
        "system": view.system,
        "prompt": sample.prompt,
        "prefix": sample.prefix,
        "question": sample.question,
        "options": list(sample.options),
        "answer": sample.answer,
        "sampling": {name: getattr(view, name) for name in ("start", "end", "fps", "num_frames", "sampling")},
        **asdict(output),
        "parsed": score.parsed,
        "official": score.official,
        "strict": score.strict,
        "details": dict(score.details),
    }
