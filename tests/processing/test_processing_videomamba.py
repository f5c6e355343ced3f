"""VideoMamba's processors: fitting, crops, sampling of files, Auto classes, transformers' own pipelines, the Hub."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForVideoClassification, AutoProcessor, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from modeling_video_ma2mba import (
    VideoMambaConfig,
    VideoMambaForImageClassification,
    VideoMambaForVideoClassification,
    VideoMambaImageProcessor,
    VideoMambaProcessor,
    VideoMambaVideoProcessor,
)
from modeling_video_ma2mba.processing.clip_sampling import clip_indices
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, read_number, write_video


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """90 numbered frames of 96 x 64, 3 seconds."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, numbered_frames(90, 64, 96), 30, options={"preset": "veryfast", "threads": "1"})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved clip model with its processor."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = VideoMambaConfig(
        hidden_size=32, num_hidden_layers=2, image_size=32, num_frames=4, id2label={0: "left", 1: "right", 2: "up"},
        label2id={"left": 0, "right": 1, "up": 2}, initializer_range=0.5,
    )  # fmt: skip
    VideoMambaForVideoClassification(config).save_pretrained(path)
    processor = VideoMambaImageProcessor(size=32, crop_ratio=1.0, resample="bilinear", num_frames=4, sampling="ssv2")
    VideoMambaProcessor(processor).save_pretrained(path)
    return path


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_crop_is_one_resize_and_a_cut():
    image = picture(90, 60)
    pixels = VideoMambaImageProcessor(size=28).fit(image)
    scaled = image.resize((48, 32), Image.Resampling.BICUBIC)  # 28 / 0.875 = 32
    assert np.array_equal(pixels, np.asarray(scaled.crop((10, 2, 38, 30))).transpose(2, 0, 1))
    clip = VideoMambaImageProcessor(size=28, crop_ratio=1.0, resample="bilinear").fit(image)
    scaled = image.resize((42, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(clip, np.asarray(scaled.crop((7, 0, 35, 28))).transpose(2, 0, 1))
    stretched = VideoMambaImageProcessor(size=28, frame_fit="stretch").fit(image)
    assert np.array_equal(stretched, np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)).transpose(2, 0, 1))


def test_pixels_are_pinned():
    processor = VideoMambaImageProcessor(size=32)
    digest = hashlib.sha256(processor([picture(90, 60), picture(50, 70, 1)])["pixel_values"].tobytes()).hexdigest()
    assert digest[:16] == "980d187143c53013"


@pytest.mark.parametrize("width, height", [(90, 60), (60, 90), (60, 60), (61, 60)])
def test_three_crops_lie_along_the_longer_side(width, height):
    processor = VideoMambaImageProcessor(size=28, crop_ratio=1.0)
    crops = processor.crops(picture(width, height), 3)
    assert crops.shape == (3, 3, 28, 28)
    scale = 28 / min(width, height)
    scaled = picture(width, height).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(scaled).transpose(2, 0, 1)
    longer = max(scaled.size)
    for crop, offset in zip(crops, (0, (longer - 28) // 2, longer - 28)):
        part = pixels[:, :, offset : offset + 28] if width >= height else pixels[:, offset : offset + 28]
        assert np.array_equal(crop, part)
    assert np.array_equal(processor.fit(picture(width, height)), crops[1])


@pytest.mark.parametrize("rule, view, views", [("sparse", 0, 1), ("sparse", 3, 4), ("ssv2", 1, 2), ("middle", 0, 1)])
def test_the_frames_of_a_file(film, rule, view, views):
    processor = VideoMambaVideoProcessor(size=64, crop_ratio=1.0, num_frames=8, sampling=rule)
    clip = processor(str(film), view=view, views=views)["pixel_values_videos"]
    assert clip.shape == (1, 8, 3, 64, 64) and clip.dtype == np.uint8
    # Numbers are burnt in as blocks over the whole picture: look at it whole.
    processor.frame_fit = "stretch"
    clip = processor(str(film), view=view, views=views)["pixel_values_videos"][0]
    numbers = [read_number(np.asarray(Image.fromarray(f.transpose(1, 2, 0)).resize((96, 64)))) for f in clip]
    assert numbers == clip_indices(90, 8, rule, view, views).tolist()


def test_frames_that_are_given(film):
    processor = VideoMambaVideoProcessor(size=64, frame_fit="stretch", num_frames=8)
    frames = np.stack(list(numbered_frames(90, 64, 96)))
    chosen = frames[clip_indices(90, 8)]
    expected = np.stack([processor.fit(frame) for frame in chosen])
    for given in (frames, frames.transpose(0, 3, 1, 2), list(frames), [Image.fromarray(f) for f in frames],
                  torch.from_numpy(frames), [frames]):  # fmt: skip
        assert np.array_equal(processor(given)["pixel_values_videos"], expected[None])
    as_it_is = processor(chosen[:3], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(as_it_is, torch.from_numpy(expected[None, :3]))
    two = processor([str(film), frames], num_frames=2)["pixel_values_videos"]
    assert two.shape == (2, 2, 3, 64, 64)


def test_what_is_refused(film, tmp_path):
    for fields, message in (
        ({"frame_fit": "pad"}, "choose 'crop' or 'stretch'"), ({"crop_ratio": 0.0}, "crop_ratio=0.0"),
        ({"resample": "lanczos"}, "'lanczos' is not one of bicubic, bilinear"), ({"num_frames": 0}, "num_frames=0"),
        ({"sampling": "dense"}, "'dense' is not one of sparse"), ({"size": 0}, "size=0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            VideoMambaImageProcessor(**fields)
    clips = VideoMambaVideoProcessor(size=16)
    with pytest.raises(ValueError, match="how many frames"):
        clips(str(film))
    with pytest.raises(ValueError, match="a file is sampled"):
        clips(str(film), do_sample_frames=False)
    with pytest.raises(ValueError, match="a video without a frame"):
        clips(np.zeros((0, 8, 8, 3), np.uint8), num_frames=2)
    with pytest.raises(ValueError, match="0 clips"):
        clips([], num_frames=2)
    with pytest.raises(ValueError, match=r"2 clips of \[1, 2\] frames in one call"):
        clips([np.zeros((n, 8, 8, 3), np.uint8) for n in (1, 2)], do_sample_frames=False)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(VideoReadError, match=r"bad\.mp4"):
        clips(tmp_path / "bad.mp4", num_frames=2)
    both = VideoMambaProcessor(VideoMambaImageProcessor(size=16))
    with pytest.raises(ValueError, match="either images or videos"):
        both()
    with pytest.raises(ValueError, match="num_frames: for videos only"):
        both(images=picture(9, 9), num_frames=3)


def test_auto_classes_find_the_saved_settings(folder, film):
    processor = AutoProcessor.from_pretrained(folder)
    images, clips = AutoImageProcessor.from_pretrained(folder), AutoVideoProcessor.from_pretrained(folder)
    assert (type(processor), type(images), type(clips)) == (
        VideoMambaProcessor, VideoMambaImageProcessor, VideoMambaVideoProcessor,
    )  # fmt: skip
    for loaded in (processor.image_processor, images, clips):
        settings = [getattr(loaded, n) for n in ("size", "crop_ratio", "resample", "num_frames", "sampling")]
        assert settings == [32, 1.0, "bilinear", 4, "ssv2"]
    inputs = processor(videos=str(film), return_tensors="pt")
    assert torch.equal(inputs["pixel_values_videos"], clips(str(film), return_tensors="pt")["pixel_values_videos"])
    image = processor(images=picture(50, 40), return_tensors="pt")["pixel_values"]
    assert torch.equal(image, images(picture(50, 40), return_tensors="pt")["pixel_values"])
    assert image.shape == (1, 3, 32, 32) and image.dtype == torch.uint8


def test_video_classification_pipeline(folder, film):
    classify = pipeline("video-classification", model=str(folder), device="cpu")
    assert type(classify.video_processor) is VideoMambaVideoProcessor
    model = AutoModelForVideoClassification.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        scores = model(**processor(videos=str(film), return_tensors="pt")).logits[0].softmax(-1)
    result = classify(str(film), top_k=2)
    assert [entry["label"] for entry in result] == [model.config.id2label[i] for i in scores.topk(2).indices.tolist()]
    assert [entry["score"] for entry in result] == pytest.approx(scores.topk(2).values.tolist(), abs=1e-5)
    assert classify([str(film)] * 2, top_k=2) == [result, result]
    narrow = pipeline("video-classification", model=str(folder), device="cpu", dtype=torch.bfloat16)
    assert narrow(str(film), top_k=1)[0]["score"] == pytest.approx(result[0]["score"], abs=0.05)


def test_image_classification_pipeline(tmp_path):
    torch.manual_seed(0)
    config = VideoMambaConfig(hidden_size=32, num_hidden_layers=2, image_size=32, num_labels=3)
    model = VideoMambaForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    VideoMambaProcessor(VideoMambaImageProcessor(size=32)).save_pretrained(tmp_path)
    result = pipeline("image-classification", model=str(tmp_path), device="cpu")(picture(50, 40), top_k=1)[0]
    pixels = VideoMambaImageProcessor(size=32)(picture(50, 40), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        scores = model(pixels).logits[0].softmax(-1)
    assert result["score"] == pytest.approx(scores.max().item(), abs=1e-5)


def test_a_folder_carries_its_code(folder, film, tmp_path):
    # An editable install would make the package importable: a finder that refuses it stands in for its absence.
    code = f"""
import sys, importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_video_ma2mba":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, AutoProcessor, pipeline
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
for auto in (AutoConfig, AutoModel, AutoModelForVideoClassification, AutoProcessor, AutoVideoProcessor):
    loaded = auto.from_pretrained({str(folder)!r}, trust_remote_code=True)
    print(type(loaded).__module__.split(".")[0], type(loaded).__name__)
classify = pipeline("video-classification", model={str(folder)!r}, trust_remote_code=True, device="cpu")
print(classify({str(film)!r}, top_k=1)[0])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        "transformers_modules VideoMambaConfig",
        "transformers_modules VideoMambaModel",
        "transformers_modules VideoMambaForVideoClassification",
        "transformers_modules VideoMambaProcessor",
        "transformers_modules VideoMambaVideoProcessor",
    ]
    expected = pipeline("video-classification", model=str(folder), device="cpu")(str(film), top_k=1)[0]
    assert lines[5] == str(expected)
