"""Subtitles: reading them, shifting them to the time of the video, and the two rules for showing them.

- Video-MME gives the lines that coincide with a sampled frame, above the question (`lines_at`).
- LongVideoBench puts them between the frames (`interleave`).

It draws no text into frames and renders no prompt. Files are not trusted: their size is limited, every entry checked.
"""

import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_video_ma2mba.eval.samples import Subtitle
from modeling_video_ma2mba.train.annotation_files import check_words, list_of, read_json, text_of
from modeling_video_ma2mba.train.data_report import BadRow

# Those of a film are some hundred kB.
MAX_SUBTITLE_BYTES = 16 * 2**20

SHORTEST = 1.0  # seconds; a subtitle that is shown for less counts as if it were shown this long

_SRT_TIMES = re.compile(r"\s*(\d+:\d\d:\d\d[,.]\d+)\s*-->\s*(\d+:\d\d:\d\d[,.]\d+)")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")


def read_srt(path: str | os.PathLike) -> tuple[Subtitle, ...]:
    """Return the lines of an .srt file in their order; tags such as `<font color="white" size=".72c">` are taken off.

    Lines of one entry are joined by blanks; entries without text are left out.

    Raises:
        BadRow: no such file, too large, or an entry that is none.
    """
    path = _checked(path)
    # A wrong byte spoils a letter, not the file.
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    found = []
    for number, entry in enumerate(re.split(r"\n[ \t]*\n", text.strip()), start=1):
        lines = entry.strip().splitlines()
        place = next((i for i, line in enumerate(lines[:2]) if _SRT_TIMES.match(line)), None)
        if place is None:
            if lines:
                raise BadRow("damaged subtitles", f"{path.name}: entry {number} has no times: {lines[0][:60]!r}")
            continue
        start, end = map(_seconds, _SRT_TIMES.match(lines[place]).groups())
        words = _text({"text": " ".join(" ".join(_TAG.sub("", line) for line in lines[place + 1 :]).split())}, "text")
        if words:
            found.append(_subtitle(path, number, start, end, words))
    return tuple(found)


def read_longvideobench(path: str | os.PathLike, shift: float, duration: float) -> tuple[Subtitle, ...]:
    """Return the subtitles of a LongVideoBench json file in their order, in the time of the video that is shown.

    Both published shapes are read: `{"timestamp": [start, end], "text"}`, `{"start": "HH:MM:SS.mmm", "end", "line"}`.

    Args:
        path: the file, a list of objects.
        shift: `starting_timestamp_for_subtitles`, seconds of the original video at which the shown part begins; it is
            subtracted. Subtitles outside of the shown part stay, with times below 0 or above its length.
        duration: of the shown part, in seconds; where an end is missing it stands in for it, before the shift, as in
            the benchmark's own code.

    Raises:
        BadRow: no such file, too large, or an entry that is none.
    """
    path = _checked(path)
    try:
        entries = read_json(path)
    except ValueError as error:
        raise BadRow("damaged subtitles", str(error)) from None
    found = []
    for number, entry in enumerate(list_of({path.name: entries}, path.name, dict), start=1):
        if "timestamp" in entry:
            start, end = [*list_of(entry, "timestamp", object), None, None][:2]
            words = _text(entry, "text")
        else:
            start, end = entry.get("start"), entry.get("end")
            words = _text(entry, "line")
        start, end = (_seconds(time) if isinstance(time, str) else time for time in (start, end))
        end = duration if end is None else end
        for time in (start, end):
            if isinstance(time, bool) or not isinstance(time, (int, float)) or not math.isfinite(time):
                raise BadRow("damaged subtitles", f"{path.name}: entry {number} has the time {str(time)[:40]}")
        if words:
            # Some end before they begin once a missing end was filled in; the rule sees their middle only.
            found.append(Subtitle(start=start - shift, end=end - shift, text=words))
    return tuple(found)


def lines_at(times: Sequence[float], subtitles: Sequence[Subtitle]) -> list[str]:
    """Return the texts of the subtitles that are on while a frame is shown, each once, in their order.

    Video-MME's rule: a subtitle is taken when a time of `times` (seconds, rising) lies in [start, end).
    """
    times = list(times)
    taken = []
    for subtitle in subtitles:
        first = bisect_left(times, subtitle.start)
        if first < len(times) and times[first] < subtitle.end:
            taken.append(subtitle.text)
    return taken


def interleave(times: Sequence[float], subtitles: Sequence[Subtitle]) -> list[int | str]:
    """Return frames, as places in `times` (seconds, rising), and texts of subtitles in the order they are shown.

    LongVideoBench's rule. A subtitle stands behind the frames up to the middle of its interval, and is shown only if a
    frame lies strictly inside of its interval, which counts as `SHORTEST` around its middle when it is shorter.
    """
    times = list(times)
    shown: list[int | str] = []
    frame = 0
    for subtitle in subtitles:
        start, end = subtitle.start, subtitle.end
        middle = (start + end) / 2
        while frame < len(times) and times[frame] <= middle:
            shown.append(frame)
            frame += 1
        if end - start < SHORTEST:
            start, end = middle - SHORTEST / 2, middle + SHORTEST / 2
        first = bisect_right(times, start)
        if first < len(times) and times[first] < end:
            shown.append(subtitle.text)
    return [*shown, *range(frame, len(times))]


def _checked(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise BadRow("subtitles not found", path.name)
    if path.stat().st_size > MAX_SUBTITLE_BYTES:
        raise BadRow("subtitles too large", f"{path.name}: more than {MAX_SUBTITLE_BYTES:,} bytes")
    return path


def _seconds(text: str) -> float:
    """Return the seconds of "HH:MM:SS.mmm" or "HH:MM:SS,mmm". Raises BadRow."""
    if not re.fullmatch(r"\d{1,4}:\d{1,2}:\d{1,2}([.,]\d{1,9})?", text.strip()):
        raise BadRow("damaged subtitles", f"{text[:40]!r} is no time")
    hours, minutes, seconds = text.strip().replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _text(entry: dict[str, Any], column: str) -> str:
    """Return the words of an entry, '' if it has none. Raises BadRow for words that are no text to the tokenizer."""
    text = text_of(entry, column, optional=True)
    check_words(text, column)
    return text


def _subtitle(path: Path, number: int, start: float, end: float, text: str) -> Subtitle:
    if end < start:
        raise BadRow("damaged subtitles", f"{path.name}: entry {number} ends before it begins")
    return Subtitle(start=start, end=end, text=text)
