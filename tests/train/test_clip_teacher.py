"""The CLIP teacher gives what transformers' CLIP computes, from every kind of folder; others are refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from modeling_video_ma2mba import VideoMambaConfig
from modeling_video_ma2mba.train.clip_teacher import load_clip_teacher

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 16, "projection_dim": 12, "initializer_range": 0.3,
}  # fmt: skip
STUDENT = VideoMambaConfig(hidden_size=8, num_hidden_layers=2, image_size=32, num_frames=3)


@pytest.fixture
def saved(tmp_path):
    """`saved(kind)` -> a random CLIP in a folder, and itself."""

    def save(kind, **changes):
        torch.manual_seed(0)
        vision = {**VISION, **changes}
        if kind is CLIPModel:
            text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
            config = CLIPConfig(vision_config=vision, text_config=text | {"vocab_size": 9}, projection_dim=12)
        else:
            config = CLIPVisionConfig(**vision)
        config._attn_implementation = "eager"  # the only one that tells its weights
        model = kind(config).eval()
        model.save_pretrained(tmp_path)
        return str(tmp_path), model

    return save


def reference(model, pixels, layers, projects):
    """Features of the last blocks and attention, by transformers' outputs, clip by clip."""
    with torch.no_grad():
        outputs = model(pixels.flatten(0, 1), output_attentions=True, output_hidden_states=True)
    features = []
    for hidden in outputs.hidden_states[-layers:]:  # the last one without the norm that the class token gets
        if projects:
            hidden = hidden @ model.visual_projection.weight.T
        clips = []
        for clip in hidden.unflatten(0, pixels.shape[:2]):  # (T, 1 + S, C)
            clips.append(torch.cat([clip[:, 0].mean(0, keepdim=True), *(frame[1:] for frame in clip)]))
        features.append(torch.stack(clips))
    attention = outputs.attentions[-1].mean(1)[:, 0, 1:]  # (B T, heads, 1 + S, 1 + S) before
    return torch.stack(features), attention.unflatten(0, pixels.shape[:2])


@pytest.mark.parametrize("layers", [1, 2])
def test_features_and_attention_are_transformers_own(saved, layers):
    folder, model = saved(CLIPVisionModelWithProjection)
    teacher, pixels = load_clip_teacher(folder, STUDENT, layers), torch.randn(2, 3, 3, 32, 32)
    features, attention = teacher(pixels, layers)
    expected = reference(model, pixels, layers, projects=True)
    assert features.shape == (layers, 2, 13, 12) and attention.shape == (2, 3, 4) and teacher.width == 12
    torch.testing.assert_close(features, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention, expected[1], rtol=1e-4, atol=1e-6)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_every_kind_of_folder(saved):
    pixels = torch.randn(1, 2, 3, 32, 32)
    folder, model = saved(CLIPVisionModel)
    teacher = load_clip_teacher(folder, STUDENT)
    assert teacher.projection is None and teacher.width == 16
    features, attention = teacher(pixels)
    expected = reference(model, pixels, 1, projects=False)
    torch.testing.assert_close(features, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention, expected[1], rtol=1e-4, atol=1e-6)

    folder, whole = saved(CLIPModel)
    teacher = load_clip_teacher(folder, STUDENT)
    assert torch.equal(teacher.projection.weight, whole.visual_projection.weight)
    assert torch.equal(teacher.blocks[1].mlp.fc1.weight, whole.vision_model.encoder.layers[1].mlp.fc1.weight)


def test_frames_are_resized_to_the_teachers_size(saved):
    folder, _ = saved(CLIPVisionModelWithProjection, image_size=28, patch_size=14)
    teacher, pixels = load_clip_teacher(folder, STUDENT), torch.randn(1, 2, 3, 32, 32)
    resized = F.interpolate(pixels[0], size=(28, 28), mode="bicubic", align_corners=False)[None]
    assert torch.equal(teacher(pixels)[0], teacher(resized)[0])


def test_the_shipped_model_is_a_teacher_up_to_its_feature_layer():
    from modeling_video_ma2mba.shipped_model import is_shipped, model_folder

    if not is_shipped():
        pytest.skip("this installation came without the shipped model")
    student = VideoMambaConfig(hidden_size=8, num_hidden_layers=2, image_size=64, num_frames=3)
    teacher = load_clip_teacher(model_folder("tiny"), student)
    features, attention = teacher(torch.randn(1, 2, 3, 64, 64))
    assert len(teacher.blocks) == 3 and teacher.grid == 4
    assert features.shape == (1, 1, 33, 96) and attention.shape == (1, 2, 16)


def test_other_teachers_are_refused(saved, tmp_path):
    folder, _ = saved(CLIPVisionModelWithProjection)
    with pytest.raises(ValueError, match=r"sees 2 x 2 patches, the student 4 x 4 \(image_size 64, patch_size 16\)"):
        load_clip_teacher(folder, VideoMambaConfig(image_size=64, num_frames=3))
    with pytest.raises(ValueError, match="has 3 blocks, fewer than aligned_layers=4"):
        load_clip_teacher(folder, STUDENT, 4)
    STUDENT.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="holds a 'videomamba' model: give a folder of a CLIP model"):
        load_clip_teacher(str(tmp_path / "other"), STUDENT)
    path = tmp_path / "model.safetensors"
    save_file({k: t for k, t in load_file(path).items() if "visual_projection" not in k}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"its weights lack visual_projection\.weight"):
        load_clip_teacher(folder, STUDENT)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cannot be loaded .*: give the folder of a CLIP model"):
        load_clip_teacher(folder, STUDENT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_clip_teacher(str(tmp_path / "empty"), STUDENT)
