"""Video made from nothing: files for tests and benchmarks, and scenes with a known story for training.

Three parts: `write_video` encodes frames into a file; `numbered_frames` / `read_number` burn a number into each frame
that survives compression and resizing; `make_clip` draws scenes of moving shapes together with what is true about
them. It asks no questions about the clips; `scene_questions.py` does that.

    write_video("clip.mp4", make_clip(seed=0, num_frames=32, size=224).frames, fps=4)
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageDraw

AUDIO_RATE = 16000
AUDIO_FRAME = 1024
TIME_BASE = Fraction(1, 90000)
NUMBER_GRID = 4  # 4 x 4 blocks, one bit each

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 50, 50),
    "green": (60, 190, 70),
    "blue": (60, 90, 225),
    "yellow": (225, 210, 60),
    "purple": (170, 60, 200),
    "white": (225, 225, 225),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y grows downwards
COLOUR_JITTER = 18
NEEDLE_PROBABILITY = 0.8
DESIGN_SIZE = 56  # the sizes below are pixels at this height; other sizes scale with it
SHAPE_SIZES = (18, 24)

Combination = tuple[str, str, str]  # colour, shape, direction

# 5 x 7 dot-matrix digits, one five-bit number per row, drawn at twice that size: independent of installed fonts.
DIGITS = (
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scene: a coloured shape that moves one way, in frames `start_frame` to `end_frame` (exclusive).

    Attributes:
        centres: of the shape in each frame of the scene, (x, y) as parts of width and height, y grows downwards.
        rgb, background: the shape's and the background's exact colour, 0 to 255.
    """

    shape: str
    colour: str
    direction: str
    start_frame: int
    end_frame: int
    centres: tuple[tuple[float, float], ...]
    rgb: tuple[int, int, int]
    background: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Needle:
    """A digit that is shown in one frame only; `box` is where: left, top, right, bottom in pixels."""

    digit: int
    frame: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A drawn video and the truth about it. `frames`: uint8 (T, H, W, 3)."""

    frames: np.ndarray
    scenes: tuple[Scene, ...]
    needle: Needle | None


def write_video(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    fps: float = 30,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 30,
    options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    audio_seconds: float = 0.0,
    container_format: str | None = None,
    container_options: dict[str, str] | None = None,
) -> None:
    """Encode uint8 (H, W, 3) frames into a video file.

    Args:
        path: where to write; the ending names the container unless `container_format` does.
        frames: the frames, all of one size; none at all, with `audio_seconds`, gives a file without a video stream.
        fps: frames per second.
        codec, pix_fmt, options: the FFmpeg encoder, its pixel format and its private options.
        gop: largest distance of key frames, in frames.
        times: a time in seconds for each frame, rising, for a variable frame rate; None is `i / fps`.
        rotation: degrees counter-clockwise that a player must turn the stored picture, written as metadata.
        audio_seconds: length of a silent audio track; 0 is none.
        container_format, container_options: the FFmpeg muxer and its options.
    """
    with av.open(os.fspath(path), "w", format=container_format, options=container_options or {}) as container:
        video = None
        audio = container.add_stream("aac", rate=AUDIO_RATE, layout="mono") if audio_seconds else None
        for index, frame in enumerate(frames):
            if video is None:
                rate = Fraction(fps).limit_denominator(1001)
                video = container.add_stream(codec, rate=rate, options=options or {})
                video.height, video.width = frame.shape[:2]
                video.pix_fmt = pix_fmt
                video.codec_context.gop_size = gop
                if times is not None:
                    video.codec_context.time_base = TIME_BASE
                if rotation:
                    video.set_display_rotation(rotation)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = round(times[index] / TIME_BASE), TIME_BASE
            container.mux(video.encode(picture))
        if video is not None:
            container.mux(video.encode())
        if audio is not None:
            for start in range(0, round(audio_seconds * AUDIO_RATE), AUDIO_FRAME):
                silence = np.zeros((1, AUDIO_FRAME), dtype=np.float32)
                sound = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                sound.rate, sound.pts, sound.time_base = AUDIO_RATE, start, Fraction(1, AUDIO_RATE)
                container.mux(audio.encode(sound))
            container.mux(audio.encode())


def numbered_frames(count: int, height: int, width: int, first: int = 0) -> Iterator[np.ndarray]:
    """Yield `count` uint8 (height, width, 3) frames; frame k shows `first + k` as 16 black and white blocks."""
    bits = NUMBER_GRID * NUMBER_GRID
    if first < 0 or first + count > 1 << bits:
        raise ValueError(f"numbers {first} to {first + count - 1} do not fit into {bits} bits; lower first or count")
    rows = np.arange(height) * NUMBER_GRID // height  # (H,) row of blocks of each row of pixels
    columns = np.arange(width) * NUMBER_GRID // width
    place = rows[:, None] * NUMBER_GRID + columns  # (H, W) which bit each pixel shows
    for number in range(first, first + count):
        lit = ((number >> place) & 1).astype(np.uint8) * 215 + 20
        yield np.repeat(lit[:, :, None], 3, axis=2)


def read_number(frame: np.ndarray) -> int:
    """Read the number back from a uint8 (H, W, 3) or (3, H, W) frame of any size, compressed or resized."""
    if frame.shape[0] == 3 and frame.shape[-1] != 3:
        frame = np.moveaxis(np.asarray(frame), 0, -1)
    height, width = frame.shape[:2]
    number = 0
    for bit in range(NUMBER_GRID * NUMBER_GRID):
        row, column = divmod(bit, NUMBER_GRID)
        # The middle half of the block: its edges are smeared by compression and resizing.
        top, left = (row + 0.25) * height / NUMBER_GRID, (column + 0.25) * width / NUMBER_GRID
        bottom, right = (row + 0.75) * height / NUMBER_GRID, (column + 0.75) * width / NUMBER_GRID
        block = frame[int(top) : max(int(bottom), int(top) + 1), int(left) : max(int(right), int(left) + 1)]
        number |= int(block.mean() > 127) << bit
    return number


def make_clip(
    seed: int | Sequence[int],
    num_frames: int = 64,
    size: int | tuple[int, int] = DESIGN_SIZE,
    *,
    num_scenes: int | None = None,
    combinations: Sequence[Combination] | None = None,
) -> Clip:
    """Draw a clip of two to six scenes; the same arguments always give the same clip.

    Each scene shows one shape on its own dark background, crossing 65 to 100 % of the room left in one direction;
    neighbouring scenes differ in colour or shape; most clips show a digit in one frame.

    Args:
        seed: of the random generator.
        num_frames: T, at least 8, or two for each scene of `num_scenes`.
        size: side of a square frame, or (height, width), in pixels.
        num_scenes: how many scenes; None draws the number.
        combinations: the scenes are drawn from these; None is any colour, shape and direction.
    """
    if num_frames < (8 if num_scenes is None else 2 * num_scenes):
        raise ValueError(
            f"num_frames={num_frames} is too short for {num_scenes or 'two'} scenes that can be told apart; "
            f"give at least {8 if num_scenes is None else 2 * num_scenes}"
        )
    if num_scenes is not None and num_scenes < 1:
        raise ValueError(f"num_scenes={num_scenes} must be at least 1, or None")
    looks = None if combinations is None else {(colour, shape) for colour, shape, _ in combinations}
    if looks is not None and len(looks) < (1 if num_scenes == 1 else 2):
        raise ValueError(
            f"combinations have {len(looks)} pairs of colour and shape; give two or more, as neighbours differ"
        )
    height, width = (size, size) if isinstance(size, int) else size
    random = np.random.default_rng(seed)
    plans = _plan_scenes(random, num_frames, num_scenes, combinations)
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    scenes = tuple(_draw_scene(random, frames[p["start_frame"] : p["end_frame"]], p) for p in plans)
    needle = None
    if random.random() < NEEDLE_PROBABILITY:
        digit, frame = int(random.integers(10)), int(random.integers(num_frames))
        needle = Needle(digit=digit, frame=frame, box=_draw_digit(random, frames[frame], digit))
    return Clip(frames=frames, scenes=scenes, needle=needle)


def _plan_scenes(
    random: np.random.Generator, num_frames: int, count: int | None, combinations: Sequence[Combination] | None
) -> list[dict]:
    """Return, for each scene, the fields of `Scene` that are known before it is drawn."""
    if count is None:
        fewest = 3 if num_frames >= 32 else 2
        count = int(random.integers(fewest, min(6, num_frames // 4) + 1))
    # Cuts on a grid of two frames: every scene lasts at least two.
    cuts = 2 * np.sort(random.choice(np.arange(1, num_frames // 2), size=count - 1, replace=False))
    bounds = [0, *cuts.tolist(), num_frames]
    plans, previous = [], None
    for start, end in itertools.pairwise(bounds):
        look = previous
        while look == previous:
            if combinations is None:
                look, direction = (str(random.choice(list(COLOURS))), str(random.choice(SHAPES))), None
            else:
                *look, direction = combinations[int(random.integers(len(combinations)))]
                look = tuple(look)
        previous = look
        if direction is None:
            direction = str(random.choice(list(DIRECTIONS)))
        plans.append(
            {"colour": look[0], "shape": look[1], "direction": direction, "start_frame": start, "end_frame": end}
        )
    return plans


def _draw_scene(random: np.random.Generator, frames: np.ndarray, plan: dict) -> Scene:
    """Fill `frames` (n, H, W, 3) in place and return the scene."""
    count, height, width = frames.shape[:3]
    scale = min(height, width) / DESIGN_SIZE
    side = round(int(random.integers(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1)) * scale)
    colour = np.array(COLOURS[plan["colour"]]) + random.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    colour = colour.clip(0, 255)
    background = random.integers(0, 60, 3, dtype=np.uint8)
    frames[:] = background
    mask = shape_mask(plan["shape"], side)[:, :, None]  # (side, side, 1)

    room = np.array([width - side, height - side])
    step = np.array(DIRECTIONS[plan["direction"]])
    travel = random.uniform(0.65, 1.0) * room
    # Along the way the path is placed anywhere it fits; across it, the shape keeps one random line.
    first = np.where(step == 0, random.uniform(0, 1, 2) * room, random.uniform(0, 1, 2) * (room - travel))
    first = np.where(step < 0, room - first, first)
    centres = []
    for index in range(count):
        progress = index / max(1, count - 1)
        left, top = np.round(first + step * travel * progress).astype(int).tolist()
        patch = frames[index, top : top + side, left : left + side]
        patch[:] = np.round(patch * (1 - mask) + colour * mask).astype(np.uint8)
        centres.append(((left + side / 2) / width, (top + side / 2) / height))
    return Scene(
        **plan, centres=tuple(centres), rgb=tuple(colour.tolist()), background=tuple(int(c) for c in background)
    )


def shape_mask(shape: str, side: int) -> np.ndarray:
    """Return the coverage of each pixel, float64 (side, side) in 0..1, smooth at the edges."""
    big = 4 * side
    image = Image.new("L", (big, big))
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
    elif shape == "square":
        draw.rectangle((big // 12, big // 12, big - big // 12 - 1, big - big // 12 - 1), fill=255)
    elif shape == "triangle":
        draw.polygon(((big // 2, 0), (big - 1, big - 1), (0, big - 1)), fill=255)
    elif shape == "cross":
        draw.rectangle((big // 3, 0, big - big // 3 - 1, big - 1), fill=255)
        draw.rectangle((0, big // 3, big - 1, big - big // 3 - 1), fill=255)
    else:
        raise ValueError(f"shape={shape!r} is unknown; choose one of {SHAPES}")
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float64) / 255


def _draw_digit(random: np.random.Generator, frame: np.ndarray, digit: int) -> tuple[int, int, int, int]:
    """Draw a white digit on a black box into `frame` (H, W, 3), in place; return the box."""
    rows = np.array(DIGITS[digit])[:, None]
    dots = np.pad((rows >> np.arange(4, -1, -1)) & 1, 1)  # (7, 5) -> (9, 7): a margin of one dot all around
    dot = max(1, round(2 * min(frame.shape[:2]) / DESIGN_SIZE))
    box = np.kron(dots, np.ones((dot, dot), dtype=np.int64)).astype(np.uint8) * 255
    top = int(random.integers(frame.shape[0] - box.shape[0] + 1))
    left = int(random.integers(frame.shape[1] - box.shape[1] + 1))
    bottom, right = top + box.shape[0], left + box.shape[1]
    frame[top:bottom, left:right] = box[:, :, None]
    return left, top, right, bottom
