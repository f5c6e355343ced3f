"""Evaluate a model on generated videos with one held-out question each, beside controls that take the video away.

    python train/make_synthetic_data.py evaluation --output data --count 2160
    python eval/evaluate_scenes.py --model runs/demo/model --data data/evaluation.json --output results.json

The controls: `blank` (as many frames of one grey), `shuffled` (the frames in a random order), `question-only` (no
video at all); and the most frequent training answer to each form of question. What a model scores above the blind
ones, it has seen.
"""

import argparse
import json
import sys
from pathlib import Path

# As in scene_answers.py, whose import takes seconds.
CONTROLS = ("video", "blank", "shuffled", "question-only")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input."""
    options = _parser().parse_args(argv)
    try:
        run(options)
    except (ValueError, OSError, ImportError) as error:
        # Some messages of transformers have several lines.
        print(f"evaluate_scenes: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Evaluate a model on generated videos, beside blind controls.")
    parser.add_argument("--model", default="tiny", help="model folder (default: the small shipped model)")
    parser.add_argument(
        "--data", type=Path, required=True, help="evaluation.json of `make_synthetic_data.py evaluation`"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="JSON file of settings and scores; answers beside it"
    )
    parser.add_argument(
        "--controls", nargs="+", choices=CONTROLS, default=list(CONTROLS), help="default: all of these"
    )
    parser.add_argument(
        "--num-frames", type=int, nargs="+", default=[], help="ask again with so many frames, uniformly, of each video"
    )
    parser.add_argument("--limit", type=int, help="the first so many rows only")
    parser.add_argument("--batch-size", type=int, default=16, help="questions at a time (default: %(default)s)")
    return parser


def run(options: argparse.Namespace) -> None:
    """Ask, print the tables and write the answers.

    Raises:
        ValueError, OSError: model, data or options cannot be used.
    """
    from modeling_video_ma2mba.shipped_model import model_folder

    folder = Path(model_folder(options.model))
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give a model folder written by save_pretrained")
    from modeling_video_ma2mba.eval.scene_answers import evaluate, evaluate_controls, read_questions
    from modeling_video_ma2mba.eval.scene_scores import (
        constant_baseline,
        length_table,
        place_of_blind,
        score_table,
        summary,
        training_questions,
    )
    from modeling_video_ma2mba.processing.frame_sampling import check_sampling
    from modeling_video_ma2mba.processing.load_model import load_model

    for number in options.num_frames:
        check_sampling(num_frames=number)
    # What can be wrong is found before the work, not after it.
    read_questions(options.data, options.limit)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.open("a").close()
    facts = _facts(options)

    model, processor = load_model(str(folder))
    common = {"batch_size": options.batch_size, "limit": options.limit}
    answers = evaluate_controls(model, processor, options.data, options.controls, **common)
    for number in options.num_frames:
        answers[f"video, {number} frames"] = evaluate(model, processor, options.data, num_frames=number, **common)
    some = next(iter(answers.values()))
    constant = constant_baseline(training_questions(sorted({one.frames for one in some})), some)

    summaries = {name: summary(given) for name, given in {**answers, "constant": constant}.items()}
    places = place_of_blind(summaries, summaries["constant"])
    print(f"\nRight answers in percent, with 95 % intervals\n\n{score_table(summaries)}")
    for name, place in places.items():
        print(f"\n{name.replace('-', ' ')}: {place} the interval of the constant answer")
    if "video" in answers:
        print(f"\nVideo: right answers in percent, by the length of the video\n\n{length_table(summaries['video'])}")
    listed = options.output.with_suffix(".answers.jsonl")
    with listed.open("w", encoding="utf-8") as file:
        for name, given in answers.items():
            file.writelines(json.dumps({"control": name, **vars(one)}) + "\n" for one in given)
    result = {**facts, "summaries": summaries, "place_of_blind": places}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {options.output} and {listed}")


def _facts(options: argparse.Namespace) -> dict:
    """Return what is needed to do it again."""
    from modeling_video_ma2mba.eval.results import provenance

    settings = {name: str(given) if isinstance(given, Path) else given for name, given in vars(options).items()}
    return {"settings": settings, **provenance()}


if __name__ == "__main__":
    sys.exit(main())
