"""The journal of a run: what a model said, view by view, in files that survive a kill at any moment.

Each process appends to a file of its own, `journal-RANK.jsonl`: first the settings, then one line for each view
that is finished. A line counts once it ends in a newline, so that a half-written one is not there. It judges nothing.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from modeling_video_ma2mba.eval.samples import Output, Sample

# The answers about one view; a line of this size would be damage.
MAX_LINE_BYTES = 2**28

Key = tuple[str, str]  # task and id of a sample


class Journal:
    """Appends to `journal-RANK.jsonl` in a folder; a context manager. A half-written last line is cut off.

    Args:
        folder: of the run; it exists.
        rank: of this process.
        settings: plain data, the same as those of every journal there (`read_journals` checks).
    """

    def __init__(self, folder: Path, rank: int, settings: dict[str, Any]):
        path = folder / f"journal-{rank}.jsonl"
        self._file = open(path, "a+b")
        self._file.truncate(sum(len(line) for line in _whole_lines(path)))
        if not os.path.getsize(path):
            self._write({"settings": settings})

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def add(self, samples: Sequence[Sample], outputs: Sequence[Output], unreadable: bool = False) -> None:
        """Write what was said about one view; it is on the disk when this returns.

        Args:
            unreadable: the view could not be watched; a run that goes on tries it again.
        """
        answers = [{"task": one.task, "id": one.id, **asdict(output)} for one, output in zip(samples, outputs)]
        self._write({"video": str(samples[0].view.video), "unreadable": unreadable, "answers": answers})

    def _write(self, row: dict) -> None:
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_journals(folder: Path, settings: dict[str, Any]) -> tuple[dict[Key, Output], set[Key]]:
    """Return the outputs in the journals of a folder, and which of them are of views that could not be watched.

    What was watched after all stands in place of an earlier error.

    Raises:
        ValueError: a journal was written under other settings, or is damaged; says which and what differs.
    """
    outputs: dict[Key, Output] = {}
    unreadable: set[Key] = set()
    for path in sorted(folder.glob("journal-*.jsonl")):
        rows = _rows(path)
        number, head = next(rows, (1, {"settings": settings}))
        if "settings" not in head:
            raise _damaged(path, number)
        check_same(settings, head["settings"], path)
        for number, row in rows:
            try:
                answers = {(given.pop("task"), given.pop("id")): _output(given) for given in row["answers"]}
                is_unreadable = bool(row["unreadable"])
            except (KeyError, TypeError, AttributeError) as error:
                raise _damaged(path, number) from error
            for key, output in answers.items():
                if key in outputs and key not in unreadable:
                    if not is_unreadable:
                        raise ValueError(
                            f"{path}: line {number} answers {key} once more; was the same run started twice?"
                        )
                    continue
                outputs[key] = output
                (unreadable.add if is_unreadable else unreadable.discard)(key)
    return outputs, unreadable


def check_same(new: dict[str, Any], old: Any, where: Path) -> None:
    """Raise ValueError naming what differs between two settings, in dotted names."""
    new, old = _flat(json.loads(json.dumps(new))), _flat(old)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        listed = "; ".join(f"{name} was {old.get(name)!r:.80}, is {new.get(name)!r:.80}" for name in names[:8])
        raise ValueError(
            f"{where} holds a run with other settings ({listed}): go on with the same ones, or choose another --output"
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def _output(given: dict) -> Output:
    if set(given) != {field.name for field in fields(Output)}:
        raise KeyError(", ".join(given))
    lists = {"times": tuple(given["times"])}
    if given["log_likelihoods"] is not None:
        lists["log_likelihoods"] = tuple(given["log_likelihoods"])
    return Output(**{**given, **lists})


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, number) from error
        if not isinstance(row, dict):
            raise _damaged(path, number)
        yield number, row


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines that end in a newline."""
    with open(path, "rb") as file:
        while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            yield line
        if len(line) == MAX_LINE_BYTES:
            raise ValueError(f"{path}: a line of more than {MAX_LINE_BYTES:,} bytes; remove the file to begin again")


def _damaged(path: Path, number: int) -> ValueError:
    return ValueError(
        f"{path}: line {number} is damaged: remove that line to answer its video again, or choose another --output"
    )
