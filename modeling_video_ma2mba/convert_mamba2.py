"""Mamba-2 folders of state-spaces (original names, flat config) and of transformers in, `Ma2mbaForCausalLM` out.

video-ma2mba convert --mamba mamba2-370m --output ma2mba-370m
"""

import json
from pathlib import Path
from typing import Any

import torch

from .checkpoint_files import ConversionError, KeyLedger, read_json, read_tensors
from .configuration_video_ma2mba import Ma2mbaConfig
from .modeling_ma2mba import Ma2mbaForCausalLM

# state-spaces' `ssm_cfg`: the name of the same thing in Ma2mbaConfig, and what is implied where it is absent.
_SSM_FIELDS = {
    "d_state": ("state_size", 128),
    "d_conv": ("conv_kernel", 4),
    "expand": ("expand", 2),
    "headdim": ("head_dim", 64),
    "ngroups": ("n_groups", 1),
    "chunk_size": ("chunk_size", 256),
    "bias": ("use_bias", False),
    "conv_bias": ("use_conv_bias", True),
    "dt_min": ("time_step_min", 0.001),
    "dt_max": ("time_step_max", 0.1),
    "dt_init_floor": ("time_step_floor", 1e-4),
    "dt_limit": ("time_step_limit", (0.0, float("inf"))),
}
# Settings that this model has in one form only.
_FIXED = {"layer": "Mamba2", "rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "use_mem_eff_path": None}
_FLAT_FIELDS = {
    "d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "residual_in_fp32", "fused_add_norm",
    "pad_vocab_size_multiple", "tie_embeddings", "d_intermediate", "attn_layer_idx", "attn_cfg",
}  # fmt: skip


def read_mamba2_config(folder: str | Path, vocab_size: int) -> Ma2mbaConfig:
    """Return the config of a Mamba-2 folder in either form.

    Args:
        vocab_size: rows of the embedding as stored; the original config counts tokens before padding.
    """
    folder = Path(folder)
    fields = read_json(folder / "config.json")
    if "model_type" in fields:
        if fields["model_type"] not in ("mamba2", Ma2mbaConfig.model_type):
            raise ConversionError(f"{folder} holds a {fields['model_type']!r} model, expected 'mamba2'")
        config = Ma2mbaConfig.from_pretrained(folder)
        config.vocab_size = vocab_size
        return config
    return _from_flat_config(folder, fields, vocab_size)


def _from_flat_config(folder: Path, fields: dict[str, Any], vocab_size: int) -> Ma2mbaConfig:
    if unknown := sorted(fields.keys() - _FLAT_FIELDS):
        raise ConversionError(f"{folder}/config.json has unknown fields {unknown}; is it a Mamba-2 config?")
    for name in ("d_model", "n_layer"):
        if not isinstance(fields.get(name), int):
            raise ConversionError(f"{folder}/config.json: {name} is {fields.get(name)!r}, expected a whole number")
    ssm = dict(fields.get("ssm_cfg") or {})
    if ssm.get("layer", "Mamba1") != "Mamba2":
        raise ConversionError(f"{folder} is a {ssm.get('layer', 'Mamba1')} model; only Mamba-2 can be converted")
    if fields.get("attn_layer_idx") or fields.get("d_intermediate") or not fields.get("rms_norm", True):
        raise ConversionError(f"{folder} has attention layers, MLPs or LayerNorm, which Mamba-2 has not")
    for name, value in ssm.items():
        if name in _FIXED and _FIXED[name] is not None and value != _FIXED[name]:
            raise ConversionError(
                f"{folder}/config.json: ssm_cfg.{name}={value!r} is not supported ({_FIXED[name]!r} is)"
            )
        if name not in _FIXED and name not in _SSM_FIELDS:
            raise ConversionError(f"{folder}/config.json: unknown ssm_cfg.{name}={value!r}")
    config = {ours: ssm.get(theirs, default) for theirs, (ours, default) in _SSM_FIELDS.items()}
    inner = fields["d_model"] * config["expand"]
    return Ma2mbaConfig(
        hidden_size=fields["d_model"],
        num_hidden_layers=fields["n_layer"],
        num_heads=inner // config["head_dim"],
        vocab_size=vocab_size,
        residual_in_fp32=fields.get("residual_in_fp32", True),
        tie_word_embeddings=fields.get("tie_embeddings", True),
        pad_token_id=0,  # GPT-NeoX: token 0 is <|endoftext|>
        bos_token_id=0,
        eos_token_id=0,
        **config,
    )


def take_mamba2(
    ledger: KeyLedger, tensors: dict[str, torch.Tensor], tied: bool, backbone: str, folder: str | Path
) -> None:
    """Enter a Mamba-2 checkpoint into a ledger, its stack under the prefix `backbone`."""
    embedding = embedding_of(tensors, folder)
    for key, tensor in tensors.items():
        if key == "lm_head.weight" and tied:
            if not torch.equal(tensor, embedding):
                raise ConversionError(f"{folder}: lm_head.weight differs from the embedding although they are tied")
            ledger.leave_out(key, "tied to the embedding")
        elif key == "lm_head.weight":
            ledger.take(key, key, tensor)
        elif key.startswith("backbone."):
            name = key.removeprefix("backbone.").replace("embedding.weight", "embeddings.weight", 1)
            ledger.take(key, f"{backbone}.{name}", tensor)
        else:
            raise ConversionError(f"{folder} holds {key}, which is no part of Mamba-2")


def embedding_of(tensors: dict[str, torch.Tensor], folder: str | Path) -> torch.Tensor:
    """Return the embedding of a Mamba-2 checkpoint, (V, D)."""
    for name in ("backbone.embedding.weight", "backbone.embeddings.weight"):
        if name in tensors:
            return tensors[name]
    raise ConversionError(f"{folder} has no backbone.embedding(s).weight: not a Mamba-2 language model")


def expected_shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    """Return name -> shape of what a checkpoint of the model holds (tied copies once)."""
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}


def load_and_save(model: torch.nn.Module, ledger: KeyLedger, output: str | Path, dtype: torch.dtype) -> dict:
    """Fill a model made on the meta device from a finished ledger, save it with the report, return the report."""
    report = ledger.finish()
    model.load_state_dict(ledger.tensors, strict=False, assign=True)
    model.tie_weights()
    model.to(dtype)
    model.config.dtype = dtype
    output = Path(output)
    model.save_pretrained(output)
    (output / "conversion_report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def convert_mamba2(source: str | Path, output: str | Path, dtype: torch.dtype | None = None) -> dict:
    """Convert a Mamba-2 folder; return the report of every key, also written as `conversion_report.json`.

    Args:
        dtype: of the new weights (A_log, D and dt_bias stay fp32); None keeps that of the embedding.

    Raises:
        ConversionError: an unknown field or key, a wrong shape, a missing tensor.
    """
    tensors = read_tensors(source)
    embedding = embedding_of(tensors, source)
    config = read_mamba2_config(source, embedding.shape[0])
    with torch.device("meta"):
        model = Ma2mbaForCausalLM(config)
    ledger = KeyLedger(expected_shapes(model))
    take_mamba2(ledger, tensors, config.tie_word_embeddings, "backbone", source)
    return load_and_save(model, ledger, output, dtype or embedding.dtype)
