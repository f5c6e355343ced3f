"""`video-ma2mba push`: a model folder to the Hub with everything that loads it elsewhere, after it has been checked.

    push_to_hub("runs/mine", "me/mine", dry_run=True)    # the files and their sizes, nothing is sent
    push_to_hub("runs/mine", "me/mine")                  # private, unless public=True

The token is the one that huggingface_hub finds (`hf auth login`, or HF_TOKEN). Not here: what may be uploaded
(folder_check.py), and the web page (push_space.py).
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import HfHubHTTPError, HFValidationError, validate_repo_id
from transformers.dynamic_module_utils import custom_object_save

import modeling_video_ma2mba
from modeling_video_ma2mba.checkpoint_files import read_json
from modeling_video_ma2mba.hub_cards.folder_check import CARD, CODE_LICENCE, check_card, check_loads, folder_files
from modeling_video_ma2mba.hub_cards.own_package import own_package
from modeling_video_ma2mba.hub_folder import code_names
from modeling_video_ma2mba.shipped_model import model_folder


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What goes to the Hub.

    Attributes:
        sizes: bytes by path in the repository. left: what of the folder stays here. url: of the commit; None after a
            dry run.
    """

    sizes: dict[str, int]
    left: list[str]
    url: str | None


def push_to_hub(folder: str | Path, repo_id: str, *, public: bool = False, dry_run: bool = False) -> Upload:
    """Check a folder and upload it in one commit: weights, config, processor, card, and this package's code for it
    with the licence of that code, which says nothing about the weights.

    Args:
        folder: as `save_pretrained` writes it, with the processor and a card (`write_card`); "tiny": the shipped one.
        repo_id: "name" or "owner/name" of a model repository; made if it is not there.
        public: make a new repository public. One that exists stays as it is.

    Raises:
        ValueError: the folder must not or cannot be uploaded, nobody is logged in, or the Hub refuses.
        OSError: a file cannot be read, or the Hub cannot be reached.
    """
    folder = Path(model_folder(str(folder)))
    check_repo_id(repo_id)
    files, left = folder_files(folder)
    check_card(folder / CARD)
    processor = check_loads(folder)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        processor.save_pretrained(made)
        _write_code(read_json(folder / "config.json"), made)
        sources = {name: folder / name for name in files}
        sources |= {path.relative_to(made).as_posix(): path for path in made.rglob("*") if path.is_file()}
        sources[CODE_LICENCE] = own_package().licence
        return upload_files(sources, repo_id, "model", left=left, variables={}, public=public, dry_run=dry_run)


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless this is "name" or "owner/name" as the Hub takes it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository such as me/model: {error}") from error


def _write_code(config: dict, made: Path) -> None:
    """Write the code of every class that the config will name, and that config."""
    names = code_names(config["model_type"])
    references = [*names["auto_map"].values(), *(one["impl"] for one in names.get("custom_pipelines", {}).values())]
    for reference in references:
        custom_object_save(getattr(modeling_video_ma2mba, reference.split(".")[1]), made)
    (made / "config.json").write_text(json.dumps({**config, **names}, indent=2) + "\n", encoding="utf-8")


def upload_files(
    sources: dict[str, Path],
    repo_id: str,
    kind: Literal["model", "space"],
    *,
    left: list[str],
    variables: dict[str, str],
    public: bool,
    dry_run: bool,
) -> Upload:
    """Upload files, given by their paths in the repository, in one commit; a dry run only counts them.

    Args:
        left: for the report. variables: set in a Space before its files come, so that its first start knows them.

    Raises:
        ValueError: nobody is logged in, or the Hub refuses.
    """
    sizes = {name: sources[name].stat().st_size for name in sorted(sources)}
    if dry_run:
        return Upload(sizes=sizes, left=left, url=None)
    if get_token() is None:
        raise ValueError("nobody is logged in to the Hub here: run `hf auth login` with a token that may write")
    api = HfApi()
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in sources.items()]
    sdk = "gradio" if kind == "space" else None
    try:
        made = api.create_repo(repo_id, repo_type=kind, private=not public, exist_ok=True, space_sdk=sdk)
        for key, value in variables.items():
            api.add_space_variable(made.repo_id, key, value)
        commit = api.create_commit(made.repo_id, additions, commit_message=f"Upload {kind}", repo_type=kind)
    except HfHubHTTPError as error:
        raise ValueError(f"the Hub refuses to take {repo_id}: {error}") from error
    return Upload(sizes=sizes, left=left, url=commit.commit_url)


def upload_text(upload: Upload, repo_id: str) -> str:
    """Return what a terminal shows of an upload or a dry run."""
    width = max(map(len, upload.sizes))
    lines = [f"{name:<{width}}  {size:>15,}" for name, size in upload.sizes.items()]
    lines += [f"stays here: {name}" for name in upload.left]
    total = f"{len(upload.sizes)} files, {sum(upload.sizes.values()):,} bytes"
    lines.append(
        f"{total} would go to {repo_id}; nothing was sent" if upload.url is None else f"{total}: {upload.url}"
    )
    return "\n".join(lines)
