"""Throughput and memory of VideoMamba-Ti beside a ViT with joint space-time attention, by frames of a clip.

python benchmarks/videomamba_efficiency.py --work runs/efficiency             # CPU, batch 1, 8 to 64 frames at 224 px
python benchmarks/videomamba_efficiency.py --work runs/efficiency-gpu --device cuda --batch 32    # bf16 autocast

The question of VideoMamba's Fig. 1 (arXiv 2403.06977): forward without gradients, 400 classes, random pixels that are
on the device already. Its "TimeSformer-Ti" attends over all patches of all frames at once, in the size of DeiT-Ti:
transformers' `VideoMAEForVideoClassification` of that size is it. It runs twice: "attention" stores the matrix of
scores, as the paper's did; "fused attention" is PyTorch's scaled_dot_product_attention, which need not.

Each cell (a model and a number of frames) has a process of its own and a file in `--work`: a run that was stopped goes
on where it was, one whose settings differ is refused. On a GPU a batch that does not fit is halved until it does, and
the row says which one it was. Seconds are medians of a forward after a warm-up; memory is the most bytes of tensors
alive beyond weights and pixels, on a CPU from a forward of its own, because the meter takes time. Before anything is
measured, both forms of attention have to agree, and VideoMamba's scan with the plain recurrence. Weights are random.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from result import describe_hardware, write_result
from tqdm import tqdm
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaForVideoClassification
from modeling_video_ma2mba.live_memory import MemoryMeter
from modeling_video_ma2mba.selective_scan import selective_scan_chunked, selective_scan_recurrence

MODELS = ("videomamba", "attention", "fused attention")
FRAMES = (8, 16, 24, 32, 40, 48, 56, 64)
CLASSES = 400
PATCH = 16
SIZES = {  # width, VideoMamba's blocks, the ViT's layers and heads (DeiT-Ti)
    "ti": (192, 24, 12, 3),
    "tiny": (32, 2, 1, 2),  # for tests
}
SEED = 0
# What a cell depends on, beside its model and frames.
SETTINGS = ("size", "image_size", "batch", "device", "threads", "repeats")


def build(name: str, size: str, frames: int, image_size: int) -> torch.nn.Module:
    """Return one of `MODELS` with random weights, in eval mode."""
    width, blocks, layers, heads = SIZES[size]
    torch.manual_seed(SEED)
    if name == "videomamba":
        config = VideoMambaConfig(
            hidden_size=width,
            num_hidden_layers=blocks,
            patch_size=PATCH,
            image_size=image_size,
            num_frames=frames,
            num_labels=CLASSES,
        )
        return VideoMambaForVideoClassification(config).eval()
    config = VideoMAEConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=PATCH,
        image_size=image_size,
        num_frames=frames,
        tubelet_size=1,
        num_labels=CLASSES,
        attn_implementation="eager" if name == "attention" else "sdpa",
    )
    return VideoMAEForVideoClassification(config).eval()


def forward(name: str, model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, classes) of clips (B, F, 3, H, W)."""
    return model(**{"pixel_values_videos" if name == "videomamba" else "pixel_values": pixels}).logits


@torch.no_grad()
def check(size: str) -> None:
    """Raise RuntimeError unless what is compared computes what it says."""
    pixels = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(SEED))
    plain, fused = (forward(name, build(name, size, 2, 32), pixels) for name in MODELS[1:])
    if not torch.allclose(plain, fused, atol=1e-4):
        raise RuntimeError(f"the two forms of attention differ by {(plain - fused).abs().max():.2g}")
    torch.manual_seed(SEED)
    x, delta, B, C = (torch.randn(1, 100, n, dtype=torch.float64) for n in (8, 8, 4, 4))
    A = -torch.rand(8, 4, dtype=torch.float64)
    difference = selective_scan_chunked(x, delta, A, B, C) - selective_scan_recurrence(x, delta, A, B, C)
    if difference.abs().max() > 1e-10:
        raise RuntimeError(f"the scan differs from the recurrence by {difference.abs().max():.2g}")


@torch.no_grad()
def measure(options: argparse.Namespace, name: str, frames: int) -> dict:
    """Return the row of one cell."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = build(name, options.size, frames, options.image_size).to(device)
    row = {"model": name, "frames": frames, "parameters": sum(p.numel() for p in model.parameters())}
    batch = options.batch
    while True:
        pixels = torch.randn(batch, frames, 3, options.image_size, options.image_size, device=device)
        try:
            return row | {"batch": batch} | _measure(options, name, model, pixels)
        except torch.OutOfMemoryError:
            if batch == 1:
                return row | {"batch": batch, "failure": "out of memory"}
            batch //= 2


def _measure(options: argparse.Namespace, name: str, model: torch.nn.Module, pixels: torch.Tensor) -> dict:
    on_gpu = pixels.is_cuda
    with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
        with MemoryMeter(pixels.device) as meter:  # the warm-up
            logits = forward(name, model, pixels)
            peak = meter.peak
        if not torch.isfinite(logits).all():
            raise RuntimeError(f"{name}: logits that are no numbers")
        seconds = []
        for _ in range(options.repeats):
            start = _now(on_gpu)
            forward(name, model, pixels)
            seconds.append(_now(on_gpu) - start)
    return {
        "seconds": seconds,
        "clips_per_second": len(pixels) / statistics.median(seconds),
        "peak_tensor_bytes": peak,
    }


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_in_own_process(arguments: list[str], name: str, frames: int) -> dict:
    """Return the row of one cell; why one failed is on the terminal."""
    command = [sys.executable, __file__, *arguments, "--cell", name, str(frames)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"model": name, "frames": frames, "failure": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def settings_of(options: argparse.Namespace) -> dict:
    """Return what all cells of a folder share."""
    return {name: getattr(options, name) for name in SETTINGS} | {"hardware": describe_hardware()[1]}


def keep_settings(options: argparse.Namespace) -> None:
    """Write the settings into `--work`; raises ValueError where it holds cells of others."""
    options.work.mkdir(parents=True, exist_ok=True)
    path, settings = options.work / "settings.json", settings_of(options)
    if not path.is_file():
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept != settings:
        names = ", ".join(name for name in settings if kept.get(name) != settings[name])
        raise ValueError(f"{options.work} holds cells with other settings ({names}): give another --work")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the cells that are done")
    parser.add_argument("--frames", type=int, nargs="+", default=list(FRAMES), help="default: 8 to 64")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--size", choices=SIZES, default="ti", help="default: %(default)s")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="clips (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU (default: torch's own)")
    parser.add_argument("--repeats", type=int, default=5, help="forwards that are timed (default: %(default)s)")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    return parser


def run(options: argparse.Namespace, arguments: list[str]) -> None:
    """Measure the cells that are not done, then write the result; raises ValueError for options that do not fit."""
    if options.cell:
        print(json.dumps(measure(options, options.cell[0], int(options.cell[1]))))
        return
    for name in ("batch", "threads", "repeats", "image_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if options.image_size % PATCH or min(options.frames) < 1:
        raise ValueError(f"--image-size must be a multiple of {PATCH}, and --frames at least 1")
    keep_settings(options)
    check(options.size)
    rows = []
    # The short ones first: what takes long is at the end.
    cells = [(name, frames) for frames in sorted(options.frames) for name in options.models]
    for name, frames in tqdm(cells, desc="cells", disable=None):
        path = options.work / f"{name.replace(' ', '-')}_{frames}.json"
        if not path.is_file():
            row = measure_in_own_process(arguments, name, frames)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(row) + "\n", encoding="utf-8")
            part.replace(path)
        rows.append(json.loads(path.read_text(encoding="utf-8")))
        print(describe(rows[-1]), flush=True)
    # A cell that failed is tried again the next time.
    for (name, frames), row in zip(cells, rows):
        if row.get("failure", "").startswith("exit code"):
            (options.work / f"{name.replace(' ', '-')}_{frames}.json").unlink()
    print(f"wrote {write_result('videomamba_efficiency', settings_of(options), rows)}")


def describe(row: dict) -> str:
    """Return a line for the terminal."""
    start = f"{row['model']:<16} {row['frames']:>3} frames"
    if "failure" in row:
        return f"{start}  {row['failure']}"
    return (
        f"{start}  {row['clips_per_second']:.3g} clips/s at batch {row['batch']}, "
        f"{row['peak_tensor_bytes'] / 1e6:,.0f} MB"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        run(build_parser().parse_args(arguments), arguments)
    except (ValueError, OSError) as error:
        print(f"videomamba_efficiency: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
