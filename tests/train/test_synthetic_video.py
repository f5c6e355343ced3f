"""The generator of test and training video: numbers that survive, files as asked for, clips that match their truth."""

import itertools

import av
import numpy as np
import pytest
from PIL import Image

from modeling_video_ma2mba.train.synthetic_video import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    make_clip,
    numbered_frames,
    read_number,
    write_video,
)


def decode(path):
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("number", [0, 1, 255, 4242, 43690, 65535])
def test_number_survives_resizing_and_either_layout(number):
    frame = next(numbered_frames(1, 97, 131, first=number))
    assert frame.shape == (97, 131, 3) and frame.dtype == np.uint8
    assert read_number(frame) == number
    assert read_number(np.moveaxis(frame, -1, 0)) == number
    small = np.asarray(Image.fromarray(frame).resize((21, 17), Image.Resampling.BICUBIC))
    assert read_number(small) == number


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="16 bits"):
        next(numbered_frames(2, 32, 32, first=65535))


def test_number_survives_strong_compression(tmp_path):
    write_video(tmp_path / "a.mp4", numbered_frames(40, 64, 64, first=1000), options={"crf": "45"})
    assert [read_number(f.to_ndarray(format="rgb24")) for f in decode(tmp_path / "a.mp4")] == list(range(1000, 1040))


def test_times_rotation_and_sound(tmp_path):
    times = [0, 0.1, 0.5, 2.0]
    write_video(tmp_path / "a.mp4", numbered_frames(4, 32, 48), times=times, rotation=90, audio_seconds=1)
    frames = decode(tmp_path / "a.mp4")
    assert [f.time for f in frames] == pytest.approx(times, abs=1e-4)
    assert {f.rotation for f in frames} == {90}
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(container.streams.audio) == 1
    write_video(tmp_path / "sound.mp4", [], audio_seconds=1)
    with av.open(str(tmp_path / "sound.mp4")) as container:
        assert not container.streams.video and len(container.streams.audio) == 1


def test_key_frames_come_as_asked_for(tmp_path):
    write_video(tmp_path / "a.mp4", numbered_frames(25, 32, 32), gop=10, options={"sc_threshold": "0"})
    assert [i for i, f in enumerate(decode(tmp_path / "a.mp4")) if f.key_frame] == [0, 10, 20]


def test_clip_depends_on_the_seed_alone():
    first, again, other = make_clip(3), make_clip(3), make_clip(4)
    assert np.array_equal(first.frames, again.frames)
    assert (first.scenes, first.needle) == (again.scenes, again.needle)
    assert not np.array_equal(first.frames, other.frames)


@pytest.mark.parametrize("num_frames", [8, 9, 31, 32, 64])
def test_scenes_fill_the_clip(num_frames):
    for seed in range(20):
        clip = make_clip(seed, num_frames, size=28)
        assert clip.frames.shape == (num_frames, 28, 28, 3) and clip.frames.dtype == np.uint8
        assert (3 if num_frames >= 32 else 2) <= len(clip.scenes) <= min(6, num_frames // 4)
        bounds = [0] + [scene.end_frame for scene in clip.scenes]
        assert [scene.start_frame for scene in clip.scenes] == bounds[:-1] and bounds[-1] == num_frames
        assert min(np.diff(bounds)) >= 2
        looks = [(scene.colour, scene.shape) for scene in clip.scenes]
        assert all(a != b for a, b in itertools.pairwise(looks))
        assert {s.colour for s in clip.scenes} <= set(COLOURS) and {s.shape for s in clip.scenes} <= set(SHAPES)


def shape_pixels(frame):
    """Return the (x, y) of pixels that differ from the background, which fills a corner or another."""
    corners = [frame[0, 0], frame[0, -1], frame[-1, 0], frame[-1, -1]]
    background = np.median(np.array(corners), axis=0)
    y, x = np.nonzero(np.abs(frame.astype(int) - background).sum(axis=2) > 150)
    return np.stack([x, y], axis=1)


@pytest.mark.parametrize("size", [56, (72, 128)])
def test_pictures_show_what_the_truth_says(size):
    checked = 0
    for seed in range(30):
        clip = make_clip(seed, 16, size=size)
        for scene in clip.scenes:
            first, last = scene.start_frame, scene.end_frame - 1
            if clip.needle is not None and clip.needle.frame in (first, last):
                continue
            start, stop = shape_pixels(clip.frames[first]), shape_pixels(clip.frames[last])
            moved = stop.mean(axis=0) - start.mean(axis=0)
            direction = np.array(DIRECTIONS[scene.direction])
            assert moved @ direction > 8 and abs(moved @ direction[::-1]) < 2
            x, y = np.round(start.mean(axis=0)).astype(int)
            assert np.abs(clip.frames[first, y, x].astype(int) - COLOURS[scene.colour]).max() <= 18
            checked += 1
    assert checked > 50


def test_needle_is_in_its_frame_only():
    shown = 0
    for seed in range(40):
        clip = make_clip(seed, 16)
        # Pure white is the digit's alone: the shapes stay below 244.
        white = [index for index, frame in enumerate(clip.frames) if (frame == 255).all(axis=2).any()]
        assert white == ([] if clip.needle is None else [clip.needle.frame])
        shown += bool(white)
    assert 24 <= shown <= 39


def test_too_short_a_clip_is_refused():
    with pytest.raises(ValueError, match="at least 8"):
        make_clip(0, 7)
