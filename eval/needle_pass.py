"""Many needles in one pass over a haystack: what they share is read once.

A needle at place p of N frames is `haystack[:p] + needle + haystack[p:N]`. All needles share the beginning, and a
model with a state forks it: one row reads the haystack alone, and at each place a row with a needle leaves it. They
all read on in one batch, and a frame goes through the vision tower once for all rows. Lengths share, too: a row that
has read 64 frames is asked, and goes on to 256 if a needle at its place is wanted there.

So for D depths of N frames the tower sees N frames in place of D N, and the language model reads about (1 + D / 2) N
in place of D N, most of it in batches.

Dims: R rows, T tokens, V visual tokens of a frame, D model width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from modeling_video_ma2mba.eval.needle_videos import Needle, Picture
from modeling_video_ma2mba.pipeline_video_qa import pad_left
from modeling_video_ma2mba.state import RecurrentState
from modeling_video_ma2mba.video_chat import conversation

# As far as memory goes: tokens of all rows together, and pictures, which may be large before they are fitted.
TOKENS_AT_ONCE = 8192
PICTURES_AT_ONCE = 16
MAX_NEW_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A needle behind `place` frames of a haystack, asked after some lengths: `{frames of the haystack: depths}`.

    Two depths of a short haystack may be one place.
    """

    trial: int
    needle: Needle
    place: int
    lengths: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was said about a needle.

    Attributes:
        said: greedy, whole.
        is_exact: V-NIAH's rule: read with the right answer behind the question, the model's most likely token is the
            right one at every place. What it would say after the answer does not count.
    """

    said: str
    is_exact: bool


@dataclass
class Cost:
    """What was done: frames through the vision tower, frames read by rows of the language model, needles included; and
    the frames of a video for each needle, depth and length, which both would have been apart."""

    frames_encoded: int = 0
    frames_read: int = 0
    frames_read_apart: int = 0
    passes: int = 0


class Reader(Protocol):
    """A model that reads pictures row by row; states are its own."""

    def start(self) -> Any:
        """Return the state of one row that has seen nothing."""

    def read(self, state: Any, pictures: Sequence[Picture]) -> Any:
        """Return the state after the same pictures for every row; the given one stays as it was."""

    def join(self, states: Sequence[Any]) -> Any:
        """Return one state with the rows of several."""

    def select(self, state: Any, rows: Sequence[int]) -> Any:
        """Return the state of some rows."""

    def ask(self, state: Any, needles: Sequence[Needle]) -> list[Heard]:
        """Ask each row about its needle; the state stays as it was."""

    def frames_at_once(self, rows: int) -> int:
        """Return how many pictures so many rows may read in one go."""


def place_needles(
    needles: Sequence[tuple[int, Needle]], lengths: Sequence[int], depths: Sequence[float]
) -> list[Placement]:
    """Return the placements of (trial, needle) pairs: at every depth of every length, behind int(depth * length)."""
    placements = []
    for trial, needle in needles:
        places: dict[int, dict[int, tuple[float, ...]]] = {}
        for length in lengths:
            for depth in depths:
                # 0.29 * 100 is 28.999999999999996.
                asked = places.setdefault(int(depth * length + 1e-9), {})
                asked[length] = (*asked.get(length, ()), depth)
        placements += [Placement(trial=trial, needle=needle, place=p, lengths=asked) for p, asked in places.items()]
    return placements


def split_placements(placements: Sequence[Placement], rows: int) -> list[list[Placement]]:
    """Return groups for a pass each, with at most `rows` rows, the haystack's own among them.

    Short lengths share a pass, which then ends with them.
    """
    if rows < 2:
        raise ValueError(f"rows={rows} must be 2 or more: one is the haystack's own")
    ordered = sorted(placements, key=lambda one: (max(one.lengths), one.place))
    return [ordered[start : start + rows - 1] for start in range(0, len(ordered), rows - 1)]


@dataclass
class NeedlePass:
    """One pass over a haystack for some placements; `cost` is counted while it runs."""

    reader: Reader
    placements: Sequence[Placement]
    cost: Cost = field(default_factory=Cost)

    @property
    def frames(self) -> int:
        """Frames of the haystack that are read."""
        return max(max(one.lengths) for one in self.placements)

    def run(self, pictures: Iterable[Picture]) -> Iterator[tuple[Placement, int, Heard] | int]:
        """Yield (placement, length, what was said) for each question, and between them how many frames were read.

        Raises:
            ValueError: the haystack ends too early.
        """
        pictures = iter(pictures)
        self.cost.passes += 1
        state, active = self.reader.start(), []  # row 0 is the haystack's own, the others are those of `active`
        marks = sorted({mark for one in self.placements for mark in (one.place, *one.lengths)})
        read, picture = 0, None
        for mark in marks:
            while read < mark:
                count = min(mark - read, self.reader.frames_at_once(1 + len(active)))
                taken = [shown for _, shown in zip(range(count), pictures)]
                if len(taken) < count:
                    raise ValueError(f"the haystack has {read + len(taken):,} frames, and {self.frames:,} are needed")
                picture = taken[-1]
                state = self._read(state, taken, 1 + len(active))
                read += count
                yield count
            new = [one for one in self.placements if one.place == mark]
            if new:
                if picture is None:  # a needle before the first frame is drawn on it
                    picture = next(pictures)
                    pictures = _put_back(picture, pictures)
                state = self._hide(state, new, picture)
                active += new
            if asked := [row for row, one in enumerate(active) if mark in one.lengths]:
                yield from self._ask(state, active, asked, mark)
            keep = [row for row, one in enumerate(active) if max(one.lengths) > mark]
            if len(keep) < len(active):
                state = self.reader.select(state, [0, *(1 + row for row in keep)])
                active = [active[row] for row in keep]

    def _read(self, state: Any, pictures: list[Picture], rows: int) -> Any:
        self.cost.frames_encoded += len(pictures)
        self.cost.frames_read += len(pictures) * rows
        return self.reader.read(state, pictures)

    def _hide(self, state: Any, new: Sequence[Placement], picture: Picture) -> Any:
        """Return the state with a row more for each needle that stands here."""
        own, rows = self.reader.select(state, [0]), []
        for one in new:
            rows.append(self._read(own, one.needle.show(picture), 1))
        return self.reader.join([state, *rows])

    def _ask(self, state: Any, active: Sequence[Placement], rows: Sequence[int], length: int):
        asked = self.reader.select(state, [1 + row for row in rows])
        for row, heard in zip(rows, self.reader.ask(asked, [active[row].needle for row in rows])):
            self.cost.frames_read_apart += length * len(active[row].lengths[length])
            yield active[row], length, heard


def _put_back(picture: Picture, pictures: Iterator[Picture]) -> Iterator[Picture]:
    yield picture
    yield from pictures


class MemoryReader:
    """A `Reader` of a Video-Ma²mba model: what it says is what it says about the whole video in one prompt.

    Args:
        model: a `VideoMa2mbaForConditionalGeneration` in eval mode. processor: the model's.

    Raises:
        ValueError: its tower reads clips: every needle moves the clips behind it, and nothing is shared.
    """

    def __init__(self, model, processor) -> None:
        if (clip := model.config.frames_per_clip) > 1:
            raise ValueError(
                f"this model reads clips of {clip} frames; the needle test is for models that read frame by frame"
            )
        self.model, self.processor = model, processor
        self.before = processor.split_prompt(conversation(None, ""))[0]

    @torch.no_grad()
    def start(self) -> RecurrentState:
        state = self.model.model.language_model.new_state(1)
        if self.before:
            ids = torch.tensor([self.before], device=self.model.device)
            state = self.model.model(input_ids=ids, past_key_values=state, use_cache=True).past_key_values
        return state

    @torch.no_grad()
    def read(self, state: RecurrentState, pictures: Sequence[Picture]) -> RecurrentState:
        frames = torch.from_numpy(np.stack([self.processor.fit_frame(picture) for picture in pictures]))
        tokens = self.model.get_video_features(frames[None]).pooler_output.flatten(0, 1)  # (frames V, D)
        embeds = tokens[None].expand(state.batch_size, -1, -1)
        return self.model.model(inputs_embeds=embeds, past_key_values=state.fork(), use_cache=True).past_key_values

    def join(self, states: Sequence[RecurrentState]) -> RecurrentState:
        conv, ssm = ([torch.cat(rows) for rows in zip(*parts)] for parts in zip(*((s.conv, s.ssm) for s in states)))
        return RecurrentState(conv, ssm, states[0].seen_tokens)

    def select(self, state: RecurrentState, rows: Sequence[int]) -> RecurrentState:
        return state.select(torch.tensor(rows))

    @torch.no_grad()
    def ask(self, state: RecurrentState, needles: Sequence[Needle]) -> list[Heard]:
        state = state.fork()
        # Rows have seen different numbers of tokens, and nothing here depends on them.
        state.seen_tokens = 0
        prompts = [self._ids(needle.question) for needle in needles]
        answered = [self._ids(needle.question, needle.answer) for needle in needles]
        wanted = [ids[len(prompt) :] for prompt, ids in zip(prompts, answered)]
        for needle, prompt, ids, answer in zip(needles, prompts, answered, wanted):
            if ids[: len(prompt)] != prompt or not answer:
                raise ValueError(f"{needle.name}: the answer {needle.answer!r:.40} has no tokens of its own")
        ids, mask = self._padded(prompts)
        options = {"do_sample": False, "num_beams": 1, "max_new_tokens": MAX_NEW_TOKENS}
        rows = self.model.generate(input_ids=ids, attention_mask=mask, past_key_values=state, **options)
        said = self.processor.tokenizer.batch_decode(rows[:, ids.shape[1] :], skip_special_tokens=True)

        # The last token of the answer is predicted, not read.
        ids, mask = self._padded([ids[:-1] for ids in answered])
        longest = max(map(len, wanted))
        logits = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=state.fork(), use_cache=True, logits_to_keep=longest
        ).logits  # (R, longest, vocabulary), rows end at the right
        best = logits.argmax(dim=-1).tolist()
        exact = [row[-len(answer) :] == answer for row, answer in zip(best, wanted)]
        return [Heard(said=text.strip(), is_exact=one) for text, one in zip(said, exact)]

    def frames_at_once(self, rows: int) -> int:
        return max(1, min(PICTURES_AT_ONCE, TOKENS_AT_ONCE // (rows * self.model.config.tokens_per_frame)))

    def _ids(self, question: str, answer_start: str = "") -> list[int]:
        return self.processor.split_prompt(conversation(None, question), answer_start=answer_start)[1]

    def _padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = pad_left([torch.tensor(row) for row in rows], self.model.config.get_text_config().pad_token_id)
        return ids.to(self.model.device), mask.to(self.model.device)
