"""The annotation formats of captioned videos, in their real layout, and what is wrong with rows."""

import json

import pytest

from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.read_captions import CAPTION_SETS, read_caption_data


@pytest.fixture
def folder(tmp_path):
    for name in ("video7020.mp4", "video7021.mp4", "1004_Juno/1004_Juno_00.avi", "v_demo.mp4", "cc/1.jpg"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def read(folder, name, rows, report=None):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return read_caption_data(f"{name}:{path},{folder / 'videos'}", report or DataReport())


def test_msrvtt_one_caption_of_each_video(folder):
    rows = [
        {"video": "video7020.mp4", "caption": "a woman creating a fondant baby"},
        {"video": "video7021.mp4", "caption": "a boy plays grand theft auto 5"},
    ]
    clips = read(folder, "msrvtt", rows)
    assert [clip.captions for clip in clips] == [(row["caption"],) for row in rows]
    assert clips[0].medium.path == folder / "videos" / "video7020.mp4" and clips[0].medium.end is None
    assert clips[0].id == "video7020.mp4" and clips[0].source == "msrvtt"


def test_msrvtt_as_first_published(folder):
    content = {
        "info": {"year": "2016"},
        "videos": [
            {"category": 9, "url": "https://example.invalid", "video_id": "video7020", "split": "test", "id": 7020},
            {"category": 1, "url": "https://example.invalid", "video_id": "video7021", "split": "test", "id": 7021},
        ],
        "sentences": [
            {"caption": "a woman shows a cake", "video_id": "video7020", "sen_id": 1},
            {"caption": "somebody plays", "video_id": "video7021", "sen_id": 2},
            {"caption": "a cake is decorated", "video_id": "video7020", "sen_id": 3},
        ],
    }
    clips = read(folder, "msrvtt-original", content)
    assert [clip.captions for clip in clips] == [("a woman shows a cake", "a cake is decorated"), ("somebody plays",)]
    with pytest.raises(ValueError, match="has no lists videos and sentences"):
        read(folder, "msrvtt-original", [])


@pytest.mark.parametrize("name, end", [("didemo", 30.0), ("activitynet", None)])
def test_paragraphs(folder, name, end):
    (clip,) = read(folder, name, [{"video": "v_demo.mp4", "caption": ["first sentence.", "second sentence."]}])
    assert clip.captions == ("first sentence. second sentence.",) and clip.medium.end == end


def test_lsmdc_in_folders(folder):
    rows = [{"video": "1004_Juno/1004_Juno_00.avi", "caption": "<PERSON> looks up."}]
    (clip,) = read(folder, "lsmdc", rows)
    assert clip.medium.path.name == "1004_Juno_00.avi"


def test_msvd_many_captions_in_one_row_or_several(folder):
    rows = [
        {"video": "v_demo.mp4", "caption": ["a man cooks", "someone is cooking"]},
        {"video": "video7020.mp4", "caption": "a dog"},
        {"video": "v_demo.mp4", "caption": ["a man cooks", "a kitchen"]},
    ]
    clips = read(folder, "msvd", rows)
    assert [clip.captions for clip in clips] == [("a man cooks", "someone is cooking", "a kitchen"), ("a dog",)]


def test_images(folder):
    (clip,) = read(folder, "captions", [{"image": "cc/1.jpg", "caption": "a picture"}])
    assert clip.medium.kind == "image"


def test_lengths_of_texts_are_those_of_the_sets():
    sizes = {name: rule.max_text_tokens for name, rule in CAPTION_SETS.items()}
    assert [sizes[n] for n in ("msrvtt", "didemo", "activitynet", "lsmdc", "msvd")] == [32, 64, 150, 96, 64]


def test_bad_rows_are_reported(folder):
    good = {"video": "v_demo.mp4", "caption": "good"}
    rows = [
        good,
        {"video": "missing.mp4", "caption": "x"},
        {"video": "../rows.json", "caption": "x"},
        {"video": "v_demo.mp4", "caption": 5},
        {"video": "v_demo.mp4", "caption": ["fine", None]},
        {"video": "v_demo.mp4", "caption": []},
        {"video": "v_demo.mp4", "caption": "?!"},
        {"caption": "no video"},
        {"video": "cc/1.jpg", "caption": "a picture is no video"},
        "text",
    ]
    report = DataReport()
    assert len(read(folder, "captions", rows, report)) == 1
    assert [(entry.row, entry.reason) for entry in report.left_out] == [
        (2, "media not found"),
        (3, "media path refused"),
        (4, "wrong type"),
        (5, "wrong type"),
        (6, "wrong number of captions"),
        (7, "caption without a word"),
        (8, "wrong type"),
        (9, "media of another kind"),
        (10, "row is not an object"),
    ]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("rows.json", "must begin with one of captions:, msrvtt:"),
        ("kinetics:rows.json", "must begin with one of"),
        ("msrvtt:", "has an empty path"),
        ("msrvtt:nowhere.json", "there is no file nowhere.json"),
        ("msrvtt:nowhere.json,", "has an empty path"),
    ],
)
def test_arguments_that_cannot_be_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        read_caption_data(argument, DataReport())
