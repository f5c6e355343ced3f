"""`video-ma2mba data check`: what a stage would train on, before it is started: counts, lengths, bad files, memory.

Every media file is opened and its length read; nothing is decoded further.
"""

import statistics
from dataclasses import dataclass, field

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoProcessor

from modeling_video_ma2mba.checkpoint_analytic import analytic_costs
from modeling_video_ma2mba.checkpoint_planner import find_plan
from modeling_video_ma2mba.checkpoint_predict import gib
from modeling_video_ma2mba.train.collator import SampleCollator
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.readers import read_data
from modeling_video_ma2mba.train.recipes import Recipe
from modeling_video_ma2mba.train.sample_lengths import measure
from modeling_video_ma2mba.train.samples import Sample, grouped
from modeling_video_ma2mba.train.training_set import too_many_bad

_SHOWN = 20  # bad rows, and bad files


@dataclass
class DataCheck:
    """What was found.

    Attributes:
        rows: one line for each annotation file. left_out: the first rows left out, with the reason.
        lengths: tokens of each sample that can be used.
        frames: of all of them. seconds: of video. bad: media file -> why it cannot be used.
        longest: the sample with the most tokens. stops: why a run with these data would stop; None: it would not.
    """

    rows: str
    left_out: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    bad: dict[str, str] = field(default_factory=dict)
    longest: Sample | None = None
    stops: str | None = None

    def lines(self, recipe: Recipe, memory: str, tokens_per_second: float | None) -> list[str]:
        """Return the report as text."""
        lines = [self.rows, *(f"  {line}" for line in self.left_out)]
        lines.append(f"{len(self.lengths):,} samples can be used, {len(self.bad):,} media files cannot")
        lines += [f"  {path}: {reason}" for path, reason in list(self.bad.items())[:_SHOWN]]
        if len(self.bad) > _SHOWN:
            lines.append(f"  ... and {len(self.bad) - _SHOWN:,} more")
        if self.lengths:
            total = sum(self.lengths)
            lines += [
                f"{self.frames:,} frames of {self.seconds / 3600:,.2f} hours of video, {total:,} tokens",
                f"tokens of a sample: {min(self.lengths):,} at least, {round(statistics.median(self.lengths)):,} in "
                f"the middle, {max(self.lengths):,} at most ({self.longest.id})",
                memory,
            ]
            if tokens_per_second:
                hours = total * recipe.epochs / tokens_per_second / 3600
                lines.append(f"{recipe.epochs:g} epochs at {tokens_per_second:,.0f} tokens/s: {hours:,.1f} hours")
            else:
                lines.append("hours: pass --tokens-per-second as a run on your device logs it")
        if self.stops is not None:
            lines.append(f"a run would stop: {self.stops}")
        return lines


def check_data(data: list[str], recipe: Recipe, model: str) -> DataCheck:
    """Read the annotations and open all media of a stage's data.

    Args:
        data: as `--data` of a stage. model: the folder that training would start from.

    Raises:
        ValueError, OSError: the data arguments or the model folder are wrong.
    """
    processor = AutoProcessor.from_pretrained(model)
    collator = SampleCollator(processor)
    report = DataReport()
    samples = list(tqdm(read_data(data, recipe.stage, report, recipe.seed), desc="reading annotations", unit="sample"))
    if recipe.stage == "2":
        samples = grouped(samples, report)
    found = DataCheck(rows=report.summary(), left_out=report.left_out_lines(_SHOWN))
    most = 0
    for sample, length in zip(samples, measure(samples, recipe, collator), strict=True):
        if length.problem is not None:
            found.bad[", ".join(str(media.path) for media in sample.media)] = length.problem
            continue
        if length.tokens > most:
            most, found.longest = length.tokens, sample
        found.lengths.append(length.tokens)
        found.frames += length.frames
        found.seconds += length.seconds
    found.stops = _reason_to_stop(found, report, len(samples), recipe.max_bad_share)
    return found


def _reason_to_stop(found: DataCheck, report: DataReport, samples: int, limit: float) -> str | None:
    """Return what a stage would say of rows and media that cannot be used, None if it would go on."""
    try:
        report.check_limit(limit)
    except ValueError as error:
        return str(error)
    if not found.lengths:
        return "no sample can be used"
    bad = samples - len(found.lengths)
    if too_many_bad(bad, samples, limit):
        return f"the media of {bad:,} of {samples:,} samples cannot be read, more than max_bad_share={limit}"
    return None


def memory_line(found: DataCheck, recipe: Recipe, model: str, budget: int | None) -> str:
    """Return what the longest sample takes on a GPU: the plan for a budget, or the least that would do."""
    if not found.lengths:
        return ""
    config = AutoConfig.from_pretrained(model)
    longest = max(found.lengths)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    costs = analytic_costs(config, 1, dtype, tower_is_trained="vision_tower" in recipe.trains)
    held = costs.weights + costs.gradients + costs.sums + costs.optimizer
    frames = longest // config.tokens_per_frame
    room = 2**62 if budget is None else budget - held
    objective = "memory" if budget is None else "time"
    plan = find_plan(costs, longest, room, 0, objective, num_frames=frames)
    size = f"{gib(plan.predicted.device)} on the device ({plan.predicted.source})"
    what = "the least that would do" if budget is None else f"within {gib(budget)}"
    return f"the longest sample, {what}: {size}, plan {plan.name!r}"
