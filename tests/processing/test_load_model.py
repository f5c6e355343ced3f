"""Loading for commands: what does not fit together is refused in clear words, before memory is taken."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_video_ma2mba.processing.load_model import load_model


@pytest.fixture
def folder(tiny_video_model, processor, tmp_path):
    tiny_video_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


def change(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_good_folder_loads_in_eval_mode(folder, tiny_video_model):
    model, processor = load_model(str(folder), "cpu")
    assert not model.training and processor.tokens_per_frame == 4
    for name, tensor in tiny_video_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_config_larger_than_the_weights(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder, "config.json", text_config={**text, "num_hidden_layers": 900})
    with pytest.raises(ValueError, match=r"its config describes \d+ numbers, its weights hold \d+"):
        load_model(str(folder), "cpu")
    change(folder, "config.json", text_config={**text, "num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"9 parameters of its video_ma2mba model are not in its weights, e\.g\."):
        load_model(str(folder), "cpu")
    change(folder, "config.json", text_config={**text, "vocab_size": 40})
    message = r"embeddings\.weight is \(32, 64\) in the weights and \(40, 64\) by config\.json"
    with pytest.raises(ValueError, match=message):
        load_model(str(folder), "cpu")


def test_missing_weights_are_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.multi_modal_projector.linear_1.bias"]
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 parameters .* e\.g\. model\.multi_modal_projector\.linear_1\.bias"):
        load_model(str(folder), "cpu")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"auto_map": {"AutoConfig": 3}}, "auto_map"),
        ("config.json", {"model_type": "bert"}, "contains custom code"),
        ("processor_config.json", {"processor_class": 3}, "processor_class=3"),
        ("processor_config.json", {"tokens_per_frame": 10**12}, "tokens_per_frame=1000000000000 must be"),
        ("processor_config.json", {"fps": -1}, "fps=-1 must be a positive number"),
        ("processor_config.json", {"max_frames": "all"}, "max_frames='all' must be"),
        ("processor_config.json", {"image_processor": 3}, "does not load"),
        ("tokenizer_config.json", {"pad_token": {"a": 1}}, "pad_token"),
        ("generation_config.json", {"max_new_tokens": [1]}, "does not load"),
    ],
)
def test_hostile_fields(folder, name, fields, message):
    change(folder, name, **fields)
    with pytest.raises((ValueError, OSError), match=message):
        load_model(str(folder), "cpu")


def test_a_name_that_is_nothing():
    with pytest.raises(ValueError, match=r"tini model: there is no such folder here, no shipped model \(shipped:"):
        load_model("tini model", "cpu")
