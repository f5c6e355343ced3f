"""Figures of results.json, for people: `draw` for a run, `draw_frames` for one model or more by the number of frames.

The paper's numbers stand beside a run's where it reports any. It computes nothing; matplotlib is needed.
"""

from collections.abc import Sequence
from pathlib import Path

from modeling_video_ma2mba.eval.report import (
    SIZES,
    Result,
    figure_rows,
    frames_name,
    frames_text,
    headlines,
    paper_ablation,
    paper_numbers,
    scale_of,
    title,
)
from modeling_video_ma2mba.eval.summary import RULES

COLOURS = {"official": "#4c72b0", "strict": "#c44e52"}
MODELS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3")
PAPER_COLOUR = "#777777"
LINES = {"official": "-", "strict": "--"}


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw a figure for each task with a score: every metric and group with its interval; return their paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    paths = []
    for name, task in result["tasks"].items():
        rows = [(label, figures) for label, figures in figure_rows(task) if any(figures[kind] for kind in RULES)]
        if not rows:
            continue
        figure = _figure(7, 1.7 + 0.3 * len(rows))
        axes = figure.add_subplot()
        for (kind, colour), shift in zip(COLOURS.items(), (-0.13, 0.13)):
            shown = [(place, figures[kind]) for place, (_, figures) in enumerate(rows) if figures[kind]]
            for place, one in shown:
                if one["low"] is not None:
                    ends = (100 * one["low"], 100 * one["high"])
                    axes.plot(ends, [place + shift] * 2, color=colour, linewidth=1.5)
            places = [place + shift for place, _ in shown]
            label = kind if shown else f"{kind}: a judge's alone"
            axes.plot([100 * one["value"] for _, one in shown], places, "o", color=colour, markersize=4, label=label)
        paper, whole = paper_numbers(name), "" if task["partial"] is None else ", whole benchmark"
        for size, marker in zip(SIZES, "v^D"):
            shown = [
                (place, value) for place, (label, _) in enumerate(rows) if (value := paper(size, label)) is not None
            ]
            if shown:
                axes.plot(
                    [value for _, value in shown], [place for place, _ in shown],
                    marker, color=PAPER_COLOUR, markersize=5, markerfacecolor="none", label=f"paper, {size}{whole}",
                )  # fmt: skip
        if task["summary"]["chance"] is not None:
            axes.axvline(100 * task["summary"]["chance"], color="#999999", linestyle=":", linewidth=1, label="chance")
        axes.set_yticks(range(len(rows)), [" ".join(label) for label, _ in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(-2, 102)
        axes.set_xlabel("percent, with 95 % intervals over videos")
        axes.set_title(f"{title(task)}\n{result['settings']['model']['name']}", fontsize=10)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def draw_frames(results: Sequence[Result], path: Path) -> bool:
    """Draw one panel for each task, its first score by how videos were sampled, a line for each model and rule, with
    95 % intervals; return whether there was anything to draw.

    Ways of sampling stand side by side in the order given: 1 frame a second is another number for every video.

    Raises:
        ImportError: matplotlib is missing.
    """
    panels = [(name, label) for name, label in _scores(results).items() if label is not None]
    if not panels:
        return False
    ways = list(dict.fromkeys(frames_text(result["settings"]) for result in results))
    models = list(dict.fromkeys(result["settings"]["model"]["name"] for result in results))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = _figure(max(6.5, (1.2 + 0.9 * len(ways)) * columns), 3.4 * lines + 0.3 * (len(models) + 1))
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (name, label) in zip(grid, panels):
        _draw_panel(axes, name, label, results, models, ways)
    # One legend for all: a label stands in it once, whichever panels have its line.
    found = {
        label: line for axes in grid[: len(panels)] for line, label in zip(*axes.get_legend_handles_labels())
    }  # fmt: skip
    figure.legend(found.values(), found.keys(), fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
    return True


def _scores(results: Sequence[Result]) -> dict[str, str | None]:
    """Return by task the first of its scores that any run has, by any rule; None: there is none."""
    labels: dict[str, str | None] = {}
    for result in results:
        for name, task in result["tasks"].items():
            scored = (label for label, figures in headlines(task).items() if any(figures.values()))
            labels[name] = labels.get(name) or next(scored, None)
    return labels


def _draw_panel(axes, name: str, label: str, results: Sequence[Result], models: list[str], ways: list[str]) -> None:
    scale = scale_of(label)
    tasks = [(result["settings"], result["tasks"][name]) for result in results if name in result["tasks"]]
    for number, model in enumerate(models):
        colour = MODELS[number % len(MODELS)]
        for rule, kind in enumerate(RULES):
            shown = [
                (ways.index(frames_text(settings)) + 0.06 * (2 * number + rule), one)
                for settings, task in tasks
                if settings["model"]["name"] == model and (one := headlines(task).get(label, {}).get(kind))
            ]
            for place, one in shown:
                if one["low"] is not None:
                    axes.plot([place] * 2, [scale * one["low"], scale * one["high"]], color=colour, linewidth=1)
            places, values = [place for place, _ in shown], [scale * one["value"] for _, one in shown]
            if shown:
                mark = {"markersize": 4, "markerfacecolor": colour if kind == "official" else "white"}
                axes.plot(places, values, LINES[kind], marker="o", color=colour, label=f"{model}, {kind}", **mark)
    _draw_paper(axes, name, label, ways)
    if (chance := tasks[0][1]["summary"]["chance"]) is not None:
        axes.axhline(100 * chance, color="#999999", linestyle=":", linewidth=1, label="chance")
    partial = list(dict.fromkeys(task["partial"] for _, task in tasks))
    axes.set_title(title(tasks[0][1]) if len(partial) == 1 else f"{tasks[0][1]['title']} (partial)", fontsize=9)
    axes.set_xticks(range(len(ways)), [way.replace(" a second", "\na second") for way in ways], fontsize=8)
    axes.set_xlim(-0.4, len(ways) - 0.4)
    axes.set_ylim(*((-0.1, 5.1) if scale == 1 else (-2, 102)))
    axes.set_ylabel(f"{label}, {'0 to 5' if scale == 1 else 'percent'}", fontsize=8)


def _draw_paper(axes, name: str, label: str, ways: list[str]) -> None:
    lines: dict[str, list[tuple[int, float]]] = {}
    for paper, row in paper_ablation(name):
        way = frames_name(row["inference"])
        if label in row and way in ways:
            lines.setdefault(paper, []).append((ways.index(way), row[label]))
    for (paper, points), marker in zip(lines.items(), "v^D"):
        axes.plot(
            *zip(*sorted(points)), "-", marker=marker, color=PAPER_COLOUR, linewidth=0.8, markersize=4,
            markerfacecolor="none", label=paper,
        )  # fmt: skip


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
