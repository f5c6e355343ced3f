"""A needle in a video: something shown for one frame, at a known depth of a long video, and a question about it.

    video-ma2mba needle --model tiny --lengths 64 256 1024 --depths 0 0.25 0.5 0.75 1 --output needles
    video-ma2mba needle --model MODEL --video film.mp4 --needles needles.json --lengths 200 800 3000 --output needles

Without `--video`, haystacks are drawn, another one for each trial. Needles are drawn, too (a digit, as the small model
knows it, or a coloured card with a number for any model), or come from a file in V-NIAH's form: rows of `image` (or
`video`), `question` and `answer`. `--distractors 0.05` puts things beside them that stand out as much and answer
nothing. As in V-NIAH (LongVA, arXiv 2406.16852) the needle is inserted behind int(depth * N) of N frames. All depths
and lengths of a haystack share passes over it; needle_pass.py says how.

Until the command runs, nothing but the standard library is imported: the console script takes its options from here.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

KINDS = ("digit", "card")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_NO_SETTINGS = ("command", "run")  # of the console script
PLOT, RESULT, ANSWERS = "needles.png", "needles.json", "needles.answers.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `needle`."""
    parser.add_argument("--model", default="tiny", help="model folder or Hub name (default: the small shipped model)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024], help="frames of the haystacks")
    parser.add_argument(
        "--depths", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="0 is the start, 1 the end"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for result, answers and heat map")
    parser.add_argument(
        "--trials", type=int, help="needles at each length and depth (default: 10, or those of the file)"
    )
    parser.add_argument("--video", type=Path, nargs="+", default=[], help="haystacks of your own, taken in turn")
    parser.add_argument("--fps", type=float, default=1.0, help="of your own videos (default: %(default)s)")
    parser.add_argument("--needles", default="digit", help=f"{', '.join(KINDS)}, or a json file (default: digit)")
    parser.add_argument(
        "--distractors", type=float, default=0.0, help="share of frames that stand out and answer nothing (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other haystacks and needles")
    parser.add_argument("--rows", type=int, default=32, help="rows read at once (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cuda, cpu, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    _check(options)
    run(options)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for options that cannot be: before seconds of imports and minutes of loading."""
    for name in ("lengths", "depths"):
        setattr(options, name, sorted(set(getattr(options, name))))
    if options.lengths[0] < 1:
        raise ValueError(f"--lengths {options.lengths[0]}: a haystack has 1 frame or more")
    if not 0 <= options.depths[0] <= options.depths[-1] <= 1:
        raise ValueError(f"--depths {options.depths}: they lie between 0 (the start) and 1 (the end)")
    if options.trials is not None and options.trials < 1:
        raise ValueError(f"--trials {options.trials}: give 1 or more")
    if options.rows < 2:
        raise ValueError(f"--rows {options.rows}: give 2 or more, one is the haystack's own")
    if not 0 <= options.distractors <= 0.5:
        raise ValueError(f"--distractors {options.distractors}: give a share from 0 to 0.5")
    if options.seed < 0 or not options.fps > 0:
        raise ValueError(f"--seed {options.seed} must be 0 or more, --fps {options.fps} above 0")
    if options.needles not in KINDS:
        if not options.needles.endswith((".json", ".jsonl")):
            raise ValueError(f"--needles {options.needles}: give {', '.join(KINDS)}, or a .json or .jsonl file")
        if options.distractors:
            raise ValueError("--distractors are drawn to look like drawn needles: leave it out with needles of a file")


def run(options: argparse.Namespace) -> None:
    """Hide, ask, print the tables and write the files.

    Raises:
        ValueError, OSError: model, videos, needles or options cannot be used.
    """
    from datetime import UTC, datetime

    from modeling_video_ma2mba.environment import describe_environment
    from modeling_video_ma2mba.eval.needle_pass import MemoryReader
    from modeling_video_ma2mba.eval.results import check_folder, code_commit
    from modeling_video_ma2mba.model_fingerprint import model_fingerprint
    from modeling_video_ma2mba.processing.load_model import check_model, load_model

    check_folder(options.output)
    if (options.output / RESULT).exists():
        raise ValueError(f"{options.output / RESULT} is the result of an earlier run: choose another --output")
    check_model(options.model, options.device)
    needles = make_needles(options)
    options.output.mkdir(parents=True, exist_ok=True)
    model, processor = load_model(options.model, options.device, options.dtype)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: _plain(given) for name, given in vars(options).items() if name not in _NO_SETTINGS},
        "model": {
            "fingerprint": model_fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "tokens_per_frame": model.config.tokens_per_frame,
        },
        "versions": {what: choice for what, choice, _ in describe_environment()},
        "commit": code_commit(),
    }
    write_report(options, facts, *find_needles(MemoryReader(model, processor), options, needles))


def make_needles(options: argparse.Namespace) -> list:
    """Return a `Needle` for each trial."""
    from modeling_video_ma2mba.eval.needle_videos import KINDS as DRAWN
    from modeling_video_ma2mba.eval.needle_videos import file_needles

    if options.needles in DRAWN:
        return [DRAWN[options.needles][0](options.seed, trial) for trial in range(options.trials or 10)]
    given = file_needles(Path(options.needles), options.fps)
    return [given[trial % len(given)] for trial in range(options.trials or len(given))]


def find_needles(reader, options: argparse.Namespace, needles: Sequence) -> tuple[list, object]:
    """Return what a `Reader` found, a `Found` for each trial, length and depth, and the `Cost` of it."""
    from tqdm import tqdm

    from modeling_video_ma2mba.eval.needle_pass import Cost, NeedlePass, place_needles, split_placements
    from modeling_video_ma2mba.eval.needle_report import Found
    from modeling_video_ma2mba.eval.needle_videos import KINDS as DRAWN
    from modeling_video_ma2mba.eval.needle_videos import drawn_haystack, video_haystack, with_distractors
    from modeling_video_ma2mba.eval.parsers import short_answer

    # A drawn haystack is new for each trial; a video is shared by all needles that are hidden in it.
    haystacks: dict[int, list[int]] = {}
    for trial in range(len(needles)):
        haystacks.setdefault(trial % len(options.video) if options.video else trial, []).append(trial)
    cost, found, passes = Cost(), [], []
    for haystack, trials in haystacks.items():
        placements = place_needles([(trial, needles[trial]) for trial in trials], options.lengths, options.depths)
        passes += [(haystack, NeedlePass(reader, part, cost)) for part in split_placements(placements, options.rows)]

    def pictures(haystack: int, frames: int):
        if options.video:
            shown = video_haystack(options.video[haystack], options.fps, frames)
        else:
            shown = drawn_haystack(options.seed, haystack)
        if options.distractors:
            shown = with_distractors(shown, DRAWN[options.needles][1], options.distractors, options.seed + haystack)
        return shown

    if options.video:
        for haystack in haystacks:
            pictures(haystack, options.lengths[-1])  # one that is too short is told before hours are spent on others
    with tqdm(total=sum(one.frames for _, one in passes), desc="reading", unit=" frames") as bar:
        for haystack, one in passes:
            for told in one.run(pictures(haystack, one.frames)):
                if isinstance(told, int):
                    bar.update(told)
                    continue
                placed, length, heard = told
                needle = placed.needle
                found += [
                    Found(
                        trial=placed.trial,
                        needle=needle.name,
                        length=length,
                        depth=depth,
                        place=placed.place,
                        question=needle.question,
                        expected=needle.answer,
                        said=heard.said,
                        whole=short_answer(heard.said) == short_answer(needle.answer),
                        exact=heard.is_exact,
                    )
                    for depth in placed.lengths[length]
                ]
    return sorted(found, key=lambda one: (one.trial, one.length, one.depth)), cost


def write_report(options: argparse.Namespace, facts: dict, found: list, cost) -> None:
    """Print the tables; write needles.json, needles.answers.jsonl and, with matplotlib, needles.png."""
    import json

    from modeling_video_ma2mba.eval.needle_report import RULES, cells, draw, lost_at, table
    from modeling_video_ma2mba.eval.results import write_json

    rows = cells(found)
    for rule, name in RULES.items():
        print(f"\nFound, in percent, {name} (in brackets 95 % intervals)\n\n{table(rows, rule)}")
    lost = {rule: lost_at(rows, rule) for rule in RULES}
    for rule, name in RULES.items():
        length = lost[rule]
        print(
            f"\n{name}: " + ("half or more at every length" if length is None else f"under half at {length:,} frames")
        )
    print(
        f"\n{cost.frames_encoded:,} frames went through the vision tower and {cost.frames_read:,} through the "
        f"language model; videos for each question have {cost.frames_read_apart:,}"
    )
    result = {**facts, "cells": rows, "under_half_at": lost, "cost": vars(cost)}
    write_json(result, options.output / RESULT)
    with open(options.output / ANSWERS, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(vars(one)) + "\n" for one in found)
    print(f"\nwrote {options.output / RESULT} and {options.output / ANSWERS}")
    if importlib.util.find_spec("matplotlib") is None:
        print('no heat map: it needs matplotlib, pip install "video-ma2mba[eval]"', file=sys.stderr)
        return
    draw(rows, f"{options.needles} needles, {Path(options.model).name}", options.output / PLOT)
    print(f"wrote {options.output / PLOT}")


def _plain(given):
    if isinstance(given, list):
        return [_plain(one) for one in given]
    return str(given) if isinstance(given, Path) else given
