"""What this package is made of: its files by the paths that an installation has, what it requires, its licence.

Read from pyproject.toml in a checkout, and elsewhere from what pip noted at the installation.
"""

import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

import modeling_video_ma2mba

NAME = "modeling_video_ma2mba"
_DISTRIBUTION = "video-ma2mba"
_LICENCE = "LICENSE"
_PAGE = "demo"


@dataclass(frozen=True, kw_only=True)
class OwnPackage:
    """This package, to be carried elsewhere.

    Attributes:
        files: where each file is, by path with "/" such as "modeling_video_ma2mba/train/recipes.yaml".
        requirements: lines of a requirements.txt, of the package with the web page (its extra "demo").
        licence: the file with the licence of the code.
    """

    files: dict[str, Path]
    requirements: list[str]
    licence: Path


def own_package() -> OwnPackage:
    """Return this package as it is installed or checked out.

    Raises:
        ValueError: the code was copied by hand, so that nothing says what belongs to it.
    """
    root = Path(modeling_video_ma2mba.__file__).resolve().parent.parent
    is_checkout = (root / "pyproject.toml").is_file() and (root / "processing").is_dir()  # as in its __init__.py
    return _of_checkout(root) if is_checkout else _of_installation()


def _of_checkout(root: Path) -> OwnPackage:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project, setuptools = settings["project"], settings["tool"]["setuptools"]
    files = {}
    for package in setuptools["packages"]:
        folder = root / setuptools["package-dir"].get(package, package)
        for pattern in ("*.py", *setuptools["package-data"].get(package, ())):
            for path in folder.glob(pattern):
                files[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path
    lines = [*project["dependencies"], *project["optional-dependencies"][_PAGE]]
    return OwnPackage(
        files=dict(sorted(files.items())),
        requirements=[str(Requirement(line)) for line in lines],
        licence=root / _LICENCE,
    )


def _of_installation() -> OwnPackage:
    try:
        installed = distribution(_DISTRIBUTION)
        paths = {path.as_posix(): Path(path.locate()) for path in installed.files or () if path.suffix != ".pyc"}
        licence = next(path for name, path in paths.items() if name.endswith(f".dist-info/licenses/{_LICENCE}"))
    except (PackageNotFoundError, StopIteration) as error:
        raise ValueError(
            f"nothing says which files belong to the package in {Path(modeling_video_ma2mba.__file__).parent}: "
            "install it with pip, or use a checkout"
        ) from error
    return OwnPackage(
        files={name: path for name, path in sorted(paths.items()) if name.startswith(f"{NAME}/")},
        requirements=_with_page(installed.requires or []),
        licence=licence,
    )


def _with_page(lines: list[str]) -> list[str]:
    """Return the requirements without those of other extras; the marker of the extra itself is dropped."""
    kept = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": _PAGE}):
            requirement.marker = None
            kept.append(str(requirement))
    return kept
