"""The settings of "ma-gc" arrive unchanged from Python, the command line and YAML."""

import json

import pytest
from transformers import HfArgumentParser, TrainingArguments

SETTINGS = {"method": "ma-gc", "memory_budget": "24GiB", "host_budget": "64GiB", "objective": "memory"}


def from_python(folder):
    return TrainingArguments(folder, gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(SETTINGS))


def from_command_line(folder):
    words = ["--output_dir", folder, "--gradient_checkpointing", "true"]
    words += ["--gradient_checkpointing_kwargs", json.dumps(SETTINGS)]
    return HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words)[0]


def from_yaml(folder):
    path = f"{folder}/arguments.yaml"
    lines = [f"output_dir: {folder}", "gradient_checkpointing: true", "gradient_checkpointing_kwargs:"]
    with open(path, "w") as file:
        file.write("\n".join(lines + [f"  {key}: {value}" for key, value in SETTINGS.items()]))
    return HfArgumentParser(TrainingArguments).parse_yaml_file(path)[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("source", [from_python, from_command_line, from_yaml])
def test_settings_reach_the_model(source, tiny_video_model, tmp_path):
    arguments = source(str(tmp_path))
    kwargs = getattr(arguments, "activation_checkpointing_kwargs", None) or arguments.gradient_checkpointing_kwargs
    language_model = tiny_video_model.model.language_model
    try:
        tiny_video_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        settings = language_model.checkpointing.settings
    finally:
        tiny_video_model.gradient_checkpointing_disable()
    assert (settings.memory_budget, settings.host_budget) == (24 * 2**30, 64 * 2**30)
    assert settings.objective == "memory"
