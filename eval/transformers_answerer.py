"""`TransformersAnswerer`: any video or multi-image model of transformers in the evaluation harness.

The frames are those that a Video-Ma²mba model would see: our reader, our sampling. The rest is the model's own: its
processor, its chat template, its `generate`. Without a state to fork, every question reads the whole video again.

    model, processor = load_model("llava-hf/llava-onevision-qwen2-0.5b-ov-hf")
    answerer = TransformersAnswerer(model, processor, "llava-onevision-0.5b")

Dims: F frames, H height, W width.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from modeling_video_ma2mba.eval.ma2mba_answerer import OPTION_FORMS, common_length
from modeling_video_ma2mba.eval.parsers import LETTERS
from modeling_video_ma2mba.eval.samples import Output, Sample, View
from modeling_video_ma2mba.eval.subtitles import interleave
from modeling_video_ma2mba.eval.view_frames import nobody, view_pictures, view_times
from modeling_video_ma2mba.processing.video_errors import VideoReadError

# Pictures wait at their own size for the model's processor.
MAX_PICTURE_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Seen:
    """A view that was read: sample times in seconds, (F,), and pictures, uint8 (F, H, W, 3)."""

    view: View
    times: tuple[float, ...]
    pictures: np.ndarray


class TransformersAnswerer:
    """An `Answerer` (samples.py).

    Args:
        model: an `AutoModelForImageTextToText` in eval mode, on its device. processor: the model's.
        name: for reports: the folder or Hub name.
        option_form: how `score_options` writes an option; see `Ma2mbaAnswerer`.

    Frames are given as one video where the model's processor knows videos, and as images where it does not or where
    subtitles stand between them.

    Raises:
        ValueError: another form, or a processor without a chat template.
    """

    def __init__(self, model, processor, name: str, option_form: str = "letter") -> None:
        if option_form not in OPTION_FORMS:
            raise ValueError(f"option_form={option_form!r}: choose one of {', '.join(OPTION_FORMS)}")
        if not processor.chat_template:
            raise ValueError(f"{name} has no chat template: give a model that was trained on questions")
        self.model, self.processor, self.name, self.option_form = model, processor, name, option_form
        self.knows_videos = getattr(processor, "video_processor", None) is not None

    def watch(self, view: View, on_frame: Callable[[], None] = nobody) -> Seen:
        """Read the frames of a view; no model runs.

        Raises:
            VideoReadError: the video cannot be read, or its frames take more than `MAX_PICTURE_BYTES`.
        """
        times = view_times(view)
        pictures = None
        for place, picture in enumerate(view_pictures(view, times, on_frame)):
            if pictures is None:
                if (size := len(times) * picture.nbytes) > MAX_PICTURE_BYTES:
                    raise VideoReadError(
                        view.video,
                        f"{len(times):,} frames of {picture.shape[1]} x {picture.shape[0]} take {size / 2**30:.1f} "
                        f"GiB, allowed are {MAX_PICTURE_BYTES / 2**30:g}",
                        advice="Sample fewer frames.",
                    )
                pictures = np.empty((len(times), *picture.shape), dtype=np.uint8)
            elif picture.shape != pictures.shape[1:]:
                raise VideoReadError(view.video, "its pictures change their size", times[place])
            pictures[place] = picture
        return Seen(view, times, pictures)

    @torch.no_grad()
    def answer(self, seen: Seen, samples: Sequence[Sample]) -> list[Output]:
        """Return a greedy text for each sample, one prompt at a time."""

        def give(sample: Sample) -> Output:
            text, inputs = self._inputs(seen, sample, sample.prompt, sample.prefix)
            options = {"do_sample": False, "num_beams": 1, "max_new_tokens": sample.max_new_tokens}
            out = self.model.generate(**inputs, **options)
            said = self.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            return Output(text=said.strip(), rendered=text)

        return self._outputs(seen, samples, give)

    @torch.no_grad()
    def score_options(self, seen: Seen, samples: Sequence[Sample]) -> list[Output]:
        """Return the log-likelihoods of each sample's options, in nats, summed over the tokens of an option.

        With "letter" the options stand in the prompt, and the likelihood is that of A, B, ... behind the sample's
        prefix; with "text" the prompt is the question alone, and the likelihood is that of the option's words.
        """
        is_letter = self.option_form == "letter"

        def give(sample: Sample) -> Output:
            words = LETTERS[: len(sample.options)] if is_letter else sample.options
            prompt, prefix = (sample.prompt, sample.prefix) if is_letter else (sample.question, "")
            if not words:
                raise ValueError("it has no options")
            text, inputs = self._inputs(seen, sample, prompt, prefix)
            answered = [self._inputs(seen, sample, prompt, prefix + word)[1] for word in words]
            rows = [one["input_ids"][0].tolist() for one in answered]
            if len(set(map(tuple, rows))) < len(rows):
                raise ValueError("the tokenizer cannot tell the options apart; score them in the other form")
            start = common_length([inputs["input_ids"][0].tolist(), *rows])
            start = min(start, min(map(len, rows)) - 1)  # an option may be the beginning of another: 1 and 10
            values = tuple(self._log_likelihood(one, start) for one in answered)
            return Output(log_likelihoods=values, rendered=text)

        return self._outputs(seen, samples, give)

    def describe(self) -> dict[str, Any]:
        """Return name, class, revision where it is known, parameters, dtype, device and the forms."""
        return {
            "name": self.name,
            "kind": "transformers",
            "class": type(self.model).__name__,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "chat_template_sha256": hashlib.sha256(str(self.processor.chat_template).encode()).hexdigest(),
            "frames_as": "video" if self.knows_videos else "images",
            "option_form": self.option_form,
        }

    def _log_likelihood(self, inputs: dict, start: int) -> float:
        """Return that of the tokens from `start` on."""
        ids = inputs["input_ids"][0, start:]
        scores = self.model(**inputs).logits[0, start - 1 : -1].float().log_softmax(-1)  # (tokens, vocabulary)
        return float(scores.gather(1, ids[:, None]).sum())

    def _inputs(self, seen: Seen, sample: Sample, prompt: str, answer_start: str):
        """Return the prompt's text and the model's inputs."""
        is_video = self.knows_videos and not seen.view.subtitles
        frames: list[dict] = [{"type": "video"}]
        if not is_video:
            items = interleave(seen.times, seen.view.subtitles) if seen.view.subtitles else range(len(seen.times))
            frames = [{"type": "text", "text": one} if isinstance(one, str) else {"type": "image"} for one in items]
        messages = [{"role": "user", "content": [*frames, {"type": "text", "text": prompt}]}]
        if seen.view.system is not None:
            content = [{"type": "text", "text": seen.view.system}]
            messages.insert(0, {"role": "system", "content": content})
        # A mark in somebody's text would take a frame's place, and processors say so in many ways or not at all.
        said = [answer_start, *(part["text"] for one in messages for part in one["content"] if part["type"] == "text")]
        marks = [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video")]
        if held := [mark for mark in marks if mark and any(mark in text for text in said)]:
            raise ValueError(f"its text holds {' and '.join(held)}, which stands for frames")
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + answer_start
        media = _video(seen) if is_video else {"images": [list(seen.pictures)]}
        if (start := self.processor.tokenizer.bos_token) is not None and text.startswith(start):
            media["add_special_tokens"] = False  # the template has written it
        inputs = self.processor(text=[text], return_tensors="pt", **media)
        return text, inputs.to(self.model.device, dtype=self.model.dtype)

    def _outputs(self, seen: Seen, samples: Sequence[Sample], give: Callable[[Sample], Output]) -> list[Output]:
        """Return what `give` says to each sample; one that cannot be asked gets an error."""
        outputs = []
        for sample in samples:
            try:
                output = give(sample)
            except ValueError as error:
                output = Output(error=f"it cannot be asked: {error}")
            outputs.append(replace(output, times=seen.times))
        return outputs


def _video(seen: Seen) -> dict[str, Any]:
    """Return what a processor is given for the frames as one video."""
    count, height, width = seen.pictures.shape[:3]
    length = seen.times[-1] - seen.times[0]
    # Some models are told when the frames are: they are what was sampled, and nobody samples again.
    fps = (count - 1) / length if length > 0 else seen.view.fps or 1.0
    metadata = VideoMetadata(
        total_num_frames=count, fps=fps, frames_indices=list(range(count)), duration=count / fps,
        height=height, width=width,
    )  # fmt: skip
    return {"videos": [seen.pictures], "video_metadata": [metadata], "do_sample_frames": False}
