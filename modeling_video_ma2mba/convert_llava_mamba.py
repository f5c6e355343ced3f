"""The authors' checkpoints (`llava_mamba`) in, a Video-Ma²mba folder out, tensor by tensor.

    video-ma2mba convert --checkpoint video-ma2mba-1.3b --output ours

Such a folder holds a Mamba-2 under its original names, a CLIP or SigLIP tower somewhere under `vision_tower.`, the
projector under `mm_projector.`, and one flat config. Names are matched by pattern, sizes are read from the tensors;
what the config says and this model cannot do is refused.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .checkpoint_files import ConversionError, KeyLedger, TensorFiles, read_json
from .checkpoint_writer import write_safetensors
from .configuration_video_ma2mba import ORIGINAL_MODEL_TYPE, VideoMa2mbaConfig
from .convert_mamba2 import (
    EMBEDDING_NAMES,
    FLAT_FIELDS,
    check_language_model,
    embedding_name,
    expected_shapes,
    from_flat_config,
    take_mamba2,
    write_report,
)
from .convert_video_ma2mba import fit_vocabulary, make_processor, read_tokenizer, read_vision_config
from .modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration

# What their code does and this model does; a missing field means this value.
_FIXED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_spatial_pool_mode": "bilinear",
    "mm_patch_merge_type": "flat",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "mm_resampler_type": None,
}
_NUMBERS = {"mm_vision_select_layer": -2, "mm_spatial_pool_stride": 2}
_READ = {*FLAT_FIELDS, *_FIXED, *_NUMBERS, "model_type", "mm_vision_tower", "mm_hidden_size", "vision_config"}
# How it was trained. Any other `mm_...` might change the numbers and is refused.
_TRAINING = re.compile(r"mm_(tunable_parts|newline_position|spatial_pool_out_channels|\w+_lr)")
# Published towers, which the config names, by width: heads and layers, which no tensor tells.
_PUBLIC_TOWERS = {
    "clip_vision_model": {768: (12, 12), 1024: (16, 24)},
    "siglip_vision_model": {768: (12, 12), 1024: (16, 24), 1152: (16, 27)},
}
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
_PUBLIC_NAME = re.compile(r"(?:.*/)?(clip-vit|siglip)-(?:base|large|so400m)-patch\d+(?:-\d+)?/?")
_TEXT = re.compile(r"(?:model\.)?(backbone\..+|lm_head\.weight)")
_TOWER = re.compile(r"(?:.+\.)?vision_tower\.(?:vision_model\.)?(.+)")
_PROJECTOR = re.compile(r"(?:.+\.)?mm_projector\.([02])\.(weight|bias)")
_LEFT_OUT = {
    "position_ids": "a counter, made anew by the model",
    "image_newline": "for pictures in tiles; this model has one tile",
}
_BLOCK = 1 << 20  # numbers that are converted to another dtype at once
_SYSTEM = "You are a helpful AI assistant."  # of the authors' code; the paper's has no "AI"


def convert_llava_mamba(
    source: str | Path,
    output: str | Path,
    vision: str | Path | None = None,
    tokenizer: str | Path | None = None,
    frame_fit: str = "crop",
    dtype: torch.dtype | None = None,
) -> dict:
    """Convert a `llava_mamba` folder; save model and processor in the memory of one shard and one tensor.

    Args:
        vision: folder with the tower's `config.json`, for towers that are not OpenAI's CLIP or Google's SigLIP.
        tokenizer: folder of the tokenizer; default: the checkpoint's own.
        frame_fit: how pictures become square, saved in the processor: "crop" as CLIP, "pad" or "stretch".
        dtype: of the new weights (A_log, D and dt_bias are at least fp32); None keeps that of each tensor.

    Returns:
        The report of every tensor and config field, also written as `conversion_report.json`.

    Raises:
        ConversionError: an unknown field or key, a wrong shape, a missing tensor or tokenizer; nothing is written.
    """
    source = Path(source)
    fields = read_json(source / "config.json")
    if fields.get("model_type") != ORIGINAL_MODEL_TYPE:
        raise ConversionError(
            f"{source} holds a {fields.get('model_type')!r:.80} model, expected {ORIGINAL_MODEL_TYPE!r}; a Mamba-2 "
            "folder is converted with --mamba"
        )
    files = TensorFiles(source)
    names, left_out = _sort_names(files)
    text = files.part(names["text"])
    embedding = text.meta[embedding_name(text)]
    text_config = from_flat_config(source, {k: v for k, v in fields.items() if k in FLAT_FIELDS}, len(embedding))
    if type(fields.get("vocab_size")) is not int or not 0 < fields["vocab_size"] <= len(embedding):
        raise ConversionError(
            f"{source}: vocab_size is {fields.get('vocab_size')!r:.80}, the embedding has {len(embedding)} rows"
        )
    check_language_model(text, text_config)
    settings, assumed = _settings(source, fields)
    tower = files.part(names["tower"])
    vision_config, layers_run = _tower_config(tower, fields, settings["mm_vision_select_layer"], vision)
    text_tokenizer = read_tokenizer(tokenizer or source, PreTrainedConfig() if tokenizer is None else None)
    token_ids = fit_vocabulary(text_config, text_tokenizer)
    is_siglip = vision_config["model_type"] == "siglip_vision_model"
    try:
        config = VideoMa2mbaConfig(
            vision_config=vision_config,
            text_config=text_config,
            image_token_id=token_ids[0],
            video_token_id=token_ids[1],
            vision_feature_layer=layers_run - vision_config["num_hidden_layers"] - 1,
            spatial_pool_stride=settings["mm_spatial_pool_stride"],
            **({"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if is_siglip else {}),
        )
        with torch.device("meta"):
            model = VideoMa2mbaForConditionalGeneration(config)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"{source}/config.json: {error}") from error

    rows = text_config.vocab_size
    ledger = KeyLedger(expected_shapes(model))
    language_model = {
        name: tensor.new_empty(rows, tensor.shape[1]) if _is_vocabulary(name, tensor, embedding) else tensor
        for name, tensor in text.meta.items()
    }
    take_mamba2(ledger, language_model, config.tie_word_embeddings, "model.language_model", source)
    for name, tensor in tower.meta.items():
        ledger.take(name, f"model.vision_tower.{name}", tensor)
    for name, key in names["projector"].items():
        ledger.take(name, f"model.multi_modal_projector.{name}", files.meta[key])
    report = ledger.finish()
    keys = {**names["text"], **names["tower"], **names["projector"]}
    report["taken"] = {keys[name]: target for name, target in report["taken"].items()}
    report["left_out"] = {keys[name]: reason for name, reason in report["left_out"].items()} | left_out
    report["config"] = {"source": fields, "assumed": assumed, "not_used": sorted(fields.keys() - _READ)}
    if rows > len(embedding):
        report["new"][f"vocabulary rows {len(embedding)}..{rows - 1}"] = "the mean row, for tokens that were added"

    write_model(model, report, files, Path(output), dtype)
    make_processor(config, text_tokenizer, frame_fit, system=_SYSTEM).save_pretrained(output)
    return report


def write_model(
    model: VideoMa2mbaForConditionalGeneration,
    report: dict,
    files: TensorFiles,
    output: Path,
    dtype: torch.dtype | None,
) -> None:
    """Save a model made on the meta device with the tensors of `files`, one at a time, and the report beside it."""
    kept = {name for name, tensor in model.half().state_dict().items() if tensor.dtype == torch.float32}
    sources = {target: key for key, target in report["taken"].items()}
    main = files.meta[sources["model.language_model.embeddings.weight"]].dtype
    model.to(dtype or main)
    # Everything but the weights: config, generation config and code.
    model.save_pretrained(output, state_dict={})
    tensors = {}
    for key in files:
        if key in report["taken"]:
            target = report["taken"][key]
            wanted = dtype or files.meta[key].dtype
            wanted = torch.promote_types(wanted, torch.float32) if target in kept else wanted
            tensors[target] = model.state_dict()[target].shape, wanted

    # One for all: fresh blocks for every part would leave the heap in pieces, several times as large.
    buffer = torch.empty(_BLOCK, dtype=torch.float64)

    def pieces(target: str) -> Iterator[torch.Tensor]:
        tensor = files.read(sources[target])
        shape, wanted = tensors[target]
        if tensor.dtype == wanted:
            yield tensor
        else:
            for part in tensor.reshape(-1).split(_BLOCK):
                yield buffer.view(wanted)[: len(part)].copy_(part)
        if added := shape[0] - len(tensor):
            yield _mean_row(tensor).to(wanted).expand(added, -1)

    write_safetensors(output / "model.safetensors", tensors, pieces)
    write_report(report, output)


def _sort_names(files: TensorFiles) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return for text, tower and projector: name there -> key in the files; and the keys left out with reasons."""
    names: dict[str, dict[str, str]] = {"text": {}, "tower": {}, "projector": {}}
    left_out, problems = {}, []
    for key in files:
        reason = next((text for end, text in _LEFT_OUT.items() if key.rsplit(".", 1)[-1] == end), None)
        if reason is not None:
            left_out[key] = reason
            continue
        if found := _PROJECTOR.fullmatch(key):
            part, name = "projector", f"linear_{1 if found[1] == '0' else 2}.{found[2]}"
        elif found := _TOWER.fullmatch(key):
            part, name = "tower", found[1]
        elif found := _TEXT.fullmatch(key):
            part, name = "text", found[1]
        else:
            problems.append(f"{key} is no part of a {ORIGINAL_MODEL_TYPE} checkpoint")
            continue
        if name in names[part]:
            problems.append(f"{key} and {names[part][name]} both are {name} of the {part}")
        names[part][name] = key
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ConversionError(f"{files.folder}: {'; '.join(problems[:8])}{more}")
    return names, left_out


def _settings(source: Path, fields: dict[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the settings that are numbers, and those the config does not give with what stands for them."""
    for name, value in _FIXED.items():
        if fields.get(name, value) != value:
            raise ConversionError(f"{source}/config.json: {name}={fields[name]!r:.80} is not supported, {value!r} is")
    for name in fields:
        if name.startswith("mm_") and name not in _READ and not _TRAINING.fullmatch(name):
            raise ConversionError(f"{source}/config.json: unknown {name}={fields[name]!r:.80}")
    for name in _NUMBERS:
        if type(fields.get(name, 0)) is not int or abs(fields.get(name, 0)) > 1000:
            raise ConversionError(f"{source}/config.json: {name} is {fields[name]!r:.80}, expected a whole number")
    assumed = {name: value for name, value in {**_FIXED, **_NUMBERS}.items() if name not in fields}
    return {name: fields.get(name, value) for name, value in _NUMBERS.items()}, assumed


def _tower_config(
    tower: TensorFiles, fields: dict[str, Any], select_layer: int, vision: str | Path | None
) -> tuple[dict[str, Any], int]:
    """Return `vision_config` with the sizes of the tensors, and the number of layers that run.

    A published SigLIP may lack its last layers and its head, which the authors' code never runs; `select_layer`
    counts the layers of the whole one.
    """
    source = tower.folder
    is_clip = "embeddings.class_embedding" in tower.meta
    kind = "clip_vision_model" if is_clip else "siglip_vision_model"
    sizes = {}
    for name, ndim in (
        ("embeddings.patch_embedding.weight", 4),
        ("embeddings.position_embedding.weight", 2),
        ("encoder.layers.0.mlp.fc1.weight", 2),
    ):
        if name not in tower.meta or tower.meta[name].ndim != ndim:
            raise ConversionError(f"{source} has no {name} under `vision_tower.`: neither a CLIP nor a SigLIP tower")
        sizes[name.split(".")[-2]] = tower.meta[name].shape
    width, _, patch, _ = sizes["patch_embedding"]
    side = math.isqrt(sizes["position_embedding"][0])  # CLIP has one more position, of the class token
    layers = {int(found[1]) for name in tower if (found := re.match(r"encoder\.layers\.(\d{1,4})\.", name))}
    if layers != set(range(len(layers))):
        raise ConversionError(f"{source}: the tower has layers {sorted(layers)[:3]}...: expected all from 0 on")

    heads, whole, more = _tower_facts(source, fields, kind, width, vision)
    layers_run = select_layer if select_layer >= 0 else whole + 1 + select_layer
    if not 0 <= layers_run <= len(layers):
        raise ConversionError(
            f"{source}: mm_vision_select_layer={select_layer} of {whole} layers; the tower here has {len(layers)}"
        )
    if fields.get("mm_hidden_size", width) != width or type(heads) is not int or heads < 1 or width % heads:
        raise ConversionError(
            f"{source}: the tower is {width} wide, mm_hidden_size={fields.get('mm_hidden_size')!r:.80}, {heads=!r:.80}"
        )
    return {
        **more,
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": sizes["fc1"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": side * patch,
        **({} if is_clip else {"vision_use_head": any(name.startswith("head.") for name in tower)}),
    }, layers_run


def _tower_facts(
    source: Path, fields: dict[str, Any], kind: str, width: int, vision: str | Path | None
) -> tuple[Any, int, dict[str, Any]]:
    """Return what no tensor tells: heads, layers of the published tower, and fields that are not the default."""
    given = read_vision_config(Path(vision))[0] if vision is not None else fields.get("vision_config")
    if given is not None:
        if not isinstance(given, dict) or given.get("model_type") != kind:
            raise ConversionError(f"{vision or source}: the vision config is none of a {kind}, as the tensors are")
        layers = given.get("num_hidden_layers")
        if type(layers) is not int or not 0 < layers <= 1000:
            raise ConversionError(f"{vision or source}: num_hidden_layers={layers!r:.80} in the vision config")
        more = {name: given[name] for name in ("hidden_act", "layer_norm_eps") if name in given}
        if more.get("hidden_act", _ACTIVATIONS[0]) not in _ACTIVATIONS:
            raise ConversionError(
                f"{vision or source}: hidden_act={more['hidden_act']!r:.80} of the tower, known: {_ACTIVATIONS}"
            )
        return given.get("num_attention_heads"), layers, more
    name = fields.get("mm_vision_tower")
    found = _PUBLIC_NAME.fullmatch(name) if isinstance(name, str) and len(name) < 1000 else None
    if found is None or not kind.startswith(found[1][:4]) or width not in _PUBLIC_TOWERS[kind]:
        raise ConversionError(
            f"{source}: nothing is known of the tower {name!r:.80} of width {width}: give the folder with its "
            "config.json as --vision"
        )
    return *_PUBLIC_TOWERS[kind][width], {}


def _is_vocabulary(name: str, tensor: torch.Tensor, embedding: torch.Tensor) -> bool:
    """Return whether a tensor has a row for each token, so that tokens that are added add rows."""
    return tensor.shape == embedding.shape and name in ("lm_head.weight", *EMBEDDING_NAMES)


def _mean_row(tensor: torch.Tensor) -> torch.Tensor:
    """Return the mean row of (V, D) as (1, D), without an fp32 copy of the whole."""
    total = sum(rows.float().sum(0, keepdim=True) for rows in tensor.split(1024))
    return total / len(tensor)
