"""Augmentation by timm and torchvision: frames alike, equal for equal seeds; a clear word where they are missing."""

import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaImageProcessor
from modeling_video_ma2mba.train import augmentation
from modeling_video_ma2mba.train.augmentation import ClipAugmentation, ClipMixing, require_extra, seeded
from modeling_video_ma2mba.train.clip_set import ClipCollator, ClipViews
from modeling_video_ma2mba.train.videomamba_recipes import load_videomamba_recipe

needs_extra = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("torchvision") is None,
    reason='timm and torchvision are not installed: pip install ".[videomamba]"',
)
PROCESSOR = VideoMambaImageProcessor(size=32, crop_ratio=1.0, resample="bilinear", num_frames=3)
CONFIG = VideoMambaConfig(image_size=32)


def recipe(*overrides, name="k400-s"):
    return load_videomamba_recipe(name, "public", [*overrides, "image_size=32"])


def pictures(count=3, seed=0):
    """Equal frames: what differs afterwards was not changed alike."""
    picture = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return [picture] * count


def test_a_recipe_that_augments_names_the_extra(monkeypatch):
    monkeypatch.setattr(augmentation, "find_spec", lambda name: None)
    require_extra(load_videomamba_recipe("tiny"))
    with pytest.raises(ImportError, match=r'timm and torchvision, .* pip install "video-ma2mba\[videomamba\]"'):
        require_extra(recipe())


def test_seeded_leaves_no_trace():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    with seeded([1, 2]):
        first = draw()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = draw()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with seeded([1, 2]):
        assert draw() == first
    assert draw() == expected
    with seeded([2, 1]):
        assert draw() != first


@needs_extra
def test_frames_are_changed_alike():
    augment = ClipAugmentation(recipe("random_erasing=0"), PROCESSOR, CONFIG)
    seen = [augment(pictures(), [0, seed]) for seed in range(8)]
    for clip in seen:
        assert clip.shape == (3, 3, 32, 32) and clip.dtype == torch.float32
        assert torch.equal(clip[0], clip[1]) and torch.equal(clip[0], clip[2])
    assert not any(torch.equal(seen[0], other) for other in seen[1:])
    assert torch.equal(seen[3], augment(pictures(), [0, 3]))


@needs_extra
def test_erased_boxes_are_at_one_place_and_noisy():
    off = ["auto_augment=null", "crop_scale=null", "flip=false"]
    clip = ClipAugmentation(recipe("random_erasing=1", *off), PROCESSOR, CONFIG)(pictures(), [5])
    plain = torch.from_numpy(PROCESSOR.fit(pictures()[0])).float() / 255
    plain = (plain - torch.tensor(CONFIG.image_mean)[:, None, None]) / torch.tensor(CONFIG.image_std)[:, None, None]
    erased = [(frame != plain).any(0) for frame in clip]
    assert 0 < erased[0].float().mean() < 0.4 and all(torch.equal(erased[0], other) for other in erased)
    assert (clip[0] != clip[1])[:, erased[0]].float().mean() > 0.99


@needs_extra
def test_mirroring_and_images():
    off = ["auto_augment=null", "crop_scale=null", "random_erasing=0"]
    augment = ClipAugmentation(recipe(*off), PROCESSOR, CONFIG)
    kinds = [augment(pictures(1), [seed]) for seed in range(40)]
    mirrored = sum(not torch.equal(clip, kinds[0]) for clip in kinds)
    assert 8 <= mirrored <= 32
    assert all(torch.equal(clip, kinds[0]) or torch.equal(clip.flip(-1), kinds[0]) for clip in kinds)
    for name in ("imagenet-s", "imagenet-ti"):  # RandAugment and AutoAugment, cropped first
        images = VideoMambaImageProcessor(size=32)
        assert ClipAugmentation(recipe(name=name), images, CONFIG)(pictures(1), [0]).shape == (1, 3, 32, 32)


@needs_extra
def test_clips_are_mixed_with_their_counterpart_and_labels_with_them():
    mix = ClipMixing(recipe("cutmix=0", "label_smoothing=0"), 4)
    clips = torch.randn(4, 3, 3, 8, 8)
    mixed, shares = mix(clips.clone(), torch.tensor([0, 1, 2, 3]), [7])
    lam = shares[0, 0]
    assert 0 < lam < 1
    torch.testing.assert_close(mixed, clips * lam + clips.flip(0) * (1 - lam))
    torch.testing.assert_close(shares[1], torch.tensor([0, lam, 1 - lam, 0]))
    cut, shares = ClipMixing(recipe("mixup=0"), 4)(clips.clone(), torch.tensor([0, 1, 2, 3]), [8])
    foreign = (cut != clips).any(2)  # (B, F, H, W)
    assert (foreign == foreign[:, :1]).all() and foreign.any()
    torch.testing.assert_close(cut[0][foreign[0][:, None].expand(-1, 3, -1, -1)],
                               clips[3][foreign[0][:, None].expand(-1, 3, -1, -1)])  # fmt: skip
    torch.testing.assert_close(shares.sum(1), torch.ones(4))


@needs_extra
def test_the_collator_mixes_in_training_alone():
    collate = ClipCollator(recipe(), 4)
    clips = [ClipViews([torch.randn(3, 3, 8, 8)] * 2, i, (0, 0, i)) for i in range(2)]
    batch = collate(clips)
    assert batch["labels"].shape == (4, 4) and torch.equal(batch["labels"], collate(clips)["labels"])
    assert collate([ClipViews(clip.pixels, clip.label, None) for clip in clips])["labels"].tolist() == [0, 0, 1, 1]
