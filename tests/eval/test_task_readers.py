"""Every published layout is read, bad rows and missing media are reported by row, and nothing leaves the folder."""

import csv
import json
import shutil

import datasets
import huggingface_hub
import pytest

from modeling_video_ma2mba.eval.task import CUT_FILE, load_task
from modeling_video_ma2mba.train.data_report import DataReport
from tests.eval.fixtures import FPS, SAMPLES


def test_video_mme_subtitles_are_those_of_the_sampled_frames(benchmarks):
    task = load_task("video-mme")
    samples = task.read(benchmarks["video-mme"], subtitles=True, num_frames=2)
    # Two frames of four seconds, at 1 and 3.
    head = ["This video's subtitles are listed below:", "line 1 of yt_000-AbC", "line 3 of yt_000-AbC"]
    bare = task.read(benchmarks["video-mme"], num_frames=2, limit=1)[0]
    assert samples[0].prompt == "\n".join([*head, bare.prompt])
    assert samples[0].view.subtitles == ()
    # The second video has none, as 156 of the published ones.
    assert "listed below:\nNo subtitles available\nSelect" in samples[3].prompt


def test_longvideobench_subtitles_go_with_the_view(benchmarks):
    samples = load_task("longvideobench").read(benchmarks["longvideobench"], subtitles=True)
    assert [[(s.start, s.end, s.text) for s in sample.view.subtitles] for sample in samples[::2]] == [
        [(0.5, 1.5, "a lamp"), (pytest.approx(3.9), 4.0, "a map")],
        [(0.5, 1.5, "a lamp"), (2.5, -96.0, "a map")],  # no end: the length stands in, before the shift of 100 s
    ]
    assert len({sample.view for sample in samples}) == 2
    assert samples[0].prompt == load_task("longvideobench").read(benchmarks["longvideobench"])[0].prompt
    sampling = load_task("longvideobench").read(benchmarks["longvideobench"], num_frames=8)[0].view.sampling
    assert sampling == "longvideobench"


def test_mvbench_bounds_and_folders_of_pictures(benchmarks):
    views = {s.groups["task"]: s.view for s in load_task("mvbench").read(benchmarks["mvbench"])}
    assert (views["action_sequence"].start, views["action_sequence"].end) == (1.0, 3.0)
    assert (views["state_change"].start, views["state_change"].end) == (None, None)
    folder = views["episodic_reasoning"]
    assert folder.folder_fps == 3 and folder.video.is_dir() and (folder.video / "00001.jpg").is_file()
    assert views["action_antonym"].video.suffix == ".webm" and views["action_antonym"].folder_fps is None


def test_mvbench_files_that_are_cut_already(benchmark_copy):
    folder = benchmark_copy("mvbench")
    for old, new in (("star/Charades_v1_480", "star/Charades_segment"), ("ssv2_video", "ssv2_video_mp4")):
        (folder / "video" / old).rename(folder / "video" / new)
    shutil.rmtree(folder / "video/tvqa/frames_fps3_hq")
    (folder / "video/tvqa/video_fps3_hq_segment").mkdir()
    for name in ("episodic_reasoning0", "episodic_reasoning1"):
        source = folder / "video/perception/videos/state_change0.mp4"
        shutil.copy(source, folder / f"video/tvqa/video_fps3_hq_segment/{name}.mp4")
    views = {s.groups["task"]: s.view for s in load_task("mvbench").read(folder)}
    assert (views["action_sequence"].start, views["action_sequence"].end) == (None, None)
    assert views["episodic_reasoning"].folder_fps is None and views["episodic_reasoning"].end is None
    assert (views["action_localization"].start, views["action_localization"].end) == (1.0, 3.0)


def test_mvbench_unpacked_elsewhere_and_a_wrong_folder(benchmark_copy):
    folder = benchmark_copy("mvbench")
    (folder / "data0613").mkdir()
    (folder / "video/clevrer").rename(folder / "data0613/clevrer")
    assert len(load_task("mvbench").read(folder)) == 80
    # A name is not unique in MVBench: a file of that name in another task's folder is another video.
    (folder / "video/perception/videos/state_change0.mp4").rename(folder / "video/vlnqa/state_change0.mp4")
    report = DataReport()
    assert len(load_task("mvbench").read(folder, report=report)) == 78
    assert {(entry.row, entry.reason) for entry in report.left_out} == {(1, "media not found"), (2, "media not found")}


def test_perceptiontest_ends_before_the_answer_shows(benchmarks, benchmark_copy):
    first, *_, last = load_task("perceptiontest").read(benchmarks["perceptiontest"])
    assert first.view.end == pytest.approx(3.0) and last.view.end is None
    folder = benchmark_copy("perceptiontest")
    (folder / CUT_FILE).unlink()
    with pytest.raises(ValueError, match=r"cut_frame_mapping_valid.json: is needed.*write \{\} into it"):
        load_task("perceptiontest").read(folder)
    (folder / CUT_FILE).write_text('{"video_0000": 0}')
    with pytest.raises(ValueError, match="cut at frame 0, must be above 0, or -1"):
        load_task("perceptiontest").read(folder)
    assert FPS == 4  # frame 12 is at 3 s


def test_consistency_asks_both_questions_of_a_pair(benchmarks):
    samples = load_task("videochatgpt").read(benchmarks["videochatgpt"])
    pair = [s for s in samples if s.groups["part"] == "consistency"][:2]
    assert [s.id for s in pair] == ["consistency:1:1", "consistency:1:2"]
    assert [s.question for s in pair] == ["What does she do?", "Which action is it?"]
    assert len({(s.cluster, s.answer) for s in pair}) == 1
    assert samples[0].max_new_tokens == 1024


def test_parquet_copies_of_the_hub_are_read_too(tmp_path, benchmarks):
    """Rows with the columns of the hub, where these differ from the benchmark's own files."""
    longvideobench = {
        "video_id": "lvb0", "id": "lvb0_0", "video_path": "lvb0.mp4", "subtitle_path": "lvb0_en.json",
        "correct_choice": 2, "question": "what?", "option0": "a", "option1": "b", "option2": "c", "option3": "N/A",
        "option4": "N/A", "duration": 4.0, "duration_group": 15, "question_category": "T2O", "topic_category": "TR",
        "starting_timestamp_for_subtitles": 0.0,
    }  # fmt: skip
    egoschema = {
        "question_idx": "1", "question": "what?", "video_idx": "0ace-0", "answer": "3",
        "option": [f"{letter}. takes it. Then rests." for letter in "ABCDE"],
    }  # fmt: skip
    perception = {
        "video_name": "video_0000", "question": "what?", "question_id": "7", "options": ["a", "b", "c"],
        "answer_id": "1", "area": "physics", "reasoning": "descriptive", "tag": ["motion"],
    }  # fmt: skip
    # Each row holds one of the two questions; that of the other is the word None.
    chat = [
        {"video_name": "v_abc0", "question_1": "one?", "question_2": "None", "answer": "yes"},
        {"video_name": "v_abc0", "question_1": "None", "question_2": "two?", "answer": "yes"},
    ]
    plain = [{"video_name": "abc0", "question": "what?", "answer": "that"}]
    activity = [{"video_name": "1Abc_0", "question": "is it", "question_id": "q", "answer": "no", "type": "3"}]

    def read(name, files):
        folder = tmp_path / name
        shutil.copytree(benchmarks[name], folder, ignore=lambda _, names: [n for n in names if n.endswith("l.json")])
        for file in ("questions.json", "test_q.json", "mc_question_valid.json", "lvb_val.json"):
            (folder / file).unlink(missing_ok=True)
        shutil.rmtree(folder / "Benchmarking_QA", ignore_errors=True)
        for file, rows in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows).to_parquet(folder / file)
        return load_task(name).read(folder)

    (sample,) = read("longvideobench", {"validation-00000-of-00001.parquet": [longvideobench]})
    assert sample.options == ("a", "b", "c") and sample.answer == 2
    (sample,) = read("egoschema", {"Subset/test-00000-of-00001.parquet": [egoschema]})
    assert sample.options == ("takes it. Then rests.",) * 5 and sample.answer == 3
    (sample,) = read("perceptiontest", {"mc_question_val/validation-0.parquet": [perception]})
    assert sample.answer == 1 and sample.view.end == pytest.approx(3.0) and sample.groups["tag"] == "motion"
    chat_files = {
        "Generic/test-0.parquet": plain,
        "Temporal/test-0.parquet": plain,
        "Consistency/test-0.parquet": chat,
    }
    samples = read("videochatgpt", chat_files)
    assert [s.id for s in samples] == ["generic:1", "temporal:1", "consistency:1:1", "consistency:2:2"]
    assert len({s.cluster for s in samples}) == 1
    (sample,) = read("activitynet-qa", {"test-0.parquet": activity})
    assert sample.prompt.startswith("Is it? ") and sample.groups["type"] == "yes/no" and sample.question == "is it"


def test_annotations_from_the_hub_with_media_from_its_cache(monkeypatch, benchmark_copy):
    folder = benchmark_copy("nextqa")
    rows = list(csv.DictReader((folder / "test.csv").open()))
    asked = []

    def load(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(folder.parent))
    samples = load_task("nextqa").read(None)
    assert asked == [("lmms-lab/NExTQA", "MC", "test", None)]
    assert [s.id for s in samples] == [s.id for s in load_task("nextqa").read(folder)]

    def fail(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("gated")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"NExTQA \(MC, test\): cannot be loaded from the hub \(gated\)"):
        load_task("nextqa").read(None)
    with pytest.raises(ValueError, match="mlvu cannot be read from the hub; download it"):
        load_task("mlvu").read(None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(folder / "none"))
    with pytest.raises(ValueError, match=r"no --data was given, .* download the data set lmms-lab/NExTQA of the Hub"):
        load_task("nextqa").read(None)


def test_wrong_arguments(benchmarks, benchmark_copy):
    task = load_task("nextqa")
    with pytest.raises(ValueError, match="nextqa has no subtitles"):
        task.read(benchmarks["nextqa"], subtitles=True)
    with pytest.raises(ValueError, match="limit=0"):
        task.read(benchmarks["nextqa"], limit=0)
    with pytest.raises(ValueError, match="num_frames"):
        task.read(benchmarks["nextqa"], num_frames=8, fps=1.0)
    with pytest.raises(ValueError, match="is not a folder"):
        task.read(benchmarks["nextqa"] / "nothing")
    with pytest.raises(ValueError, match=r"1 of 1 annotation files are not below .*: test.csv or nextqa/test.csv"):
        task.read(benchmarks["mlvu"])
    folder = benchmark_copy("video-mme")
    shutil.rmtree(folder / "subtitle")
    with pytest.raises(ValueError, match="has no folder subtitle"):
        load_task("video-mme").read(folder, subtitles=True)


def test_missing_videos_and_bad_rows_are_reported_by_row(benchmark_copy):
    folder = benchmark_copy("nextqa")
    (folder / "NExTVideo/3238737531.mp4").unlink()
    with pytest.raises(
        ValueError, match=r"8 of 16 rows cannot be used.*test.csv, row 2: media not found: 3238737531.* \.\.\.$"
    ):
        load_task("nextqa").read(folder)
    report = DataReport()
    assert len(load_task("nextqa").read(folder, report=report)) == 8
    assert report.bad_rows == 8 and {entry.reason for entry in report.left_out} == {"media not found"}


def test_names_that_lead_out_of_the_folder_are_refused(benchmark_copy, tmp_path):
    shutil.copy(next(benchmark_copy("mlvu").rglob("*.mp4")), tmp_path / "secret.mp4")
    (tmp_path / "secret.json").write_text('[{"timestamp": [0.0, 9.0], "text": "secret"}]')
    for name in ("../../../../secret.mp4", "../secret.mp4", str(tmp_path / "secret.mp4")):
        file = tmp_path / "mlvu/json/1_plotQA.json"
        rows = json.loads(file.read_text())
        rows[0]["video"] = name
        file.write_text(json.dumps(rows))
        report = DataReport()
        samples = load_task("mlvu").read(tmp_path / "mlvu", report=report)
        assert len(samples) == 27 and not any("secret" in str(sample.view) for sample in samples)
    folder = benchmark_copy("longvideobench")
    rows = json.loads((folder / "lvb_val.json").read_text())
    rows[0]["subtitle_path"] = "../../secret.json"
    (folder / "lvb_val.json").write_text(json.dumps(rows))
    report = DataReport()
    assert len(load_task("longvideobench").read(folder, subtitles=True, report=report)) == 3
    assert [entry.reason for entry in report.left_out] == ["media path refused"]


# fmt: off
BAD_ROWS = {
    "mvbench": ("json/state_change.json", [
        ({"answer": "Something else."}, "wrong answer"), ({"candidates": ["A lamp."]}, "wrong number of options"),
        ({"candidates": "A lamp."}, "wrong type"), ({"question": "see <|user|>"}, "reserved word in text"),
        ({"question": " "}, "empty question"), ({"candidates": [f"x{i}" for i in range(27)], "answer": "x1"},
                                                "wrong number of options"),
    ]),
    "mlvu": ("json/3_ego.json", [({"video": "../x.mp4"}, "media not found"), ({"candidates": [1, 2]}, "wrong type")]),
    "longvideobench": ("lvb_val.json", [
        ({"correct_choice": 9}, "wrong number"), ({"correct_choice": -1}, "wrong number"),
        ({"duration_group": "x"}, "wrong type"), ({"id": "lvb0_1"}, "id is not unique"),
    ]),
    "egoschema": ("questions.json", [({"option 2": None}, "wrong type"), ({"question": 3}, "wrong type")]),
    "activitynet-qa": ("test_a.json", [
        ({"type": 9}, "wrong number"), ({"answer": None}, "wrong type"),
        ({"question_id": "x"}, "question without an answer"),
    ]),
    "videochatgpt": ("Benchmarking_QA/generic_qa.json", [({"Q": None}, "no question"), ({"A": ""}, "empty answer")]),
}
# fmt: on


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_have_a_reason(benchmark_copy, name):
    folder = benchmark_copy(name)
    file, cases = BAD_ROWS[name]
    rows = json.loads((folder / file).read_text())
    good = SAMPLES[name]
    for change, reason in cases:
        (folder / file).write_text(json.dumps([rows[0] | change, *rows[1:]]))
        report = DataReport()
        assert len(load_task(name).read(folder, report=report)) == good - 1, change
        assert [entry.reason for entry in report.left_out] == [reason], change


def test_bounds_that_are_none(benchmark_copy):
    folder = benchmark_copy("mvbench")
    file = folder / "json/action_sequence.json"
    rows = json.loads(file.read_text())
    for change in ({"start": 3.0}, {"start": -1.0}, {"end": "3"}, {"end": float("nan")}, {"start": None}):
        file.write_text(json.dumps([rows[0] | change, *rows[1:]]))
        report = DataReport()
        assert len(load_task("mvbench").read(folder, report=report, limit=3)) == 3
        assert len(report.left_out) == 1 and report.left_out[0].row == 1


def test_options_of_video_mme_carry_their_letters(benchmark_copy):
    folder = benchmark_copy("video-mme")
    file = folder / "videomme/test-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(file), keep_in_memory=True).to_list()
    cases = {
        "option without its letter": {"options": ["B. x", "A. y", "C. z", "D. w"]},
        "wrong number of options": {"options": ["A. x"]},
        "wrong answer": {"answer": "E"},
    }
    for reason, change in cases.items():
        datasets.Dataset.from_list([rows[0] | change, *rows[1:]]).to_parquet(file)
        report = DataReport()
        assert len(load_task("video-mme").read(folder, report=report)) == 5
        assert [entry.reason for entry in report.left_out] == [reason]


def test_a_video_that_cannot_be_read_does_not_stop_reading(benchmark_copy):
    folder = benchmark_copy("video-mme")
    (folder / "data/yt_000-AbC.mp4").write_bytes(b"no video")
    samples = load_task("video-mme").read(folder, subtitles=True)
    assert len(samples) == 6 and "No subtitles available" in samples[0].prompt
    folder = benchmark_copy("perceptiontest")
    (folder / "videos/video_0000.mp4").write_bytes(b"no video")
    assert len(load_task("perceptiontest").read(folder)) == 4


def test_names_of_videos_in_every_published_form(benchmark_copy):
    folder = benchmark_copy("videochatgpt")
    for file in (folder / "Benchmarking_QA").iterdir():
        file.write_text(file.read_text().replace('"v_abc', '"abc'))
    assert len(load_task("videochatgpt").read(folder)) == 12
    folder = benchmark_copy("activitynet-qa")
    (folder / "all_test").rename(folder / "anywhere")
    assert len(load_task("activitynet-qa").read(folder)) == 20
