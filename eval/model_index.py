"""The `model-index` of a model card from results.json: what the Hub shows beside a model.

print(metadata(read_result("results"), "video-ma2mba-tiny"))        # YAML for the head of README.md
"""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from modeling_video_ma2mba.eval.judge_prompts import PROMPTS_NOTE
from modeling_video_ma2mba.eval.report import frames_text

TASK_TYPE = "video-text-to-text"


def model_index(result: Mapping[str, Any], model_name: str) -> list[dict[str, Any]]:
    """Return the `model-index` of one run: the benchmarks' published figures by their own rule, in percent, and judged
    scores. What has no score is not in it. A run with `--limit` is none of the benchmark's and is refused; where some
    questions have no answer for another reason (missing videos, errors), the name says how many have one.

    Raises:
        ValueError: a limited run, or one without a score.
    """
    settings = result["settings"]
    if settings["limit"] is not None:
        raise ValueError(
            f"this run asked the first {settings['limit']} samples only: run without --limit for a model card"
        )
    entries = []
    for name, task in result["tasks"].items():
        hub = task["hub"] or {}
        how = {"frames": frames_text(settings), "subtitles": settings["subtitles"], "task_version": task["version"]}
        how |= {"likelihood": settings["likelihood"], "samples": task["summary"]["samples"]}
        how |= {"errors": task["summary"]["errors"], "left_out": len(task["left_out"])}
        how |= {"partial": task["partial"]}
        figures = {**task["summary"]["metrics"], **task.get("judged", {}).get("figures", {})}
        for metric, both in figures.items():
            if both["official"] is None:
                continue
            is_score = "judged" in task and metric in task["judged"]["figures"] and not metric.endswith("accuracy")
            args = how | {"counted": both["official"]["samples"]}
            if "judged" in task:
                args |= {"judge": task["judged"]["judge"], "judge_prompts": PROMPTS_NOTE}
            entries.append(
                EvalResult(
                    task_type=TASK_TYPE,
                    dataset_type=hub.get("dataset", name),
                    dataset_name=task["title"] if task["partial"] is None else f"{task['title']} ({task['partial']})",
                    dataset_split=hub.get("split"),
                    dataset_revision=hub.get("revision"),
                    metric_type="accuracy" if not is_score else "score",
                    metric_name=metric,
                    metric_value=round(both["official"]["value"] * (1 if is_score else 100), 2),
                    metric_args=args,
                )
            )
    if not entries:
        raise ValueError(
            "this run has no score by an official rule: look for errors and unparsed answers in its results.md; open "
            "answers need --judge"
        )
    return eval_results_to_model_index(model_name, entries)


def metadata(result: Mapping[str, Any], model_name: str) -> str:
    """Return `model-index` as YAML, for the head of a model card; raises ValueError as `model_index` does."""
    return yaml.safe_dump({"model-index": model_index(result, model_name)}, sort_keys=False, allow_unicode=True)
