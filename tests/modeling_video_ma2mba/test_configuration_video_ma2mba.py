"""Configurations: presets with the published sizes, round trips, errors that name the field."""

import logging

import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig, Mamba2Config, SiglipVisionConfig

from modeling_video_ma2mba import (
    Ma2mbaConfig,
    Ma2mbaForCausalLM,
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
)

TINY = {"hidden_size": 64, "num_heads": 4, "head_dim": 32, "n_groups": 1, "vocab_size": 50288}


@pytest.mark.parametrize(
    ("name", "parameters"), [("0.7b", 673_953_280), ("1.8b", 1_653_560_320), ("3.1b", 3_015_287_296)]
)
def test_presets_have_the_papers_sizes(name, parameters):
    with torch.device("meta"):
        model = VideoMa2mbaForConditionalGeneration(VideoMa2mbaConfig.preset(name))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.model.vision_tower.parameters()) == 303_507_456
    assert model.config.tokens_per_frame == 144
    assert model.lm_head.weight is model.get_input_embeddings().weight
    # The last layer of the tower (16 tensors) and its norm (2) stand behind the penultimate features.
    assert len(model.unused_parameters()) == 18
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(model.unused_parameters())


@pytest.mark.parametrize(("name", "layers", "width"), [("370m", 48, 1024), ("1.3b", 48, 2048), ("2.7b", 64, 2560)])
def test_language_presets(name, layers, width):
    config = Ma2mbaConfig.preset(name, backend="torch")
    assert (config.num_hidden_layers, config.hidden_size, config.backend) == (layers, width, "torch")
    assert config.conv_dim == 2 * width + 256 and config.intermediate_size == 2 * width
    with torch.device("meta"):
        assert Ma2mbaForCausalLM(config).lm_head.weight.shape == (50288, width)


def test_unknown_presets():
    with pytest.raises(ValueError, match=r"unknown preset '7b'; choose one of 370m, 1\.3b, 2\.7b"):
        Ma2mbaConfig.preset("7b")
    with pytest.raises(ValueError, match="0.7b, 1.8b, 3.1b"):  # noqa: RUF043
        VideoMa2mbaConfig.preset("370m")


def test_round_trips(tmp_path):
    config = VideoMa2mbaConfig(
        vision_config=SiglipVisionConfig(image_size=56, patch_size=14, num_hidden_layers=3),
        text_config=Ma2mbaConfig(**TINY, time_step_limit=(0.0, 0.5)),
        vision_feature_layer=-1,
        spatial_pool_stride=3,
        image_mean=[0.1, 0.2, 0.3],
    )
    assert VideoMa2mbaConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is VideoMa2mbaConfig
    where_from = ("_name_or_path", "auto_map")
    one, two = ({k: v for k, v in c.to_dict().items() if k not in where_from} for c in (loaded, config))
    assert one == two
    assert (loaded.pooled_grid, loaded.tokens_per_frame, loaded.feature_layers_run) == (2, 4, 3)
    assert loaded.get_text_config().model_type == "ma2mba"


def test_a_mamba2_config_is_read_without_a_warning(tmp_path, caplog):
    Mamba2Config(**TINY).save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        config = Ma2mbaConfig.from_pretrained(tmp_path)
        nested = VideoMa2mbaConfig(text_config=Mamba2Config(**TINY))
        as_dict = VideoMa2mbaConfig(text_config=Mamba2Config(**TINY).to_dict())
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records
    for one in (config, nested.text_config, as_dict.text_config):
        assert type(one) is Ma2mbaConfig
        assert one.to_dict()["model_type"] == "ma2mba"
        assert one.hidden_size == 64


def test_missing_fields_mean_what_they_mean_in_mamba2():
    ours, theirs = Ma2mbaConfig().to_dict(), Mamba2Config().to_dict()
    for name in ("model_type", "backend"):
        ours.pop(name), theirs.pop(name, None)
    assert ours == theirs


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"backend": "cuda"}, "backend"),
        ({"backend": 3}, "backend"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 65}, "hidden_size"),
        ({"num_heads": 0, "hidden_size": 0}, "hidden_size"),
        ({"n_groups": 3}, "n_groups"),
        ({"conv_kernel": 1}, "conv_kernel"),
        ({"state_size": -1}, "state_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"time_step_limit": [1.0]}, "time_step_limit"),
        ({"time_step_limit": [1.0, 0.5]}, "time_step_limit"),
        ({"time_step_limit": [0.0, float("nan")]}, "time_step_limit"),
        ({"time_step_min": 0.0}, "time_step_min"),
        ({"time_step_max": float("nan")}, "time_step_max"),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon"),
    ],
)
def test_bad_language_configs(fields, named):
    with pytest.raises(Exception, match=named) as raised:
        Ma2mbaConfig(**{**TINY, **fields})
    assert "Strict" in type(raised.value).__name__ or isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"video_token_id": "x"}, "video_token_id"),
        ({"video_token_id": 50288}, "video_token_id"),
        ({"image_token_id": -1}, "image_token_id"),
        ({"image_token_id": 5, "video_token_id": 5}, "must differ"),
        ({"vision_feature_layer": -26}, "vision_feature_layer"),
        ({"vision_feature_layer": 25}, "vision_feature_layer"),
        ({"spatial_pool_stride": 0}, "spatial_pool_stride"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std"),
        ({"image_mean": [1.0]}, "image_mean"),
        ({"image_mean": [1.0, 1.0, float("nan")]}, "image_mean"),
        ({"image_std": [1.0, 1.0, float("inf")]}, "image_std"),
        ({"projector_hidden_act": "nonsense"}, "projector_hidden_act"),
        ({"vision_config": {"model_type": "clip_vision_model", "num_channels": 1}}, "num_channels"),
        ({"vision_config": {"model_type": "clip_vision_model", "image_size": [56, 56]}}, "image_size"),
        ({"vision_config": {"model_type": ["clip"]}}, "model_type"),
        ({"vision_config": {"model_type": "resnet"}}, "resnet"),
        ({"text_config": {"model_type": "llama"}}, "llama"),
        ({"vision_config": CLIPVisionConfig(image_size=7, patch_size=14).to_dict()}, "image_size"),
    ],
)
def test_bad_video_configs(fields, named):
    with pytest.raises(Exception, match=named) as raised:
        VideoMa2mbaConfig(**fields)
    assert "Strict" in type(raised.value).__name__ or isinstance(raised.value, ValueError)
