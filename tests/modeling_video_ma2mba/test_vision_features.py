"""Frames in every form they may come, the tower up to its feature layer, and who stands where."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel

from modeling_video_ma2mba.vision_features import (
    FrameSequence,
    PlaceholderSpans,
    encode_frames,
    unused_tower_parameters,
)

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


class Source:
    """Frames that are no tensor, and a record of what was read."""

    def __init__(self, frames):
        self.frames, self.shape, self.reads = frames, tuple(frames.shape), []

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        self.reads.append((index.start, index.stop))
        return self.frames[index].numpy()


def normalised(frames, dtype=torch.float32):
    mean, std = (torch.tensor(v, dtype=dtype)[:, None, None] for v in (MEAN, STD))
    return (frames.to(dtype) / 255 - mean) / std


def sequence(given, name="pixel_values_videos"):
    return FrameSequence(given, 56, MEAN, STD, name)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("layer", [-1, -2, -3, -4, 0, 1, 3])
@torch.no_grad()
def test_the_tower_stops_at_the_feature_layer(video_config, frames, assert_close, tower, layer):
    config = video_config(tower, vision_feature_layer=layer)
    torch.manual_seed(0)
    model = AutoModel.from_config(config.vision_config).eval()
    pixels = normalised(frames(3))
    hidden = model(pixels, output_hidden_states=True).hidden_states[layer][:, 1 if tower == "clip" else 0 :]
    ran = []
    for i, block in enumerate(model.encoder.layers):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    whole = encode_frames(model, pixels, config.feature_layers_run, 1)
    assert ran == list(range(config.feature_layers_run))
    assert_close("patches", whole, hidden, 1e-6)
    grid = hidden.transpose(1, 2).reshape(3, 32, 4, 4)
    for stride, side in ((2, 2), (3, 2), (4, 1)):
        expected = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
        pooled = encode_frames(model, pixels, config.feature_layers_run, stride)
        assert_close(f"stride {stride}", pooled, expected.flatten(2).transpose(1, 2), 1e-6)


@pytest.mark.parametrize("tower", ["clip", "siglip", "videomamba"])
@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_unused_parameters_are_those_without_a_gradient(video_config, frames, tower, layer):
    config = video_config(tower, vision_feature_layer=layer)
    model = AutoModel.from_config(config.vision_config)
    encode_frames(model, normalised(frames(2)), config.feature_layers_run, 2).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused_tower_parameters(model, config.feature_layers_run) == without
    assert without or (tower, layer) == ("videomamba", -1)


def test_every_form_gives_the_same_frames(frames):
    film = frames(5)
    expected = normalised(film)
    forms = {
        "a batch of one": film[None],
        "one video": film,
        "a list": [film],
        "two pieces": [film[:2], film[2:]],
        "a tuple": (film[:4], film[4:]),
        "a source": Source(film),
        "sources": [Source(film[:3]), Source(film[3:])],
        "mixed": [film[:3], Source(film[3:])],
        "floats": expected,
        "half floats and bytes": [expected[:2], film[2:]],
    }
    for name, given in forms.items():
        given = sequence(given)
        assert len(given) == 5, name
        for start, stop in ((0, 5), (0, 1), (1, 4), (4, 5), (2, 3)):
            got = given.load(start, stop, torch.device("cpu"), torch.float32)
            torch.testing.assert_close(got, expected[start:stop], rtol=0, atol=1e-6, msg=f"{name} {start}:{stop}")


def test_images_are_single_frames(frames):
    pictures = frames(3)
    for given in (pictures, list(pictures), pictures[:, None], [pictures[:1], pictures[1], pictures[2:]]):
        images = sequence(given, "pixel_values")
        assert len(images) == 3
        got = images.load(0, 3, torch.device("cpu"), torch.float32)
        torch.testing.assert_close(got, normalised(pictures), rtol=0, atol=1e-6)


def test_a_source_is_read_only_where_it_is_needed(frames):
    first, second = Source(frames(4)), Source(frames(6, seed=1))
    films = sequence([first, second])
    films.load(5, 7, torch.device("cpu"), torch.float32)
    assert first.reads == [] and second.reads == [(1, 3)]
    films.load(3, 5, torch.device("cpu"), torch.float32)
    assert first.reads == [(3, 4)] and second.reads[-1] == (0, 1)


def test_bytes_are_normalised_in_the_precision_of_the_model(frames):
    film = frames(2)
    got = sequence(film).load(0, 2, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(got, normalised(film, torch.float64), rtol=0, atol=1e-14)
    half = sequence(film).load(0, 2, torch.device("cpu"), torch.bfloat16)
    assert torch.equal(half, normalised(film).bfloat16())  # rounded once, at the end


def test_what_are_no_frames_is_refused(frames):
    film = frames(2)
    wrong = [film[:, :, :55], film[:, :1], film[0, 0], [film, film[:, :, :, :14]], "film.mp4", [None], 3]
    for given in wrong:
        with pytest.raises(ValueError, match="pixel_values_videos"):
            sequence(given)
    with pytest.raises(ValueError, match=r"pixel_values_videos\[1\] has dtype torch.int64"):
        sequence([film, film.long()])
    with pytest.raises(ValueError, match=r"\[0\].*bool"):
        sequence(film.bool())


@pytest.mark.parametrize("limit", [1, 3, 16])
def test_micro_batches_hold_every_frame_once(frames, limit):
    films = sequence([frames(5), frames(1), frames(20)])
    for first, end in ((0, 1), (0, 26), (4, 7), (25, 26), (3, 3)):
        batches = films.batches(first, end, limit)
        assert [i for start, stop, _ in batches for i in range(start, stop)] == list(range(first, end))
        assert all(stop - start <= limit and clip == 1 for start, stop, clip in batches)
        assert len(batches) == -(-(end - first) // limit)  # videos share a batch


def test_clips_are_counted_from_the_start_of_each_video(frames):
    films = FrameSequence([frames(7), frames(1), frames(8)], 56, MEAN, STD, "pixel_values_videos", frames_per_clip=3)
    clips = [(0, 3), (3, 6), (6, 7), (7, 8), (8, 11), (11, 14), (14, 16)]
    assert [films.clip_of(frame) for frame in range(16)] == [clip for clip in clips for _ in range(*clip)]
    assert films.batches(0, 16, 1) == [(start, stop, stop - start) for start, stop in clips]
    assert films.batches(0, 16, 100) == [(0, 6, 3), (6, 8, 1), (8, 14, 3), (14, 16, 2)]
    assert films.batches(4, 12, 5) == [(3, 6, 3), (6, 8, 1), (8, 11, 3), (11, 14, 3)]
    assert films.batches(5, 5, 5) == []
    pictures = FrameSequence(frames(3), 56, MEAN, STD, "pixel_values", frames_per_clip=3)
    assert pictures.batches(0, 3, 16) == [(0, 3, 1)]


def test_spans_count_row_by_row():
    mask = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 1, 1]]).bool()
    spans = PlaceholderSpans(mask)
    assert len(spans) == 6
    assert spans.between(0, 5) == [(0, 3), (3, 3), (3, 6)]
    assert spans.between(2, 4) == [(1, 2), (3, 3), (4, 5)]
    for start in range(5):
        for stop in range(start + 1, 6):
            sizes = [end - first for first, end in spans.between(start, stop)]
            assert sizes == mask[:, start:stop].sum(1).tolist()
