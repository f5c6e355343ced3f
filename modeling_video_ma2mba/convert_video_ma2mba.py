"""A vision tower and a Mamba-2 language model in, an untrained Video-Ma²mba out: where training starts.

video-ma2mba convert --mamba mamba2-370m --vision clip-vit-large-patch14-336 --tokenizer gpt-neox-20b --output start
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from .checkpoint_files import ConversionError, KeyLedger, TensorFiles, read_json, read_tensors
from .configuration_video_ma2mba import Ma2mbaConfig, VideoMa2mbaConfig
from .convert_mamba2 import (
    EMBEDDING_NAMES,
    check_language_model,
    embedding_name,
    expected_shapes,
    load_and_save,
    read_mamba2_config,
    take_mamba2,
)
from .folder_fields import check_folder_fields
from .modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration, VideoMa2mbaProjector

VISUAL_TOKENS = ("<image>", "<video>")
_TEXT_SIDE = ("text_model.", "logit_scale", "logit_bias", "text_projection.", "visual_projection.")
_TOWERS = ("clip_vision_model", "siglip_vision_model", "videomamba")
_WHOLE_MODELS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
# Of a VideoMamba's config: what belongs to its head and its folder.
_NOT_THE_TOWERS = ("architectures", "auto_map", "id2label", "label2id", "problem_type", "transformers_version")


def convert_video_ma2mba(
    mamba: str | Path,
    vision: str | Path,
    output: str | Path,
    tokenizer: str | Path | None = None,
    frame_fit: str = "crop",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> dict:
    """Join a vision folder and a Mamba-2 folder with a new projector; save model and processor.

    Args:
        vision: folder of a CLIP, SigLIP or VideoMamba model (of VideoMamba as this package writes them).
        tokenizer: folder of the language model's tokenizer; default: the Mamba-2 folder.
        frame_fit: how pictures become square, saved in the processor: "crop" as CLIP, "pad" or "stretch".
        dtype: of the new weights; None keeps that of the language model's embedding.
        seed: of the new projector.

    Returns:
        The report of every key, also written as `conversion_report.json`.

    Raises:
        ConversionError: an unknown field or key, a wrong shape, a missing tensor or tokenizer.
    """
    files = TensorFiles(mamba)
    embedding = files.meta[embedding_name(files)]
    text_tokenizer = read_tokenizer(tokenizer or mamba)
    text_config = read_mamba2_config(mamba, embedding.shape[0])
    check_language_model(files, text_config)
    token_ids = fit_vocabulary(text_config, text_tokenizer)
    rows = text_config.vocab_size
    language_tensors = read_tensors(mamba)

    vision_config, preprocessing = read_vision_config(Path(vision))
    config = VideoMa2mbaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=token_ids[0],
        video_token_id=token_ids[1],
        **{name: preprocessing[name] for name in ("image_mean", "image_std") if name in preprocessing},
    )
    with torch.device("meta"):
        model = VideoMa2mbaForConditionalGeneration(config)
    ledger = KeyLedger(expected_shapes(model))
    if rows > embedding.shape[0]:
        _add_rows(language_tensors, rows)
    take_mamba2(ledger, language_tensors, config.tie_word_embeddings, "model.language_model", mamba)
    _take_vision(ledger, read_tensors(vision), vision)
    _add_projector(ledger, config, embedding.dtype, seed)
    report = load_and_save(model, ledger, output, dtype or embedding.dtype)
    make_processor(config, text_tokenizer, frame_fit).save_pretrained(output)
    return report


def fit_vocabulary(text_config: Ma2mbaConfig, tokenizer) -> list[int]:
    """Make a config with the checkpoint's rows fit a tokenizer; return the ids of `VISUAL_TOKENS`."""
    token_ids = tokenizer.convert_tokens_to_ids(list(VISUAL_TOKENS))
    # Checkpoints have spare rows (50,288 for 50,277 tokens); more are added only where these do not suffice.
    text_config.vocab_size = max(text_config.vocab_size, -(-(max(token_ids) + 1) // 16) * 16)
    text_config.eos_token_id = text_config.bos_token_id = text_config.pad_token_id = tokenizer.eos_token_id
    return token_ids


def read_tokenizer(folder: str | Path, config: PreTrainedConfig | None = None):
    """Return a folder's tokenizer with an end token, a padding token and `VISUAL_TOKENS`.

    Args:
        config: in place of the folder's `config.json`, where that is not one of transformers.
    """
    if Path(folder).is_dir():
        check_folder_fields(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:  # values of the wrong kind
        raise ConversionError(f"the tokenizer in {folder} does not load: {error}") from error
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{folder} has no tokenizer: give one with --tokenizer (Mamba-2 uses GPT-NeoX's)"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConversionError(f"the tokenizer in {folder} has no end token: set its eos_token")
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISUAL_TOKENS)})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_vision_config(folder: Path) -> tuple[dict, dict]:
    """Return the fields of `vision_config`, and of the folder's preprocessing if it has any."""
    fields = read_json(folder / "config.json")
    model_type = str(fields.get("model_type"))
    if model_type in _WHOLE_MODELS:
        fields, model_type = fields.get("vision_config") or {}, _WHOLE_MODELS[model_type]
    if model_type not in _TOWERS:
        raise ConversionError(f"{folder} holds a {model_type!r} model; the tower must be CLIP, SigLIP or VideoMamba")
    if model_type == "videomamba":
        fields = {name: value for name, value in fields.items() if name not in _NOT_THE_TOWERS}
    if not isinstance(fields, dict):
        raise ConversionError(f"{folder}/config.json: vision_config is a {type(fields).__name__}, expected an object")
    for name, value in fields.items():
        largest = 1000 if name == "num_hidden_layers" else 1 << 16
        if isinstance(value, int) and not -largest <= value <= largest:
            raise ConversionError(f"{folder}/config.json: {name}={value!r:.80} is over {largest}")
    path = folder / "preprocessor_config.json"
    return {**fields, "model_type": model_type}, read_json(path) if path.is_file() else {}


def _take_vision(ledger: KeyLedger, tensors: dict[str, torch.Tensor], folder: str | Path) -> None:
    for key, tensor in tensors.items():
        name = key.removeprefix("vision_model.").removeprefix("videomamba.")
        if key.startswith(_TEXT_SIDE):
            ledger.leave_out(key, "not part of the vision tower")
        elif name.endswith("position_ids"):
            ledger.leave_out(key, "a counter, made anew by the model")
        elif key in ("head.weight", "head.bias"):
            ledger.leave_out(key, "VideoMamba's classifier")
        elif f"model.vision_tower.{name}" in ledger.expected:
            ledger.take(key, f"model.vision_tower.{name}", tensor)
        else:
            ledger.refuse(f"{folder} holds {key}, which is no part of this tower")


def _add_rows(tensors: dict[str, torch.Tensor], rows: int) -> None:
    """Extend embedding and head to `rows` with their mean row: placeholders are never read or generated as words."""
    for name in (*EMBEDDING_NAMES, "lm_head.weight"):
        if name in tensors:
            old = tensors[name]
            mean = old.float().mean(0, keepdim=True).to(old.dtype)
            tensors[name] = torch.cat([old, mean.expand(rows - old.shape[0], -1)])


def _add_projector(ledger: KeyLedger, config: VideoMa2mbaConfig, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in VideoMa2mbaProjector(config).named_parameters():
        tensor = torch.zeros(parameter.shape)
        if name.endswith("weight"):
            bound = parameter.shape[1] ** -0.5
            tensor.uniform_(-bound, bound, generator=generator)
        ledger.add_new(
            f"model.multi_modal_projector.{name}", tensor.to(dtype), "new projector, to be trained in stage 1"
        )


def make_processor(config: VideoMa2mbaConfig, tokenizer, frame_fit: str, system: str | None = None):
    """Return the processor of a converted model; `system` takes the place of the paper's system message."""
    # Only here does this folder need its sibling; files that go to the Hub do not.
    from .processing.chat_template import CHAT_TEMPLATE
    from .processing.image_processing_video_ma2mba import VideoMa2mbaImageProcessor
    from .processing.processing_video_ma2mba import VideoMa2mbaProcessor

    image_processor = VideoMa2mbaImageProcessor(
        size=config.vision_config.image_size, frame_fit=frame_fit, image_mean=config.image_mean
    )
    template = None if system is None else CHAT_TEMPLATE.replace("You are a helpful assistant.", system)
    return VideoMa2mbaProcessor(
        image_processor, tokenizer, tokens_per_frame=config.tokens_per_frame, chat_template=template
    )
