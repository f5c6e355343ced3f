"""`pipeline("video-qa")`: a video and a question in, an answer out; lists and batches too."""

from typing import Any

import torch
from PIL import Image
from transformers import Pipeline

from .generation_video_ma2mba import RepetitionStop

DEFAULT_MAX_NEW_TOKENS = 128
_PROCESSOR_OPTIONS = ("fps", "num_frames", "max_frames", "allow_damaged")


class _Prompt:
    """A processed question. Not a tensor or a dict, so that the base class passes it on as it is."""

    def __init__(self, inputs):
        self.inputs = inputs


class VideoQAPipeline(Pipeline):
    """Answers questions about videos.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import modeling_video_ma2mba
    >>> qa = pipeline("video-qa", model=path)
    >>> qa(video="film.mp4", question="Who wins?")
    {'answer': 'The red car.'}
    >>> qa(video="film.mp4", question=["Who wins?", "Where is it?"])  # or a list of videos, one question each
    [{'answer': 'The red car.'}, {'answer': 'On a beach.'}]
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = True

    def __call__(self, inputs=None, *, video=None, question=None, **kwargs):
        """Answer.

        Args:
            inputs: `{"video": ..., "question": ...}`, or a list or generator of these; in place of the next two.
            video: path, or frames as the processor takes them (a list of PIL images is one video); or a list.
            question: text, or a list: one for each of several videos, or several about one video.
            kwargs: `fps`, `num_frames`, `max_frames`, `allow_damaged` (for the processor), `system` (text of the
                system turn), `stop_on_repetition` (default True: the paper's rule), `batch_size`, and
                what `generate` takes.

        Returns:
            `{"answer": str}`, or a list of these where lists were given.
        """
        if inputs is None:
            inputs = _pair(video, question)
        elif video is not None or question is not None:
            raise ValueError("give either inputs or video= and question=")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, system=None, stop_on_repetition=None, batch_size=None, num_workers=None, **kwargs):
        preprocess = {name: kwargs.pop(name) for name in _PROCESSOR_OPTIONS if name in kwargs}
        if system is not None:
            preprocess["system"] = system
        forward: dict[str, Any] = {}
        if stop_on_repetition is not None:
            forward["stop_on_repetition"] = stop_on_repetition
        if kwargs:
            forward["generate_kwargs"] = kwargs
        return preprocess, forward, {}

    def preprocess(self, inputs, system=None, **processor_kwargs):
        if not isinstance(inputs, dict) or not {"video", "question"} <= set(inputs):
            raise ValueError(
                f'expected {{"video": ..., "question": ...}}, given {type(inputs).__name__}: {inputs!r:.80}'
            )
        if not isinstance(inputs["question"], str):
            raise ValueError(f"the question must be text, given {type(inputs['question']).__name__}")
        content = [{"type": "video", "video": inputs["video"]}, {"type": "text", "text": inputs["question"]}]
        messages = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        processed = self.processor(text=text, videos=[inputs["video"]], return_tensors="pt", **processor_kwargs)
        return {"prompt": _Prompt(processed)}

    def _forward(self, model_inputs, generate_kwargs=None, stop_on_repetition=True):
        prompts = model_inputs["prompt"]
        prompts = [p.inputs for p in (prompts if isinstance(prompts, list) else [prompts])]
        ids, mask = pad_left([p["input_ids"][0] for p in prompts], self.model.config.get_text_config().pad_token_id)
        videos = [video for p in prompts for video in p["pixel_values_videos"]]
        settings = {**getattr(self, "_generate_kwargs", {}), **(generate_kwargs or {})}
        if not {"max_new_tokens", "max_length", "generation_config"} & set(settings):
            settings["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS
        if stop_on_repetition:
            settings["stopping_criteria"] = [*settings.get("stopping_criteria", []), RepetitionStop(ids.shape[1])]
        sequences = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            pixel_values_videos=videos,
            **settings,
        )
        if len(sequences) != len(prompts):
            raise ValueError("num_return_sequences: the pipeline gives one answer a question; use model.generate")
        return {"sequences": sequences[:, ids.shape[1] :]}

    def postprocess(self, model_outputs):
        answer = self.processor.tokenizer.decode(model_outputs["sequences"][0], skip_special_tokens=True)
        return {"answer": answer.strip()}


def _pair(video, question) -> dict | list[dict]:
    """Return the inputs for one or several videos and questions."""
    if video is None or question is None:
        raise ValueError('give video= and question=, for example pipe(video="film.mp4", question="Who wins?")')
    # A list of pictures is one video; any other list holds videos.
    several_videos = isinstance(video, (list, tuple)) and not all(isinstance(v, Image.Image) for v in video)
    if isinstance(question, str):
        return (
            [{"video": v, "question": question} for v in video]
            if several_videos
            else {"video": video, "question": question}
        )
    videos = list(video) if several_videos else [video] * len(question)
    if len(videos) != len(question):
        raise ValueError(f"{len(videos)} videos and {len(question)} questions: give as many, or one of either")
    return [{"video": v, "question": q} for v, q in zip(videos, question)]


def pad_left(rows: list[torch.Tensor], pad_token_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask (B, T) of rows of unequal length, each a 1-D tensor."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_token_id or 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = 1
    return ids, mask


__all__ = ["VideoQAPipeline"]
