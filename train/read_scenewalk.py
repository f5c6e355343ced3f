"""Read SceneWalk, in both forms it is published in: long videos as clips in time, each with a dense caption.

`IVLLab/SceneWalk` (parquet), a row for each clip:

    id              of the video, the same for all its clips; names the file, which is not part of the data set
    time_stamp      {start_time: "00:01:05.200", end_time, start_frame, end_frame, start_fps, end_fps, duration}
    conversations   [{"from": "human", ...}, {"from": "gpt", "value": the caption}]
    url, v2t_score, t2t_score   not used

`interlive/scenewalk` (`data/train.jsonl`), a row for each video:

    id, video       the video's id and relative path
    total_time      its length in seconds
    clip_num        number of clips
    scenes          [{start_frame, end_frame, start_fps, end_fps, ...}]
    conversations   two texts for each scene, in the order of the scenes

Captions are the `gpt` texts; `human` texts are dropped, as the sequence is clip, caption, clip, caption. A clip lies
between its times where they are given, else between frame / fps with the mean of both rates, which are whole numbers:
at 29.97 FPS, such a time is early by 0.1 %. Clips are sorted by their start; they may overlap and leave gaps. A clip
that cannot be used is left out and the video keeps the others. Reports count clips in both forms.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from modeling_video_ma2mba.train.annotation_files import (
    dataset_rows,
    id_of,
    json_rows,
    list_of,
    number_of,
    open_dataset,
    row_id,
    text_of,
)
from modeling_video_ma2mba.train.data_report import BadRow, DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex
from modeling_video_ma2mba.train.read_llava import turns_of
from modeling_video_ma2mba.train.samples import Media, Sample, interleaved

SOURCE = "scenewalk"
TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)", re.ASCII)

Clip = tuple[float, float, str]  # start and end in seconds, caption


def read_scenewalk(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield an interleaved sample for each video of the per-clip form: a folder of parquet files, or of save_to_disk.

    Rows of one video may stand anywhere. Two numbers per row are held in memory; the rows stay in an Arrow file.
    """
    dataset = open_dataset(path, ["id", "time_stamp", "conversations"], streaming=False)
    places: dict[str, list[int]] = {}
    for number, row in dataset_rows(os.fspath(path), dataset.select_columns(["id"])):
        try:
            places.setdefault(id_of(row), []).append(number)
        except BadRow as bad:
            report.count_rows(path)
            report.leave_out(path, number, "", bad)
    dataset = dataset.select_columns(["time_stamp", "conversations"])
    for id, numbers in places.items():
        report.count_rows(path, len(numbers))
        try:
            video = media.find_id(id, "video")
        except BadRow as bad:
            report.leave_out(path, numbers[0], id, bad, rows=len(numbers))
            continue
        clips = []
        for number in numbers:
            try:
                clips.append(_clip_of_row(dataset[number - 1]))
            except BadRow as bad:
                report.leave_out(path, number, id, bad)
        if clips:
            report.count_sample(path)
            yield _sample(id, video, clips)
    if not places:
        raise ValueError(f"{path}: holds no row with an id; give the folder with the data set's parquet files")


def read_scenewalk_videos(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield an interleaved sample for each video of the per-video form."""
    number = None
    for number, row in json_rows(path, ["video", "scenes", "conversations"]):
        scenes = row.get("scenes") if isinstance(row, dict) else None
        count = max(1, len(scenes)) if isinstance(scenes, list) else 1
        report.count_rows(path, count)
        try:
            if isinstance(row, BadRow):
                raise row
            id = id_of(row, default=f"{Path(path).stem}:{number}")
            pairs, length = _scenes_of_row(row)
            video = media.find(text_of(row, "video"), "video", ["videos"])
        except BadRow as bad:
            report.leave_out(path, number, row_id(row), bad, rows=count)
            continue
        clips = []
        for place, (scene, turns) in enumerate(pairs, start=1):
            try:
                clips.append((*clip_times(scene, length), _caption({"conversations": turns})))
            except BadRow as bad:
                report.leave_out(path, number, id, BadRow(bad.reason, f"scene {place}: {bad.detail or bad.reason}"))
        if clips:
            report.count_sample(path)
            yield _sample(id, video, clips)
    if number is None:
        raise ValueError(f"{path}: holds no rows; give a file with at least one")


def clip_times(scene: dict, length: float | None = None) -> tuple[float, float]:
    """Return start and end of a clip in seconds, in a video of `length` seconds. Raises BadRow."""
    start, end = (_time_of(scene, column) for column in ("start_time", "end_time"))
    if start is None or end is None:
        rate = (number_of(scene, "start_fps") + number_of(scene, "end_fps")) / 2
        if rate <= 0:
            raise BadRow("wrong number", f"start_fps and end_fps have the mean {rate}, must be above 0")
        start, end = number_of(scene, "start_frame") / rate, number_of(scene, "end_frame") / rate
    if not 0 <= start < end:
        raise BadRow("wrong times", f"clip from {start:.3f} s to {end:.3f} s")
    if length is not None and start >= length:
        raise BadRow("wrong times", f"clip from {start:.3f} s in a video of {length:.3f} s")
    return start, end


def _time_of(scene: dict, column: str) -> float | None:
    if scene.get(column) is None:
        return None
    match = TIME.fullmatch(text_of(scene, column))
    if match is None or len(match[1]) > 4:
        raise BadRow("wrong times", f"{column} is {text_of(scene, column)[:40]!r}, must be like 00:01:05.200")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _clip_of_row(row: dict) -> Clip:
    if not isinstance(row["time_stamp"], dict):
        raise BadRow("wrong type", "time_stamp is not an object")
    return *clip_times(row["time_stamp"]), _caption(row)


def _caption(row: dict) -> str:
    turns = turns_of(row)
    if len(turns) != 1:
        raise BadRow("more than one turn", f"{len(turns)} answers in place of 1 caption")
    return turns[0].answer


def _scenes_of_row(row: dict) -> tuple[list[tuple[dict, list]], float | None]:
    """Return scenes with their two texts, and the length of the video."""
    scenes, turns = list_of(row, "scenes", dict), list_of(row, "conversations", dict)
    if not scenes or len(turns) != 2 * len(scenes) or row.get("clip_num") not in (None, len(scenes)):
        raise BadRow(
            "scenes and captions differ in number",
            f"{len(scenes)} scenes, {len(turns)} texts (two for each scene needed), clip_num {row.get('clip_num')}",
        )
    length = None if row.get("total_time") is None else number_of(row, "total_time")
    return [(scene, turns[2 * place : 2 * place + 2]) for place, scene in enumerate(scenes)], length


def _sample(id: str, video: Path, clips: list[Clip]) -> Sample:
    clips = sorted(clips, key=lambda clip: clip[:2])
    parts = ((Media(kind="video", path=video, start=start, end=end), caption) for start, end, caption in clips)
    return interleaved(id=id, source=SOURCE, clips=parts)
