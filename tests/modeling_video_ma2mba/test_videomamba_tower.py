"""VideoMamba as the vision tower: clips of frames, whatever the segments, pieces, calls and files."""

import json
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.nn import functional as F

from modeling_video_ma2mba import (
    LiveFrames,
    RecurrentState,
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
    VideoMambaModel,
    checkpoint_costs,
    watching,
)
from modeling_video_ma2mba.checkpoint_analytic import analytic_costs
from modeling_video_ma2mba.checkpoint_costs import LayerCost, measure_costs
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform
from modeling_video_ma2mba.checkpoint_planner import segment_lengths
from modeling_video_ma2mba.checkpoint_predict import predict
from modeling_video_ma2mba.model_fingerprint import model_fingerprint
from modeling_video_ma2mba.row_layout import Rows
from modeling_video_ma2mba.train.synthetic_video import write_video
from modeling_video_ma2mba.vision_features import encode_frames
from modeling_video_ma2mba.visual_inputs import VisualInputs

CLIP = 4  # frames, of 4 tokens each
EXACT = 1e-10


@pytest.fixture
def model(video_model):
    return video_model("videomamba", dtype=torch.float64)


def normalised(model, frames):
    mean, std = (torch.tensor(v, dtype=model.dtype)[:, None, None] for v in (model.config.image_mean,
                                                                            model.config.image_std))  # fmt: skip
    return (frames.to(model.dtype) / 255 - mean) / std


def by_hand(model, *videos):
    """Return the visual tokens (F V, D) of videos, clip by clip, from the tower's own `hidden_states`."""
    config, tokens = model.config, []
    for video in videos:
        for clip in normalised(model, video).split(CLIP):
            tower = model.model.vision_tower(pixel_values_videos=clip[None], output_hidden_states=True)
            grid = tower.hidden_states[config.vision_feature_layer][0, 1:]  # without the class token
            grid = grid.view(len(clip), 4, 4, -1).permute(0, 3, 1, 2)
            pooled = F.interpolate(grid, size=(2, 2), mode="bilinear", align_corners=False)
            tokens.append(pooled.flatten(2).transpose(1, 2).flatten(0, 1))
    return model.model.multi_modal_projector(torch.cat(tokens))


def read_by_hand(model, row, *videos):
    """Return the logits of one row (T,), its visual tokens made by hand, in one piece."""
    embeds = model.get_input_embeddings()(row[None])
    embeds = embeds.masked_scatter((row == 98)[None, :, None], by_hand(model, *videos).to(embeds.dtype))
    return model(inputs_embeds=embeds).logits


# Config


def test_the_config_knows_clips(video_config):
    config = video_config("videomamba")
    assert (config.frames_per_clip, config.tokens_per_frame) == (4, 4)
    assert config.image_mean == [0.485, 0.456, 0.406] and video_config().image_mean[0] == 0.48145466
    assert video_config("videomamba", image_mean=[0.1, 0.2, 0.3]).image_mean == [0.1, 0.2, 0.3]
    assert VideoMa2mbaConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert (
        video_config("videomamba", vision={"num_frames": None}).frames_per_clip == video_config().frames_per_clip == 1
    )
    with pytest.raises(StrictDataclassClassValidationError, match="tubelet_size=2"):
        video_config("videomamba", vision={"tubelet_size": 2})
    with pytest.raises(ValueError, match="allowed are clip_vision_model, siglip_vision_model, videomamba"):
        video_config("timesformer")
    published = VideoMa2mbaConfig(vision_config={"model_type": "videomamba", "num_frames": 8})
    assert published.tokens_per_frame == 49  # 14 x 14 patches of 224 px, pooled 2 x 2


# Reading


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_features_are_the_hidden_states_of_the_tower(video_model, frames, assert_close, layer):
    model = video_model("videomamba", dtype=torch.float64, vision_feature_layer=layer)
    blocks = []
    for i, block in enumerate(model.model.vision_tower.layers):
        block.register_forward_hook(lambda *_, i=i: blocks.append(i))
    video = frames(4)
    features = encode_frames(model.model.vision_tower, normalised(model, video), model.config.feature_layers_run, 1, 4)
    assert blocks == list(range(model.config.feature_layers_run))
    states = model.model.vision_tower(pixel_values_videos=video[None], output_hidden_states=True).hidden_states
    assert_close("patches", features.flatten(0, 1), states[layer][0, 1:], EXACT)


@torch.no_grad()
def test_each_clip_is_read_on_its_own_and_the_last_at_its_length(model, prompt, frames, assert_close):
    video, other = frames(7), frames(5, seed=3)
    row = prompt(3, "v7", 2, "v5", 4)
    expected = read_by_hand(model, row, video, other)
    assert_close("logits", model(input_ids=row[None], pixel_values_videos=[video, other]).logits, expected, EXACT)
    features = model.get_video_features([video, other]).pooler_output
    assert_close("features", features.flatten(0, 1), by_hand(model, video, other), EXACT)
    # A frame becomes something else beside others: the comparison would notice clips that begin elsewhere.
    shifted = model.get_video_features([video[1:], other]).pooler_output
    assert (shifted[0] - features[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("vision", [{}, {"num_frames": None}])
def test_an_image_is_a_clip_of_one_frame(video_model, prompt, frames, assert_close, vision):
    model = video_model("videomamba", dtype=torch.float64, vision=vision)
    images = frames(3)
    found = model.get_image_features(images).pooler_output
    for i in range(3):
        alone = model.get_video_features(images[i][None, None]).pooler_output
        assert_close(f"image {i}", found[i], alone[0], EXACT)
    if vision:  # an image tower reads frames as CLIP does
        assert_close("film", model.get_video_features(images[None]).pooler_output, found, EXACT)
    row = prompt("i", 2, "i", "i", 3)[None]
    assert torch.isfinite(model(input_ids=row, pixel_values=images).logits).all()


@pytest.fixture
def batch(prompt, frames, pad):
    """`batch(side)` -> three unequal rows with images and videos, padded, and what each row sees."""

    def build(side):
        rows = [prompt("v6", 3, "i", 2, "v1", 1, seed=1), prompt(6, seed=2), prompt(1, "i", 4, "v9", seed=3)]
        pixels = [
            {"pixel_values": frames(1), "pixel_values_videos": [frames(6, 2), frames(1, 3)]},
            {},
            {"pixel_values": frames(1, 1), "pixel_values_videos": [frames(9, 5)]},
        ]
        ids, mask = pad(rows, side)
        merged = {
            "pixel_values": torch.cat([frames(1), frames(1, 1)]),
            "pixel_values_videos": [frames(6, 2), frames(1, 3), frames(9, 5)],
        }
        return rows, pixels, {"input_ids": ids, "attention_mask": mask, **merged}

    return build


@torch.no_grad()
@pytest.mark.parametrize("segment_length", [3, 16, 31, None])
@pytest.mark.parametrize("side", ["left", "inside"])
def test_rows_and_segments_change_nothing(model, batch, assert_close, segment_length, side):
    rows, pixels, given = batch(side)
    out = model(**given, segment_length=segment_length)
    for i, (row, own) in enumerate(zip(rows, pixels)):
        alone = model(input_ids=row[None], **own).logits[0]
        assert_close(f"row {i}", out.logits[i, given["attention_mask"][i].bool()], alone, EXACT)


@torch.no_grad()
def test_pieces_end_where_clips_end(model, prompt, frames):
    row, calls = prompt(5, "v10", 3)[None], []
    model.model.vision_tower.layers[0].register_forward_hook(lambda _, args, __: calls.append(args[0].shape[:2]))
    model(input_ids=row, pixel_values_videos=[frames(10)], segment_length=24)
    assert calls == [(1, 65), (1, 65), (1, 33)]  # 4 + 4 + 2 frames of 16 patches, none twice
    calls.clear()
    model(input_ids=row, pixel_values_videos=[frames(10)], segment_length=7)  # less than a clip: it cannot be helped
    assert len(calls) > 3


# Watching


@pytest.fixture(scope="module")
def watcher(shared_video_config):
    """A model that watches: fp64, frames of 56 px, clips of 4."""
    fields = {"model_type": "videomamba", "hidden_size": 32, "num_hidden_layers": 3, "patch_size": 14,
              "image_size": 56, "num_frames": CLIP, "backend": "torch"}  # fmt: skip
    text = shared_video_config.text_config
    torch.manual_seed(0)
    config = VideoMa2mbaConfig(vision_config=fields, text_config=text, image_token_id=2, video_token_id=3)
    return VideoMa2mbaForConditionalGeneration(config).double().eval()


def pictures(count, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(count)]


def tensors(state):
    return (*state.conv, *state.ssm)


def difference(one, two):
    return max(float((a - b).abs().max()) for a, b in zip(tensors(one), tensors(two)))


@torch.no_grad()
def read(model, processor, *videos):
    """Return the state behind the start of a prompt and videos, each counted from its first frame, in one piece."""
    before, _ = processor.split_prompt([{"role": "user", "content": [{"type": "video"}]}])
    fitted = [torch.from_numpy(np.stack([processor.fit_frame(frame) for frame in video])) for video in videos]
    ids = [*before, *[3] * (4 * sum(map(len, fitted)))]
    return model(input_ids=torch.tensor([ids]), pixel_values_videos=fitted, use_cache=True).past_key_values


GREEDY = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [*range(7), *range(25, 32)]}


@pytest.mark.parametrize("at_once", [1, 3, 4, 32])
@pytest.mark.parametrize("segment", [7, 4096])
def test_a_watch_is_one_prompt(watcher, processor, monkeypatch, at_once, segment):
    film = pictures(10)
    expected = read(watcher, processor, film)
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", at_once)
    monkeypatch.setattr(watcher.model.language_model, "segment_length", segment)
    memory = watcher.watch(film, processor=processor)
    assert memory.waiting is None and memory.frames_seen == 10
    assert difference(memory.state, expected) < EXACT


@pytest.mark.parametrize("cut", [4, 8, 1, 6])
def test_two_calls_are_one_where_a_clip_ends(watcher, processor, cut):
    film = pictures(11)
    first = watcher.watch(film[:cut], processor=processor)
    memory = watcher.watch(film[cut:], processor=processor, memory=first)
    assert difference(memory.state, read(watcher, processor, film[:cut], film[cut:])) < EXACT
    distance = difference(memory.state, read(watcher, processor, film))
    assert distance < EXACT if cut % CLIP == 0 else distance > 1e-6


def test_live_frames_come_one_by_one(watcher, processor, monkeypatch):
    film, live, counts = pictures(10), LiveFrames(fps=1.0), []
    read_frames = type(watcher)._read_frames
    monkeypatch.setattr(
        type(watcher), "_read_frames", lambda self, state, f: counts.append(len(f)) or read_frames(self, state, f)
    )

    def push():
        for second, picture in enumerate(film):
            live.push(picture, second)
            deadline = time.monotonic() + 20
            while live._waiting and time.monotonic() < deadline:  # until it is taken: batches of one
                time.sleep(0.001)
        live.close()

    thread = threading.Thread(target=push)
    thread.start()
    memory = watcher.watch(live, processor=processor)
    thread.join()
    assert counts == [4, 4, 2]
    assert difference(memory.state, read(watcher, processor, film)) < EXACT


def test_a_text_ends_a_clip(watcher, processor):
    film = pictures(7)
    memory = watcher.watch(iter([*film[:5], "it is", *film[5:]]), processor=processor)
    other = watcher.watch(iter([*film[:5], "it is"]), processor=processor)
    other = watcher.watch(film[5:], processor=processor, memory=other)
    assert difference(memory.state, other.state) < EXACT
    assert memory.state.seen_tokens == len(memory.prompt_ids) + 7 * 4 + 2


class Stop(Exception):
    pass


def until(frames):
    yield from frames
    raise Stop


def interrupted(watcher, processor, frames):
    with pytest.raises(Stop) as caught:
        watcher.watch(until(frames), processor=processor)
    return caught.value.memory


@pytest.mark.parametrize("seen", [2, 4, 6, 7])
def test_a_half_filled_clip_is_kept_and_completed(watcher, processor, monkeypatch, tmp_path, seen):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 1)
    film = pictures(10)
    memory = interrupted(watcher, processor, film[:seen])
    assert memory.frames_seen == seen and (0 if memory.waiting is None else len(memory.waiting)) == seen % CLIP
    memory.save(tmp_path / "half.safetensors")
    loaded = watcher.load_memory(tmp_path / "half.safetensors")
    assert loaded.frames_seen == seen and loaded.nbytes == memory.nbytes
    whole, begun = read(watcher, processor, film), read(watcher, processor, film[:seen])
    question = "who wins ?"
    expected = watcher.ask(watcher.watch(film[:seen], processor=processor), question, processor=processor, **GREEDY)
    for start in (memory, loaded):
        done = watcher.watch(iter(film[seen:]), processor=processor, memory=start)
        assert difference(done.state, whole) < EXACT and done.waiting is None
        # Questions see the waiting frames as a short last clip, and so does whatever comes after another video.
        assert watcher.ask(start, question, processor=processor, **GREEDY) == expected
        assert watcher.chat(start, processor=processor).ask(question, **GREEDY) == expected
        assert difference(watcher._read_waiting(start).state, begun) < EXACT
        live = LiveFrames(fps=1.0)
        for second in range(3):
            live.push(film[second], second)
        live.close()
        other = watcher.watch(live, processor=processor, memory=start)
        assert difference(other.state, read(watcher, processor, film[:seen], film[:3])) < EXACT


def test_files_go_on_inside_a_clip(watcher, processor, monkeypatch, tmp_path):
    random, paths = np.random.default_rng(1), []
    for name, seconds in (("a", 7), ("b", 5)):
        picture = np.repeat(random.integers(0, 255, (seconds, 4, 4, 3), dtype=np.uint8), 5, axis=0)
        paths.append(str(tmp_path / f"{name}.mp4"))
        write_video(paths[-1], picture.repeat(16, axis=1).repeat(16, axis=2), fps=5)
    films = [list(processor.stream_frames(path, fps=1.0)) for path in paths]
    expected = read(watcher, processor, *films)
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 1)
    assert difference(watcher.watch(paths, processor=processor).state, expected) < EXACT
    seen = watching.WatchingMixin._read_feed
    for last in (2, 6, 7, 9, 11):

        def stop_early(self, memory, asked, feed, last=last):
            for after in seen(self, memory, asked, feed):
                yield after
                if after.frames_seen == last:
                    raise Stop

        monkeypatch.setattr(watching.WatchingMixin, "_read_feed", stop_early)
        with pytest.raises(Stop) as caught:
            watcher.watch(paths, processor=processor)
        monkeypatch.setattr(watching.WatchingMixin, "_read_feed", seen)
        memory = caught.value.memory
        assert memory.frames_seen == last
        done = watcher.watch(paths, processor=processor, memory=memory)
        assert difference(done.state, expected) < EXACT and done.frames_seen == 12, last
        # Something else closes the clip first.
        other = watcher.watch(paths[1], processor=processor, memory=memory)
        parts = [films[0][:last], films[1]] if last <= 7 else [films[0], films[1][: last - 7], films[1]]
        assert difference(other.state, read(watcher, processor, *parts)) < EXACT, last


def test_snapshots_hold_half_filled_clips(watcher, processor, monkeypatch):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 1)
    film = pictures(7)
    memory = watcher.watch(film, processor=processor, snapshots=16)
    early = memory.as_of(6.0)
    assert early.frames_seen == 6 and len(early.waiting) == 2
    assert difference(watcher._read_waiting(early).state, read(watcher, processor, film[:6])) < EXACT


def test_a_damaged_file_is_refused(watcher, processor, monkeypatch, tmp_path):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 1)
    memory = interrupted(watcher, processor, pictures(6))
    path = tmp_path / "half.safetensors"
    memory.save(path)
    header = json.loads(RecurrentState.load_metadata(path)["video_memory"])

    def write(waiting, frames):
        changed = json.dumps({**header, "waiting": waiting})
        memory.state.save(path, {"video_memory": changed}, others=frames)

    right = {"waiting_frames": memory.waiting}
    write(2, right)
    watcher.load_memory(path)
    for waiting in (4, 7, 10**12, -1, "2"):
        write(waiting, right)
        with pytest.raises(ValueError, match=r"half\.safetensors: the header of the memory is damaged \(waiting"):
            watcher.load_memory(path)
    write(1, {"waiting_frames": memory.waiting[:1]})
    with pytest.raises(ValueError, match=r"damaged \(seen_tokens\)"):
        watcher.load_memory(path)
    for waiting, frames in (
        (0, right),
        (2, None),
        (2, {"waiting_frames": memory.waiting[:1]}),
        (2, {"waiting_frames": memory.waiting.float()}),
        (2, {"waiting_frames": memory.waiting[..., :20].contiguous()}),
        (2, {**right, "more": memory.waiting.clone()}),
    ):
        write(waiting, frames)
        with pytest.raises(ValueError, match=r"half\.safetensors: (holds \d+ tensors|waiting_frames is)"):
            watcher.load_memory(path)


def test_the_order_of_reading_is_part_of_the_fingerprint(video_model):
    one, other = (video_model("videomamba", vision={"scan": scan}) for scan in ("spatial", "temporal"))
    assert model_fingerprint(one) != model_fingerprint(other)
    assert model_fingerprint(one) == model_fingerprint(video_model("videomamba", vision={"scan": "spatial"}))


# Training


PLANS = {
    "one cell": {"interval": 999},
    "grid": {"interval": 20, "layer_interval": 1},
    "nested blocks": {"interval": 9, "layer_interval": 1, "keep_boundaries": False, "segments_per_block": 2},
    "less than a clip": {"interval": 5, "states_on": "host"},
    "decreasing": {"segments": (90, 30, 20, 18)},
}


def train(model, given, name=None, **changes):
    """Return loss and gradients of a step by a plan, None for plain training."""
    model.train().gradient_checkpointing_disable()
    if name is not None:
        fields = {"layer_interval": 2, **PLANS[name], **changes}
        length = (
            int(given["attention_mask"].sum(1).max()) if "attention_mask" in given else given["input_ids"].shape[1]
        )
        segments = fields.pop("segments", None) or uniform(length, min(fields.pop("interval"), length))
        model.gradient_checkpointing_enable()
        plan = CheckpointPlan(segments=segments, num_layers=2, **fields)
        model.model.language_model.checkpointing.fixed_plan = plan
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("frozen", [False, True])
def test_every_plan_gives_the_gradients_of_plain_training(model, batch, assert_close, name, frozen):
    if frozen:
        model.model.vision_tower.requires_grad_(False)
    _, _, given = batch("inside")
    given["labels"] = given["input_ids"]
    expected = train(model, given)
    assert any("vision_tower" in name for name in expected) != frozen
    for keep_features, frames_per_batch in ((False, 1), (True, 9)):
        found = train(model, given, name, keep_features=keep_features, frames_per_batch=frames_per_batch)
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(key, found[key], expected[key], EXACT)


def test_segments_end_where_clips_end(model, prompt, frames):
    row = prompt(5, "v10", 9)[None]  # clips begin at 5, 21, 37 and end at 45
    inputs = VisualInputs(model.model, Rows(row, None, None, None), None, [frames(10)])
    assert inputs.borders().tolist() == [*range(6), 21, 37, *range(45, 55)]
    plan = CheckpointPlan(segments=uniform(54, 20), num_layers=2, layer_interval=2)
    spans = plan.spans(54, inputs.borders())
    assert spans == [(0, 1), (1, 21), (21, 37), (37, 54)]
    assert plan.spans(54) == [(0, 14), (14, 34), (34, 54)]
    small = CheckpointPlan(segments=uniform(54, 10), num_layers=2, layer_interval=2).spans(54, inputs.borders())
    assert small[0][0] == 0 and small[-1][1] == 54 and all(a[1] == b[0] for a, b in pairwise(small))
    assert max(stop - start for start, stop in small) <= 10 and {21, 37} <= {start for start, _ in small}
    calls = []
    model.model.vision_tower.layers[0].register_forward_hook(lambda _, args, __: calls.append(args[0].shape[1]))
    given = {"input_ids": row, "labels": row, "pixel_values_videos": [frames(10)]}
    model.gradient_checkpointing_enable()
    model.model.language_model.checkpointing.fixed_plan = plan
    model.train()(**given).loss.backward()
    assert sorted(calls) == sorted(2 * [65, 65, 33])  # forward and gradient: 4 + 4 + 2 frames of 16 patches
    text = VisualInputs(model.model, Rows(row[:, :5], None, None, None))
    assert text.borders() is None


def test_rows_whose_clips_end_elsewhere_have_no_common_border(model, prompt, frames, assert_close):
    rows = torch.stack([prompt(1, "v8", 3), prompt(3, "v8", 1)])
    inputs = VisualInputs(model.model, Rows(rows, None, None, None), None, [frames(8), frames(8)])
    assert inputs.borders().tolist() == [0, 1, 35, 36]
    cut = VisualInputs(model.model, Rows(rows[:, :20], None, None, None), None, [frames(9)])
    assert cut.borders().tolist() == [0, 20]  # one video over both rows: the second begins inside a clip
    given = {"input_ids": rows[:, :20], "pixel_values_videos": [frames(9)]}
    with torch.no_grad():
        assert_close("logits", model(**given, segment_length=6).logits, model(**given).logits, EXACT)


def test_drop_path_draws_the_same_again(video_model, prompt, frames, assert_close):
    model = video_model("videomamba", dtype=torch.float64, vision={"drop_path_rate": 0.5})
    row = prompt(5, "v8", 9)[None]
    given = {"input_ids": row, "labels": row, "pixel_values_videos": [frames(8)]}
    results = []
    for name in (None, "one cell"):
        torch.manual_seed(3)
        results.append(train(model, given, name, keep_last_cell=False) if name else train(model, given))
    for key in results[0]:
        assert_close(key, results[1][key], results[0][key], EXACT)


def test_layer_checkpointing_reaches_the_tower(model, prompt, frames, assert_close):
    row = prompt(5, "v6", 9)[None]
    given = {"input_ids": row, "labels": row, "pixel_values_videos": [frames(6)]}
    expected = train(model, given)
    model.gradient_checkpointing_enable({"method": "layer"})
    calls = []
    model.model.vision_tower.layers[0].mixer.register_forward_pre_hook(lambda *_: calls.append(1))
    model.zero_grad()
    model(**given).loss.backward()
    assert len(calls) == 4  # two clips, each again in the backward
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_close(name, parameter.grad, expected[name], EXACT)


def test_text_alone_gives_the_tower_zeros(model, prompt):
    row = prompt(9)[None]
    model.train()(input_ids=row, labels=row).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in model.unused_parameters()), name
        if "vision_tower" in name and parameter.grad is not None:
            assert not parameter.grad.any(), name


# What it costs


def test_costs_are_those_of_whole_clips(video_model, video_config, monkeypatch):
    model = video_model("videomamba")
    monkeypatch.setattr(checkpoint_costs, "_measure_layer", lambda *_: {64: LayerCost(1, 1, 1, 1, 1.0, 1.0, 1.0)})
    measured = measure_costs(model.model.language_model, 1, model.lm_head, model.model)
    counted = analytic_costs(model.config, 1, torch.float32, "torch")
    for costs in (measured, counted):
        assert (costs.frames_per_clip, costs.tokens_per_frame) == (4, 4) and set(costs.vision) == {4, 8}
        assert [costs.whole_clips(n) for n in (1, 4, 7, 8, 16)] == [4, 4, 4, 8, 16]
        assert costs.frames(1) == costs.frames(4) and costs.frames(8).graph_peak > costs.frames(4).graph_peak
        assert 0.2 < costs.frames(8).graph_peak / measured.frames(8).graph_peak < 5
        plan = CheckpointPlan(segments=(64, 64), num_layers=2, layer_interval=2, frames_per_batch=6)
        assert predict(plan, costs, 30).vision == round(max(costs.frames(4)[:2]))
        large = replace(costs, frames_per_clip=8, tokens_per_frame=49)  # 392 tokens: fits twice into 784
        assert all(n % 392 == 0 for n in segment_lengths(large, 8000)[:-1] if n > 784)
    weights = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted.weights == 4 * weights and counted.gradients == pytest.approx(4 * trained, rel=0.1)
    plan_for_clip = analytic_costs(video_config(), 1, torch.float32, "torch")
    assert plan_for_clip.frames_per_clip == 1 and set(plan_for_clip.vision) == {1, 4, 16}


# Elsewhere


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_leave_what_has_to_be_fp32(video_model, tmp_path, prompt, frames, dtype):
    exact = video_model("videomamba")
    exact.save_pretrained(tmp_path)
    given = {"input_ids": prompt(3, "v6", 3)[None], "pixel_values_videos": [frames(6)]}
    with torch.no_grad():
        expected = exact(**given).logits
    for model in (VideoMa2mbaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype), exact.to(dtype)):
        tower = model.model.vision_tower
        kept = tuple(name.format(s) for s in ("", "_b") for name in (".A{}_log", ".D{}", ".dt_proj{}.bias"))
        for name, parameter in tower.named_parameters():
            assert parameter.dtype == (torch.float32 if name.endswith(kept) else dtype), name
        with torch.no_grad():
            assert float((model(**given).logits - expected).norm() / expected.norm()) < 0.05


def test_a_folder_brings_its_own_code(video_model, processor, prompt, frames, tmp_path, fresh_process):
    model = video_model("videomamba", image_token_id=2, video_token_id=3, text={"vocab_size": 99})
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    video = frames(6)
    row = prompt(3, "v6", 4).masked_fill_(prompt(3, "v6", 4) == 98, 3)
    with torch.no_grad():
        expected = model(input_ids=row[None], pixel_values_videos=[video]).logits
    torch.save({"row": row, "video": video}, tmp_path / "given.pt")
    code = f"""
import sys
sys.modules["modeling_video_ma2mba"] = None
sys.path = [p for p in sys.path if p and not p.startswith({str(tmp_path.parents[0])!r})]
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = {str(tmp_path / "model")!r}
AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
given = torch.load({str(tmp_path / "given.pt")!r}, weights_only=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
assert type(model.model.vision_tower).__module__.startswith("transformers_modules"), type(model.model.vision_tower)
with torch.no_grad():
    logits = model(input_ids=given["row"][None], pixel_values_videos=[given["video"]]).logits
torch.save(logits, {str(tmp_path / "logits.pt")!r})
"""
    fresh_process(code)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), expected, rtol=0, atol=1e-6)


def test_the_tower_is_a_videomamba(model):
    assert isinstance(model.model.vision_tower, VideoMambaModel)
