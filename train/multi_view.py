"""Test a VideoMamba classifier as the paper does: several clips and crops of a video, the mean of their softmax.

Of a regression (LVU's ratings) the mean of the predictions is taken, and the error of a video is squared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modeling_video_ma2mba.processing.image_processing_videomamba import VideoMambaImageProcessor
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.clip_views import test_views
from modeling_video_ma2mba.train.read_clips import LabelledClip

TOP = 5


@dataclass(frozen=True)
class _Views(Dataset):
    """The views of each clip, or the reason why there are none."""

    clips: Sequence[LabelledClip]
    processor: VideoMambaImageProcessor
    shape: tuple[int, int]  # clips, crops

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            return torch.from_numpy(test_views(self.clips[index].medium, self.processor, *self.shape))
        except (VideoReadError, OSError, ValueError) as error:
            return str(error)


@torch.no_grad()
def predict_views(model, views: torch.Tensor, at_once: int) -> torch.Tensor:
    """Return the mean over views (V, F, 3, S, S): shares of the classes (classes,), or a predicted number (1,).

    Args:
        at_once: views in one batch.
    """
    found = []
    for part in views.split(at_once):
        if model.main_input_name == "pixel_values":
            logits = model(pixel_values=part[:, 0]).logits
        else:
            logits = model(pixel_values_videos=part).logits
        found.append(logits.float() if model.config.num_labels == 1 else logits.float().softmax(-1))
    return torch.cat(found).mean(0)


def test_clips(
    model,
    processor: VideoMambaImageProcessor,
    clips: Sequence[LabelledClip],
    *,
    views: tuple[int, int] = (1, 1),
    at_once: int = 8,
    workers: int = 0,
    process: tuple[int, int] = (0, 1),
) -> dict:
    """Predict every clip from all its views and score.

    Args:
        model: in eval mode. clips: at least one.
        views: clips and crops of a video. at_once: views in one batch. workers: processes that decode.
        process: rank and number of processes, which share the work.

    Returns:
        `top1` and `top5`, or `mean_squared_error`, over the clips that could be read; `clips`, how many; `views`;
        `not_read`, with reasons; `predictions`, one for each clip.
    """
    rank, processes = process
    own = list(range(rank, len(clips), processes))
    loader = DataLoader(_Views([clips[i] for i in own], processor, views), batch_size=None, num_workers=workers)
    rows, is_rating = [], model.config.num_labels == 1
    for index, given in zip(own, tqdm(loader, desc="testing", unit=" clips", disable=None if rank == 0 else True)):
        row = {"place": index, "id": clips[index].id, "label": clips[index].label}
        if isinstance(given, str):
            rows.append({**row, "problem": given})
            continue
        mean = predict_views(model, given, at_once)
        best = mean.topk(min(TOP, len(mean))).indices.tolist()
        rows.append({**row, "prediction": mean.item()} if is_rating else {**row, "prediction": best[0], "best": best})
    rows = sorted(gather_object(rows) if processes > 1 else rows, key=lambda row: row["place"])
    read = [row for row in rows if "problem" not in row]
    if not read:
        raise ValueError(f"none of {len(rows)} clips can be read; the first: {rows[0]['problem']}")
    if is_rating:
        scores = {"mean_squared_error": sum((row["prediction"] - row["label"]) ** 2 for row in read) / len(read)}
    else:
        scores = {
            "top1": sum(row["prediction"] == row["label"] for row in read) / len(read),
            "top5": sum(row["label"] in row["best"] for row in read) / len(read),
        }
    not_read = [{"id": row["id"], "reason": row["problem"]} for row in rows if "problem" in row]
    return {**scores, "clips": len(read), "views": list(views), "not_read": not_read, "predictions": read}


test_clips.__test__ = False  # a name that pytest would collect
