"""What judges replied, kept on disk: a file for each request, so that nothing is paid for twice.

A file is named by the SHA-256 of everything the reply depends on, holds that and the reply, and is written whole or
not at all; several processes may share a folder. It never holds a key.
"""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MAX_FILE = 2**20


class JudgeCache:
    """Replies below a folder, which is made when the first one is kept."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def get(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Return what was kept for this request; None: nothing, or a damaged file, which is named in the log."""
        path = self._path(asked)
        if not path.is_file():
            return None
        if path.stat().st_size <= MAX_FILE:
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):  # not UTF-8, or not JSON
                kept = None
            if isinstance(kept, dict) and kept.get("asked") == asked and isinstance(kept.get("text"), str):
                return kept
        logger.warning("%s is damaged: the judge is asked again", path)
        return None

    def put(self, asked: dict[str, Any], reply: dict[str, Any]) -> None:
        """Keep a reply, `{"text": ..., ...}`."""
        path = self._path(asked)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"asked": asked, **reply}, file, indent=1)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise

    def _path(self, asked: dict[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"
