"""`video-ma2mba eval`: benchmarks on models, side by side for several ways of sampling; `compare` two runs; `card`.

    video-ma2mba eval --model MODEL --tasks video-mme --data video-mme=Video-MME --output results
    accelerate launch --num_processes 8 eval/cli.py --model MODEL --tasks ... --output results
    video-ma2mba eval compare results/a-1fps results/b-1fps

Until a command runs, nothing but the standard library is imported: the console script takes its options from here.
"""

import argparse
import sys
from pathlib import Path

DTYPES = ("auto", "float32", "bfloat16", "float16")


def main(argv: list[str] | None = None) -> int:
    """Do as `video-ma2mba eval` does, for launchers that start a file."""
    from _video_ma2mba_cli import main as console

    return console(["eval", *(sys.argv[1:] if argv is None else argv)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run, and the commands `compare` and `card`, to the parser of `eval`."""
    parser.add_argument(
        "--model",
        nargs="+",
        help="folders or Hub names; any model of transformers that sees videos or images; tiny is the shipped one",
    )
    parser.add_argument("--tasks", type=_names, help="such as video-mme,mvbench; a wrong name lists them all")
    parser.add_argument("--output", type=Path, help="folder for the results; a run that was stopped goes on there")
    parser.add_argument(
        "--data",
        type=_named_folder,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="folder of a task's annotations and videos, as published (default: from the hub's cache)",
    )
    parser.add_argument(
        "--frames",
        type=_frames,
        default=[("1fps", {"fps": 1.0})],
        help="1fps, 0.5fps, or a number for every video; several for an ablation: 8,16,32,1fps (default: 1fps)",
    )
    parser.add_argument("--limit", type=int, help="the first so many samples of each task")
    parser.add_argument("--subtitles", action="store_true", help="ask with subtitles, by the benchmark's own rule")
    parser.add_argument(
        "--likelihood",
        nargs="?",
        const="letter",
        choices=("letter", "text"),
        help="take the likeliest option instead of asking for a text: by its letter, or by its words",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out samples whose video is missing, and list them"
    )
    parser.add_argument("--judge", help="who scores open answers: a model behind --judge-url, or local:FOLDER")
    parser.add_argument("--judge-url", help="OpenAI-compatible address; the key is taken from OPENAI_API_KEY")
    parser.add_argument(
        "--judge-max-dollars", type=float, help="refuse to begin where judging all runs may cost more (default: begin)"
    )
    parser.add_argument("--device", default="auto", help="cuda, cpu, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.set_defaults(run=_evaluate, parser=parser)
    commands = parser.add_subparsers(dest="what", metavar="COMMAND", help="in place of a run:")
    compare = commands.add_parser("compare", help="by how much is one run better than another, and is it chance")
    compare.add_argument("first", type=Path, help="folder of a run, with its results.json")
    compare.add_argument("second", type=Path)
    compare.set_defaults(run=_compare)
    card = commands.add_parser("card", help="print the model-index of a model card")
    card.add_argument("result", type=Path, help="folder of a run, with its results.json")
    card.add_argument("--name", required=True, help="of the model")
    card.set_defaults(run=_card)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=FOLDER, such as video-mme=data/Video-MME")
    return name, Path(folder)


def _frames(text: str) -> list[tuple[str, dict]]:
    """Return each way of sampling with its name: {"fps": ...} or {"num_frames": ...}."""
    ways = {}
    for word in _names(text):
        number = word.removesuffix("fps")
        try:
            ways[word] = {"fps": float(number)} if word != number else {"num_frames": int(number)}
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} must be like 1fps, 0.5fps or 16") from None
    if not ways:
        raise argparse.ArgumentTypeError("give 1fps, 0.5fps or a number of frames")
    return list(ways.items())


def _evaluate(arguments: argparse.Namespace) -> int:
    missing = [f"--{name}" for name in ("model", "tasks", "output") if not getattr(arguments, name)]
    if missing:
        arguments.parser.error(f"the following arguments are required: {', '.join(missing)}")
    from modeling_video_ma2mba.eval.evaluate_benchmarks import evaluate

    try:
        evaluate(
            models=arguments.model,
            tasks=arguments.tasks,
            data=dict(arguments.data),
            frames=arguments.frames,
            output=arguments.output,
            limit=arguments.limit,
            subtitles=arguments.subtitles,
            likelihood=arguments.likelihood,
            allow_missing=arguments.allow_missing,
            judge=arguments.judge,
            judge_url=arguments.judge_url,
            judge_max_dollars=arguments.judge_max_dollars,
            device=arguments.device,
            dtype=arguments.dtype,
        )
    except KeyboardInterrupt:
        print("the same command goes on where it stopped", file=sys.stderr)
        raise
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.eval.compare import compare, comparison_text
    from modeling_video_ma2mba.eval.results import read_result

    print(comparison_text(compare(read_result(arguments.first), read_result(arguments.second))))
    return 0


def _card(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.eval.model_index import metadata
    from modeling_video_ma2mba.eval.results import read_result

    print(metadata(read_result(arguments.result), arguments.name), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
