"""Crops of masked pre-training: sizes and places are the published ones, frames are cut alike, seeds decide."""

import numpy as np
import torch
from PIL import Image

from modeling_video_ma2mba.train.multi_scale_crop import PLACES, MultiScaleCrop, multi_scale_box
from modeling_video_ma2mba.train.videomamba_recipes import load_videomamba_recipe

SIDES = (1.0, 0.875, 0.75, 0.66)


def crop(*overrides):
    return MultiScaleCrop(load_videomamba_recipe("masked-tiny", overrides=["image_size=32", *overrides]))


def test_boxes_have_the_published_sizes_and_places():
    lengths, sizes, places = (100, 87, 75, 66), set(), set()
    for seed in range(1500):
        left, top, width, height = multi_scale_box((160, 100), SIDES, np.random.default_rng(seed))
        assert width in lengths and height in lengths
        assert abs(lengths.index(width) - lengths.index(height)) <= 1
        assert 0 <= left <= 160 - width and 0 <= top <= 100 - height
        sizes.add((width, height))
        if (width, height) == (66, 66):
            places.add((left // ((160 - 66) // 4), top // ((100 - 66) // 4)))
    assert len(sizes) == 4 + 6 and len(PLACES) == len(set(PLACES)) == 13 and places == set(PLACES)


def test_frames_are_cut_alike_and_seeds_decide():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pictures = [picture, Image.fromarray(picture), picture]
    seen = [crop()(pictures, [0, seed]) for seed in range(6)]
    for clip in seen:
        assert clip.shape == (3, 3, 32, 32) and clip.dtype == torch.uint8
        assert torch.equal(clip[0], clip[1]) and torch.equal(clip[0], clip[2])
    assert torch.equal(seen[2], crop()(pictures, [0, 2])) and not torch.equal(seen[2], seen[3])


def test_half_are_mirrored_where_the_recipe_says_so():
    dark_left = np.zeros((32, 32, 3), dtype=np.uint8)
    dark_left[:, 16:] = 200
    plain, mirrors = crop("crop_sides=[1.0]"), crop("crop_sides=[1.0]", "flip=true")
    assert (plain([dark_left], [0])[0].numpy().transpose(1, 2, 0) == dark_left).all()
    mirrored = [mirrors([dark_left], [seed])[0, 0, 0, 0].item() == 200 for seed in range(40)]
    assert 8 <= sum(mirrored) <= 32
    assert not any(plain([dark_left], [seed])[0, 0, 0, 0].item() for seed in range(40))
