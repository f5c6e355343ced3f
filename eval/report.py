"""Tables of results.json, for people: `markdown` of a run, and `grid_markdown` of several. Pictures: figures.py.

The paper's numbers stand beside a run's where it reports any (`paper_tables.yaml`). It computes no figure of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from modeling_video_ma2mba.eval.judge_prompts import PROMPTS_NOTE
from modeling_video_ma2mba.eval.summary import RULES
from modeling_video_ma2mba.train.data_report import printable

PAPER = Path(__file__).parent / "paper_tables.yaml"
SIZES = ("0.7b", "1.8b", "3.1b")
SHOWN_ERRORS = 20
# Groups with more values than this are left to results.json in tables of several runs, and the rest of the world.
MOST_COLUMNS = 6

Result = Mapping[str, Any]


def markdown(result: Result) -> str:
    """Return the report of one run."""
    settings = result["settings"]
    lines = [f"# {settings['model']['name']}, {frames_text(settings)}", "", *_settings_lines(result)]
    for name, task in result["tasks"].items():
        lines += ["", f"## {title(task)}", "", *_counts(task), "", *_table(name, task)]
        lines += _judged_lines(name, task)
        lines += _error_lines(task)
    return "\n".join([*lines, "", _footnote(lines, result)]) + "\n"


def grid_markdown(results: Sequence[Result]) -> str:
    """Return one table for each task, a row for each run and rule, as in the paper's Table 4, in the order given."""
    tasks = {name: task for result in results for name, task in result["tasks"].items()}
    lines = ["# Runs side by side"]
    for name, task in tasks.items():
        group = next((g for g, values in task["summary"]["groups"].items() if len(values) <= MOST_COLUMNS), None)
        values = list(task["summary"]["groups"].get(group, {}))
        if not (metrics := headlines(task)):
            continue
        lines += ["", f"## {task['title']}", ""]
        lines += [_row("model", "frames", "questions", "rule", *values, *metrics, "errors")]
        lines += [_row(*["---"] * (len(values) + len(metrics) + 5))]
        for result in results:
            if name not in result["tasks"]:
                continue
            ours, settings = result["tasks"][name], result["settings"]
            inside = {value: ours["summary"]["groups"].get(group, {}).get(value, {}) for value in values}
            figures = {**inside, **headlines(ours)}
            asked = ours["partial"] or f"{ours['published']:,} questions"
            for kind in RULES:
                cells = [_figure_cell(column, figures.get(column, {}), kind) for column in (*values, *metrics)]
                begin = settings["model"]["name"], frames_text(settings), asked, kind
                lines.append(_row(*begin, *cells, ours["summary"]["errors"]))
        lines += _paper_grid(name, task, values, list(metrics))
    return "\n".join([*lines, "", _footnote(lines, *results)]) + "\n"


def headlines(task: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the figures of a task that stand for it, by name: the first metric, and what a judge says."""
    metrics = task["summary"]["metrics"]
    judged = task.get("judged", {"figures": {}})["figures"]
    return {**dict(list(metrics.items())[:1]), **judged}


def title(task: Mapping[str, Any]) -> str:
    """Return a task's title, with how much of it was answered if that is not all."""
    return task["title"] if task["partial"] is None else f"{task['title']} (partial: {printable(task['partial'])})"


def scale_of(label: str) -> int:
    """Return what a figure is multiplied by to be shown: 100 for percent, 1 for a judge's scores of 0 to 5."""
    return 1 if label == "judged score" or label.startswith("vcg-") else 100


def frames_text(settings: Mapping[str, Any]) -> str:
    """Return how videos were sampled, in words."""
    frames = settings["num_frames"]
    if frames is not None:
        return f"{frames} frame{'s' if frames != 1 else ''}"
    return f"{settings['fps']:g} frame{'s' if settings['fps'] != 1 else ''} a second"


def _settings_lines(result: Result) -> list[str]:
    settings, model = result["settings"], result["settings"]["model"]
    asked = "option likelihood" if settings["likelihood"] else "greedy answers"
    words = [asked, "with subtitles" if settings["subtitles"] else "without subtitles"]
    words += [f"first {settings['limit']:,} samples of each task"] if settings["limit"] is not None else []
    words += [f"{model['dtype']} on {model['device']}"] if "dtype" in model else []
    commit = (result["commit"] or {}).get("commit")
    words += [f"commit {commit[:10]}"] if commit else []
    return [", ".join(words) + f", {result['date'][:10]}."]


def _counts(task: Mapping[str, Any]) -> list[str]:
    summary = task["summary"]
    words = [f"{summary['samples']:,} questions about {summary['videos']:,} videos"]
    words += [f"{summary['errors']:,} could not be asked (errors)", f"{summary['unparsed']:,} answers unparsed"]
    words += [f"{len(task['left_out']):,} rows left out"] if task["left_out"] else []
    words += [f"chance {100 * summary['chance']:.1f}"] if summary["chance"] is not None else []
    lines = [", ".join(words) + f"; task version {task['version']}."]
    if summary["letters"]:
        total = sum(summary["letters"].values())
        shares = (f"{letter} {100 * count / total:.0f} %" for letter, count in summary["letters"].items())
        lines.append("Letters given: " + ", ".join(shares) + ".")
    return [*lines, *(f"Note: {printable(note)}." for note in task["notes"])]


def _table(name: str, task: Mapping[str, Any]) -> list[str]:
    rows = [(label, figures) for label, figures in figure_rows(task) if any(figures.values())]
    if not rows:
        if "judged" in task:
            return []  # the judge's table is the score
        is_error = task["summary"]["errors"] == task["summary"]["samples"]
        return ["No score: every question was an error." if is_error else "No score without a judge."]
    paper = paper_numbers(name)
    sizes = [size for size in SIZES if any(paper(size, label) is not None for label, _ in rows)]
    lines = _paper_warning(task, sizes)
    lines += [_row("", "questions", "official", "strict", *(f"paper, {size}" for size in sizes))]
    lines.append(_row(*["---"] * (4 + len(sizes))))
    for label, figures in rows:
        count = max(one["samples"] for one in figures.values() if one)
        cells = [_cell(figures[kind], of=count) for kind in RULES]
        theirs = ["" if (value := paper(size, label)) is None else f"{value:g}" for size in sizes]
        lines.append(_row(": ".join(label), f"{count:,}", *cells, *theirs))
    return lines


def _judged_lines(name: str, task: Mapping[str, Any]) -> list[str]:
    judged = task.get("judged")
    if not judged:
        return []
    paper = paper_numbers(name)
    sizes = [size for size in SIZES if any(paper(size, (label,)) is not None for label in judged["figures"])]
    malformed = ", ".join(f"{judged['malformed'][kind]:,} by the {kind} rule" for kind in RULES)
    lines = [
        "",
        f"Judge: {judged['judge']}, {PROMPTS_NOTE}; {judged['replies']:,} replies, malformed: {malformed}; "
        f"errors: {judged['errors']:,}.",
        "",
    ]
    if not judged["replies"]:
        return [*lines, "No score: the judge replied to nothing."]
    if not any(figures[kind] for figures in judged["figures"].values() for kind in RULES):
        return [*lines, f"No score: all {judged['replies']:,} replies are malformed."]
    lines += [] if any(task["summary"]["metrics"].values()) else _paper_warning(task, sizes)
    lines += [_row("judged", "official", "strict", *(f"paper, {size}" for size in sizes))]
    lines += [_row(*["---"] * (3 + len(sizes)))]
    for label, figures in judged["figures"].items():
        theirs = ["" if (value := paper(size, (label,))) is None else f"{value:g}" for size in sizes]
        lines.append(_row(label, *(_figure_cell(label, figures, kind) for kind in RULES), *theirs))
    return lines


def _error_lines(task: Mapping[str, Any]) -> list[str]:
    errors: dict[str, list[str]] = {}
    for row in task["samples"]:
        if row["error"] is not None:
            errors.setdefault(row["error"], []).append(row["id"])
    lines = [
        f"- {', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''}: {printable(error)}"
        for error, ids in list(errors.items())[:SHOWN_ERRORS]
    ]
    more = [f"- and {len(errors) - SHOWN_ERRORS} more errors, in results.json"] if len(errors) > SHOWN_ERRORS else []
    return ["", "Errors:", "", *lines, *more] if lines else []


def _paper_warning(task: Mapping[str, Any], sizes: Sequence[str]) -> list[str]:
    if not sizes or task["partial"] is None:
        return []
    return ["The paper's numbers are about the whole benchmark, these are not: they cannot be compared.", ""]


def _footnote(lines: Sequence[str], *results: Result) -> str:
    """Return what the signs in `lines` mean."""
    how = results[0]["statistics"]
    is_judged = any("judged" in task for result in results for task in result["tasks"].values())
    unit = "Percent, but for a judge's scores of 0 to 5;" if is_judged else "Percent,"
    text = (
        f"{unit} with {100 * how['confidence']:.0f} % intervals: bootstrap over videos, {how['resamples']:,} draws, "
        f"seed {how['seed']}; Wilson's where all are right or all wrong. Official: the benchmark's own rule; strict: "
        "nothing is right that was not said. Errors are in no mean."
    )
    if any("| - |" in line for line in lines):
        text += " -: no score by this rule; open answers have an official one from a judge alone (--judge)."
    return text


def figure_rows(task: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield (name,) with the figures of a metric, then (group, value) with those of a group.

    A group that a metric is about is that metric's row, whatever it is called.
    """
    metrics = task["summary"]["metrics"]
    for name, figures in metrics.items():
        yield (name,), figures
    parts = [_asked(task, rule["where"].items()) for rule in task["metrics"].values() if "where" in rule]
    for group, values in task["summary"]["groups"].items():
        for value, figures in values.items():
            if not parts or _asked(task, [(group, value)]) not in parts:
                yield (group, value), figures


def _asked(task: Mapping[str, Any], where: Iterable[tuple[str, str]]) -> set[str]:
    """Return the ids of the samples in all of these groups."""
    return {row["id"] for row in task["samples"] if all(row["groups"].get(name) == value for name, value in where)}


def paper_numbers(name: str) -> Callable[[str, tuple[str, ...]], float | None]:
    """Return the function (size, label) -> the paper's number for a row of this task, or None."""
    table = _paper_tables().get(name, {})

    def number(size: str, label: tuple[str, ...]) -> float | None:
        for column, what in table.get("columns", {}).items():
            if label == ((column,) if what == "all" else next(iter(what.items()))):
                return table[size].get(column)
        return None

    return number


def _paper_grid(name: str, task: Mapping[str, Any], values: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """Return the rows of the paper's Table 4, where it is about this task."""
    rows = []
    for label, row in paper_ablation(name):
        cells = [f"{row[column]:g}" if column in row else "" for column in (*values, *metrics)]
        asked = f"{task['published']:,} questions"
        rows.append(_row(label, frames_name(row["inference"]), asked, "official", *cells, ""))
    return rows


def paper_ablation(name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the rows of the paper's Table 4 with a name for each; empty for a task that it is not about."""
    ablation = _paper_tables()["ablation"]
    if name != ablation["task"]:
        return []
    named = []
    for row in ablation["rows"]:
        stage = "with" if row["stage_1_5"] else "without"
        trained = frames_name(row["train"])
        named.append((f"paper, {ablation['model']}, {stage} stage 1.5, trained with {trained}", row))
    return named


def frames_name(frames: int | str) -> str:
    """Return how the paper sampled, in the words of `frames_text`."""
    return frames_text({"num_frames": frames if isinstance(frames, int) else None, "fps": 1})


def _paper_tables() -> dict[str, Any]:
    return yaml.safe_load(PAPER.read_text(encoding="utf-8"))


def _figure_cell(label: str, figures: Mapping[str, Any], kind: str) -> str:
    of = max((one["samples"] for one in figures.values() if one), default=0)
    return _cell(figures.get(kind), scale_of(label), of)


def _cell(figure: Mapping[str, Any] | None, scale: float = 100, of: int = 0) -> str:
    """Return a figure with its interval, and how many samples are in it if those are fewer than `of`."""
    if not figure:
        return "-"
    digits = 1 if scale == 100 else 2
    text = f"{scale * figure['value']:.{digits}f}"
    if figure["low"] is not None:
        text += f" [{scale * figure['low']:.{digits}f}, {scale * figure['high']:.{digits}f}]"
    return text + (f" of {figure['samples']:,}" if figure["samples"] < of else "")


def _row(*cells: Any) -> str:
    # Names come from annotations: a bar in one would be a border.
    return "| " + " | ".join(printable(str(cell)).replace("|", "/") for cell in cells) + " |"
