"""Multi-view testing: the mean over views, scores by hand, clips that cannot be read."""

import numpy as np
import pytest
import torch

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaForVideoClassification, VideoMambaImageProcessor
from modeling_video_ma2mba.train.clip_views import test_views
from modeling_video_ma2mba.train.multi_view import predict_views, test_clips
from modeling_video_ma2mba.train.read_clips import LabelledClip
from modeling_video_ma2mba.train.samples import Media
from modeling_video_ma2mba.train.synthetic_video import write_video

PROCESSOR = VideoMambaImageProcessor(size=32, crop_ratio=1.0, resample="bilinear", num_frames=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(3):
        frames = np.random.default_rng(i).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
        write_video(folder / f"{i}.mp4", frames, fps=6)
    return [LabelledClip(str(i), "clips", Media(kind="video", path=folder / f"{i}.mp4"), i) for i in range(3)]


def model(labels=3):
    torch.manual_seed(0)
    config = VideoMambaConfig(hidden_size=16, num_hidden_layers=2, image_size=32, num_frames=2, num_labels=labels,
                              initializer_range=0.5)  # fmt: skip
    return VideoMambaForVideoClassification(config).eval()


def test_the_mean_of_the_shares_of_all_views(clips):
    classifier = model()
    views = torch.from_numpy(test_views(clips[1].medium, PROCESSOR, 2, 3))
    with torch.no_grad():
        each = [classifier(pixel_values_videos=view[None]).logits[0].softmax(-1) for view in views]
    assert len(each) == 6
    torch.testing.assert_close(predict_views(classifier, views, 4), torch.stack(each).mean(0))


def test_scores_are_those_of_the_predictions(clips):
    found = test_clips(model(), PROCESSOR, clips, views=(2, 3), at_once=4)
    assert [row["id"] for row in found["predictions"]] == ["0", "1", "2"] and found["clips"] == 3
    right = [row["prediction"] == row["label"] for row in found["predictions"]]
    assert found["top1"] == sum(right) / 3 and found["top5"] == 1 and found["views"] == [2, 3]


def test_a_rating_is_the_mean_and_its_error_squared(clips):
    regression = model(labels=1)
    found = test_clips(regression, PROCESSOR, clips, views=(2, 1))
    views = torch.from_numpy(test_views(clips[0].medium, PROCESSOR, 2, 1))
    with torch.no_grad():
        mean = regression(pixel_values_videos=views).logits.mean().item()
    assert found["predictions"][0]["prediction"] == pytest.approx(mean, abs=1e-5)
    errors = [(row["prediction"] - row["label"]) ** 2 for row in found["predictions"]]
    assert found["mean_squared_error"] == pytest.approx(sum(errors) / 3) and "top1" not in found


def test_clips_that_cannot_be_read_are_named_and_not_counted(clips, tmp_path):
    missing = LabelledClip("x", "clips", Media(kind="video", path=tmp_path / "x.mp4"), 0)
    found = test_clips(model(), PROCESSOR, [missing, clips[0]])
    assert found["clips"] == 1 and [entry["id"] for entry in found["not_read"]] == ["x"]
    with pytest.raises(ValueError, match=r"none of 1 clips can be read; the first: .*x\.mp4"):
        test_clips(model(), PROCESSOR, [missing])
