"""Orders of reading: the worked example of two frames of 2 x 2 patches, the index formulas, the per-block lists."""

import pytest
import torch

from modeling_video_ma2mba.scan_orders import SCANS, block_scans, directions, temporal_first, undo


def test_two_frames_of_four_patches():
    # Stored: 0 class, 1..4 first frame, 5..8 second.
    order = temporal_first(2, 4)
    assert order.tolist() == [0, 1, 5, 2, 6, 3, 7, 4, 8]
    assert order.flip(0).tolist() == [8, 4, 7, 3, 6, 2, 5, 1, 0]
    assert undo(order).tolist() == [0, 1, 3, 5, 7, 2, 4, 6, 8]


@pytest.mark.parametrize("frames, patches", [(1, 9), (3, 1), (3, 4), (5, 9), (8, 4)])
def test_index_formulas(frames, patches):
    order = temporal_first(frames, patches)
    assert order[0] == 0
    for j in range(frames * patches):
        assert order[1 + j] == 1 + (j % frames) * patches + j // frames
    for m in range(frames * patches):
        assert undo(order)[1 + m] == 1 + (m % patches) * frames + m // patches
    stored = torch.arange(len(order)) * 10
    assert torch.equal(stored[order][undo(order)], stored)
    if frames == 1 or patches == 1:
        assert torch.equal(order, torch.arange(len(order)))


def test_directions_of_the_scans():
    reads = {name: [(d.temporal_first, d.backwards) for d in both] for name, both in SCANS.items()}
    spatial, temporal = [(False, False), (False, True)], [(True, False), (True, True)]
    assert reads == {
        "spatial": spatial,
        "temporal": temporal,
        "spatiotemporal_v1": [(False, False), (True, True)],
        "spatiotemporal_v2": spatial + temporal,
        "spatiotemporal_v2_shared": spatial + temporal,
    }
    assert len({d.parameters for d in SCANS["spatiotemporal_v2"]}) == 4
    assert len({d.parameters for d in SCANS["spatiotemporal_v2_shared"]}) == 2
    for name, both in SCANS.items():
        assert directions(name, True) == both
        assert directions(name, False) and all(d.backwards for d in directions(name, False))


def test_a_scan_for_each_block():
    S, T = "spatial", "temporal"
    assert block_scans("spatial", 3) == [S, S, S]
    assert block_scans("spatiotemporal_v1", 2) == ["spatiotemporal_v1"] * 2
    assert block_scans("half_spatial_half_temporal", 5) == [S, S, T, T, T]
    assert block_scans("half_temporal_half_spatial", 4) == [T, T, S, S]
    assert block_scans("alternating", 5) == [S, T, S, T, S]
    assert block_scans((T, "spatiotemporal_v2"), 2) == [T, "spatiotemporal_v2"]
    with pytest.raises(ValueError, match=r"'snake' is unknown; choose one of spatial, .*alternating"):
        block_scans("snake", 2)
    with pytest.raises(ValueError, match="names 2 blocks, there are 3"):
        block_scans([S, T], 3)
    with pytest.raises(ValueError, match="'alternating' is unknown"):
        block_scans([S, "alternating"], 2)
