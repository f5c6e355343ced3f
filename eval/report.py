"""Tables and figures of results.json, for people: `markdown`, `draw`, and `grid_markdown` for several runs.

The paper's numbers stand beside a run's where it reports any (`paper_tables.yaml`). It computes no figure of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

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
        lines += ["", f"## {task['title']}", "", *_counts(task), "", *_table(name, task)]
        lines += _judged_lines(name, task)
        lines += _error_lines(task)
    return "\n".join([*lines, "", _footnote(result)]) + "\n"


def grid_markdown(results: Sequence[Result]) -> str:
    """Return one table for each task with a row for each run, as in the paper's Table 4, in the order given."""
    tasks = {name: task for result in results for name, task in result["tasks"].items()}
    lines = ["# Runs side by side"]
    for name, task in tasks.items():
        group = next((g for g, values in task["summary"]["groups"].items() if len(values) <= MOST_COLUMNS), None)
        values = list(task["summary"]["groups"].get(group, {}))
        metric = next(iter(task["summary"]["metrics"]), None)
        if metric is None:
            continue
        lines += ["", f"## {task['title']}", "", _row("model", "frames", *values, metric, "errors")]
        lines.append(_row(*["---"] * (len(values) + 4)))
        for result in results:
            if name not in result["tasks"]:
                continue
            summary = result["tasks"][name]["summary"]
            inside = [summary["groups"].get(group, {}).get(value, {}) for value in values]
            cells = [
                _cell(figures.get("official"), of=(figures.get("strict") or {}).get("samples", 0))
                for figures in (*inside, summary["metrics"][metric])
            ]
            settings = result["settings"]
            lines.append(_row(settings["model"]["name"], frames_text(settings), *cells, summary["errors"]))
        lines += _paper_grid(name, values, metric)
    return "\n".join([*lines, "", _footnote(results[0])]) + "\n"


def frames_text(settings: Mapping[str, Any]) -> str:
    """Return how videos were sampled, in words."""
    frames = settings["num_frames"]
    if frames is not None:
        return f"{frames} frame{'s' if frames != 1 else ''}"
    return f"{settings['fps']:g} frame{'s' if settings['fps'] != 1 else ''} a second"


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw a figure for each task with a score: every metric and group with its interval; return their paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for name, task in result["tasks"].items():
        rows = [(label, figures) for label, figures in _figure_rows(task) if any(figures[kind] for kind in RULES)]
        if not rows:
            continue
        figure = Figure(figsize=(7, 1.4 + 0.3 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for kind, colour, shift in (("official", "#4c72b0", -0.13), ("strict", "#c44e52", 0.13)):
            shown = [(place, figures[kind]) for place, (_, figures) in enumerate(rows) if figures[kind]]
            for place, one in shown:
                if one["low"] is not None:
                    ends = (100 * one["low"], 100 * one["high"])
                    axes.plot(ends, [place + shift] * 2, color=colour, linewidth=1.5)
            places = [place + shift for place, _ in shown]
            axes.plot([100 * one["value"] for _, one in shown], places, "o", color=colour, markersize=4, label=kind)
        paper = _paper(name)
        for size, marker in zip(SIZES, "v^D"):
            shown = [
                (place, value) for place, (label, _) in enumerate(rows) if (value := paper(size, label)) is not None
            ]
            if shown:
                axes.plot(
                    [value for _, value in shown], [place for place, _ in shown],
                    marker, color="#777777", markersize=5, markerfacecolor="none", label=f"paper, {size}",
                )  # fmt: skip
        if task["summary"]["chance"] is not None:
            axes.axvline(100 * task["summary"]["chance"], color="#999999", linestyle=":", linewidth=1, label="chance")
        axes.set_yticks(range(len(rows)), [" ".join(label) for label, _ in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("percent, with 95 % intervals over videos")
        axes.set_title(f"{task['title']}: {result['settings']['model']['name']}", fontsize=10)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


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
    rows = [(label, figures) for label, figures in _figure_rows(task) if any(figures.values())]
    if not rows:
        is_error = task["summary"]["errors"] == task["summary"]["samples"]
        return ["No score: every question was an error." if is_error else "No score without a judge."]
    paper = _paper(name)
    sizes = [size for size in SIZES if any(paper(size, label) is not None for label, _ in rows)]
    lines = [_row("", "questions", "official", "strict", *(f"paper, {size}" for size in sizes))]
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
    paper = _paper(name)
    sizes = [size for size in SIZES if any(paper(size, (label,)) is not None for label in judged["figures"])]
    lines = [
        "",
        f"Judge: {judged['judge']}; malformed replies: {judged['malformed']:,}; errors: {judged['errors']:,}.",
        "",
    ]
    lines += [_row("judged", "official", "strict", *(f"paper, {size}" for size in sizes))]
    lines += [_row(*["---"] * (3 + len(sizes)))]
    for label, figures in judged["figures"].items():
        scale = 100 if label.endswith("accuracy") else 1
        theirs = ["" if (value := paper(size, (label,))) is None else f"{value:g}" for size in sizes]
        lines.append(_row(label, *(_cell(figures[kind], scale) for kind in RULES), *theirs))
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


def _footnote(result: Result) -> str:
    how = result["statistics"]
    return (
        f"Percent, with {100 * how['confidence']:.0f} % intervals: bootstrap over videos, {how['resamples']:,} draws, "
        f"seed {how['seed']}; Wilson's where all are right or all wrong. Official: the benchmark's own rule; strict: "
        "nothing is right that was not said. Errors are in no mean."
    )


def _figure_rows(task: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield (name,) with the figures of a metric, then (group, value) with those of a group."""
    for name, figures in task["summary"]["metrics"].items():
        yield (name,), figures
    for group, values in task["summary"]["groups"].items():
        for value, figures in values.items():
            yield (group, value), figures


def _paper(name: str):
    """Return the function (size, label) -> the paper's number for a row of this task, or None."""
    table = _paper_tables().get(name, {})

    def number(size: str, label: tuple[str, ...]) -> float | None:
        for column, what in table.get("columns", {}).items():
            if label == ((column,) if what == "all" else next(iter(what.items()))):
                return table[size].get(column)
        return None

    return number


def _paper_grid(name: str, values: Sequence[str], metric: str) -> list[str]:
    """Return the rows of the paper's Table 4, where it is about this task."""
    ablation = _paper_tables()["ablation"]
    if name != ablation["task"]:
        return []
    lines = []
    for row in ablation["rows"]:
        stage = "with" if row["stage_1_5"] else "without"
        label = f"paper, {ablation['model']}, {stage} stage 1.5, trained with {_frames_name(row['train'])}"
        cells = [f"{row[column]:g}" if column in row else "" for column in (*values, metric)]
        lines.append(_row(label, _frames_name(row["inference"]), *cells, ""))
    return lines


def _frames_name(frames: int | str) -> str:
    return f"{frames} frames" if isinstance(frames, int) else "1 frame a second"


def _paper_tables() -> dict[str, Any]:
    return yaml.safe_load(PAPER.read_text(encoding="utf-8"))


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
