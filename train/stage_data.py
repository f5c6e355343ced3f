"""What a stage trains on: from `--data` and `--exclude` to samples that are held, with their lengths, or streamed."""

from collections.abc import Collection, Iterator
from pathlib import Path

from torch.utils.data import get_worker_info

from modeling_video_ma2mba.train.collator import SampleCollator
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.readers import decontaminate, read_data
from modeling_video_ma2mba.train.recipes import Recipe
from modeling_video_ma2mba.train.sample_lengths import SampleLength, measure
from modeling_video_ma2mba.train.samples import Sample, grouped
from modeling_video_ma2mba.train.streaming import neighbours_grouped
from modeling_video_ma2mba.train.training_set import check_bad_share, list_bad


def load_samples(data: list[str], recipe: Recipe, report: DataReport, excluded: Collection[str] = ()) -> list[Sample]:
    """Return all samples of the `--data` arguments but those about `excluded` videos; stage 2 joins those about one.

    Raises:
        ValueError: too many rows are bad, or nothing is left.
    """
    samples = list(decontaminate(read_data(data, recipe.stage, report, recipe.seed), excluded, report))
    report.check_limit(recipe.max_bad_share)
    if recipe.stage == "2":
        samples = grouped(samples, report)
    if not samples:
        raise ValueError(f"no sample in {', '.join(data)}")
    return samples


def stream_samples(
    data: list[str], recipe: Recipe, excluded: Collection[str], bad_rows: Path | None, epoch: int
) -> Iterator[Sample]:
    """Yield the same samples one after the other; stage 2 joins those about one video that are neighbours.

    Args:
        bad_rows: where rows that were left out are listed after the first epoch; None: nowhere.

    Raises:
        ValueError: at the end: too many rows were bad.
    """
    report = DataReport()
    samples = decontaminate(read_data(data, recipe.stage, report, recipe.seed), excluded, report)
    yield from neighbours_grouped(samples) if recipe.stage == "2" else samples
    worker = get_worker_info()
    if epoch == 0 and bad_rows is not None and (worker is None or worker.id == 0):
        report.write(bad_rows)
        print(report.summary())
    report.check_limit(recipe.max_bad_share)


def measured(samples: list[Sample], recipe: Recipe, collator: SampleCollator, bad_list: Path) -> list[SampleLength]:
    """Return the length of each sample; list those whose media cannot be opened.

    Raises:
        RuntimeError: too many cannot.
    """
    lengths = measure(samples, recipe, collator)
    bad = [(sample, one.problem) for sample, one in zip(samples, lengths, strict=True) if one.problem is not None]
    for sample, problem in bad:
        list_bad(bad_list, sample, problem)
    check_bad_share(len(bad), len(samples), recipe.max_bad_share, bad_list)
    return lengths
