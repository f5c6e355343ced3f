"""The video model: any form of frames, any place in the text, any split and padding; training, generation, loading."""

import itertools

import peft
import pytest
import torch
from safetensors.torch import load_file

from modeling_video_ma2mba import RecurrentState, VideoMa2mbaForConditionalGeneration, VideoMa2mbaModel

VIDEO = 98
GREEDY = {"max_new_tokens": 6, "do_sample": False}


class Source:
    """Frames that are no tensor: only what `FrameSource` promises."""

    def __init__(self, frames):
        self.frames, self.shape = frames, tuple(frames.shape)

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index]


def tensors(state):
    return [*state.conv, *state.ssm]


def normalised(model, frames, dtype=torch.float32):
    mean, std = (
        torch.tensor(v, dtype=dtype)[:, None, None] for v in (model.config.image_mean, model.config.image_std)
    )
    return (frames.to(dtype) / 255 - mean) / std


@pytest.fixture
def model(video_model):
    return video_model(dtype=torch.float64)


@pytest.fixture
def mixed(prompt, frames):
    """Rows with several videos and images anywhere, the pixels of the batch, and those of each row."""
    rows = [
        prompt("v2", 3, "i", 2, "v1", 1, seed=1),
        prompt(6, seed=2),
        prompt(1, "i", "i", 4, "v3", seed=3),
    ]
    own = [
        {"pixel_values": frames(1, 1), "pixel_values_videos": [frames(2, 2), frames(1, 3)]},
        {},
        {"pixel_values": frames(2, 4), "pixel_values_videos": [frames(3, 5)]},
    ]
    batch = {
        "pixel_values": torch.cat([own[0]["pixel_values"], own[2]["pixel_values"]]),
        "pixel_values_videos": own[0]["pixel_values_videos"] + own[2]["pixel_values_videos"],
    }
    return rows, own, batch


def merged(model, row, pixel_values=None, pixel_values_videos=()):
    """The input embeddings by hand, from the public feature methods."""
    embeds = model.get_input_embeddings()(row)
    if pixel_values is not None:
        embeds[row == 97] = model.get_image_features(pixel_values).pooler_output.flatten(0, 1)
    if len(pixel_values_videos):
        embeds[row == VIDEO] = model.get_video_features(list(pixel_values_videos)).pooler_output.flatten(0, 1)
    return embeds[None]


# Frames and placeholders


@torch.no_grad()
def test_every_form_of_frames_gives_the_same(model, prompt, frames, assert_close):
    row, film = prompt(3, "v5", 2)[None], frames(5)
    floats = normalised(model, film, torch.float64)
    expected = model(input_ids=row, pixel_values_videos=film[None]).logits
    forms = {"one video": film, "list": [film], "pieces": [film[:2], film[2:]], "source": Source(film)}
    forms |= {"sources": [Source(film[:1]), Source(film[1:])], "floats": floats[None], "float list": [floats]}
    for name, given in forms.items():
        assert_close(name, model(input_ids=row, pixel_values_videos=given).logits, expected, 1e-10)
    other = model(input_ids=row, pixel_values_videos=film.flip(0)[None]).logits
    assert (other - expected).abs().max() > 1e-4, "the model does not look at the frames"


@torch.no_grad()
def test_visual_tokens_stand_in_their_places(model, mixed, assert_close):
    rows, own, _ = mixed
    for row, pixels in zip(rows, own):
        by_hand = model(inputs_embeds=merged(model, row, **pixels)).logits
        assert_close("logits", model(input_ids=row[None], **pixels).logits, by_hand, 1e-10)


@torch.no_grad()
def test_features_have_the_advertised_shape(model, frames):
    assert model.get_image_features(frames(3)).pooler_output.shape == (3, 4, 64)
    films = [frames(2), Source(frames(3))]
    assert model.get_video_features(films).pooler_output.shape == (5, 4, 64)
    assert model.model.get_video_features(frames(2)[None]).pooler_output.shape == (2, 4, 64)


def test_counts_that_differ_are_named(model, prompt, frames):
    with pytest.raises(ValueError, match=r"8 video placeholders.*12 visual tokens"):
        model(input_ids=prompt(2, "v2")[None], pixel_values_videos=frames(3)[None])
    with pytest.raises(ValueError, match=r"4 image placeholders.*8 visual tokens"):
        model(input_ids=prompt("i", 2)[None], pixel_values=frames(2))
    with pytest.raises(ValueError, match=r"0 video placeholders.*4 visual tokens"):
        model(input_ids=prompt(5)[None], pixel_values_videos=frames(1)[None])
    with pytest.raises(ValueError, match=r"4 image placeholders"):  # swapped
        model(input_ids=prompt("i", 2)[None], pixel_values_videos=frames(1)[None])


@pytest.mark.parametrize("generate", [False, True])
def test_placeholders_without_pixels_raise(model, prompt, frames, generate):
    run = (lambda **given: model.generate(**given, **GREEDY)) if generate else model
    for part, name in (("v1", "pixel_values_videos"), ("i", "pixel_values")):
        with pytest.raises(ValueError, match=f"pass {name}"):
            run(input_ids=prompt(2, part, 2)[None])
    with pytest.raises(ValueError, match="pass pixel_values_videos"):
        run(input_ids=prompt(2, "v1", 2)[None], pixel_values_videos=[frames(0)])
    with pytest.raises(ValueError, match="pass pixel_values_videos"):
        run(input_ids=prompt(2, "v1", 2)[None], pixel_values_videos=[])


def test_pixels_with_embeddings_are_refused(model, frames):
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 64), pixel_values=frames(1))


def test_masks_of_placeholders(model, prompt):
    row = prompt(1, "v1", "i")[None]
    embeds = model.get_input_embeddings()(row)
    images, videos = model.model.get_placeholder_mask(row, embeds, torch.zeros(4, 64), torch.zeros(1, 4, 64))
    assert images.shape == videos.shape == embeds.shape
    assert images[0, :, 0].tolist() == [False] * 5 + [True] * 4
    assert videos[0, :, 63].tolist() == [False] + [True] * 4 + [False] * 4
    with pytest.raises(ValueError, match=r"4 video placeholders.*8 visual tokens"):
        model.model.get_placeholder_mask(row, embeds, video_features=torch.zeros(8, 64))


# Splits and padding


@pytest.mark.parametrize("segment_length", [1, 2, 3, 5, 7, 11, 100])
@torch.no_grad()
def test_segments_do_not_change_anything(model, mixed, pad, assert_close, segment_length):
    rows, _, pixels = mixed
    batch, mask = pad(rows, "left")
    given = {"input_ids": batch, "attention_mask": mask, "labels": batch, "output_hidden_states": True, **pixels}
    whole, parts = model(**given, segment_length=1000), model(**given, segment_length=segment_length)
    assert_close("loss", parts.loss, whole.loss, 1e-10)
    assert_close("logits", parts.logits, whole.logits, 1e-10)
    for i, (a, b) in enumerate(zip(parts.hidden_states, whole.hidden_states, strict=True)):
        assert_close(f"hidden {i}", a, b, 1e-10)
    for i, (a, b) in enumerate(zip(tensors(parts.past_key_values), tensors(whole.past_key_values))):
        assert_close(f"state {i}", a, b, 1e-10)


@torch.no_grad()
def test_a_prompt_cut_between_frames_continues(model, prompt, frames, assert_close):
    row, film = prompt(3, "v5", 4)[None], frames(5)
    whole = model(input_ids=row, pixel_values_videos=film).logits
    cut = 3 + 2 * 4
    first = model(input_ids=row[:, :cut], pixel_values_videos=film[:2])
    rest = model(input_ids=row[:, cut:], pixel_values_videos=film[2:], past_key_values=first.past_key_values)
    assert_close("both", torch.cat([first.logits, rest.logits], 1), whole, 1e-10)


@pytest.mark.parametrize("side", ["left", "right", "both", "inside"])
def test_each_padded_row_equals_the_row_alone(model, mixed, pad, assert_close, side):
    rows, own, pixels = mixed
    batch, mask = pad(rows, side)
    batch[mask == 0] = VIDEO  # a masked placeholder is no placeholder
    out = model(input_ids=batch, attention_mask=mask, use_cache=True, **pixels)
    weights = torch.randn(3, 40, 99, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sum((out.logits[i, mask[i].bool()] * weights[i, : len(row)]).sum() for i, row in enumerate(rows)).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i, (row, given) in enumerate(zip(rows, own)):
        alone = model(input_ids=row[None], use_cache=True, **given)
        (alone.logits[0] * weights[i, : len(row)]).sum().backward()
        assert_close(f"row {i}", out.logits[i, mask[i].bool()].detach(), alone.logits[0].detach(), 1e-10)
        for k, (a, b) in enumerate(zip(tensors(out.past_key_values), tensors(alone.past_key_values))):
            assert_close(f"row {i} state {k}", a[i].detach(), b[0].detach(), 1e-10)
    alone_grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == alone_grads.keys()
    for name, expected in alone_grads.items():
        assert_close(f"d {name}", grads[name], expected, 1e-10)


# Training


@pytest.mark.parametrize("tower", ["clip", "siglip", "videomamba"])
@pytest.mark.parametrize("reload", [False, True])
def test_a_training_step_moves_every_parameter_but_the_unused(video_model, mixed, pad, tmp_path, tower, reload):
    model = video_model(tower)
    if reload:
        model.save_pretrained(tmp_path / "before")
        model = VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path / "before")
    model.train()
    rows, _, pixels = mixed
    batch, mask = pad(rows, "left")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(input_ids=batch, attention_mask=mask, labels=batch, **pixels).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=10.0).step()
    unused = model.unused_parameters()
    assert unused and set(unused) == {f"model.{name}" for name in model.model.unused_parameters()}
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    # A bias that shifts all attention scores of a query alike changes nothing, so its gradient is only rounding.
    assert [n for n in still if n in unused or not n.endswith("k_proj.bias")] == unused
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == unused
    model.save_pretrained(tmp_path / "after")
    saved = load_file(str(tmp_path / "after" / "model.safetensors"))
    loaded, info = VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path / "after", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name in unused:
        assert torch.equal(saved[name], before[name]) and torch.equal(loaded.get_parameter(name), before[name]), name
        assert not loaded.get_parameter(name).requires_grad, name


def test_training_and_eval_agree(model, mixed, pad, assert_close):
    rows, _, pixels = mixed
    batch, mask = pad(rows, "right")
    given = {"input_ids": batch, "attention_mask": mask, "labels": batch, **pixels}
    with torch.no_grad():
        expected = model(**given, segment_length=5).loss
    out = model.train()(**given)
    assert out.logits is None and out.past_key_values is None
    assert_close("loss", out.loss.detach(), expected, 1e-10)


def test_text_alone_gives_every_used_parameter_a_zero_gradient(model, prompt, assert_close):
    row = prompt(9)[None]
    with torch.no_grad():
        expected = model(input_ids=row, labels=row).loss
    loss = model.train()(input_ids=row, labels=row).loss
    assert_close("loss", loss.detach(), expected, 1e-12)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in model.unused_parameters()), name
        if "vision_tower" in name or "projector" in name:
            assert parameter.grad is None or not parameter.grad.any(), name


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layer_checkpointing_gives_equal_loss_and_gradients(model, mixed, pad, assert_close):
    rows, _, pixels = mixed
    batch, mask = pad(rows, "left")
    given = {"input_ids": batch, "attention_mask": mask, "labels": batch, **pixels}
    results = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        calls = []
        hooks = [model.model.language_model.layers[0].mixer.register_forward_pre_hook(lambda *_, c=calls: c.append(1))]
        if checkpointing:
            model.gradient_checkpointing_enable({"method": "layer"})
            assert model.is_gradient_checkpointing
        loss = model(**given).loss
        loss.backward()
        [hook.remove() for hook in hooks]
        results.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        results[-1]["loss"] = loss.detach()
        assert len(calls) == (2 if checkpointing else 1)
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        assert_close(name, results[1][name], expected, 1e-10)


DDP = """
import os, sys, torch, torch.distributed as dist
import modeling_video_ma2mba
from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=2)
assert dist.get_world_size() == 2
def load():
    return VideoMa2mbaForConditionalGeneration.from_pretrained(folder + "/model", dtype=torch.float64).train()
g = torch.Generator().manual_seed(0)
film = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8, generator=g)
text = torch.randint(2, 97, (1, 20), generator=g)
video = text.clone(); video[0, 5:13] = 98
batches = [dict(input_ids=video, labels=text, pixel_values_videos=[film]), dict(input_ids=text, labels=text)]
model = load()
parallel = torch.nn.parallel.DistributedDataParallel(model)
for step in range(2):  # an unused parameter shows in the second step
    parallel.zero_grad()
    parallel(**batches[rank]).loss.backward()
alone, grads = load(), []
for batch in batches:
    alone.zero_grad()
    alone(**batch).loss.backward()
    grads.append({n: p.grad.clone() for n, p in alone.named_parameters() if p.grad is not None})
checked = 0
for name, p in model.named_parameters():
    if p.requires_grad:
        expected = (grads[0][name] + grads[1][name]) / 2
        error = float((p.grad - expected).abs().max())
        assert error <= 1e-10 * max(1.0, float(expected.abs().max())), (name, error)
        checked += 1
assert grads[0]["model.vision_tower.embeddings.patch_embedding.weight"].any()
print("equal", checked)
dist.destroy_process_group()
"""


def test_data_parallel_with_a_rank_without_video(video_model, tmp_path, fresh_process):
    from concurrent.futures import ThreadPoolExecutor

    model = video_model()
    model.save_pretrained(tmp_path / "model")
    with ThreadPoolExecutor(2) as pool:
        printed = list(pool.map(lambda rank: fresh_process(DDP, rank, tmp_path), range(2)))
    used = sum(1 for _ in model.named_parameters()) - len(model.unused_parameters())
    assert [text.split() for text in printed] == [["equal", str(used)]] * 2


def test_lora_on_the_language_model_alone(video_model, prompt, frames):
    pattern = r".*language_model\.layers\.\d+\.mixer\.(in_proj|out_proj)"
    model = peft.get_peft_model(
        video_model(), peft.LoraConfig(r=2, target_modules=pattern, init_lora_weights=False)
    ).train()
    row = prompt(2, "v2", 5)[None]
    model(input_ids=row, labels=row, pixel_values_videos=[frames(2)]).loss.backward()
    adapters = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert len(adapters) == 2 * 2 * 2 and not any("vision_tower" in n for n in adapters)
    for name, parameter in adapters.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# Generation


def by_hand(model, row, pixels, count):
    """Greedy ids from whole forwards, without cache or `generate`."""
    embeds, ids = merged(model, row, **pixels), []
    for _ in range(count):
        logits = model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[0, -1]
        logits[[97, VIDEO]] = -torch.inf
        ids.append(int(logits.argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[ids[-1]]]))], 1)
    return ids


@pytest.mark.parametrize("side", ["left", "right", "inside"])
@torch.no_grad()
def test_a_batch_of_unequal_videos_is_answered_row_by_row(model, mixed, pad, side):
    rows, own, pixels = mixed
    batch, mask = pad(rows, side)
    out = model.generate(input_ids=batch, attention_mask=mask, **pixels, **GREEDY)
    assert torch.equal(out[:, : batch.shape[1]], batch)
    expected = [by_hand(model, row, given, 6) for row, given in zip(rows, own)]
    assert out[:, batch.shape[1] :].tolist() == expected


@pytest.mark.parametrize("size", [1, 3, 4, 7, 1000])
@torch.no_grad()
def test_prefill_chunks_change_nothing(model, prompt, frames, size):
    row, film = prompt(3, "v5", 4), frames(5)
    out = model.generate(row[None], pixel_values_videos=[film], prefill_chunk_size=size, **GREEDY)
    assert out[0, len(row) :].tolist() == by_hand(model, row, {"pixel_values_videos": [film]}, 6)


@torch.no_grad()
def test_generation_without_cache_is_the_same(model, prompt, frames):
    row, film = prompt(3, "v2", 4), frames(2)
    out = model.generate(row[None], pixel_values_videos=[film], use_cache=False, **GREEDY)
    assert out[0, len(row) :].tolist() == by_hand(model, row, {"pixel_values_videos": [film]}, 6)


@torch.no_grad()
def test_beams_and_several_answers_encode_each_frame_once(model, mixed, pad):
    rows, own, pixels = mixed
    rows = [torch.cat([row, torch.tensor([7, 8])]) for row in rows]  # text behind the last video
    batch, mask = pad(rows, "left")
    encoded = []
    model.model.vision_tower.embeddings.register_forward_hook(lambda _, __, out: encoded.append(len(out)))
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    together = model.generate(input_ids=batch, attention_mask=mask, **pixels, **options)
    assert sum(encoded) == 9 and together.shape == (6, batch.shape[1] + 5)
    for i, (row, given) in enumerate(zip(rows, own)):
        alone = model.generate(row[None], **given, **options)
        assert torch.equal(together[2 * i : 2 * i + 2, batch.shape[1] :], alone[:, len(row) :]), i
    torch.manual_seed(0)
    sampled = model.generate(
        input_ids=batch, attention_mask=mask, **pixels, do_sample=True, num_return_sequences=4, max_new_tokens=8
    )
    assert len({tuple(answer) for answer in sampled[:4, batch.shape[1] :].tolist()}) > 1


@torch.no_grad()
def test_a_prompt_may_end_in_a_video(model, prompt, frames):
    row, film = prompt(3, "v2"), frames(2)
    out = model.generate(row[None], pixel_values_videos=[film], **GREEDY)
    assert out[0, len(row) :].tolist() == by_hand(model, row, {"pixel_values_videos": [film]}, 6)
    with pytest.raises(ValueError, match="ends with text"):
        model.generate(row[None], pixel_values_videos=[film], num_beams=2, **GREEDY)


@torch.no_grad()
def test_rows_of_which_one_ends_in_a_video(model, prompt, frames, pad):
    rows, films = [prompt(3, "v2", seed=1), prompt("v1", 9, seed=2)], [frames(2), frames(1, 1)]
    for side in ("left", "right"):
        batch, mask = pad(rows, side)
        out = model.generate(batch, attention_mask=mask, pixel_values_videos=films, **GREEDY)
        for i in range(2):
            expected = by_hand(model, rows[i], {"pixel_values_videos": [films[i]]}, 6)
            assert out[i, batch.shape[1] :].tolist() == expected, (side, i)


@torch.no_grad()
def test_placeholders_are_never_generated(model, prompt, frames):
    bias = torch.zeros(99, dtype=torch.float64)
    bias[[97, VIDEO]] = 1e6
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + bias)
    row = prompt(2, "v1", 2)[None]
    for options in ({}, {"do_sample": True}, {"num_beams": 2}, {"use_cache": False}):
        out = model.generate(row, pixel_values_videos=[frames(1)], **{**GREEDY, **options})
        assert not torch.isin(out[:, row.shape[1] :], torch.tensor([97, VIDEO])).any(), options


@pytest.mark.parametrize("form", ["whole ids and mask", "new ids and mask"])
@torch.no_grad()
def test_a_conversation_goes_on_without_pixels(model, prompt, frames, form):
    row, film = prompt(2, "v3", 4), frames(3)
    first = model.generate(row[None], pixel_values_videos=[film], return_dict_in_generate=True, **GREEDY)
    state = first.past_key_values
    assert isinstance(state, RecurrentState) and state.seen_tokens == first.sequences.shape[1] - 1
    before = [t.clone() for t in tensors(state)]
    more = prompt(7, seed=9)
    whole = torch.cat([first.sequences[0], more])
    new = whole[state.seen_tokens :]
    given = {"input_ids": whole[None] if "whole" in form else new[None]}
    given["attention_mask"] = torch.ones(1, len(whole), dtype=torch.long)
    out = model.generate(**given, past_key_values=state, **GREEDY)
    expected = by_hand(model, whole, {"pixel_values_videos": [film]}, 6)
    assert out[0, -6:].tolist() == expected
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), before))
    # A second question to the same state, with another film in it.
    question, other = prompt(1, "v1", 3, seed=11), frames(1, 8)
    whole = torch.cat([first.sequences[0], question])
    mask = torch.ones(1, len(whole), dtype=torch.long)
    out = model.generate(
        whole[None], attention_mask=mask, past_key_values=state, pixel_values_videos=[other], **GREEDY
    )
    assert out[0, -6:].tolist() == by_hand(model, whole, {"pixel_values_videos": [film, other]}, 6)


@torch.no_grad()
def test_generating_from_embeddings_leaves_the_state(model, prompt, frames):
    row, film = prompt(2, "v2", 3), frames(2)
    embeds = merged(model, row, pixel_values_videos=[film])
    expected = by_hand(model, row, {"pixel_values_videos": [film]}, 6)
    assert model.generate(inputs_embeds=embeds, **GREEDY)[0].tolist() == expected
    state = model(inputs_embeds=embeds[:, :6], use_cache=True).past_key_values
    before = state.fork()
    model.generate(inputs_embeds=embeds[:, 6:], past_key_values=state, **GREEDY)
    assert state.seen_tokens == before.seen_tokens
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(before)))


@torch.no_grad()
@pytest.mark.parametrize("form", ["tensor", "source"])
def test_memory_of_generate_grows_only_by_the_inputs(video_model, prompt, frames, peak_bytes, form):
    model = video_model()
    peaks = []
    for count in (64, 256):
        film = frames(count)
        video = film[None] if form == "tensor" else Source(film)
        row = prompt(3, f"v{count}", 5)[None]
        peaks.append(
            peak_bytes(
                lambda row=row, video=video: model.generate(
                    row, pixel_values_videos=video, max_new_tokens=3, do_sample=False, prefill_chunk_size=64
                )
            )
        )
    growth = (peaks[1] - peaks[0]) / (4 * (256 - 64))
    assert peaks[0] > 100_000, f"the tracker saw only {peaks[0]} bytes"
    assert growth <= 64, f"{growth:.0f} bytes per token more; peaks {peaks}"  # one embedding is 256 bytes


# At home in transformers


@torch.no_grad()
@pytest.mark.parametrize("tower", ["clip", "siglip", "videomamba"])
def test_saved_and_loaded_is_equal(video_model, mixed, pad, tmp_path, tower):
    model = video_model(tower)
    rows, _, pixels = mixed
    batch, mask = pad(rows, "left")
    given = {"input_ids": batch, "attention_mask": mask, **pixels}
    model.save_pretrained(tmp_path)
    loaded, info = VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded(**given).logits, model(**given).logits)
    base = VideoMa2mbaModel.from_pretrained(tmp_path)
    assert torch.equal(base(**given).last_hidden_state, model.model(**given).last_hidden_state)


@torch.no_grad()
def test_tuples_hold_what_dicts_hold(video_model, prompt, frames):
    model, row = video_model(), prompt(2, "v1", 2)[None]
    given = {"input_ids": row, "labels": row, "pixel_values_videos": [frames(1)], "output_hidden_states": True}
    as_dict, as_tuple = model(**given), model(**given, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 4
    assert torch.equal(as_tuple[0], as_dict.loss) and torch.equal(as_tuple[1], as_dict.logits)
    assert all(torch.equal(a, b) for a, b in zip(as_tuple[3], as_dict.hidden_states, strict=True))
    base = model.model(input_ids=row, pixel_values_videos=[frames(1)], use_cache=False, return_dict=False)
    assert isinstance(base, tuple) and torch.equal(base[0], as_dict.hidden_states[-1])


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_survive_resizing_and_saving(video_model, prompt, frames, tmp_path, tied):
    model = video_model(text={"tie_word_embeddings": tied})
    given = {"input_ids": prompt(2, "v1", 2)[None], "pixel_values_videos": [frames(1)]}
    before = model(**given).logits.detach()
    model.resize_token_embeddings(112)
    assert model.config.text_config.vocab_size == 112
    assert torch.equal(model(**given).logits.detach()[..., :99], before)
    model.save_pretrained(tmp_path)
    loaded = VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path)
    for m in (model, loaded):
        assert (m.lm_head.weight is m.get_input_embeddings().weight) is tied
        assert m.lm_head.weight.shape == (112, 64)
    assert torch.equal(loaded(**given).logits, model(**given).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_leave_the_ssm_parameters(video_model, mixed, pad, tmp_path, dtype):
    exact = video_model()
    exact.save_pretrained(tmp_path)
    rows, _, pixels = mixed
    batch, mask = pad(rows, "left")
    given = {"input_ids": batch, "attention_mask": mask, **pixels}
    with torch.no_grad():
        expected = exact(**given).logits
    for model in (
        VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype),
        video_model(dtype=dtype),
    ):
        for name, parameter in model.named_parameters():
            ssm = name.endswith((".A_log", ".D", ".dt_bias"))
            assert parameter.dtype == (torch.float32 if ssm else dtype), name
        with torch.no_grad():
            out = model(**given, use_cache=True)
        assert out.logits.dtype == torch.float32 and {t.dtype for t in out.past_key_values.ssm} == {torch.float32}
        assert float((out.logits - expected).norm() / expected.norm()) < 0.05


def test_auto_classes_load_in_a_fresh_process(video_model, tmp_path, fresh_process):
    model = video_model()
    model.save_pretrained(tmp_path)
    code = """
import sys, torch, modeling_video_ma2mba
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
path = sys.argv[1]
loaders = (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM)
loaded = [loader.from_pretrained(path) for loader in loaders]
print(*(type(one).__name__ for one in loaded), *(type(one).__module__ for one in loaded[1:]))
ids = torch.tensor([[5, 98, 98, 98, 98, 6]])
print(float(loaded[2](input_ids=ids, pixel_values_videos=torch.ones(1, 1, 3, 56, 56)).logits.double().sum()))
"""
    names, total = fresh_process(code, tmp_path).splitlines()[-2:]
    head = "VideoMa2mbaForConditionalGeneration"
    module = "modeling_video_ma2mba.modeling_video_ma2mba"
    assert names.split() == ["VideoMa2mbaConfig", "VideoMa2mbaModel", head, head, module, module, module]
    ids = torch.tensor([[5, 98, 98, 98, 98, 6]])
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values_videos=torch.ones(1, 1, 3, 56, 56)).logits.double().sum()
    assert float(total) == pytest.approx(float(expected), abs=1e-3)


def test_names_of_the_parameters_are_a_promise(video_model):
    roots = {".".join(itertools.islice(n.split("."), 2)) for n in video_model().state_dict()}
    expected = {"model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head.weight"}
    assert roots == expected
