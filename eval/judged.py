"""What a judge makes of a task's open answers, as figures beside the others: `judged`, in results.json.

Who judges and by which prompts and rules: judge.py.
"""

from collections.abc import Sequence
from typing import Any

from modeling_video_ma2mba.eval.judge import Judge, judge_task
from modeling_video_ma2mba.eval.samples import Output, Sample
from modeling_video_ma2mba.eval.summary import RULES, metric_figures
from modeling_video_ma2mba.eval.task import Task


def judged_figures(judge: Judge, task: Task, samples: Sequence[Sample], outputs: Sequence[Output]) -> dict[str, Any]:
    """Let a judge score a task.

    Returns:
        "judge": its label, "described": what it is, "malformed" replies (by the official rule), "errors", "items" with
        every reply, and "figures" as in summary.py: "judged accuracy" (0 to 1) where the judge says yes or no, "judged
        score" (0 to 5) and, where there are several prompts, one for each; the score is then the mean of theirs, and
        only there if each was asked.

    Raises:
        JudgeError: the judge cannot be asked. ValueError: half of a pair of questions is missing.
    """
    items, verdicts, scores = [], [], []
    for prompt, judged in judge_task(judge, task, samples, outputs).items():
        for places, score in judged:
            first = samples[places[0]]
            row = {"cluster": first.cluster, "groups": {"prompt": prompt}, "error": score.details.get("error")}
            verdict = {kind: getattr(score, kind) for kind in RULES}
            ids = [samples[place].id for place in places]
            items.append({"ids": ids, "prompt": prompt, **verdict, "details": dict(score.details)})
            if "official_score" in score.details:
                verdicts.append({**row, **verdict})
                verdict = {kind: score.details[f"{kind}_score"] for kind in RULES}
            scores.append({**row, **verdict})
    asked = {item["prompt"] for item in items}
    expected = {prompt for prompts in task.judge.values() for prompt in prompts}
    figures = {"judged accuracy": metric_figures(verdicts, {})} if verdicts else {}
    if len(expected) > 1:
        figures |= {prompt: metric_figures(scores, {"where": {"prompt": prompt}}) for prompt in sorted(asked)}
    if asked == expected:
        figures["judged score"] = metric_figures(scores, {"mean_over": "prompt"})
    return {
        "judge": judge.label,
        "described": judge.describe(),
        "malformed": sum(item["details"].get("official_malformed", False) for item in items),
        "errors": sum("error" in item["details"] for item in items),
        "figures": figures,
        "items": items,
    }
