"""`generate`: what users try gives what the plain forward gives."""

import pytest
import torch
from transformers import GenerationConfig

from modeling_video_ma2mba import Ma2mbaConfig, Ma2mbaForCausalLM, RepetitionStop


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Ma2mbaConfig(
        hidden_size=64, num_heads=4, head_dim=32, n_groups=1, num_hidden_layers=2, state_size=16, vocab_size=99,
        pad_token_id=0, bos_token_id=0, eos_token_id=98, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    # fp64: ties between beams are then real ties, and equal text is equal arithmetic
    return Ma2mbaForCausalLM(config).double().eval()


def tokens(*shape, seed=0):
    return torch.randint(1, 98, shape, generator=torch.Generator().manual_seed(seed))


def plain_greedy(model, ids, count):
    """Greedy text from whole forwards, without a state or `generate`."""
    for _ in range(count):
        following = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, following], 1)
    return ids


GREEDY = {"max_new_tokens": 10, "do_sample": False}


def test_greedy(model):
    ids = tokens(2, 33)
    expected = plain_greedy(model, ids, 10)
    assert torch.equal(model.generate(ids, **GREEDY), expected)
    assert torch.equal(model.generate(input_ids=ids, **GREEDY), expected)
    assert torch.equal(model.generate(ids, use_cache=False, **GREEDY), expected)
    assert torch.equal(model.generate(ids, generation_config=GenerationConfig(**GREEDY, pad_token_id=0)), expected)
    assert torch.equal(model.generate(ids[:, :1], **GREEDY), plain_greedy(model, ids[:, :1], 10))
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), expected[:, 33:])


@pytest.mark.parametrize("size", [1, 2, 7, 32, 33, 100])
def test_prefill_chunk_size_changes_nothing(model, size):
    ids = tokens(2, 33)
    assert torch.equal(model.generate(ids, prefill_chunk_size=size, **GREEDY), plain_greedy(model, ids, 10))


@pytest.mark.parametrize("side", ["left", "right", "inside"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_rows_of_unequal_length(model, side, options):
    ids = tokens(3, 20)
    mask = torch.ones_like(ids)
    if side == "left":
        mask[0, :7], mask[1, :19] = 0, 0
    elif side == "right":
        mask[0, 13:], mask[1, 1:] = 0, 0
    else:
        mask[0, 4:9], mask[1, 2::3] = 0, 0
    together = model.generate(ids, attention_mask=mask, **GREEDY, **options)
    assert torch.equal(together[:, :20], ids)
    for row in range(3):
        alone = model.generate(ids[row : row + 1, mask[row].bool()], **GREEDY, **options)[0, -10:]
        assert torch.equal(together[row, 20:], alone), row


def test_beams_and_several_answers(model):
    ids = tokens(2, 15)
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 8, "do_sample": False}
    cached = model.generate(ids, **options)
    assert cached.shape == (6, 23)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    read = []
    hook = model.backbone.norm_f.register_forward_hook(lambda _, __, y: read.append(tuple(y.shape[:2])))
    model.generate(ids, **options)
    hook.remove()
    assert read[:2] == [(2, 14), (8, 1)]  # each prompt is read once, whatever the number of beams


def test_sampling_is_set_by_the_seed(model):
    ids = tokens(2, 9)
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(ids, do_sample=True, max_new_tokens=12, num_return_sequences=2))
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0][0], texts[0][1])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prefill_chunk_size": 3}], ids=str)
def test_continuing_from_a_state(model, options):
    ids, more = tokens(2, 12), tokens(2, 6, seed=1)
    first = model.generate(ids, return_dict_in_generate=True, **GREEDY)
    state = first.past_key_values
    # The last token has been chosen, not read.
    assert state.seen_tokens == first.sequences.shape[1] - 1 == 21
    before = [t.clone() for t in (*state.conv, *state.ssm)]
    whole = torch.cat([first.sequences[:, :21], more], 1)
    expected = model.generate(whole, **GREEDY, **options)
    with pytest.raises(ValueError, match="may be the whole prompt or new ids alone"):
        model.generate(whole, past_key_values=state, **GREEDY)
    for given in (
        {"inputs": whole, "attention_mask": torch.ones_like(whole)},
        {"inputs": more},
        {"inputs": more, "attention_mask": torch.ones_like(more)},
        {"inputs": more, "attention_mask": torch.ones_like(whole)},
    ):
        out = model.generate(**given, past_key_values=state, return_dict_in_generate=True, **GREEDY, **options)
        assert torch.equal(out.sequences[:, -16:], expected[:, -16:])
        assert torch.equal(out.sequences[:, : given["inputs"].shape[1]], given["inputs"])
        assert state.seen_tokens == 21
        assert all(torch.equal(one, two) for one, two in zip(before, (*state.conv, *state.ssm)))
        if not options.get("num_beams"):
            assert out.past_key_values.seen_tokens == 21 + 6 + 9


def test_embeddings_leave_the_state_too(model):
    ids = tokens(1, 6)
    state = model(ids).past_key_values
    embeds = model.get_input_embeddings()(tokens(1, 12))
    model.generate(inputs_embeds=embeds, past_key_values=state, **GREEDY)
    assert state.seen_tokens == 6


def test_continuing_with_padded_new_rows(model):
    ids, more = tokens(2, 12), tokens(2, 6, seed=1)
    state = model(ids).past_key_values
    mask = torch.ones(2, 18, dtype=torch.long)
    mask[0, 15:] = 0
    together = model.generate(more, attention_mask=mask, past_key_values=state, **GREEDY)
    alone = model.generate(more[:1, :3], past_key_values=state.select(torch.tensor([0])), **GREEDY)
    assert torch.equal(together[0, 6:], alone[0, 3:])


def test_what_does_not_fit_is_refused(model):
    ids = tokens(1, 8)
    state = model(ids).past_key_values
    with pytest.raises(ValueError, match="do not continue a state of 8 tokens"):
        model.generate(ids, attention_mask=torch.ones(1, 11), past_key_values=state)
    with pytest.raises(TypeError, match="RecurrentState"):
        model.generate(ids, past_key_values=object())
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        model.generate(ids, cache_implementation="static", **GREEDY)
    with pytest.raises(ValueError, match="segment_length=-1"):
        model.generate(ids, prefill_chunk_size=-1, **GREEDY)


def test_streaming_and_outputs(model):
    class Streamer:
        def __init__(self):
            self.ids, self.ended = [], False

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    ids = tokens(1, 9)
    out = model.generate(
        ids, streamer=streamer, return_dict_in_generate=True, output_hidden_states=True, output_scores=True, **GREEDY
    )
    assert streamer.ended and streamer.ids == out.sequences[0].tolist()
    assert len(out.scores) == len(out.hidden_states) == 10
    assert all(len(step) == 3 and step[0].shape[-1] == 64 for step in out.hidden_states)


def test_assisted_decoding_is_refused(model):
    with pytest.raises(ValueError, match="stateful"):
        model.generate(tokens(1, 9), prompt_lookup_num_tokens=3, **GREEDY)


# --- the paper's repetition stop ---


def stops(ids, prompt_length=0, n=5):
    return RepetitionStop(prompt_length, n)(torch.tensor(ids)).tolist()


def test_repetition_stop_counts_what_was_generated():
    repeated = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5]
    assert stops([repeated]) == [True]
    assert stops([repeated[:-1]]) == [False]
    assert stops([[7, *repeated]]) == [True]
    assert stops([repeated], prompt_length=1) == [False]  # the first of them belongs to the prompt
    assert stops([repeated, list(range(11))]) == [True, False]
    assert stops([[9] * 5]) == [False]
    assert stops([[9] * 6]) == [True]  # overlap counts
    assert stops([[1, 2, 1, 2]], n=2) == [True]
    with pytest.raises(ValueError, match="n >= 1"):
        RepetitionStop(0, n=0)


def test_repetition_stop_ends_each_row_by_itself(model):
    ids = tokens(3, 10)
    free = model.generate(ids, max_new_tokens=80, do_sample=False)[:, 10:]
    stopped = model.generate(
        ids, max_new_tokens=80, do_sample=False, stopping_criteria=[RepetitionStop(10)], pad_token_id=0
    )[:, 10:]
    assert stopped.shape[1] < 80
    for row, whole in zip(stopped.tolist(), free.tolist()):
        first = next(i for i in range(1, 81) if stops([whole[:i]]) == [True])
        assert row[:first] == whole[:first]
        assert not any(row[first:])
