"""Clips in which motion alone decides the class, for VideoMamba: drawn with `synthetic_video`, written as its csv.

    python train/motion_clips.py --output data --count 600
    accelerate launch train/videomamba.py --recipe tiny --data data/train.csv --test data/test.csv \\
        --class-names data/classes.txt --output runs/motion

writes `train.csv`, `test.csv` (path,label) with their videos and `classes.txt`. The classes come in pairs, and one of
a pair is the other played backwards: no frame and no set of frames tells which it is. Who sees frames in any order is
right in one of two cases at best.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from modeling_video_ma2mba.train.synthetic_video import (
    COLOUR_JITTER,
    COLOURS,
    DESIGN_SIZE,
    SHAPE_SIZES,
    SHAPES,
    shape_mask,
    write_video,
)

# Forwards, then backwards.
MOTIONS = ("moves right", "moves left", "opens", "closes", "red, then blue", "blue, then red")
PARTS = ("train", "test")
FPS = 8
ENCODER = {"preset": "veryfast", "crf": "18", "threads": "1"}


def draw_motion(seed: int | tuple[int, ...], motion: int, num_frames: int = 16, size: int = 32) -> np.ndarray:
    """Draw a clip of one class; the same arguments always give the same clip.

    Args:
        seed: of colours, places, sizes and shapes. motion: place in `MOTIONS`.
        num_frames: at least 4. size: side of a frame in pixels.

    Returns:
        uint8 (num_frames, size, size, 3).
    """
    if num_frames < 4 or not 0 <= motion < len(MOTIONS):
        raise ValueError(f"num_frames={num_frames} must be at least 4, and motion={motion} below {len(MOTIONS)}")
    random = np.random.default_rng(seed)
    background = random.integers(0, 60, 3)
    side = round(int(random.integers(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1)) * size / DESIGN_SIZE)
    room, progress = size - side, np.linspace(0, 1, num_frames)
    coverage = np.zeros((num_frames, size, size))  # of each pixel by the shape
    kind, backwards = divmod(motion, 2)
    names = [str(random.choice(list(COLOURS)))] * num_frames  # of the shape's colour in each frame
    top, left = random.integers(0, room + 1, 2).tolist()
    mask = shape_mask(str(random.choice(SHAPES)), side)
    if kind == 0:
        travel = random.uniform(0.65, 1.0) * room
        first = random.uniform(0, room - travel)
        for frame, done in zip(coverage, progress):
            at = round(first + travel * done)
            frame[top : top + side, at : at + side] = mask
    elif kind == 1:  # two doors that leave a gap
        travel = random.uniform(0.65, 1.0) * (size // 2)
        for frame, done in zip(coverage, progress):
            gap = round(travel * done)
            frame[:, : size // 2 - gap] = 1
            frame[:, size // 2 + gap :] = 1
    else:
        coverage[:, top : top + side, left : left + side] = mask
        change = int(random.integers(1 + num_frames // 4, num_frames - num_frames // 4))
        names = ["red"] * change + ["blue"] * (num_frames - change)
    jitter = random.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    colours = (np.array([COLOURS[name] for name in names]) + jitter).clip(0, 255)  # (T, 3)
    frames = background + coverage[..., None] * (colours[:, None, None] - background)  # (T, H, W, 3)
    frames = np.round(frames).astype(np.uint8)
    return frames[::-1] if backwards else frames


def write_motion_clips(output: Path, part: str, count: int, seed: int, num_frames: int, size: int) -> Path:
    """Write `count` clips, classes in turn, and `<part>.csv`, which is returned."""
    folder = output / part
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in tqdm(range(count), desc=f"{part}.csv", unit=" clips", disable=None):
        motion, name = index % len(MOTIONS), f"{part}/{index:06d}.mp4"
        frames = draw_motion((seed, PARTS.index(part), index), motion, num_frames, size)
        write_video(output / name, frames, fps=FPS, options=ENCODER)
        lines.append(f"{name},{motion}\n")
    path = output / f"{part}.csv"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Write clips in which motion alone decides the class.")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.csv, test.csv and the videos")
    parser.add_argument("--count", type=int, default=600, help="clips to train on; a fifth more to test")
    parser.add_argument("--frames", type=int, default=16, help="of a clip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of a frame in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other clips (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        if options.count < len(MOTIONS) or not 16 <= options.size <= 4096:
            raise ValueError(f"--count must be at least {len(MOTIONS)} and --size between 16 and 4096")
        for part, count in (("train", options.count), ("test", max(len(MOTIONS), options.count // 5))):
            given = (options.seed, options.frames, options.size)
            print(f"wrote {write_motion_clips(options.output, part, count, *given)}")
        (options.output / "classes.txt").write_text("\n".join(MOTIONS) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"motion_clips: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
