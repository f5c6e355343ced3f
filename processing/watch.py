"""`video-ma2mba watch`: read videos into a memory file; what was seen survives an interruption."""

import sys
from pathlib import Path

from .load_model import check_model, load_model
from .media_suffixes import MEDIA_SUFFIXES


def watch_videos(
    model_path: str,
    paths: list[str],
    output: str,
    fps: float | None = None,
    allow_damaged: bool = False,
    device: str = "auto",
    dtype: str = "auto",
):
    """Watch files, and the videos of folders in the order of their names, and write the memory to `output`.

    What `output` holds already is not watched again: it goes on where it stopped, also with more files than before.
    Interrupted by an error or Ctrl-C, it writes what was seen and raises; a process that is killed loses a minute.
    Returns the memory.

    Raises:
        VideoReadError: a video cannot be read. OSError, ValueError: nothing to watch, the model cannot be loaded,
            `output` is something else or holds other videos.
    """
    files = _videos(paths)
    check_model(model_path, device)
    if not Path(output).absolute().parent.is_dir():
        raise ValueError(f"there is no folder {Path(output).parent} to write {output} to")
    model, processor = load_model(model_path, device, dtype)
    memory, todo = None, files
    if Path(output).exists():
        memory = model.load_memory(output)
        todo = _still_to_watch(memory, files, output)
        if not todo:
            print(f"{output} has seen all of it: {_amount(memory)}", file=sys.stderr)
            return memory
        print(f"going on after {_amount(memory)} in {output}", file=sys.stderr)
    before = memory
    try:
        memory = model.watch(
            todo, processor=processor, fps=fps, memory=memory, allow_damaged=allow_damaged, save_to=output
        )
    except BaseException as error:
        memory = getattr(error, "memory", None)
        if memory is not None and memory is not before:
            print(
                f"\nstopped after {_amount(memory)}, saved in {output}: run the same command again to go on",
                file=sys.stderr,
            )
        raise
    print(f"wrote {output}: {_amount(memory)}, {memory.nbytes / 2**20:.1f} MiB", file=sys.stderr)
    return memory


def _videos(paths: list[str]) -> list[str]:
    """Return the files named, and those in the folders named."""
    files: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in MEDIA_SUFFIXES["video"] and p.is_file())
            if not inside:
                raise ValueError(f"there is no video in {path} (its sub-folders are not searched)")
            files += map(str, inside)
        elif path.is_file():
            files.append(str(path))
        else:
            raise ValueError(f"there is no file or folder {path}")
    return files


def _still_to_watch(memory, files: list[str], output: str) -> list[str]:
    seen = [video.name for video in memory.videos]
    if seen != files[: len(seen)]:
        raise ValueError(
            f"{output} is a memory of other videos ({', '.join(seen)[:200]}): give those first, in their order, or "
            "another --output"
        )
    # An interrupted watch is named again from its first file: that is how `watch` knows it.
    return files[len(seen) if memory.interrupted_from is None else memory.interrupted_from :]


def _amount(memory) -> str:
    return f"{memory.seconds_seen:.0f} s in {memory.frames_seen} frames"
