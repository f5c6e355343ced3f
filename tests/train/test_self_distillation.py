"""Self-distillation: the loss is the paper's, the teacher stays as it is, the projection is not kept."""

import pytest
import torch
from torch.nn import functional as F

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaForImageClassification, VideoMambaForVideoClassification
from modeling_video_ma2mba.train.self_distillation import (
    VideoMambaStudentForImageClassification,
    VideoMambaStudentForVideoClassification,
    feature_distance,
    load_teacher,
    teacher_features,
    without_teacher,
)

FIELDS = {"num_hidden_layers": 2, "image_size": 32, "num_labels": 5, "backend": "torch", "initializer_range": 0.3}


def test_the_distance_is_that_of_unit_vectors():
    student, teacher = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    cosines = F.cosine_similarity(student, teacher, dim=-1)
    torch.testing.assert_close(feature_distance(student, teacher), (2 - 2 * cosines).mean())
    assert feature_distance(student, 3 * student) < 1e-10
    torch.testing.assert_close(feature_distance(student, -student), torch.tensor(4.0))


@pytest.mark.parametrize("is_video", [False, True])
def test_the_loss_is_the_papers(is_video, tmp_path):
    torch.manual_seed(0)
    frames = {"num_frames": 2} if is_video else {}
    small = (VideoMambaForVideoClassification if is_video else VideoMambaForImageClassification)(
        VideoMambaConfig(hidden_size=16, **FIELDS, **frames)
    )
    small.save_pretrained(tmp_path)
    kind = VideoMambaStudentForVideoClassification if is_video else VideoMambaStudentForImageClassification
    config = VideoMambaConfig(hidden_size=32, **FIELDS, **frames)
    student, teacher = kind(config, 16).eval(), load_teacher(tmp_path, config)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    pixels = torch.randn(3, 2, 3, 32, 32) if is_video else torch.randn(3, 3, 32, 32)
    inputs = {"pixel_values_videos" if is_video else "pixel_values": pixels}
    labels = torch.tensor([0, 1, 4])
    features = teacher_features(teacher, {**inputs, "labels": labels})
    tokens = 1 + (2 if is_video else 1) * 4
    torch.testing.assert_close(features, small.eval().videomamba(**inputs).last_hidden_state)  # normed, all tokens
    assert features.shape == (3, tokens, 16)

    outputs = student(**inputs, labels=labels, teacher_features=features)
    hidden = student.videomamba(**inputs).last_hidden_state
    norm, linear = student.distill_head
    root = hidden.square().mean(-1, keepdim=True).add(config.layer_norm_epsilon).rsqrt()
    projected = hidden * root * norm.weight @ linear.weight.T + linear.bias
    cosines = F.cosine_similarity(projected, features, dim=-1)  # (B, tokens)
    expected = F.cross_entropy(outputs.logits, labels) + (2 - 2 * cosines).mean()
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(student(**inputs, labels=labels).loss, F.cross_entropy(outputs.logits, labels))

    outputs.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    kept = without_teacher(student).eval()
    assert not any("distill" in name for name in kept.state_dict())
    torch.testing.assert_close(kept(**inputs).logits, outputs.logits)


def test_a_teacher_reads_what_the_student_reads(tmp_path):
    VideoMambaForImageClassification(VideoMambaConfig(hidden_size=16, **FIELDS)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its image_size is 32, the student's 48; features are compared"):
        load_teacher(tmp_path, VideoMambaConfig(hidden_size=32, **{**FIELDS, "image_size": 48}))
    with pytest.raises(ValueError, match="its num_frames is None, the student's 4"):
        load_teacher(tmp_path, VideoMambaConfig(hidden_size=32, **FIELDS, num_frames=4))
