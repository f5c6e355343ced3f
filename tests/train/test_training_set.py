"""Media are decoded when asked for, in bounded memory; what cannot be read is listed and passed over."""

import gc
import json
import os
import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from modeling_video_ma2mba.train.samples import Media, captioned, interleaved
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video
from modeling_video_ma2mba.train.training_set import FRAMES_IN_MEMORY, MediaDecoder, TrainingSet


def fit(picture):
    """Take one pixel of every eight: what is tested is not how pictures are fitted."""
    return np.ascontiguousarray(np.asarray(picture)[::8, ::8].transpose(2, 0, 1))


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    write_video(path, numbered_frames(100, 64, 64), fps=10)  # 10 s
    return path


def sample(path, **part):
    return captioned(id=path.stem, source="test", media=Media(kind="video", path=path, **part), caption="red")


def test_a_part_of_a_video_is_sampled_at_the_rate(film):
    decode = MediaDecoder(fit, fps=2.0)
    assert [len(video) for video in decode(sample(film)).videos] == [20]
    assert [len(video) for video in decode(sample(film, start=2.0, end=5.0)).videos] == [6]


def test_the_frame_limit_holds_for_all_clips_of_a_sample(film):
    clips = [(Media(kind="video", path=film, start=s, end=s + 5), "red") for s in (0.0, 5.0)]
    decoded = MediaDecoder(fit, fps=2.0, max_frames=6)(interleaved(id="1", source="test", clips=clips))
    assert [len(video) for video in decoded.videos] == [3, 3]


def test_images_and_folders_of_frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (64, 64), (30 * i, 0, 0)).save(folder / f"{i:03}.png")
    decode = MediaDecoder(fit)
    media = Media(kind="frames", path=folder, fps=2.0)
    (video,) = decode(captioned(id="1", source="test", media=media, caption="red")).videos
    assert video[0:9][:, 0, 0, 0].tolist() == [0, 60, 120, 180]
    image = Media(kind="image", path=folder / "001.png")
    (picture,) = decode(captioned(id="1", source="test", media=image, caption="red")).images
    assert picture.shape == (64, 64, 3)


def test_a_long_video_goes_to_a_file_that_travels_to_whoever_gets_it(film, tmp_path):
    decode = MediaDecoder(fit, fps=10.0, directory=tmp_path)
    (video,) = decode(sample(film)).videos
    assert len(video) == 100 > FRAMES_IN_MEMORY and os.path.exists(video.path)
    expected = video[40:60]
    received = pickle.loads(pickle.dumps(video))  # what a data loader worker does
    path = video.path
    del video
    gc.collect()
    assert os.path.exists(path)
    assert (received[40:60] == expected).all()
    del received
    gc.collect()
    assert not os.path.exists(path)


def test_six_hours_take_little_memory(tmp_path, monkeypatch):
    """21,600 frames from the reader's chunks to the file, within 64 MB of host memory."""
    import modeling_video_ma2mba.train.training_set as module

    def six_hours(path, **sampling):
        for _ in range(21_600 // 32):
            yield np.zeros(32), np.zeros((32, 224, 224, 3), dtype=np.uint8)

    monkeypatch.setattr(module, "iter_frames", six_hours)
    tracemalloc.start()
    (video,) = MediaDecoder(fit, directory=tmp_path)(sample(tmp_path / "day.mp4")).videos
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(video) == 21_600
    assert peak < 64 * 2**20


def test_the_size_of_the_file_is_limited(film, tmp_path):
    with pytest.raises(ValueError, match="limit_bytes"):
        MediaDecoder(fit, fps=10.0, directory=tmp_path, limit_bytes=80 * 3 * 64)(sample(film))
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_a_bad_sample_is_listed_and_the_next_stands_in(film, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(film.read_bytes()[:300])
    samples = [sample(broken), sample(film), sample(tmp_path / "missing.mp4")]
    data = TrainingSet(samples, MediaDecoder(fit), tmp_path / "left_out.jsonl", max_bad_share=1.0)
    assert [data[i].sample.id for i in range(3)] == ["film", "film", "film"]
    listed = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in listed] == ["broken", "missing", "broken"]
    assert all(entry["reason"] and entry["path"] for entry in listed)


def test_too_many_bad_samples_stop_the_run(film, tmp_path):
    samples = [sample(tmp_path / f"{i}.mp4") for i in range(30)] + [sample(film)]
    data = TrainingSet(samples, MediaDecoder(fit), tmp_path / "left_out.jsonl", max_bad_share=0.05)
    with pytest.raises(RuntimeError, match=r"20 of 20 samples could not be read, more than max_bad_share=0\.05"):
        data[0]


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(ValueError, match="no sample"):
        TrainingSet([], MediaDecoder(fit), tmp_path / "left_out.jsonl", 0.05)
