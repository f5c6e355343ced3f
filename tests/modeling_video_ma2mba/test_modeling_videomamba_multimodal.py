"""The multi-modal VideoMamba: its losses out of its parts, padding, layers and names, save and load, refusals."""

import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, BertForMaskedLM

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaMultiModalConfig, VideoMambaMultiModalModel
from modeling_video_ma2mba.fusion_text_encoder import FusionTextEncoder
from tests.modeling_video_ma2mba.multimodal_model import batch, tiny_config, tiny_model, tiny_processor


def texts_only(inputs):
    return inputs["input_ids"], inputs["attention_mask"]


def test_the_losses_from_the_parts():
    """Each loss written out from what the parts give for one pair at a time."""
    model, inputs = tiny_model().double(), batch(count=2)
    with torch.no_grad():
        output = model(**inputs)
        vision_embeds, vision = model.encode_vision(pixel_values_videos=inputs["pixel_values_videos"])
        text_embeds, texts = model.encode_text(*texts_only(inputs))
        cosine = [
            [F.cosine_similarity(clip, text[None]).mean() for text in text_embeds] for clip in vision_embeds
        ]  # (B, B)
        cosine = torch.stack([torch.stack(row) for row in cosine])
        scores = cosine / 0.07
        vtc = -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()).mean() / 2
        logits = {}
        for i in range(2):
            for j in range(2):
                logits[i, j] = model.match(texts[i : i + 1], inputs["attention_mask"][i : i + 1], vision[j : j + 1])[0]
        # Of two pairs the other one is the only negative: two pairs, two texts with the other clip, and the reverse.
        yes = [logits[0, 0], logits[1, 1]]
        no = [logits[0, 1], logits[1, 0]] * 2
        vtm = -sum(one.log_softmax(0)[1] for one in yes) - sum(one.log_softmax(0)[0] for one in no)
        words, total = 0, 0
        for i in range(2):
            hidden = model.text_encoder.encode(
                inputs["masked_input_ids"][i : i + 1], inputs["attention_mask"][i][None]
            )
            hidden = model.text_encoder.fuse(hidden, inputs["attention_mask"][i][None], vision[i : i + 1])
            told = model.text_encoder.cls(hidden)[0].log_softmax(-1)
            for place, word in enumerate(inputs["labels"][i].tolist()):
                if word != -100:
                    words, total = words + 1, total - told[place, word]
    assert torch.allclose(output.similarity, cosine, atol=1e-10)
    assert torch.allclose(output.vtc_loss, vtc, atol=1e-10)
    assert torch.allclose(output.vtm_loss.double(), vtm / 6, atol=1e-6)
    assert words > 2 and torch.allclose(output.mlm_loss.double(), total / words, atol=1e-6)
    assert torch.allclose(output.loss, output.vtc_loss + output.vtm_loss + output.mlm_loss)


def test_every_parameter_learns():
    model = tiny_model().train()
    model(**batch()).loss.backward()
    still = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0}
    # A key's bias moves all scores of a query alike.
    assert all(name.endswith("key.bias") for name in still), still


def test_images_skip_the_temporal_positions_and_train_all_parameters():
    model, inputs = tiny_model().train(), batch()
    with torch.no_grad():
        model.vision_encoder.temporal_pos_embedding.normal_()
    inputs["pixel_values"] = inputs.pop("pixel_values_videos")[:, 0]
    first = model(**inputs).vision_embeds
    assert first.shape == (4, 1, 8)
    with torch.no_grad():
        model.vision_encoder.temporal_pos_embedding.normal_()
    output = model(**inputs)
    assert torch.equal(first, output.vision_embeds)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.vision_encoder.temporal_pos_embedding.grad.abs().max() == 0


def test_padding_of_texts_is_invisible_and_texts_are_read_both_ways():
    model, inputs = tiny_model(), batch()
    ids, mask = texts_only(inputs)
    vision = model.encode_vision(pixel_values_videos=inputs["pixel_values_videos"])[1]
    embeds, texts = model.encode_text(ids, mask)
    alone_embeds, alone = model.encode_text(ids[1:2, :4], mask[1:2, :4])
    assert torch.allclose(embeds[1:2], alone_embeds, atol=1e-6)
    together = model.match(texts, mask, vision)[1]
    assert torch.allclose(together, model.match(alone, mask[1:2, :4], vision[1:2])[0], atol=1e-6)
    for full in (torch.ones_like(mask), mask):  # [CLS], the first token, sees the last one, in both parts
        other = ids.clone()
        other[0, -1] = 5 + (other[0, -1] - 4) % 10
        assert not torch.allclose(model.encode_text(other, full)[0][0], model.encode_text(ids, full)[0][0])
    changed = texts.clone()
    changed[0, -1] += torch.randn(texts.shape[-1], generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(model.match(changed, mask, vision)[0], model.match(texts, mask, vision)[0])


def test_the_layers_before_the_fusion_are_transformers_bert():
    """BERT's own layers with the same weights give the same texts, and know nothing of the clip."""
    torch.manual_seed(0)
    config = tiny_config().text_config
    ours = FusionTextEncoder(config, fusion_layer=2, vision_width=16).eval()
    assert not hasattr(ours.bert.encoder.layer[1], "crossattention")
    assert ours.bert.encoder.layer[2].crossattention.self.key.weight.shape == (24, 16)
    theirs = BertForMaskedLM(config).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and all(".layer.2.crossattention." in name for name in unexpected)
    ids, mask = texts_only(batch())
    expected = theirs.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    assert torch.allclose(ours.encode(ids, mask)[mask == 1], expected[mask == 1], atol=1e-6)


def test_names_are_the_published_ones():
    names = set(tiny_model().state_dict())
    for name in (
        "temp", "vision_proj.weight", "text_proj.bias", "itm_head.weight", "vision_encoder.pool_norm.bias",
        "vision_encoder.layers.2.mixer.A_b_log", "text_encoder.bert.embeddings.word_embeddings.weight",
        "text_encoder.bert.encoder.layer.2.crossattention.self.key.weight",
        "text_encoder.bert.encoder.layer.0.attention.output.LayerNorm.weight",
        "text_encoder.cls.predictions.transform.dense.weight", "text_encoder.cls.predictions.decoder.weight",
    ):  # fmt: skip
        assert name in names, name


def test_the_published_sizes():
    with torch.device("meta"):
        model = VideoMambaMultiModalModel(VideoMambaMultiModalConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["vision_proj.weight"] == (512, 576) and shapes["text_proj.weight"] == (512, 768)
    assert shapes["itm_head.weight"] == (2, 768) and shapes["temp"] == ()
    assert shapes["text_encoder.bert.embeddings.word_embeddings.weight"] == (30522, 768)
    fused = sorted({int(name.split(".")[4]) for name in shapes if "crossattention" in name})
    assert fused == [9, 10, 11]
    assert shapes["text_encoder.bert.encoder.layer.9.crossattention.self.value.weight"] == (768, 576)
    assert shapes["vision_encoder.temporal_pos_embedding"] == (1, 8, 576)


def test_a_folder_gives_the_same_model_also_without_this_package(tmp_path):
    model, inputs = tiny_model(), batch()
    with torch.no_grad():
        model.temp.fill_(0.2)
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    assert "text_encoder.cls.predictions.decoder.weight" not in load_file(tmp_path / "model.safetensors")  # tied
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is VideoMambaMultiModalModel and loaded.temp.item() == pytest.approx(0.2)
    again = loaded.eval()(**{name: inputs[name] for name in ("pixel_values_videos", "input_ids", "attention_mask")})
    assert torch.equal(again.similarity, model(**inputs).similarity)
    code = (
        "from transformers import AutoModel, AutoProcessor\n"
        f"model = AutoModel.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        "import sys\n"
        "assert 'modeling_video_ma2mba' not in sys.modules\n"
        "print(type(model).__name__, processor(text='A red circle')['input_ids'].tolist())"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "HF_MODULES_CACHE": str(elsewhere / "modules")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=elsewhere, capture_output=True, text=True)
    assert done.stdout.strip() == "VideoMambaMultiModalModel [[2, 5, 6, 9, 3]]", done.stderr[-2000:]


def test_the_temperature_stays_within_its_bounds():
    model, inputs = tiny_model(), batch()
    for value, kept in ((1e-6, 0.001), (3.0, 0.5)):
        with torch.no_grad():
            model.temp.fill_(value)
        model(**inputs)
        assert model.temp.item() == pytest.approx(kept)


def test_checkpointing_changes_nothing():
    model, inputs = tiny_model().train(), batch()
    grads = []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        model(**inputs).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*grads))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fusion_layer": 3}, "fusion_layer=3 must be between 1 and 2"),
        ({"fusion_layer": 0}, "fusion_layer=0"),
        ({"vision_config": {"hidden_size": 16, "num_hidden_layers": 2}}, "num_frames=None is an image model"),
        ({"vision_config": {"num_frames": 4, "tubelet_size": 2}}, "tubelet_size=2 must be 1"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "model_type='clip_vision_model'; allowed"),
        ({"text_config": {"is_decoder": True}}, "is_decoder and add_cross_attention must be false"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"projection_size": 0}, "projection_size=0 must be at least 1"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        VideoMambaMultiModalConfig(**{**tiny_config().to_dict(), **fields})


def test_a_configuration_survives_its_dict():
    config = tiny_config()
    again = VideoMambaMultiModalConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict() and isinstance(again.vision_config, VideoMambaConfig)


def test_texts_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="texts of 30 tokens; this model reads up to 24"):
        tiny_model().encode_text(torch.full((1, 30), 5), torch.ones(1, 30, dtype=torch.long))
