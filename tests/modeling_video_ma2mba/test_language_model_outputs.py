"""Loss and logits: equal to the plain ones, never of a length nobody asked for."""

import pytest
import torch
from torch.nn import functional as F

import modeling_video_ma2mba.language_model_outputs as outputs
from modeling_video_ma2mba import Ma2mbaConfig, Ma2mbaForCausalLM

EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Ma2mbaConfig(
        hidden_size=64, num_heads=4, head_dim=32, n_groups=1, num_hidden_layers=2, state_size=16, vocab_size=99
    )
    return Ma2mbaForCausalLM(config).double().eval()


def tokens(*shape, seed=0):
    return torch.randint(1, 99, shape, generator=torch.Generator().manual_seed(seed))


def plain_loss(model, ids, labels, count=None):
    logits = model(ids).logits
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    return total / (count if count is not None else (labels[:, 1:] != -100).sum())


def test_the_loss_is_the_plain_one(model):
    ids = tokens(2, 30)
    labels = ids.masked_fill(torch.rand(2, 30, generator=torch.Generator().manual_seed(2)) < 0.4, -100)
    assert model.loss_function is not None
    for training in (False, True):
        out = model.train(training)(ids, labels=labels)
        torch.testing.assert_close(out.loss, plain_loss(model, ids, labels), **EXACT)
        assert (out.logits is None) == training
    theirs = model.loss_function(model(ids).logits, labels, vocab_size=99)
    torch.testing.assert_close(out.loss.float(), theirs.float(), rtol=1e-6, atol=0)
    for count in (7, torch.tensor(7)):
        out = model(ids, labels=labels, num_items_in_batch=count)
        torch.testing.assert_close(out.loss, plain_loss(model, ids, labels, 7), **EXACT)


@pytest.mark.parametrize("segment_length", [1, 7, 30])
def test_the_loss_of_pieces_is_that_of_the_whole(model, segment_length):
    ids = tokens(2, 30)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    with torch.no_grad():
        whole = model(ids, labels=ids, attention_mask=mask).loss
        pieces = model(ids, labels=ids, attention_mask=mask, segment_length=segment_length).loss
    torch.testing.assert_close(pieces, whole, **EXACT)


def test_nothing_to_learn_gives_zero_with_gradients(model):
    ids = tokens(2, 10)
    for count in (None, 0, torch.tensor(0)):
        loss = model.train()(ids, labels=torch.full_like(ids, -100), num_items_in_batch=count).loss
        assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_labels_at_masked_positions_do_not_count(model):
    ids = tokens(1, 12)
    mask = torch.tensor([[0] * 3 + [1] * 4 + [0] * 2 + [1] * 3])
    loss = model(ids, labels=ids, attention_mask=mask).loss
    real = ids[mask.bool()][None]
    torch.testing.assert_close(loss, plain_loss(model, real, real), **EXACT)


def test_labels_of_another_shape_are_refused(model):
    with pytest.raises(ValueError, match=r"labels of shape \(2, 9\)"):
        model(tokens(2, 10), labels=tokens(2, 9))


@pytest.mark.parametrize("padded", [False, True])
def test_logits_to_keep(model, padded):
    ids = tokens(2, 30)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 25:] = 0
        mask[1, :6] = 0
    every = model(ids, attention_mask=mask).logits
    for keep in (1, 4, 30, 99):
        kept = model(ids, attention_mask=mask, logits_to_keep=keep).logits
        torch.testing.assert_close(kept, every[:, -keep:], **EXACT)
    for positions in ([3], [0, 29, 7, 7], [-1, -5]):
        with torch.no_grad():
            kept = model(ids, attention_mask=mask, logits_to_keep=torch.tensor(positions), segment_length=8).logits
        torch.testing.assert_close(kept, every[:, positions], **EXACT)
    for wrong in (torch.tensor([30]), torch.tensor([-31]), -1):
        with pytest.raises(ValueError, match="logits_to_keep="):
            model(ids, logits_to_keep=wrong)
    with pytest.raises(ValueError, match="1-D"):
        model(ids, logits_to_keep=torch.zeros(2, 2, dtype=torch.long))


def test_logits_of_everything_have_a_limit(model, monkeypatch):
    monkeypatch.setattr(outputs, "LOGITS_LIMIT_BYTES", 10 * 99 * 4)
    with pytest.raises(ValueError, match="logits_to_keep=1"):
        model(tokens(1, 11))
    model(tokens(1, 10))
    model(tokens(1, 50), logits_to_keep=1)
    model.train()(tokens(1, 50), labels=tokens(1, 50))


def test_logits_exist_for_supervised_positions_only(model):
    sizes = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[0]))
    labels = tokens(2, 30)
    labels[:, :27] = -100
    model.train()(tokens(2, 30), labels=labels)
    assert sizes == [6]
