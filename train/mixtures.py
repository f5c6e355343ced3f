"""Mixtures: a yaml file that names several annotation files and how much of each to take.

The form of LLaVA's training mixtures, with two keys more (`reader`, `media`); relative paths start from the yaml file:

    datasets:
      - json_path: llava_video/0_30_s_academic_v0_1_cap_processed.json
        sampling_strategy: first:10%      # all (default), first:N, end:N, random:N; N is a count or a percentage
      - json_path: nextqa/train.csv
        reader: nextqa-mc                 # default: by the ending of the path
        media: nextqa/videos              # a folder or a list of them; default: the folder of json_path

Counts are of samples that can be used, so that first:1000 gives 1000 where there are as many; a percentage is rounded
up. It knows no readers; `readers.py` puts the two together.
"""

import heapq
import itertools
import math
import os
import random
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

MAX_YAML_BYTES = 2**20
KEYS = ("json_path", "sampling_strategy", "reader", "media")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Draw:
    """How much to take of a file.

    Attributes:
        how: "all", "first", "end" or "random".
        amount: a count or a percentage; None for "all".
        is_percentage: which of the two.
    """

    how: str = "all"
    amount: float | None = None
    is_percentage: bool = False

    @classmethod
    def parse(cls, text: str) -> "Draw":
        if text == "all":
            return cls()
        match = re.fullmatch(r"(first|end|random):(?:(\d{1,12})|(\d{1,3}(?:\.\d+)?)%)", text, re.ASCII)
        if match is None or not 0 < (amount := float(match[2] or match[3])) or (match[3] and amount > 100):
            raise ValueError(
                f"sampling_strategy={text!r} is unknown; give all, first:N, end:N or random:N, with N a count above 0 "
                "or a percentage such as 10%"
            )
        return cls(match[1], amount, match[3] is not None)

    def __str__(self) -> str:
        return self.how if self.amount is None else f"{self.how}:{self.amount:g}{'%' if self.is_percentage else ''}"

    def count(self, total: Callable[[], int]) -> int:
        """Return how many to take; `total` is called for percentages only."""
        return math.ceil(total() * self.amount / 100) if self.is_percentage else int(self.amount)


@dataclass(frozen=True, slots=True)
class MixtureEntry:
    """One annotation file of a mixture; `reader` and `media` are None and empty where the file does not say."""

    annotations: Path
    reader: str | None
    media: tuple[Path, ...]
    draw: Draw


def drawn(draw: Draw, make: Callable[[], Iterator[T]], total: Callable[[], int], seed: str) -> Iterator[T]:
    """Yield what `draw` takes from `make()`, in its order; in memory is at most what is taken.

    Args:
        make: starts the iteration.
        total: counts what an iteration gives; called for percentages only, and before `make`.
        seed: of "random"; the same seed takes the same.
    """
    if draw.how == "all":
        yield from make()
        return
    count = draw.count(total)
    if draw.how == "first":
        yield from itertools.islice(make(), count)
    elif draw.how == "end":
        yield from deque(make(), maxlen=count)
    else:
        generator = random.Random(seed)
        # The `count` highest of one random number each; the place breaks ties and restores the order.
        marked = ((generator.random(), place, item) for place, item in enumerate(make()))
        taken = heapq.nlargest(count, marked, key=lambda mark: mark[:2])
        yield from (item for _, _, item in sorted(taken, key=lambda mark: mark[1]))


def read_mixture(path: str | os.PathLike) -> list[MixtureEntry]:
    """Return the entries of a mixture file; raises ValueError when it is none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such mixture file")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise ValueError(f"{path}: larger than {MAX_YAML_BYTES:,} bytes; a mixture lists files, not data")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: must hold 'datasets:' with a list of entries with the keys {', '.join(KEYS)}")
    return [_entry(path, number, entry) for number, entry in enumerate(entries, start=1)]


def _entry(path: Path, number: int, entry: object) -> MixtureEntry:
    place = f"{path}: entry {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
        raise ValueError(f"{place}: needs json_path, the path of an annotation file")
    unknown = [str(key) for key in entry if key not in KEYS]
    if unknown:
        raise ValueError(f"{place}: has the unknown key {', '.join(unknown)}; known: {', '.join(KEYS)}")
    media = entry.get("media", [])
    media = [media] if isinstance(media, str) else media
    if not isinstance(media, list) or not all(isinstance(folder, str) for folder in media):
        raise ValueError(f"{place}: media={media!r} must be a folder or a list of folders")
    reader, strategy = entry.get("reader"), entry.get("sampling_strategy", "all")
    if not isinstance(reader, str | None) or not isinstance(strategy, str):
        raise ValueError(f"{place}: reader={reader!r} and sampling_strategy={strategy!r} must be text")
    try:
        draw = Draw.parse(strategy)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    folder = path.parent
    return MixtureEntry(folder / entry["json_path"], reader, tuple(folder / name for name in media), draw)
