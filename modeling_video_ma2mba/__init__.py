"""Video-Ma²mba: ask questions about hours of video with a Mamba-2 language model (arXiv 2411.19460)."""

from pathlib import Path as _Path

# In a checkout the sibling folders (processing, train, ...) are sub-packages, as they are in a wheel.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "processing").is_dir():
    __path__.append(str(_root))
