"""Read WebVid csv files: one short video and its caption in each row.

WebVid-2.5M / 10M (`results_2M_train.csv`), withdrawn by its author; other data in this form will do. Columns:

    videoid     names the file
    page_dir    the folder it is in; rows where it is empty have no video
    name        the caption
    contentUrl, duration, ...   not used

Videos are at `<root>/videos/<page_dir>/<videoid>.mp4`, with or without `videos`, or with a folder more in between.
"""

import os
from collections.abc import Iterator

from modeling_video_ma2mba.train.annotation_files import csv_rows, id_of, samples_from_rows, text_of, words_of
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex
from modeling_video_ma2mba.train.samples import Media, Sample, captioned


def read_webvid(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield a captioned sample for each row."""

    def make(number: int, row: dict) -> Sample:
        id = id_of(row, "videoid")
        name = f"{text_of(row, 'page_dir')}/{id}.mp4"
        caption = words_of(row, "name")
        video = Media(kind="video", path=media.find(name, "video", ["videos"]))
        return captioned(id=id, source="webvid", media=video, caption=caption)

    return samples_from_rows(path, csv_rows(path, ["videoid", "page_dir", "name"]), make, report)
