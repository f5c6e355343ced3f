"""Short answers about video as an `evaluate` metric: the share that equals the right one.

    metric = evaluate.load("eval/metrics/video_short_answer")
    metric.compute(predictions=["No."], references=["no"])["exact_match"]       # 1.0

It is a lower bound on what a judge accepts. The rule is in `eval/parsers.py`.
"""

from collections.abc import Sequence

import datasets
import evaluate

from modeling_video_ma2mba.eval.parsers import short_answer

_DESCRIPTION = "Share of short answers that equal the right one, but for case, blanks and marks around."
_INPUTS = """
Args:
    predictions: what the model said.
    references: the right answers.
Returns:
    {"exact_match": 0 to 1}
"""


class VideoShortAnswer(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        right = [short_answer(given) == short_answer(expected) for given, expected in zip(predictions, references)]
        return {"exact_match": sum(right) / len(right)}
