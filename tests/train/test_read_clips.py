"""Readers of labelled clips: every format becomes clips; bad rows are reported, bad files raise."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.read_clips import read_clip_data, windows


@pytest.fixture
def folder(tmp_path):
    """Files that are found, not decoded."""
    for name in ("one/a.mp4", "one/b.mp4", "two/c.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    (tmp_path / "frames" / "f").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "frames" / "f" / f"img_{i:05}.jpg")
    return tmp_path


def read(folder, text, reader="clips", classes=None, name="list.csv", media=True):
    (folder / name).write_text(text)
    report = DataReport()
    argument = f"{reader}:{folder / name}" + (f",{folder}" if media else "")
    return read_clip_data(argument, report, classes), report


def short(clips):
    return [(clip.medium.path.name, clip.label) for clip in clips]


def test_clips(folder):
    clips, report = read(folder, "one/a.mp4,0\ntwo/c.avi,2\n", classes=3)
    assert short(clips) == [("a.mp4", 0), ("c.avi", 2)] and clips[0].source == "clips" and not report.left_out
    assert short(read_clip_data(str(folder / "list.csv"), DataReport(), None)) == short(clips)
    numbers, _ = read(folder, "one/a.mp4,0.5\none/b.mp4,-2\n", classes=1)
    assert short(numbers) == [("a.mp4", 0.5), ("b.mp4", -2.0)]


@pytest.mark.parametrize(
    "row, classes, reason, detail",
    [
        ("one/x.mp4,0", 3, "media not found", "one/x.mp4"),
        ("../a.mp4,0", 3, "media path refused", "contains '..'"),
        ("/etc/passwd,0", 3, "media path refused", "not relative"),
        ("one/a.mp4,3", 3, "wrong number", "between 0 and 2"),
        ("one/a.mp4,-1", 3, "wrong type", "whole number"),
        ("one/a.mp4,walk", 3, "wrong type", "whole number"),
        ("one/a.mp4,walk", 1, "wrong type", "'walk', must be a number"),
        ("one/a.mp4,nan", 1, "wrong number", "nan"),
        ("one/a.mp4,0,1", 3, "wrong number of fields", "3 in place of 2"),
    ],
)
def test_bad_rows_are_left_out(folder, row, classes, reason, detail):
    clips, report = read(folder, f"one/b.mp4,0\n{row}\n", classes=classes)
    assert short(clips) == [("b.mp4", 0)]
    (left_out,) = report.left_out
    assert (left_out.reason, left_out.row) == (reason, 2) and detail in left_out.detail
    with pytest.raises(ValueError, match="of 2 rows"):
        report.check_limit(0.05)


def test_folders_of_frames(folder):
    clips, report = read(folder, "frames/f,3,1\nframes/f,4,1\none,1,1\n", "clip-frames")
    assert [(clip.medium.kind, clip.medium.path.name, clip.label) for clip in clips] == [("frames", "f", 1)]
    assert [entry.reason for entry in report.left_out] == ["wrong number of frames", "folder without an image"]


def test_windows():
    assert windows(59.0) == [(0.0, 59.0)]
    assert windows(60.0) == [(0.0, 60.0), (16.0, 60.0)]  # 44 s are at least half a window, 28 s are not
    assert windows(100.0) == [(0, 60), (16, 76), (32, 92), (48, 100), (64, 100)]


def test_clip_windows(folder):
    clips, report = read(folder, "one/a.mp4,2,76\none/b.mp4,1,0\n", "clip-windows", classes=4)
    assert [(clip.medium.start, clip.medium.end, clip.label) for clip in clips] == [
        (0, 60, 2),
        (16, 76, 2),
        (32, 76, 2),
    ]
    assert report.left_out[0].detail == "duration is 0 seconds"


def test_images(folder, tmp_path):
    root = tmp_path / "train"
    for name in ("dog/1.jpeg", "cat/2.JPEG", "cat/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")
    clips = read_clip_data(str(root), DataReport(), 2)
    assert [(clip.id, clip.label, clip.medium.kind) for clip in clips] == [
        ("cat/2.JPEG", 0, "image"),
        ("dog/1.jpeg", 1, "image"),
    ]
    with pytest.raises(ValueError, match="has 2 classes, the recipe 1000"):
        read_clip_data(str(root), DataReport(), 1000)


def test_breakfast(folder):
    clips, _ = read(folder, "file_name,duration,action,class_id\na,12.5,cereals,4\n", "breakfast", classes=10)
    assert short(clips) == [("a.mp4", 4)]


def test_coin(folder):
    videos = {"a": {"class": "Wrap", "subset": "training"}, "b": {"class": "Arc", "subset": "training"},
              "c": {"class": "Zip", "subset": "testing"}, "d": {"class": "Arc", "subset": "training"}}  # fmt: skip
    text = json.dumps({"database": videos})
    clips, report = read(folder, text, "coin-training", classes=3, name="COIN.json")
    assert short(clips) == [("a.mp4", 1), ("b.mp4", 0)] and report.left_out[0].reason == "media not found"
    assert short(read(folder, text, "coin-testing", name="COIN.json")[0]) == [("c.avi", 2)]
    with pytest.raises(ValueError, match=r"is it COIN\.json"):
        read(folder, "[]", "coin-testing", name="COIN.json")


def test_lvu(folder):
    text = "class_id class_name youtube_id imdb_id\n3 wife a tt1\n"
    assert short(read(folder, text, "lvu", classes=4)[0]) == [("a.mp4", 3)]
    views, _ = read(folder, "view_count youtube_id imdb_id\n100000 a tt1\n", "lvu", classes=1)
    assert views[0].label == pytest.approx(math.log(100000) - 11.764)
    likes, report = read(folder, "like_count dislike_count youtube_id imdb_id\n9 1 a t\n0 0 b t\n", "lvu", classes=1)
    assert likes[0].label == pytest.approx(9 - 9.138) and report.left_out[0].detail == "0 likes and 0 dislikes"
    for table, classes in ((text, 1), ("view_count youtube_id imdb_id\n9 a t\n", 4)):
        _, report = read(folder, table, "lvu", classes=classes)
        assert report.left_out[0].reason == "another task"


@pytest.mark.parametrize(
    "argument, message",
    [
        ("movies:{}/list.csv", "reader 'movies' is unknown; known: clips, clip-frames"),
        ("{}/missing.csv", "there is no"),
        ("{}/list.csv,", "empty path"),
        ("images:{}/list.csv", "images takes a folder"),
        ("lvu:{}/one", "lvu takes a file"),
        ("{}/list.csv,{}/nowhere", "is not a folder"),
        ("breakfast:{}/list.csv", "has no column file_name"),
        ("{}/empty.csv", "holds no rows"),
    ],
)
def test_arguments_that_cannot_be_read(folder, argument, message):
    (folder / "list.csv").write_text("one/a.mp4,0\n")
    (folder / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=message):
        read_clip_data(argument.replace("{}", str(folder)), DataReport(), None)
