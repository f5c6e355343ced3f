"""A wrong value in a config.json is a ValueError that names folder and field, for every config of the package."""

import json

import pytest
from transformers import AutoConfig

from modeling_video_ma2mba import Ma2mbaConfig, VideoMa2mbaConfig, VideoMambaConfig


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Ma2mbaConfig, {"num_heads": "four"}, "num_heads"),
        (Ma2mbaConfig, {"backend": "abacus"}, "backend='abacus'"),
        (Ma2mbaConfig, {"dtype": "x"}, "'x'"),
        (Ma2mbaConfig, {"intermediate_size": 3}, "intermediate_size"),
        (VideoMa2mbaConfig, {"vision_config": {"hidden_size": "x"}}, "hidden_size"),
        (VideoMa2mbaConfig, {"text_config": {"model_type": "bert"}}, "allowed are 'ma2mba' and 'mamba2'"),
        (VideoMa2mbaConfig, {"image_std": 3}, "image_std"),
        (VideoMa2mbaConfig, {"spatial_pool_stride": 0}, "spatial_pool_stride=0 must be at least 1"),
        (VideoMambaConfig, {"scan": 3}, "scan"),
        (VideoMambaConfig, {"image_size": 3}, "image_size=3 must be a multiple"),
    ],
)
def test_values(tmp_path, kind, changes, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind.model_type, **changes}))
    for load in (kind.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=message) as error:
            load(tmp_path)
        assert "config.json" in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", "[" * 100_000, '{"model_type": 3}', '{"configuration_files": 3}'])
def test_files_that_hold_no_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    for kind in (Ma2mbaConfig, VideoMa2mbaConfig, VideoMambaConfig):
        with pytest.raises(ValueError, match=r"config\.json") as error:
            kind.from_pretrained(tmp_path)
        assert str(tmp_path) in str(error.value)
