"""VideoMambaConfig: presets, derived sizes, what it refuses, the round trip."""

import pytest
from transformers import AutoConfig

from modeling_video_ma2mba import VideoMambaConfig


@pytest.mark.parametrize("name, depth, width, inner, rank", [
    ("ti", 24, 192, 384, 12), ("s", 24, 384, 768, 24), ("m", 32, 576, 1152, 36), ("b", 24, 768, 1536, 48),
])  # fmt: skip
def test_presets(name, depth, width, inner, rank):
    config = VideoMambaConfig.preset(name)
    assert (config.num_hidden_layers, config.hidden_size) == (depth, width)
    assert (config.intermediate_size, config.time_step_rank) == (inner, rank)
    assert (config.state_size, config.conv_kernel, config.patch_size, config.num_tokens) == (16, 4, 16, 197)
    assert VideoMambaConfig.preset(name, num_frames=8, num_labels=3).num_tokens == 1569
    with pytest.raises(ValueError, match="choose one of ti, s, m, b"):
        VideoMambaConfig.preset("l")


def test_sizes_of_a_clip():
    config = VideoMambaConfig(image_size=64, patch_size=8, num_frames=6, tubelet_size=2)
    assert (config.patches_per_frame, config.temporal_positions, config.num_tokens) == (64, 3, 193)
    assert VideoMambaConfig(hidden_size=40).time_step_rank == 3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
        ({"conv_kernel": 1}, "conv_kernel=1 must be at least 2"),
        ({"image_size": 100}, "image_size=100 must be a multiple of patch_size=16"),
        ({"num_channels": 1}, "frames have 3"),
        ({"tubelet_size": 2}, "tubelet_size=2 needs num_frames"),
        ({"num_frames": 3, "tubelet_size": 2}, "num_frames=3 must be a multiple of tubelet_size=2"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0 must be positive"),
        ({"backend": "cuda"}, "backend='cuda' is not one of auto, torch, triton"),
        ({"scan": "snake"}, "'snake' is unknown"),
        ({"scan": ["spatial"]}, "names 1 blocks, there are 24"),
        ({"image_std": [1.0, 0.0, 1.0]}, "3 positive numbers"),
        ({"image_mean": [1.0]}, "must be 3 numbers"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(Exception, match=message):
        VideoMambaConfig(**fields)


def test_round_trip(tmp_path):
    config = VideoMambaConfig(
        hidden_size=32, num_hidden_layers=2, num_frames=4, scan=("spatial", "temporal"), num_labels=3,
        bidirectional=False, image_mean=(0.5, 0.5, 0.5),
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is VideoMambaConfig
    assert loaded.scan == ["spatial", "temporal"] and loaded.num_labels == 3 and not loaded.bidirectional
    ours, theirs = config.to_dict(), loaded.to_dict()
    assert VideoMambaConfig.from_dict(ours).to_dict() == ours
    assert {**theirs, "_name_or_path": ""} == {**ours, "_name_or_path": ""}
