"""Model cards: templates in this folder, filled from what a model folder says about itself.

    write_card("runs/mine", "me/mine", "apache-2.0", results="results/mine-1fps")     # runs/mine/README.md

`card.md` is the whole, `about_*.md` its middle by kind of model. Figures come from config, run.json, test.json and
results.json, or from the planner (memory_table.py); what no file says is marked `PLACEHOLDER`, to be filled in.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedConfig

import modeling_video_ma2mba
from modeling_video_ma2mba.checkpoint_files import read_json
from modeling_video_ma2mba.eval.model_index import model_index
from modeling_video_ma2mba.eval.results import read_result
from modeling_video_ma2mba.hub_cards.memory_table import memory_tables
from modeling_video_ma2mba.train.data_report import printable

PLACEHOLDER = "[to fill in:"
_HERE = Path(__file__).parent
# Class of the folder -> what is special about its card.
_KINDS = {
    "VideoMa2mbaForConditionalGeneration": ("about_video_ma2mba.md", "video-text-to-text", ["mamba2", "long-context"]),
    "Ma2mbaForCausalLM": ("about_ma2mba.md", "text-generation", ["mamba2", "long-context"]),
    "VideoMambaForVideoClassification": ("about_videomamba_clips.md", "video-classification", ["mamba", "videomamba"]),
    "VideoMambaForImageClassification": (
        "about_videomamba_images.md",
        "image-classification",
        ["mamba", "videomamba"],
    ),
}
_UNTRAINED = (
    "**It is not trained.** Vision tower and language model have the weights that they were joined from, the\n"
    "projector between them is new (random numbers): what it answers is without meaning until it is trained."
)
_UNTRAINED_LIMITS = "It is where training starts, and no use for anything else."


def write_card(folder: str | Path, repo_id: str, license: str, results: str | Path | None = None) -> Path:
    """Write README.md into a model folder and return its path; one that is there is left alone.

    Args:
        repo_id: the name that the snippets load: "owner/name" on the Hub, or a folder.
        license: of the weights, as the Hub names it ("apache-2.0", "mit", "other", ...).
        results: folder of a run of `video-ma2mba eval`, for a table and the `model-index`.

    Raises:
        ValueError: a card is there, the folder is no model, or a value is none that a card can have.
    """
    folder = Path(folder)
    path = folder / "README.md"
    if path.exists():
        raise ValueError(f"{path} exists: move it elsewhere to have a new one written")
    names = read_json(folder / "config.json").get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if name not in _KINDS:
        raise ValueError(
            f"{folder} holds {names!r}; cards are written for {', '.join(_KINDS)}. Write README.md by hand"
        )
    kind = getattr(modeling_video_ma2mba, name)
    told = _told(folder)
    index = None if results is None else model_index(read_result(Path(results)), repo_id.split("/")[-1])
    config = kind.config_class.from_pretrained(folder)
    text = make_card(kind, config, repo_id, license, model=str(folder), told=told, index=index)
    path.write_text(text, encoding="utf-8")
    return path


def make_card(
    kind: type,
    config: PreTrainedConfig,
    repo_id: str,
    license: str,
    *,
    model: str,
    told: Mapping[str, str],
    index: list[dict[str, Any]] | None = None,
) -> str:
    """Return the text of a card.

    Args:
        kind: class of the model. repo_id, license: as in `write_card`.
        model: folder or preset that the memory tables are computed for.
        told: state, training, results, licences, limits: what there is to say, in words.
        index: `model-index` of a run; its table takes the place of `told["results"]`.

    Raises:
        ValueError: `repo_id` or `license` is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository such as me/model: {error}") from error
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", license):
        raise ValueError(f"--license {license!r}: give the Hub's name of a licence, such as apache-2.0, mit or other")
    about, task, tags = _KINDS[kind.__name__]
    values = {
        "name": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "citation": (_HERE / "citation.bib").read_text(encoding="utf-8").strip(),
        **told,
    }
    values["parts"] = "\n".join(f"| {what} | {value} |" for what, value in _parts(kind, config).items())
    if config.model_type == "video_ma2mba":
        values |= {"tokens_per_frame": str(config.tokens_per_frame), "memory": memory_tables(model)}
    if index is not None:
        values["results"] = _results_table(index)
    values["about"] = _fill(about, values).strip()
    head = {"license": license, "library_name": "transformers", "pipeline_tag": task, "tags": [*tags, "custom_code"]}
    if index is not None:
        head["model-index"] = index
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n{_fill('card.md', values)}"


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template of this folder with a value for every {{name}} in it; values are not read again."""
    text = (_HERE / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], text)


def _parts(kind: type, config: PreTrainedConfig) -> dict[str, str]:
    with torch.device("meta"):
        model = kind(config)
    parts = {}
    if config.model_type == "video_ma2mba":
        vision = config.vision_config
        parts["vision tower"] = (
            f"{vision.model_type}, {vision.num_hidden_layers} layers of width {vision.hidden_size}, "
            f"{vision.image_size} px; read after layer {config.feature_layers_run}"
        )
        parts["tokens of a frame"] = f"{config.tokens_per_frame}"
    if config.model_type == "videomamba":
        frames = "images" if config.num_frames is None else f"clips of {config.num_frames} frames"
        parts["reads"] = f"{frames}, {config.image_size} px: {config.num_tokens:,} tokens"
        parts["blocks"] = f"{config.num_hidden_layers} of width {config.hidden_size}, state {config.state_size}"
        parts["classes"] = f"{config.num_labels:,}"
    else:
        text = config.get_text_config()
        parts["language model"] = (
            f"Mamba-2, {text.num_hidden_layers} layers of width {text.hidden_size}, state {text.state_size}, "
            f"{text.vocab_size:,} rows of vocabulary"
        )
    parts["parameters"] = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    return parts


def _told(folder: Path) -> dict[str, str]:
    """Return what the files of a folder say about its weights."""
    run, report, test = (_read(folder / name) for name in ("run.json", "conversion_report.json", "test.json"))
    told = {
        "fps": _cell(_read(folder / "processor_config.json").get("fps", 1)),
        "state": f"{PLACEHOLDER} where the weights come from]",
        "training": f"{PLACEHOLDER} what it was trained on]",
        "results": "None are given.",
        "licences": f"{PLACEHOLDER} licences of the data, and of the weights that training began with]",
        "limits": f"{PLACEHOLDER} what it was not trained on, and where it fails]",
    }
    if run:
        recipe = run.get("recipe") if isinstance(run.get("recipe"), dict) else {}
        stage = f", stage {_cell(recipe['stage'])}" if "stage" in recipe else ""
        told["state"] = f"Trained by the recipe `{_cell(recipe.get('name'))}`{stage} (`run.json`)."
        if not run.get("finished"):
            told["state"] += " **The run did not come to its end.**"
        told["training"] = _training(run, recipe)
    elif isinstance(report.get("new"), dict) and any("projector" in name for name in report["new"]):
        told |= untrained()
    elif report:
        told["state"] = "Converted from published weights; `conversion_report.json` accounts for every tensor."
        told["licences"] = f"{PLACEHOLDER} licence of the weights that were converted]"
    if test:
        rows = [
            f"| {_cell(name)} | {_cell(value)} |" for name, value in test.items() if isinstance(value, int | float)
        ]
        told["results"] = "\n".join(
            ["On the clips held out for `--test` (`test.json`):", "", "| | |", "| --- | --- |", *rows]
        )
    return told


def untrained(state: str = _UNTRAINED) -> dict[str, str]:
    """Return what there is to say about a model that was put together and not trained."""
    return {
        "fps": "1",
        "state": state,
        "training": "None yet.",
        "results": "None: it is not trained.",
        "licences": "The weights keep the licences of the models that they come from.",
        "limits": _UNTRAINED_LIMITS,
    }


def _training(run: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    data = run.get("data") if isinstance(run.get("data"), dict) else {}
    # Names of files, not where they lay: folders of a machine tell others nothing.
    names = [_cell(Path(str(word).split(",")[0]).name) for word in _list(data.get("arguments"))]
    lines = [
        f"Data: {', '.join(f'`{name}`' for name in names)}"
        + (f", {_cell(data['samples'])} samples" if data.get("samples") else "")
    ]
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in recipe.items() if value is not None]
    return "\n".join([*lines, "", "| recipe | |", "| --- | --- |", *rows])


def _results_table(index: list[dict[str, Any]]) -> str:
    lines = ["| benchmark | measure | value | samples |", "| --- | --- | --- | --- |"]
    for entry in index[0]["results"]:
        for metric in entry["metrics"]:
            counted = metric.get("args", {}).get("counted", "")
            cells = (entry["dataset"]["name"], metric["name"], metric["value"], counted)
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _cell(value: Any) -> str:
    """Return a value of a file as one cell of a table, whatever it holds."""
    text = json.dumps(value) if isinstance(value, list | dict) else f"{value:,}" if type(value) is int else str(value)
    return printable(text).replace("|", "/").replace("`", "'")[:200]
