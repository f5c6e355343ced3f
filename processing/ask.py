"""`video-ma2mba ask`: load a model, decode a video once, answer questions, with progress on the way."""

import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer
from transformers.utils import logging

from .frame_sampling import sample_times
from .frame_source import FrameSource
from .video_reader import iter_frames, probe


def ask_video(
    model_path: str,
    video: str,
    questions: list[str],
    fps: float | None = None,
    max_frames: int | None = None,
    allow_damaged: bool = False,
    max_new_tokens: int = 128,
    device: str = "auto",
    dtype: str = "auto",
) -> list[str]:
    """Answer questions about a video, printing each answer as it is made; return the answers.

    Raises:
        VideoReadError: the video cannot be read. OSError, ValueError: the model cannot be loaded, options do not fit.
    """
    if model_path.startswith(("/", ".", "~")) and not Path(model_path).is_dir():
        raise ValueError(
            f"there is no model folder {model_path}: give a folder written by save_pretrained or a Hub name"
        )
    if Path(model_path).is_dir() and not (Path(model_path) / "config.json").is_file():
        raise ValueError(f"{model_path} has no config.json: it is not a model folder")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: this PyTorch sees no GPU; use --device cpu")
    info = probe(video)  # before minutes of loading: a file that is no video fails here
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(model_path)
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=getattr(torch, dtype)).to(device).eval()
    sampling = {
        "fps": processor.fps if fps is None else fps,
        "max_frames": processor.max_frames if max_frames is None else max_frames,
    }
    total = len(sample_times(info.duration, **sampling))
    frames = []
    with tqdm(total=total, desc="decoding", unit=" frames", file=sys.stderr, disable=None) as bar:
        for _, chunk in iter_frames(video, **sampling, allow_damaged=allow_damaged):
            frames.extend(processor.image_processor.fit(frame) for frame in chunk)
            bar.update(len(chunk))
    source = FrameSource(np.stack(frames))  # (F, 3, size, size)
    return [_answer(model, processor, source, question, max_new_tokens) for question in questions]


def _answer(model, processor, frames: FrameSource, question: str, max_new_tokens: int) -> str:
    from modeling_video_ma2mba import RepetitionStop

    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, videos=[frames], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    print(f"Q: {question}\nA: ", end="", flush=True)
    with tqdm(total=length, desc="watching", unit=" tokens", file=sys.stderr, leave=False, disable=None) as bar:
        # The output norm runs once a segment: its hook sees how far the prompt has been read.
        def show(module, inputs, output):
            bar.update(output.shape[1])

        hook = model.model.language_model.norm_f.register_forward_hook(show)
        try:
            sequences = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                stopping_criteria=[RepetitionStop(length)],
                streamer=TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True),
            )
        finally:
            hook.remove()
    return processor.tokenizer.decode(sequences[0, length:], skip_special_tokens=True).strip()
