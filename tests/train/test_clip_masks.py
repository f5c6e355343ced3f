"""Masks by index: how many, which shape, whom the attention favours; the same noise is the same mask."""

import numpy as np
import pytest
import torch

from modeling_video_ma2mba.train.clip_masks import MASK_KINDS, draw_masks, draw_noise, masked_units, visible_places


def noise(clips=3, frames=8, patches=196, seed=0):
    return torch.cat([draw_noise([seed, clip], 1, frames, patches) for clip in range(clips)])


def attention(clips=3, frames=8, patches=196):
    return torch.rand(clips, frames, patches, generator=torch.Generator().manual_seed(1)).softmax(-1)


@pytest.mark.parametrize(
    "kind, masked", [("random", 1254), ("tube", 1248), ("clip-row", 1232), ("frame-row", 1232), ("attention", 1248)]
)
def test_counts_are_the_published_ones(kind, masked):
    """Of 8 frames of 14 x 14 patches at 80 %."""
    masks = draw_masks(kind, 0.8, noise(), attention())
    assert masks.shape == (3, 8, 196) and masks.dtype == torch.bool
    assert masks.flatten(1).sum(1).tolist() == [masked] * 3
    assert not torch.equal(masks[0], masks[1])  # each clip its own
    places = visible_places(masks)
    assert places.shape == (3, 1 + 1568 - masked) and places.dtype == torch.int64


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_a_mask_depends_on_its_own_noise_alone(kind):
    whole = draw_masks(kind, 0.65, noise(), attention())
    alone = draw_masks(kind, 0.65, noise()[1:2], attention()[1:2])
    assert torch.equal(whole[1:2], alone)
    assert not torch.equal(whole, draw_masks(kind, 0.65, noise(seed=1), attention()))


def test_tubes_are_the_same_in_all_frames():
    masks = draw_masks("tube", 0.8, noise())
    assert torch.equal(masks, masks[:, :1].expand_as(masks)) and masks[:, 0].sum(1).tolist() == [156] * 3


def test_rows_are_whole():
    for kind in ("clip-row", "frame-row"):
        rows = draw_masks(kind, 0.8, noise()).unflatten(2, (14, 14))  # (B, T, rows, columns)
        assert torch.equal(rows.any(3), rows.all(3))
        counts = rows[..., 0].sum(2)  # (B, T)
        assert counts.sum(1).tolist() == [88] * 3
        assert (counts == 11).all() == (kind == "frame-row")
    # The first index is the row: patches of a row stand beside each other.
    assert draw_masks("frame-row", 0.5, noise(1, 1, 4)).tolist() in ([[[True, True, False, False]]], [
        [[False, False, True, True]]
    ])  # fmt: skip


def test_random_masks_differ_between_frames_and_reach_every_patch():
    masks = draw_masks("random", 0.5, noise(clips=64, patches=16))
    assert len({tuple(frame) for frame in masks[0].int().tolist()}) > 1
    assert (masks.float().mean(0) - 0.5).abs().max() < 0.35


def test_attention_chooses_what_stays_visible_by_its_weights():
    weights = torch.tensor([0.6, 0.3, 0.1, 0.0]).expand(4000, 1, 4)
    kept = ~draw_masks("attention", 0.75, noise(4000, 1, 4), weights)
    torch.testing.assert_close(kept.float().mean((0, 1)), weights[0, 0], rtol=0, atol=0.03)
    # Two without replacement: the first as above, the second among the rest by their weights.
    kept = (~draw_masks("attention", 0.5, noise(4000, 1, 4), weights)).float().mean((0, 1))
    expected = torch.tensor([0.6 + 0.3 * 6 / 7 + 0.1 * 6 / 9, 0.3 + 0.6 * 3 / 4 + 0.1 * 3 / 9, 0.0, 0.0])
    expected[2] = 2 - expected.sum()
    torch.testing.assert_close(kept, expected, rtol=0, atol=0.03)
    # Weights need no sum: only their ratios count, and each frame has its own.
    assert torch.equal(
        draw_masks("attention", 0.8, noise(), attention()), draw_masks("attention", 0.8, noise(), 7 * attention())
    )
    assert (~draw_masks("attention", 0.8, noise(), attention())).sum(2).eq(40).all()


def test_places_rise_and_count_the_class_token():
    masks = torch.tensor([[[True, False], [False, True]], [[False, True], [True, False]]])
    assert visible_places(masks).tolist() == [[0, 2, 3], [0, 1, 4]]
    assert visible_places(torch.zeros(1, 2, 2, dtype=torch.bool)).tolist() == [[0, 1, 2, 3, 4]]


def test_noise_is_that_of_the_seed():
    one = draw_noise([1, 2, 3], 2, 4, 9)
    assert one.shape == (2, 4, 9) and one.dtype == torch.float32 and (one > 0).all()
    assert torch.equal(one, draw_noise([1, 2, 3], 2, 4, 9)) and not torch.equal(one[0], one[1])
    assert not torch.equal(one, draw_noise(np.array([1, 2, 4]), 2, 4, 9))


@pytest.mark.parametrize(
    "kind, ratio, message",
    [
        ("cube", 0.5, "mask='cube' must be one of random, tube"),
        ("frame-row", 0.4, "masks 0 of 2, of frames of 2 x 2 patches: change mask_ratio"),
        ("tube", 0.2, "masks 0 of 4"),
        ("random", 1.0, "masks 12 of 12"),
    ],
)
def test_masks_that_cannot_be(kind, ratio, message):
    with pytest.raises(ValueError, match=message):
        masked_units(kind, ratio, 3, 2)


def test_attention_is_needed():
    with pytest.raises(ValueError, match="needs the attention of a teacher"):
        draw_masks("attention", 0.5, noise())
