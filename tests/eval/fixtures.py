"""Small folders in the layout in which each benchmark is published, with generated media.

    make_benchmark("video-mme", tmp_path / "video-mme", videos=2)

Each has every kind of medium and column that its benchmark has. `say` is what an answerer that is known says.
"""

import csv
import itertools
import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_video_ma2mba.eval.parsers import LETTERS
from modeling_video_ma2mba.eval.samples import Output, Sample
from modeling_video_ma2mba.eval.task import load_task
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video

FPS = 4
SECONDS = 4
SIZE = 32
WORDS = ("lamp", "map", "cup", "knife", "rope")

# How many samples each benchmark has with two videos a part.
SAMPLES = {
    "activitynet-qa": 20, "egoschema": 2, "longvideobench": 4, "mlvu": 28, "mvbench": 80, "nextqa": 16,
    "perceptiontest": 4, "video-mme": 6, "videochatgpt": 12,
}  # fmt: skip


def make_benchmark(name: str, folder: Path, videos: int = 2) -> Path:
    """Write the benchmark into the folder, which is made, and return it.

    Args:
        name: of `task_names()`.
        videos: how many videos each part has; each has 4 s and 1 to 10 questions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _MAKERS[name](folder, videos)
    return folder


def say(sample: Sample, place: int) -> Output:
    """Return what a model would say for the option at `place`, in a form that the benchmark's own rule reads."""
    form = "{}) {}" if sample.prefix.endswith("(") else "{}. {}"
    return Output(text=form.format(LETTERS[place], sample.options[place]))


def _video(path: Path, codec: str = "libx264") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(codec, ".webm" if codec == "libvpx-vp9" else ".mp4"))


@cache
def _encoded(codec: str, ending: str) -> bytes:
    """A video of `SECONDS`; encoding is slow, and all may be the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video{ending}"
        write_video(path, numbered_frames(SECONDS * FPS, SIZE, SIZE), fps=FPS, codec=codec)
        return path.read_bytes()


def _json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _video_mme(folder: Path, videos: int) -> None:
    rows = []
    for index in range(videos):
        video = f"yt_{index:03}-AbC"
        # As published: some with an ending in capitals, some without subtitles.
        _video(folder / "data" / f"{video}.{('mp4', 'MP4')[index % 2]}")
        if index % 2 == 0:
            entries = [
                f"{i + 1}\n00:00:{i:02},000 --> 00:00:{i:02},900\n"
                f'<font color="white" size=".72c">line {i} of {video}</font>\n'
                for i in range(SECONDS)
            ]
            path = folder / "subtitle" / f"{video}.srt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(entries), encoding="utf-8")
        for number in range(3):
            rows.append(
                {
                    "video_id": f"{index + 1:03}",
                    "duration": ("short", "medium", "long")[index % 3],
                    "domain": "Knowledge",
                    "sub_category": "Geography",
                    "url": f"https://www.youtube.com/watch?v={video}",
                    "videoID": video,
                    "question_id": f"{index + 1:03}-{number + 1}",
                    "task_type": "Counting Problem",
                    "question": f"What is on table {number}?",
                    "options": [f"{letter}. A {word}." for letter, word in zip("ABCD", WORDS)],
                    "answer": "ABCD"[(index + number) % 4],
                }
            )
    (folder / "subtitle").mkdir(exist_ok=True)
    _parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)


def _longvideobench(folder: Path, videos: int) -> None:
    rows = []
    for index in range(videos):
        video = f"lvb{index}"
        _video(folder / "videos" / f"{video}.mp4")
        # The video is a part of another one, from 100 s on, in whose time the subtitles are; both shapes occur.
        if index % 2:
            subtitles = [
                {"timestamp": [100.5, 101.5], "text": "a lamp"},
                {"timestamp": [102.5, None], "text": "a map"},
            ]
        else:
            subtitles = [
                {"start": "00:01:40.500", "end": "00:01:41.500", "line": "a lamp"},
                {"start": "00:01:43.900", "end": "00:01:44.000", "line": "a map"},
            ]
        _json(folder / "subtitles" / f"{video}_en.json", subtitles)
        for number in range(2):
            rows.append(
                {
                    "video_id": video,
                    "id": f"{video}_{number}",
                    "video_path": f"{video}.mp4",
                    "subtitle_path": f"{video}_en.json",
                    "duration": float(SECONDS),
                    "duration_group": (15, 60, 600, 3600)[index % 4],
                    "question": f"When the subtitle mentions a lamp, what is on table {number}?",
                    "question_wo_referring_query": "What is on the table?",
                    "candidates": [f"a {word}" for word in WORDS[: 4 + number]],
                    "correct_choice": (index + number) % 4,
                    "question_category": ("T2O", "E2O")[number],
                    "topic_category": "TR",
                    "level": "L1-Perception",
                    "position": [3],
                    "starting_timestamp_for_subtitles": 100.0,
                    "view_count": 7,
                }
            )
    _json(folder / "lvb_val.json", rows)


def _mvbench(folder: Path, videos: int) -> None:
    for part in load_task("mvbench").parts:
        place = folder / "video" / part.folders[0]
        rows = []
        for index in range(videos):
            name = f"{part.name}{index}"
            if part.frame_rate is not None:
                (place / name).mkdir(parents=True)
                for number, picture in enumerate(numbered_frames(3 * SECONDS, SIZE, SIZE), start=1):
                    Image.fromarray(np.ascontiguousarray(picture)).save(place / name / f"{number:05}.jpg")
            else:
                name += ".webm" if part.name == "action_antonym" else ".mp4"
                _video(place / name, codec="libvpx-vp9" if name.endswith(".webm") else "libx264")
            for number in range(2):
                candidates = [f"A {word}." for word in WORDS[: 3 + number]]
                row = {"video": name, "question": f"What is on table {number}?", "candidates": candidates}
                row |= {"answer": candidates[(index + number) % 3]}
                rows.append(row | ({"start": 1.0, "end": 3.0} if part.bounds else {}))
        _json(folder / "json" / f"{part.name}.json", rows)


def _mlvu(folder: Path, videos: int) -> None:
    for part in load_task("mlvu").parts:
        rows = []
        for index in range(videos):
            name = f"{part.name}_{index}.mp4"
            _video(folder / part.folders[0] / name)
            for number in range(2):
                candidates = [f"A {word}." for word in WORDS[:4]]
                question = f"What is on table {number}?"
                row = {"video": name, "duration": SECONDS, "question": question, "candidates": candidates}
                rows.append(row | {"answer": candidates[(index + number) % 4], "question_type": part.name})
        _json(folder / part.files[0], rows)


def _activitynet_qa(folder: Path, videos: int) -> None:
    questions, answers = [], []
    for index in range(videos):
        name = f"1Abc_{index}"
        codec = "libvpx-vp9" if index % 2 else "libx264"
        _video(folder / "all_test" / f"v_{name}.{('mp4', 'webm')[index % 2]}", codec=codec)
        for number in range(10):
            id = f"v_{name}_{number}"
            questions.append({"video_name": name, "question": f"is there a tv on table {number}", "question_id": id})
            answers.append({"answer": ("no", "yes")[number % 2], "type": number % 9, "question_id": id})
    _json(folder / "test_q.json", questions)
    _json(folder / "test_a.json", list(reversed(answers)))


def _videochatgpt(folder: Path, videos: int) -> None:
    names = [f"v_abc{index}" for index in range(videos)]
    for name in names:
        _video(folder / "Test_Videos" / f"{name}.mp4")
    for part in ("generic", "temporal"):
        rows = [
            {"Q": f"What happens {word}?", "A": "She throws a javelin.", "video_name": name}
            for name, word in itertools.product(names, ("first", "last"))
        ]
        _json(folder / "Benchmarking_QA" / f"{part}_qa.json", rows)
    rows = [
        {"Q1": "What does she do?", "Q2": "Which action is it?", "A": "She throws a javelin.", "video_name": name}
        for name in names
    ]
    _json(folder / "Benchmarking_QA" / "consistency_qa.json", rows)


def _nextqa(folder: Path, videos: int) -> None:
    header = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4".split(",")
    rows, map = [], {}
    for index in range(videos):
        video = str(3238737531 + index)
        map[video] = f"1164/{video}"
        # The raw release is foldered, lmms-eval's copy is flat.
        _video(folder / "NExTVideo" / (f"{map[video]}.mp4" if index % 2 else f"{video}.mp4"))
        for number, type in enumerate(("CW", "CH", "TN", "TC", "TP", "DC", "DL", "DO")):
            answer = (index + number) % 5
            question = f"why did the girl stop at table {number}"
            rows.append(
                [video, 16, SIZE, SIZE, question, answer, number, type, *(f"to see a {word}" for word in WORDS)]
            )
    with open(folder / "test.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    _json(folder / "map_vid_vidorID.json", map)


def _perceptiontest(folder: Path, videos: int) -> None:
    content, cuts = {}, {}
    for index in range(videos):
        video = f"video_{index:04}"
        _video(folder / "videos" / f"{video}.mp4")
        cuts[video] = -1 if index % 2 else 3 * FPS  # the last second shows the answer
        questions = [
            {
                "id": number,
                "question": "Is the camera moving?",
                "options": ["no", "yes", "I don't know"],
                "answer_id": (index + number) % 3,
                "area": ("physics", "memory")[number],
                "reasoning": "descriptive",
                "tag": ["motion", "camera"],
            }
            for number in range(2)
        ]
        metadata = {"split": "valid", "video_id": video, "frame_rate": float(FPS), "num_frames": SECONDS * FPS}
        content[video] = {"metadata": metadata, "mc_question": questions}
    _json(folder / "mc_question_valid.json", content)
    _json(folder / "cut_frame_mapping_valid.json", cuts)


def _egoschema(folder: Path, videos: int) -> None:
    questions, answers = [], {}
    for index in range(videos + 1):
        id = f"0ace-{index}"
        questions.append(
            {"q_uid": id, "google_drive_id": "x", "question": "What does C do?"}
            | {f"option {place}": f"C takes the {word}. Then C rests." for place, word in enumerate(WORDS)}
        )
        if index < videos:  # the answer of the last one is not public
            answers[id] = index % 5
            _video(folder / "videos" / f"{id}.mp4")
    _json(folder / "questions.json", questions)
    _json(folder / "subset_answers.json", answers)


_MAKERS = {
    "video-mme": _video_mme,
    "longvideobench": _longvideobench,
    "mvbench": _mvbench,
    "mlvu": _mlvu,
    "activitynet-qa": _activitynet_qa,
    "videochatgpt": _videochatgpt,
    "nextqa": _nextqa,
    "perceptiontest": _perceptiontest,
    "egoschema": _egoschema,
}
