"""Multiple choice about video as an `evaluate` metric: a benchmark's own rule and figures, and ours beside them.

    metric = evaluate.load("eval/metrics/video_multiple_choice", "mlvu")
    metric.compute(predictions=["B) A map"], references=[1], options=[["A lamp", "A map"]], groups=[{"task": "ego"}])

The second argument is one of the benchmarks in `eval/tasks/`. All rules are in `eval/parsers.py`, `eval/task.py` and
`eval/summary.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import evaluate

from modeling_video_ma2mba.eval.samples import Output, Sample, View
from modeling_video_ma2mba.eval.summary import metric_figures
from modeling_video_ma2mba.eval.task import load_task, task_names

_DESCRIPTION = "Accuracy of answers to multiple choice questions about video, by a benchmark's own rule and strictly."
_INPUTS = """
Args:
    predictions: what the model said behind the benchmark's prefix, such as "Best option:(".
    references: place of the right option, from 0.
    options: the texts of the options of each question, without letters.
    groups: for benchmarks whose figures need it, such as [{"task": "ego"}, ...]; see the task's file.
    ids: names of the questions, on which a benchmark's random answers depend; their numbers by default.
Returns:
    {figure: by the benchmark's rule, figure + "_strict": by ours}, 0 to 1; None where nothing was read.
"""


class VideoMultipleChoice(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        choices = [name for name in task_names() if load_task(name).option]
        if self.config_name not in choices:
            raise ValueError(f"configuration {self.config_name!r}: give one of {', '.join(choices)}")
        features = {
            "predictions": datasets.Value("string"),
            "references": datasets.Value("int32"),
            "options": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[int],
        options: Sequence[Sequence[str]],
        groups: Sequence[Mapping[str, str]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> dict[str, float | None]:
        task = load_task(self.config_name)
        needed = {rule["mean_over"] for rule in task.metrics.values() if "mean_over" in rule}
        needed |= {name for rule in task.metrics.values() for name in rule.get("where", {})}
        lacking = needed - set.intersection(*map(set, groups)) if groups else needed
        if lacking:
            raise ValueError(f"{task.name} needs groups with {', '.join(sorted(lacking))} for each question")
        samples = [
            Sample(
                task=task.name,
                id=ids[place] if ids else str(place),
                cluster="",
                view=View(video=Path()),
                prompt="",
                prefix=task.prefix,
                question="",
                answer=right,
                options=tuple(options[place]),
                groups=groups[place] if groups else {},
            )
            for place, right in enumerate(references)
        ]
        rows = []
        for sample, text in zip(samples, predictions):
            score = task.score(sample, Output(text=text))
            row = {"cluster": "", "groups": sample.groups, "error": None}
            rows.append(row | {"official": score.official, "strict": score.strict})
        found = {}
        for name, rule in task.metrics.items():
            for kind, figure in metric_figures(rows, rule).items():
                found[name if kind == "official" else f"{name}_{kind}"] = figure and figure["value"]
        return found
