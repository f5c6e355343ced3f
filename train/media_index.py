"""Find the images and videos that annotation files name, inside given folders only.

It looks at names, not into files: whether a video can be decoded turns out later. Names come from data that nobody
checked, so a path that would leave the media folders is refused, also through a symbolic link.

    media = MediaIndex(["data/videos"])
    media.find("demo/clip-17.mp4", "video")
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from modeling_video_ma2mba.processing.media_suffixes import MEDIA_SUFFIXES
from modeling_video_ma2mba.train.data_report import BadRow

KNOWN_EXTENSIONS = frozenset.union(*MEDIA_SUFFIXES.values())
KIND_NAMES = {"image": "an image", "video": "a video"}

NOT_FOUND = "media not found"
REFUSED = "media path refused"


class MediaIndex:
    """The files below some folders.

    Args:
        roots: the media folders; earlier ones win.

    Attributes:
        found_by_name: how many files were not where the data says and were found by their name alone.
    """

    def __init__(self, roots: Iterable[str | os.PathLike]) -> None:
        roots = [Path(root) for root in roots]
        if not roots:
            raise ValueError("no media folder given; give at least one")
        for root in roots:
            if not root.is_dir():
                raise ValueError(
                    f"media folder {str(root)!r} is not a folder; give the folder that the paths start from"
                )
        self.roots = tuple(dict.fromkeys(root.resolve() for root in roots))
        self.found_by_name = 0
        self._names: dict[str, list[str]] | None = None
        self._folders: dict[str, Path] = {}  # where a folder really is; there are far fewer of them than files

    def find(self, name: str, kind: str, below: Sequence[str] = ()) -> Path:
        """Return the file of a relative path.

        Tried in turn: `<root>/<name>`; `<root>/<folder>/<name>` for the folders in `below`; and the file of that name
        anywhere below the roots, in upper or lower case and with any ending of its kind. Of several such files the one
        in the most similar folders is taken, if there is one.

        Args:
            name: relative path, with `/`.
            kind: "image" or "video".
            below: names of folders, which may come from the data too.

        Raises:
            BadRow: refused, missing, ambiguous, empty, or a file of another kind.
        """
        _check(name)
        for root in self.roots:
            for folder in ("", *below):
                if folder:
                    _check(folder)
                candidate = os.path.join(root, folder, name)
                if os.path.isfile(candidate):
                    return self._accept(candidate, name, kind)
        path = self._find_name(name, kind)
        self.found_by_name += 1
        return path

    def find_id(self, id: str, kind: str) -> Path:
        """Return the file `<id>.<any ending of its kind>` anywhere below the roots; raises as `find` does."""
        _check(id)
        if "/" in id or "\\" in id:
            raise BadRow(REFUSED, f"{id!r} is not the name of a file")
        return self._find_name(id, kind)

    def find_frames(self, name: str, below: Sequence[str] = ()) -> Path:
        """Return the folder of a relative path; it holds at least one image. Raises as `find` does."""
        _check(name)
        for root in self.roots:
            for folder in ("", *below):
                if folder:
                    _check(folder)
                candidate = os.path.join(root, folder, name)
                if os.path.isdir(candidate):
                    resolved = self._inside(candidate, name)
                    if not any(_extension(entry) in MEDIA_SUFFIXES["image"] for entry in os.listdir(resolved)):
                        raise BadRow("folder without an image", name)
                    return resolved
        raise BadRow(NOT_FOUND, name)

    def _find_name(self, name: str, kind: str) -> Path:
        if self._names is None:
            self._names = self._scan()
        wanted = PurePosixPath(name)
        found = [path for path in self._names.get(_key(wanted.name), ()) if _extension(path) in MEDIA_SUFFIXES[kind]]
        if not found:
            raise BadRow(NOT_FOUND, name)
        scores = [_likeness(PurePosixPath(path), wanted) for path in found]
        best = [path for path, score in zip(found, scores) if score == max(scores)]
        if len(best) > 1:
            raise BadRow("media name is not unique", f"{name} may be {best[0]} or {best[1]}")
        return self._accept(best[0], name, kind)

    def _scan(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for root in self.roots:
            for folder, folders, files in os.walk(root):
                folders.sort()
                for file in sorted(files):
                    # Hidden files such as ._a.mp4 are bookkeeping of the file system, not media.
                    if not file.startswith(".") and _extension(file) in KNOWN_EXTENSIONS:
                        paths = names.setdefault(_key(file), [])
                        path = os.path.join(folder, file)
                        if path not in paths:  # one root can lie in another
                            paths.append(path)
        return names

    def _accept(self, path: str, name: str, kind: str) -> Path:
        extension = _extension(path)
        if extension in KNOWN_EXTENSIONS and extension not in MEDIA_SUFFIXES[kind]:
            raise BadRow("media of another kind", f"{name} is not {KIND_NAMES[kind]}")
        resolved = self._inside(path, name)
        if not os.path.isfile(resolved):
            raise BadRow(NOT_FOUND, name)
        if resolved.stat().st_size == 0:
            raise BadRow("media file is empty", name)
        return resolved

    def _inside(self, path: str, name: str) -> Path:
        folder, file = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = Path(folder).resolve()
        resolved = self._folders[folder] / file
        if resolved.is_symlink():
            resolved = resolved.resolve()
        if not any(resolved.is_relative_to(root) for root in self.roots):
            raise BadRow(
                REFUSED, f"{name} leads out of the media folders to {resolved}; give that folder as a media folder too"
            )
        return resolved


def _check(name: str) -> None:
    """Refuse what is not a plain relative path."""
    if not name.strip() or "\0" in name or len(name) > 4096:
        raise BadRow(REFUSED, f"{name[:80]!r} is not a path")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        raise BadRow(REFUSED, f"{name} is an address; download the file and give its path below the media folder")
    if name.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", name):
        raise BadRow(REFUSED, f"{name} is not relative to a media folder")
    if ".." in re.split(r"[/\\]", name):
        raise BadRow(REFUSED, f"{name} contains '..'")


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _key(name: str) -> str:
    """The name under which a file is indexed: no known ending, no case, one form of accented letters."""
    return unicodedata.normalize("NFC", name_without_ending(name)).casefold()


def name_without_ending(name: str) -> str:
    """The name without a known ending: ids may hold dots."""
    return name[: -len(_extension(name))] if _extension(name) in KNOWN_EXTENSIONS else name


def _likeness(path: PurePosixPath, wanted: PurePosixPath) -> tuple[int, bool, bool]:
    """How many folders before the name agree, then whether the name does in case, then whether the ending does."""
    folders = 0
    for one, other in zip(reversed(path.parent.parts), reversed(wanted.parent.parts)):
        if one.casefold() != other.casefold():
            break
        folders += 1
    return folders, name_without_ending(path.name) == name_without_ending(wanted.name), path.name == wanted.name
