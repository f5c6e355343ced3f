"""Which frames of a video make a clip: VideoMamba's rules (arXiv 2403.06977, appendix), all over the whole video.

Pure arithmetic on frame numbers; it opens no file. With N frames in the video, T in the clip, g = (N - 1) / T:

    sparse      train: random in [round(g i), round(g (i + 1))]        one view: round(g i) + int(g / 2)
                view c of C: round(g i) + int(g / (C + 1) (c + 1))
    ssv2        train: random in each part of floor(N / T)             one view: int(N / T / 2 + N / T i)
                2 views: every second of int(k N / T) and int(N / (2 T) + k N / T), from the first and the second on
    middle      train: random in each of T equal parts                 one view: the middle of each
"""

import numpy as np

# sparse: K400, Breakfast, COIN, LVU; ssv2: Something-Something v2; middle: the multi-modal models.
SAMPLING_RULES = ("sparse", "ssv2", "middle")


def clip_indices(total: int, frames: int, rule: str = "sparse", view: int = 0, views: int = 1) -> np.ndarray:
    """Return the frames of one test view of a video, int64 (frames,), rising; a short video shows some more than once.

    Args:
        total: frames in the video. frames: frames in the clip.
        rule: one of `SAMPLING_RULES`.
        view, views: which of how many clips of this video; "ssv2" has 1 or 2, "middle" 1.

    Raises:
        ValueError: an unknown rule, or numbers outside what it allows.
    """
    _check(total, frames, rule)
    most = {"ssv2": 2, "middle": 1}.get(rule, views)
    if not 0 <= view < views <= most:
        raise ValueError(f"view={view} of views={views}: view starts at 0, and {rule!r} has at most {most} views")
    if rule == "sparse":
        gap = (total - 1) / frames
        indices = _round(gap * np.arange(frames)) + int(gap / (views + 1) * (view + 1))
    elif rule == "ssv2":
        gap = total / frames
        indices = (gap / 2 + gap * np.arange(frames)).astype(np.int64)
        if views == 2:
            indices = np.sort(np.concatenate([indices, (gap * np.arange(frames)).astype(np.int64)]))[view::2]
    else:
        first, last = _parts(total, min(frames, total))
        indices = _filled((first + last) // 2, frames)
    return np.minimum(indices, total - 1)


def random_clip_indices(total: int, frames: int, rule: str, generator: np.random.Generator) -> np.ndarray:
    """Return the frames of a clip for training, int64 (frames,), one at random from each part of the video.

    Args, Raises: as `clip_indices`.
    """
    _check(total, frames, rule)
    if rule == "sparse":
        borders = _round((total - 1) / frames * np.arange(frames + 1))
        return np.minimum(generator.integers(borders[:-1], borders[1:], endpoint=True), total - 1)
    if rule == "ssv2":
        length = total // frames
        if length == 0:
            return clip_indices(total, frames, rule)
        return np.arange(frames) * length + generator.integers(0, length, frames)
    first, last = _parts(total, min(frames, total))
    return _filled(generator.integers(first, last, endpoint=True), frames)


def _check(total, frames, rule):
    if rule not in SAMPLING_RULES:
        raise ValueError(f"sampling rule {rule!r} is unknown; choose one of {', '.join(SAMPLING_RULES)}")
    if total < 1 or frames < 1:
        raise ValueError(f"{frames} frames of a video of {total}: both must be at least 1")


def _round(values):
    """Round half to even, as Python does."""
    return np.rint(values).astype(np.int64)


def _parts(total, count):
    """Return first and last frame of `count` equal parts."""
    borders = np.linspace(0, total, count + 1).astype(np.int64)
    return borders[:-1], borders[1:] - 1


def _filled(indices, frames):
    """Repeat the last frame of a video that is too short."""
    return np.pad(indices, (0, frames - len(indices)), mode="edge")
