"""The recurrent state: forks, files, transformers' cache."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache, Mamba2Config, Mamba2ForCausalLM

from modeling_video_ma2mba import Ma2mbaConfig, Ma2mbaForCausalLM, RecurrentState

FIELDS = {
    "hidden_size": 64, "num_heads": 4, "head_dim": 32, "n_groups": 1, "num_hidden_layers": 2, "state_size": 16,
    "vocab_size": 99, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Ma2mbaForCausalLM(Ma2mbaConfig(**FIELDS)).eval()


@pytest.fixture
def state(model):
    with torch.no_grad():
        return model(tokens(2, 20)).past_key_values


def tokens(*shape, seed=0):
    return torch.randint(1, 99, shape, generator=torch.Generator().manual_seed(seed))


def tensors(state):
    return (*state.conv, *state.ssm)


def test_a_fork_stays_as_it_was(model, state):
    before = [t.clone() for t in tensors(state)]
    fork = state.fork()
    assert all(one is two for one, two in zip(tensors(fork), tensors(state)))  # costs nothing
    with torch.no_grad():
        model(tokens(2, 5), past_key_values=fork)
    assert (fork.seen_tokens, state.seen_tokens) == (25, 20)
    assert all(torch.equal(one, two) for one, two in zip(tensors(state), before))
    assert not any(torch.equal(one, two) for one, two in zip(tensors(fork), before))


def test_the_size_does_not_depend_on_the_length(model):
    sizes = {model(tokens(1, length)).past_key_values.nbytes for length in (1, 7, 300)}
    assert sizes == {2 * 4 * (3 * 160 + 4 * 32 * 16)}


def test_rows(state):
    repeated = state.repeat(3)
    assert repeated.batch_size == 6 and torch.equal(repeated.ssm[0][1], state.ssm[0][0])
    chosen = state.select(torch.tensor([1, 1, 0]))
    assert torch.equal(chosen.conv[1][0], state.conv[1][1]) and chosen.batch_size == 3
    swapped = state.fork()
    swapped.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(swapped.ssm[1][0], state.ssm[1][1]) and swapped.seen_tokens == 20


def test_save_and_load(model, state, tmp_path):
    path = tmp_path / "state.safetensors"
    state.save(path, {"source": "film.mp4", "note": 'quotes " and \n lines'})
    loaded, metadata = RecurrentState.load(path, model.config)
    assert metadata == {"source": "film.mp4", "note": 'quotes " and \n lines'}
    assert loaded.seen_tokens == 20
    assert all(torch.equal(one, two) and one.dtype == two.dtype for one, two in zip(tensors(loaded), tensors(state)))
    with torch.no_grad():
        one = model(tokens(2, 5), past_key_values=loaded).logits
        two = model(tokens(2, 5), past_key_values=state).logits
    assert torch.equal(one, two)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"state_size": 8}, {"num_heads": 8, "head_dim": 16}])
def test_the_state_of_another_model_is_refused(state, tmp_path, change):
    path = tmp_path / "state.safetensors"
    state.save(path)
    with pytest.raises(ValueError, match=r"state\.safetensors.*(another model|this model needs)"):
        RecurrentState.load(path, Ma2mbaConfig(**{**FIELDS, **change}))


def test_damaged_and_foreign_files_are_refused(model, state, tmp_path):
    path = tmp_path / "state.safetensors"
    state.save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 64, b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.safetensors: damaged"):
            RecurrentState.load(path, model.config)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a state file"):
        RecurrentState.load(path, model.config)
    with pytest.raises((FileNotFoundError, ValueError), match="missing"):
        RecurrentState.load(tmp_path / "missing.safetensors", model.config)


ATTACKS = ["huge shape", "integers", "bf16 state", "no axes", "rows differ", "bad count", "odd count", "deep"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_headers_are_refused_before_anything_is_read(model, state, tmp_path, attack):
    path = tmp_path / "state.safetensors"
    state.save(path)
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    if attack == "huge shape":
        header["layers.0.ssm"]["shape"][0] = 2**40
    elif attack == "integers":
        header["layers.0.ssm"]["dtype"] = "I32"
    elif attack == "bf16 state":
        for name in ("layers.0.ssm", "layers.1.ssm"):
            header[name]["dtype"] = "BF16"
    elif attack == "no axes":
        header["layers.0.ssm"]["shape"] = []
    elif attack == "odd count":
        header["__metadata__"]["seen_tokens"] = "1_0"
    elif attack == "deep":
        header["__metadata__"]["metadata"] = "[" * 100_000
    elif attack == "rows differ":
        header["layers.1.conv"]["shape"][0] = 1
    else:
        header["__metadata__"]["seen_tokens"] = "many"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    with pytest.raises(ValueError, match=r"state\.safetensors"):
        RecurrentState.load(path, model.config)


def test_transformers_cache_goes_both_ways(model, tmp_path):
    model.save_pretrained(tmp_path)
    theirs = Mamba2ForCausalLM.from_pretrained(tmp_path).eval()
    ids, more = tokens(2, 20), tokens(2, 6, seed=1)
    with torch.no_grad():
        whole = theirs(torch.cat([ids, more], 1)).logits[:, 20:]
        state = RecurrentState.from_cache(theirs(ids, use_cache=True).cache_params, seen_tokens=20)
        torch.testing.assert_close(model(more, past_key_values=state).logits, whole, atol=1e-5, rtol=0)
        cache = model(ids).past_key_values.to_cache(Mamba2Config(**FIELDS))
        assert isinstance(cache, DynamicCache)
        torch.testing.assert_close(theirs(more, cache_params=cache).logits, whole, atol=1e-5, rtol=0)
        cache = model(ids).past_key_values.to_cache(model.config)
        steps = [theirs(more[:, i : i + 1], cache_params=cache).logits for i in range(6)]
        torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=0)


def test_a_cache_without_state_is_refused(model):
    with pytest.raises(ValueError, match="holds no Mamba-2 state"):
        RecurrentState.from_cache(DynamicCache(config=Mamba2Config(**FIELDS)), 0)
    with pytest.raises(TypeError, match="from_cache"):
        model(tokens(1, 3), past_key_values=DynamicCache(config=Mamba2Config(**FIELDS)))
