"""Readers: rows in the schema of each published data set become samples; bad rows are reported, bad files raise."""

import csv
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_video_ma2mba.train import annotation_files
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex
from modeling_video_ma2mba.train.read_llava import (
    read_llava,
    read_llava_dataset,
    read_llava_pretrain,
    samples_from_dataset,
)
from modeling_video_ma2mba.train.read_qa import (
    LETTER_REQUEST,
    SHORT_REQUEST,
    choice_turn,
    read_activitynetqa,
    read_nextqa_choice,
    read_nextqa_open,
    read_perceptiontest,
)
from modeling_video_ma2mba.train.read_scenewalk import clip_times, read_scenewalk, read_scenewalk_videos
from modeling_video_ma2mba.train.read_webvid import read_webvid
from modeling_video_ma2mba.train.readers import READERS, read_data
from modeling_video_ma2mba.train.samples import Media, Turn, grouped
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A real mp4 of one second, and a real jpeg."""
    folder = tmp_path_factory.mktemp("encoded")
    write_video(folder / "a.mp4", numbered_frames(4, 32, 32), fps=4)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.jpg")
    return {ending: (folder / f"a{ending}").read_bytes() for ending in (".mp4", ".jpg")}


class Data:
    """A folder with media and annotations, and what reading them gave."""

    def __init__(self, folder, encoded):
        self.folder, self.encoded, self.report = folder, encoded, DataReport()

    def media(self, *names):
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.encoded[path.suffix.lower().replace(".webm", ".mp4").replace(".mkv", ".mp4")])
        return self

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".jsonl"):
            path.write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
        elif name.endswith(".csv"):
            with open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(content)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def read(self, reader, path):
        return list(reader(path, MediaIndex([self.folder]), self.report))

    @property
    def reasons(self):
        return {(entry.row, entry.reason) for entry in self.report.left_out}


@pytest.fixture
def data(tmp_path, encoded):
    return Data(tmp_path, encoded)


def talk(*texts):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def shape(sample):
    """The pieces of a sample as short text: file names and texts."""
    return [piece.path.name if isinstance(piece, Media) else piece.text for piece in sample.pieces]


def test_llava_rows_of_every_kind(data):
    data.media("demo/clip-17.mp4", "p/1.jpg", "p/2.jpg", "0_30_s_nextqa/NextQA/NExTVideo/1006/12.mp4")
    rows = [
        {"id": "clip-17", "video": "demo/clip-17.mp4", "data_source": "demo",
         "conversations": talk("<image>\nWhat does the dog carry?", "A red ball.", "Where?", "By the bench.")},
        {"id": 5, "image": "p/1.jpg", "conversations": talk("What is it?\n<image>", " a boat ")},
        {"image": ["p/1.jpg", "p/2.jpg"], "conversations": talk("<image> or <image>?", "the first", "why?", "so")},
        {"id": "x", "image": ["p/1.jpg", "p/2.jpg"], "conversations": talk("compare", "same")},
        {"id": "y", "video": "demo/clip-17.mp4", "conversations": talk("<video>a?", "b", "<video>\nc?", "d")},
        {"id": "z", "video": "demo/clip-17.mp4", "conversations": talk("a?", "b", "c?\n<image>", "d")},
        {"id": "1006-12", "data_source": "0_30_s_nextqa", "video": "NextQA/NExTVideo/1006/12.mp4", "image": None,
         "conversations": talk(f"<image>\nwhy?\nA. to rest.\nB. to jump.\n{LETTER_REQUEST}", "B. to jump.")},
    ]  # fmt: skip
    expected = [
        ["clip-17.mp4", "What does the dog carry?", "A red ball.", "Where?", "By the bench."],
        ["1.jpg", "What is it?", "a boat"],
        ["1.jpg", "or", "2.jpg", "?", "the first", "why?", "so"],
        ["1.jpg", "2.jpg", "compare", "same"],
        ["clip-17.mp4", "a?", "b", "c?", "d"],
        ["a?", "b", "clip-17.mp4", "c?", "d"],
        ["12.mp4", f"why?\nA. to rest.\nB. to jump.\n{LETTER_REQUEST}", "B. to jump."],
    ]
    for name in ("rows.json", "rows.jsonl"):
        samples = data.read(read_llava, data.write(name, rows))
        assert [shape(sample) for sample in samples] == expected
        assert [sample.id for sample in samples] == ["clip-17", "5", "rows:3", "x", "y", "z", "1006-12"]
        assert [sample.source for sample in samples[:2]] == ["demo", "rows"]
    assert samples[0].media[0].path.read_bytes() == data.encoded[".mp4"]
    assert data.report.bad_rows == 0


BAD_LLAVA_ROWS = {
    "media not found": {"video": "gone.mp4", "conversations": talk("<image>q", "a")},
    "media path refused": {"video": "../a.mp4", "conversations": talk("<image>q", "a")},
    "media of another kind": {"image": "a.mp4", "conversations": talk("<image>q", "a")},
    "needs either image or video": {"conversations": talk("q", "a")},
    "empty answer": {"video": "a.mp4", "conversations": talk("<image>q", " ")},
    "empty question": {"video": "a.mp4", "conversations": talk("<image>\n", "a")},
    "unbalanced turns": {"video": "a.mp4", "conversations": talk("<image>q", "a", "q")},
    "unknown speaker": {"video": "a.mp4", "conversations": [{"from": "system", "value": "x"}]},
    "wrong type": {"video": "a.mp4", "conversations": "q"},
    "missing column": {"video": "a.mp4", "text": "q"},
    "row is not an object": ["a.mp4", "q", "a"],
    "placeholders do not match media": {"image": ["a.jpg"] * 3, "conversations": talk("<image><image>q", "a")},
    "reserved word in text": {"video": "a.mp4", "conversations": talk("q", "see <image>")},
    "not UTF-8": {"video": "a.mp4", "conversations": talk("q", "\ud800")},
}


def test_each_bad_row_is_reported_with_its_number_and_the_others_go_on(data):
    data.media("a.mp4", "a.jpg")
    good = {"id": "good", "video": "a.mp4", "conversations": talk("<image>q", "a")}
    path = data.write("rows.jsonl", [good, *BAD_LLAVA_ROWS.values(), good])
    assert len(data.read(read_llava, path)) == 2
    assert data.reasons == {(row, reason) for row, reason in enumerate(BAD_LLAVA_ROWS, start=2)}
    assert data.report.rows[str(path)] == len(BAD_LLAVA_ROWS) + 2
    with pytest.raises(ValueError, match=r"14 of 16 rows \(87\.5%\).*rows\.jsonl"):
        data.report.check_limit(0.5)


@pytest.mark.parametrize(
    "row",
    [
        {"id": ["a"], "video": "a.mp4", "conversations": talk("q", "a")},
        {"id": "1", "video": 7, "conversations": talk("q", "a")},
        {"id": "1", "video": {"path": "a.mp4"}, "conversations": talk("q", "a")},
        {"id": "1", "image": ["a.jpg", 7], "conversations": talk("q", "a")},
        {"id": "1", "video": "a.mp4", "conversations": ["q", "a"]},
        {"id": "1", "video": "a.mp4", "conversations": [{"from": "human"}, {"from": 3, "value": "a"}]},
        {"id": "1", "video": "a.mp4", "conversations": talk("q", {"text": "a"})},
        {"id": "1", "video": "a.mp4", "conversations": talk(["q"], "a")},
        {"id": "1", "video": "a.mp4", "conversations": None},
        {"id": "1", "video": "a.mp4", "data_source": 3, "conversations": talk("q", "a")},
    ],
)
def test_wrong_types_are_rows_left_out_not_stack_traces(data, row):
    data.media("a.mp4", "a.jpg")
    assert not data.read(read_llava, data.write("rows.json", [row]))
    assert data.reasons == {(1, "wrong type")}


def test_folders_of_frames_are_known_by_their_path_or_their_rate(data):
    data.media("hound/shareVideoGPTV/v1/1.jpg", "own/v2/1.jpg")
    rows = [
        {"id": "1", "data_source": "hound", "video": "shareVideoGPTV/v1", "conversations": talk("<image>q", "a")},
        {"id": "2", "video": "own/v2", "fps": 0.5, "conversations": talk("<image>q", "a")},
        {"id": "3", "video": "own/v2", "conversations": talk("<image>q", "a")},
        {"id": "4", "video": "own/v2", "fps": 0, "conversations": talk("<image>q", "a")},
        {"id": "5", "video": "own/v2", "fps": float("nan"), "conversations": talk("<image>q", "a")},
    ]
    samples = data.read(read_llava, data.write("rows.jsonl", rows))
    assert [(sample.media[0].kind, sample.media[0].fps) for sample in samples] == [("frames", 2.0), ("frames", 0.5)]
    assert data.reasons == {(3, "media not found"), (4, "wrong number"), (5, "wrong number")}


def test_rows_of_one_video_are_grouped(data):
    data.media("a.mp4", "b.mp4")
    rows = [
        {"id": "1", "video": f"{v}.mp4", "conversations": talk(f"<image>\n{q}?", "x")} for q in "pqr" for v in "ab"
    ]
    samples = grouped(data.read(read_llava, data.write("rows.json", rows)), data.report)
    assert [len(sample.turns) for sample in samples] == [3, 3] and len(samples[0].media) == 1
    assert "6 samples grouped by image or video into 2 (3.00 to 1)" in data.report.summary()


def test_llava_pretrain_drops_the_request(data):
    data.media("00001/000000001.jpg")
    image = "00001/000000001.jpg"
    rows = [
        {"id": "000000001", "image": image, "conversations": talk("Give a brief description.\n<image>", "a boat ")},
        {"id": "000000002", "image": image, "conversations": talk("<image>\nWrite a caption.", "a lake")},
        {"id": "000000003", "image": image, "conversations": talk("<image>", "a pier")},
        {"id": "000000004", "image": image, "conversations": talk("<image>", "a", "q", "b")},
    ]
    samples = data.read(read_llava_pretrain, data.write("blip.json", rows))
    assert [shape(sample) for sample in samples] == [
        ["000000001.jpg", text] for text in ("a boat", "a lake", "a pier")
    ]
    assert {sample.pieces[1].role for sample in samples} == {"caption"}
    assert data.reasons == {(4, "more than one turn")}


def test_bytes_that_are_not_utf8_spoil_their_row_only(data):
    data.media("a.mp4")
    good = json.dumps({"video": "a.mp4", "conversations": talk("<image>q", "a")}).encode()
    bad = good.replace(b'"a"', b'"caf\xe9"')
    assert len(data.read(read_llava, data.write("list.json", b"\xef\xbb\xbf[" + good + b"," + bad + b"]"))) == 1
    assert len(data.read(read_llava, data.write("lines.jsonl", b"\xef\xbb\xbf" + good + b"\r\n\n" + bad))) == 1
    assert data.reasons == {(2, "not UTF-8"), (3, "not UTF-8")}


def test_cut_off_files(data):
    data.media("a.mp4")
    row = json.dumps({"video": "a.mp4", "conversations": talk("<image>q", "a")}).encode()
    with pytest.raises(ValueError, match=r"list\.json: not valid JSON .*fetch it again"):
        data.read(read_llava, data.write("list.json", b"[" + row + b"," + row[:20]))
    assert len(data.read(read_llava, data.write("lines.jsonl", row + b"\n" + row[:20]))) == 1
    assert data.reasons == {(2, "not valid JSON")}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", b"[]", "holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.json", b"", "holds no rows"),
        ("a.json", b'"text"', "row is not an object"),
        ("a.json", b'{\n "v1": {}\n}', "neither a list of rows nor one row on each line"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "not valid JSON"),
        ("a.json", b'[{"video": "a.mp4", "text": "q"}]', "no column conversations.*found: video, text"),
        ("a.json", b"[" + b'{"video": 1},' * 30 + b'{"conversations": []}]', "no column conversations"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"videoid,caption\n1,x\n", r"no column page_dir, name.*found: videoid, caption.*right reader"),
    ],
)
def test_files_that_are_not_what_they_should_be(data, name, content, message):
    path = data.write(name, content)
    with pytest.raises(ValueError, match=message) as raised:
        data.read(read_webvid if name.endswith(".csv") else read_llava, path)
        data.report.check_limit(0.5)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 600


def test_missing_files_and_folders_given_as_files(data):
    for path, message in ((data.folder / "no.json", "no such file"), (data.folder, "not a file")):
        with pytest.raises(ValueError, match=message):
            data.read(read_llava, path)


def test_size_limits(data, monkeypatch):
    data.media("a.mp4")
    row = {"video": "a.mp4", "conversations": talk("<image>q", "a")}
    monkeypatch.setattr(annotation_files, "MAX_JSON_BYTES", 100)
    with pytest.raises(ValueError, match=r"more than the 100 .*\.jsonl"):
        data.read(read_llava, data.write("rows.json", [row] * 2))
    monkeypatch.setattr(annotation_files, "MAX_LINE_BYTES", 200)
    long = {**row, "id": "x" * 1000}
    assert len(data.read(read_llava, data.write("rows.jsonl", [row, long, row]))) == 2
    assert data.reasons == {(2, "line too long")}
    with pytest.raises(ValueError, match="it is no csv file"):
        data.read(read_webvid, data.write("a.csv", b"videoid,page_dir,name\n" + b"x" * 300))


def test_memory_does_not_grow_with_a_jsonl_file(data):
    data.media("a.mp4")
    row = {"video": "a.mp4", "conversations": talk("<image>q", "a")}
    path = data.write("rows.jsonl", [row] * 50)
    samples = read_llava(path, MediaIndex([data.folder]), data.report)
    next(samples)
    assert data.report.rows[str(path)] == 1  # nothing is read ahead


def test_webvid(data):
    data.media("videos/000001_000050/1000001.mp4", "videos/part_7/000051_000100/1000002.mp4")
    header = ["videoid", "contentUrl", "duration", "page_dir", "name"]
    url = "https://example.invalid/1.mp4"
    rows = [
        ["1000001", url, "PT00H00M12S", "000001_000050", 'Waves roll over "black", sand\nat dusk'],
        ["1000002", url, "PT00H00M12S", "000051_000100", "A folder in between"],
        ["1000003", url, "PT00H00M12S", "", "No folder"],
        ["1000004", url, "PT00H00M12S", "000001_000050", "Gone"],
        ["1000001", url, "PT00H00M12S", "000001_000050", ""],
        ["1000001", url],
        ["1000001", url, "PT00H00M12S", "..", "Out"],
    ]
    samples = data.read(read_webvid, data.write("results_2M_train.csv", [header, *rows]))
    assert [shape(sample) for sample in samples] == [
        ["1000001.mp4", 'Waves roll over "black", sand\nat dusk'],
        ["1000002.mp4", "A folder in between"],
    ]
    # The first caption covers two lines, so the rows are on lines 3, 4, 5, ...
    assert data.reasons == {
        (5, "empty page_dir"),
        (6, "media not found"),
        (7, "empty name"),
        (8, "wrong number of fields"),
        (9, "media path refused"),
    }


def test_csv_with_bytes_that_are_not_utf8_and_an_open_quote(data):
    data.media("p/1.mp4")
    head = b"\xef\xbb\xbfvideoid,page_dir,name\n"
    path = data.write("a.csv", head + b'1,p,caf\xe9\n1,p,good\n1,p,"' + b"open " * 40_000 + b"\n1,p,after\n")
    samples = data.read(read_webvid, path)
    assert shape(samples[0]) == ["1.mp4", "good"] and len(samples) <= 2
    assert {reason for _, reason in data.reasons} == {"not UTF-8", "not valid CSV"}


def scene(start, end, fps=30, end_fps=None):
    return {"start_frame": start, "end_frame": end, "start_fps": fps, "end_fps": fps if end_fps is None else end_fps}


def clip_row(id, start, end, caption, **times):
    time_stamp = {"start_time": None, "end_time": None, **scene(start, end), "duration": (end - start) // 30, **times}
    return {
        "id": id, "url": f"https://example.invalid/{id}", "time_stamp": time_stamp, "v2t_score": [0.21, 0.33],
        "t2t_score": [0.4, 1.0], "conversations": talk("<image>\nDescribe this clip.", caption),
    }  # fmt: skip


@pytest.fixture
def datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_scenewalk_rows_of_clips(data, form, datasets_cache):
    data.media("yt/abcDEF12345.mp4", "yt/-x_y.webm")
    rows = [
        clip_row("abcDEF12345", 1956, 3000, "second", start_time="00:01:05.200", end_time="00:01:40.000"),
        clip_row("-x_y", 0, 90, "other film"),
        clip_row("gone", 0, 90, "no video"),
        clip_row("abcDEF12345", 0, 1956, "first", start_time="00:00:00.000", end_time="00:01:05.200"),
        clip_row("gone", 90, 180, "no video either"),
        clip_row("abcDEF12345", 2990, 3300, "third, overlapping"),
        clip_row("abcDEF12345", 3300, 3300, "no length"),
        clip_row("abcDEF12345", 3300, 3600, " "),
        clip_row("abcDEF12345", 3300, 3600, "x", start_time="soon", end_time="00:02:00.000"),
    ]
    folder = data.folder / "scenewalk"
    if form == "parquet":
        (folder / "data").mkdir(parents=True)
        for part, half in enumerate((rows[:5], rows[5:])):
            datasets.Dataset.from_list(half).to_parquet(folder / "data" / f"train-{part}.parquet")
    else:
        datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(folder)
    first, other = data.read(read_scenewalk, folder)
    assert shape(first)[1::2] == ["first", "second", "third, overlapping"] and first.id == "abcDEF12345"
    assert [media.start for media in first.media] == pytest.approx([0, 65.2, 2990 / 30])
    assert [media.end for media in first.media] == pytest.approx([65.2, 100, 110])
    assert {media.path.name for media in first.media} == {"abcDEF12345.mp4"}
    assert shape(other) == ["-x_y.webm", "other film"]
    assert data.reasons == {(3, "media not found"), (7, "wrong times"), (8, "empty answer"), (9, "wrong times")}
    assert (data.report.rows[str(folder)], data.report.samples[str(folder)], data.report.bad_rows) == (9, 2, 5)


def test_scenewalk_rows_of_videos(data):
    data.media("videos/yt_01/f1.mp4")
    pairs = talk("<image>\nDescribe.", "late", "<image>\nDescribe.", "early", "<image>\nDescribe.", "ntsc")
    scenes = [scene(300, 600), scene(0, 330), scene(600, 899, fps=29.97)]
    row = {"id": "f1", "video": "yt_01/f1.mp4", "total_time": 40.0, "clip_num": 3, "scenes": scenes}
    rows = [
        {**row, "conversations": pairs},
        {**row, "conversations": pairs[:4]},
        {**row, "clip_num": 2, "conversations": pairs},
        {**row, "video": "yt_09/gone.mp4", "conversations": pairs},
        {**row, "scenes": [scenes[0], scene(1500, 1600), scene(0, 10, fps=0)], "conversations": pairs},
        {**row, "scenes": "none", "conversations": pairs},
        {**row, "scenes": [scene("0", 10), scene(5, None), scene(float("nan"), 9)], "conversations": pairs},
    ]
    path = data.write("data/train.jsonl", rows)
    whole, part = data.read(read_scenewalk_videos, path)
    assert shape(whole)[1::2] == ["early", "late", "ntsc"]
    assert [media.start for media in whole.media] == pytest.approx([0, 10, 600 / 29.97])
    assert [media.end for media in whole.media] == pytest.approx([11, 20, 899 / 29.97])
    assert shape(part) == ["f1.mp4", "late"]
    assert data.reasons == {
        (2, "scenes and captions differ in number"),
        (3, "scenes and captions differ in number"),
        (4, "media not found"),
        (5, "wrong times"),
        (5, "wrong number"),
        (6, "wrong type"),
        (7, "wrong type"),
        (7, "wrong number"),
    }
    assert data.report.rows[str(path)] == 3 * 6 + 1  # clips


def test_clip_times_prefer_stated_times_and_average_the_rates():
    assert clip_times({"start_time": "1:00:00", "end_time": "01:00:10.5", **scene(0, 1)}) == (3600, 3610.5)
    assert clip_times(scene(0, 550, fps=30, end_fps=25)) == (0, 20)


def test_nextqa_multiple_choice(data):
    data.media("NExTVideo/1164/1234567890.mp4")
    header = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4".split(",")
    options = ["to rest", "to eat", "to reach the toy", "to sit", "to read"]
    rows = [
        ["1234567890", 750, 640, 480, "why did the girl stop", answer, 3, "CW", *options] for answer in (2, 7, "B", -1)
    ]
    path = data.write("train.csv", [header, *rows, ["99", *rows[0][1:]], [*rows[0][:-1], ""]])
    [sample] = data.read(read_nextqa_choice, path)
    question = (
        "why did the girl stop?\nA. to rest.\nB. to eat.\nC. to reach the toy.\nD. to sit.\nE. to read.\n"
        "Please provide your answer by stating the letter followed by the full option."
    )
    assert sample.turns == (Turn(question, "C. to reach the toy."),) and sample.id == "1234567890_3"
    assert data.reasons == {
        (3, "wrong number"), (4, "wrong type"), (5, "wrong type"), (6, "media not found"), (7, "empty a4")
    }  # fmt: skip
    with pytest.raises(ValueError, match="read it with nextqa-mc"):
        data.read(read_nextqa_open, path)


def test_nextqa_open_ended(data):
    data.media("1234567890.mp4")
    header = "video,frame_count,width,height,question,answer,qid,type".split(",")
    row = ["1234567890", 750, 640, 480, "what is the boy holding", "a toy", 4, "DO"]
    [sample] = data.read(read_nextqa_open, data.write("train.csv", [header, row]))
    assert sample.turns == (Turn(f"what is the boy holding? {SHORT_REQUEST}", "a toy"),)


def test_choices_end_with_one_mark_and_have_letters():
    turn = choice_turn("Is it so?", ["yes.", "no!", "I don't know"], 2)
    assert turn.question.splitlines()[:4] == ["Is it so?", "A. yes.", "B. no!", "C. I don't know."]
    assert turn.answer == "C. I don't know."
    for count in (1, 27):
        with pytest.raises(ValueError, match="wrong number of options"):
            choice_turn("q", ["x"] * count, 0)


def test_activitynetqa(data):
    data.media("v_1Abc.mkv", "2-_d.mp4")
    questions = [
        {"video_name": "1Abc", "question": "is the TV on", "question_id": "v_1Abc_1"},
        {"video_name": "2-_d", "question": "what is it", "question_id": "v_2-_d_1"},
        {"video_name": "1Abc", "question": "no answer", "question_id": "v_1Abc_9"},
        {"video_name": "gone", "question": "where", "question_id": "v_gone_1"},
    ]
    answers = [  # in another order, as only the ids count
        {"answer": "ball", "type": 5, "question_id": "v_2-_d_1"},
        {"answer": "no", "type": 3, "question_id": "v_1Abc_1"},
        {"answer": "here", "type": 6, "question_id": "v_gone_1"},
    ]
    data.write("train_a.json", answers)
    one, two = data.read(read_activitynetqa, data.write("train_q.json", questions))
    assert shape(one) == ["v_1Abc.mkv", f"Is the TV on? {SHORT_REQUEST}", "no"]
    assert shape(two) == ["2-_d.mp4", f"What is it? {SHORT_REQUEST}", "ball"]
    assert data.reasons == {(3, "question without an answer"), (4, "media not found")}
    with pytest.raises(ValueError, match=r"_q\.json"):
        data.read(read_activitynetqa, data.folder / "train_a.json")
    (data.folder / "train_a.json").unlink()
    with pytest.raises(ValueError, match=r"train_a\.json: no such file"):
        data.read(read_activitynetqa, data.folder / "train_q.json")


def test_perceptiontest_with_its_cut_map(data):
    data.media("videos/video_1.mp4", "videos/video_2.mp4")
    metadata = {
        "split": "train", "video_id": "video_1", "frame_rate": 30.0, "num_frames": 690, "resolution": [720, 1280],
        "audio_samples": 1100000, "audio_sample_rate": 48000.0, "is_cup_game": 0, "is_camera_moving": 0,
    }  # fmt: skip
    question = {
        "id": 3, "question": "Is the camera moving?", "options": ["no", "yes", "I don't know"], "answer_id": 0,
        "area": "physics", "reasoning": "descriptive", "tag": ["motion"],
    }  # fmt: skip
    path = data.write(
        "mc_question_train.json",
        {
            "video_1": {"metadata": metadata, "mc_question": [question, {**question, "id": 4, "answer_id": "1"}]},
            "video_2": {"metadata": metadata, "mc_question": [question, {**question, "answer_id": 3}, "text"]},
            "video_3": {"metadata": metadata, "mc_question": [question]},
            "video_4": {"metadata": metadata},
            "video_5": "text",
        },
    )
    with pytest.raises(ValueError, match=r"needs cut_frame_mapping_train\.json beside it"):
        data.read(read_perceptiontest, path)
    data.write("cut_frame_mapping_train.json", {"video_1": 450, "video_2": -1})
    samples = data.read(read_perceptiontest, path)
    assert [(sample.id, sample.media[0].end) for sample in samples] == [
        ("video_1_3", 15.0), ("video_1_4", 15.0), ("video_2_3", None)
    ]  # fmt: skip
    assert [sample.turns[0].answer for sample in samples] == ["A. no.", "B. yes.", "A. no."]
    assert data.reasons == {(4, "wrong number"), (5, "wrong type"), (6, "media not found"), (7, "wrong type")}
    data.write("cut_frame_mapping_train.json", {"video_1": 0})
    assert len(data.read(read_perceptiontest, path)) == 1
    data.write("cut_frame_mapping_train.json", [450])
    with pytest.raises(ValueError, match="must hold an object"):
        data.read(read_perceptiontest, path)


def llava_columns():
    return [{"id": str(i), "video": "a.mp4", "conversations": talk("<image>q", f"a{i}")} for i in range(3)]


@pytest.mark.parametrize("form", ["save_to_disk", "parquet folder", "parquet file", "splits"])
def test_llava_rows_in_a_datasets_folder(data, form):
    data.media("a.mp4")
    dataset = datasets.Dataset.from_list(llava_columns())
    folder = data.folder / "set"
    if form == "save_to_disk":
        dataset.save_to_disk(folder)
    elif form == "splits":
        datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(folder)
    else:
        folder.mkdir()
        dataset.to_parquet(folder / "x.parquet")
    path = folder / "x.parquet" if form == "parquet file" else folder
    samples = data.read(read_llava_dataset, path)
    assert [shape(sample) for sample in samples] == [["a.mp4", "q", f"a{i}"] for i in range(3)]


def test_datasets_map_style_and_streaming(data):
    data.media("a.mp4")
    dataset = datasets.Dataset.from_list([*llava_columns(), {"video": "gone.mp4", "conversations": talk("q", "a")}])
    for kind in (dataset, dataset.to_iterable_dataset()):
        report = DataReport()
        samples = list(samples_from_dataset(kind, MediaIndex([data.folder]), report, "mine"))
        assert [sample.id for sample in samples] == ["0", "1", "2"] and samples[0].source == "mine"
        assert [(entry.file, entry.row, entry.reason) for entry in report.left_out] == [("mine", 4, "media not found")]


def test_objects_of_lists_are_read_as_lists_of_objects(data):
    data.media("a.mp4")
    rows = [{"video": "a.mp4", "conversations": {"from": ["human", "gpt"], "value": ["<image>q", "a"]}}]
    [sample] = samples_from_dataset(rows, MediaIndex([data.folder]), data.report, "mine")
    assert shape(sample) == ["a.mp4", "q", "a"]


def test_datasets_that_cannot_be_used(data):
    index = MediaIndex([data.folder])
    inside = datasets.Dataset.from_dict({"image": [None], "conversations": [[]]}).cast_column(
        "image", datasets.Image()
    )
    with pytest.raises(ValueError, match="inside the data set"):
        samples_from_dataset(inside, index, data.report, "mine")
    with pytest.raises(ValueError, match=r"no such file or folder"):
        data.read(read_llava_dataset, data.folder / "nothing")
    (data.folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither a folder written by save_to_disk nor"):
        data.read(read_llava_dataset, data.folder / "empty")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(data.folder / "text")
    with pytest.raises(ValueError, match=r"no column conversations.*found: text"):
        data.read(read_llava_dataset, data.folder / "text")
    datasets.DatasetDict(a=inside, b=inside).save_to_disk(data.folder / "splits")
    with pytest.raises(ValueError, match="has the splits a, b"):
        data.read(read_llava_dataset, data.folder / "splits")
    with pytest.raises(ValueError, match=r"broken\.parquet: (cannot be read|damaged)"):
        data.read(read_llava_dataset, data.write("broken.parquet", b"PAR1 nothing"))
    (data.folder / "state").mkdir()
    with pytest.raises(ValueError, match="cannot be read as a data set"):
        data.write("state/state.json", {})
        data.read(read_llava_dataset, data.folder / "state")


def test_the_readers_and_their_stages():
    assert {name: reader.stages for name, reader in READERS.items()} == {
        "llava": ("2",), "llava-dataset": ("2",), "llava-pretrain": ("1",), "webvid": ("1",), "scenewalk": ("1.5",),
        "scenewalk-videos": ("1.5",), "nextqa-mc": ("2",), "nextqa-oe": ("2",), "activitynetqa": ("2",),
        "perceptiontest": ("2",),
    }  # fmt: skip
    assert all(reader.description and "\n" not in reader.description for reader in READERS.values())


def test_all_the_way_from_an_argument(data):
    data.media("videos/a.mp4")
    path = data.write("rows.json", [{"id": "1", "video": "a.mp4", "conversations": talk("<image>q", "a")}])
    [sample] = read_data(f"{path},{data.folder / 'videos'}", "2", data.report)
    assert shape(sample) == ["a.mp4", "q", "a"]
