"""Frames in checkpointed training: exact gradients of tower and projector, each frame run as often as planned."""

import gc
import weakref

import pytest
import torch

import modeling_video_ma2mba.visual_inputs as visual_inputs
from modeling_video_ma2mba.checkpoint_plan import CheckpointPlan, uniform
from modeling_video_ma2mba.language_model_outputs import NextTokenLoss
from modeling_video_ma2mba.processing.frame_source import FrameSource
from modeling_video_ma2mba.row_layout import Rows
from modeling_video_ma2mba.visual_inputs import VisualInputs

PLANS = {
    "one cell": {"interval": 99},
    "grid": {"interval": 7, "layer_interval": 1},
    "nested blocks": {"interval": 5, "layer_interval": 1, "keep_boundaries": False, "segments_per_block": 2},
    "frame by frame": {"interval": 4, "states_on": "host"},
    "single tokens": {"interval": 1, "layer_interval": 1, "keep_last_cell": False},
}


def train(model, given, name=None, **changes):
    """Return loss and gradients of a step by a plan, None for plain training."""
    model.train().gradient_checkpointing_disable()
    if name is not None:
        fields = {"layer_interval": 2, **PLANS[name], **changes}
        length = given["input_ids"].shape[1]
        segments = uniform(length, min(fields.pop("interval"), length))
        model.gradient_checkpointing_enable()
        plan = CheckpointPlan(segments=segments, num_layers=2, **fields)
        model.model.language_model.checkpointing.fixed_plan = plan
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.fixture
def model(video_model):
    return video_model(dtype=torch.float64)


@pytest.fixture
def mixed(prompt, frames, pad):
    """Unequal rows of images, videos and words, padded; 3 images and 6 frames of video."""
    rows = [
        prompt("v2", 3, "i", 2, "v1", 1, seed=1),
        prompt(6, seed=2),
        prompt(1, "i", "i", 4, "v3", seed=3),
    ]
    batch, mask = pad(rows, "inside")
    return {
        "input_ids": batch,
        "attention_mask": mask,
        "labels": batch,
        "pixel_values": frames(3),
        "pixel_values_videos": [frames(2, 2), frames(1, 3), frames(3, 5)],
    }


@pytest.fixture
def film(prompt, frames):
    """`film(count)` -> a batch of one video between words."""

    def build(count):
        row = prompt(3, f"v{count}", 5)[None]
        return {"input_ids": row, "labels": row, "pixel_values_videos": [frames(count)]}

    return build


@pytest.fixture
def check(assert_close):
    def compare(found, expected):
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        for name in expected:
            assert_close(name, found[name], expected[name], 1e-10)

    return compare


def count_frames(model):
    """Return a list that the tower adds the number of its frames to, call by call."""
    calls = []
    model.model.vision_tower.embeddings.register_forward_hook(lambda _, __, out: calls.append(len(out)))
    return calls


STAGES = {
    "everything": lambda name: True,
    "all but the tower": lambda name: "vision_tower" not in name,
    "the projector": lambda name: "projector" in name,
    "the tower": lambda name: "vision_tower" in name,
    "the language model": lambda name: "vision_tower" not in name and "projector" not in name,
}


@pytest.fixture(params=STAGES)
def stage(request, model):
    """The model with a part of it trained, the rest frozen."""
    unused = set(model.unused_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(STAGES[request.param](name) and name not in unused)
    return model


# Gradients


def test_every_part_gets_the_gradients_of_plain_training(stage, mixed, check):
    expected = train(stage, mixed)
    trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert set(expected) == {"loss", *trained}
    for i, name in enumerate(PLANS):
        for keep_features in (False, True):
            frames_per_batch = (1, 3, 16)[(i + keep_features) % 3]
            check(train(stage, mixed, name, keep_features=keep_features, frames_per_batch=frames_per_batch), expected)


@pytest.mark.parametrize("frames_per_batch", [1, 3, 16])
@pytest.mark.parametrize("keep_features", [False, True])
def test_micro_batches_change_nothing(model, mixed, check, keep_features, frames_per_batch):
    found = train(model, mixed, "grid", keep_features=keep_features, frames_per_batch=frames_per_batch)
    check(found, train(model, mixed))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_every_form_of_frames_has_the_same_gradients(video_model, film, check, tower):
    model, given = video_model(tower, dtype=torch.float64), film(5)
    expected = train(model, given)
    video = given["pixel_values_videos"][0]
    for form in (video[None], [video[:2], video[2:]], FrameSource(video), [FrameSource(video[:1]), video[1:]]):
        forms = {**given, "pixel_values_videos": form}
        check(train(model, forms, "grid"), expected)
        check(train(model, forms, "nested blocks", keep_features=False, frames_per_batch=3), expected)


def test_tied_embeddings_do_not_learn_from_placeholders(video_model, film, check):
    for tied in (True, False):
        model = video_model(dtype=torch.float64, text={"tie_word_embeddings": tied})
        given = film(3)
        expected = train(model, given)
        found = train(model, given, "grid")
        check(found, expected)
        placeholder = model.get_input_embeddings().weight.grad[98]
        assert bool(placeholder.any()) == tied


@pytest.mark.parametrize("name", PLANS)
def test_text_alone_gives_tower_and_projector_zeros(stage, prompt, check, name):
    row = prompt(9)[None]
    given = {"input_ids": row, "labels": row}
    found = train(stage, given, name)
    if any(parameter.requires_grad for parameter in stage.model.language_model.parameters()):
        check(found, train(stage, given))
    for parameter_name, parameter in stage.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
        if parameter.requires_grad and ("vision_tower" in parameter_name or "projector" in parameter_name):
            assert not parameter.grad.any(), parameter_name


def test_embeddings_given_need_no_vision(model, ids, check):
    embeds = model.get_input_embeddings()(ids(2, 9)).detach()
    labels = ids(2, 9, seed=1)
    results = []
    for enabled in (False, True):
        leaf = embeds.clone().requires_grad_()
        model.train().zero_grad()
        (model.gradient_checkpointing_enable if enabled else model.gradient_checkpointing_disable)()
        if enabled:
            plan = CheckpointPlan(segments=(4, 5), num_layers=2, layer_interval=1)
            model.model.language_model.checkpointing.fixed_plan = plan
        model(inputs_embeds=leaf, labels=labels).loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append({"leaf": leaf.grad, **gradients})
    check(results[1], results[0])


def test_frames_that_want_a_gradient_are_refused(model, film):
    given = film(2)
    given["pixel_values_videos"] = [given["pixel_values_videos"][0].double().requires_grad_()]
    with pytest.raises(ValueError, match=r'frames require a gradient.*"method": "layer"'):
        train(model, given, "grid")
    train(model, given)


def test_frames_changed_in_place_are_noticed(model, film):
    given = film(2)
    train(model, given, "grid")
    loss = model(**given).loss
    given["pixel_values_videos"][0].zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def run_in_pieces(model, plan, given):
    """Return the loss of plain training that reads segment by segment, as the plan does: the same draws."""
    language_model, ids = model.model.language_model, given["input_ids"]
    rows, state = Rows(ids, None, None, None), language_model.new_state(len(ids))
    inputs = VisualInputs(model.model, rows, None, given["pixel_values_videos"])
    inputs.frames_per_batch = plan.frames_per_batch
    loss = NextTokenLoss(rows, given["labels"], model.lm_head)
    for start, stop in plan.spans(ids.shape[1]):
        hidden, state = language_model.segment(inputs(start, stop), state)
        loss.add(start, hidden)
    return loss.result()


@pytest.mark.parametrize("tower_is_trained", [False, True])
@pytest.mark.parametrize("keep_features", [False, True])
def test_dropout_in_the_tower_draws_the_same_again(video_model, film, check, keep_features, tower_is_trained):
    model, given = video_model(dtype=torch.float64, vision={"attention_dropout": 0.4}).train(), film(5)
    model.model.vision_tower.requires_grad_(tower_is_trained)
    model.freeze_unused_parameters()
    for name in PLANS:
        for frames_per_batch in (1, 2, 16):
            torch.manual_seed(5)
            found = train(model, given, name, keep_features=keep_features, frames_per_batch=frames_per_batch)
            plan = model.model.language_model.checkpointing.fixed_plan
            model.zero_grad()
            torch.manual_seed(5)
            loss = run_in_pieces(model, plan, given)
            loss.backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            check(found, {"loss": loss.detach(), **gradients})


# What is run and kept


@pytest.mark.parametrize("name", ["one cell", "grid", "nested blocks", "frame by frame"])
def test_features_that_are_kept_are_computed_once(model, film, name):
    given = film(6)
    model.model.vision_tower.requires_grad_(False)
    calls = count_frames(model)
    train(model, given, name, frames_per_batch=1)
    assert calls == [1] * 6


def test_features_that_are_not_kept_are_computed_again(model, film):
    given = film(6)
    model.model.vision_tower.requires_grad_(False)
    calls = count_frames(model)
    train(model, given, "one cell", keep_features=False, keep_last_cell=False)
    assert calls == [6, 6, 6], "forward, input of the cell again, projector's gradient"
    calls.clear()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    train(model, given, "one cell", keep_features=False)
    assert calls[0] == 6


@pytest.mark.parametrize("frames_per_batch", [1, 3, 4])
def test_no_more_frames_than_asked_for_are_in_the_tower(model, film, frames_per_batch):
    calls = count_frames(model)
    train(model, film(8), "one cell", frames_per_batch=frames_per_batch)
    assert max(calls) == frames_per_batch


def test_a_micro_batch_is_freed_before_the_next(video_model, film, peak_bytes):
    model, given = video_model(vision={"hidden_size": 64, "intermediate_size": 512}), film(48)
    options = {"recompute_mixer": True, "interval": 300}
    train(model, given, "one cell")
    one, all_at_once = (
        peak_bytes(lambda count=count: train(model, given, "one cell", frames_per_batch=count, **options))
        for count in (1, 48)
    )
    assert one < 0.5 * all_at_once, (one, all_at_once)


@pytest.mark.parametrize("tower_is_trained", [False, True])
def test_features_wait_on_the_host_until_the_backward_is_done(model, film, monkeypatch, tower_is_trained):
    slabs, allocate = [], visual_inputs.HostSlabs._allocate

    def watched(self, size):
        slab = allocate(self, size)
        slabs.append(weakref.ref(slab))
        return slab

    monkeypatch.setattr(visual_inputs.HostSlabs, "_allocate", watched)
    model.model.vision_tower.requires_grad_(tower_is_trained)
    given = film(6)
    train(model, given, "one cell")
    slabs.clear()
    loss = model(**given).loss
    assert slabs and all(slab() is not None for slab in slabs)
    gc.disable()
    try:
        loss.backward()
        assert all(slab() is None for slab in slabs)
    finally:
        gc.enable()
