"""From a labelled clip to pixels: the frames of any medium, and the views that a test looks at (clips x crops).

Nothing random is here; `clip_set.py` draws frames for training, `augmentation.py` changes them.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from modeling_video_ma2mba.processing.clip_sampling import clip_indices
from modeling_video_ma2mba.processing.image_processing_videomamba import VideoMambaImageProcessor, file_frames
from modeling_video_ma2mba.processing.media_suffixes import MEDIA_SUFFIXES
from modeling_video_ma2mba.train.samples import Media


def media_frames(
    media: Media, choose: Callable[[int], np.ndarray], size: int | None = None
) -> Iterator[Image.Image | np.ndarray]:
    """Yield chosen frames of a video or of a folder of pictures, or the one picture of an image: PIL or (H, W, 3).

    Args:
        choose: from how many frames there are to the numbers of those that are wanted, rising.
        size: limit for the shorter side of a video's frames, in pixels, to save memory.

    Raises:
        VideoReadError, OSError, ValueError: it cannot be read.
    """
    if media.kind == "video":
        yield from file_frames(media.path, choose, start=media.start or 0.0, end=media.end, size=size)
        return
    paths = [media.path]
    if media.kind == "frames":
        paths = sorted(path for path in media.path.iterdir() if path.suffix.lower() in MEDIA_SUFFIXES["image"])
        if not paths:
            raise ValueError("the folder holds no pictures")
        paths = [paths[i] for i in choose(len(paths))]
    for path in paths:
        try:
            with Image.open(path) as image:
                yield image.convert("RGB")
        except Image.DecompressionBombError as error:  # no OSError, as everything else about bad files is
            raise ValueError(f"{path}: {error}") from error


def test_views(media: Media, processor: VideoMambaImageProcessor, clips: int = 1, crops: int = 1) -> np.ndarray:
    """Return the views of a test, clip by clip, each with all its crops: uint8 (clips * crops, F, 3, size, size).

    The video is decoded once; all views together are held. An image is one frame, F = 1, and one clip.

    Raises:
        VideoReadError, OSError, ValueError: it cannot be read.
    """
    places = np.zeros((1, 1), dtype=np.int64)

    def choose(total: int) -> np.ndarray:
        nonlocal places
        per_clip = [clip_indices(total, processor.num_frames, processor.sampling, c, clips) for c in range(clips)]
        chosen, places = np.unique(np.stack(per_clip), return_inverse=True)
        places = places.reshape(clips, processor.num_frames)
        return chosen

    pictures = np.stack([processor.crops(picture, crops) for picture in media_frames(media, choose)])
    views = pictures[places]  # (U, crops, 3, S, S) -> (clips, F, crops, 3, S, S)
    return views.swapaxes(1, 2).reshape(clips * crops, places.shape[1], *pictures.shape[2:])


test_views.__test__ = False  # a name that pytest would collect
