"""`video-ma2mba classify`: the likeliest classes of videos, by a VideoMamba model."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForVideoClassification

from .load_model import check_model, load_model
from .video_errors import VideoReadError


def classify_videos(model_path: str, videos: list[str], top: int = 5) -> bool:
    """Print the `top` likeliest classes of each video with their shares, or the number that a regression predicts.

    A video that cannot be read is named on standard error, and the next one follows.

    Returns:
        Whether all videos could be read.

    Raises:
        OSError, ValueError: the model is not a VideoMamba for clips, a file is missing, `top` is below 1.
    """
    if top < 1:
        raise ValueError(f"--top {top}: at least 1")
    if missing := [video for video in videos if not Path(video).is_file()]:
        raise ValueError(f"there is no file {missing[0]}")
    check_model(model_path, "cpu")
    kind = AutoConfig.from_pretrained(model_path).model_type
    if kind != "videomamba":
        raise ValueError(f"{model_path} is a {kind} model; classify needs a VideoMamba trained on clips")
    model, processor = load_model(model_path, auto_class=AutoModelForVideoClassification)
    all_read = True
    # The bar is for people who wait; one video is there at once.
    for video in tqdm(videos, unit=" videos", disable=True if len(videos) == 1 else None, leave=False):
        try:
            inputs = processor(videos=video, return_tensors="pt")
        except VideoReadError as error:
            tqdm.write(f"video-ma2mba: error: {error}", file=sys.stderr)
            all_read = False
            continue
        with torch.no_grad():
            logits = model(**inputs).logits[0].float()
        tqdm.write("\n".join([video, *_lines(logits, model.config, top)]), file=sys.stdout)
    return all_read


def _lines(logits: torch.Tensor, config, top: int) -> list[str]:
    if config.num_labels == 1:
        return [f"  {logits.item():.3f}"]
    best = logits.softmax(-1).topk(min(top, len(logits)))
    return [
        f"  {share:6.1%}  {config.id2label[label]}"
        for share, label in zip(best.values.tolist(), best.indices.tolist())
    ]
