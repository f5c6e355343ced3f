"""Which checkpoint to go on from: the newest that was written to its end.

The Trainer writes a folder file by file, `trainer_state.json` last; other processes than the first write their own
random state meanwhile. A run that is killed while it saves leaves a folder that looks like a checkpoint and is none.
"""

import json
import logging
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)


def last_complete_checkpoint(output_dir: str | Path, world_size: int = 1) -> Path | None:
    """Return the newest complete `checkpoint-N` folder, None if there is none; log those that are passed over.

    Args:
        world_size: processes of the run; each has written its own random state.
    """
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", p.name)]
    for folder in sorted(folders, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        missing = what_is_missing(folder, world_size)
        if missing is None:
            return folder
        logger.warning("%s is passed over: %s (the run was stopped while saving)", folder, missing)
    return None


def read_state(folder: Path) -> dict:
    """Return the Trainer's state of a checkpoint: `global_step`, `max_steps`, ..."""
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))


def what_is_missing(folder: Path, world_size: int = 1) -> str | None:
    """Return why a checkpoint folder is not complete, None if it is."""
    try:
        step = read_state(folder)["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no trainer_state.json, which is written last"
    if folder.name != f"checkpoint-{step}":
        return f"its trainer_state.json is of step {step}"
    states = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    for name in ("scheduler.pt", *states):
        if not (folder / name).is_file():
            return f"no {name}"
    for path in folder.glob("*.pt*"):  # torch writes zip files, their directory last
        if not zipfile.is_zipfile(path):
            return f"{path.name} is cut off"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return "no weights"
    for path in weights:
        try:
            with safe_open(str(path), framework="pt"):
                pass
        except (SafetensorError, OSError):
            return f"{path.name} is cut off"
    return None
