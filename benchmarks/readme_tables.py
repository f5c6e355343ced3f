"""Print the tables of README and model card from the newest result files.

python benchmarks/readme_tables.py            # print them
python benchmarks/readme_tables.py --write    # put them between the markers of README.md and the card
"""

import argparse
import json
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARD = "hub_cards/tiny/README.md"
# File -> marker in it -> what stands between that and the next `END`.
MARKERS = {
    "README.md": {
        "<!-- benchmarks/readme_tables.py: checkpointing -->\n": lambda: (
            "\n\n".join(
                checkpointing_table(question, what)
                for question, what in (
                    ("ma_gc_small", "one sequence of text"),
                    ("ma_gc_small_vision", "video with a trained tower of 6 layers and 16 tokens a frame"),
                )
            )
            + "\n"
        ),
        "<!-- benchmarks/readme_tables.py: videomamba -->\n": lambda: f"{videomamba_table()}\n",
        "<!-- benchmarks/readme_tables.py: speed -->\n": lambda: f"{scan_table()}\n\n{decoding_table()}\n",
    },
    CARD: {
        "<!-- benchmarks/readme_tables.py: shipped -->\n": lambda: f"{shipped_tables()}\n",
        "<!-- benchmarks/readme_tables.py: memory -->\n": lambda: f"{memory_table()}\n",
    },
}
END = "<!-- end -->"


def newest(question: str) -> dict:
    """Return the newest result of a question (file names end with the date), with its file name.

    Raises FileNotFoundError where there is none.
    """
    results = (ROOT / "benchmarks" / "results").glob(f"{question}_*.json")
    own = [path for path in results if path.stem.rsplit("_", 2)[0] == question]
    if not own:
        raise FileNotFoundError(f"benchmarks/results has no {question}_*.json: run the benchmark that writes it")
    paths = sorted(own, key=lambda p: p.stem.split("_")[-1])
    return json.loads(paths[-1].read_text(encoding="utf-8")) | {"file": paths[-1].name}


def scan_table() -> str:
    """Scan, forward and backward, beside transformers' own PyTorch fallback."""
    result = newest("scan")
    lines = [
        f"Scan, forward and backward, {result['settings']['tokens']:,} tokens, fp32, {result['hardware']['cpu']} "
        f"(`results/{result['file']}`):",
        "",
        "| heads | threads | ours | transformers' PyTorch scan | faster | peak of tensors |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        ours, theirs = (row["seconds"][name]["forward_backward"]["median"] for name in ("ours", "transformers"))
        memory = [row["peak_tensor_bytes"][name] / 1e6 for name in ("ours", "transformers")]
        lines.append(
            f"| {row['heads']} | {row['threads']} | {ours:.2f} s | {theirs:.2f} s | "
            f"{row['speed_ratio']['forward_backward']:.1f}x | {memory[0]:,.0f} MB against {memory[1]:,.0f} MB |"
        )
    return "\n".join(lines)


def decoding_table() -> str:
    """Video reading at 1 FPS beside decord and seeking for every sample."""
    result = newest("video_decoding")
    settings = result["settings"]
    names = {"ours": "this reader", "pyav_seek": "PyAV, a seek per sample", "decord": "decord"}
    lines = [
        f"One frame per second of {settings['minutes']:g} minutes of H.264 {settings['width']}x{settings['height']} "
        f"(`results/{result['file']}`):",
        "",
        "| reader | frames between key frames | CPU time | peak memory | wrong frames |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        cells = [row.get("failure"), "", ""]
        if "failure" not in row:
            cells = [f"{row['cpu_seconds']:.1f} s", f"{row['peak_rss_mib']:.0f} MiB", str(row["wrong_frames"])]
        lines.append(f"| {names[row['reader']]} | {row['key_frame_distance']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def checkpointing_table(question: str, what: str) -> str:
    """Memory by length and time over plain training, of every checkpointing method."""
    result = newest(question)
    memory = [row for row in result["rows"] if row["kind"] == "memory"]
    times = {row["method"]: row for row in result["rows"] if row["kind"] == "time"}
    lengths = sorted({row["length"] for row in memory})
    at, longest = next(iter(times.values()))["length"], lengths[-1]
    sums = max(row["sums"] for row in memory) / 1e6
    lines = [
        "Activations of a training step in MB (beyond weights, gradients and their fp32 sums), and time over plain "
        f"training at {at:,} tokens: 16 layers of width 256, fp32, {what}, segments of "
        f"{result['settings']['segment']} tokens; {result['hardware']['cpu']}, {result['settings']['threads']} thread "
        f"(`results/{result['file']}`). With several segments the sums take {sums:,.0f} MB more.",
        "",
        f"| method | {' | '.join(f'{n:,} tokens' for n in lengths)} | host at {longest:,} | time | forwards again |",
        f"| --- |{' --- |' * (len(lengths) + 3)}",
    ]
    for method in dict.fromkeys(row["method"] for row in memory):
        rows = {row["length"]: row for row in memory if row["method"] == method}
        cells = [f"{rows[n]['activations'] / 1e6:,.1f}" if n in rows else "" for n in lengths]
        host = f"{rows[longest]['host'] / 1e6:,.0f}" if longest in rows and rows[longest]["host"] else ""
        again = rows[min(rows)].get("extra_forwards", "")
        again = rows[longest]["extra_forwards"] if again != "" and longest in rows else again
        time = f"{times[method]['ratio_to_plain']:.2f}" if method in times else ""
        lines.append(f"| {method} | {' | '.join(cells)} | {host} | {time} | {again} |")
    formula = {row["length"]: row["paper_formula"] for row in memory if "paper_formula" in row}
    cells = [f"{formula[n] / 1e6:,.1f}" for n in lengths]
    lines.append(f"| the paper's formula for its grid, without vision | {' | '.join(cells)} | | | |")
    return "\n".join(lines)


def trends_tables() -> str:
    """Frames and stage 1.5 by length of video and by type of question, and a finished model on longer videos."""
    from modeling_video_ma2mba.eval.scene_scores import score_table

    result = newest("trends")
    settings, tables = result["settings"], []
    seeds = " and ".join(map(str, settings["seeds"]))
    heads = {
        "short": f"Stage 2 of the small model on {settings['videos']:,} generated videos of up to "
        f"{max(settings['training_lengths'])} frames: right answers to held-out questions in percent, with 95 % "
        f"intervals over the questions of seeds {seeds} together; videos longer than so many frames are sampled "
        f"uniformly, in training and asking (`results/{result['file']}`).",
        "long": "The small model that ships with the project, asked about longer videos than it was trained on "
        f"({max(settings['training_lengths'])} frames at most).",
    }
    for kind, head in heads.items():
        rows = [row for row in result["rows"] if ("C" in row["parts"]) == (kind == "long")]
        if not rows:
            continue
        lengths = [str(n) for n in settings["lengths"][kind]]
        what = "frames read" if kind == "long" else "trained and asked with"
        last = ["all", *(["all, seed by seed"] if kind == "short" else [])]
        lines = [
            f"{head}\n",
            f"| {what} | {' | '.join([*(f'{n} frames' for n in lengths), *last])} |",
            f"| --- |{' --- |' * (len(lengths) + len(last))}",
        ]
        for row in rows:
            scores = [*(row["scores"]["by_frames"][n] for n in lengths), row["scores"]["all"]]
            cells = [f"{100 * s['accuracy']:.1f} ({100 * s['low']:.0f} to {100 * s['high']:.0f})" for s in scores]
            if kind == "short":
                cells.append(", ".join(f"{100 * s['all']['accuracy']:.1f}" for s in row["by_seed"].values()))
            lines.append(f"| {row['label']} | {' | '.join(cells)} |")
        tables += ["\n".join(lines), score_table({row["label"]: row["scores"] for row in rows})]
    return "\n\n".join(tables)


def watching_table(question: str = "watching_tiny") -> str:
    """Watching by length of video, ours beside a transformer with its KV cache; a real film; speed of decoding."""
    result = newest(question)
    rows = [row for row in result["rows"] if "failure" not in row]
    kinds = {kind: {row["frames"]: row for row in rows if row["kind"] == kind} for kind in ("watch", "transformer")}
    hardware = result["hardware"]
    where = hardware["gpu"] if result["settings"]["device"] == "cuda" else hardware["cpu"]
    some = next(iter(kinds["watch"].values()))
    lines = [
        f"Watching generated video at 1 FPS, {some['tokens'] // some['frames']} tokens a frame, with the "
        f"{result['settings']['preset']} model ({some['weight_bytes'] / 1e6:,.0f} MB of weights, random), and a Llama "
        "of equal width, depth and parameters behind the same tower, with transformers' KV cache. Median time of an "
        f"answer of {result['settings']['answer']['max_new_tokens']} tokens, after the first. {where}, "
        f"{some['threads']} threads (`results/{result['file']}`). * extrapolated: time of reading by a quadratic, of "
        "an answer by a line.",
        "",
        "| video | x real time | tensors at most | process grew by | memory | answer | transformer: x real time | "
        "KV cache | answer |",
        f"| --- |{' --- |' * 8}",
    ]
    for frames in sorted(kinds["watch"].keys() | kinds["transformer"].keys()):
        ours, theirs = (kinds[kind].get(frames) for kind in ("watch", "transformer"))
        cells = [""] * 8
        if ours:
            sizes = [ours[f"{name}_bytes"] / 1e6 for name in ("peak_tensor", "rss_growth", "memory")]
            cells[:4] = [f"{frames / ours['seconds']:,.0f}", *(f"{size:,.1f} MB" for size in sizes)]
            cells[4] = f"{statistics.median(ours['answer_seconds']) * 1e3:,.0f} ms"
        if theirs:
            star = {name: "*" if name in theirs["extrapolated"] else "" for name in ("seconds", "answer")}
            if "seconds" in theirs:
                cells[5] = f"{frames / theirs['seconds']:,.0f}{star['seconds']}"
            cells[6] = f"{theirs['cache_bytes'] / 1e6:,.1f} MB"
            if "answer" in theirs:
                cells[7] = f"{theirs['answer'] * 1e3:,.0f} ms{star['answer']}"
        lines.append(f"| {duration(frames)} | {' | '.join(cells)} |")
    for row in rows:
        if row["kind"] == "film":
            film = f"H.264, {row['size']} px, {row['film_fps']} FPS, {duration(row['frames'])}"
            speed = row["frames"] / row["seconds"]
            lines += ["", f"A file ({film}), decoded and watched: {speed:,.0f} x real time."]
        if row["kind"] == "speed":
            speeds = [row.get(f"{n}_tokens_per_second") for n in ("prefill", "decode", "compiled_decode")]
            told = ["failed" if speed is None else f"{speed:,.0f}" for speed in speeds]
            lines += [
                "",
                f"Tokens per second: prefill of {row['tokens']:,} tokens {told[0]}, decoding {told[1]}, with "
                f"torch.compile {told[2]}.",
            ]
    return "\n".join(lines)


def videomamba_table() -> str:
    """What small VideoMambas make of clips in which motion alone decides, by arm, over seeds."""
    result = newest("videomamba_evidence")
    settings, rows = result["settings"], result["rows"]
    asked, seeds = rows[0]["asked"], len({row["seed"] for row in rows})
    classes = "six classes, chance 16.7 %, frames in any order at best 50 %"
    lines = [
        f"Right in percent, mean (and each) of {seeds} seeds: from nothing on {settings['train_clips']:,} clips, "
        f"{asked} held-out clips of {classes} (`results/{result['file']}`):",
        "",
        "| model | parameters | right | direction, where the kind of motion is right |",
        "| --- | --- | --- | --- |",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        right = [100 * row["right"] / row["asked"] for row in own]
        told = [100 * row["right"] / row["asked"] / row["right_pair"] for row in own]
        each = ", ".join(f"{one:.1f}" for one in right)
        means = f"{statistics.mean(right):.1f} ({each}) | {statistics.mean(told):.1f}"
        lines.append(f"| {arm} | {own[0]['parameters']:,} | {means} |")
    return "\n".join(lines)


def memory_table() -> str:
    """What the shipped model needs to watch and to train, by length of video; computed, not measured."""
    from modeling_video_ma2mba.hub_cards.memory_table import memory_tables

    return memory_tables(str((ROOT / CARD).parent))


def shipped_tables() -> str:
    """What the shipped model answers rightly, beside its controls, and by length of video."""
    from modeling_video_ma2mba.eval.scene_scores import length_table, score_table

    summaries = json.loads((ROOT / CARD).with_name("evaluation.json").read_text(encoding="utf-8"))["summaries"]
    lines = [
        "Right answers in percent, with 95 % intervals (`evaluation.json`):",
        score_table(summaries),
        "By length of the video:",
        length_table(summaries["video"]),
    ]
    return "\n\n".join(lines)


def duration(seconds: int) -> str:
    """Return 60 -> "1 min", 86400 -> "24 h"."""
    for name, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds} s"


def with_tables(file: str) -> str:
    """Return the text of a file of `MARKERS` with every table made from the newest results."""
    text = (ROOT / file).read_text(encoding="utf-8")
    for marker, table in MARKERS[file].items():
        before, rest = text.split(marker)
        text = before + marker + table() + rest[rest.index(END) :]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"put the tables into {' and '.join(MARKERS)}")
    options = parser.parse_args()
    for file, tables in MARKERS.items():
        if options.write:
            (ROOT / file).write_text(with_tables(file), encoding="utf-8")
        else:
            print("\n".join(table() for table in tables.values()))


if __name__ == "__main__":
    main()
