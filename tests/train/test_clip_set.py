"""What the Trainer draws from: order, randomness that depends on seed, epoch and place alone, batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_video_ma2mba import VideoMambaImageProcessor
from modeling_video_ma2mba.processing.clip_sampling import clip_indices
from modeling_video_ma2mba.train.clip_set import (
    ClipCollator,
    ClipSampler,
    ClipTrainingSet,
    ClipValidationSet,
    ClipViews,
    Draw,
)
from modeling_video_ma2mba.train.clip_views import media_frames, test_views
from modeling_video_ma2mba.train.read_clips import LabelledClip
from modeling_video_ma2mba.train.samples import Media
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, read_number, write_video
from modeling_video_ma2mba.train.videomamba_recipes import load_videomamba_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two films of 40 numbered frames of 64 x 48 at 10 per second, and a folder of 12 numbered pictures."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        write_video(folder / f"{i}.mp4", numbered_frames(40, 48, 64, first=100 * i), fps=10)
    (folder / "frames").mkdir()
    for i, frame in enumerate(numbered_frames(12, 48, 64)):
        Image.fromarray(frame).save(folder / "frames" / f"img_{i:05}.png")
    return folder


@pytest.fixture
def processor():
    """Numbers are burnt in over the whole picture: look at it whole."""
    return VideoMambaImageProcessor(size=32, frame_fit="stretch", num_frames=4)


def numbers(view):
    return [read_number(np.asarray(frame)) for frame in view]


def clips(folder, *names):
    return [LabelledClip(n, "clips", Media(kind="video", path=folder / n), i) for i, n in enumerate(names)]


def recipe(*overrides):
    return load_videomamba_recipe("tiny", overrides=["frames=4", "repeated_augmentation=2", *overrides])


def test_an_epoch_has_every_clip_once_and_resumes_where_it_was():
    steps_done = 0
    sampler = ClipSampler(10, 1, 4, seed=3, steps_done=lambda: steps_done)
    first = list(sampler)
    assert len(sampler) == len(first) == 8 and len({draw.index for draw in first}) == 8
    assert [(draw.epoch, draw.place) for draw in first] == [(0, place) for place in range(8)]
    steps_done = 1
    assert list(sampler) == first
    steps_done = 2
    second = list(sampler)
    assert [draw.epoch for draw in second] == [1] * 8 and [d.index for d in second] != [d.index for d in first]
    assert list(ClipSampler(10, 1, 4, seed=4, steps_done=lambda: 0)) != first
    with pytest.raises(ValueError, match="3 clips are fewer than the 4 of one step"):
        ClipSampler(3, 1, 4, 0, lambda: 0)


def test_repeats_of_images_stand_beside_each_other_and_the_epoch_gets_no_longer():
    drawn = [draw.index for draw in ClipSampler(12, 3, 6, seed=0, steps_done=lambda: 0)]
    assert len(drawn) == 12 and drawn[:3] == [drawn[0]] * 3 and len(set(drawn)) == 4


def test_a_draw_is_the_same_whenever_it_is_drawn(folder, processor, tmp_path):
    data = ClipTrainingSet(clips(folder, "0.mp4", "1.mp4"), recipe(), processor, None, tmp_path / "bad.jsonl")
    one = data[Draw(0, 5, 1)]
    data[Draw(0, 6, 0)]
    again, later = data[Draw(0, 5, 1)], data[Draw(1, 5, 1)]
    assert one.label == 1 and one.seed == (0, 0, 5) and len(one.pixels) == 2
    assert torch.equal(one.pixels[0], again.pixels[0]) and one.pixels[0].dtype == torch.uint8
    assert one.pixels[0].shape == (4, 3, 32, 32)
    shown = numbers(one.pixels[0])
    assert shown != numbers(later.pixels[0])
    assert [100 + 39 * i // 4 <= number <= 101 + 39 * (i + 1) // 4 for i, number in enumerate(shown)] == [True] * 4


def test_the_next_clip_stands_in_for_one_that_cannot_be_read(folder, processor, tmp_path):
    data = ClipTrainingSet(clips(folder, "missing.mp4", "1.mp4"), recipe(), processor, None, tmp_path / "bad.jsonl")
    assert data[Draw(0, 0, 0)].label == 1
    assert "missing.mp4" in (tmp_path / "bad.jsonl").read_text()


def test_test_views_are_those_of_the_rule(folder, processor):
    video = Media(kind="video", path=folder / "1.mp4")
    views = test_views(video, processor, clips=3)
    assert views.shape == (3, 4, 3, 32, 32) and views.dtype == np.uint8
    expected = [(100 + clip_indices(40, 4, "sparse", c, 3)).tolist() for c in range(3)]
    assert [numbers(view) for view in views] == expected
    part = Media(kind="video", path=folder / "1.mp4", start=1.0, end=3.0)
    assert numbers(test_views(part, processor)[0]) == (110 + clip_indices(20, 4)).tolist()
    frames = Media(kind="frames", path=folder / "frames", fps=1.0)
    assert numbers(test_views(frames, processor)[0]) == clip_indices(12, 4).tolist()
    cut = VideoMambaImageProcessor(size=32, crop_ratio=1.0, resample="bilinear", num_frames=4)
    views = test_views(video, cut, clips=2, crops=3)  # clip by clip, each with its crops
    assert views.shape == (6, 4, 3, 32, 32)
    picture = next(media_frames(video, lambda total: clip_indices(total, 4, "sparse", 1, 2)))
    assert np.array_equal(views[3:, 0], cut.crops(picture, 3))
    image = Media(kind="image", path=folder / "frames" / "img_00007.png")
    assert numbers(test_views(image, processor)[0]) == [7]
    with pytest.raises(ValueError, match=r"lasts 4\.00 s: there is nothing from 9 s on"):
        test_views(Media(kind="video", path=folder / "1.mp4", start=9.0), processor)


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    image = Media(kind="image", path=folder / "frames" / "img_00007.png")
    with pytest.raises(ValueError, match=r"img_00007\.png: .*exceeds limit"):
        next(media_frames(image, None))


def test_validation_sees_one_view(folder, processor, tmp_path):
    data = ClipValidationSet(clips(folder, "0.mp4"), recipe(), processor, tmp_path / "bad.jsonl")
    (one,) = [data[0]]
    assert numbers(one.pixels[0]) == clip_indices(40, 4).tolist() and one.seed is None


def test_batches():
    views = [torch.full((4, 3, 8, 8), i, dtype=torch.uint8) for i in range(4)]
    batch = ClipCollator(recipe(), 3)([ClipViews(views[:2], 0, (0, 0, 0)), ClipViews(views[2:], 2, (0, 0, 1))])
    assert batch["pixel_values_videos"].shape == (4, 4, 3, 8, 8) and batch["labels"].tolist() == [0, 0, 2, 2]
    smooth = ClipCollator(recipe("label_smoothing=0.3"), 3)
    shares = smooth([ClipViews(views[:1], 1, (0, 0, 0))])["labels"]
    torch.testing.assert_close(shares, torch.tensor([[0.1, 0.8, 0.1]]))
    assert smooth([ClipViews(views[:1], 1, None)])["labels"].tolist() == [1]  # a validation
    assert ClipCollator(recipe(), 1)([ClipViews(views[:1], 0.25, None)])["labels"].tolist() == [0.25]
    images = ClipCollator(load_videomamba_recipe("tiny", overrides=["frames=null", "test_clips=1"]), 3)
    assert images([ClipViews([views[0][:1]], 1, (0, 0, 0))])["pixel_values"].shape == (1, 3, 8, 8)
