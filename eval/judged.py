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
        "judge": its label, "described": what it is, "replies", how many of them are "malformed" by each rule,
        "errors", "items" with every reply, and "figures" as in summary.py: "judged accuracy" (0 to 1) where the judge
        says yes or no, "judged score" (0 to 5) and, where there are several prompts, one for each; the score is then
        the mean of theirs, and only there if each was asked. A prompt to which every reply is malformed has no score:
        the official rule would call the answers wrong, and it is the judge who said nothing.

    Raises:
        JudgeError: the judge cannot be asked. ValueError: half of a pair of questions is missing.
    """
    items, verdicts, scores = [], [], []
    silent: dict[str, bool] = dict.fromkeys(RULES, False)  # whether all replies to a prompt are malformed
    for prompt, judged in judge_task(judge, task, samples, outputs).items():
        replies = [score.details for _, score in judged if "error" not in score.details]
        mute = [kind for kind in RULES if replies and all(reply[f"{kind}_malformed"] for reply in replies)]
        silent |= dict.fromkeys(mute, True)
        for places, score in judged:
            first = samples[places[0]]
            row = {"cluster": first.cluster, "groups": {"prompt": prompt}, "error": score.details.get("error")}
            verdict = {kind: None if kind in mute else getattr(score, kind) for kind in RULES}
            ids = [samples[place].id for place in places]
            items.append({"ids": ids, "prompt": prompt, **verdict, "details": dict(score.details)})
            if "official_score" in score.details:
                verdicts.append({**row, **verdict})
                verdict = {kind: None if kind in mute else score.details[f"{kind}_score"] for kind in RULES}
            scores.append({**row, **verdict})
    asked = {item["prompt"] for item in items}
    expected = {prompt for prompts in task.judge.values() for prompt in prompts}
    figures = {"judged accuracy": metric_figures(verdicts, {})} if verdicts else {}
    if len(expected) > 1:
        figures |= {prompt: metric_figures(scores, {"where": {"prompt": prompt}}) for prompt in sorted(asked)}
    if asked == expected:
        means = metric_figures(scores, {"mean_over": "prompt"})
        figures["judged score"] = {kind: None if silent[kind] else means[kind] for kind in RULES}
    return {
        "judge": judge.label,
        "described": judge.describe(),
        "replies": sum("error" not in item["details"] for item in items),
        "malformed": {kind: sum(item["details"].get(f"{kind}_malformed", False) for item in items) for kind in RULES},
        "errors": sum("error" in item["details"] for item in items),
        "figures": figures,
        "items": items,
    }
