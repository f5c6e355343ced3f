"""Read what VideoMamba is trained and tested on: a label for each video, image, folder of frames, or part of a video.

    clips               csv without a header: path,label                    K400, SSv2, Breakfast, COIN
    clip-frames         csv without a header: folder,total_frames,label     SSv2 as pictures
    clip-windows        csv without a header: path,label,duration           LVU cut into windows of a minute
    images              a folder of classes: train/<class>/<name>.JPEG      ImageNet; classes in alphabetical order
    breakfast           csv with the header file_name,duration,action,class_id
    coin-training, coin-testing    COIN.json: the videos of a subset; classes in alphabetical order
    lvu                 <task>/train.csv, space-separated, with a header    LVU as ViS4mer published it

A label is the number of a class, or a number to predict where the recipe has one class. LVU's ratings become what
ViS4mer predicts: ln(views) - 11.764, and 10 likes / (likes + dislikes) - 9.138.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from modeling_video_ma2mba.processing.media_suffixes import MEDIA_SUFFIXES
from modeling_video_ma2mba.train.annotation_files import (
    Row,
    csv_rows,
    id_of,
    index_of,
    number_of,
    read_json,
    samples_from_rows,
    text_of,
)
from modeling_video_ma2mba.train.data_report import BadRow, DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex
from modeling_video_ma2mba.train.samples import Media

# LVU's windows: as long as this, so far apart, and the last one at least half as long. In seconds.
WINDOW, WINDOW_STRIDE = 60.0, 16.0
# Most classes where nobody says how many there are.
MAX_CLASSES = 100_000


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """A video, an image or a folder of frames with its label.

    Attributes:
        id, source: as the report names it, and the reader.
        medium: what is looked at; a folder of frames has one frame per second, as nothing says otherwise.
        label: number of a class, or a number to predict.
    """

    id: str
    source: str
    medium: Media
    label: int | float

    @property
    def media(self) -> tuple[Media]:
        return (self.medium,)


Label = Callable[[dict, str], int | float]


def _label_reader(classes: int | None) -> Label:
    """Return what reads a label: a class, or a number where `classes` is 1."""
    if classes == 1:
        return _number
    return lambda row, column: index_of(row, column, classes or MAX_CLASSES)


def _number(row: dict, column: str) -> float:
    try:
        return number_of({column: float(text_of(row, column))}, column)
    except ValueError as error:
        if isinstance(error, BadRow):
            raise
        raise BadRow("wrong type", f"{column} is {row[column][:40]!r}, must be a number") from None


def read_clips(path: Path, media: MediaIndex, report: DataReport, classes: int | None) -> Iterator[LabelledClip]:
    """Yield a clip for each row `path,label`."""
    label = _label_reader(classes)

    def make(number: int, row: dict) -> LabelledClip:
        name = text_of(row, "path")
        video = Media(kind="video", path=media.find(name, "video"))
        return LabelledClip(name, "clips", video, label(row, "label"))

    return samples_from_rows(path, csv_rows(path, ["path", "label"], has_header=False), make, report)


def read_clip_frames(path: Path, media: MediaIndex, report: DataReport, classes: int | None) -> Iterator[LabelledClip]:
    """Yield a clip for each row `folder,total_frames,label`; the folder holds so many pictures."""
    label = _label_reader(classes)

    def make(number: int, row: dict) -> LabelledClip:
        name = text_of(row, "folder")
        folder = media.find_frames(name)
        total = index_of(row, "total_frames", 10**7)
        found = sum(os.path.splitext(entry)[1].lower() in MEDIA_SUFFIXES["image"] for entry in os.listdir(folder))
        if found != total:
            raise BadRow("wrong number of frames", f"{name} holds {found} pictures, the row says {total}")
        return LabelledClip(name, "clip-frames", Media(kind="frames", path=folder, fps=1.0), label(row, "label"))

    columns = ["folder", "total_frames", "label"]
    return samples_from_rows(path, csv_rows(path, columns, has_header=False), make, report)


def read_clip_windows(
    path: Path, media: MediaIndex, report: DataReport, classes: int | None
) -> Iterator[LabelledClip]:
    """Yield the windows of each row `path,label,duration`, in seconds."""
    label = _label_reader(classes)

    def make(number: int, row: dict) -> list[LabelledClip]:
        name, value, duration = text_of(row, "path"), label(row, "label"), _number(row, "duration")
        if not 0 < duration < 10**6:
            raise BadRow("wrong number", f"duration is {duration:g} seconds")
        found = media.find(name, "video")
        parts = [Media(kind="video", path=found, start=start, end=end) for start, end in windows(duration)]
        return [LabelledClip(f"{name} at {part.start:g}", "clip-windows", part, value) for part in parts]

    columns = ["path", "label", "duration"]
    for clips in samples_from_rows(path, csv_rows(path, columns, has_header=False), make, report):
        yield from clips


def windows(duration: float) -> list[tuple[float, float]]:
    """Return the windows of a video in seconds: the whole of a short one, else one every `WINDOW_STRIDE`."""
    if duration < WINDOW:
        return [(0.0, duration)]
    starts = [WINDOW_STRIDE * i for i in range(int(duration / WINDOW_STRIDE) + 1)]
    return [(start, min(start + WINDOW, duration)) for start in starts if duration - start >= WINDOW / 2]


def read_images(path: Path, media: MediaIndex, report: DataReport, classes: int | None) -> Iterator[LabelledClip]:
    """Yield the images of a folder of classes."""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{path}: has no folders; give a folder with one for each class")
    if classes is not None and len(names) != classes:
        raise ValueError(
            f"{path}: has {len(names)} classes, the recipe {classes}; add --override classes={len(names)}"
        )
    index = MediaIndex([path])

    def rows() -> Iterator[Row]:
        number = 0
        for label, name in enumerate(names):
            for file in sorted(os.listdir(path / name)):
                if os.path.splitext(file)[1].lower() in MEDIA_SUFFIXES["image"]:
                    number += 1
                    yield number, {"id": f"{name}/{file}", "label": label}

    def make(number: int, row: dict) -> LabelledClip:
        image = Media(kind="image", path=index.find(row["id"], "image"))
        return LabelledClip(row["id"], "images", image, row["label"])

    return samples_from_rows(path, rows(), make, report)


def read_breakfast(path: Path, media: MediaIndex, report: DataReport, classes: int | None) -> Iterator[LabelledClip]:
    """Yield a clip for each row of Breakfast's csv with a header; names have no ending."""
    label = _label_reader(classes)

    def make(number: int, row: dict) -> LabelledClip:
        name = text_of(row, "file_name")
        video = Media(kind="video", path=media.find(name, "video"))
        return LabelledClip(name, "breakfast", video, label(row, "class_id"))

    return samples_from_rows(path, csv_rows(path, ["file_name", "class_id"]), make, report)


def coin_reader(subset: str) -> Callable[..., Iterator[LabelledClip]]:
    """Return a reader of COIN.json: {"database": {video id: {"class": name, "subset": "training" or "testing"}}}."""

    def read(path: Path, media: MediaIndex, report: DataReport, classes: int | None) -> Iterator[LabelledClip]:
        content = read_json(path)
        database = content.get("database") if isinstance(content, dict) else None
        if not isinstance(database, dict):
            raise ValueError(f"{path}: has no database of videos; is it COIN.json?")
        videos = {id: video for id, video in database.items() if isinstance(video, dict)}
        names = sorted({video["class"] for video in videos.values() if isinstance(video.get("class"), str)})
        numbers = {name: number for number, name in enumerate(names)}
        rows = (
            (number, {"id": id, **video})
            for number, (id, video) in enumerate(videos.items(), start=1)
            if video.get("subset") == subset
        )

        def make(number: int, row: dict) -> LabelledClip:
            label = index_of({"class": numbers[text_of(row, "class")]}, "class", classes or MAX_CLASSES)
            video = Media(kind="video", path=media.find_id(id_of(row), "video"))
            return LabelledClip(id_of(row), f"coin-{subset}", video, label)

        return samples_from_rows(path, rows, make, report)

    return read


def read_lvu(path: Path, media: MediaIndex, report: DataReport, classes: int | None) -> Iterator[LabelledClip]:
    """Yield a clip for each row of an LVU task; the columns tell whether it is a class or a rating."""

    def make(number: int, row: dict) -> LabelledClip:
        id = text_of(row, "youtube_id")
        if (classes == 1) == ("class_id" in row):
            kinds = ("a class", "a number") if classes == 1 else ("a rating", "a class")
            raise BadRow("another task", f"the row has {kinds[0]}, the recipe predicts {kinds[1]}")
        value = _rating(row) if classes == 1 else index_of(row, "class_id", classes or MAX_CLASSES)
        return LabelledClip(id, "lvu", Media(kind="video", path=media.find_id(id, "video")), value)

    return samples_from_rows(path, csv_rows(path, ["youtube_id"], delimiter=" "), make, report)


def _rating(row: dict) -> float:
    """Return what ViS4mer predicts from an LVU row."""
    if "view_count" in row:
        views = _number(row, "view_count")
        if views <= 0:
            raise BadRow("wrong number", f"view_count is {views:g}")
        return math.log(views) - 11.764
    likes, dislikes = _number(row, "like_count"), _number(row, "dislike_count")
    if min(likes, dislikes) < 0 or likes + dislikes == 0:
        raise BadRow("wrong number", f"{likes:g} likes and {dislikes:g} dislikes")
    return 10 * likes / (likes + dislikes) - 9.138


CLIP_READERS = {
    "clips": read_clips,
    "clip-frames": read_clip_frames,
    "clip-windows": read_clip_windows,
    "images": read_images,
    "breakfast": read_breakfast,
    "coin-training": coin_reader("training"),
    "coin-testing": coin_reader("testing"),
    "lvu": read_lvu,
}


def read_clip_data(argument: str, report: DataReport, classes: int | None) -> list[LabelledClip]:
    """Return the clips of a `--data` argument READER:ANNOTATIONS,MEDIA,MEDIA.

    Without READER it is "clips", for a folder "images"; without MEDIA the folder of the annotations.

    Args:
        report: is told about every row.
        classes: of the recipe; 1 for a number, None if nobody says.

    Raises:
        ValueError: an unknown reader, a missing file or folder, a file that cannot be read.
    """
    head, *folders = [part.strip() for part in argument.split(",")]
    name, colon, rest = head.partition(":")
    reader, path = (name, Path(rest)) if colon and not Path(head).exists() else (None, Path(head))
    if reader is not None and reader not in CLIP_READERS:
        raise ValueError(f"--data {argument}: reader {reader!r} is unknown; known: {', '.join(CLIP_READERS)}")
    if not head or not all(folders):
        raise ValueError(f"--data {argument}: has an empty path; write READER:ANNOTATIONS,MEDIA or ANNOTATIONS,MEDIA")
    if not path.exists():
        raise ValueError(f"--data {argument}: there is no {path}")
    if reader is None:
        reader = "images" if path.is_dir() else "clips"
    if path.is_dir() != (reader == "images"):
        raise ValueError(f"--data {argument}: {reader} takes a {'folder' if reader == 'images' else 'file'}")
    media = MediaIndex(folders or [path if path.is_dir() else path.parent])
    rows = CLIP_READERS[reader](path, media, report, classes)
    return list(tqdm(rows, desc=f"reading {path.name}", unit=" clips", disable=None, leave=False))
