"""Read the question-answer sets NExT-QA, ActivityNet-QA and Perception Test in their own formats.

NExT-QA, multiple choice csv (`doc-doc/NExT-QA`): video, question, answer (0 to 4), qid, type, a0 ... a4, sizes;
open-ended csv (`doc-doc/NExT-OE`): the same without a0 ... a4, answer is text. Videos: `<video>.mp4`, in any folder.

ActivityNet-QA (`MILVLG/activitynet-qa`): `train_q.json` [{video_name, question, question_id}] and beside it
`train_a.json` [{answer, type, question_id}]. Videos: `v_<video_name>.mp4`, `.webm` or `.mkv`.

Perception Test (`google-deepmind/perception_test`): `mc_question_train.json`, an object by video id: {metadata:
{frame_rate, ...}, mc_question: [{id, question, options, answer_id, ...}]}; beside it `cut_frame_mapping_train.json`:
{video id: frame where the video must end, as it shows the answer afterwards; -1: nowhere}. Videos: `<video id>.mp4`.

The answer to multiple choice is the letter with the full option, and the request says so, as in LLaVA-Video-178K.
Questions without a mark at their end get a question mark, options a full stop. Short answers are asked for in the
words that evaluations use.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from modeling_video_ma2mba.train.annotation_files import (
    Row,
    csv_rows,
    id_of,
    index_of,
    json_rows,
    list_of,
    number_of,
    read_json,
    samples_from_rows,
    words_of,
)
from modeling_video_ma2mba.train.data_report import BadRow, DataReport
from modeling_video_ma2mba.train.media_index import NOT_FOUND, MediaIndex
from modeling_video_ma2mba.train.samples import Media, Sample, Turn, conversation

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_REQUEST = "Please provide your answer by stating the letter followed by the full option."
SHORT_REQUEST = "Answer the question using a single word or phrase."
NEXTQA_OPTIONS = ("a0", "a1", "a2", "a3", "a4")


def choice_turn(question: str, options: Sequence[str], answer: int) -> Turn:
    """Return a multiple choice question with lettered options, and the answer "B. to reach the toy."."""
    if not 2 <= len(options) <= len(LETTERS):
        raise BadRow("wrong number of options", f"{len(options)} options, must be 2 to {len(LETTERS)}")
    lines = [f"{letter}. {_ended(option, '.')}" for letter, option in zip(LETTERS, options)]
    return Turn("\n".join([_ended(question, "?"), *lines, LETTER_REQUEST]), lines[answer])


def short_turn(question: str, answer: str) -> Turn:
    """Return an open-ended question whose answer is a word or a phrase."""
    return Turn(f"{_ended(question, '?')} {SHORT_REQUEST}", answer)


def _ended(text: str, mark: str) -> str:
    return text if re.search(r"[.?!]['\")]?$", text) else text + mark


def read_nextqa_choice(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield a conversation of one turn for each row of a NExT-QA multiple choice csv."""

    def make(number: int, row: dict) -> Sample:
        options = [words_of(row, column) for column in NEXTQA_OPTIONS]
        return _nextqa(row, choice_turn(words_of(row, "question"), options, index_of(row, "answer", 5)), media)

    columns = ["video", "question", "answer", "qid", *NEXTQA_OPTIONS]
    return samples_from_rows(path, csv_rows(path, columns), make, report)


def read_nextqa_open(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield a conversation of one turn for each row of a NExT-QA open-ended csv."""

    def make(number: int, row: dict) -> Sample:
        if all(column in row for column in NEXTQA_OPTIONS):
            raise ValueError(f"{path}: is the multiple choice file; read it with nextqa-mc")
        return _nextqa(row, short_turn(words_of(row, "question"), words_of(row, "answer")), media)

    return samples_from_rows(path, csv_rows(path, ["video", "question", "answer", "qid"]), make, report)


def _nextqa(row: dict, turn: Turn, media: MediaIndex) -> Sample:
    video = id_of(row, "video")
    found = Media(kind="video", path=media.find_id(video, "video"))
    return conversation(id=f"{video}_{id_of(row, 'qid')}", source="nextqa", media=found, turns=[turn])


def read_activitynetqa(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield a conversation of one turn for each question; `path` is the file of the questions."""
    path = Path(path)
    if not path.name.endswith("_q.json"):
        raise ValueError(
            f"{path}: the name must end with _q.json; give the file of the questions, its answers are read from the "
            "file beside it that ends with _a.json"
        )
    answers = {}
    answer_file = path.with_name(path.name.removesuffix("_q.json") + "_a.json")
    for _, row in json_rows(answer_file, ["answer", "question_id"]):
        if isinstance(row, dict) and isinstance(row["question_id"], str):
            answers[row["question_id"]] = row

    def make(number: int, row: dict) -> Sample:
        id = id_of(row, "question_id")
        if id not in answers:
            raise BadRow("question without an answer", f"{id} is not in {answer_file.name}")
        question = words_of(row, "question")
        turn = short_turn(question[0].upper() + question[1:], words_of(answers[id], "answer"))
        name = id_of(row, "video_name").removeprefix("v_")
        video = Media(kind="video", path=_activitynet_video(name, media))
        return conversation(id=id, source="activitynetqa", media=video, turns=[turn])

    return samples_from_rows(path, json_rows(path, ["video_name", "question", "question_id"]), make, report)


def _activitynet_video(name: str, media: MediaIndex) -> Path:
    try:
        return media.find_id(f"v_{name}", "video")
    except BadRow as bad:
        if bad.reason != NOT_FOUND:
            raise
        return media.find_id(name, "video")


def read_perceptiontest(path: str | os.PathLike, media: MediaIndex, report: DataReport) -> Iterator[Sample]:
    """Yield a conversation of one turn for each multiple choice question; reports count questions."""
    path = Path(path)
    split = path.stem.removeprefix("mc_question_")
    cut_file = path.with_name(f"cut_frame_mapping_{split}.json")
    if not cut_file.is_file():
        raise ValueError(
            f"{path}: needs {cut_file.name} beside it, which says where videos end before they show the answer; it is "
            "published with the questions (write {} into it to use whole videos)"
        )
    videos, cuts = read_json(path), read_json(cut_file)
    for file, content in ((path, videos), (cut_file, cuts)):
        if not isinstance(content, dict):
            raise ValueError(f"{file}: must hold an object with a member for each video id")

    def make(number: int, row: dict) -> Sample:
        id, question = row["video_id"], row["question"]
        end = _cut_time(id, videos[id], cuts)
        options = list_of(question, "options", str)
        options = [words_of({"option": option}, "option") for option in options]
        turn = choice_turn(words_of(question, "question"), options, index_of(question, "answer_id", len(options)))
        video = Media(kind="video", path=media.find_id(id, "video"), end=end)
        id = f"{id}_{id_of(question, default=str(number))}"
        return conversation(id=id, source="perceptiontest", media=video, turns=[turn])

    return samples_from_rows(path, _perception_rows(videos), make, report)


def _perception_rows(videos: dict) -> Iterator[Row]:
    number = 0
    for id, video in videos.items():
        questions = video.get("mc_question", []) if isinstance(video, dict) else None
        if not isinstance(questions, list):
            questions = [None]
        for question in questions:
            number += 1
            if isinstance(question, dict):
                yield number, {"video_id": id, "question": question}
            else:
                yield number, BadRow("wrong type", f"a question of {id} is not an object")


def _cut_time(id: str, video: dict, cuts: dict) -> float | None:
    """Return the time at which the video must end: the frame at the cut is the first that is not shown."""
    if cuts.get(id) is None or cuts[id] == -1:
        return None
    metadata = video.get("metadata")
    if not isinstance(metadata, dict):
        raise BadRow("wrong type", "metadata is not an object")
    rate, frame = number_of(metadata, "frame_rate"), number_of(cuts, id)
    if rate <= 0 or frame <= 0:
        raise BadRow("wrong number", f"cut at frame {frame:g} with {rate:g} frames per second, must be above 0")
    return frame / rate
