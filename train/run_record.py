"""`run.json` of an output folder: what was run there, so that it can be repeated, and whether it came to its end."""

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_video_ma2mba.environment import describe_environment
from modeling_video_ma2mba.train.readers import parse_data_argument
from modeling_video_ma2mba.train.recipes import Recipe
from modeling_video_ma2mba.train.samples import Sample

_NAME = "run.json"


def describe_run(recipe: Recipe, options: Namespace, samples: Sequence[Sample] | None, processes: int) -> dict:
    """Return what is run: the resolved recipe, options, processes, versions, and the data.

    Args:
        samples: of which number and content are told; None for data that are streamed: then names and sizes of files.
    """
    if samples is None:
        described = [f"{path.name} {path.stat().st_size}" for path in _annotation_files(options.data)]
    else:
        described = [repr(sample.pieces) for sample in samples]
    return manifest(recipe, options, described, None if samples is None else len(samples), processes)


def manifest(recipe: Any, options: Namespace, described: list[str], samples: int | None, processes: int) -> dict:
    """Return what `run.json` holds.

    Args:
        recipe: with an `as_dict`. described: a line about each sample or file; samples: how many, None if unknown.
    """
    return {
        "recipe": recipe.as_dict(),
        "options": vars(options),
        "processes": processes,
        "versions": {what: choice for what, choice, _ in describe_environment()},
        "data": {
            "arguments": options.data,
            "samples": samples,
            "sha256": hashlib.sha256("\n".join(described).encode()).hexdigest(),
        },
    }


def _annotation_files(data: Sequence[str]) -> list[Path]:
    paths = [part.annotations for argument in data for part in parse_data_argument(argument)]
    return [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]


def check_same_run(output: Path, manifest: dict) -> None:
    """Refuse to go on under other settings: optimizer, schedule and order of the data would be the old ones.

    Raises:
        ValueError: naming what differs from `run.json`.
    """
    earlier = _read(output)
    if earlier is None:
        return
    old, new = earlier.get("recipe", {}), manifest["recipe"]
    differing = [f"{key} was {old.get(key)!r}, is {new[key]!r}" for key in new if old.get(key) != new[key]]
    if earlier.get("processes", manifest["processes"]) != manifest["processes"]:
        differing.append(f"processes were {earlier['processes']}, are {manifest['processes']}")
    if earlier.get("data", {}).get("sha256") != manifest["data"]["sha256"]:
        differing.append("the data are others")
    if differing:
        raise ValueError(
            f"{output} holds a run with other settings ({'; '.join(differing)}): go on with the same ones, or "
            "choose another --output (with --init-from a checkpoint's folder to start from its weights)"
        )


def write_run(output: Path, manifest: dict, finished: bool = False) -> None:
    """Write `run.json`, whole or not at all."""
    part = output / f"{_NAME}.part"
    part.write_text(json.dumps({**manifest, "finished": finished}, indent=1) + "\n", encoding="utf-8")
    part.replace(output / _NAME)


def is_finished(output: Path) -> bool:
    """Return whether the run in a folder came to its end and its model is still there."""
    earlier = _read(output)
    return bool(earlier and earlier.get("finished")) and any(output.glob("*.safetensors"))


def _read(output: Path) -> dict | None:
    path = output / _NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
