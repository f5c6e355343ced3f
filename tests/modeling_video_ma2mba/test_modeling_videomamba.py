"""VideoMamba: sizes, directions, scans, precision, checkpointing, stochastic depth, heads."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForVideoClassification, Trainer, TrainingArguments

from modeling_video_ma2mba import (
    VideoMambaConfig,
    VideoMambaForImageClassification,
    VideoMambaForVideoClassification,
    VideoMambaModel,
    kernels,
    modeling_videomamba,
)
from modeling_video_ma2mba.kernels import Backend
from modeling_video_ma2mba.modeling_videomamba import VideoMambaBlock, VideoMambaMixer
from modeling_video_ma2mba.scan_orders import SCANS, temporal_first
from modeling_video_ma2mba.selective_scan import selective_scan_recurrence

_spec = importlib.util.spec_from_file_location(
    "videomamba_reference", Path(__file__).parent / "videomamba_reference.py"
)
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)
TORCH = Backend(scan="torch", conv="torch", reason="test")
FIELDS = {"hidden_size": 32, "num_hidden_layers": 3, "image_size": 32, "num_labels": 5, "backend": "torch"}


def lively(module, seed=0):
    """Draw parameters that all matter: no bias is zero, steps reach 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else 0.3 * noise)
    return module.eval()


def build(kind=VideoMambaForVideoClassification, dtype=torch.float64, **fields):
    fields = {"num_frames": None if kind is VideoMambaForImageClassification else 4, **FIELDS, **fields}
    return lively(kind(VideoMambaConfig(**fields))).to(dtype)


def pixels(batch=2, frames=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)


def count(kind, name, **fields):
    with torch.device("meta"):
        return sum(p.numel() for p in kind(VideoMambaConfig.preset(name, **fields)).parameters())


@pytest.mark.parametrize("name, block, image224, image448, image576, clips", [
    ("ti", 282_048, 7_148_008, 7_260_904, 7_359_208, (7_033_744, 7_044_496, 7_117_456, 6_990_126)),
    ("s", 1_043_328, 25_796_584, 26_022_376, 26_218_984, (25_568_656, 25_590_160, 25_736_080, 25_481_646)),
    ("m", 2_283_840, 74_217_448, 74_556_136, 74_851_048, (73_875_856, 73_908_112, 74_126_992, 73_745_454)),
    ("b", 4_003_584, 97_598_440, None, None, None),
])  # fmt: skip
def test_parameter_counts(name, block, image224, image448, image576, clips):
    config = VideoMambaConfig.preset(name)
    with torch.device("meta"):
        one = VideoMambaBlock(config, "spatial", 0.0)
    assert sum(p.numel() for p in one.parameters()) == block
    assert count(VideoMambaForImageClassification, name, num_labels=1000) == image224
    rest = (config.num_hidden_layers - 1) * block  # blocks are alike: one is enough for the other sizes
    for size, expected in ((448, image448), (576, image576)):
        fields = {"image_size": size, "num_labels": 1000, "num_hidden_layers": 1}
        assert expected is None or count(VideoMambaForImageClassification, name, **fields) + rest == expected
    shapes = ((8, 224, 400), (64, 224, 400), (64, 384, 400), (8, 224, 174))
    for (frames, size, labels), expected in zip(shapes, clips or ()):
        fields = {"num_frames": frames, "image_size": size, "num_labels": labels, "num_hidden_layers": 1}
        assert count(VideoMambaForVideoClassification, name, **fields) + rest == expected


def mixer(scan="spatial", seed=0, dtype=torch.float64, **fields):
    config = VideoMambaConfig(**{**FIELDS, "num_frames": 4, **fields})
    return lively(VideoMambaMixer(config, scan), seed).to(dtype)


def tokens(length, batch=1, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, 32, generator=generator, dtype=torch.float64)


def test_directions_with_equal_parameters_are_mirror_images():
    one = mixer()
    with torch.no_grad():
        for name in ("conv1d{}.weight", "conv1d{}.bias", "x_proj{}.weight", "dt_proj{}.weight", "dt_proj{}.bias",
                     "A{}_log", "D{}"):  # fmt: skip
            one.get_parameter(name.format("_b")).copy_(one.get_parameter(name.format("")))
        u = tokens(13)
        torch.testing.assert_close(one(u.flip(1), None, TORCH), one(u, None, TORCH).flip(1), rtol=0, atol=1e-10)


def test_directions_are_added_without_a_factor():
    one = mixer()
    with torch.no_grad():
        for name in ("x_proj_b.weight", "conv1d_b.weight", "conv1d_b.bias", "D_b"):
            one.get_parameter(name).zero_()
        u = tokens(11)
        w = one.state_dict()
        both = u[0] @ w["in_proj.weight"].T
        forward = reference.branch(w, both, 64, "") @ w["out_proj.weight"].T
        torch.testing.assert_close(one(u, None, TORCH)[0], forward, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("scan", SCANS)
def test_every_scan_equals_a_reading_token_by_token(scan, bidirectional):
    one = mixer(scan, bidirectional=bidirectional)
    frames, patches = 3, 4
    order = temporal_first(frames, patches)
    u = tokens(1 + frames * patches, batch=2)
    w = one.state_dict()
    with torch.no_grad():
        actual = one(u, order, TORCH)
    for row in range(2):
        both = u[row] @ w["in_proj.weight"].T
        total = torch.zeros(len(both), 64, dtype=torch.float64)
        for direction in SCANS[scan]:
            if not bidirectional and not direction.backwards:
                continue
            places = order.tolist() if direction.temporal_first else list(range(len(both)))
            places = places[::-1] if direction.backwards else places
            read = reference.branch(w, both[places], 64, direction.parameters)
            for place, token in enumerate(places):
                total[token] += read[place]
        torch.testing.assert_close(actual[row], total @ w["out_proj.weight"].T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frames, side", [(1, 32), (4, 16)])
def test_temporal_first_of_one_frame_or_one_patch_is_spatial_first(frames, side):
    fields = {"num_frames": frames, "image_size": side}
    one, other = build(VideoMambaModel, **fields), build(VideoMambaModel, scan="temporal", **fields)
    other.load_state_dict(one.state_dict())
    x = pixels(1, frames)[..., :side, :side]
    with torch.no_grad():
        assert torch.equal(one(pixel_values_videos=x)[0], other(pixel_values_videos=x)[0])


def test_scans_of_a_model_differ_by_block():
    model = build(VideoMambaModel, scan="alternating")
    reads = [block.mixer.directions[0].temporal_first for block in model.layers]
    assert reads == [False, True, False]
    x = pixels()
    with torch.no_grad():
        results = []
        for scan in ("spatial", "temporal", "alternating", "spatiotemporal_v1", "spatiotemporal_v2_shared"):
            other = build(VideoMambaModel, scan=scan)
            other.load_state_dict(model.state_dict())
            results.append(other(pixel_values_videos=x).pooler_output)
    for i in range(len(results)):
        for j in range(i):
            assert (results[i] - results[j]).abs().max() > 1e-6, (i, j)


def test_one_direction_ends_at_the_class_token():
    model = build(VideoMambaModel, bidirectional=False)
    own = {name.split("mixer.")[1].split(".")[0] for name, _ in model.named_parameters() if "mixer" in name}
    assert own == {"in_proj", "out_proj", "conv1d_b", "x_proj_b", "dt_proj_b", "A_b_log", "D_b"}
    x = pixels(1).requires_grad_()
    model(pixel_values_videos=x).pooler_output.square().sum().backward()
    assert (x.grad.abs().amax((0, 2, 3, 4)) > 0).all()  # every frame reaches the class token


def test_a_row_is_itself_in_any_batch():
    model = build()
    x = pixels(3)
    with torch.no_grad():
        together = model(x).logits
        alone = torch.cat([model(x[i : i + 1]).logits for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scan", ["spatial", "alternating", "spatiotemporal_v2"])
def test_gradients_equal_those_of_the_recurrence(scan, monkeypatch, assert_close):
    labels = torch.tensor([1, 3])
    model = build(scan=scan)
    model(pixels(), labels=labels).loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(modeling_videomamba, "selective_scan", lambda *inputs: selective_scan_recurrence(*inputs[:-1]))
    model(pixels(), labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert_close(name, ours[name], parameter.grad, 1e-10)
    # The last block's class token is read first by its forward scan, before there is a state to forget.
    expected = {name for name in ours if re.fullmatch(r"videomamba.layers.2.mixer.A(_t)?_log", name)}
    assert {name for name, gradient in ours.items() if not gradient.any()} == expected


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant, assert_close):
    results = []
    for checkpointed in (False, True):
        model = build(drop_path_rate=0.5, scan="alternating").train()
        if checkpointed:
            options = {"use_reentrant": use_reentrant}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        x = pixels(4).requires_grad_()
        torch.manual_seed(5)
        loss = model(x, labels=torch.tensor([0, 1, 2, 3])).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert_close(name, results[1][1][name], gradient, 1e-10)


def test_checkpointing_keeps_less(kept_bytes):
    model = build(dtype=torch.float32, num_hidden_layers=6).train()
    x = pixels(2, dtype=torch.float32)
    plain = kept_bytes(lambda: model(x).logits)
    model.gradient_checkpointing_enable()
    assert kept_bytes(lambda: model(x).logits) < plain / 3


def test_stochastic_depth_rises_linearly_and_drops_whole_mixers():
    model = build(VideoMambaModel, drop_path_rate=0.6, num_hidden_layers=4)
    assert [block.drop_rate for block in model.layers] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert [block.drop_rate for block in build(VideoMambaModel, num_hidden_layers=1, drop_path_rate=0.6).layers] == [0]
    block, hidden = model.layers[3], tokens(5, batch=400)
    with torch.no_grad():
        added = block(hidden, None, TORCH) - hidden
        torch.manual_seed(0)
        dropped = block.train()(hidden, None, TORCH) - hidden
    kept = dropped.abs().amax((1, 2)) > 0
    assert 120 < int(kept.sum()) < 200  # 0.4 of 400
    torch.testing.assert_close(dropped[kept], added[kept] / 0.4, rtol=0, atol=1e-10)


def test_hidden_states_are_the_residual_stream():
    model = build(VideoMambaModel)
    with torch.no_grad():
        output = model(pixel_values_videos=pixels(), output_hidden_states=True)
        assert len(output.hidden_states) == 4
        before_last, last = output.hidden_states[-2], model.layers[-1]
        behind = before_last + last.mixer(last.norm(before_last), None, TORCH)
        assert torch.equal(model.norm_f(behind), output.last_hidden_state)
        assert torch.equal(output.hidden_states[0], model.embed(pixels()))
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


def test_position_embeddings():
    model = build(VideoMambaModel)
    x = pixels(1)
    with torch.no_grad():
        patches = model.patch_embed(x)[0]  # (4, 4, 32)
        hidden = model.embed(x)[0]
        assert torch.equal(hidden[0], (model.cls_token + model.pos_embed[:, :1])[0, 0])
        for t in range(4):
            for s in range(4):
                expected = patches[t, s] + model.pos_embed[0, 1 + s] + model.temporal_pos_embedding[0, t]
                torch.testing.assert_close(hidden[1 + 4 * t + s], expected, rtol=0, atol=1e-12)
        # An image has no temporal position; a short clip has the first ones.
        image = model.embed(x[:, :1], is_video=False)[0]
        torch.testing.assert_close(image[1:], patches[0] + model.pos_embed[0, 1:], rtol=0, atol=1e-12)
        torch.testing.assert_close(model.embed(x[:, :2])[0], hidden[:9], rtol=0, atol=1e-12)
        torch.testing.assert_close(
            model(pixel_values=x[:, 0]).last_hidden_state, model.encode(image[None]), rtol=0, atol=1e-12
        )


def test_uint8_frames_are_normalised_here():
    model = build()
    x = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (model.config.image_mean, model.config.image_std))
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, model((x / 255.0 - mean) / std).logits, rtol=0, atol=1e-5)
        assert torch.equal(model(list(x)).logits, model(x).logits)


def test_pixels_that_do_not_fit():
    model, image = build(VideoMambaModel), build(VideoMambaForImageClassification)
    with pytest.raises(ValueError, match=r"either pixel_values .* or pixel_values_videos"):
        model()
    with pytest.raises(ValueError, match=r"clips of 5 frames; this model reads up to 4"):
        model(pixel_values_videos=pixels(1, 5))
    with pytest.raises(ValueError, match=r"clips of \[2, 4\] frames in one batch; there is no padding"):
        model(pixel_values_videos=[pixels(1, 2)[0], pixels(1, 4)[0]])
    with pytest.raises(ValueError, match=r"\(frames, 3, 32, 32\)"):
        model(pixel_values_videos=torch.zeros(1, 4, 3, 48, 48))
    with pytest.raises(ValueError, match="this is an image model"):
        image.videomamba(pixel_values_videos=pixels())
    with pytest.raises(ValueError, match="a patch spans 2 frames"):
        build(VideoMambaModel, tubelet_size=2)(pixel_values=pixels()[:, 0])
    with pytest.raises(ValueError, match="clip model; use VideoMambaForVideoClassification"):
        build(VideoMambaForImageClassification, num_frames=4)
    with pytest.raises(ValueError, match="image model; use VideoMambaForImageClassification"):
        build(num_frames=None)
    with pytest.raises(ValueError, match="clips of 2 frames; this head has learnt clips of 4"):
        build()(pixels(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_stays_in_fp32(dtype):
    model = build(VideoMambaModel, dtype=torch.float32, scan="spatiotemporal_v2").to(dtype)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {
        f"layers.{i}.mixer.{name}"
        for i in range(3)
        for s in ("", "_b", "_t", "_tb")
        for name in (f"A{s}_log", f"D{s}", f"dt_proj{s}.bias")
    }
    with torch.no_grad():
        output = model(pixel_values_videos=pixels(dtype=torch.float32), output_hidden_states=True)
    assert output.last_hidden_state.dtype == dtype
    assert all(hidden.dtype == torch.float32 for hidden in output.hidden_states[:-1])
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}


def test_bf16_and_autocast_stay_near_fp32():
    model = build(dtype=torch.float32)
    x = pixels(dtype=torch.float32)
    with torch.no_grad():
        exact = model(x).logits
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x).logits
        narrow = model.to(torch.bfloat16)(x).logits
    for logits in (mixed, narrow):
        assert (logits.float() - exact).norm() < 0.03 * exact.norm()


def test_initialisation():
    torch.manual_seed(0)
    config = VideoMambaConfig(hidden_size=64, num_hidden_layers=4, image_size=64, num_frames=8, num_labels=50)
    model = VideoMambaForVideoClassification(config)
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if name.endswith(("dt_proj.bias", "dt_proj_b.bias", "head.bias", "cls_token", "temporal_pos_embedding")):
            assert not p.any(), name
        elif name.endswith(("A_log", "A_b_log")):
            assert torch.equal(p, torch.arange(1.0, 17).log().expand(128, 16)), name
        elif name.endswith((".D", ".D_b", "norm.weight", "norm_f.weight")):
            assert (p == 1).all(), name
        elif "conv1d" in name:
            assert 0.4 < p.abs().max() <= 0.5, name
        elif "out_proj" in name:
            assert 0.9 < p.abs().max() * (128 * 4) ** 0.5 <= 1, name
        elif "patch_embed" in name:
            assert 0.85 < p.abs().max() * (3 * 256) ** 0.5 <= 1, name
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.15), name


@pytest.mark.parametrize("kind", [VideoMambaModel, VideoMambaForImageClassification, VideoMambaForVideoClassification])
def test_save_and_load(kind, tmp_path):
    model = build(kind, dtype=torch.float32, scan="alternating")
    model.save_pretrained(tmp_path)
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), loaded.state_dict().values()))
    assert not hasattr(loaded.config, "custom_pipelines")
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is VideoMambaModel
    ours = model if kind is VideoMambaModel else model.videomamba
    assert torch.equal(encoder.layers[1].mixer.A_b_log, ours.layers[1].mixer.A_b_log)
    narrow = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kept = ("A_log", "D", "A_b_log", "D_b", "dt_proj.bias", "dt_proj_b.bias")
    for name, parameter in narrow.named_parameters():
        assert (parameter.dtype == torch.float32) == name.endswith(kept), name


def test_losses():
    x, labels = pixels(), torch.tensor([4, 0])
    model = build()
    output = model(x, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    assert torch.equal(output.loss, expected) and output.logits.shape == (2, 5)
    mixed = build(problem_type="single_label_classification")
    shares = torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0, 0.5, 0, 0.5]])
    output = mixed(x, labels=shares)
    expected = -(shares * output.logits.float().log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(output.loss, expected)
    rating = build(num_labels=1, problem_type="regression")
    targets = torch.tensor([0.5, 2.0], dtype=torch.float64)
    output = rating(x, labels=targets)
    assert torch.equal(output.loss, ((output.logits[:, 0] - targets) ** 2).mean())


def test_trainer(tmp_path):
    class Clips(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            frames = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
            return {"pixel_values_videos": frames, "labels": i % 5}

    model = VideoMambaForVideoClassification(VideoMambaConfig(**FIELDS, num_frames=4, drop_path_rate=0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2,
        gradient_checkpointing=True, report_to=[], use_cpu=True, disable_tqdm=True, save_steps=2, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Clips())
    trainer.train()
    unmoved = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert unmoved == {"videomamba.layers.2.mixer.A_log"}  # see the gradients above: exactly zero
    assert trainer.state.log_history[0]["loss"] == pytest.approx(1.6, abs=0.4)
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(loaded.head.weight, model.head.weight)


def fake_kernel(calls):
    def kernel(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        assert delta_softplus and z is None and A.dtype == D.dtype == delta_bias.dtype == torch.float32
        assert u.is_contiguous() and u.dtype == delta.dtype == B.dtype == C.dtype
        calls.append(tuple(u.shape))
        return selective_scan_recurrence(u.mT, delta.mT, A, B.mT, C.mT, D, delta_bias).mT

    return kernel


def test_a_kernel_reads_both_directions_too_and_is_given_few_enough_rows(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "load_selective_scan_kernel", lambda: fake_kernel(calls))
    one, u = mixer(dtype=torch.float32), tokens(10, batch=5).float()
    cuda = Backend(scan="cuda", conv="torch", reason="test")
    with torch.no_grad():
        expected = one(u, None, TORCH)
        torch.testing.assert_close(one(u, None, cuda), expected, rtol=1e-5, atol=1e-4)
        assert calls == [(5, 64, 10)] * 2
        calls.clear()
        monkeypatch.setattr(kernels, "MAX_OFFSET", 2 * 2 * 64 * 16)  # kept states of two rows
        torch.testing.assert_close(one(u, None, cuda), expected, rtol=1e-5, atol=1e-4)
    assert [shape[0] for shape in calls] == [2, 2, 1, 2, 2, 1]
