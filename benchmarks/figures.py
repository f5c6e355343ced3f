"""Draw the README's figures: how MA-GC cuts the plane of layers and tokens; measured memory; and the paper's trends.

python benchmarks/figures.py        # writes benchmarks/figures/*.png
"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from readme_tables import ROOT, newest

FIGURES = ROOT / "benchmarks" / "figures"
SHOWN = {
    "plain": ("no checkpointing", "#555555", "-"),
    "transformers, per layer": ("transformers, layer by layer", "#999999", "-"),
    "torch cells, paper's order": ("the paper's grid, torch cells", "#c44e52", "--"),
    "paper's grid": ("the paper's grid, this engine", "#c44e52", "-"),
    "sequence only": ("sequence only", "#4c72b0", "-"),
    "nested, lean mixer": ("nested", "#55a868", "-"),
    "grid, host": ("grid, checkpoints on the host", "#8172b2", "-"),
}

TRENDS = {
    "A": "trained and asked with every frame or with few",
    "B": "stage 1.5 before stage 2, or not",
    "C": "longer videos than in training (64 frames)",
}
TREND_COLOURS = ("#4c72b0", "#c44e52", "#55a868", "#8172b2", "#ccb974")


def draw_grid(path) -> None:
    """Draw the paper's grid of 4 segments x 3 groups while the backward is inside it."""
    segments, groups = 4, 3
    figure, axes = plt.subplots(figsize=(8, 3.6))
    for j in range(segments):
        for k in range(groups):
            done = j == segments - 1 or (j == segments - 2 and k == groups - 1)
            now = j == segments - 2 and k == groups - 2
            colour = "#55a868" if now else "#dddddd" if done else "#ffffff"
            axes.add_patch(Rectangle((j, k), 1, 1, facecolor=colour, edgecolor="#bbbbbb", zorder=1))
            label = "has a graph" if now else "done" if done else ""
            axes.text(j + 0.5, k + 0.5, label, ha="center", va="center", fontsize=9)
            if k and not done:
                axes.plot([j + 0.03, j + 0.97], [k, k], color="#4c72b0", linewidth=4, solid_capstyle="butt", zorder=3)
    for j in range(1, segments - 1):
        axes.plot([j, j], [0.03, groups - 0.03], color="#c44e52", linewidth=4, solid_capstyle="butt", zorder=3)
    axes.plot([], [], color="#c44e52", linewidth=4, label="state: conv + SSM of every layer, a fixed size")
    axes.plot([], [], color="#4c72b0", linewidth=4, label="boundary: input of a group of layers")
    axes.annotate("backward", (0.9, -0.32), (3.9, -0.32), arrowprops={"arrowstyle": "->"}, va="center", fontsize=9)
    axes.set_xlim(-0.02, segments + 0.02)
    axes.set_ylim(-0.6, groups + 0.02)
    axes.set_xticks([j + 0.5 for j in range(segments)], [f"segment {j + 1}" for j in range(segments)])
    axes.set_yticks([k + 0.5 for k in range(groups)], [f"group {k + 1}" for k in range(groups)])
    axes.set_xlabel("tokens")
    axes.set_ylabel("layers")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw_memory(path) -> None:
    """Draw measured activations against length, one line for each method."""
    result = newest("ma_gc_small")
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for method, (label, colour, style) in SHOWN.items():
        rows = [r for r in result["rows"] if r["kind"] == "memory" and r["method"] == method]
        lengths, sizes = [r["length"] for r in rows], [r["activations"] / 1e6 for r in rows]
        axes.plot(lengths, sizes, style, color=colour, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("activations, MB")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title("16 layers, width 256, fp32, one sequence, language model only", fontsize=10)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw_trends(path) -> None:
    """Draw right answers by length of video, with 95 % intervals: a panel for each part of `trends.py` that ran."""
    result = newest("trends")
    parts = {part: [row for row in result["rows"] if part in row["parts"]] for part in TRENDS}
    parts = {part: rows for part, rows in parts.items() if rows}
    figure, panels = plt.subplots(1, len(parts), figsize=(5 * len(parts), 4), squeeze=False)
    for axes, (part, rows) in zip(panels[0], parts.items()):
        colours = iter(TREND_COLOURS)
        for place, row in enumerate(rows):
            lengths, scores = list(map(int, row["scores"]["by_frames"])), row["scores"]["by_frames"].values()
            shares = [100 * score["accuracy"] for score in scores]
            if row["start"] is None:  # no model: a guess has no chance in it
                axes.plot(lengths, shares, ":", color="#555555", label=row["label"])
                continue
            below = [100 * (score["accuracy"] - score["low"]) for score in scores]
            above = [100 * (score["high"] - score["accuracy"]) for score in scores]
            # Moved a little, so that intervals do not hide each other.
            beside = [length * 1.03 ** (place - len(rows) / 2) for length in lengths]
            axes.errorbar(
                beside, shares, (below, above), marker="o", capsize=2, color=next(colours), label=row["label"]
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, lengths)
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("frames of the video")
        axes.set_title(TRENDS[part], fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    panels[0][0].set_ylabel("right answers, %")
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    draw_grid(FIGURES / "ma_gc_grid.png")
    draw_memory(FIGURES / "ma_gc_memory.png")
    draw_trends(FIGURES / "trends.png")
