"""Video-Ma²mba as a model of VLMEvalKit: its data sets, its prompts and its scores, our watching.

VLMEvalKit has no entry points. These two lines at the end of its vlmeval/config.py make the model known:

    from modeling_video_ma2mba.eval.vlmevalkit_plugin import VideoMa2mba
    supported_VLM["video-ma2mba"] = partial(VideoMa2mba, model_path="runs/mine")

    python run.py --model video-ma2mba --data Video-MME_1fps MVBench_MP4_8frame

The name of a data set says how its videos are sampled; where it does not, it is once a second, as in the paper. A
video is watched once for questions about it that follow each other.
"""

import logging
from pathlib import Path

from vlmeval.vlm.base import BaseModel

from modeling_video_ma2mba.eval.ma2mba_answerer import Ma2mbaAnswerer, Seen
from modeling_video_ma2mba.eval.samples import Sample, View
from modeling_video_ma2mba.eval.view_frames import read_picture
from modeling_video_ma2mba.pipeline_video_qa import DEFAULT_MAX_NEW_TOKENS
from modeling_video_ma2mba.processing.load_model import load_model
from modeling_video_ma2mba.processing.video_errors import VideoReadError

logger = logging.getLogger(__name__)

# Of VLMEvalKit: it reports such answers as failed, and asks again in the next run. Nothing may be added: a letter in
# it could be read as an option.
FAILED = "Failed to obtain answer via API."


class VideoMa2mba(BaseModel):
    """The model in VLMEvalKit.

    Args:
        model_path: model folder or Hub name; "tiny" is the shipped one.
        max_new_tokens: limit of an answer.
        device, dtype: as `load_model` takes them.

    Raises:
        OSError, ValueError: the model cannot be loaded.
    """

    VIDEO_LLM = True  # videos come as files, and not as pictures

    def __init__(
        self,
        model_path: str,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        super().__init__()
        self.max_new_tokens = max_new_tokens
        # VLMEvalKit writes a data set's sampling here before each question: it changes the one and makes the other
        # None. It does so only where both are above 0; the numbers themselves are never used.
        self.fps: float | None = 1.0
        self.nframe: int | None = 1
        self.answerer = Ma2mbaAnswerer(*load_model(model_path, device, dtype), model_path)
        self._watched: tuple[View, Seen] | None = None

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """Return a greedy answer to one video, or to images in their order, and all texts behind them.

        A video or image that cannot be read, and a text that cannot be asked, are named in the log and get `FAILED`.

        Args:
            message: items of type "text", "image" (a path) or "video" (a path) and their value; a text of role
                "system" is the system turn, one of role "assistant" the beginning of the answer.
            dataset: for the log.

        Raises:
            ValueError: there is neither one video alone nor images alone.
        """
        fps, num_frames = (None, self.nframe) if self.nframe and not self.fps else (self.fps or 1.0, None)
        self.fps, self.nframe = self.fps or 1.0, self.nframe or 1  # for the next data set, which may need the other
        texts: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
        paths: dict[str, list[Path]] = {"image": [], "video": []}
        for item in message:
            if item["type"] == "text":
                texts[item.get("role", "user")].append(item["value"])
            else:
                paths[item["type"]].append(Path(item["value"]))
        images, videos = paths["image"], paths["video"]
        if len(videos) + bool(images) != 1:
            raise ValueError(
                f"{dataset}: a question about {len(videos)} videos and {len(images)} images; this model is asked "
                "about one video, or about images alone"
            )
        system, prompt, prefix = ("\n".join(texts[role]) for role in ("system", "user", "assistant"))
        view = View(video=(videos or images)[0], fps=fps, num_frames=num_frames, system=system or None)
        sample = Sample(
            task=str(dataset), id="", cluster=str(view.video), view=view, prompt=prompt, question=prompt, answer=None,
            prefix=prefix, max_new_tokens=self.max_new_tokens,
        )  # fmt: skip
        try:
            seen = self._look_at(images, view.system) if images else self._watch(view)
        except VideoReadError as error:
            logger.error("%s: %s", dataset, error)
            return FAILED
        (output,) = self.answerer.answer(seen, [sample])
        if output.error is not None:
            logger.error("%s, %s: %s", dataset, view.video, output.error)
            return FAILED
        return output.text

    def _watch(self, view: View) -> Seen:
        """Return what is seen of a video, from the question before where it was the same."""
        if self._watched is None or self._watched[0] != view:
            self._watched = None  # there is never more than one memory
            self._watched = view, self.answerer.watch(view)
        return self._watched[1]

    def _look_at(self, images: list[Path], system: str | None) -> Seen:
        memory = self.answerer.model.watch(
            map(read_picture, images), processor=self.answerer.processor, system=system, progress=False
        )
        return Seen(memory, (), "")
