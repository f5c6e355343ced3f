"""`--data` arguments and yaml mixtures name readers, files and media; shares are drawn as they say."""

import json
from pathlib import Path

import pytest

from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.mixtures import Draw, drawn
from modeling_video_ma2mba.train.readers import decontaminate, parse_data_argument, read_data, read_id_list
from modeling_video_ma2mba.train.samples import Media, Turn, conversation, interleaved


@pytest.fixture
def folder(tmp_path):
    """Media beside `rows.json` (20 rows of one video, two of them bad) and `nextqa.csv`."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = [
        {"id": i, "video": "a.mp4" if i % 10 else "gone.mp4",
         "conversations": [{"from": "human", "value": f"<image>\nq{i}"}, {"from": "gpt", "value": f"a{i}"}]}
        for i in range(20)
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "nextqa.csv").write_text(
        "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\na,9,9,9,why,0,0,CW,v,w,x,y,z\n"
    )
    return tmp_path


def mixture(folder, text):
    (folder / "mix.yaml").write_text(text)
    return str(folder / "mix.yaml")


def ids(samples):
    return [int(sample.id) for sample in samples]


@pytest.mark.parametrize(
    "text, reader, media",
    [
        ("{0}/rows.json", "llava", ["{0}"]),
        ("llava:{0}/rows.json,{0}/videos", "llava", ["{0}/videos"]),
        ("llava-pretrain: {0}/rows.json , a , b/c", "llava-pretrain", ["a", "b/c"]),
        ("nextqa-mc:{0}/nextqa.csv", "nextqa-mc", ["{0}"]),
        ("{0}", "llava-dataset", ["{0}"]),
        ("scenewalk:{0},{0}/videos", "scenewalk", ["{0}/videos"]),
    ],
)
def test_arguments(folder, text, reader, media):
    text = text.replace(": ", ":")
    [part] = parse_data_argument(text.format(folder))
    assert part.reader == reader and part.media == tuple(Path(name.format(folder)) for name in media)
    assert part.annotations.exists() and part.draw == Draw()


@pytest.mark.parametrize(
    "text, message",
    [
        ("lava:{0}/rows.json", "reader 'lava' is unknown; known: llava, "),
        ("{0}/nextqa.csv", "no reader is given for .*nextqa.csv; known readers: llava, "),
        ("llava:{0}/no.json", "there is no .*no.json"),
        ("{0}/rows.json,", "empty path"),
        ("llava:", "empty path"),
        ("llava:{0}/mix.yaml", "a mixture names its readers in the file"),
        ("{0}/no.yaml", "no such mixture file"),
    ],
)
def test_wrong_arguments(folder, text, message):
    with pytest.raises(ValueError, match=message):
        parse_data_argument(text.format(folder))


def test_a_path_with_a_colon_is_a_path(folder):
    (folder / "a:b.json").write_text("[]")
    [part] = parse_data_argument(f"{folder}/a:b.json")
    assert part.reader == "llava"


def test_a_mixture_names_any_reader_and_relative_paths(folder):
    (folder / "videos").mkdir()
    text = """
    datasets:
      - json_path: rows.json
        sampling_strategy: first:10%
      - {json_path: nextqa.csv, reader: nextqa-mc, media: videos}
      - {json_path: nextqa.csv, reader: nextqa-mc, media: [videos, .], sampling_strategy: "random:3"}
    """
    path = mixture(folder, text)
    first, second, third = parse_data_argument(path)
    assert (first.annotations, first.media, str(first.draw)) == (folder / "rows.json", (folder,), "first:10%")
    assert (second.reader, second.media, str(second.draw)) == ("nextqa-mc", (folder / "videos",), "all")
    assert third.media == (folder / "videos", folder) and third.draw == Draw("random", 3)
    assert parse_data_argument(f"{path},{folder}/videos")[0].media == (folder / "videos",)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "not valid YAML"),
        ("- a", "must hold 'datasets:'"),
        ("datasets: []", "must hold 'datasets:'"),
        ("datasets: [rows.json]", "entry 1: needs json_path"),
        ("datasets: [{json_path: rows.json}, {json_path: rows.json, weight: 2}]", "entry 2: .*unknown key weight"),
        ("datasets: [{json_path: rows.json, media: {a: b}}]", "folder or a list of folders"),
        ("datasets: [{json_path: rows.json, sampling_strategy: 10}]", "must be text"),
        ("datasets: [{json_path: rows.json, sampling_strategy: 'some'}]", "sampling_strategy='some' is unknown"),
        ("datasets: [{json_path: rows.json, reader: lava}]", "reader 'lava' is unknown"),
        ("datasets: [{json_path: gone.json}]", "there is no .*gone.json"),
        ("datasets: [{json_path: mix.yaml}]", "no reader is given"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_wrong_mixtures(folder, text, message):
    path = mixture(folder, text)
    with pytest.raises(ValueError, match=message) as raised:
        parse_data_argument(path)
    assert "mix.yaml" in str(raised.value)


@pytest.mark.parametrize(
    "text", ["first", "first:", "first:0", "end:-1", "random:101%", "random:0%", "all:3", "mid:3"]
)
def test_wrong_strategies(text):
    with pytest.raises(ValueError, match="count above 0 or a percentage"):
        Draw.parse(text)


@pytest.mark.parametrize(
    "text, taken",
    [
        ("all", range(10)),
        ("first:3", [0, 1, 2]),
        ("end:3", [7, 8, 9]),
        ("first:99", range(10)),
        ("end:99", range(10)),
        ("first:25%", [0, 1, 2]),
        ("end:0.1%", [9]),
        ("random:100%", range(10)),
    ],
)
def test_draws(text, taken):
    assert list(drawn(Draw.parse(text), lambda: iter(range(10)), lambda: 10, "0")) == list(taken)


def test_random_draws_depend_on_the_seed_alone_and_keep_the_order():
    def draw(seed):
        return tuple(drawn(Draw.parse("random:5"), lambda: iter(range(100)), lambda: 100, seed))

    assert draw("0") == draw("0") == tuple(sorted(draw("0"))) and len(set(draw("0"))) == 5
    assert len({draw(str(seed)) for seed in range(20)}) == 20
    chosen = [place for seed in range(400) for place in draw(str(seed))]
    assert all(5 <= chosen.count(place) <= 45 for place in range(100))  # 20 expected


def test_shares_count_usable_samples_and_the_report_counts_rows_once(folder):
    report = DataReport()
    path = mixture(folder, "datasets: [{json_path: rows.json, sampling_strategy: 'end:50%'}]")
    assert ids(read_data(path, "2", report)) == list(range(11, 20))  # half of 18, not of 20
    rows = str(folder / "rows.json")
    assert (report.rows[rows], report.samples[rows], report.bad_rows) == (20, 18, 2)
    assert "9 samples taken (end:50%)" in report.summary()


def test_several_arguments_and_what_was_found_by_name(folder):
    report = DataReport()
    arguments = [f"nextqa-mc:{folder}/nextqa.csv", f"{folder}/rows.json"]
    assert len(list(read_data(arguments, "2", report))) == 19 and len(report.notes) == 0
    (folder / "deep").mkdir()
    (folder / "a.mp4").rename(folder / "deep/a.mp4")
    assert len(list(read_data(arguments, "2", report))) == 19
    assert f"{folder}: 18 paths were not there and their files were found by name" in report.summary()


def test_wrong_stages_and_empty_data_are_refused_at_the_call(folder):
    with pytest.raises(ValueError, match=r"'llava' is for stage 2, not for stage 1; .* llava-pretrain, webvid$"):
        read_data(f"{folder}/rows.json", "1", DataReport())
    with pytest.raises(ValueError, match="stage='3' is unknown"):
        read_data(f"{folder}/rows.json", "3", DataReport())
    with pytest.raises(ValueError, match="no data given"):
        read_data([], "2", DataReport())
    with pytest.raises(ValueError, match=r"media folder .* is not a folder"):
        read_data(f"{folder}/rows.json,{folder}/nothing", "2", DataReport())


def test_videos_of_evaluations_are_taken_out(tmp_path):
    def about(name, id="row"):
        media = Media(kind="video", path=tmp_path / name)
        return conversation(id=id, source="set", media=media, turns=[Turn("q", "a")])

    clips = [(Media(kind="video", path=tmp_path / "long.mp4", end=1.0), "c")]
    samples = [about("v_abc.mp4"), about("ok.webm"), about("x.mp4", id="xyz"), about("abcd.mp4")]
    samples.append(interleaved(id="film", source="scenewalk", clips=clips))
    (tmp_path / "ids.txt").write_text("\ufeffabc\n\n  v_xyz \nlong.mp4\n-aB_1\n", encoding="utf-8")
    listed = read_id_list(tmp_path / "ids.txt")
    assert listed == {"abc", "v_xyz", "long.mp4", "-aB_1"}
    report = DataReport()
    assert list(decontaminate(samples, listed, report)) == [samples[1], samples[3]]
    assert [(entry.file, entry.id, entry.detail, entry.rows) for entry in report.left_out] == [
        ("set", "row", "v_abc.mp4", 0), ("set", "xyz", "xyz", 0), ("scenewalk", "film", "long.mp4", 0)
    ]  # fmt: skip
    report.check_limit(0.0)
    for content, message in ((b"\n\n", "holds no ids"), (b"\xff\xfe", "cannot be read as a list of ids")):
        (tmp_path / "ids.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_id_list(tmp_path / "ids.txt")


@pytest.mark.parametrize(
    "name, text",
    [
        ("mc.csv", "video,question\n4010069381,why\nv_ab.mp4,who\n"),
        ("qa.json", '[{"video_name": "4010069381", "q": 1}, {"video": "clips/v_ab.mp4"}]'),
        ("qa.jsonl", '{"video_id": 4010069381}\n{"videoID": "v_ab.mp4"}\n'),
        ("mc.json", '{"a": {"metadata": {"video_id": "4010069381"}}, "b": {"metadata": {"video_id": "v_ab.mp4"}}}'),
    ],
)
def test_evaluations_name_their_videos(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_id_list(tmp_path / name) == {"4010069381", "v_ab.mp4"}


def test_an_evaluation_without_videos_is_refused(tmp_path):
    (tmp_path / "qa.csv").write_text("question\nwhy\n")
    with pytest.raises(ValueError, match=r"names no video; in \.csv files they stand under video, "):
        read_id_list(tmp_path / "qa.csv")
