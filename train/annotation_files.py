"""Rows out of annotation files: json, jsonl, csv and Hugging Face `datasets` folders, from anybody.

It knows no format of a data set. Files are not trusted: sizes are limited, types checked, nothing is unpickled and no
code from data runs. A row that cannot be read becomes a `BadRow` in its place; a file that cannot be read, or lacks a
column, raises ValueError.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from modeling_video_ma2mba.train.data_report import BadRow, DataReport, printable
from modeling_video_ma2mba.train.samples import RESERVED, Sample

# A json list is loaded whole, which takes up to ten times its size; a jsonl file is read line by line at any size.
MAX_JSON_BYTES = 2 * 2**30
MAX_LINE_BYTES = 64 * 2**20

# So many rows at the head of a file without a column mean a wrong file, not bad rows.
HEAD_ROWS = 20

Row = tuple[int, Any]  # row number, and what the row holds or a BadRow


def samples_from_rows(
    file: str | os.PathLike, rows: Iterable[Row], make: Callable[[int, Any], Sample], report: DataReport
) -> Iterator[Sample]:
    """Yield `make(number, row)` for every row, and record in the report the rows for which it raises BadRow."""
    number = None
    for number, row in rows:
        report.count_rows(file)
        try:
            if isinstance(row, BadRow):
                raise row
            sample = make(number, row)
        except BadRow as bad:
            report.leave_out(file, number, row_id(row), bad)
            continue
        report.count_sample(file)
        yield sample
    if number is None:
        raise ValueError(f"{file}: holds no rows; give a file with at least one")


def json_rows(path: str | os.PathLike, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the objects of a json list or a jsonl file; those without one of `columns` come as BadRow.

    A `.json` file that does not begin with `[` is read as jsonl, which is how some are published.
    """
    return _with_columns(path, _json_rows(Path(path)), columns)


def _json_rows(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if path.suffix.lower() == ".jsonl" or not head.startswith(b"["):
            for number, row in _jsonl_rows(file):
                if number == 1 and isinstance(row, BadRow) and path.suffix.lower() != ".jsonl":
                    raise ValueError(f"{path}: neither a list of rows nor one row on each line ({row.detail})")
                yield number, row
            return
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds {_type(rows)}; give a list of rows, or one row on each line (jsonl)")
    yield from enumerate(rows, start=1)


def _jsonl_rows(file: BinaryIO) -> Iterator[Row]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            yield number, BadRow("line too long", f"more than {MAX_LINE_BYTES:,} bytes")
            continue
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape").strip()
        if text:
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError) as error:
                yield number, BadRow("not valid JSON", str(error))


def read_json(path: str | os.PathLike) -> Any:
    """Return a whole json file; raises ValueError when it is too large or no json."""
    path = Path(path)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(
                f"{path}: {size:,} bytes of JSON are more than the {MAX_JSON_BYTES:,} that are loaded at once; "
                "write it as .jsonl, one row on each line"
            )
        # Bytes that are not UTF-8 spoil the rows they are in (`text_of` finds them), not the file.
        text = file.read().decode("utf-8-sig", errors="surrogateescape")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); if the file was cut off, fetch it again") from None


def csv_rows(
    path: str | os.PathLike, columns: Sequence[str], *, has_header: bool = True, delimiter: str = ","
) -> Iterator[Row]:
    """Yield the rows of a csv file as dicts of text; the number is the line on which a row ends.

    Args:
        columns: that must be there; of a file without a header all its columns, in their order.
        delimiter: between fields.
    """
    path = Path(path)
    _open(path).close()
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(_short_lines(path, file), delimiter=delimiter)
        header = next(reader, None) if has_header else list(columns)
        if header is None:
            raise ValueError(f"{path}: is empty; give a csv file with the header {','.join(columns)}")
        check_columns(path, header, columns)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, BadRow("not valid CSV", str(error))
                continue
            if not fields:
                continue
            row: Any = dict(zip(header, fields))
            if len(fields) != len(header):
                row = BadRow("wrong number of fields", f"{len(fields)} in place of {len(header)}")
            yield reader.line_num, row


def _short_lines(path: Path, file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES:
            raise ValueError(f"{path}: has a line of more than {MAX_LINE_BYTES:,} characters; it is no csv file")
        yield line


def open_dataset(path: str | os.PathLike, columns: Sequence[str], *, streaming: bool):
    """Open a `datasets` folder: one written by `save_to_disk`, or parquet files (also a single one).

    Args:
        path: the folder, or a parquet file. Of several splits, "train" is taken.
        columns: the columns that must be there.
        streaming: read parquet files as they are, row after row; else through the Arrow cache, for rows in any order.
            Folders of `save_to_disk` are memory-mapped either way.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`.
    """
    # Here, because importing it takes seconds and most readers do without.
    import datasets
    import pyarrow

    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            dataset = datasets.load_from_disk(os.fspath(path))
        else:
            files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [str(path)]
            if not files:
                raise ValueError(
                    f"{path}: neither a folder written by save_to_disk nor one with .parquet files; "
                    "for json or jsonl give the file itself"
                )
            # A builder by name: a folder cannot bring a loading script along.
            dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
        if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            if "train" not in dataset and len(dataset) != 1:
                raise ValueError(f"{path}: has the splits {', '.join(dataset)}; give the folder of one of them")
            dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
        found = dataset.column_names or list(dataset.features or {})
    except (OSError, KeyError, TypeError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error)
        raise ValueError(f"{path}: cannot be read as a data set ({reason}); write it again") from error
    check_columns(path, found, columns)
    return dataset


def dataset_rows(name: str, dataset: Iterable[dict]) -> Iterator[Row]:
    """Yield the rows of an opened data set, numbered from 1; a damaged file raises ValueError with its name."""
    import datasets
    import pyarrow

    try:
        yield from enumerate(dataset, start=1)
    except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{name}: damaged ({error.__cause__ or error}); fetch it again") from error


def check_columns(path: str | os.PathLike, found: Iterable[str], needed: Sequence[str]) -> None:
    """Raise ValueError when a column is missing."""
    found = [str(column) for column in found]
    missing = [column for column in needed if column not in found]
    if missing:
        raise ValueError(
            f"{path}: has no column {', '.join(missing)}; needed: {', '.join(needed)}; "
            f"found: {printable(', '.join(found)) or 'none'}. Is this the right reader for the file?"
        )


def _with_columns(path: str | os.PathLike, rows: Iterable[Row], columns: Sequence[str]) -> Iterator[Row]:
    """Turn rows that are no objects or lack a column into BadRow, or raise when the whole file is like that."""
    lacking, found = 0, []
    hopeful = True  # until the first row that has all columns
    for number, row in rows:
        if isinstance(row, BadRow):
            yield number, row
        elif not isinstance(row, dict):
            yield number, BadRow("row is not an object", f"it is {_type(row)}")
        elif missing := [column for column in columns if column not in row]:
            lacking, found = lacking + 1, found or list(row)
            if hopeful and lacking == HEAD_ROWS:
                break
            yield number, BadRow("missing column", f"{', '.join(missing)} (found: {', '.join(map(str, row))})")
        else:
            hopeful = False
            yield number, row
    if hopeful and lacking:
        check_columns(path, found, columns)


def row_id(row: Any) -> str:
    """Return what a report calls the row: the first of its id-like columns that has a usable value, or ''."""
    if isinstance(row, dict):
        for column in ("id", "question_id", "qid", "videoid", "video_id", "video_name", "video"):
            if isinstance(row.get(column), (str, int)):
                return str(row[column])[:200]
    return ""


def text_of(row: dict, column: str, *, optional: bool = False) -> str:
    """Return a column's text without blanks around it; '' for a missing one if optional. Raises BadRow."""
    value = row.get(column)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{column} is {_type(value)}, must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow("not UTF-8", f"{column} has bytes or characters that are no text") from None
    if not value.strip() and not optional:
        raise BadRow(f"empty {column}")
    return value.strip()


def words_of(row: dict, column: str) -> str:
    """Return a column's text for the model to read or write: not empty, no reserved words. Raises BadRow."""
    text = text_of(row, column)
    check_words(text, column)
    return text


def check_words(text: str, column: str) -> None:
    """Raise BadRow when a text holds words that the tokenizer does not read as text."""
    reserved = [word for word in RESERVED if word in text]
    if reserved:
        raise BadRow("reserved word in text", f"{column} holds {', '.join(reserved)}")


def id_of(row: dict, column: str = "id", default: str = "") -> str:
    """Return an id as text; data sets write numbers too. A missing one is `default`. Raises BadRow."""
    value = row.get(column)
    if value is None and default:
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(row, column)


def number_of(row: dict, column: str) -> float:
    """Return a finite number. Raises BadRow."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow("wrong type", f"{column} is {_type(value)}, must be a number")
    if (isinstance(value, int) and abs(value) > 2**53) or not math.isfinite(value):
        raise BadRow("wrong number", f"{column} is {str(value)[:40]}")
    return float(value)


def index_of(row: dict, column: str, count: int) -> int:
    """Return a place in a list of `count` things, given as a whole number or as its digits. Raises BadRow."""
    value = row.get(column)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRow("wrong type", f"{column} is {_type(value)}, must be a whole number")
    if not 0 <= value < count:
        raise BadRow("wrong number", f"{column} is {str(value)[:40]}, must lie between 0 and {count - 1}")
    return value


def list_of(row: dict, column: str, kind: type) -> list:
    """Return a list whose members are all of one type. Raises BadRow."""
    value = row.get(column)
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{column} is {_type(value)}, must be a list")
    for member in value:
        if not isinstance(member, kind):
            raise BadRow("wrong type", f"{column} holds {_type(member)}, must hold {TYPE_NAMES[kind]} only")
    return value


TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "missing",
}


def _type(value: Any) -> str:
    return TYPE_NAMES.get(type(value), type(value).__name__)


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise ValueError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    return open(path, "rb")
