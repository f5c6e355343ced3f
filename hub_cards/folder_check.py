"""What of a model folder may be uploaded: every file is one that belongs there, and together they load.

Files are judged by name and kind, and read as untrusted: nothing is unpickled, no code of the folder is run, headers
and sizes come before contents. Not here: the upload itself (push.py).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from transformers import AutoProcessor, AutoTokenizer
from transformers.utils import logging

import modeling_video_ma2mba
from modeling_video_ma2mba.checkpoint_files import TensorFiles, check_inside, read_json
from modeling_video_ma2mba.folder_fields import check_folder_fields
from modeling_video_ma2mba.hub_cards.card import PLACEHOLDER
from modeling_video_ma2mba.hub_folder import code_names
from modeling_video_ma2mba.train.data_report import printable

CARD = "README.md"
# Apart from LICENSE, which is that of the weights where the folder has one.
CODE_LICENCE = "LICENSE-CODE"
_MAX_CARD_BYTES = 1 << 20
_MAX_FILES = 1000
_KINDS = {
    ".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".model", ".md", ".bib", ".yaml", ".png", ".jpg", ".sh",
}  # fmt: skip
_NAMES = {"LICENSE", "NOTICE", CODE_LICENCE}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
# What the Trainer leaves beside the model it saves.
_TRAINERS = re.compile(r"checkpoint-\d+|training_args\.bin|trainer_state\.json|runs|logs/events\..*")
_PART_OF_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
# transformers writes a card with the first; the others are what generators of cards leave open.
_OPEN = (PLACEHOLDER, "[More Information Needed]", "{{", "<!-- Provide")


def folder_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files of a model folder that may be uploaded, and what of it stays here (the Trainer's own), as paths
    inside it. Code is in neither: it is that of the package which uploads.

    Raises:
        ValueError: a pickle, a link out of the folder, or a file that no model folder has.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give a model folder, as save_pretrained writes it")
    files, left, problems = [], [], []
    for path, name in _walk(folder, folder):
        if _TRAINERS.fullmatch(name):
            left.append(name)
        elif reason := _problem(path, name):
            problems.append(f"{printable(name)} ({reason})")
        elif not _is_own_code(name):
            files.append(name)
        if len(files) > _MAX_FILES:
            raise ValueError(f"{folder} has more than {_MAX_FILES} files: give the folder of the model alone")
    if problems:
        shown = ", ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{folder} holds what is not uploaded: {shown}. Move it elsewhere and try again")
    return sorted(files), sorted(left)


def _walk(folder: Path, top: Path) -> Iterator[tuple[Path, str]]:
    """Yield (path, path inside the folder) of every file and of every folder that is not entered."""
    for path in sorted(folder.iterdir()):
        name = path.relative_to(top).as_posix()
        if path.is_dir() and not path.is_symlink() and not _TRAINERS.fullmatch(name) and path.name != "__pycache__":
            yield from _walk(path, top)
        elif path.name != "__pycache__":
            yield path, name


def _problem(path: Path, name: str) -> str | None:
    if not all(_PART_OF_PATH.fullmatch(part) for part in name.split("/")):
        return "a name that is hidden or has characters other than letters, digits and ._+-"
    if path.is_symlink():
        try:
            check_inside(path)
        except ValueError:
            return "a link out of the folder"
    if not path.is_file():
        return "no plain file"
    if path.suffix in _PICKLES:
        return "a pickle, which runs code when it is loaded; save as safetensors"
    if path.suffix == ".py":
        return None if _is_own_code(name) else "code that is not this package's"
    if path.suffix not in _KINDS and name not in _NAMES:
        return "a kind of file that no model folder has"
    return None


def _is_own_code(name: str) -> bool:
    package = Path(modeling_video_ma2mba.__file__).parent
    processing = Path(modeling_video_ma2mba.processing.__file__).parent
    return name.endswith(".py") and any((place / name).is_file() for place in (package, processing))


def check_card(path: Path) -> None:
    """Raise ValueError unless a model card is there, names its licence and has nothing left open."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no card: write one with `video-ma2mba card`")
    if check_inside(path).stat().st_size > _MAX_CARD_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a card has at most {_MAX_CARD_BYTES}")
    text = path.read_text(encoding="utf-8")
    head = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    try:
        fields = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: its head is not YAML: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("license"), str):
        raise ValueError(f"{path} names no licence: begin it with a head such as `---`, `license: apache-2.0`, `---`")
    for number, line in enumerate(text.splitlines(), 1):
        if any(piece in line for piece in _OPEN):
            raise ValueError(f"{path}, line {number} is still to be filled in: {line.strip()[:100]}")


def check_loads(folder: Path):
    """Load config, weights (headers only, no numbers) and processor of a folder with this package; return the last.

    Returns:
        The processor, or the tokenizer of a language model.

    Raises:
        ValueError, OSError: the folder is not complete, or its parts do not fit one another.
    """
    check_folder_fields(folder)
    config = read_json(folder / "config.json")
    model_type, names = config.get("model_type"), config.get("architectures")
    try:
        code_names(model_type)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds a {model_type!r} model, which is not one of this package") from error
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if name not in modeling_video_ma2mba.__all__:
        raise ValueError(f"{folder}/config.json: architectures={names!r}, expected one class of this package")
    TensorFiles(folder)  # refuses damaged and hostile files before transformers opens them
    logging.disable_progress_bar()
    kind, verbosity = getattr(modeling_video_ma2mba, name), logging.get_verbosity()
    logging.set_verbosity_error()  # its report of keys that do not fit: they are told below
    try:
        model, found = kind.from_pretrained(folder, device_map="meta", output_loading_info=True)
    except RuntimeError as error:
        raise ValueError(f"{folder} does not load: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            keys = sorted(map(str, found[what]))[:3]
            raise ValueError(f"{folder}: {what.replace('_', ' ')} of the weights: {keys}")
    try:
        if model_type == "ma2mba":
            tokenizer = processor = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        else:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            tokenizer = getattr(processor, "tokenizer", None)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no processor or tokenizer that loads; save it there: {error}") from error
    per_frame = getattr(processor, "tokens_per_frame", None)
    if per_frame is not None and per_frame != model.config.tokens_per_frame:
        expected = model.config.tokens_per_frame
        raise ValueError(f"{folder}: the processor writes {per_frame} tokens a frame, the model reads {expected}")
    rows = getattr(model.config.get_text_config(), "vocab_size", None)
    if model_type in ("ma2mba", "video_ma2mba") and len(tokenizer) > rows:
        raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows} rows for them")
    return processor
