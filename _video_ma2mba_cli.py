"""The console script `video-ma2mba`. Heavy imports wait until a command runs, so that `--help` is instant."""

import argparse
import importlib.util
import sys
from pathlib import Path

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code.

    0 done, 1 the demo's answers were wrong or no plan fits, 2 bad input, 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("video-ma2mba: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        # Every error about input is one of these, with a message for the person who gave it; transformers' have lines.
        print(f"video-ma2mba: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="video-ma2mba", description="Ask questions about hours of video with a Mamba-2 language model."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="let the small shipped model answer questions about videos made on the spot"
    )
    demo.add_argument("--output", default="runs/demo", help="folder for the videos (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="another seed, other videos (default: %(default)s)")
    demo.add_argument("--questions", type=int, default=45, help="videos, one question each (default: %(default)s)")
    demo.set_defaults(run=_demo)

    watch = commands.add_parser(
        "watch",
        help="read videos into a memory file, to be asked later",
        description="Read videos, of any length, into a memory of fixed size. Ctrl-C saves what was seen; running the "
        "same command again goes on there, also with more files behind the first.",
    )
    watch.add_argument("file", nargs="+", help="video files, or folders of them")
    watch.add_argument("-o", "--output", required=True, help="memory file to write, such as film.safetensors")
    watch.add_argument("--fps", type=float, help="frames sampled per second (default: the model's own, 1)")
    watch.add_argument("--allow-damaged", action="store_true", help="go on with what can be read of a damaged video")
    _add_model_options(watch)
    watch.set_defaults(run=_watch)

    ask = commands.add_parser("ask", help="ask a question about a video or a memory")
    ask.add_argument("question", nargs="+", help="one or more questions, each in quotes")
    _add_seen_options(ask)
    ask.set_defaults(run=_ask)

    chat = commands.add_parser("chat", help="ask about a video or a memory, line by line; /quit ends")
    _add_seen_options(chat)
    chat.set_defaults(run=_chat)

    classify = commands.add_parser("classify", help="name what videos show, with a VideoMamba model")
    classify.add_argument("video", nargs="+", help="video files")
    classify.add_argument("--model", required=True, help="folder of a VideoMamba model trained on clips")
    classify.add_argument("--top", type=int, default=5, help="classes to name (default: %(default)s)")
    classify.set_defaults(run=_classify)

    page = commands.add_parser("page", help="serve a web page: drop a video, see it watched, ask")
    page.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    _add_model_options(page)
    page.set_defaults(run=_page)

    convert = commands.add_parser(
        "convert",
        help="make a model from the authors' checkpoint, or from Mamba-2 and a vision tower; or the way back",
        description="--checkpoint: the authors' llava_mamba folder becomes one of this package, or with --to one of "
        "this package becomes theirs. --mamba: a Mamba-2 folder, with --vision a Video-Ma²mba ready for training.",
    )
    convert_from = convert.add_mutually_exclusive_group(required=True)
    convert_from.add_argument("--mamba", help="folder of a Mamba-2 model (either layout)")
    convert_from.add_argument("--checkpoint", help="folder of a whole model: llava_mamba, or with --to one of ours")
    convert.add_argument(
        "--to",
        choices=("video-ma2mba", "llava-mamba", "state-spaces"),
        default="video-ma2mba",
        help="layout that --checkpoint is written in (default: %(default)s)",
    )
    convert.add_argument(
        "--parity", action="store_true", help="compare every module with the original; loads the model in float32"
    )
    convert.add_argument("--vision", help="folder of a CLIP, SigLIP or VideoMamba model")
    convert.add_argument("--tokenizer", help="folder of the tokenizer (default: the folder that is converted)")
    convert.add_argument("--output", required=True, help="folder to write, new or empty")
    convert.add_argument(
        "--frame-fit", choices=("crop", "pad", "stretch"), default="crop", help="default: %(default)s"
    )
    convert.add_argument("--dtype", choices=_DTYPES, default="auto", help="of the weights (default: as they are)")
    convert.add_argument("--seed", type=int, default=0, help="of the new projector (default: %(default)s)")
    convert.set_defaults(run=_convert)

    plan = commands.add_parser(
        "plan", help="say what training on so many tokens takes, and how it would be checkpointed"
    )
    plan.add_argument(
        "--model", required=True, help="370m, 1.3b, 2.7b; video: 0.7b, 1.8b, 3.1b; or a folder with a config.json"
    )
    plan.add_argument("--tokens", help="of each row: 1048576, 512k (k = 1,000), 512Ki (Ki = 1,024), 1M or 2^20")
    plan.add_argument("--video", help="length of a video instead, such as 2h, 90m, 45s")
    plan.add_argument("--fps", type=float, default=1.0, help="frames of it per second (default: %(default)s)")
    plan.add_argument("--batch", type=int, default=1, help="rows (default: %(default)s)")
    plan.add_argument("--budget", help='device memory in all, such as "80GiB" (default: that of --device less 5 %%)')
    plan.add_argument("--host-budget", default="0", help="host memory for checkpoints (default: none)")
    plan.add_argument("--device", help="h200, h100, a100, ..., or here: measure a layer on this machine")
    plan.add_argument("--dtype", choices=_DTYPES[1:], default="bfloat16", help="default: %(default)s")
    plan.add_argument("--frozen-vision", action="store_true", help="the vision tower is not trained")
    plan.add_argument("--objective", choices=("time", "memory"), default="time", help="default: %(default)s")
    plan.add_argument("--output", help="folder for plan.json and plan.png")
    plan.set_defaults(run=_plan)

    data = commands.add_parser("data", help="look at training data before a run")
    checks = data.add_subparsers(dest="what", required=True, metavar="COMMAND")
    check = checks.add_parser("check", help="count samples and tokens, open every file, estimate memory and hours")
    check.add_argument("--stage", choices=("1", "1.5", "2"), required=True)
    check.add_argument(
        "--data",
        action="append",
        required=True,
        help="READER:ANNOTATIONS,MEDIA,..., as for the stage's script, whose --help lists the readers",
    )
    check.add_argument(
        "--model", default="tiny", help="folder that training starts from (default: the small shipped one)"
    )
    check.add_argument("--recipe", default="tiny", help="see train/recipes.yaml (default: %(default)s)")
    check.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE", help="change the recipe")
    check.add_argument("--budget", help='device memory in all, such as "80GiB" (default: the least is named)')
    check.add_argument("--tokens-per-second", type=float, help="as a run logs it, to estimate hours")
    check.set_defaults(run=_data_check)

    evaluate = commands.add_parser("eval", help="evaluate models on benchmarks, and compare runs")
    _eval_file("cli").add_arguments(evaluate)

    needle = commands.add_parser("needle", help="hide needles in long videos and ask about them: a test of memory")
    _eval_file("needle").add_arguments(needle)

    card = commands.add_parser("card", help="write the card of a model folder, from what its files say")
    card.add_argument("folder", help="model folder; README.md is written into it")
    card.add_argument("repo_id", help="name that it will have on the Hub, such as me/mine")
    card.add_argument(
        "--license", required=True, help="of the weights, in the Hub's words: apache-2.0, mit, other, ..."
    )
    card.add_argument("--results", help="folder of a run of `video-ma2mba eval`")
    card.set_defaults(run=_card)

    push = commands.add_parser(
        "push",
        help="check a model folder and upload it to the Hub, with the code that loads it",
        description="Upload weights, config, processor, card and code in one commit, with the token that "
        "`hf auth login` or HF_TOKEN gave. A new repository is private. With --space: upload the web page that `page` "
        "serves as a Space.",
    )
    push.add_argument(
        "folder", help="model folder with a card (README.md); with --space: the Hub's name of a model, or tiny"
    )
    push.add_argument("repo_id", help="repository, such as me/mine")
    push.add_argument("--dry-run", action="store_true", help="check, list the files with their sizes, send nothing")
    push.add_argument("--public", action="store_true", help="make a new repository public")
    push.add_argument("--space", action="store_true", help="upload the web page, which asks this model, as a Space")
    push.set_defaults(run=_push)

    env = commands.add_parser("env", help="print what this machine would use, and why")
    env.set_defaults(run=_env)
    return parser


def _eval_file(name: str):
    """Return a file of `eval` that has its options in one place with its command, and imports the standard library
    alone: imported by the name of its package, it would wait for torch."""
    package = Path(importlib.util.find_spec("modeling_video_ma2mba").origin).parent
    folder = package / "eval" if (package / "eval").is_dir() else package.parent / "eval"  # in a wheel; in a checkout
    spec = importlib.util.spec_from_file_location(f"_video_ma2mba_eval_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="tiny", help="folder or Hub name of a Video-Ma²mba model (default: the small shipped one)"
    )
    parser.add_argument("--device", default="auto", help="cuda, cpu, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="auto", help="default: bfloat16 on a GPU, float32 on a CPU"
    )


def _add_seen_options(parser: argparse.ArgumentParser) -> None:
    """Add what `ask` and `chat` share."""
    seen = parser.add_mutually_exclusive_group(required=True)
    seen.add_argument("--video", help="video file")
    seen.add_argument("--memory", help="memory file that `video-ma2mba watch` wrote with this model")
    parser.add_argument("--fps", type=float, help="frames sampled per second (default: the model's own, 1)")
    parser.add_argument("--max-frames", type=int, help="sample longer videos at this many frames (default: no limit)")
    parser.add_argument("--allow-damaged", action="store_true", help="go on with what can be read of a damaged video")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: %(default)s)")
    _add_model_options(parser)


def _demo(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.eval.demo import run_demo

    return run_demo(arguments.output, seed=arguments.seed, questions=arguments.questions)


def _watch(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.processing.watch import watch_videos

    watch_videos(
        model_path=arguments.model,
        paths=arguments.file,
        output=arguments.output,
        fps=arguments.fps,
        allow_damaged=arguments.allow_damaged,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    return 0


def _ask(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.processing.ask import ask_video

    ask_video(questions=arguments.question, **_seen_options(arguments))
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.processing.ask import chat_video

    chat_video(**_seen_options(arguments))
    return 0


def _classify(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.processing.classify import classify_videos

    return 0 if classify_videos(arguments.model, arguments.video, arguments.top) else 2


def _page(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.hub_cards.space_page import launch

    launch(arguments.model, device=arguments.device, dtype=arguments.dtype, port=arguments.port)
    return 0


def _seen_options(arguments: argparse.Namespace) -> dict:
    return {
        "model_path": arguments.model,
        "video": arguments.video,
        "memory": arguments.memory,
        "fps": arguments.fps,
        "max_frames": arguments.max_frames,
        "allow_damaged": arguments.allow_damaged,
        "max_new_tokens": arguments.max_new_tokens,
        "device": arguments.device,
        "dtype": arguments.dtype,
    }


def _convert(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder: choose another --output")
    import torch

    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    if arguments.mamba is not None and (arguments.to != "video-ma2mba" or arguments.parity):
        raise ValueError("--to and --parity belong to --checkpoint, not to --mamba")
    if arguments.checkpoint is not None:
        report = _convert_checkpoint(arguments, output, dtype)
    elif arguments.vision is None:
        from modeling_video_ma2mba.convert_mamba2 import convert_mamba2

        report = convert_mamba2(arguments.mamba, output, dtype=dtype)
    else:
        from modeling_video_ma2mba.convert_video_ma2mba import convert_video_ma2mba

        report = convert_video_ma2mba(
            arguments.mamba,
            arguments.vision,
            output,
            tokenizer=arguments.tokenizer,
            frame_fit=arguments.frame_fit,
            dtype=dtype,
            seed=arguments.seed,
        )
    for reason in sorted(set(report["left_out"].values())):
        count = sum(value == reason for value in report["left_out"].values())
        print(f"left out: {count} tensors ({reason})")
    for name, reason in report["new"].items():
        print(f"new: {name} ({reason})")
    print(f"{len(report['taken'])} tensors taken; wrote {output} and {output / 'conversion_report.json'}")
    return 0


def _convert_checkpoint(arguments: argparse.Namespace, output: Path, dtype) -> dict:
    if arguments.to != "video-ma2mba":
        if dtype is not None or arguments.parity or arguments.vision or arguments.tokenizer:
            raise ValueError(f"--to {arguments.to} copies numbers and tokenizer as they are: leave other options out")
        from modeling_video_ma2mba.convert_back import convert_back

        return convert_back(arguments.checkpoint, output, arguments.to)
    from modeling_video_ma2mba.convert_llava_mamba import convert_llava_mamba

    report = convert_llava_mamba(
        arguments.checkpoint,
        output,
        vision=arguments.vision,
        tokenizer=arguments.tokenizer,
        frame_fit=arguments.frame_fit,
        dtype=dtype,
    )
    for name, value in report["config"]["assumed"].items():
        print(f"config: {name} is not given, taken as {value!r}")
    if report["config"]["not_used"]:
        print(f"config: not used: {', '.join(report['config']['not_used'])}")
    if arguments.parity:
        from modeling_video_ma2mba.convert_parity import save_parity

        largest = save_parity(arguments.checkpoint, output)["largest_relative_difference"]
        print(
            f"parity: no module differs by more than {largest:.1e} of its largest number ({output}/parity_report.json)"
        )
    return report


def _plan(arguments: argparse.Namespace) -> int:
    import torch

    from modeling_video_ma2mba import checkpoint_report as report
    from modeling_video_ma2mba.checkpointing import parse_bytes

    if arguments.output is not None:
        report.require_matplotlib()
    question = report.ask(
        model=arguments.model,
        tokens=None if arguments.tokens is None else report.parse_tokens(arguments.tokens),
        seconds=None if arguments.video is None else report.parse_duration(arguments.video),
        fps=arguments.fps,
        batch_size=arguments.batch,
        budget=None if arguments.budget is None else parse_bytes(arguments.budget, "--budget"),
        host_budget=parse_bytes(arguments.host_budget, "--host-budget"),
        device=arguments.device,
        dtype=getattr(torch, arguments.dtype),
        objective=arguments.objective,
        tower_is_trained=not arguments.frozen_vision,
    )
    if arguments.output is not None:
        Path(arguments.output).mkdir(parents=True, exist_ok=True)  # before the work, not after it
    answer = report.make_report(question)
    print(answer.text())
    if arguments.output is not None:
        print("\nwrote " + " and ".join(map(str, answer.save(arguments.output))))
    return 0 if answer.plan is not None else 1


def _data_check(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.checkpointing import parse_bytes
    from modeling_video_ma2mba.shipped_model import model_folder
    from modeling_video_ma2mba.train.data_check import check_data, memory_line
    from modeling_video_ma2mba.train.recipes import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.stage, arguments.override)
    budget = None if arguments.budget is None else parse_bytes(arguments.budget, "--budget")
    model = model_folder(arguments.model)
    found = check_data(arguments.data, recipe, model)
    memory = memory_line(found, recipe, model, budget)
    print("\n".join(found.lines(recipe, memory, arguments.tokens_per_second)))
    return 0 if found.stops is None else 2


def _card(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.hub_cards.card import PLACEHOLDER, write_card

    path = write_card(arguments.folder, arguments.repo_id, arguments.license, arguments.results)
    print(f"wrote {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if PLACEHOLDER in line:
            print(f"line {number}: {line[line.index(PLACEHOLDER) :]}")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.hub_cards.push import push_to_hub, upload_text
    from modeling_video_ma2mba.hub_cards.push_space import push_space

    push = push_space if arguments.space else push_to_hub
    upload = push(arguments.folder, arguments.repo_id, public=arguments.public, dry_run=arguments.dry_run)
    print(upload_text(upload, arguments.repo_id))
    return 0


def _env(arguments: argparse.Namespace) -> int:
    from modeling_video_ma2mba.environment import describe_environment

    rows = describe_environment()
    width = max(len(what) for what, _, _ in rows)
    for what, choice, reason in rows:
        print(f"{what:<{width}}  {choice}" + (f"  ({reason})" if reason else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
