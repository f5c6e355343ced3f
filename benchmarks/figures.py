"""Draw the README's figures: how MA-GC cuts layers and tokens; measured memory; the papers' trends; and watching.

python benchmarks/figures.py        # writes benchmarks/figures/*.png
"""

import statistics

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from readme_tables import ROOT, duration, newest

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


def draw_watching(path) -> None:
    """Draw bytes and the time of an answer against the length of the video, ours beside a transformer's.

    What was extrapolated is hollow.
    """
    rows = [row for row in newest("watching_tiny")["rows"] if "failure" not in row]
    ours = [row for row in rows if row["kind"] == "watch"]
    theirs = [row for row in rows if row["kind"] == "transformer"]
    figure, (sizes, answers) = plt.subplots(1, 2, figsize=(10, 3.8))
    our_lengths, their_lengths = ([row["frames"] for row in kind] for kind in (ours, theirs))
    for name, label, style in (("memory", "the memory", "-"), ("peak_tensor", "all tensors while watching", ":")):
        values = [row[f"{name}_bytes"] / 1e6 for row in ours]
        sizes.plot(our_lengths, values, style, color="#4c72b0", marker="o", label=label)
    values = [row["cache_bytes"] / 1e6 for row in theirs]
    sizes.plot(their_lengths, values, color="#c44e52", marker="o", label="KV cache of an equal transformer")
    sizes.set_ylabel("MB")
    values = [1e3 * statistics.median(row["answer_seconds"]) for row in ours]
    answers.plot(our_lengths, values, color="#4c72b0", marker="o", label="this model")
    known = [row for row in theirs if "answer" in row]
    lengths, values = [row["frames"] for row in known], [1e3 * row["answer"] for row in known]
    answers.plot(lengths, values, color="#c44e52", label="an equal transformer")
    for row in known:
        colour = "white" if "answer" in row["extrapolated"] else "#c44e52"
        answers.plot(row["frames"], 1e3 * row["answer"], "o", color="#c44e52", markerfacecolor=colour)
    answers.set_ylabel("an answer after the first, ms")
    lengths = sorted({*our_lengths, *their_lengths})
    for axes in (sizes, answers):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(lengths, [duration(n) for n in lengths])
        axes.minorticks_off()
        axes.set_xlabel("length of the video")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw_videomamba(path) -> None:
    """Draw clips per second, and bytes of a clip, against frames: VideoMamba beside joint attention."""
    result = newest("videomamba_efficiency")
    settings, rows = result["settings"], [row for row in result["rows"] if "failure" not in row]
    figure, (speeds, sizes) = plt.subplots(1, 2, figsize=(10, 3.8))
    for model, colour in zip(dict.fromkeys(row["model"] for row in rows), TREND_COLOURS):
        own = [row for row in rows if row["model"] == model]
        frames = [row["frames"] for row in own]
        speeds.plot(frames, [row["clips_per_second"] for row in own], color=colour, marker="o", label=model)
        values = [row["peak_tensor_bytes"] / row["batch"] / 1e6 for row in own]
        sizes.plot(frames, values, color=colour, marker="o", label=model)
    speeds.set_ylabel("clips per second")
    sizes.set_ylabel("tensors beyond the weights, MB a clip")
    for axes in (speeds, sizes):
        axes.set_yscale("log")
        axes.set_xticks(sorted({row["frames"] for row in rows}))
        axes.set_xlabel(f"frames of {settings['image_size']} px")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Draw what there are results for, and name what is missing."""
    FIGURES.mkdir(exist_ok=True)
    draws = {
        "ma_gc_grid": draw_grid,
        "ma_gc_memory": draw_memory,
        "trends": draw_trends,
        "watching": draw_watching,
        "videomamba_efficiency": draw_videomamba,
    }
    for name, draw in draws.items():
        try:
            draw(FIGURES / f"{name}.png")
        except FileNotFoundError as error:
            print(f"{name}.png was not drawn: {error}")


if __name__ == "__main__":
    main()
