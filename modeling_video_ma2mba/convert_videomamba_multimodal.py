"""The published multi-modal VideoMamba (`videomamba_m16_{5M,17M,25M}_f8_res224.pth`) in, a folder out.

    >>> from modeling_video_ma2mba.convert_videomamba_multimodal import convert_videomamba_multimodal

    convert_videomamba_multimodal("videomamba_m16_25M_f8_res224.pth", "videomamba-25m", tokenizer="bert-base-uncased")

The folder is what `eval/retrieval.py --model` and `train/videomamba_multimodal.py --init-from` take. For the vision
encoder alone there is `convert_videomamba`.
"""

import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from .checkpoint_files import ConversionError, KeyLedger
from .configuration_videomamba_multimodal import VideoMambaMultiModalConfig
from .convert_mamba2 import load_and_save
from .convert_videomamba import (
    image_processor_for,
    read_checkpoint,
    read_encoder_config,
    set_sizes,
    split_multi_modal,
    take_encoder,
)
from .modeling_videomamba_multimodal import VideoMambaMultiModalModel

_VISION, _TEXT = "vision_encoder.", "text_encoder."
_EMBEDDINGS = f"{_TEXT}bert.embeddings."
_HEAD = f"{_TEXT}cls.predictions."
# Copies that BERT's head of masked words shares with other tensors.
_TIED = {
    f"{_HEAD}decoder.weight": f"{_EMBEDDINGS}word_embeddings.weight",
    f"{_HEAD}decoder.bias": f"{_HEAD}bias",
}
# The heads of BERT's attention are in no tensor; all published sizes have them this wide.
_HEAD_WIDTH = 64
_LAYER = re.compile(rf"{re.escape(_TEXT)}bert\.encoder\.layer\.(\d{{1,4}})\.(crossattention\.)?")


def convert_videomamba_multimodal(
    source: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path,
    num_frames: int | None = None,
    image_size: int | None = None,
    max_text_tokens: int = 32,
    dtype: torch.dtype | None = None,
) -> dict:
    """Convert a checkpoint; save model and processor.

    Args:
        source: a published `.pth`.
        tokenizer: folder of the tokenizer of its BERT, which the file does not hold (bert-base-uncased).
        num_frames, image_size: as in `convert_videomamba`.
        max_text_tokens: for the processor; published: 32 in training.
        dtype: of the new weights (A_log, D and step biases stay fp32); None keeps that of the checkpoint.

    Returns:
        The report of every key, also written as `conversion_report.json`.

    Raises:
        ConversionError: an unknown key, a wrong shape, a missing tensor, sizes or a tokenizer that do not fit.
    """
    # Only here does this folder need its sibling; files that go to the Hub do not.
    from .processing.processing_videomamba_multimodal import VideoMambaMultiModalProcessor

    if Path(source).is_dir():
        raise ConversionError(f"{source} is a folder: give a published .pth file")
    tensors = read_checkpoint(source)
    if not all(any(key.startswith(part) for key in tensors) for part in (_VISION, _TEXT)):
        raise ConversionError(f"{source} has no {_VISION}* and {_TEXT}*: use convert_videomamba for an encoder alone")
    encoder, outside = split_multi_modal(tensors, source)
    vision = read_encoder_config(encoder, source)
    set_sizes(vision, num_frames, None, image_size, source)
    text, fusion_layer = _read_text_config(tensors, source)
    try:
        config = VideoMambaMultiModalConfig(
            vision_config=vision,
            text_config=text,
            fusion_layer=fusion_layer,
            projection_size=len(_tensor(tensors, "vision_proj.weight", 2, source)),
        )
    except (ValueError, StrictDataclassError) as error:
        raise ConversionError(f"{source}: {error}") from error
    words = load_bert_tokenizer(tokenizer)
    if len(words) != text.vocab_size:
        raise ConversionError(
            f"{tokenizer} knows {len(words)} words, the checkpoint {text.vocab_size}: give the tokenizer of its BERT"
        )
    if not 3 <= max_text_tokens <= text.max_position_embeddings:
        raise ConversionError(f"max_text_tokens={max_text_tokens} must be 3 to {text.max_position_embeddings}")
    with torch.device("meta"):
        model = VideoMambaMultiModalModel(config)
    ledger = KeyLedger({name: one.shape for name, one in model.state_dict().items() if name not in _TIED})
    pooling = {name: tensor for name, tensor in encoder.items() if name.startswith("pool_norm.")}
    for name, tensor in pooling.items():
        ledger.take(_VISION + name, _VISION + name, tensor)
    rest = {name: tensor for name, tensor in encoder.items() if name not in pooling}
    take_encoder(ledger, rest, vision, target=_VISION, source=_VISION)
    for key in outside:
        _take_outside(ledger, tensors, key)
    report = load_and_save(model, ledger, output, dtype or encoder["patch_embed.proj.weight"].dtype)
    images = image_processor_for(vision, source, None, is_multi_modal=True)
    VideoMambaMultiModalProcessor(images, words, max_text_tokens).save_pretrained(output)
    return report


def load_bert_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder that is on this machine.

    Raises:
        ValueError: there is none, or it lacks a token that BERT needs.
    """
    if not Path(folder).is_dir():
        raise ConversionError(f"{folder} is no folder: give that of a BERT with its tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(f"{folder} has no tokenizer that can be read: give the folder of a BERT") from error
    missing = [name for name in ("cls", "sep", "mask", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise ConversionError(f"{folder}: its tokenizer has no {missing[0]} token; give a BERT's folder")
    return tokenizer


def _take_outside(ledger: KeyLedger, tensors: dict[str, torch.Tensor], key: str) -> None:
    """Enter what stands beside the vision encoder; names are the published ones."""
    tensor = tensors[key]
    if key.startswith("clip_teacher."):
        ledger.leave_out(key, "teacher of the pre-training, not used after training")
    elif key == f"{_EMBEDDINGS}position_ids" and torch.equal(tensor.flatten(), torch.arange(tensor.numel())):
        ledger.leave_out(key, "0, 1, 2, ...: made anew")
    elif key in _TIED and _TIED[key] in tensors and torch.equal(tensor, tensors[_TIED[key]]):
        ledger.leave_out(key, f"tied to {_TIED[key]}")
    elif key in _TIED:
        ledger.refuse(f"{key} differs from {_TIED[key]}, which it is tied to")
    else:
        ledger.take(key, key, tensor)


def _read_text_config(tensors: dict[str, torch.Tensor], source: str | Path) -> tuple[BertConfig, int]:
    """Return the config of BERT that the shapes tell, and the first layer with cross-attention."""
    found = [match for key in tensors if (match := _LAYER.match(key))]
    layers = {int(match[1]) for match in found}
    fused = {int(match[1]) for match in found if match[2]}
    if not layers or layers != set(range(len(layers))):
        raise ConversionError(
            f"{source} has BERT layers {sorted(layers)[:3]}...: a checkpoint has them from 0 on, all"
        )
    if not fused or fused != set(range(min(fused), len(layers))):
        raise ConversionError(f"{source} looks at clips in BERT layers {sorted(fused)}: expected the last ones, all")
    vocabulary, width = _tensor(tensors, f"{_EMBEDDINGS}word_embeddings.weight", 2, source).shape
    if not width or width % _HEAD_WIDTH:
        raise ConversionError(f"{source}: a text width of {width} is no multiple of BERT's heads of {_HEAD_WIDTH}")
    first = f"{_TEXT}bert.encoder.layer.0.intermediate.dense.weight"
    text = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // _HEAD_WIDTH,
        intermediate_size=len(_tensor(tensors, first, 2, source)),
        max_position_embeddings=len(_tensor(tensors, f"{_EMBEDDINGS}position_embeddings.weight", 2, source)),
        type_vocab_size=len(_tensor(tensors, f"{_EMBEDDINGS}token_type_embeddings.weight", 2, source)),
    )
    return text, min(fused)


def _tensor(tensors: dict[str, torch.Tensor], name: str, ndim: int, source: str | Path) -> torch.Tensor:
    if name not in tensors or tensors[name].ndim != ndim:
        raise ConversionError(f"{source} has no {name} with {ndim} dimensions: not a multi-modal VideoMamba")
    return tensors[name]
