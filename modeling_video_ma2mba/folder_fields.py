"""Checks the JSON files of a model folder before transformers reads them: it acts on some fields unseen.

What is checked is the kind of each such field, wherever it stands, and sizes that decide how much is built. What the
values mean is checked by the configs and the processor.
"""

from pathlib import Path

from tokenizers import Tokenizer

from .checkpoint_files import ConversionError, check_inside, read_json

_FILES = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json",
)  # fmt: skip
_MAX_DEPTH = 32
_MAX_TOKENIZER_BYTES = 64 << 20
# Their names are classes of pictures, not fields.
_FREE = {"label2id", "id2label"}
_TEXTS = {
    "model_type", "processor_class", "tokenizer_class", "image_processor_type", "video_processor_type",
    "feature_extractor_type", "_name_or_path", "dtype", "torch_dtype", "transformers_version",
}  # fmt: skip
_OBJECTS = {"vision_config", "text_config", "quantization_config", "custom_pipelines", "added_tokens_decoder"}
_TOKENS = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}
# The largest of each kind. The published models have 64 layers, 336 pixels and 50,288 words.
_SIZES = {
    "num_hidden_layers": 1000, "image_size": 4096, "patch_size": 4096, "num_frames": 4096, "num_labels": 1 << 20,
    "vocab_size": 1 << 24, "max_position_embeddings": 1 << 20,
}  # fmt: skip
_LARGEST = 1 << 16
_WIDTHS = {
    "hidden_size", "intermediate_size", "num_attention_heads", "num_heads", "head_dim", "state_size", "conv_kernel",
    "n_groups", "expand", "tubelet_size", "projection_dim", "projection_size", "type_vocab_size", "chunk_size",
}  # fmt: skip


def check_folder_fields(folder: str | Path) -> None:
    """Check the JSON files of a local model folder.

    Raises:
        ConversionError: a file that is no JSON object or leaves the folder, or a field of the wrong kind or size; the
            message names file and field.
    """
    for name in _FILES:
        path = Path(folder) / name
        if path.is_file() or path.is_symlink():
            _check_object(read_json(path), path, 0)
    if (path := Path(folder) / "tokenizer.json").exists() or path.is_symlink():
        _check_tokenizer(path)


def _check_tokenizer(path: Path) -> None:
    if check_inside(path).stat().st_size > _MAX_TOKENIZER_BYTES:
        raise ConversionError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_TOKENIZER_BYTES} are read")
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise ConversionError(f"{path} is no tokenizer: {error}") from error


def _check_object(fields: dict, path: Path, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ConversionError(f"{path} is nested more than {_MAX_DEPTH} deep")
    for name, value in fields.items():
        if value is not None and (allowed := _expected(name, value)):
            raise ConversionError(f"{path}: {name}={value!r:.80}, expected {allowed}")
        if name not in _FREE:
            _check_value(value, path, depth + 1)


def _check_value(value: object, path: Path, depth: int) -> None:
    if isinstance(value, dict):
        _check_object(value, path, depth)
    elif isinstance(value, list):
        if depth > _MAX_DEPTH:
            raise ConversionError(f"{path} is nested more than {_MAX_DEPTH} deep")
        for item in value:
            _check_value(item, path, depth + 1)


def _expected(name: str, value: object) -> str | None:
    """Return what is allowed for a field if its value is not."""
    if name in _TEXTS and not isinstance(value, str):
        return "text"
    if name in _OBJECTS and not isinstance(value, dict):
        return "an object"
    if name in _TOKENS and not _is_token(value):
        return "text, or a token with its content"
    if name == "architectures" and not _is_list(value, str):
        return "a list of texts"
    if name in ("additional_special_tokens", "extra_special_tokens") and not _is_tokens(value):
        return "a list of tokens"
    if name == "auto_map" and not (isinstance(value, dict) and all(map(_is_code, value.values()))):
        return "an object of names of classes"
    largest = _LARGEST if name in _WIDTHS else _SIZES.get(name)
    if largest is not None and not (type(value) in (int, list) and _numbers_up_to(value, largest)):
        return f"a whole number up to {largest}"
    return None


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _is_token(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _is_tokens(value: object) -> bool:
    values = value.values() if isinstance(value, dict) else value
    return isinstance(value, (list, dict)) and all(map(_is_token, values))


def _is_code(value: object) -> bool:
    """A tokenizer's entry has two names, of which one may be missing."""
    names = value if isinstance(value, list) else [value or 0]
    return all(isinstance(name, str | None) for name in names)


def _numbers_up_to(value: int | list, largest: int) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(type(number) is int and -largest <= number <= largest for number in numbers)
