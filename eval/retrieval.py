"""Zero-shot retrieval with a multi-modal VideoMamba: text to video and back (arXiv 2403.06977, section 4.3).

    python eval/retrieval.py --model runs/captions --data msrvtt:msrvtt_ret_test1k.json,videos --output results/msrvtt

All videos and texts are read once and compared; the best candidates of each query are judged again by the model's
last layers, which look at the clip while they read. Writes results.json and results.md; a run that was stopped goes on
when it is started again.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIRECTIONS = {"text_to_video": "text to video", "video_to_text": "video to text"}
RERANK = 128
FORMAT = "video-ma2mba-retrieval-1"


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input."""
    options = _parser().parse_args(argv)
    # The first import of torch takes seconds; --help does without.
    from safetensors import SafetensorError

    try:
        run(options)
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        print(f"retrieval: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Find videos by text and texts by video.")
    parser.add_argument("--model", required=True, help="folder of a multi-modal VideoMamba with its processor")
    parser.add_argument(
        "--data",
        required=True,
        metavar="SET:ANNOTATIONS,VIDEOS",
        help="captions, msrvtt, msrvtt-original, didemo, activitynet, lsmdc or msvd, its json and folders of videos",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of results and of what to go on from")
    parser.add_argument(
        "--rerank",
        type=int,
        default=RERANK,
        help="candidates of each query that are judged again; 0: none (default: %(default)s, as published)",
    )
    parser.add_argument("--max-text-tokens", type=int, help="longer texts are cut (default: that of the set)")
    parser.add_argument("--limit", type=int, help="the first so many videos only")
    parser.add_argument("--batch-size", type=int, default=8, help="videos at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: %(default)s)")
    parser.add_argument("--max-bad-share", type=float, default=0.0, help="of rows that may be unusable (default: 0)")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="default: a GPU if there is one")
    return parser


def run(options: argparse.Namespace) -> None:
    """Read, compare, judge, score; write `results.json` and `results.md` and print the table.

    Raises:
        ValueError, OSError, SafetensorError: model, data, options or files of an earlier run cannot be used.
    """
    from modeling_video_ma2mba.eval.journal import check_same
    from modeling_video_ma2mba.eval.results import write_json
    from modeling_video_ma2mba.eval.retrieval_pass import RetrievalPass
    from modeling_video_ma2mba.train.data_report import DataReport
    from modeling_video_ma2mba.train.read_captions import CAPTION_SETS, parse_caption_argument, read_caption_data

    for name, lowest in (("rerank", 0), ("batch_size", 1), ("workers", 0), ("limit", 2), ("max_text_tokens", 3)):
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be {lowest} or more")
    caption_set = parse_caption_argument(options.data)[0]
    options.output.mkdir(parents=True, exist_ok=True)
    report = DataReport()
    try:
        clips = read_caption_data(options.data, report)[: options.limit]
        report.check_limit(options.max_bad_share)
    finally:
        report.write(options.output / "left_out_rows.jsonl")
    print(report.summary(), file=sys.stderr)
    model, processor, described = _load(Path(options.model), options.device)
    max_text_tokens = options.max_text_tokens or CAPTION_SETS[caption_set].max_text_tokens
    listed = "\n".join(f"{clip.medium!r} {clip.captions!r}" for clip in clips)
    settings = {
        "model": described,
        "data": {"set": caption_set, "sha256": hashlib.sha256(listed.encode()).hexdigest()},
        "rerank": options.rerank,
        "max_text_tokens": max_text_tokens,
    }
    written = options.output / "settings.json"
    if written.is_file():
        check_same(settings, json.loads(written.read_text(encoding="utf-8")), written)
    else:
        write_json(settings, written)
    passed = RetrievalPass(
        model,
        processor,
        clips,
        options.output,
        max_text_tokens=max_text_tokens,
        rerank=options.rerank,
        at_once=options.batch_size,
        workers=options.workers,
    )
    result = {**_facts(options), "settings": settings, "left_out": report.bad_rows, **score(passed)}
    write_json(result, options.output / "results.json")
    text = markdown(result)
    (options.output / "results.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwrote {options.output / 'results.json'} and results.md")


def score(passed) -> dict[str, Any]:
    """Run a `RetrievalPass` and return its scores.

    Returns:
        "videos", "texts", "not_read" (id and reason); "scores" and, before re-ranking, "similarity_scores", each by
        direction as `retrieval_scores.figures`; "places" of the right answer of each query, by direction, as scored.
        A video that cannot be read is found by nobody and finds nothing.
    """
    import numpy as np

    from modeling_video_ma2mba.eval.retrieval_scores import figures, places, reranked

    cosines, judged = passed.run()
    videos = np.arange(len(passed.clips))
    is_right = passed.video_of_text[None, :] == videos[:, None]  # (V, N)
    found: dict[str, Any] = {"scores": {}, "similarity_scores": {}, "places": {}}
    for direction, scores, right, clusters in (
        ("text_to_video", cosines.T, is_right.T, passed.video_of_text),
        ("video_to_text", cosines, is_right, videos),
    ):
        for name, given in (
            ("similarity_scores", scores),
            ("scores", reranked(scores, *judged[direction]) if judged else scores),
        ):
            own = places(given, right)
            if direction == "video_to_text":
                own[list(passed.not_read)] = given.shape[1]
            found[name][direction] = figures(own, clusters.tolist())
        found["places"][direction] = own.tolist()
    not_read = [{"id": passed.clips[number].id, "reason": reason} for number, reason in passed.not_read.items()]
    return {"videos": len(videos), "texts": len(passed.texts), "not_read": not_read, **found}


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of a result, with the paper's figures of the same set below them where there are some."""
    settings = result["settings"]
    lines = [f"# Retrieval: {settings['data']['set']}, {settings['model']['name']}", ""]
    lines.append(
        f"{result['videos']:,} videos and {result['texts']:,} texts, of up to {settings['max_text_tokens']} tokens; "
        f"{result['left_out']:,} rows left out, {len(result['not_read']):,} videos that could not be read, which "
        "count as not found. Right in percent, with 95 % intervals over videos."
    )
    ranking = f"re-ranked, {settings['rerank']} candidates" if settings["rerank"] else "similarity"
    kinds = [(ranking, "scores")] + ([("similarity alone", "similarity_scores")] if settings["rerank"] else [])
    lines += ["", "| direction | ranking | R@1 | R@5 | R@10 | median rank |", "| --- | --- | --- | --- | --- | --- |"]
    for title, name in kinds:
        for direction, words in DIRECTIONS.items():
            own = result[name][direction]
            cells = [_cell(own[f"recall@{limit}"]) for limit in (1, 5, 10)]
            lines.append(f"| {words} | {title} | {' | '.join(cells)} | {own['median_rank']:g} |")
    lines += _paper(settings["data"]["set"].removesuffix("-original"))
    commit = (result["commit"] or {}).get("commit")
    lines += ["", f"{result['date'][:10]}" + (f", commit {commit[:10]}" if commit else "")]
    return "\n".join(lines) + "\n"


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return f"{100 * figure['value']:.1f}"
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def _paper(name: str) -> list[str]:
    """Return a table of published figures of a set, empty where there are none."""
    import yaml

    path = Path(__file__).with_name("retrieval_tables.yaml")
    rows = yaml.safe_load(path.read_text(encoding="utf-8")).get(name, {})
    if not rows:
        return []
    lines = ["", "Published, VideoMamba-M by the pairs it was trained on:", ""]
    lines += ["| direction | pairs | R@1 | R@5 | R@10 |", "| --- | --- | --- | --- | --- |"]
    for direction, by_size in rows.items():
        for size, values in by_size.items():
            cells = " | ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {DIRECTIONS[direction]} | {size} | {cells} |")
    return lines


def _load(folder: Path, device: str):
    """Return model, processor, and what a result says of them."""
    import torch
    from transformers import AutoConfig, AutoProcessor
    from transformers.utils import logging

    from modeling_video_ma2mba import VideoMambaMultiModalModel

    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--model {folder}: has no config.json; give a folder written by train/videomamba_multimodal.py"
        )
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind != "videomamba_multimodal":
        raise ValueError(f"--model {folder}: holds a {kind!r} model; retrieval needs a 'videomamba_multimodal' one")
    where = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if where == "cuda" else torch.float32
    logging.disable_progress_bar()
    model = VideoMambaMultiModalModel.from_pretrained(folder, dtype=dtype).to(where).eval()
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    described = {"name": folder.name, "sha256": weights.hexdigest(), "dtype": str(dtype).removeprefix("torch.")}
    return model, AutoProcessor.from_pretrained(folder), described


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    from modeling_video_ma2mba.eval.results import provenance

    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {"format": FORMAT, "options": given, **provenance()}


if __name__ == "__main__":
    sys.exit(main())
