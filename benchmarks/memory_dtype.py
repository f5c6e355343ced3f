"""What a memory file in bfloat16 changes in the answers: the same videos, asked from both files.

    python train/make_synthetic_data.py evaluation --output data --count 720 --seed 2000
    python benchmarks/memory_dtype.py --data data/evaluation.json

Each video is watched once, its memory saved in float32 and in bfloat16, loaded back, and asked its question.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from result import write_result
from tqdm import tqdm

from modeling_video_ma2mba.eval.intervals import wilson_interval
from modeling_video_ma2mba.eval.scene_answers import MAX_NEW_TOKENS, SceneQuestion, answer, read_questions
from modeling_video_ma2mba.processing.load_model import load_model

DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="model folder (default: the small shipped model)")
    parser.add_argument("--data", type=Path, required=True, help="evaluation.json")
    parser.add_argument("--limit", type=int, help="the first so many rows only")
    options = parser.parse_args()
    settings = {"model": options.model, "data": options.data.name, "limit": options.limit}
    settings["threads"] = torch.get_num_threads()
    model, processor = load_model(options.model, "auto", "auto")
    questions = read_questions(options.data, options.limit)
    rows = compare(model, processor, questions)
    for row in rows:
        print(row)
    print(f"wrote {write_result('memory_dtype', settings, rows)}")


def compare(model, processor, questions: list[SceneQuestion]) -> list[dict]:
    """Return a row for each dtype: file size in bytes, right answers, and answers that differ from float32's."""
    given: dict[str, list[str]] = {dtype: [] for dtype in DTYPES}
    sizes = dict.fromkeys(DTYPES, 0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "memory.safetensors"
        for asked in tqdm(questions, desc="asking", unit="question"):
            memory = model.watch(str(asked.video), processor=processor, progress=False)
            for dtype in DTYPES:
                memory.save(path, dtype=dtype)
                sizes[dtype] = max(sizes[dtype], path.stat().st_size)
                loaded = model.load_memory(path)
                text = model.ask(loaded, asked.question, processor=processor, max_new_tokens=MAX_NEW_TOKENS)
                given[dtype].append(text)
    rows = []
    for dtype in DTYPES:
        right = sum(answer(asked, text).right for asked, text in zip(questions, given[dtype]))
        low, high = wilson_interval(right, len(questions))
        differ = sum(one != other for one, other in zip(given[dtype], given["float32"]))
        rows.append(
            {"dtype": dtype, "file_bytes": sizes[dtype], "asked": len(questions), "right": right}
            | {"low": low, "high": high, "other_answers_than_float32": differ}
        )
    return rows


if __name__ == "__main__":
    main()
