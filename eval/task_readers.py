"""Annotation files of benchmarks: rows in their published layouts become `Question`s.

A benchmark's rows come from a local folder (json, csv or parquet, as published) or, through `datasets`, from the hub.
Where a benchmark has two layouts, its own files are turned into the rows of the hub copy (`ROWS`), and one function
reads those (`QUESTIONS`). Every row is checked; one that cannot be used raises `BadRow`, which the task reports. It
looks for no media and renders no prompt.

Facts on the layouts: the cards and repositories named at the head of each file in `eval/tasks/`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_video_ma2mba.eval.parsers import LETTERS
from modeling_video_ma2mba.train.annotation_files import (
    Row,
    check_columns,
    csv_rows,
    dataset_rows,
    id_of,
    index_of,
    json_rows,
    list_of,
    number_of,
    open_dataset,
    read_json,
    words_of,
)
from modeling_video_ma2mba.train.data_report import BadRow

UNUSED_OPTION = "N/A"  # LongVideoBench's parquet files fill the columns of options with it
NO_QUESTION = "None"  # and VideoChatGPT's consistency rows the column of the other question
NO_CUT = -1

ACTIVITYNET_TYPES = (
    "motion", "spatial relation", "temporal relation", "yes/no", "colour", "object", "location", "number", "other",
)  # fmt: skip
NEXTQA_TYPES = ("CW", "CH", "TN", "TC", "TP", "DC", "DL", "DO")
NEXTQA_CLASSES = {"C": "causal", "T": "temporal", "D": "descriptive"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a benchmark with annotations of its own.

    Attributes:
        name: such as a task of MVBench.
        files: patterns, below the data folder, of which the first that fits is read.
        config: of the hub's data set.
        folders: where its media are, in turn.
        frame_rate: they are folders of pictures at this many a second.
        bounds: rows say which seconds to show.
        cut: folders of files that are cut to the bounds already, used where the whole file is missing.
    """

    name: str
    files: tuple[str, ...] = ()
    config: str | None = None
    folders: tuple[str, ...] = ()
    frame_rate: float | None = None
    bounds: bool = False
    cut: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A row, checked.

    Attributes:
        id: unique within the benchmark.
        videos: names of the video, tried in turn, with or without ending.
        question: as annotated.
        asked: the question as it is put into the prompt, where that differs.
        answer: an option's place, or a text.
        options: without letters.
        start, end: seconds to show.
        end_frame: in place of `end`, the first frame that must not be shown.
        groups: names and values to report by.
        subtitles: name of the subtitle file, if the benchmark has one.
        subtitle_shift, duration: seconds, see `subtitles.read_longvideobench`.
    """

    id: str
    videos: tuple[str, ...]
    question: str
    answer: int | str
    asked: str = ""
    options: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    end_frame: int | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    subtitles: str | None = None
    subtitle_shift: float = 0.0
    duration: float | None = None


def annotation_files(part: Part, folder: Path) -> list[Path]:
    """Return the annotation files of a part, empty where there are none."""
    for pattern in part.files:
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def local_rows(reader: str, columns: Sequence[str], file: Path) -> Iterator[Row]:
    """Yield the rows of an annotation file as the hub copy has them; raises ValueError for a file that is none."""
    if file.suffix == ".parquet":
        return dataset_rows(str(file), open_dataset(file, columns, streaming=True))
    if reader in ROWS:
        return ROWS[reader](file)
    return csv_rows(file, columns) if file.suffix == ".csv" else json_rows(file, columns)


def hub_rows(hub: Mapping[str, Any], config: str | None, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a data set of the hub, or of its copy in the cache.

    Raises:
        ValueError: it cannot be loaded, or lacks a column.
    """
    # Here, because importing it takes seconds and local files do without.
    import datasets
    import huggingface_hub

    name = f"{hub['dataset']} ({config or 'default'}, {hub['split']})"
    try:
        data = datasets.load_dataset(hub["dataset"], config, split=hub["split"], revision=hub["revision"])
    except (OSError, ValueError, datasets.exceptions.DatasetsError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ValueError(
            f"{name}: cannot be loaded from the hub ({str(error).splitlines()[0]}); a gated one needs your consent on "
            "its page and `hf auth login`. Or download the benchmark and give its folder"
        ) from error
    check_columns(name, data.column_names, columns)
    return dataset_rows(name, data)


def _video_mme(row: dict, number: int, part: Part) -> list[Question]:
    letters = LETTERS[:4]
    options = _texts(row, "options", len(letters))
    for letter, option in zip(letters, options):
        if not option.startswith(f"{letter}. ") or not option[3:].strip():
            raise BadRow("option without its letter", f"{option[:40]!r} must begin with {letter!r} and a dot")
    answer = words_of(row, "answer")
    if answer not in tuple(letters):
        raise BadRow("wrong answer", f"answer is {answer[:40]!r}, must be one of {', '.join(letters)}")
    video = words_of(row, "videoID")
    return [
        Question(
            id=id_of(row, "question_id"),
            videos=(video,),
            question=words_of(row, "question"),
            options=tuple(option[3:].strip() for option in options),
            answer=letters.index(answer),
            groups={name: words_of(row, name) for name in ("duration", "domain", "sub_category", "task_type")},
            subtitles=f"{video}.srt",
        )
    ]


def _longvideobench(row: dict, number: int, part: Part) -> list[Question]:
    if "candidates" in row:
        options = _texts(row, "candidates")
    else:
        columns = [f"option{place}" for place in range(5)]
        options = [words_of(row, column) for column in columns if row.get(column) not in (None, UNUSED_OPTION)]
    question = Question(
        id=id_of(row, "id"),
        videos=(words_of(row, "video_path"),),
        question=words_of(row, "question"),
        options=_options(options),
        answer=index_of(row, "correct_choice", len(options)),
        groups={
            "duration_group": str(int(number_of(row, "duration_group"))),
            "question_category": words_of(row, "question_category"),
            "topic_category": words_of(row, "topic_category"),
        },
        subtitles=words_of(row, "subtitle_path"),
        subtitle_shift=number_of(row, "starting_timestamp_for_subtitles"),
        duration=number_of(row, "duration"),
    )
    return [question]


def _mvbench(row: dict, number: int, part: Part) -> list[Question]:
    start = number_of(row, "start") if part.bounds else None
    end = number_of(row, "end") if part.bounds else None
    if part.bounds and not 0 <= start < end:
        raise BadRow("wrong number", f"start={start:g}, end={end:g}: must be 0 <= start < end, in seconds")
    return [_by_text(row, number, part, {"task": part.name}, start=start, end=end)]


def _mlvu(row: dict, number: int, part: Part) -> list[Question]:
    return [_by_text(row, number, part, {"task": part.name})]


def _by_text(row: dict, number: int, part: Part, groups: dict, **more: Any) -> Question:
    """A question whose answer is given as the text of one option."""
    options = _options(_texts(row, "candidates"))
    answer = words_of(row, "answer")
    places = [place for place, option in enumerate(options) if option == answer]
    if not places:
        raise BadRow("wrong answer", f"answer {answer[:40]!r} is none of the candidates")
    return Question(
        id=f"{part.name}:{number}",
        videos=(words_of(row, "video"),),
        question=words_of(row, "question"),
        options=options,
        answer=places[-1],  # as in MVBench's own code, should two options be the same
        groups=groups,
        **more,
    )


def _activitynet_qa(row: dict, number: int, part: Part) -> list[Question]:
    type = ACTIVITYNET_TYPES[index_of(row, "type", len(ACTIVITYNET_TYPES))]
    name = id_of(row, "video_name").removeprefix("v_")
    question = words_of(row, "question")
    found = Question(
        id=id_of(row, "question_id"),
        videos=(f"v_{name}", name),
        question=question,
        # Published without a capital and without a mark. The rest of the words stays as it is ("TV").
        asked=question[0].upper() + question[1:] + ("" if question.endswith("?") else "?"),
        answer=words_of(row, "answer"),
        groups={"type": type, "class": type if type in ACTIVITYNET_TYPES[:3] else "free"},
    )
    return [found]


def _videochatgpt(row: dict, number: int, part: Part) -> list[Question]:
    name = words_of(row, "video_name").removeprefix("v_")
    columns = ("question_1", "question_2") if part.name == "consistency" else ("question",)
    asked = [column for column in columns if row.get(column) not in (None, NO_QUESTION)]
    if not asked:
        raise BadRow("no question", f"{' and '.join(columns)} are empty")
    questions = []
    for column in asked:
        groups = {"part": part.name}
        if part.name == "consistency":
            groups["question"] = column[-1]
        questions.append(
            Question(
                id=f"{part.name}:{number}" + (f":{column[-1]}" if "question" in groups else ""),
                videos=(f"v_{name}", name),
                question=words_of(row, column),
                answer=words_of(row, "answer"),
                groups=groups,
            )
        )
    return questions


def _nextqa(row: dict, number: int, part: Part) -> list[Question]:
    video, type = id_of(row, "video"), words_of(row, "type")
    if type not in NEXTQA_TYPES:
        raise BadRow("wrong type of question", f"type is {type[:40]!r}, must be one of {', '.join(NEXTQA_TYPES)}")
    options = _options([words_of(row, f"a{place}") for place in range(5)])
    found = Question(
        id=f"{video}_{id_of(row, 'qid')}",
        videos=(video,),
        question=words_of(row, "question"),
        options=options,
        answer=index_of(row, "answer", len(options)),
        groups={"type": "TN" if type == "TP" else type, "class": NEXTQA_CLASSES[type[0]]},
    )
    return [found]


def _perceptiontest(row: dict, number: int, part: Part) -> list[Question]:
    video = words_of(row, "video_name")
    options = _options(_texts(row, "options"))
    cut = row.get("cut_frame")
    if cut is not None and (isinstance(cut, bool) or not isinstance(cut, int) or not (cut > 0 or cut == NO_CUT)):
        raise BadRow("wrong number", f"cut at frame {str(cut)[:40]}, must be above 0, or {NO_CUT} for none")
    found = Question(
        id=f"{video}_{id_of(row, 'question_id')}",
        videos=(video,),
        question=words_of(row, "question"),
        options=options,
        answer=index_of(row, "answer_id", len(options)),
        end_frame=None if cut == NO_CUT else cut,
        groups={
            "area": words_of(row, "area"),
            "reasoning": words_of(row, "reasoning"),
            "tag": ", ".join(_texts(row, "tag")) if isinstance(row.get("tag"), list) else words_of(row, "tag"),
        },
    )
    return [found]


def _egoschema(row: dict, number: int, part: Part) -> list[Question]:
    options = _texts(row, "option", 5)
    # The hub copy writes letters before the options. They are taken off as a prefix: options may hold further dots.
    options = [option.removeprefix(f"{letter}. ") for letter, option in zip(LETTERS, options)]
    id = words_of(row, "video_idx")
    answer = index_of(row, "answer", len(options))
    asked = words_of(row, "question")
    return [Question(id=id, videos=(id,), question=asked, options=_options(options), answer=answer)]


def _activitynet_rows(file: Path) -> Iterator[Row]:
    """test_q.json with the answers of test_a.json beside it, joined by `question_id`."""
    answer_file = file.with_name(file.name.removesuffix("_q.json") + "_a.json")
    answers = {}
    for _, row in json_rows(answer_file, ["answer", "type", "question_id"]):
        if isinstance(row, dict) and isinstance(row["question_id"], str):
            answers[row["question_id"]] = row
    for number, row in json_rows(file, ["video_name", "question", "question_id"]):
        if isinstance(row, dict):
            id = row["question_id"]
            if not isinstance(id, str) or id not in answers:
                row = BadRow("question without an answer", f"{str(id)[:80]} is not in {answer_file.name}")
            else:
                row = {**row, "answer": answers[id]["answer"], "type": answers[id]["type"]}
        yield number, row


def _videochatgpt_rows(file: Path) -> Iterator[Row]:
    names = {"Q": "question", "Q1": "question_1", "Q2": "question_2", "A": "answer"}
    for number, row in json_rows(file, ["A", "video_name"]):
        if isinstance(row, dict):
            row = {names.get(key, key): value for key, value in row.items()}
        yield number, row


def _perceptiontest_rows(file: Path) -> Iterator[Row]:
    """mc_question_valid.json: {video id: {metadata, mc_question: [{id, question, options, answer_id, ...}]}}."""
    number = 0
    for id, video in _object(file).items():
        questions = video.get("mc_question", []) if isinstance(video, dict) else None
        for question in questions if isinstance(questions, list) else [None]:
            number += 1
            if isinstance(question, dict):
                yield number, {**question, "video_name": id, "question_id": question.get("id")}
            else:
                yield number, BadRow("wrong type", f"a question of {id[:80]} is not an object")


def with_cuts(rows: Iterator[Row], file: Path) -> Iterator[Row]:
    """Add to Perception Test's rows the frame at which the video must end, from cut_frame_mapping_valid.json."""
    if not file.is_file():
        raise ValueError(
            f"{file}: is needed; it says where videos end before they show the answer, and is published with the "
            "questions (write {} into it to use whole videos)"
        )
    cuts = _object(file)
    for number, row in rows:
        if isinstance(row, dict) and isinstance(row.get("video_name"), str):
            row = {**row, "cut_frame": cuts.get(row["video_name"])}
        yield number, row


def _egoschema_rows(file: Path) -> Iterator[Row]:
    """questions.json, of which those in subset_answers.json beside it have a public answer."""
    answers = _object(file.with_name("subset_answers.json"))
    for number, row in json_rows(file, ["q_uid", "question"]):
        if isinstance(row, BadRow):
            yield number, row
        elif isinstance(row["q_uid"], str) and row["q_uid"] in answers:
            options = [row.get(f"option {place}") for place in range(5)]
            yield number, {**row, "video_idx": row["q_uid"], "option": options, "answer": answers[row["q_uid"]]}


def _object(file: Path) -> dict:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must hold one object, with a member for each video or question")
    return content


def _texts(row: dict, column: str, count: int | None = None) -> list[str]:
    texts = list_of(row, column, str)
    if count is not None and len(texts) != count:
        raise BadRow("wrong number of options", f"{column} holds {len(texts)}, must hold {count}")
    return [words_of({column: text}, column) for text in texts]


def _options(options: Sequence[str]) -> tuple[str, ...]:
    if not 2 <= len(options) <= len(LETTERS):
        raise BadRow("wrong number of options", f"{len(options)} options, must be 2 to {len(LETTERS)}")
    return tuple(options)


ROWS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "activitynet-qa": _activitynet_rows,
    "videochatgpt": _videochatgpt_rows,
    "perceptiontest": _perceptiontest_rows,
    "egoschema": _egoschema_rows,
}

QUESTIONS: dict[str, Callable[[dict, int, Part], list[Question]]] = {
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
