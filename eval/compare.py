"""Compare two runs on the same samples: by how much is one better, and could that be chance?

Paired and clustered by video (clusters.py). Runs that were not asked the same are refused.
"""

from collections.abc import Mapping
from typing import Any

from modeling_video_ma2mba.eval.clusters import paired_difference
from modeling_video_ma2mba.eval.report import frames_text
from modeling_video_ma2mba.eval.summary import RULES
from modeling_video_ma2mba.train.data_report import printable

# What two runs must have in common in every sample. How videos were sampled is not among it: it is what ablations
# change.
_SAME = ("system", "prompt", "prefix", "question", "options", "answer", "cluster", "groups")
_SHOWN = 3

Result = Mapping[str, Any]


def compare(first: Result, second: Result) -> dict[str, Any]:
    """Return by how much the second run is better than the first, task by task.

    Args:
        first, second: what `results.read_result` returns.

    Returns:
        "first" and "second": names; "settings": what differs, as {name: [first, second]}; "partial": by task how much
        of the benchmark each run answered, None for all of it; "only_in": tasks that one of the two lacks; "tasks":
        for each task and each of "official" and "strict" `{"first", "second", "difference", "low", "high", "p_value",
        "samples", "videos", "left_out"}`, 0 to 1; None without a common score. Samples that are an error, or have no
        score, in one of the two are left out of both.

    Raises:
        ValueError: they share no task, or samples or prompts differ; says how.
    """
    shared = [name for name in first["tasks"] if name in second["tasks"]]
    if not shared:
        raise ValueError(
            f"the runs share no task: {', '.join(first['tasks'])} against {', '.join(second['tasks'])}; run the same "
            "--tasks"
        )
    if first["settings"].get("likelihood") != second["settings"].get("likelihood"):
        raise ValueError("one run scored the likelihood of options and the other asked for text: run both alike")
    tasks = {}
    for name in shared:
        pairs = _pairs(name, first["tasks"][name]["samples"], second["tasks"][name]["samples"])
        tasks[name] = {kind: _difference(pairs, kind) for kind in RULES}
    return {
        "first": _name(first),
        "second": _name(second),
        "settings": _differing(first["settings"], second["settings"]),
        "partial": {name: [run["tasks"][name]["partial"] for run in (first, second)] for name in shared},
        "only_in": {
            "first": [name for name in first["tasks"] if name not in shared],
            "second": [name for name in second["tasks"] if name not in shared],
        },
        "tasks": tasks,
    }


def comparison_text(compared: Mapping[str, Any]) -> str:
    """Return the comparison for people, as Markdown."""
    lines = [f"A: {compared['first']}", "", f"B: {compared['second']}", ""]
    lines += [f"{name}: {old!r:.60} in A, {new!r:.60} in B" for name, (old, new) in compared["settings"].items()]
    for name, runs in compared["partial"].items():
        lines += [
            f"partial: {name}, {printable(words)} in {run}" for run, words in zip("AB", runs) if words is not None
        ]
    for which, tasks in compared["only_in"].items():
        lines += [f"only in {'A' if which == 'first' else 'B'}: {', '.join(tasks)}"] if tasks else []
    lines += [
        "",
        "| task | rule | samples | A | B | B - A | p | left out |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, kinds in compared["tasks"].items():
        for kind, one in kinds.items():
            if one is None:
                continue
            spread = "" if one["low"] is None else f" [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
            cells = [name, kind, f"{one['samples']:,} of {one['videos']:,} videos"]
            cells += [f"{100 * one['first']:.1f}", f"{100 * one['second']:.1f}"]
            cells += [f"{100 * one['difference']:+.1f}{spread}", f"{one['p_value']:.2g}", f"{one['left_out']:,}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines, "",
            "Percent; 95 % intervals by the bootstrap over videos; p: the runs exchanged video by video, two-sided.",
        ]
    )  # fmt: skip


def _pairs(name: str, first: list[dict], second: list[dict]) -> list[tuple[dict, dict]]:
    ours, theirs = ({row["id"]: row for row in rows} for rows in (first, second))
    for a, b, which, other in ((ours, theirs, "first", "second"), (theirs, ours, "second", "first")):
        alone = [id for id in a if id not in b]
        if alone:
            raise ValueError(
                f"{name}: {len(alone):,} samples are in the {which} run only ({', '.join(alone[:_SHOWN])}, ...), "
                f"{len(a):,} against {len(b):,} in the {other}: run both with the same data and --limit"
            )
    for id, row in ours.items():
        differing = [field for field in _SAME if row.get(field) != theirs[id].get(field)]
        if differing:
            field = differing[0]
            raise ValueError(
                f"{name}: sample {id} was not asked alike: {field} is {row.get(field)!r:.120} in the first run and "
                f"{theirs[id].get(field)!r:.120} in the second; a comparison needs the same version of the task and "
                "the same --subtitles"
            )
    return [(row, theirs[id]) for id, row in ours.items()]


def _difference(pairs: list[tuple[dict, dict]], kind: str) -> dict[str, Any] | None:
    usable = [(a, b) for a, b in pairs if all(one["error"] is None and one[kind] is not None for one in (a, b))]
    if not usable:
        return None
    clusters = [a["cluster"] for a, _ in usable]
    values = [[row[kind] for row in rows] for rows in zip(*usable)]
    difference, interval, p_value = paired_difference(*values, clusters)
    low, high = interval or (None, None)
    return {
        "first": sum(values[0]) / len(usable),
        "second": sum(values[1]) / len(usable),
        "difference": difference,
        "low": low,
        "high": high,
        "p_value": p_value,
        "samples": len(usable),
        "videos": len(set(clusters)),
        "left_out": len(pairs) - len(usable),
    }


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list]:
    names = ("fps", "num_frames", "subtitles", "limit")
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def _name(result: Result) -> str:
    return f"{result['settings']['model']['name']}, {frames_text(result['settings'])}"
