"""Clips of moving shapes with a caption each, for multi-modal VideoMamba: drawn with `synthetic_video`.

    python train/captioned_clips.py --output data --count 1200
    accelerate launch train/videomamba_multimodal.py --recipe tiny \\
        --data captions:data/train.json --output runs/captions
    python eval/retrieval.py --model runs/captions --data captions:data/test.json --output runs/captions/retrieval

writes `train.json` and `test.json` ({"video", "caption"}) with their videos. All captions of the test differ.
"""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from modeling_video_ma2mba.train.synthetic_video import COLOURS, DIRECTIONS, SHAPES, Scene, make_clip, write_video

PARTS = ("train", "test")
FPS = 8
ENCODER = {"preset": "veryfast", "crf": "18", "threads": "1"}
# The test takes up to half of the captions that there are.
COMBINATIONS = len(COLOURS) * len(SHAPES) * len(DIRECTIONS)


def caption_of(scenes: tuple[Scene, ...]) -> str:
    """Say what happens, as "A red circle moves left, then a blue square moves up."."""
    parts = [f"a {scene.colour} {scene.shape} moves {scene.direction}" for scene in scenes]
    text = ", then ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def write_captioned_clips(
    output: Path, part: str, count: int, seed: int, num_scenes: int, num_frames: int, size: int
) -> Path:
    """Write `count` clips and `<part>.json`, which is returned; the captions of a test differ.

    Args:
        part: one of `PARTS`. num_scenes: shapes of a clip, one after the other.
    """
    (output / part).mkdir(parents=True, exist_ok=True)
    rows: dict[str, str] = {}  # file -> caption
    draw = 0
    with tqdm(total=count, desc=f"{part}.json", unit=" clips", disable=None) as bar:
        while len(rows) < count:
            clip = make_clip((seed, PARTS.index(part), draw), num_frames, size, num_scenes=num_scenes)
            draw += 1
            caption, name = caption_of(clip.scenes), f"{part}/{part}{len(rows):06d}.mp4"
            if part == "test" and caption in rows.values():
                continue
            write_video(output / name, clip.frames, fps=FPS, options=ENCODER)
            rows[name] = caption
            bar.update()
    path = output / f"{part}.json"
    listed = [{"video": name, "caption": caption} for name, caption in rows.items()]
    path.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Write clips of moving shapes with a caption each.")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.json, test.json and the videos")
    parser.add_argument("--count", type=int, default=1200, help="clips to train on (default: %(default)s)")
    parser.add_argument("--test-count", type=int, default=48, help="clips to test with (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=1, help="shapes of a clip, in turn (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="of a clip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of a frame in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other clips (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        if options.count < 1 or not 16 <= options.size <= 4096:
            raise ValueError("--count must be at least 1 and --size between 16 and 4096")
        if options.scenes < 1 or not 2 <= options.test_count <= COMBINATIONS**options.scenes // 2:
            raise ValueError(
                f"--test-count {options.test_count}: captions of a test differ; with --scenes {options.scenes} give 2 "
                f"to {COMBINATIONS ** max(0, options.scenes) // 2}"
            )
        for part, count in (("train", options.count), ("test", options.test_count)):
            given = (options.seed, options.scenes, options.frames, options.size)
            print(f"wrote {write_captioned_clips(options.output, part, count, *given)}")
    except (ValueError, OSError) as error:
        print(f"captioned_clips: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
