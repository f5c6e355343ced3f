"""What was found of the needles: shares by length and depth, with intervals, as data, a table and a heat map.

Two rules stand side by side. "whole": the greedy answer is the right one and nothing else, but for case, blanks and
marks around it. "exact": V-NIAH's, the right answer is the most likely continuation of the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_video_ma2mba.eval.intervals import wilson_interval

RULES = {"whole": "whole answer", "exact": "V-NIAH's exact match"}
LOST = 0.5  # below this share a length is too long


@dataclass(frozen=True, kw_only=True)
class Found:
    """A question with its answer.

    Attributes:
        trial: number of the haystack and needle. length, place: frames of the haystack, in all and before the needle.
        depth: as it was asked for.
        whole, exact: whether the answer is right by each rule.
    """

    trial: int
    needle: str
    length: int
    depth: float
    place: int
    question: str
    expected: str
    said: str
    whole: bool
    exact: bool


def cells(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return a row for each length and depth, for each length ("depth": None), and for all (both None).

    Each holds "asked", and by rule "right", "share", "low" and "high": the 95 % Wilson interval, in which every trial
    counts for itself.
    """
    lengths, depths = (sorted({getattr(one, name) for one in found}) for name in ("length", "depth"))
    places = [*((n, d) for n in lengths for d in depths), *((n, None) for n in lengths), (None, None)]
    rows = []
    for length, depth in places:
        some = [one for one in found if length in (None, one.length) and depth in (None, one.depth)]
        row = {"length": length, "depth": depth, "asked": len(some)}
        for rule in RULES:
            right = sum(getattr(one, rule) for one in some)
            low, high = wilson_interval(right, len(some))
            row[rule] = {"right": right, "share": right / len(some), "low": low, "high": high}
        rows.append(row)
    return rows


def lost_at(rows: Sequence[dict[str, Any]], rule: str) -> int | None:
    """Return the shortest length at which less than half of the needles are found; None: there is none."""
    return next((r["length"] for r in rows if r["depth"] is None and r["length"] and r[rule]["share"] < LOST), None)


def table(rows: Sequence[dict[str, Any]], rule: str) -> str:
    """Return a Markdown table in percent: a row for each length, a column for each depth, and all with intervals."""
    depths = sorted({row["depth"] for row in rows if row["depth"] is not None})
    lines = [["frames", *(f"depth {depth:g}" for depth in depths), "all depths"], ["---"] * (len(depths) + 2)]
    for row in rows:
        if row["length"] is None or row["depth"] is not None:
            continue
        inside = [r[rule]["share"] for r in rows if r["length"] == row["length"] and r["depth"] is not None]
        given = row[rule]
        cells = [f"{100 * share:.0f}" for share in inside]
        whole = f"{100 * given['share']:.0f} ({100 * given['low']:.0f} to {100 * given['high']:.0f})"
        lines.append([f"{row['length']:,}", *cells, whole])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw a heat map for each rule, lengths across, depths down, and write it as PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = sorted({row["length"] for row in rows if row["length"] is not None})
    depths = sorted({row["depth"] for row in rows if row["depth"] is not None})
    shares = {(row["length"], row["depth"]): row for row in rows}
    width = max(3.2, 1.2 + 0.75 * len(lengths))
    figure = Figure(figsize=(len(RULES) * width + 0.8, 1.7 + 0.55 * len(depths)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(RULES), sharey=True)
    for axes, (rule, name) in zip(panels, RULES.items()):
        grid = [[100 * shares[length, depth][rule]["share"] for length in lengths] for depth in depths]
        # From light to dark: it can be read in grey, on paper and without telling red from green.
        image = axes.imshow(grid, vmin=0, vmax=100, cmap="Blues", aspect="auto")
        for y, depth in enumerate(depths):
            for x, length in enumerate(lengths):
                cell = shares[length, depth]
                words = f"{grid[y][x]:.0f}\n{cell[rule]['right']} of {cell['asked']}"
                colour = "white" if grid[y][x] > 55 else "black"
                axes.text(x, y, words, ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, ha="right")
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.set_xlabel("frames of the haystack")
        axes.set_title(name, fontsize=10)
    panels[0].set_ylabel("depth of the needle")
    figure.colorbar(image, ax=panels, label="found, in percent")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
