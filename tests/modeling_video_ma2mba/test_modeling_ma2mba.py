"""The language model: parity with transformers, exact at every split and padding, fp32 where it counts."""

import copy
import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Mamba2Config, Mamba2ForCausalLM

from modeling_video_ma2mba import Ma2mbaConfig, Ma2mbaForCausalLM, Ma2mbaModel
from modeling_video_ma2mba.kernels import Backend

EXACT = {"rtol": 0, "atol": 1e-10}


def config(**changes):
    fields = {
        "hidden_size": 64, "num_heads": 4, "head_dim": 32, "n_groups": 1, "num_hidden_layers": 2, "state_size": 16,
        "vocab_size": 99, "chunk_size": 16, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return Ma2mbaConfig(**{**fields, **changes})


def model(seed=0, dtype=torch.float64, **changes):
    torch.manual_seed(seed)
    return Ma2mbaForCausalLM(config(**changes)).to(dtype).eval()


def tokens(*shape, seed=0):
    return torch.randint(1, 99, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected, **tolerance):
    """Compare dicts of tensors, naming the worst."""
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# --- parity with transformers (ARCHITECTURE 5.3) ---


def hf_model(width, layers, seed=0):
    torch.manual_seed(seed)
    heads = width * 2 // 32
    fields = {
        "hidden_size": width, "num_heads": heads, "head_dim": 32, "n_groups": 1, "num_hidden_layers": layers,
        "state_size": 32, "vocab_size": 199, "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 0,
        "eos_token_id": 0,
    }  # fmt: skip
    return Mamba2ForCausalLM(Mamba2Config(**fields)).eval()


@pytest.mark.parametrize(("width", "layers"), [(64, 2), (64, 16), (128, 8), (256, 4), (1024, 2)])
def test_as_close_to_the_truth_as_transformers(width, layers, tmp_path):
    """Our fp32 error against our fp64 run (the recurrence's twin, see test_ssd) is at most 1.5 times theirs."""
    theirs = hf_model(width, layers)
    theirs.save_pretrained(tmp_path)
    ours = Ma2mbaForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens(2, 301)
    with torch.no_grad():
        truth = copy.deepcopy(ours).double()(ids).logits
        our_error = (ours(ids).logits - truth).abs().max().item()
        their_error = (theirs(ids).logits - truth).abs().max().item()
    assert our_error <= 1.5 * their_error, (our_error, their_error)
    if (width, layers) == (64, 2):
        assert our_error < 1e-5


def test_greedy_text_equals_transformers(tmp_path):
    theirs = hf_model(128, 4)
    theirs.save_pretrained(tmp_path)
    ours = Ma2mbaForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens(1, 50)
    options = {"max_new_tokens": 60, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    one, two = ours.generate(ids, **options), theirs.generate(ids, **options)
    for step, (a, b) in enumerate(zip(one.logits, two.logits)):
        margin = b.topk(2).values.diff().abs().min().item()
        if margin < 2e-4:
            break
        assert a.argmax() == b.argmax(), step
    assert step > 5


def test_folders_go_both_ways(tmp_path):
    theirs = hf_model(64, 2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, info = Ma2mbaForCausalLM.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert ours.config.model_type == "ma2mba"
    ours.save_pretrained(tmp_path / "ours")
    back, info = Mamba2ForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for (name, one), two in zip(theirs.named_parameters(), back.parameters()):
        assert torch.equal(one, two), name


# --- exact at every split ---


def split_run(net, x, state, cuts):
    """Run the stack over pieces; return outputs, states and gradients of everything by name."""
    leaves = {"x": x}
    leaves |= {f"conv{i}": t for i, t in enumerate(state.conv)} | {f"ssm{i}": t for i, t in enumerate(state.ssm)}
    leaves |= {n: p for n, p in net.named_parameters() if "embeddings" not in n}
    pieces = []
    for start, stop in zip([0, *cuts], [*cuts, x.shape[1]]):
        y, state = net.segment(x[:, start:stop], state)
        pieces.append(y)
    y = torch.cat(pieces, dim=1)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    # Gradients come from outputs and final states alike.
    loss = (y * weight).sum() + sum((t * t).sum() for t in (*state.conv, *state.ssm))
    grads = dict(zip(leaves, torch.autograd.grad(loss, leaves.values())))
    values = {"y": y} | {f"final conv{i}": t for i, t in enumerate(state.conv)}
    values |= {f"final ssm{i}": t for i, t in enumerate(state.ssm)}
    return values, grads


CUTS = [[1], [3], [2], [2, 3], [15], [17], [63], [65], [69], [1, 2, 3, 4, 5], list(range(7, 70, 9))]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("n_groups", [1, 2])
def test_any_split_equals_the_whole(cuts, n_groups):
    net = model(n_groups=n_groups).backbone
    generator = torch.Generator().manual_seed(3)

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x = draw((2, 70, 64))
    state = net.new_state(2).map(lambda t: draw(t.shape))
    whole, whole_grads = split_run(net, x, state, [])
    pieces, piece_grads = split_run(net, x, state, cuts)
    assert_close(pieces, whole, **EXACT)
    assert_close(piece_grads, whole_grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_sequences_shorter_than_the_convolution(length):
    net = model()
    ids = tokens(2, 9)
    with torch.no_grad():
        whole = net(ids)
        first = net(ids[:, :length])
        rest = net(ids[:, length:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole.logits, **EXACT)


@pytest.mark.parametrize("segment_length", [1, 3, 16, 17, 40])
def test_the_segment_length_does_not_matter(segment_length):
    net = model()
    ids = tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    with torch.no_grad():
        whole = net(ids, attention_mask=mask, output_hidden_states=True)
        pieces = net(ids, attention_mask=mask, segment_length=segment_length, output_hidden_states=True)
    torch.testing.assert_close(pieces.logits, whole.logits, **EXACT)
    for one, two in zip(pieces.hidden_states, whole.hidden_states):
        torch.testing.assert_close(one, two, **EXACT)
    with pytest.raises(ValueError, match="segment_length=0"):
        net(ids, segment_length=0)


# --- a masked position is invisible wherever it stands ---

MASKS = {
    "left": [[0] * 7 + [1] * 13, [1] * 20],
    "right": [[1] * 13 + [0] * 7, [1] * 20],
    "both": [[0] * 4 + [1] * 9 + [0] * 7, [0] * 1 + [1] * 18 + [0]],
    "inside": [[1] * 5 + [0] * 6 + [1] * 9, [1, 0] * 10],
    "one row": [[0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0]],
    "one real token": [[0] * 19 + [1], [1] + [0] * 19],
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("given", ["ids", "embeds"])
def test_each_row_equals_the_row_alone(name, given):
    net = model()
    mask = torch.tensor(MASKS[name])
    ids = tokens(*mask.shape)
    after = tokens(len(ids), 4, seed=1)
    if given == "ids":
        out = net(ids, attention_mask=mask, use_cache=True)
    else:
        embeds = net.get_input_embeddings()(ids).detach()
        embeds[mask == 0] = torch.nan  # whatever stands at a masked position must not leak
        out = net(inputs_embeds=embeds, attention_mask=mask, use_cache=True)
    last = out.logits[:, -1].clone()
    state = out.past_key_values.fork()
    decoded = [net(after[:, i : i + 1], past_key_values=out.past_key_values).logits for i in range(4)]
    for row, keep in enumerate(mask.bool()):
        alone = net(ids[row : row + 1, keep], use_cache=True)
        torch.testing.assert_close(out.logits[row, keep], alone.logits[0], **EXACT)
        torch.testing.assert_close(last[row], alone.logits[0, -1], **EXACT)
        for one, two in zip((*state.conv, *state.ssm), (*alone.past_key_values.conv, *alone.past_key_values.ssm)):
            torch.testing.assert_close(one[row], two[0], **EXACT)
        later = net(after[row : row + 1], past_key_values=alone.past_key_values).logits
        torch.testing.assert_close(torch.cat(decoded, 1)[row], later[0], **EXACT)


@pytest.mark.parametrize("name", MASKS)
def test_gradients_of_padded_rows_are_those_of_the_rows_alone(name):
    net = model().train()
    mask = torch.tensor(MASKS[name])
    ids = tokens(*mask.shape)
    loss = net(ids, attention_mask=mask, labels=ids, num_items_in_batch=10).loss
    padded = torch.autograd.grad(loss, net.parameters())
    rows = [
        net(ids[i : i + 1, m], labels=ids[i : i + 1, m], num_items_in_batch=10).loss for i, m in enumerate(mask.bool())
    ]
    alone = torch.autograd.grad(sum(rows), net.parameters())
    torch.testing.assert_close(loss, sum(rows), **EXACT)
    for one, two in zip(padded, alone):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_masks_that_do_not_fit_are_refused():
    net = model()
    ids = tokens(2, 5)
    state = net(ids).past_key_values
    for shape in ((2, 4), (1, 5), (2, 11)):
        with pytest.raises(ValueError, match="attention_mask of shape"):
            net(ids, attention_mask=torch.ones(shape), past_key_values=state)
    net(ids, attention_mask=torch.ones(2, 10), past_key_values=state)
    with pytest.raises(ValueError, match="holds 2 rows and the input 1"):
        net(ids[:1], past_key_values=state)
    with pytest.raises(ValueError, match="exactly one of"):
        net()
    with pytest.raises(ValueError, match="shape"):
        net(ids[:, :0])


# --- precision (ARCHITECTURE 5.5) ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["to", "method", "with gradients"])
def test_ssm_parameters_stay_in_fp32(dtype, how):
    net = model(dtype=torch.float32)
    if how == "with gradients":
        net.train()(tokens(1, 9), labels=tokens(1, 9)).loss.backward()
        net.eval()
    if how == "method":
        net = net.bfloat16() if dtype == torch.bfloat16 else net.half()
    else:
        net = net.to(dtype)
    for name, parameter in net.named_parameters():
        expected = torch.float32 if name.split(".")[-1] in ("A_log", "D", "dt_bias") else dtype
        assert parameter.dtype == expected, name
        assert parameter.grad is None or parameter.grad.dtype == expected, name
    out = net(tokens(2, 30))
    assert torch.isfinite(out.logits).all()
    assert out.logits.dtype == torch.float32
    assert out.past_key_values.ssm[0].dtype == torch.float32
    assert net.double().backbone.layers[0].mixer.A_log.dtype == torch.float64


def test_loading_in_bf16_keeps_them_too(tmp_path):
    model(dtype=torch.float32).save_pretrained(tmp_path)
    net = Ma2mbaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mixer = net.backbone.layers[0].mixer
    assert mixer.in_proj.weight.dtype == torch.bfloat16
    assert {mixer.A_log.dtype, mixer.D.dtype, mixer.dt_bias.dtype} == {torch.float32}
    double = Ma2mbaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert {p.dtype for p in double.parameters()} == {torch.float64}


def test_the_residual_is_fp32_when_configured():
    for in_fp32, expected in ((True, torch.float32), (False, torch.bfloat16)):
        net = model(dtype=torch.bfloat16, residual_in_fp32=in_fp32)
        hidden = net(tokens(1, 5), output_hidden_states=True).hidden_states
        assert hidden[1].dtype == expected


def test_bf16_is_close_to_fp64():
    net = model()
    ids = tokens(2, 100)
    truth = net(ids).logits
    error = (net.to(torch.bfloat16)(ids).logits - truth).norm() / truth.norm()
    assert error < 0.02


# --- what users of transformers expect ---


def test_save_and_load(tmp_path):
    net = model(dtype=torch.float32, tie_word_embeddings=True)
    net.save_pretrained(tmp_path)
    again, info = Ma2mbaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again.eval()(tokens(1, 9)).logits, net(tokens(1, 9)).logits)
    assert again.lm_head.weight is again.backbone.embeddings.weight
    backbone = Ma2mbaModel.from_pretrained(tmp_path)
    assert torch.equal(backbone.layers[1].mixer.A_log, net.backbone.layers[1].mixer.A_log)


def test_a_video_model_is_not_loaded_as_text(tiny_video_model, tmp_path):
    tiny_video_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a video model"):
        Ma2mbaForCausalLM.from_pretrained(tmp_path)


def test_a_missing_weight_is_initialised(tmp_path):
    from safetensors.torch import load_file, save_file

    net = model(dtype=torch.float32)
    net.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("A_log", "conv1d.weight", "in_proj.weight"):
        del tensors[f"backbone.layers.0.mixer.{name}"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, info = Ma2mbaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["missing_keys"]) == 3
    mixer = again.backbone.layers[0].mixer
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 5.0))
    assert 0.05 < mixer.in_proj.weight.std() < 0.2  # initializer_range
    assert mixer.conv1d.weight.abs().max() <= 0.5 and mixer.conv1d.weight.std() > 0.1


def test_initialisation_is_mamba2s():
    net = model(dtype=torch.float32, rescale_prenorm_residual=True)
    for block in net.backbone.layers:
        mixer = block.mixer
        dt = torch.nn.functional.softplus(mixer.dt_bias)
        assert (dt >= 1e-3 * 0.99).all() and (dt <= 0.1 * 1.01).all()
        assert torch.equal(mixer.D, torch.ones(4)) and torch.equal(mixer.norm.weight, torch.ones(128))
        assert mixer.out_proj.weight.abs().max() <= 128**-0.5 / 2**0.5 + 1e-6


def test_tuples_hidden_states_and_embeddings():
    net = model()
    ids = tokens(2, 12)
    named = net(ids, output_hidden_states=True)
    assert [h.shape for h in named.hidden_states] == [(2, 12, 64)] * 3
    torch.testing.assert_close(named.hidden_states[0], net.get_input_embeddings()(ids), **EXACT)
    torch.testing.assert_close(net.lm_head(named.hidden_states[-1]), named.logits, **EXACT)
    in_order = net(ids, return_dict=False, use_cache=False)
    assert len(in_order) == 1 and torch.equal(in_order[0], named.logits)
    embedded = net(inputs_embeds=net.get_input_embeddings()(ids)).logits
    assert torch.equal(embedded, named.logits)
    assert named.past_key_values.seen_tokens == 12
    assert net(ids, use_cache=False).past_key_values is None
    body = net.backbone(ids)
    torch.testing.assert_close(net.lm_head(body.last_hidden_state), named.logits, **EXACT)


def test_eval_equals_train():
    net = model()
    ids = tokens(2, 12)
    assert torch.equal(net(ids).logits, net.train()(ids).logits)


def test_a_failing_forward_leaves_the_state_as_it_was():
    net = model()
    state = net(tokens(1, 8)).past_key_values
    before = state.fork()
    net.backbone.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        net(tokens(1, 8), past_key_values=state)
    assert state.seen_tokens == before.seen_tokens == 8
    assert all(one is two for one, two in zip((*state.conv, *state.ssm), (*before.conv, *before.ssm)))


@pytest.mark.parametrize("tied", [True, False])
def test_resizing_the_vocabulary(tied):
    net = model(dtype=torch.float32, tie_word_embeddings=tied)
    before = net(tokens(1, 9)).logits
    net.resize_token_embeddings(120, pad_to_multiple_of=16)
    assert net.config.vocab_size == 128 and net.lm_head.weight.shape[0] == 128
    assert (net.lm_head.weight is net.backbone.embeddings.weight) == tied
    torch.testing.assert_close(net(tokens(1, 9)).logits[..., :99], before)


def test_a_step_moves_every_parameter_and_checkpointing_changes_nothing():
    ids = tokens(2, 30)
    gradients = []
    for checkpointing in (False, True):
        net = model().train()
        if checkpointing:
            net.gradient_checkpointing_enable({"method": "layer"})
        loss = net(ids, labels=ids).loss
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
    assert_close(gradients[1], gradients[0], **EXACT)


def test_projections_are_called_as_modules():
    """Hooks fire, and LoRA on both projections gets gradients: nothing reads their weights behind their back."""
    net = model(dtype=torch.float32).train()
    called = []
    for name, module in net.named_modules():
        if name.endswith(("in_proj", "out_proj")):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    net(tokens(1, 9), labels=tokens(1, 9))
    assert len(called) == 4
    lora = get_peft_model(net, LoraConfig(target_modules=["in_proj", "out_proj"], r=4, init_lora_weights=False))
    lora(input_ids=tokens(2, 20), labels=tokens(2, 20)).loss.backward()
    adapters = {name: p.grad for name, p in lora.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * 2 * 2
    assert all(grad is not None and grad.abs().max() > 0 for grad in adapters.values())


# --- what a block keeps for the backward ---

KEEP = Backend(scan="torch", conv="torch", reason="test")
RECOMPUTE = dataclasses.replace(KEEP, recompute=True)


def block_and_inputs(rows, length, dtype=torch.float32, **changes):
    """Return a block, and x, conv_state, ssm_state as leaves that need gradients."""
    net = model(dtype=dtype, **changes).backbone
    generator = torch.Generator().manual_seed(2)
    state = net.new_state(rows)
    shapes = ((rows, length, net.config.hidden_size), state.conv[0].shape, state.ssm[0].shape)
    dtypes = (dtype, dtype, state.ssm[0].dtype)
    inputs = [torch.randn(s, generator=generator).to(t).requires_grad_() for s, t in zip(shapes, dtypes)]
    return net.layers[0].train(), inputs


def block_run(block, inputs, lengths, backend, wanted=(0, 1, 2)):
    """Return the outputs, and the gradients of all leaves from the wanted ones of y, conv_state, ssm_state."""
    outputs = block(*inputs, lengths, backend)
    generator = torch.Generator().manual_seed(3)
    arriving = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    leaves = [*inputs, *block.parameters()]
    chosen = [[t[k] for k in wanted] for t in (outputs, arriving)]
    return outputs, torch.autograd.grad(chosen[0], leaves, chosen[1], allow_unused=True)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("lengths", [None, [70, 1, 0, 33]], ids=["whole", "masked"])
@pytest.mark.parametrize("setting", ["fp32", "bf16", "autocast", "fp32 residual", "limited steps"])
def test_recomputing_changes_no_bit(setting, lengths, wanted):
    dtype = torch.bfloat16 if setting in ("bf16", "fp32 residual") else torch.float32
    changes = {"time_step_limit": (0.01, 0.5)} if setting == "limited steps" else {}
    block, inputs = block_and_inputs(4, 70, dtype, residual_in_fp32=setting == "fp32 residual", **changes)
    lengths = None if lengths is None else torch.tensor(lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
        kept, again = (block_run(block, inputs, lengths, backend, wanted) for backend in (KEEP, RECOMPUTE))
    for one, two in zip((*kept[0], *kept[1]), (*again[0], *again[1])):
        assert (one is None and two is None) or torch.equal(one, two)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
        assert all(torch.equal(one, two) for one, two in zip(block(*inputs, lengths, RECOMPUTE), kept[0]))


@pytest.mark.parametrize("length", [1, 2, 3, 40])
@pytest.mark.parametrize("conv_kernel", [2, 4])
def test_the_convolutions_state_is_the_last_real_inputs(length, conv_kernel):
    block, (x, conv_state, ssm_state) = block_and_inputs(5, length, torch.float64, conv_kernel=conv_kernel)
    lengths = torch.tensor([0, 1, length - 1, length, length])
    taken = block.mixer.in_proj(block.norm(x))[..., 128 : 128 + block.mixer.config.conv_dim]
    inputs = torch.cat([conv_state, taken], 1)
    for given in (lengths, None):
        _, after, _ = block(x, conv_state, ssm_state, given, KEEP)
        ends = [length] * 5 if given is None else given.tolist()
        expected = torch.stack([row[end : end + conv_kernel - 1] for row, end in zip(inputs, ends)])
        assert torch.equal(after, expected)
        arriving = torch.ones_like(after)
        actual, truth = (
            torch.autograd.grad(t, (x, conv_state), arriving, allow_unused=True, retain_graph=True)
            for t in (after, expected)
        )
        for one, two in zip(actual, truth):
            torch.testing.assert_close(torch.zeros_like(two) if one is None else one, two, **EXACT)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_a_block_keeps(dtype, masked, kept_bytes):
    """What a training graph costs is the sum of the parts that have to be there, to 1 %."""
    length, fp32 = 2048, 4
    sizes = {"hidden_size": 128, "num_heads": 16, "head_dim": 16, "n_groups": 2, "state_size": 32}
    block, inputs = block_and_inputs(1, length, dtype, residual_in_fp32=False, **sizes)
    lengths = torch.tensor([length - 9]) if masked else None
    c = block.mixer.config
    width, inner, heads = c.hidden_size, c.intermediate_size, c.num_heads
    state = inner * c.state_size * fp32
    # Normed input, projection, gated norm's output, the block's output; the first norm's statistics; the states.
    always = length * ((width + (inner + c.conv_dim + heads) + inner + width) * dtype.itemsize + fp32)
    always += state + 3 * c.conv_dim * dtype.itemsize
    # The convolution's and the scan's output; dt before and after softplus; statistics; a state every 512 tokens.
    between = length * ((c.conv_dim + inner) * dtype.itemsize + (2 * heads + c.n_groups) * fp32)
    between += (length // 512 - 1) * state
    assert kept_bytes(lambda: block(*inputs, lengths, KEEP)) == pytest.approx(always + between, rel=0.01)
    assert kept_bytes(lambda: block(*inputs, lengths, RECOMPUTE)) == pytest.approx(always, rel=0.01)


def test_backends():
    net = model(dtype=torch.float32, backend="triton")
    with pytest.raises((RuntimeError, ImportError), match="triton"):
        net(tokens(1, 9))
    assert torch.isfinite(model(backend="torch")(tokens(1, 9)).logits).all()


def test_work_beyond_the_kernels_limit_is_segmented(monkeypatch):
    """With gradients too: pieces no longer than the limit, the same gradients."""
    import modeling_video_ma2mba.modeling_ma2mba as module

    net = model().train()
    ids = tokens(2, 70)
    loss = net(ids, labels=ids).loss
    whole = torch.autograd.grad(loss, net.parameters())
    monkeypatch.setattr(module, "max_segment_tokens", lambda **_: 33)
    lengths = []
    net.backbone.norm_f.register_forward_hook(lambda _, __, y: lengths.append(y.shape[1]))
    pieces = torch.autograd.grad(net(ids, labels=ids).loss, net.parameters())
    assert lengths == [32, 32, 6]  # a multiple of the chunk length
    for one, two in zip(pieces, whole):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
