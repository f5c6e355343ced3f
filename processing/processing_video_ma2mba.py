"""`VideoMa2mbaProcessor`: from chat messages, text, images and videos to what the model reads.

It decodes and samples videos, fits frames, and writes one placeholder id per visual token. It does not normalise (the
model does, on its device). A prompt holds every frame in memory as uint8; `stream_frames` holds a few.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .chat_template import CHAT_TEMPLATE
from .image_processing_video_ma2mba import VideoMa2mbaImageProcessor, as_picture
from .video_reader import iter_frames, probe


class VideoMa2mbaProcessor(ProcessorMixin):
    """Tokenizer, frame fitting and frame sampling in one.

    Args:
        image_processor: fits images and frames.
        tokenizer: has `<image>` and `<video>` as special tokens.
        tokens_per_frame: placeholders written per frame: `VideoMa2mbaConfig.tokens_per_frame`.
        fps: frames sampled per second of video.
        max_frames: limit: longer videos are sampled uniformly at this many frames. None: no limit, as in the paper.
        chat_template: Jinja template; default: the paper's Table 5.

    Example:

    ```python
    >>> inputs = processor(text="<video>What happens?", videos="film.mp4", return_tensors="pt")
    >>> inputs["pixel_values_videos"].shape  # one video of 10 s
    torch.Size([1, 10, 3, 336, 336])
    ```
    """

    def __init__(
        self,
        image_processor: VideoMa2mbaImageProcessor,
        tokenizer,
        tokens_per_frame: int = 144,
        fps: float = 1.0,
        max_frames: int | None = None,
        chat_template: str | None = None,
        **kwargs,
    ):
        if type(tokens_per_frame) is not int or not 1 <= tokens_per_frame <= 1 << 16:
            raise ValueError(f"tokens_per_frame={tokens_per_frame!r:.80} must be a whole number from 1 to 65536")
        if type(fps) not in (int, float) or not 0 < fps < math.inf:
            raise ValueError(f"fps={fps!r:.80} must be a positive number")
        if max_frames is not None and (type(max_frames) is not int or max_frames < 1):
            raise ValueError(f"max_frames={max_frames!r:.80} must be a whole number from 1, or None")
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.tokens_per_frame = tokens_per_frame
        self.fps = fps
        self.max_frames = max_frames
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        for token, token_id in ((self.image_token, self.image_token_id), (self.video_token, self.video_token_id)):
            if token_id is None or token_id == tokenizer.unk_token_id:
                raise ValueError(
                    f"the tokenizer has no token {token}; add it: "
                    'tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})'
                )

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values", "pixel_values_videos"]

    def __call__(
        self,
        images=None,
        text: str | list[str] | None = None,
        videos=None,
        return_tensors: str | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
        max_frames: int | None = None,
        allow_damaged: bool = False,
        padding: bool | str = True,
        padding_side: str = "left",
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        **text_kwargs,
    ) -> BatchFeature:
        """Tokenise text, with one `<image>` or `<video>` in it for each image and video, in their order.

        Args:
            images: image or (nested) list of images: PIL, uint8 array, path or URL.
            videos: video or (nested) list of videos: path, uint8 frames (F, H, W, 3) or (F, 3, H, W) already sampled,
                list of PIL frames, or a `FrameSource` of fitted frames.
            fps, max_frames: in place of the processor's own. num_frames: exactly this many frames, uniformly.
            allow_damaged: go on with what can be read of a damaged or cut video, with a warning, instead of raising.
            text_kwargs: for the tokenizer.

        Returns:
            `input_ids`, `attention_mask`; `pixel_values` (N, 3, H, W) uint8; `pixel_values_videos` (N, F, 3, H, W)
            uint8, or a list of (F, 3, H, W) where lengths differ, or the `FrameSource`s.

        Raises:
            VideoReadError: a video cannot be read. ValueError: placeholders and media differ in number.
        """
        if text is None:
            raise ValueError("give text with one <image> or <video> for every image and video")
        if text_kwargs.pop("do_sample_frames", True) is False:
            raise ValueError("do_sample_frames=False: pass frames instead of a path to use them as they are")
        if text_kwargs.pop("truncation", None):
            raise ValueError("truncation would cut visual tokens off; lower fps, or set max_frames")
        texts = [text] if isinstance(text, str) else list(text)
        sampling = {**self._sampling(fps, num_frames, max_frames), "allow_damaged": allow_damaged}
        image_list, video_list = _flatten_images(images), _flatten_videos(videos)
        self._check_counts(texts, image_list, video_list)

        frames = [self._frames(video, sampling) for video in video_list]
        counts = {self.image_token_id: [1] * len(image_list), self.video_token_id: [len(f) for f in frames]}
        token_ids = self.tokenizer(texts, **text_kwargs)["input_ids"]
        iterators = {token_id: iter(numbers) for token_id, numbers in counts.items()}
        token_ids = [self._expand(np.asarray(row, dtype=np.int64), iterators) for row in token_ids]
        if len(token_ids) > 1 and self.tokenizer.pad_token_id is None and padding:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        data = self.tokenizer.pad(
            {"input_ids": token_ids},
            padding=padding if len(token_ids) > 1 or padding == "max_length" else False,
            padding_side=padding_side,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,
        )
        out = BatchFeature(dict(data), tensor_type=return_tensors)
        if image_list:
            out["pixel_values"] = self.image_processor(image_list, return_tensors="pt")["pixel_values"]
        if frames:
            same = all(torch.is_tensor(f) and f.shape == frames[0].shape for f in frames)
            out["pixel_values_videos"] = torch.stack(frames) if same else frames
        return out

    def split_prompt(self, messages: list[dict], answer_start: str = "") -> tuple[list[int], list[int]]:
        """Return the token ids before and after the frames of a conversation about one video.

        They are those of the whole prompt, with the start of an answer: before + placeholders + after.

        Args:
            messages: chat messages with one `{"type": "video"}` in them.
            answer_start: words that the answer begins with.

        Raises:
            ValueError: the text does not hold exactly one video and no image.
        """
        text = self.apply_chat_template(messages, add_generation_prompt=True) + answer_start
        ids = self.tokenizer([text])["input_ids"][0]
        videos, images = ids.count(self.video_token_id), ids.count(self.image_token_id)
        if videos != 1 or images:
            raise ValueError(
                f"the prompt holds {videos} {self.video_token} and {images} {self.image_token}, it needs one "
                f"{self.video_token} and no more; questions about a memory are text without these words"
            )
        place = ids.index(self.video_token_id)
        return ids[:place], ids[place + 1 :]

    def text_ids(self, text: str) -> list[int]:
        """Return the token ids of a text that stands between frames.

        Raises:
            ValueError: it holds `<image>` or `<video>`.
        """
        ids = self.tokenizer([text], add_special_tokens=False)["input_ids"][0]
        if self.video_token_id in ids or self.image_token_id in ids:
            raise ValueError(f"a text between frames holds {self.image_token} or {self.video_token}: {text!r:.80}")
        return ids

    def stream_frames(
        self, path: str | Path, fps: float, start: float = 0.0, end: float | None = None, allow_damaged: bool = False
    ) -> Iterator[np.ndarray]:
        """Yield the sampled frames of a video file, fitted, uint8 (3, size, size), in constant memory."""
        # Small chunks: nobody waits for a full one, and 32 pictures of a large film are 200 MB.
        for _, chunk in iter_frames(path, fps=fps, start=start, end=end, chunk=4, allow_damaged=allow_damaged):
            for frame in chunk:
                yield self.image_processor.fit(frame)

    def fit_frame(self, picture) -> np.ndarray:
        """Fit one picture, PIL or uint8 (H, W, 3) or (3, H, W): uint8 (3, size, size)."""
        return self.image_processor.fit(as_picture(picture))

    def video_seconds(self, path: str | Path) -> float:
        """Return the length of a video file in seconds; VideoReadError when it is none."""
        return probe(path).duration

    def _sampling(self, fps, num_frames, max_frames) -> dict:
        if num_frames is not None:
            if fps is not None:
                raise ValueError(f"fps={fps} and num_frames={num_frames} exclude each other: give one")
            return {"num_frames": num_frames}
        return {
            "fps": self.fps if fps is None else fps,
            "max_frames": self.max_frames if max_frames is None else max_frames,
        }

    def _check_counts(self, texts: list[str], images: list, videos: list) -> None:
        for kind, token, media in (("image", self.image_token, images), ("video", self.video_token, videos)):
            found = sum(text.count(token) for text in texts)
            if found != len(media):
                raise ValueError(
                    f"the text has {found} {token} and {len(media)} {kind}s were given; each {kind} needs one {token} "
                    "(chat messages get it from apply_chat_template)"
                )

    def _frames(self, video, sampling: dict):
        """Return the fitted frames of one video: (F, 3, size, size) uint8, or the `FrameSource` as it is."""
        if isinstance(video, (str, Path)):
            fitted = [self.image_processor.fit(f) for _, chunk in iter_frames(video, **sampling) for f in chunk]
        elif isinstance(video, (np.ndarray, torch.Tensor, list, tuple)):
            fitted = [self.fit_frame(frame) for frame in video]
        elif hasattr(video, "__len__") and hasattr(video, "__getitem__"):
            return video
        else:
            raise TypeError(f"a video of type {type(video).__name__}: give a path, frames, or a FrameSource")
        if not fitted:
            raise ValueError("a video without a frame")
        return torch.from_numpy(np.stack(fitted))

    def _expand(self, ids: np.ndarray, frames: dict) -> list[int]:
        """Repeat each placeholder for all visual tokens of its image or video."""
        repeats = np.ones(len(ids), dtype=np.int64)
        for i in np.flatnonzero(np.isin(ids, list(frames))):
            repeats[i] = next(frames[int(ids[i])]) * self.tokens_per_frame
        return np.repeat(ids, repeats).tolist()


def _flatten_images(images) -> list:
    if images is None:
        return []
    if not isinstance(images, (list, tuple)):
        return [images]
    return [flat for image in images for flat in _flatten_images(image)]


def _flatten_videos(videos) -> list:
    """Return videos in order; a list of pictures is one video, any other list holds videos."""
    if videos is None:
        return []
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if videos and all(isinstance(frame, Image.Image) or getattr(frame, "ndim", 0) == 3 for frame in videos):
        return [videos]
    return [flat for video in videos for flat in _flatten_videos(video)]


__all__ = ["VideoMa2mbaProcessor"]
