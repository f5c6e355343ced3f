"""What a training sample is: media and text in the order the model reads them. Nothing here opens a file.

One representation serves all stages: `Sample.pieces` is a sequence of `Media` and `Text`, of one of two kinds.

- captions (stages 1 and 1.5): media, caption, media, caption, ...; stage 1 has one pair, stage 1.5 one pair for each
  clip of a long video.
- conversation (stage 2): user turn, answer, user turn, answer, ...; a user turn is text with media before, after or
  between; with one video it stands once, first, and every later turn reads it out of the state.

Loss belongs on `caption` and `assistant` texts (`Text.is_target`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modeling_video_ma2mba.train.data_report import DataReport

PLACEHOLDERS = ("<image>", "<video>")

# Words that the tokenizer turns into pixels that are not there, or into the end of a turn.
RESERVED = (*PLACEHOLDERS, "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>")

# Captions of the data sets in use have some hundred words, answers to questions rarely more than forty.
DESCRIPTION_WORDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """An image, a video, or a folder of frames, or a part of the last two.

    Attributes:
        kind: "image", "video", or "frames" (a folder of pictures, in the order of their names).
        path: the file or folder.
        start, end: seconds; None is the beginning and the end.
        fps: pictures per second of a "frames" folder, None for the other kinds.
    """

    kind: Literal["image", "video", "frames"]
    path: Path
    start: float | None = None
    end: float | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("image", "video", "frames"):
            raise ValueError(f"kind={self.kind!r} of {self.path} is unknown; choose image, video or frames")
        if (self.kind == "frames") != (self.fps is not None) or (self.fps is not None and not self.fps > 0):
            raise ValueError(f"fps={self.fps} of {self.path}: a folder of frames needs fps above 0, other media none")
        start = 0.0 if self.start is None else self.start
        if not start >= 0 or (self.end is not None and not self.end > start):
            raise ValueError(
                f"start={self.start}, end={self.end} of {self.path}: must be 0 <= start < end, in seconds"
            )
        if self.kind == "image" and (self.start, self.end) != (None, None):
            raise ValueError(
                f"start={self.start}, end={self.end} of {self.path}: an image has no times; leave them None"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A piece of text: of a question ("user"), an answer ("assistant"), or a description ("caption")."""

    role: Literal["user", "assistant", "caption"]
    text: str

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant", "caption"):
            raise ValueError(f"role={self.role!r} is unknown; choose user, assistant or caption")
        if not self.text.strip():
            raise ValueError(f"a {self.role} text is empty")
        if any(word in self.text for word in RESERVED):
            raise ValueError(f"a {self.role} text holds a reserved word ({', '.join(RESERVED)}): {self.text[:80]!r}")

    @property
    def is_target(self) -> bool:
        """Whether the model learns to write this text."""
        return self.role != "user"


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One training sample.

    Attributes:
        id: as the data set names it; not always unique.
        source: the data set or file it came from.
        pieces: media and text, in the order the model reads them; see the head of this file.
    """

    id: str
    source: str
    pieces: tuple[Media | Text, ...]

    def __post_init__(self) -> None:
        problem = _problem(self.pieces)
        if problem:
            raise ValueError(f"sample {self.id!r} of {self.source}: {problem}")

    @property
    def media(self) -> tuple[Media, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Media))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The questions and answers of a conversation, without its media; empty for captions."""
        turns, question = [], []
        for piece in self.pieces:
            if isinstance(piece, Media) or piece.role == "caption":
                continue
            if piece.role == "user":
                question.append(piece.text)
            else:
                turns.append(Turn("\n".join(question), piece.text))
                question = []
        return tuple(turns)


def _problem(pieces: Sequence[Media | Text]) -> str:
    """Return what is wrong with the order of the pieces, or an empty string."""
    roles = ["media" if isinstance(piece, Media) else piece.role for piece in pieces]
    if "media" not in roles:
        return "it has no image or video"
    if "caption" in roles:
        in_pairs = roles == ["media", "caption"] * (len(roles) // 2)
        return "" if in_pairs else f"captions come as media, caption, media, caption; found {', '.join(roles)}"
    asked = False
    for role in roles:
        if role == "user":
            asked = True
        elif role == "assistant":
            if not asked:
                return f"every answer needs a question before it; found {', '.join(roles)}"
            asked = False
    return "" if roles[-1] == "assistant" else f"a conversation ends with an answer; found {', '.join(roles)}"


def captioned(*, id: str, source: str, media: Media, caption: str) -> Sample:
    """Return a stage 1 sample: one image or video and its caption."""
    return Sample(id=id, source=source, pieces=(media, Text(role="caption", text=caption)))


def interleaved(*, id: str, source: str, clips: Iterable[tuple[Media, str]]) -> Sample:
    """Return a stage 1.5 sample: the clips of one long video, each with its caption behind it, in the order given."""
    pieces: list[Media | Text] = []
    for clip, caption in clips:
        pieces += [clip, Text(role="caption", text=caption)]
    return Sample(id=id, source=source, pieces=tuple(pieces))


def conversation(*, id: str, source: str, media: Media, turns: Iterable[Turn]) -> Sample:
    """Return a stage 2 sample: one image or video, then questions and answers about it."""
    pieces: list[Media | Text] = [media]
    for turn in turns:
        pieces += [Text(role="user", text=turn.question), Text(role="assistant", text=turn.answer)]
    return Sample(id=id, source=source, pieces=tuple(pieces))


def grouped(samples: Iterable[Sample], report: DataReport | None = None) -> list[Sample]:
    """Join all conversations about one image or video (or one part of it) into one sample, as the paper does.

    The paper does not fix the order of the turns. Here: questions first, descriptions (an answer of more than
    `DESCRIPTION_WORDS` words) last, so that an answer has to be read out of the video and not out of a description
    before it. Within both, rows are ordered by a hash of file name and question: the same on every machine and for any
    order of the input, and each kind of question comes to stand right behind the video, as in evaluation. The turns of
    one row stay together, in their order, as later ones may refer to earlier ones. A row whose turns are all in the
    group already is dropped.

    Groups come in the order in which their video appears first, under the id of that first row. Samples with captions,
    with several media or with text before the media are returned as they are. It holds everything in memory.

    Args:
        samples: any samples.
        report: is told how many samples there were before and after.
    """
    groups: dict[Media | int, list[Sample]] = {}
    before = 0
    for sample in samples:
        groups.setdefault(sample.pieces[0] if _is_groupable(sample) else before, []).append(sample)
        before += 1
    joined = [group[0] if len(group) == 1 else _join(group) for group in groups.values()]
    if report is not None:
        report.note_grouping(before, len(joined))
    return joined


def _is_groupable(sample: Sample) -> bool:
    texts = sample.pieces[1:]
    return isinstance(sample.pieces[0], Media) and all(isinstance(p, Text) and p.role != "caption" for p in texts)


def _join(group: list[Sample]) -> Sample:
    media = group[0].pieces[0]

    def place(turns: tuple[Turn, ...]) -> tuple[bool, bytes]:
        describes = any(len(turn.answer.split()) > DESCRIPTION_WORDS for turn in turns)
        words = "\0".join([media.path.name, *(text for turn in turns for text in (turn.question, turn.answer))])
        return describes, hashlib.sha256(words.encode()).digest()

    turns: dict[Turn, None] = {}
    for row in sorted({sample.turns for sample in group}, key=place):
        if not all(turn in turns for turn in row):
            turns.update(dict.fromkeys(row))
    source = "+".join(dict.fromkeys(sample.source for sample in group))
    return conversation(id=group[0].id, source=source, media=media, turns=turns)
