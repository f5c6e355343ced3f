"""Print the README's benchmark tables from the newest result files.

python benchmarks/readme_tables.py            # print them
python benchmarks/readme_tables.py --write    # put them into README.md, between its markers
"""

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmarks/readme_tables.py -->\n", "<!-- end -->"


def newest(question: str) -> dict:
    """Return the newest result of a question (file names end with the date), with its file name."""
    paths = sorted((ROOT / "benchmarks" / "results").glob(f"{question}_*.json"), key=lambda p: p.stem.split("_")[-1])
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


def tables() -> str:
    """Return all tables as Markdown."""
    return f"{scan_table()}\n\n{decoding_table()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    if not parser.parse_args().write:
        print(tables())
        return
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    path.write_text(before + BEGIN + tables() + rest[rest.index(END) :], encoding="utf-8")


if __name__ == "__main__":
    main()
