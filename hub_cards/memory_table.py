"""The memory tables of a model card: what watching, asking and training take, by length of video and by GPU.

Every figure is computed from the config: training by the planner of `video-ma2mba plan`, watching from the same costs
of a layer and a frame. Nothing is measured here.
"""

import torch

from modeling_video_ma2mba.checkpoint_costs import StepCosts
from modeling_video_ma2mba.checkpoint_planner import RESERVE, find_plan
from modeling_video_ma2mba.checkpoint_predict import PlanCosts
from modeling_video_ma2mba.checkpoint_report import DEVICES, LEFT_ALONE, ask
from modeling_video_ma2mba.configuration_video_ma2mba import VideoMa2mbaConfig
from modeling_video_ma2mba.modeling_ma2mba import Ma2mbaModel
from modeling_video_ma2mba.vision_features import FRAMES_PER_BATCH
from modeling_video_ma2mba.watching import FRAMES_AT_ONCE

_LENGTHS = {"10 min": 600, "1 h": 3600, "2 h": 7200, "4 h": 14400}
_GPUS = {"24 GB": "rtx4090", "48 GB": "l40s", "80 GB": "h100", "141 GB": "h200"}
_NO_LIMIT = 1 << 50


def watching_bytes(config: VideoMa2mbaConfig, costs: StepCosts) -> int:
    """Return device bytes at the peak of `watch`: weights, two states, and a segment of frames on its way.

    They do not depend on the length of the video. `costs` are those of one row.
    """
    frames = min(FRAMES_AT_ONCE, Ma2mbaModel.segment_length // config.tokens_per_frame) or 1
    tokens = frames * config.tokens_per_frame
    vision = frames * costs.feature_bytes + costs.frames(min(frames, FRAMES_PER_BATCH)).plain_peak
    language = 2 * tokens * costs.boundary_bytes + costs.layer(tokens, False).plain_peak
    return round(costs.weights + 2 * costs.state_bytes + frames * _frame_bytes(config) + max(vision, language))


def memory_tables(model: str) -> str:
    """Return the tables, in Markdown, of a video model: a preset's name or a folder with a config.json.

    Raises:
        ValueError: `model` is neither, or a language model.
    """
    lengths = [(name, _question(model, seconds)) for name, seconds in _LENGTHS.items()]
    config, costs = lengths[0][1].config, lengths[0][1].costs
    watch = watching_bytes(config, costs)
    usable = {gpu: round((1 - LEFT_ALONE) * DEVICES[device]) for gpu, device in _GPUS.items()}
    fitting = [gpu for gpu, room in usable.items() if watch <= room]
    lines = [
        f"To watch and ask (bfloat16, `memory = model.watch(...)`): {_size(watch)} on the device for any length"
        + (f", so a GPU of {fitting[0]} will do" if fitting else "")
        + ". `generate` and the pipeline also hold the frames; training is one step on the whole video (bfloat16, "
        "Adam, batch 1, nothing on the host), at its smallest and by the size of the GPU:",
        "",
        f"| video at 1 FPS | tokens | `generate` | training, at least | {' | '.join(usable)} |",
        f"| --- | --- | --- | --- |{' --- |' * len(usable)}",
    ]
    for name, question in lengths:
        least = find_plan(costs, question.tokens, _NO_LIMIT, objective="memory", num_frames=question.frames).predicted
        fits = [_fits(least, room) for room in usable.values()]
        asking = _size(watch + question.frames * _frame_bytes(config))
        lines.append(
            f"| {name} | {question.tokens:,} | {asking} | {_size(least.device)} | "
            f"{' | '.join('fits' if does else '-' for does in fits)} |"
        )
    lines += [
        "",
        "Computed by the project's planner, not measured; `video-ma2mba plan` says which plan a budget allows, and "
        "what host memory saves.",
    ]
    return "\n".join(lines)


def _question(model: str, seconds: int):
    return ask(
        model=model, tokens=None, seconds=seconds, fps=1.0, batch_size=1, budget=_NO_LIMIT, host_budget=0, device=None,
        dtype=torch.bfloat16, objective="memory", tower_is_trained=True,
    )  # fmt: skip


def _frame_bytes(config: VideoMa2mbaConfig) -> int:
    return 3 * config.vision_config.image_size**2  # uint8


def _fits(least: PlanCosts, room: int) -> bool:
    """Say whether the planner would take this plan for a device with `room`."""
    return least.activations <= RESERVE * (room - (least.device - least.activations))


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
