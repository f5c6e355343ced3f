"""Video-Ma²mba as a model of lmms-eval (0.7): its tasks, its prompts and its scores, our watching.

    python -m lmms_eval --model video_ma2mba --model_args pretrained=MODEL,fps=1 --tasks videomme --batch_size 8 \
        --output_path results

A video is watched once for all questions about it that one process has; `batch_size` questions are answered in one
pass behind it. Requests come in lmms-eval's two forms, simple and chat (its class attribute `is_simple`); the manifest
is in lmms_eval_manifest.py.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from modeling_video_ma2mba import VideoMemory
from modeling_video_ma2mba.eval.ma2mba_answerer import Ma2mbaAnswerer, common_length
from modeling_video_ma2mba.eval.samples import View
from modeling_video_ma2mba.pipeline_video_qa import DEFAULT_MAX_NEW_TOKENS
from modeling_video_ma2mba.processing.load_model import load_model
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.video_chat import answer, conversation

logger = logging.getLogger(__name__)

# Of a task's `generation_kwargs`; image_aspect_ratio and the like are for other models' processors.
_GREEDY = {"do_sample": (None, False), "temperature": (None, 0), "num_beams": (None, 1)}


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        visuals: a video's path, or images, in their order.
        prompt, system: texts; system None: the chat template's own.
        part: start and end of the video in seconds, where the task gives them.
    """

    visuals: tuple[str | Image.Image, ...]
    prompt: str
    system: str | None = None
    part: tuple[float | None, float | None] = (None, None)

    @property
    def view(self) -> tuple:
        """What is seen, for sorting questions about the same to each other; images are only equal to themselves."""
        return (*(one if isinstance(one, str) else id(one) for one in self.visuals), self.system, self.part)


class VideoMa2mbaSimple(lmms):
    """The model in lmms-eval's simple form, whose tasks give a text and visuals.

    Args:
        pretrained: model folder or Hub name; "tiny" is the shipped one.
        fps, num_frames: how videos are sampled, one of the two; as in the paper, 1 per second.
        batch_size: questions about one video at a time.
        device, dtype: as `load_model` takes them; with several processes each takes the device of its number.

    Raises:
        OSError, ValueError: the model cannot be loaded, or arguments contradict each other.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        fps: float | None = None,
        num_frames: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        super().__init__()
        if fps is not None and num_frames is not None:
            raise ValueError(f"fps={fps} and num_frames={num_frames} exclude each other: give one")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of 1 or more")
        self.fps = 1.0 if fps is None and num_frames is None else fps
        self.num_frames = num_frames
        self.batch_size = int(batch_size)
        from accelerate import PartialState

        process = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
        self._rank, self._world_size = process.process_index, process.num_processes
        device = str(process.device) if process.num_processes > 1 else device or "auto"
        self.model, self.processor = load_model(pretrained, device, dtype)
        self.answerer = Ma2mbaAnswerer(self.model, self.processor, pretrained)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def generate_until(self, requests) -> list[str]:
        """Return a greedy answer to each request, ended before the first of its stop texts.

        A video that cannot be read is named in the log and gets an empty answer, which lmms-eval counts as wrong: it
        knows no errors.

        Raises:
            ValueError: a request asks for sampling or beams, has no video or image, or turns of an assistant.
        """
        return self._by_view(
            [(self._asked(one.args), self._settings(one.args)) for one in requests], self._generate, "", "answering"
        )

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Return (mean loss of the continuation's tokens in nats, whether they are the greedy ones).

        It is a loss and no log-probability, whatever the base class says: lmms-eval's own multiple-choice rule and its
        tasks take the smallest. A video that cannot be read gives infinite losses, and lmms-eval the first option.
        """
        # The chat form has no requests of its own for these.
        asked = [(VideoMa2mbaSimple._asked(self, one.args), self._continuation(one.args)) for one in requests]
        return self._by_view(asked, self._losses, (float("inf"), False), "scoring")

    def clean(self) -> None:
        """Let go of the model: a judge may need the memory."""
        del self.answerer
        super().clean()

    def generate_until_multi_round(self, requests) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported: ask each round as a task of its own")

    def _asked(self, arguments: tuple) -> Asked:
        """Return a request as it is asked: (context, gen_kwargs, doc_to_visual, doc_id, task, split)."""
        context, _, doc_to_visual, doc_id, task, split = arguments
        return Asked(_flat(doc_to_visual(self.task_dict[task][split][doc_id])), context)

    def _settings(self, arguments: tuple) -> dict:
        """Return the task's `generation_kwargs`, checked."""
        settings = next(one for one in arguments if isinstance(one, dict))
        for name, allowed in _GREEDY.items():
            if settings.get(name) not in allowed:
                raise ValueError(f"{name}={settings[name]}: answers are greedy here; leave it out of the task")
        stops = settings.get("until") or []
        return {
            "max_new_tokens": settings.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS,
            "until": [stops] if isinstance(stops, str) else list(stops),
        }

    def _continuation(self, arguments: tuple) -> str:
        _, continuation, _, doc_id, task, split = arguments
        return continuation(self.task_dict[task][split][doc_id]) if callable(continuation) else continuation

    def _by_view(self, asked: Sequence[tuple[Asked, object]], give, unreadable, title: str) -> list:
        """Return what `give` says to the requests, those about one video in batches behind one watching."""
        groups: dict[tuple, list[int]] = {}
        for place, (one, _) in enumerate(asked):
            groups.setdefault(one.view, []).append(place)
        said: list = [unreadable] * len(asked)
        failed = 0
        with tqdm(total=len(asked), desc=title, unit=" requests", disable=self.rank != 0) as bar:
            for places in groups.values():
                try:
                    memory = self._watch(asked[places[0]][0])
                except VideoReadError as error:
                    failed += len(places)
                    logger.error("%s; %d requests about it have no answer", error, len(places))
                    bar.update(len(places))
                    continue
                for begin in range(0, len(places), self.batch_size):
                    batch = places[begin : begin + self.batch_size]
                    for place, one in zip(batch, give(memory, [asked[place] for place in batch])):
                        said[place] = one
                    bar.update(len(batch))
        if failed:
            logger.error("%d of %d requests are about videos that cannot be read", failed, len(asked))
        return said

    def _watch(self, asked: Asked) -> VideoMemory:
        if len(asked.visuals) == 1 and isinstance(asked.visuals[0], str):
            start, end = asked.part
            view = View(
                video=Path(asked.visuals[0]), start=start, end=end, fps=self.fps, num_frames=self.num_frames,
                system=asked.system,
            )  # fmt: skip
            return self.answerer.watch(view).memory
        if not asked.visuals or any(isinstance(one, str) for one in asked.visuals):
            raise ValueError(f"a request with {len(asked.visuals)} visuals: it needs one video, or images alone")
        pictures = iter(asked.visuals)
        return self.model.watch(pictures, processor=self.processor, system=asked.system, progress=False)

    def _ids(self, memory: VideoMemory, prompt: str, answer_start: str = "") -> list[int]:
        return self.processor.split_prompt(conversation(memory.system, prompt), answer_start=answer_start)[1]

    def _generate(self, memory: VideoMemory, batch: Sequence[tuple[Asked, dict]]) -> list[str]:
        prompts = [self._ids(memory, asked.prompt) for asked, _ in batch]
        # Of one task, and so of one length: the longest is enough for all.
        longest = max(settings["max_new_tokens"] for _, settings in batch)
        options = {"max_new_tokens": longest, "do_sample": False, "num_beams": 1}
        texts = answer(self.model, memory.state, prompts, self.processor, True, options)
        for place, (asked, settings) in enumerate(batch):
            for stop in filter(None, settings["until"]):
                texts[place] = texts[place].partition(stop)[0]
            self.cache_hook.add_partial("generate_until", (asked.prompt, settings), texts[place])
        return texts

    @torch.no_grad()
    def _losses(self, memory: VideoMemory, batch: Sequence[tuple[Asked, str]]) -> list[tuple[float, bool]]:
        found = []
        for asked, continuation in batch:
            prompt, ids = (self._ids(memory, asked.prompt, start) for start in ("", continuation))
            # The words may melt into what is before them: what differs is the continuation.
            start = common_length([prompt, ids])
            targets = torch.tensor(ids[start:], device=self.device)
            if not start or not len(targets):
                raise ValueError(f"the continuation {continuation!r:.40} has no tokens of its own")
            state = memory.state.to(self.device).fork()
            out = self.model(
                input_ids=torch.tensor([ids[:-1]], device=self.device),
                past_key_values=state,
                use_cache=True,
                logits_to_keep=len(targets),
            )
            scores = out.logits[0].float().log_softmax(-1)  # (tokens, vocabulary)
            loss = -scores.gather(1, targets[:, None]).mean()
            found.append((float(loss), bool((scores.argmax(-1) == targets).all())))
        return found


class VideoMa2mbaChat(VideoMa2mbaSimple):
    """The model in lmms-eval's chat form, whose tasks give messages."""

    is_simple = False

    def _asked(self, arguments: tuple) -> Asked:
        """Return a request as it is asked: (context, doc_to_messages, gen_kwargs, doc_id, task, split)."""
        _, doc_to_messages, _, doc_id, task, split = arguments
        visuals, texts, system, part = [], [], None, (None, None)
        for message in doc_to_messages(self.task_dict[task][split][doc_id]):
            if message["role"] == "system":
                system = "".join(one["text"] for one in message["content"])
                continue
            if message["role"] != "user" or texts:
                raise ValueError(
                    f"{task}: a conversation of several turns; this model is asked one question at a time"
                )
            for one in message["content"]:
                if one["type"] == "text":
                    texts.append(one["text"])
                elif one["type"] in ("image", "video"):
                    visuals.append(one["url"])
                    part = (one.get("start_time"), one.get("end_time"))
                else:
                    raise ValueError(f"{task}: content of type {one['type']!r}: this model sees images and videos")
        return Asked(_flat(visuals), "".join(texts), system, part)


def _flat(visuals: object) -> tuple[str | Image.Image, ...]:
    """Return a task's visuals as one tuple of paths and images."""
    if visuals is None:
        return ()
    if isinstance(visuals, (str, Path)):
        return (str(visuals),)
    if isinstance(visuals, Image.Image):
        return (visuals,)
    return tuple(one for part in visuals for one in _flat(part))
