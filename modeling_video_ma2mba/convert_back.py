"""Our folders back to the layouts they came from: state-spaces' Mamba-2, and the authors' `llava_mamba`.

    video-ma2mba convert --checkpoint ours --to llava-mamba --output theirs
    video-ma2mba convert --checkpoint ours --to state-spaces --output mamba2

Numbers are copied as they are: ours -> theirs -> ours gives the same bits.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from .checkpoint_files import ConversionError, KeyLedger, TensorFiles, read_json
from .checkpoint_writer import write_safetensors
from .configuration_video_ma2mba import ORIGINAL_MODEL_TYPE, Ma2mbaConfig, VideoMa2mbaConfig
from .convert_mamba2 import check_language_model, expected_shapes, flat_config, write_report
from .convert_video_ma2mba import read_tokenizer
from .modeling_ma2mba import Ma2mbaForCausalLM
from .modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration

LAYOUTS = ("video-ma2mba", "llava-mamba", "state-spaces")
_NAMES = (
    (re.compile(r"(?:model\.language_model|backbone)\.embeddings\.(.+)"), r"backbone.embedding.\1"),
    (re.compile(r"(?:model\.language_model|backbone)\.(.+)"), r"backbone.\1"),
    (re.compile(r"(lm_head\.weight)"), r"\1"),
    (re.compile(r"model\.vision_tower\.(.+)"), r"mm_model.vision_tower.vision_tower.vision_model.\1"),
    (re.compile(r"model\.multi_modal_projector\.linear_1\.(.+)"), r"mm_model.mm_projector.0.\1"),
    (re.compile(r"model\.multi_modal_projector\.linear_2\.(.+)"), r"mm_model.mm_projector.2.\1"),
)


def convert_back(source: str | Path, output: str | Path, layout: str) -> dict:
    """Write a folder of this package in an original layout; return the report of every key, also written there.

    Args:
        source: a video model, or for "state-spaces" also a `Ma2mbaForCausalLM`.
        layout: "llava-mamba": `model.safetensors`, tensor by tensor, with the tokenizer; "state-spaces": the language
            model alone, as `pytorch_model.bin`, which is what mamba-ssm reads. torch.save maps all of it at once.

    Raises:
        ConversionError: no such folder, or something that the layout cannot say; nothing is written.
    """
    source, output = Path(source), Path(output)
    config = _read_config(source)
    files = TensorFiles(source)
    is_video = config.model_type == VideoMa2mbaConfig.model_type
    text_config = config.text_config if is_video else config
    if layout == "llava-mamba" and not is_video:
        raise ConversionError(f"{source} is a language model: use --to state-spaces")
    fields = flat_config(text_config)
    if layout == "llava-mamba":
        fields |= _llava_fields(config, source)
        read_tokenizer(source)

    ledger = KeyLedger(_expected(config, files, with_vision=layout == "llava-mamba"))
    for key, tensor in files.meta.items():
        target = _original_name(key)
        if target is None:
            ledger.refuse(f"{key} is no part of a model of this package")
        elif layout == "state-spaces" and target.startswith("mm_model."):
            ledger.leave_out(key, "not part of the language model")
        else:
            ledger.take(key, target, tensor)
    report = ledger.finish()
    sources = {target: key for key, target in report["taken"].items()}
    if text_config.tie_word_embeddings and "lm_head.weight" not in sources:
        sources["lm_head.weight"] = sources["backbone.embedding.weight"]
        report["new"]["lm_head.weight"] = "the embedding, to which it is tied: the original layout has both"

    output.mkdir(parents=True, exist_ok=True)
    if layout == "llava-mamba":

        def pieces(target: str) -> Iterator[torch.Tensor]:
            yield files.read(sources[target])

        metas = {target: files.meta[key] for target, key in sources.items()}
        write_safetensors(output / "model.safetensors", {n: (t.shape, t.dtype) for n, t in metas.items()}, pieces)
        read_tokenizer(source).save_pretrained(output)
    else:
        read = {key: files.read(key) for key in set(sources.values())}  # the tied head is the same tensor
        torch.save({target: read[key] for target, key in sources.items()}, output / "pytorch_model.bin")
    (output / "config.json").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    write_report(report, output)
    return report


def _read_config(source: Path) -> VideoMa2mbaConfig | Ma2mbaConfig:
    model_type = read_json(source / "config.json").get("model_type")
    for kind in (VideoMa2mbaConfig, Ma2mbaConfig):
        if model_type == kind.model_type:
            try:
                return kind.from_pretrained(source)
            except (StrictDataclassError, ValueError, TypeError, AttributeError, OverflowError) as error:
                raise ConversionError(f"{source}/config.json: {error}") from error
    raise ConversionError(
        f"{source} holds a {model_type!r:.80} model; --to {' and --to '.join(LAYOUTS[1:])} take a folder that this "
        "package wrote"
    )


def _expected(config: VideoMa2mbaConfig | Ma2mbaConfig, files: TensorFiles, with_vision: bool) -> dict:
    """Return name -> shape of what the original layout holds; raise if config and files do not fit."""
    is_video = config.model_type == VideoMa2mbaConfig.model_type
    names = {_original_name(key): key for key in files if _original_name(key) is not None}
    text = {name: key for name, key in names.items() if name.startswith(("backbone.", "lm_head."))}
    check_language_model(files.part(text), config.text_config if is_video else config)
    if is_video:
        matches = (re.match(r"model\.vision_tower\.(?:\w+\.)?layers\.(\d+)\.", key) for key in files)
        layers = {found[1] for found in matches if found}
        if len(layers) != config.vision_config.num_hidden_layers:
            raise ConversionError(
                f"{files.folder}: config.json gives the tower {config.vision_config.num_hidden_layers} layers, the "
                f"file has {len(layers)}"
            )
    try:
        with torch.device("meta"):
            model = (VideoMa2mbaForConditionalGeneration if is_video else Ma2mbaForCausalLM)(config)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"{files.folder}/config.json: {error}") from error
    expected = {_original_name(name): shape for name, shape in expected_shapes(model).items()}
    return {name: shape for name, shape in expected.items() if with_vision or not name.startswith("mm_model.")}


def _original_name(key: str) -> str | None:
    for pattern, name in _NAMES:
        if pattern.fullmatch(key):
            return pattern.sub(name, key)
    return None


def _llava_fields(config: VideoMa2mbaConfig, source: Path) -> dict:
    """Return what `llava_mamba`'s config says besides the language model."""
    vision = config.vision_config
    if vision.model_type not in ("clip_vision_model", "siglip_vision_model") or config.projector_hidden_act != "gelu":
        raise ConversionError(
            f"{source} has a {vision.model_type} tower and a projector with {config.projector_hidden_act}: the "
            "llava_mamba layout knows CLIP or SigLIP, and gelu"
        )
    # The original names its tower. Where that is not known, the tower's own config stands beside the name.
    report = source / "conversion_report.json"
    before = read_json(report).get("config", {}) if report.is_file() else {}
    before = before.get("source", {}) if isinstance(before, dict) else {}
    name = before.get("mm_vision_tower") if isinstance(before, dict) else None
    return {
        "model_type": ORIGINAL_MODEL_TYPE,
        "mm_vision_tower": name if isinstance(name, str) else vision.model_type,
        "vision_config": vision.to_diff_dict() | {"model_type": vision.model_type},
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": vision.hidden_size,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": config.spatial_pool_stride,
        "mm_patch_merge_type": "flat",
    }


__all__ = ["LAYOUTS", "convert_back"]
