"""`video-ma2mba ask` and `chat`: load a model, watch a video once or load a memory, answer questions."""

import sys
from collections.abc import Iterable

from transformers import TextStreamer

from .load_model import check_model, load_model
from .video_reader import iter_frames, probe


def ask_video(
    model_path: str,
    questions: list[str],
    video: str | None = None,
    memory: str | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    allow_damaged: bool = False,
    max_new_tokens: int = 128,
    device: str = "auto",
    dtype: str = "auto",
) -> list[str]:
    """Answer questions about a video or a saved memory, printing each answer as it is made; return the answers.

    Raises:
        VideoReadError: the video cannot be read. OSError, ValueError: model or memory cannot be loaded, options do
            not fit.
    """
    model, processor, seen = _watched(model_path, video, memory, fps, max_frames, allow_damaged, device, dtype)
    answers = []
    for question in questions:
        print(f"Q: {question}\nA: ", end="", flush=True)
        answers.append(model.ask(seen, question, processor=processor, **_options(processor, max_new_tokens)))
    return answers


def chat_video(
    model_path: str,
    video: str | None = None,
    memory: str | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    allow_damaged: bool = False,
    max_new_tokens: int = 128,
    device: str = "auto",
    dtype: str = "auto",
    lines: Iterable[str] | None = None,
) -> None:
    """Talk about a video or a saved memory: a question per line, until `/quit` or the end.

    Args:
        lines: None: standard input. The rest, and what is raised: as for `ask_video`.
    """
    model, processor, seen = _watched(model_path, video, memory, fps, max_frames, allow_damaged, device, dtype)
    chat = model.chat(seen, processor=processor)
    print(f"{seen.seconds_seen:.0f} s of video in {seen.frames_seen} frames. Ask; /quit ends.", file=sys.stderr)
    for line in map(str.strip, sys.stdin if lines is None else lines):
        if line == "/quit":
            break
        if not line:
            continue
        try:
            chat.ask(line, **_options(processor, max_new_tokens))
        except ValueError as error:  # this line cannot be asked (it holds <video>, say); the next one may
            print(f"video-ma2mba: error: {error}", file=sys.stderr)


def _options(processor, max_new_tokens: int) -> dict:
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    return {
        "max_new_tokens": max_new_tokens, "do_sample": False, "stop_on_repetition": True, "streamer": streamer
    }  # fmt: skip


def _watched(model_path, video, memory, fps, max_frames, allow_damaged, device, dtype):
    """Return model, processor and what the model has seen."""
    if (video is None) == (memory is None):
        raise ValueError("give either a video or a memory")
    if memory is not None and (fps is not None or max_frames is not None or allow_damaged):
        raise ValueError("--fps, --max-frames and --allow-damaged say how a video is read; a memory has been read")
    check_model(model_path, device)
    if video is not None:
        probe(video)  # before minutes of loading: a file that is no video fails here
    model, processor = load_model(model_path, device, dtype)
    if memory is not None:
        return model, processor, model.load_memory(memory)
    fps = processor.fps if fps is None else fps
    max_frames = processor.max_frames if max_frames is None else max_frames
    if max_frames is None:
        return model, processor, model.watch(video, processor=processor, fps=fps, allow_damaged=allow_damaged)
    sampled = iter_frames(video, fps=fps, max_frames=max_frames, allow_damaged=allow_damaged, chunk=4)
    frames = (frame for _, chunk in sampled for frame in chunk)
    return model, processor, model.watch(frames, processor=processor, fps=fps)
