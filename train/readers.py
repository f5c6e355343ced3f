"""The readers by name, the `--data` argument, and the way from arguments to samples.

    READER:ANNOTATIONS,MEDIA,MEDIA      e.g. llava:train.json,videos   nextqa-mc:nextqa/train.csv,nextqa/videos

- READER is a name in `READERS`. Without it: `llava` for .json and .jsonl, `llava-dataset` for a folder and .parquet;
  .yaml and .yml are mixtures (`mixtures.py`) that may name any reader.
- MEDIA are the folders in which media are looked for; without them, the folder of the annotations. For a mixture they
  hold for the entries that name none.
- Paths with a comma in them cannot be given.

It decodes no media and makes no batches. Samples are made one after the other; only what a format forces is held.
"""

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from modeling_video_ma2mba.train.annotation_files import csv_rows, json_rows, read_json
from modeling_video_ma2mba.train.data_report import BadRow, DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex, name_without_ending
from modeling_video_ma2mba.train.mixtures import Draw, drawn, read_mixture
from modeling_video_ma2mba.train.read_llava import read_llava, read_llava_dataset, read_llava_pretrain
from modeling_video_ma2mba.train.read_qa import (
    read_activitynetqa,
    read_nextqa_choice,
    read_nextqa_open,
    read_perceptiontest,
)
from modeling_video_ma2mba.train.read_scenewalk import read_scenewalk, read_scenewalk_videos
from modeling_video_ma2mba.train.read_webvid import read_webvid
from modeling_video_ma2mba.train.samples import Sample

STAGES = ("1", "1.5", "2")
_ROWS = {".csv": csv_rows, ".jsonl": json_rows}
_FORM = """--data is READER:ANNOTATIONS,MEDIA,...
MEDIA are folders (default: that of the annotations). READER may be left out for llava (.json, .jsonl), llava-dataset
(a folder, .parquet) and mixtures (.yaml). Readers:"""
_VIDEO_KEYS = ("video", "video_name", "video_id", "videoID", "video_path", "video_uid", "q_uid", "vid")


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader of one format.

    Attributes:
        read: generator of samples from (annotation path, media index, report).
        stages: the training stages its samples are for.
        description: one line for help texts.
    """

    read: Callable[[str | os.PathLike, MediaIndex, DataReport], Iterator[Sample]]
    stages: tuple[str, ...]
    description: str


READERS = {
    "llava": Reader(read_llava, ("2",), "LLaVA conversations (json, jsonl), LLaVA-Video-178K, your own data"),
    "llava-dataset": Reader(read_llava_dataset, ("2",), "LLaVA conversations in a datasets folder or parquet files"),
    "llava-pretrain": Reader(read_llava_pretrain, ("1",), "LLaVA-Pretrain 558K: one caption for each image or video"),
    "webvid": Reader(read_webvid, ("1",), "WebVid csv: one caption for each short video"),
    "scenewalk": Reader(read_scenewalk, ("1.5",), "IVLLab/SceneWalk parquet: a row for each clip"),
    "scenewalk-videos": Reader(read_scenewalk_videos, ("1.5",), "interlive/scenewalk jsonl: a row for each video"),
    "nextqa-mc": Reader(read_nextqa_choice, ("2",), "NExT-QA multiple choice csv"),
    "nextqa-oe": Reader(read_nextqa_open, ("2",), "NExT-QA open-ended csv"),
    "activitynetqa": Reader(read_activitynetqa, ("2",), "ActivityNet-QA: train_q.json, with train_a.json beside it"),
    "perceptiontest": Reader(read_perceptiontest, ("2",), "Perception Test mc_question_train.json, with its cut map"),
}


def data_help() -> str:
    """Return what `--data` takes, as lines for help texts: the form, and each reader with its stages."""
    lines = [f"  {name} (stage {', '.join(one.stages)}): {one.description}" for name, one in READERS.items()]
    return "\n".join([_FORM, *lines])


@dataclass(frozen=True, slots=True)
class DataPart:
    """One annotation file with its reader, its media folders and how much of it to take."""

    reader: str
    annotations: Path
    media: tuple[Path, ...]
    draw: Draw


def parse_data_argument(text: str) -> tuple[DataPart, ...]:
    """Return the parts that a `--data` argument names: one, or as many as a mixture has.

    Raises:
        ValueError: unknown reader, missing file, no reader for such a file, or a mixture with something wrong in it.
    """
    head, *media = [part.strip() for part in text.split(",")]
    name, colon, rest = head.partition(":")
    reader, annotations = (name, rest) if colon and not Path(head).exists() else (None, head)
    if reader is not None and reader not in READERS:
        raise ValueError(f"--data {text}: reader {reader!r} is unknown; known: {', '.join(READERS)}")
    if not annotations or not all(media):
        raise ValueError(f"--data {text}: has an empty path; write READER:ANNOTATIONS,MEDIA or ANNOTATIONS,MEDIA")
    folders = tuple(Path(folder) for folder in media)
    if Path(annotations).suffix.lower() in (".yaml", ".yml"):
        if reader is not None:
            raise ValueError(f"--data {text}: a mixture names its readers in the file; leave {reader!r} out")
        entries = read_mixture(annotations)
        return tuple(_part(e.annotations, e.reader, e.media or folders, e.draw, str(annotations)) for e in entries)
    return (_part(Path(annotations), reader, folders, Draw(), f"--data {text}"),)


def _part(annotations: Path, reader: str | None, media: tuple[Path, ...], draw: Draw, place: str) -> DataPart:
    if not annotations.exists():
        raise ValueError(f"{place}: there is no {annotations}")
    if reader is None:
        endings = {".json": "llava", ".jsonl": "llava", ".parquet": "llava-dataset"}
        reader = "llava-dataset" if annotations.is_dir() else endings.get(annotations.suffix.lower())
    if reader not in READERS:
        given = "no reader is given for" if reader is None else f"reader {reader!r} is unknown for"
        raise ValueError(f"{place}: {given} {annotations}; known readers: {', '.join(READERS)}")
    beside = annotations if annotations.is_dir() else annotations.parent
    return DataPart(reader, annotations, media or (beside,), draw)


def read_data(arguments: str | Sequence[str], stage: str, report: DataReport, seed: int = 0) -> Iterator[Sample]:
    """Yield the samples that `--data` arguments name, one file after the other.

    Args:
        arguments: one or several, see the head of this file; several share what is known of the media folders.
        stage: "1", "1.5" or "2"; a reader whose samples are for another stage is refused.
        report: is told about every row.
        seed: of random sampling in mixtures.

    Raises:
        ValueError: at the call for wrong arguments, on the way for a file that cannot be read.
    """
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r} is unknown; choose one of {', '.join(STAGES)}")
    arguments = [arguments] if isinstance(arguments, str) else arguments
    parts = [part for argument in arguments for part in parse_data_argument(argument)]
    if not parts:
        raise ValueError("no data given; give at least one --data argument")
    for part in parts:
        if stage not in READERS[part.reader].stages:
            fitting = [name for name, reader in READERS.items() if stage in reader.stages]
            raise ValueError(
                f"{part.annotations}: reader {part.reader!r} is for stage {', '.join(READERS[part.reader].stages)}, "
                f"not for stage {stage}; readers for stage {stage}: {', '.join(fitting)}"
            )
    indexes = {folders: MediaIndex(folders) for folders in dict.fromkeys(part.media for part in parts)}
    return _read_parts(parts, indexes, report, seed)


def _read_parts(
    parts: list[DataPart], indexes: dict[tuple[Path, ...], MediaIndex], report: DataReport, seed: int
) -> Iterator[Sample]:
    for number, part in enumerate(parts):
        media = indexes[part.media]
        taken = 0
        for sample in _draw_part(part, media, report, f"{seed}/{number}/{part.annotations.name}"):
            taken += 1
            yield sample
        if part.draw.how != "all":
            report.note(f"{part.annotations}: {taken:,} samples taken ({part.draw})")
    for folders, media in indexes.items():
        if media.found_by_name:
            names = ", ".join(map(str, folders))
            report.note(f"{names}: {media.found_by_name:,} paths were not there and their files were found by name")


def _draw_part(part: DataPart, media: MediaIndex, report: DataReport, seed: str) -> Iterator[Sample]:
    read = READERS[part.reader].read

    def total() -> int:
        # Counting is a reading of its own, which must not count twice in the report.
        by_name = media.found_by_name
        count = sum(1 for _ in read(part.annotations, media, DataReport()))
        media.found_by_name = by_name
        return count

    return drawn(part.draw, lambda: read(part.annotations, media, report), total, seed)


def read_id_list(path: str | os.PathLike) -> frozenset[str]:
    """Return the videos that a file names: text with one on each line, or an evaluation's csv, json or jsonl.

    Raises:
        ValueError: the file cannot be read, or names no video.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending in (".csv", ".json", ".jsonl"):
        rows = read_json(path) if ending == ".json" else [row for _, row in _ROWS[ending](path, ())]
        ids = frozenset(PurePosixPath(str(name)).name for name in _videos_in(rows))
        if not ids:
            raise ValueError(f"{path}: names no video; in {ending} files they stand under {', '.join(_VIDEO_KEYS)}")
        return ids
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: cannot be read as a list of ids ({error}); give a text file, one id a line"
        ) from None
    ids = frozenset(line.strip() for line in lines if line.strip())
    if not ids:
        raise ValueError(f"{path}: holds no ids; give a text file with one id on each line")
    return ids


def _videos_in(rows: Any) -> Iterator[Any]:
    if isinstance(rows, dict):
        yield from (rows[key] for key in _VIDEO_KEYS if isinstance(rows.get(key), (str, int)))
        rows = rows.values()
    if not isinstance(rows, (str, bytes)) and isinstance(rows, Iterable):
        for row in rows:
            yield from _videos_in(row)


def decontaminate(samples: Iterable[Sample], ids: Collection[str], report: DataReport) -> Iterator[Sample]:
    """Yield the samples that are not about one of these videos, and list the others in the report.

    An id stands for a sample with that id, or with media in a file or folder of that name. The endings of files and
    the `v_` before ActivityNet's ids make no difference, on either side.
    """
    excluded = {_bare(id) for id in ids}
    for sample in samples:
        names = {
            _bare(name): name for name in itertools.chain([sample.id], (media.path.name for media in sample.media))
        }
        hit = next((name for bare, name in names.items() if bare in excluded), None)
        if hit is None:
            yield sample
        else:
            report.leave_out(sample.source, None, sample.id, BadRow("in the list of excluded ids", hit), rows=0)


def _bare(name: str) -> str:
    return name_without_ending(name).removeprefix("v_")
