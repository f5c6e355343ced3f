"""Read rows in the LLaVA conversation format: json, jsonl, and `datasets` folders.

A row (LLaVA-Pretrain `liuhaotian/LLaVA-Pretrain`, LLaVA-Video-178K `lmms-lab/LLaVA-Video-178K`, and users' own data):

    id              text or number; optional, not unique
    image | video   relative path; `image` also a list of paths
    conversations   [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}, ...]
    data_source     optional; names the sample's source, and a folder in which the path is tried as well
    fps             only where `video` is a folder of frames: pictures per second

`<image>` (or `<video>`) stands for the whole image or video, in any human turn, first or last. Here one image or video
moves to the head of the turn that names it first (the first turn, if none does) and is named once. Several images
stand where their placeholders do, or all first when there is none.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from modeling_video_ma2mba.train.annotation_files import (
    check_words,
    dataset_rows,
    id_of,
    json_rows,
    list_of,
    number_of,
    open_dataset,
    samples_from_rows,
    text_of,
)
from modeling_video_ma2mba.train.data_report import BadRow, DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex
from modeling_video_ma2mba.train.samples import PLACEHOLDERS, Media, Sample, Text, Turn, captioned

SPEAKERS = ("human", "gpt")
PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS)))

# In LLaVA-Video-178K, paths with this in them are folders of frames, taken at this rate.
FRAMES_MARK, FRAMES_FPS = "shareVideoGPTV", 2.0


def read_llava(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield a conversation for each row of a json or jsonl file."""
    return _conversations(path, json_rows(path, ["conversations"]), media, report)


def read_llava_pretrain(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield a captioned sample for each row: the answer of its only turn. The request ("describe ...") is dropped."""

    def make(number: int, row: dict) -> Sample:
        turns = turns_of(row)
        if len(turns) != 1:
            raise BadRow("more than one turn", f"{len(turns)} answers in place of 1 caption")
        found = _media_of(row, media)
        if len(found) != 1:
            raise BadRow("more than one image", f"{len(found)} images in place of 1")
        return captioned(id=_id(path, number, row), source=_source(path, row), media=found[0], caption=turns[0].answer)

    return samples_from_rows(path, json_rows(path, ["conversations"]), make, report)


def read_llava_dataset(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield a conversation for each row of a `datasets` folder, or of parquet files, which are streamed."""
    return samples_from_dataset(open_dataset(path, ["conversations"], streaming=True), media, report, os.fspath(path))


def samples_from_dataset(
    dataset: Iterable[dict], media: MediaIndex, report: DataReport, name: str
) -> Iterator[Sample]:
    """Yield a conversation for each row of a `datasets.Dataset` or `IterableDataset` with LLaVA columns.

    Args:
        dataset: paths in its columns `image` and `video`; pictures stored inside the data set are refused.
        name: what the report calls it.
    """
    features = getattr(dataset, "features", None) or {}
    inside = [column for column in ("image", "video") if type(features.get(column)).__name__ in ("Image", "Video")]
    if inside:
        raise ValueError(
            f"{name}: column {inside[0]} stores the media inside the data set; save them as files and give their "
            "paths as text in that column"
        )
    return _conversations(name, dataset_rows(name, dataset), media, report)


def _conversations(path: str | os.PathLike, rows: Iterable, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    def make(number: int, row: dict) -> Sample:
        pieces = _pieces(turns_of(row), _media_of(row, media))
        return Sample(id=_id(path, number, row), source=_source(path, row), pieces=pieces)

    return samples_from_rows(path, rows, make, report)


def turns_of(row: dict) -> list[Turn]:
    """Return the turns of a row; questions as they stand there, placeholders and all. Raises BadRow.

    Human and gpt alternate, human first, and every question has an answer.
    """
    turns = row.get("conversations")
    if isinstance(turns, dict):  # `datasets` returns some lists of objects as an object of lists
        parts = [list_of(turns, "from", str), list_of(turns, "value", str)]
        row = {"conversations": [{"from": speaker, "value": value} for speaker, value in zip(*parts)]}
    turns = list_of(row, "conversations", dict)
    speakers = [text_of(turn, "from") for turn in turns]
    unknown = sorted(set(speakers) - set(SPEAKERS))
    if unknown:
        raise BadRow("unknown speaker", f"'from' is {', '.join(unknown)}, must be human or gpt")
    if not turns or speakers != list(SPEAKERS) * (len(turns) // 2):
        raise BadRow("unbalanced turns", f"found {', '.join(speakers) or 'none'}; human and gpt must alternate")
    texts = [text_of(turn, "value", optional=True) for turn in turns]
    if not all(texts[1::2]):
        raise BadRow("empty answer", f"turn {texts[1::2].index('') + 1}")
    for question, answer in zip(texts[::2], texts[1::2]):
        check_words(PLACEHOLDER.sub("", question), "question")
        check_words(answer, "answer")
    return [Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2])]


def _pieces(turns: list[Turn], media: list[Media]) -> tuple[Media | Text, ...]:
    """Put media and texts of a conversation into the order they are read in."""
    questions = [PLACEHOLDER.split(turn.question) for turn in turns]
    named = sum(len(parts) - 1 for parts in questions)
    if named == 0:
        questions[0] = [""] * len(media) + questions[0]
    elif len(media) == 1:
        first = next(index for index, parts in enumerate(questions) if len(parts) > 1)
        questions = [[" ".join(filter(None, map(str.strip, parts)))] for parts in questions]
        questions[first].insert(0, "")
    elif named != len(media):
        raise BadRow("placeholders do not match media", f"{named} placeholders for {len(media)} images")

    pieces: list[Media | Text] = []
    remaining = iter(media)
    for number, (parts, turn) in enumerate(zip(questions, turns), start=1):
        if not any(part.strip() for part in parts):
            raise BadRow("empty question", f"turn {number} asks nothing")
        for index, part in enumerate(parts):
            if index:
                pieces.append(next(remaining))
            if part.strip():
                pieces.append(Text(role="user", text=part.strip()))
        pieces.append(Text(role="assistant", text=turn.answer))
    return tuple(pieces)


def _media_of(row: dict, media: MediaIndex) -> list[Media]:
    named = {column: row[column] for column in ("image", "video") if row.get(column) not in (None, "", [])}
    if len(named) != 1:
        found = " and ".join(named) or f"neither image nor video (columns: {', '.join(map(str, row))})"
        raise BadRow("needs either image or video", f"names {found}")
    below = [source] if (source := text_of(row, "data_source", optional=True)) else []
    if "image" in named:
        names = list_of(row, "image", str) if isinstance(row["image"], list) else [text_of(row, "image")]
        return [Media(kind="image", path=media.find(name, "image", below)) for name in names]
    name = text_of(row, "video")
    fps = row.get("fps")
    if FRAMES_MARK not in name and fps is None:
        return [Media(kind="video", path=media.find(name, "video", below))]
    rate = FRAMES_FPS if fps is None else number_of(row, "fps")
    if not (math.isfinite(rate) and rate > 0):
        raise BadRow("wrong number", f"fps is {rate}, must be above 0")
    return [Media(kind="frames", path=media.find_frames(name, below), fps=rate)]


def _id(path: str | os.PathLike, number: int, row: dict) -> str:
    return id_of(row, default=f"{Path(path).stem}:{number}")


def _source(path: str | os.PathLike, row: dict) -> str:
    return text_of(row, "data_source", optional=True) or Path(path).stem
