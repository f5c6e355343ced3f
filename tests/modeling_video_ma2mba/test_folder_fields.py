"""Hostile JSON in model folders: refused before transformers reads it, with the names of file and field."""

import json

import pytest

from modeling_video_ma2mba.checkpoint_files import ConversionError
from modeling_video_ma2mba.folder_fields import check_folder_fields
from modeling_video_ma2mba.shipped_model import SHIPPED, model_folder


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", [], "config.json holds a list"),
        ("config.json", {"model_type": 3}, "config.json: model_type=3, expected text"),
        ("config.json", {"auto_map": {"AutoConfig": 3}}, "config.json: auto_map=.*, expected an object of names"),
        ("config.json", {"auto_map": "x"}, "auto_map='x', expected an object of names"),
        ("config.json", {"architectures": [3]}, r"architectures=\[3\], expected a list of texts"),
        ("config.json", {"text_config": {"dtype": 3}}, "dtype=3, expected text"),
        ("config.json", {"quantization_config": [1]}, "quantization_config=.*, expected an object"),
        ("config.json", {"vision_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers=.* up to 1000"),
        ("config.json", {"vision_config": {"image_size": 1 << 20}}, "image_size=1048576, expected a whole number up"),
        ("config.json", {"hidden_size": 1e300}, "hidden_size=1e.300, expected a whole number"),
        ("config.json", {"vocab_size": True}, "vocab_size=True, expected a whole number"),
        ("processor_config.json", {"processor_class": {"a": 1}}, "processor_config.json: processor_class="),
        ("processor_config.json", {"image_processor": {"image_processor_type": 1}}, "image_processor_type=1"),
        ("tokenizer_config.json", {"pad_token": {"a": "b"}}, "tokenizer_config.json: pad_token=.*, expected text, or"),
        ("tokenizer_config.json", {"eos_token": 3}, "eos_token=3, expected text, or a token"),
        ("tokenizer_config.json", {"extra_special_tokens": [3]}, "expected a list of tokens"),
        ("special_tokens_map.json", {"eos_token": ["x"]}, "special_tokens_map.json: eos_token"),
        ("generation_config.json", 3, "generation_config.json holds a int"),
        ("tokenizer.json", {"model": 3}, "tokenizer.json is no tokenizer"),
    ],
)
def test_wrong_kinds_are_named(tmp_path, name, fields, message):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps(fields))
    with pytest.raises(ConversionError, match=message):
        check_folder_fields(tmp_path)


def test_depth_and_links(tmp_path):
    nested = {}
    for _ in range(40):
        nested = {"a": [nested]}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    with pytest.raises(ConversionError, match=r"config\.json is nested more than 32 deep"):
        check_folder_fields(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(ConversionError, match=r"tokenizer\.json is a link to /dev/zero"):
        check_folder_fields(tmp_path)


def test_what_is_written_today_passes(tmp_path):
    check_folder_fields(model_folder(SHIPPED))
    token = {"content": "<|endoftext|>", "lstrip": False, "special": True}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "eos_token": token,
                "added_tokens_decoder": {"0": token},
                "additional_special_tokens": ["<image>", token],
                "auto_map": {"AutoTokenizer": ["tokenization_x.Slow", None]},
                "model_max_length": 1000000000000000019884624838656,
            }
        )
    )
    # Classes of pictures may be called anything.
    config = {"label2id": {"dtype": 0, "hidden_size": 1}, "id2label": {"0": "dtype"}, "torch_dtype": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_folder_fields(tmp_path)
