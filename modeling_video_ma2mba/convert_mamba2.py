"""Mamba-2 folders of state-spaces (original names, flat config) and of transformers in, `Ma2mbaForCausalLM` out.

video-ma2mba convert --mamba mamba2-370m --output ma2mba-370m
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from .checkpoint_files import ConversionError, KeyLedger, TensorFiles, read_json, read_tensors
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
FLAT_FIELDS = {
    "d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "residual_in_fp32", "fused_add_norm",
    "pad_vocab_size_multiple", "tie_embeddings", "d_intermediate", "attn_layer_idx", "attn_cfg",
}  # fmt: skip


# In state-spaces' files and in transformers'.
EMBEDDING_NAMES = ("backbone.embedding.weight", "backbone.embeddings.weight")
# No size in a config is larger; a hostile one would overflow before it is compared with the tensors.
_LARGEST = 1 << 16


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
        try:
            config = Ma2mbaConfig.from_pretrained(folder)
            config.vocab_size = vocab_size
            config.__dict__.pop("auto_map", None)  # it names the code in that folder
        except (StrictDataclassError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ConversionError(f"{folder}/config.json: {error}") from error
        return config
    return from_flat_config(folder, fields, vocab_size)


def from_flat_config(folder: Path, fields: dict[str, Any], vocab_size: int) -> Ma2mbaConfig:
    """Return the config that state-spaces' flat fields mean; arguments as of `read_mamba2_config`."""
    if unknown := sorted(fields.keys() - FLAT_FIELDS):
        raise ConversionError(f"{folder}/config.json has unknown fields {unknown}; is it a Mamba-2 config?")
    for name in ("d_model", "n_layer"):
        if type(fields.get(name)) is not int or not 0 < fields[name] <= _LARGEST:
            raise ConversionError(
                f"{folder}/config.json: {name} is {fields.get(name)!r:.80}, expected a whole number up to {_LARGEST}"
            )
    ssm = fields.get("ssm_cfg") or {}
    if not isinstance(ssm, dict):
        raise ConversionError(f"{folder}/config.json: ssm_cfg is a {type(ssm).__name__}, expected an object")
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
        is_size = name in _SSM_FIELDS and type(_SSM_FIELDS[name][1]) is int
        if is_size and (type(value) is not int or not 0 < value <= _LARGEST):
            raise ConversionError(
                f"{folder}/config.json: ssm_cfg.{name}={value!r:.80}, expected a whole number up to {_LARGEST}"
            )
    config = {ours: ssm.get(theirs, default) for theirs, (ours, default) in _SSM_FIELDS.items()}
    inner = fields["d_model"] * config["expand"]
    try:
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
    except (StrictDataclassError, ValueError, TypeError, OverflowError) as error:
        raise ConversionError(f"{folder}/config.json: {error}") from error


def flat_config(config: Ma2mbaConfig) -> dict[str, Any]:
    """Return the config in state-spaces' flat form, the inverse of `from_flat_config`."""
    if config.layer_norm_epsilon != 1e-5:
        raise ConversionError(f"layer_norm_epsilon={config.layer_norm_epsilon}: the original layout knows 1e-5 only")
    ssm: dict[str, Any] = {"layer": "Mamba2"}
    for theirs, (ours, default) in _SSM_FIELDS.items():
        value = getattr(config, ours)
        if ours == "time_step_limit":
            value = tuple(value)
        if value != default:
            ssm[theirs] = value
    return {
        "d_model": config.hidden_size,
        "d_intermediate": 0,
        "n_layer": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "ssm_cfg": ssm,
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,  # the rows are counted as they are
        "tie_embeddings": config.tie_word_embeddings,
    }


def take_mamba2(
    ledger: KeyLedger, tensors: dict[str, torch.Tensor], tied: bool, backbone: str, folder: str | Path
) -> None:
    """Enter a Mamba-2 checkpoint into a ledger, its stack under the prefix `backbone`."""
    for key, tensor in tensors.items():
        if key == "lm_head.weight" and tied:
            ledger.leave_out(key, "tied to the embedding")
        elif key == "lm_head.weight":
            ledger.take(key, key, tensor)
        elif key.startswith("backbone."):
            name = key.removeprefix("backbone.").replace("embedding.weight", "embeddings.weight", 1)
            ledger.take(key, f"{backbone}.{name}", tensor)
        else:
            ledger.refuse(f"{folder} holds {key}, which is no part of Mamba-2")


def embedding_name(files: TensorFiles) -> str:
    """Return the name of a Mamba-2 checkpoint's embedding, (V, D)."""
    for name in EMBEDDING_NAMES:
        if name in files.meta and files.meta[name].ndim == 2 and files.meta[name].is_floating_point():
            return name
    raise ConversionError(f"{files.folder} has no backbone.embedding(s).weight: not a Mamba-2 language model")


def check_language_model(files: TensorFiles, config: Ma2mbaConfig) -> None:
    """Compare config and file before a model is built: sizes, width, layers, and the head where it is tied."""
    for field in (
        "hidden_size",
        "num_hidden_layers",
        "num_heads",
        "head_dim",
        "state_size",
        "conv_kernel",
        "n_groups",
    ):
        if getattr(config, field) > _LARGEST:
            raise ConversionError(f"{files.folder}/config.json: {field}={getattr(config, field)} is over {_LARGEST}")
    embedding = files.meta[name := embedding_name(files)]
    if embedding.shape[1] != config.hidden_size:
        raise ConversionError(f"{files.folder}: {name} has width {embedding.shape[1]}, d_model={config.hidden_size}")
    found = {int(number[1]) for key in files if (number := re.match(r"backbone\.layers\.(\d{1,6})\.", key))}
    if missing := config.num_hidden_layers - len(found & set(range(config.num_hidden_layers))):
        raise ConversionError(
            f"{files.folder}: tensors are missing: {missing} of {config.num_hidden_layers} layers have none"
        )
    if config.tie_word_embeddings and "lm_head.weight" in files.meta:
        if not torch.equal(files.read("lm_head.weight"), files.read(name)):
            raise ConversionError(f"{files.folder}: lm_head.weight differs from the embedding although they are tied")
        files.close()


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
    write_report(report, output)
    return report


def write_report(report: dict, output: str | Path) -> None:
    """Write the report of a conversion beside the weights."""
    (Path(output) / "conversion_report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def convert_mamba2(source: str | Path, output: str | Path, dtype: torch.dtype | None = None) -> dict:
    """Convert a Mamba-2 folder; return the report of every key, also written as `conversion_report.json`.

    Args:
        dtype: of the new weights (A_log, D and dt_bias stay fp32); None keeps that of the embedding.

    Raises:
        ConversionError: an unknown field or key, a wrong shape, a missing tensor.
    """
    files = TensorFiles(source)
    embedding = files.meta[embedding_name(files)]
    config = read_mamba2_config(source, embedding.shape[0])
    check_language_model(files, config)
    tensors = read_tensors(source)
    with torch.device("meta"):
        model = Ma2mbaForCausalLM(config)
    ledger = KeyLedger(expected_shapes(model))
    take_mamba2(ledger, tensors, config.tie_word_embeddings, "backbone", source)
    return load_and_save(model, ledger, output, dtype or embedding.dtype)
