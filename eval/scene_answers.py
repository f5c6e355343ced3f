"""What a model answers about generated videos, one question each, with or without a control in the video's place.

    answers = evaluate(model, processor, Path("data/evaluation.json"), control="blank")

The annotations are those of `train/make_synthetic_data.py evaluation`. It counts nothing; `scene_scores.py` does.

Dims: F frames, H height, W width.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers.feature_extraction_utils import BatchFeature

from modeling_video_ma2mba import RepetitionStop
from modeling_video_ma2mba.processing.frame_sampling import check_sampling
from modeling_video_ma2mba.processing.frame_source import FrameSource
from modeling_video_ma2mba.processing.video_reader import iter_frames
from modeling_video_ma2mba.train.annotation_files import json_rows, number_of, text_of
from modeling_video_ma2mba.train.data_report import BadRow, DataReport
from modeling_video_ma2mba.train.media_index import MediaIndex
from modeling_video_ma2mba.train.read_llava import read_llava

# What the model is shown: the video, as many frames of one grey, its frames in a random order, or nothing at all.
CONTROLS = ("video", "blank", "shuffled", "question-only")
GREY = 127
MAX_NEW_TOKENS = 12  # right answers have one or two words


@dataclass(frozen=True, kw_only=True)
class SceneQuestion:
    """A row of the annotations: a question about a video. `frames`: the video's length, not how many are shown."""

    id: str
    type: str
    form: str
    frames: int
    video: Path
    question: str
    expected: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question with what was answered. `right`: the whole answer is the expected one, but for case and blanks."""

    id: str
    type: str
    form: str
    frames: int
    question: str
    expected: str
    given: str
    right: bool


def answer(asked: SceneQuestion | Answer, given: str) -> Answer:
    """Return the question with `given` as its answer, judged."""
    names = ("id", "type", "form", "frames", "question", "expected")
    right = given.lower().split() == asked.expected.lower().split()
    return Answer(**{name: getattr(asked, name) for name in names}, given=given, right=right)


def evaluate(
    model,
    processor,
    annotations: Path,
    *,
    control: str = "video",
    num_frames: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    limit: int | None = None,
) -> list[Answer]:
    """Return the model's answers under one control; see `evaluate_controls`."""
    options = {"num_frames": num_frames, "batch_size": batch_size, "seed": seed, "limit": limit}
    return evaluate_controls(model, processor, annotations, [control], **options)[control]


def evaluate_controls(
    model,
    processor,
    annotations: Path,
    controls: Sequence[str],
    *,
    num_frames: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, list[Answer]]:
    """Return the model's greedy answers under several controls, which share one decoding of each video.

    Args:
        model: a `VideoMa2mbaForConditionalGeneration` in eval mode.
        processor: its processor; videos are sampled at the processor's own rate and limit.
        annotations: evaluation.json, with the videos beside it.
        controls: of `CONTROLS`.
        num_frames: instead of the processor's rate: so many frames, uniformly, of every video.
        batch_size: questions at a time.
        seed: of the order of shuffled frames, which is another one for each row.
        limit: the first so many rows only.

    Returns:
        For each control, the answers in the order of the file.

    Raises:
        ValueError: wrong arguments, or annotations with a row that cannot be used. VideoReadError: a damaged video.
    """
    unknown = [control for control in controls if control not in CONTROLS]
    if unknown or not controls:
        raise ValueError(f"controls {', '.join(unknown) or 'are empty'}: choose from {', '.join(CONTROLS)}")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size={batch_size} and limit={limit} must be 1 or more (limit may be None)")
    check_sampling(num_frames=num_frames)
    questions = read_questions(annotations, limit)
    given = {control: [""] * len(questions) for control in controls}
    with tqdm(total=len(questions) * len(controls), desc="asking", unit=" questions") as bar:
        for batch in _batches(questions, batch_size):
            texts = [questions[index].question for index in batch]
            videos = []
            if set(controls) != {"question-only"}:
                videos = [_read_frames(processor, questions[index].video, num_frames) for index in batch]
            for control in controls:
                shown = None
                if control != "question-only":
                    shown = [_show(control, video, (seed, index)) for index, video in zip(batch, videos)]
                for index, text in zip(batch, _ask(model, processor, texts, shown)):
                    given[control][index] = text
                bar.update(len(batch))
    return {control: list(map(answer, questions, texts)) for control, texts in given.items()}


def read_questions(annotations: Path, limit: int | None = None) -> list[SceneQuestion]:
    """Return the rows of evaluation.json, the first `limit` of them; raises ValueError for one that cannot be used."""
    report = DataReport()
    rows = itertools.islice(json_rows(annotations, ["type", "form", "frames"]), limit)
    samples = itertools.islice(read_llava(annotations, MediaIndex((annotations.parent,)), report), limit)
    questions = []
    for (number, row), sample in itertools.zip_longest(rows, samples, fillvalue=(None, None)):
        if report.left_out:
            bad = report.left_out[0]
            raise ValueError(f"{annotations}: row {bad.row} cannot be used: {bad.reason} {bad.detail}".strip())
        try:
            if isinstance(row, BadRow):
                raise row
            if len(sample.turns) != 1 or [media.kind for media in sample.media] != ["video"]:
                raise BadRow("needs one video and one question", f"has {len(sample.turns)} questions")
            details = {"type": text_of(row, "type"), "form": text_of(row, "form"), "frames": number_of(row, "frames")}
        except BadRow as bad:
            raise ValueError(
                f"{annotations}: row {number}: {bad}; give a file of `make_synthetic_data.py evaluation`"
            ) from None
        (turn,), (video,) = sample.turns, sample.media
        details |= {"id": sample.id, "frames": int(details["frames"]), "video": video.path}
        questions.append(SceneQuestion(**details, question=turn.question, expected=turn.answer))
    return questions


def make_prompts(processor, questions: Sequence[str], videos: Sequence[FrameSource] | None) -> BatchFeature:
    """Return the inputs of `generate`, the prompts as `pipeline("video-qa")` has them, left-padded to one length.

    Without `videos` there is no placeholder in the prompts: they are the questions alone.
    """
    head = [] if videos is None else [{"type": "video"}]
    contents = [[*head, {"type": "text", "text": question}] for question in questions]
    texts = [
        processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        for content in contents
    ]
    return processor(text=texts, videos=videos, return_tensors="pt")


def _batches(questions: Sequence[SceneQuestion], batch_size: int) -> Iterator[list[int]]:
    """Yield row indices, rows of one length together, the longest first: what needs most memory fails at once."""

    def length(index: int) -> tuple[int, int]:
        return questions[index].frames, len(questions[index].question.split())

    order = sorted(range(len(questions)), key=length, reverse=True)
    yield from (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def _read_frames(processor, path: Path, num_frames: int | None) -> np.ndarray:
    """Return the sampled and fitted frames, uint8 (F, 3, H, W)."""
    sampling = {"fps": processor.fps, "max_frames": processor.max_frames}
    if num_frames is not None:
        sampling = {"num_frames": num_frames}
    fit = processor.image_processor.fit
    return np.stack([fit(frame) for _, chunk in iter_frames(path, **sampling) for frame in chunk])


def _show(control: str, frames: np.ndarray, seed: tuple[int, int]) -> FrameSource:
    """Return what stands in the prompt for the frames, uint8 (F, 3, H, W)."""
    if control == "blank":
        frames = np.full_like(frames, GREY)
    elif control == "shuffled":
        frames = frames[np.random.default_rng(seed).permutation(len(frames))]
    return FrameSource(frames)


def _ask(model, processor, questions: Sequence[str], videos: Sequence[FrameSource] | None) -> list[str]:
    inputs = make_prompts(processor, questions, videos)
    length = inputs["input_ids"].shape[1]
    stop = [RepetitionStop(length)]
    sequences = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stopping_criteria=stop)
    answers = processor.tokenizer.batch_decode(sequences[:, length:], skip_special_tokens=True)
    return [text.strip() for text in answers]
