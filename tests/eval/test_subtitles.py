"""Reading subtitles and the two rules of showing them, worked out by hand; bad files end in a reason."""

import json

import pytest

from modeling_video_ma2mba.eval import subtitles
from modeling_video_ma2mba.eval.samples import Subtitle
from modeling_video_ma2mba.eval.subtitles import interleave, lines_at, read_longvideobench, read_srt
from modeling_video_ma2mba.train.data_report import BadRow


def line(start, end, text):
    return Subtitle(start=start, end=end, text=text)


def test_srt_with_font_tags_several_lines_and_empty_entries(tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes(
        b"\xef\xbb\xbf1\r\n00:00:01,500 --> 00:00:02,000\r\n"
        b'<font color="white" size=".72c">Good <i>morning</i>,</font>\r\n'
        b'<font color="white" size=".72c">all</font>\r\n'
        b"\r\n2\r\n00:00:03,000 --> 00:00:04,000\r\n<font></font>\r\n"
        b"\r\n00:59:59,999 --> 01:00:00,001\r\n1 < 2 > 0\r\n"
    )
    assert read_srt(path) == (line(1.5, 2.0, "Good morning, all"), line(3599.999, 3600.001, "1 < 2 > 0"))


def test_an_empty_srt_has_no_lines(tmp_path):
    (tmp_path / "a.srt").write_text("\n\n")
    assert read_srt(tmp_path / "a.srt") == ()


# fmt: off
BAD_SRT_CASES = [
    ("1\nno times\nhello", "damaged subtitles"), ("1\n00:00:02,000 --> 00:00:01,000\nhello", "damaged subtitles"),
    ("1\n00:00:01,000 --> 00:00:02,000\nsee <|user|>", "reserved word in text"),
    # Taking a tag off must not make a word of its rest.
    ("1\n00:00:01,000 --> 00:00:02,000\nsee <<b>image>", "reserved word in text"),
]
# fmt: on


@pytest.mark.parametrize(("content", "reason"), BAD_SRT_CASES)
def test_bad_srt(tmp_path, content, reason):
    path = tmp_path / "a.srt"
    path.write_text(content)
    with pytest.raises(BadRow) as error:
        read_srt(path)
    assert error.value.reason == reason


def test_files_that_are_missing_or_too_large(tmp_path, monkeypatch):
    with pytest.raises(BadRow, match="subtitles not found"):
        read_srt(tmp_path / "a.srt")
    monkeypatch.setattr(subtitles, "MAX_SUBTITLE_BYTES", 10)
    (tmp_path / "a.srt").write_text("x" * 11)
    with pytest.raises(BadRow, match="more than 10 bytes"):
        read_srt(tmp_path / "a.srt")
    with pytest.raises(BadRow, match="more than 10 bytes"):
        read_longvideobench(tmp_path / "a.srt", 0.0, 1.0)


def test_longvideobench_both_shapes_shifted(tmp_path):
    path = tmp_path / "a.json"
    entries = [
        {"timestamp": [100.0, 102.5], "text": "before"},
        {"start": "00:02:01.500", "end": "00:02:03", "line": "one"},
        {"timestamp": [130, 131.0], "text": " two "},
        {"timestamp": [150.0, 151.0], "text": ""},
    ]
    path.write_text(json.dumps(entries))
    assert read_longvideobench(path, 120.0, 60.0) == (
        line(-20.0, -17.5, "before"), line(1.5, 3.0, "one"), line(10.0, 11.0, "two"),
    )  # fmt: skip


def test_longvideobench_takes_the_length_for_a_missing_end_before_the_shift(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"timestamp": [50.0, None], "text": "x"}]))
    assert read_longvideobench(path, 0.0, 60.0) == (line(50.0, 60.0, "x"),)
    assert read_longvideobench(path, 20.0, 60.0) == (line(30.0, 40.0, "x"),)


# fmt: off
BAD_LONGVIDEOBENCH_FILES_CASES = [
    "{", '{"a": 1}', "[1]", '[{"timestamp": ["x", 1.0], "text": "a"}]', '[{"timestamp": 3, "text": "a"}]',
    '[{"start": "00:00:1e9", "end": "00:00:02", "line": "a"}]', '[{"timestamp": [NaN, 1.0], "text": "a"}]',
    '[{"timestamp": [1.0, 2.0], "text": 5}]', '[{"start": 1.0, "line": "a"}, {"end": 2.0, "line": "a"}]',
    '[{"timestamp": [1.0, 2.0], "text": "<image>"}]',
]
# fmt: on


@pytest.mark.parametrize("content", BAD_LONGVIDEOBENCH_FILES_CASES)
def test_bad_longvideobench_files(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(BadRow):
        read_longvideobench(path, 0.0, 10.0)


def test_lines_at_frames():
    lines = [line(0.0, 1.0, "a"), line(1.0, 2.0, "b"), line(2.2, 2.8, "c"), line(2.5, 9.0, "d"), line(3.0, 3.0, "e")]
    # [start, end): a frame at 1.0 is in "b" and not in "a"; "c" lies between frames; "d" is long and given once.
    assert lines_at([1.0, 2.0, 3.0, 4.0], lines) == ["b", "d"]
    assert lines_at([0.0], lines) == ["a"]
    assert lines_at([], lines) == []
    assert lines_at([2.5], lines) == ["c", "d"]


def test_ten_frames_give_the_lines_at_ten_frames():
    lines = [line(second, second + 1.0, str(second)) for second in range(100)]
    assert lines_at([5.0 + 10 * i for i in range(10)], lines) == [str(5 + 10 * i) for i in range(10)]


# fmt: off
INTERLEAVING_CASES = [
    # Behind the frames up to its middle, 1.5.
    ([0, 1, 2, 3], [line(0.5, 2.5, "a")], [0, 1, "a", 2, 3]),
    # A frame in the middle itself comes before it.
    ([0, 1, 2], [line(0.0, 2.0, "a")], [0, 1, "a", 2]),
    # Strictly inside: frames at both ends of the interval are not enough.
    ([0, 2], [line(0.0, 2.0, "a")], [0, 1]),
    # Shorter than a second: 1.3 to 1.4 counts as 0.85 to 1.85, in which there is a frame; 1.5 to 1.6 as 1.05 to 2.05.
    ([0, 1], [line(1.3, 1.4, "a")], [0, 1, "a"]),
    ([0, 1], [line(1.5, 1.6, "a")], [0, 1]),
    # Exactly a second is not widened: nothing strictly inside 1 to 2.
    ([0, 1, 2], [line(1.0, 2.0, "a")], [0, 1, 2]),
    # Before and behind the video: not shown, and no frame is moved by the first one.
    ([0, 1], [line(-5.0, -3.0, "a"), line(7.0, 9.0, "b")], [0, 1]),
    # In the order of the file, also when it goes back.
    ([0, 1, 2, 3], [line(1.5, 3.5, "b"), line(0.5, 1.5, "a")], [0, 1, 2, "b", "a", 3]),
    ([0], [line(0.0, 10.0, "a")], [0]),
    ([0.5], [line(0.0, 10.0, "a")], [0, "a"]),
    ([], [line(0.0, 1.0, "a")], []),
    ([0, 1], [], [0, 1]),
]
# fmt: on


@pytest.mark.parametrize(("times", "lines", "shown"), INTERLEAVING_CASES)
def test_interleaving(times, lines, shown):
    assert interleave(times, lines) == shown
