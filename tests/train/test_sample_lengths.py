"""Lengths are those of the batches, files are opened once, and what cannot be used says why."""

import numpy as np
import pytest
from PIL import Image

from modeling_video_ma2mba.train import sample_lengths
from modeling_video_ma2mba.train.collator import SampleCollator
from modeling_video_ma2mba.train.recipes import load_recipe
from modeling_video_ma2mba.train.sample_lengths import measure, read_lengths, write_lengths
from modeling_video_ma2mba.train.samples import Media, Turn, conversation, interleaved
from modeling_video_ma2mba.train.synthetic_video import write_video
from modeling_video_ma2mba.train.training_set import MediaDecoder


@pytest.fixture
def samples(tmp_path):
    """A video, an image, a folder of frames, a part of the video, and two captioned parts of it."""
    write_video(tmp_path / "film.mp4", np.full((90, 64, 64, 3), 90, dtype=np.uint8), fps=10)
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.jpg")
    (tmp_path / "frames").mkdir()
    for i in range(7):
        Image.new("RGB", (64, 48)).save(tmp_path / "frames" / f"{i}.png")
    film = {"kind": "video", "path": tmp_path / "film.mp4"}
    kinds = [
        Media(**film),
        Media(kind="image", path=tmp_path / "photo.jpg"),
        Media(kind="frames", path=tmp_path / "frames", fps=2),
        Media(**film, start=2.0, end=5.0),
    ]
    turns = [Turn("who wins ?", "a car")]
    made = [conversation(id=str(i), source="test", media=media, turns=turns) for i, media in enumerate(kinds)]
    clips = [(Media(**film, end=4.0), "a car"), (Media(**film, start=4.0), "red")]
    return [*made, interleaved(id="clips", source="test", clips=clips)]


@pytest.mark.parametrize("overrides", [[], ["max_frames=4"], ["fps=2"]])
def test_they_are_those_of_the_batches(samples, processor, overrides):
    recipe, collator = load_recipe("tiny", "2", overrides), SampleCollator(processor)
    decode = MediaDecoder(processor.image_processor.fit, recipe.fps, recipe.max_frames)
    batches = [collator([decode(sample)]) for sample in samples]
    found = measure(samples, recipe, collator, show_progress=False)
    assert [one.tokens for one in found] == [batch["input_ids"].shape[1] for batch in batches]
    assert [one.problem for one in found] == [None] * 5
    assert [round(one.seconds, 1) for one in found] == [9.0, 0.0, 3.5, 3.0, 9.0]


def test_a_file_is_opened_once(samples, processor, monkeypatch):
    opened = []
    probe = sample_lengths.probe
    monkeypatch.setattr(sample_lengths, "probe", lambda path: opened.append(path) or probe(path))
    measure(samples, load_recipe("tiny", "2"), SampleCollator(processor), show_progress=False)
    assert len(opened) == 1


def test_what_cannot_be_used_says_why(samples, processor, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    turns = [Turn("who wins ?", "a car")]
    for media in (
        Media(kind="video", path=tmp_path / "broken.mp4"),
        Media(kind="video", path=tmp_path / "gone.mp4"),
        Media(kind="image", path=tmp_path / "broken.mp4"),
        Media(kind="video", path=tmp_path / "film.mp4", start=100.0, end=110.0),
    ):
        samples.append(conversation(id="bad", source="test", media=media, turns=turns))
    found = measure(samples, load_recipe("tiny", "2"), SampleCollator(processor), show_progress=False)
    assert [one.problem is None for one in found] == [True] * 5 + [False] * 4
    for one, word in zip(found[5:], ("broken.mp4", "gone.mp4", "broken.mp4", "film.mp4"), strict=True):
        assert word in one.problem and one.tokens == 0


def test_they_are_kept_in_a_file(samples, processor, tmp_path):
    found = measure(samples, load_recipe("tiny", "2"), SampleCollator(processor), show_progress=False)
    write_lengths(tmp_path / "lengths.jsonl", found)
    assert read_lengths(tmp_path / "lengths.jsonl") == found
    assert not list(tmp_path.glob("*.part"))
