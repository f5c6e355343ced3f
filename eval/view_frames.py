"""The frames of a `View`: when they are, and their pictures, from a video file or a folder of numbered pictures.

It fits and normalises nothing; each model's processor does.

    times = view_times(view)
    for picture in view_pictures(view, times):
        ...     # uint8 (H, W, 3), RGB

Dims: F frames, H height, W width.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_video_ma2mba.eval.samples import View
from modeling_video_ma2mba.eval.sampling_rules import SAMPLING_RULES
from modeling_video_ma2mba.processing.frame_sampling import TIME_TOLERANCE, sample_times
from modeling_video_ma2mba.processing.video_decoder import MAX_PIXELS
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.processing.video_reader import iter_frames, probe

# A number before the ending, as in 00001.jpg; what else lies in the folder is no frame.
_PICTURE_NAME = re.compile(r"(\d{1,9})\.(jpe?g|png|webp)", re.IGNORECASE)
_PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")


def view_times(view: View) -> tuple[float, ...]:
    """Return the sample times of a view in seconds, (F,), rising; the file is opened, but not read to its end.

    Raises:
        VideoReadError: the video cannot be read, or has nothing in this part of it.
    """
    if view.folder_fps is not None:
        duration, fps = len(_numbered_pictures(view.video)) / view.folder_fps, view.folder_fps
    else:
        info = probe(view.video)
        duration, fps = info.duration, info.fps
    if view.sampling != "model":
        return tuple(SAMPLING_RULES[view.sampling](duration, fps, view.num_frames).tolist())
    try:
        times = sample_times(duration, view.fps, num_frames=view.num_frames, start=view.start or 0.0, end=view.end)
    except ValueError as error:
        raise VideoReadError(view.video, str(error)) from error
    return tuple(times.tolist())


def nobody() -> None:
    """Hear of a frame, and do nothing."""


def view_pictures(view: View, times: Sequence[float], on_frame: Callable[[], None] = nobody) -> Iterator[np.ndarray]:
    """Yield the picture at each time, uint8 (H, W, 3), RGB, in memory that does not grow with the length.

    Args:
        on_frame: called when a picture has been taken and the next one is asked for.

    Raises:
        VideoReadError: the video, or a picture of the folder, cannot be read.
    """
    pictures = _file_pictures(view.video, times)
    if view.folder_fps is not None:
        pictures = _folder_pictures(view.video, view.folder_fps, times)
    count = 0
    for picture in pictures:
        yield picture
        on_frame()
        count += 1
    if count != len(times):
        raise VideoReadError(view.video, f"only {count} of {len(times)} frames could be read")


def _file_pictures(video: Path, times: Sequence[float]) -> Iterator[np.ndarray]:
    for _, chunk in iter_frames(video, times=times, chunk=4):
        yield from chunk


def _numbered_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order of their numbers, whatever the first one is."""
    if not folder.is_dir():
        raise VideoReadError(folder, "there is no such folder of pictures")
    found = ((_PICTURE_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    pictures = sorted((int(name[1]), path) for name, path in found if name)
    if not pictures:
        raise VideoReadError(folder, "the folder holds no picture whose name is a number, such as 00001.jpg")
    return [path for _, path in pictures]


def _folder_pictures(folder: Path, fps: float, times: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield for each time the last picture at or before it, the first picture being at 0."""
    paths = _numbered_pictures(folder)
    for time in times:
        yield read_picture(paths[min(int((time + TIME_TOLERANCE) * fps), len(paths) - 1)])


def read_picture(path: Path) -> np.ndarray:
    """Return a picture file, uint8 (H, W, 3), RGB; raises VideoReadError where it is damaged or too large."""
    try:
        with Image.open(path, formats=_PICTURE_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise VideoReadError(path, f"{picture.width} x {picture.height} are more than {MAX_PIXELS} pixels")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's words for damaged pictures
        raise VideoReadError(path, f"no picture that can be read ({type(error).__name__})") from error
