"""What became of the rows of annotation files: counts, and a list of what was left out and why.

It decides nothing but when too much is missing (`check_limit`). Readers raise `BadRow` and record it here.

    report = DataReport()
    samples = list(read_data("train.json,videos", "2", report))
    report.check_limit(0.05)
    report.write("left_out.jsonl")
"""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

SHOWN_REASONS = 3


class BadRow(ValueError):
    """A row cannot be used. `reason` is one of a few fixed phrases, `detail` says what was found in this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One entry of the list.

    Attributes:
        file: the annotation file.
        row: line of a jsonl or csv file, else place in the list, both from 1; None where there is no such number.
        id: as the row gives it, or empty.
        reason, detail: see `BadRow`.
        rows: how many rows the entry stands for; 0 when nothing was wrong with it and it was left out on request.
    """

    file: str
    row: int | None
    id: str
    reason: str
    detail: str
    rows: int


class DataReport:
    """Counts rows and samples by file and lists the rows left out."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()  # by file
        self.samples: Counter[str] = Counter()  # by file, as the readers made them
        self.left_out: list[LeftOut] = []
        self.notes: list[str] = []

    def count_rows(self, file: str | os.PathLike, rows: int = 1) -> None:
        self.rows[os.fspath(file)] += rows

    def count_sample(self, file: str | os.PathLike) -> None:
        self.samples[os.fspath(file)] += 1

    def leave_out(self, file: str | os.PathLike, row: int | None, id: str, bad: BadRow, *, rows: int = 1) -> None:
        """Record `rows` rows as left out; `rows=0` records what was left out on request, which is no fault."""
        self.left_out.append(LeftOut(os.fspath(file), row, id, bad.reason, bad.detail, rows))

    def note(self, text: str) -> None:
        """Add a line to the summary; the same line counts once."""
        if text not in self.notes:
            self.notes.append(text)

    def note_grouping(self, before: int, after: int) -> None:
        ratio = before / after if after else 0.0
        self.note(f"{before:,} samples grouped by image or video into {after:,} ({ratio:.2f} to 1)")

    @property
    def bad_rows(self) -> int:
        return sum(entry.rows for entry in self.left_out)

    def summary(self) -> str:
        """Return one line for each file, one for what was left out on request by reason, and the notes."""
        lines = []
        for file in dict.fromkeys([*self.rows, *self.samples]):
            reasons = self._reasons(file)
            bad = f" ({_in_words(reasons.most_common())})" if reasons else ""
            counts = (
                f"{self.rows[file]:,} rows, {self.samples[file]:,} samples, {reasons.total():,} rows left out{bad}"
            )
            lines.append(f"{file}: {counts}")
        on_request = Counter(entry.reason for entry in self.left_out if not entry.rows)
        lines += [f"left out on request: {count:,} samples, {reason}" for reason, count in on_request.most_common()]
        return "\n".join([*lines, *self.notes])

    def left_out_lines(self, most: int) -> list[str]:
        """Return where the first `most` bad entries are and what is wrong with each, and how many there are beyond."""
        bad = [entry for entry in self.left_out if entry.rows]
        lines = []
        for entry in bad[:most]:
            row = "" if entry.row is None else f" row {entry.row}"
            name = f" ({printable(entry.id)})" if entry.id else ""
            detail = f": {printable(entry.detail)}" if entry.detail else ""
            lines.append(f"{entry.file}{row}{name}: {entry.reason}{detail}")
        return [*lines, f"... and {len(bad) - most:,} more"] if len(bad) > most else lines

    def write(self, path: str | os.PathLike) -> None:
        """Write the list as JSON lines, one object per entry with the fields of `LeftOut`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # What was not UTF-8 in the data can be in an id.
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            for entry in self.left_out:
                file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")

    def check_limit(self, max_bad_share: float) -> None:
        """Raise ValueError when more than this share of all rows was left out, or a file gave no sample at all."""
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share={max_bad_share} must lie between 0 and 1 (0.05: five rows in a hundred)")
        empty = [file for file in self.rows if not self.samples[file]]
        if empty:
            reasons = _in_words(self._reasons(empty[0]).most_common(SHOWN_REASONS))
            raise ValueError(
                f"{empty[0]}: not one of {self.rows[empty[0]]:,} rows can be used: "
                f"{reasons}{self._example(empty[0])}. Correct the file or the media folders given with it"
            )
        rows, bad = self.rows.total(), self.bad_rows
        if rows and bad > max_bad_share * rows:
            worst = max(self.rows, key=lambda file: self._reasons(file).total())
            reasons = _in_words(self._reasons().most_common(SHOWN_REASONS))
            raise ValueError(
                f"{bad:,} of {rows:,} rows ({bad / rows:.1%}) were left out, more than "
                f"max_bad_share={max_bad_share:.1%}: {reasons}; most of them in {worst}{self._example(worst)}. "
                "Correct the file or the media folders given with it, or go on with --override max_bad_share=..."
            )

    def _reasons(self, file: str | None = None) -> Counter[str]:
        """Bad rows by reason, of one file or of all."""
        reasons: Counter[str] = Counter()
        for entry in self.left_out:
            if entry.rows and file in (None, entry.file):
                reasons[entry.reason] += entry.rows
        return reasons

    def _example(self, file: str) -> str:
        first = next((entry for entry in self.left_out if entry.rows and entry.file == file), None)
        if first is None:
            return ""
        place = "" if first.row is None else f" row {first.row}:"
        return f" (e.g.{place} {printable(first.detail or first.reason)})"


def printable(text: str) -> str:
    """Return text from data so that it can be shown: short, on one line, without codes that act on a terminal."""
    if len(text) > 200:
        head = text[:196]
        cut = head.rfind(" ")
        text = f"{head[:cut] if cut > 100 else head} ..."  # not within a word, if they are not that long
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _in_words(reasons: list[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons) or "no reason recorded"
