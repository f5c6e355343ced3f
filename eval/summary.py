"""The figures of a task from its scored samples: means with intervals clustered by video, by metric and by group, and
what was not answered.

A sample is a mapping as in results.json (results.py): "cluster", "groups", "official", "strict", "parsed", "error",
"options". It scores nothing and writes nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modeling_video_ma2mba.eval.clusters import mean_interval

RULES = ("official", "strict")

Row = Mapping[str, Any]


def summarise(rows: Sequence[Row], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of one task.

    Args:
        rows: the samples. metrics: `Task.metrics`.

    Returns:
        Counts: "samples", "videos", "errors" (not answered, and in no mean), "unparsed" (answered, but nothing could
        be read; the strict rule counts those as wrong); "chance" (None for open questions) and "letters" read, by how
        often; "metrics" by name and "groups" by name and value, each with a figure for "official" and "strict":
        `{"value", "low", "high", "samples", "videos"}`, 0 to 1 where a score is right or wrong; None without one.
    """
    answered = [row for row in rows if row["error"] is None]
    shares = [1 / len(row["options"]) for row in rows if row["options"]]
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        for name, value in row["groups"].items():
            groups.setdefault(name, {}).setdefault(value, []).append(row)
    return {
        "samples": len(rows),
        "videos": len({row["cluster"] for row in rows}),
        "errors": len(rows) - len(answered),
        "unparsed": sum(row["parsed"] is None for row in answered),
        "chance": sum(shares) / len(shares) if shares else None,
        "letters": dict(
            sorted(Counter(row["parsed"] for row in answered if row["options"] and row["parsed"]).items())
        ),
        "metrics": {name: metric_figures(rows, rule) for name, rule in metrics.items()},
        "groups": {
            name: {value: metric_figures(inside, {}) for value, inside in sorted(values.items())}
            for name, values in groups.items()
        },
    }


def metric_figures(rows: Sequence[Row], rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return the "official" and "strict" figure of one of `Task.metrics`: `{}`, `where` or `mean_over`."""
    where = rule.get("where", {}).items()
    taken = [row for row in rows if all(row["groups"].get(group) == value for group, value in where)]
    return {kind: _figure(taken, kind, rule.get("mean_over")) for kind in RULES}


def _figure(rows: Sequence[Row], kind: str, over: str | None) -> dict[str, Any] | None:
    scored = [row for row in rows if row["error"] is None and row[kind] is not None]
    if not scored:
        return None
    values = [row[kind] for row in scored]
    clusters = [row["cluster"] for row in scored]
    groups = None if over is None else [row["groups"][over] for row in scored]
    parts: dict[Any, list[float]] = {}
    for value, group in zip(values, groups or [None] * len(values)):
        parts.setdefault(group, []).append(value)
    means = [sum(part) / len(part) for part in parts.values()]
    low, high = mean_interval(values, clusters, groups) or (None, None)
    return {
        "value": sum(means) / len(means), "low": low, "high": high,
        "samples": len(values), "videos": len(set(clusters)),
    }  # fmt: skip
