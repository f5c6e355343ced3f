"""`Ma2mbaAnswerer`: a Video-Ma²mba model in the evaluation harness.

It watches a view once; every question about it goes on from forks of that one memory, many in one pass.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modeling_video_ma2mba import VideoMemory
from modeling_video_ma2mba.eval.likelihoods import log_likelihoods
from modeling_video_ma2mba.eval.parsers import LETTERS
from modeling_video_ma2mba.eval.samples import Output, Sample, View
from modeling_video_ma2mba.eval.subtitles import interleave
from modeling_video_ma2mba.eval.view_frames import nobody, view_pictures, view_times
from modeling_video_ma2mba.model_fingerprint import model_fingerprint
from modeling_video_ma2mba.video_chat import answer, conversation

# Each has a copy of the memory: 170 MB in the largest model.
QUESTIONS_AT_ONCE = 8

# How options are scored: by the letter, behind a prompt that lists them; or by their text, behind the bare question.
OPTION_FORMS = ("letter", "text")


@dataclass(frozen=True)
class Seen:
    """A view that was watched: `times` of its frames in seconds (F,); `shown`: frames and texts as they were read."""

    memory: VideoMemory
    times: tuple[float, ...]
    shown: str


class Ma2mbaAnswerer:
    """An `Answerer` (samples.py).

    Args:
        model: a `VideoMa2mbaForConditionalGeneration` in eval mode, on its device.
        processor: the model's.
        name: for reports: the folder or Hub name.
        option_form: how `score_options` writes an option; one of `OPTION_FORMS`.

    Raises:
        ValueError: another option form.
    """

    def __init__(self, model, processor, name: str, option_form: str = "letter"):
        if option_form not in OPTION_FORMS:
            raise ValueError(f"option_form={option_form!r}: choose one of {', '.join(OPTION_FORMS)}")
        self.model, self.processor, self.name, self.option_form = model, processor, name, option_form

    def watch(self, view: View, on_frame: Callable[[], None] = nobody) -> Seen:
        """Read the frames of a view, with its subtitles between them, into a memory.

        Raises:
            VideoReadError: the video cannot be read.
        """
        times = view_times(view)
        # In the order that they are read: frames by their number, texts as they are.
        items = interleave(times, view.subtitles) if view.subtitles else list(range(len(times)))
        pictures = view_pictures(view, times, on_frame)
        memory = self.model.watch(
            (item if isinstance(item, str) else next(pictures) for item in items),
            processor=self.processor,
            fps=view.fps or self.processor.fps,
            system=view.system,
            progress=False,
        )
        return Seen(memory, times, _shown(items, self.processor.video_token))

    def answer(self, seen: Seen, samples: Sequence[Sample]) -> list[Output]:
        """Return a greedy text for each sample; an answer that goes in circles is stopped (the paper's section 4).

        A sample whose text cannot be asked (it holds `<video>`, say) gets an error.
        """

        def give(samples: Sequence[Sample], prompts: list[list[int]]) -> list[Output]:
            texts: dict[int, str] = {}
            for limit in {sample.max_new_tokens for sample in samples}:
                rows = [row for row, sample in enumerate(samples) if sample.max_new_tokens == limit]
                settings = {"max_new_tokens": limit, "do_sample": False, "num_beams": 1}
                said = answer(
                    self.model, seen.memory.state, [prompts[row] for row in rows], self.processor, True, settings
                )
                texts |= dict(zip(rows, said))
            return [Output(text=texts[row]) for row in range(len(samples))]

        return self._outputs(seen, samples, lambda sample: sample.prompt, self._ids, give)

    def score_options(self, seen: Seen, samples: Sequence[Sample]) -> list[Output]:
        """Return the log-likelihoods of each sample's options, in nats, summed over the tokens of an option.

        With "letter" the options stand in the prompt, and the likelihood is that of A, B, ... behind the sample's
        prefix; with "text" the prompt is the question alone, and the likelihood is that of the option's words.
        """
        is_letter = self.option_form == "letter"

        def ids(sample: Sample, prompt: str) -> tuple[list[int], list[list[int]]]:
            if not 1 <= len(sample.options) <= len(LETTERS):
                raise ValueError(f"{len(sample.options)} options: their likelihood needs 1 to {len(LETTERS)}")
            words = LETTERS[: len(sample.options)] if is_letter else sample.options
            rows = [self._ids(replace(sample, prefix=sample.prefix + word), prompt) for word in words]
            if is_letter and len(set(map(tuple, rows))) < len(rows):
                raise ValueError("the tokenizer cannot tell the letters of the options apart: use --likelihood text")
            start = common_length([self._ids(sample, prompt), *rows])
            start = min(start, min(map(len, rows)) - 1)  # an option may be the beginning of another: 1 and 10
            return rows[0][:start], [row[start:] for row in rows]

        def give(samples: Sequence[Sample], prompts: list[tuple[list[int], list[list[int]]]]) -> list[Output]:
            values = log_likelihoods(self.model, seen.memory.state, *map(list, zip(*prompts)))
            return [Output(log_likelihoods=tuple(given)) for given in values]

        if is_letter:
            return self._outputs(seen, samples, lambda sample: sample.prompt, ids, give)
        bare = [replace(sample, prefix="") for sample in samples]
        return self._outputs(seen, bare, lambda sample: sample.question, ids, give)

    def describe(self) -> dict[str, Any]:
        """Return name, fingerprint, parameters, dtype, device and what the processor decides."""
        template = hashlib.sha256(self.processor.chat_template.encode()).hexdigest()
        return {
            "name": self.name,
            "kind": "video-ma2mba",
            "fingerprint": model_fingerprint(self.model),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "frame_fit": self.processor.image_processor.frame_fit,
            "chat_template_sha256": template,
        }

    def _ids(self, sample: Sample, prompt: str) -> list[int]:
        """Return the token ids behind the frames, up to the beginning of the answer."""
        return self.processor.split_prompt(conversation(sample.view.system, prompt), answer_start=sample.prefix)[1]

    def _outputs(
        self, seen: Seen, samples: Sequence[Sample], prompt_of: Callable, ids_of: Callable, give: Callable
    ) -> list[Output]:
        """Return what `give` says to the samples that can be asked, `QUESTIONS_AT_ONCE` of them at a time."""
        outputs: list[Output | None] = [None] * len(samples)
        ready = []
        for place, sample in enumerate(samples):
            try:
                ready.append((place, ids_of(sample, prompt_of(sample))))
            except ValueError as error:
                outputs[place] = Output(error=f"it cannot be asked: {error}", times=seen.times)
        for begin in range(0, len(ready), QUESTIONS_AT_ONCE):
            batch = ready[begin : begin + QUESTIONS_AT_ONCE]
            asked = [samples[place] for place, _ in batch]
            for (place, _), sample, output in zip(batch, asked, give(asked, [ids for _, ids in batch])):
                rendered = self._rendered(seen, sample, prompt_of(sample))
                outputs[place] = replace(output, rendered=rendered, times=seen.times)
        return outputs

    def _rendered(self, seen: Seen, sample: Sample, prompt: str) -> str:
        messages = conversation(sample.view.system, prompt)
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True) + sample.prefix
        return text.replace(self.processor.video_token, seen.shown, 1)


def _shown(items: Sequence[int | str], video_token: str) -> str:
    """Return one placeholder for each run of frames, with the texts between them."""
    parts = []
    for item in items:
        if isinstance(item, str):
            parts.append(item)
        elif not parts or parts[-1] != video_token:
            parts.append(video_token)
    return "".join(parts)


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """Return how many first ids all rows have in common: a letter may melt into one token with what is before it."""
    return next((place for place, ids in enumerate(zip(*rows)) if len(set(ids)) > 1), min(map(len, rows)))
