"""Time, memory and answers by length of a watched video, beside a transformer whose cache keeps every token.

python benchmarks/watching.py --threads 1                     # the small model; a CPU is enough; about half an hour
python benchmarks/watching.py --device cuda --preset 3.1b     # random weights; needs a GPU of 24 GB or more

Every point has a process of its own. "watch" reads generated frames, one for each second of video: time (drawing them
is told apart), growth of the process, most bytes of tensors alive beyond the weights (on a CPU in a second watch,
because the meter takes time), bytes of the memory, and how long answers take. "transformer" is a Llama of the same
width, depth and number of parameters behind the same tower and projector: it reads the same frames in the same pieces
into transformers' `DynamicCache`, until a limit of time or bytes. What it did not read is extrapolated and says
so: bytes are known, the time of a piece is a line over the length of the cache, and so is that of an answer. Where the
cache alone would fit, it is filled with noise up to the length, and a piece and answers are measured there. "film" is
a real file, decoded and read. "speed" is prefill and decoding of the language model without and with torch.compile.
Weights are random: time and memory do not depend on them, and every answer has the same number of tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from ma_gc import now
from result import write_result
from torch._dynamo.exc import TorchDynamoException
from tqdm import tqdm
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from video_decoding import peak_rss_mib

from modeling_video_ma2mba import (
    VideoMa2mbaConfig,
    VideoMa2mbaForConditionalGeneration,
    VideoMa2mbaImageProcessor,
    VideoMa2mbaProcessor,
)
from modeling_video_ma2mba.frame_feed import picture_batches
from modeling_video_ma2mba.live_memory import MemoryMeter
from modeling_video_ma2mba.train.synthetic_video import numbered_frames, write_video
from modeling_video_ma2mba.train.tiny_model import build_tiny_model, build_tokenizer

# Frames, one a second. Of the large model the last two are 2 and 8 million tokens.
LENGTHS = {"tiny": (60, 600, 3_600, 21_600, 86_400), "3.1b": (60, 600, 13_889, 55_556)}
NUMBERS = 1 << 16  # that `numbered_frames` can show
QUESTION = "what colour is it ?"
ANSWER = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
FILM_SIZE, FILM_FPS = 224, 30
DECODED = 64  # tokens
FIRST_WORD = 7  # of the tokenizer: below are the ends of turns and the placeholders of frames
COMPILER = "inductor"
SEED = 0


# What is compared.


def build(preset: str, device: torch.device):
    """Return a model with random weights, float32 on a CPU and bfloat16 on a GPU, and its processor."""
    if preset == "tiny":
        model, processor = build_tiny_model(SEED)
    else:
        tokenizer = build_tokenizer()
        ids = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}
        config = VideoMa2mbaConfig.preset(preset, **ids)
        torch.manual_seed(SEED)
        with torch.device(device):
            model = VideoMa2mbaForConditionalGeneration(config)
        fitted = VideoMa2mbaImageProcessor(size=config.vision_config.image_size, frame_fit="pad")
        processor = VideoMa2mbaProcessor(fitted, tokenizer, tokens_per_frame=config.tokens_per_frame)
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval(), processor


def build_transformer(model) -> LlamaForCausalLM:
    """Return a transformer with random weights: width, depth, words and parameters of a model's language model."""
    text = model.config.text_config
    wanted = count(model.model.language_model) + (0 if text.tie_word_embeddings else model.lm_head.weight.numel())

    def config(intermediate_size: int) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=text.hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.hidden_size // text.head_dim,
            vocab_size=text.vocab_size,
            max_position_embeddings=2**24,
            tie_word_embeddings=text.tie_word_embeddings,
            pad_token_id=text.pad_token_id,
            bos_token_id=text.bos_token_id,
            eos_token_id=text.eos_token_id,
        )

    with torch.device("meta"):
        least = count(LlamaForCausalLM(config(1)))
    size = 1 + max(0, round((wanted - least) / (3 * text.hidden_size * text.num_hidden_layers)))
    torch.manual_seed(SEED)
    with torch.device(model.device):
        transformer = LlamaForCausalLM(config(size)).to(model.dtype).eval()
    if abs(count(transformer) / wanted - 1) > 0.05:
        raise ValueError(f"the transformer has {count(transformer):,} parameters, the language model {wanted:,}")
    return transformer


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class DrawnFrames:
    """An iterator over numbered frames, none of which is kept; `seconds` is the CPU time that drawing has taken."""

    def __init__(self, frames: int, size: int):
        self.frames, self.size, self.seconds = frames, size, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in range(0, self.frames, NUMBERS):
            drawn = numbered_frames(min(NUMBERS, self.frames - first), self.size, self.size)
            while True:
                start = time.thread_time()
                frame = next(drawn, None)
                self.seconds += time.thread_time() - start
                if frame is None:
                    break
                yield frame


# Points: each takes the options and its number of frames, runs in a fresh process and returns a row.


def measure_watch(options: argparse.Namespace, frames: int) -> dict:
    """Watch generated frames and ask."""
    device = torch.device(options.device)
    model, processor = build(options.preset, device)
    size = model.config.vision_config.image_size

    def watch():
        drawn = DrawnFrames(frames, size)
        start = now(device)
        memory = model.watch(drawn, processor=processor)
        return memory, now(device) - start, drawn.seconds

    def ask(memory) -> float:
        start = now(device)
        model.ask(memory, QUESTION, processor=processor, **ANSWER)
        return now(device) - start

    ask(model.watch(DrawnFrames(model._frames_at_once, size), processor=processor))  # what the first call costs
    restart_peak_rss()
    before = peak_rss_mib()
    # A GPU counts its bytes at no cost; on a CPU every operation is watched, which has to stay out of the time.
    with MemoryMeter(device) if device.type == "cuda" else nullcontext() as meter:
        memory, seconds, drawing = watch()
    growth = (peak_rss_mib() - before) * 2**20
    first, *later = [ask(memory) for _ in range(1 + options.repeats)]
    if meter is None:
        with MemoryMeter(device) as meter:
            watch()
    return {
        "tokens": frames * model.config.tokens_per_frame,
        "seconds": seconds,
        "drawing_cpu_seconds": drawing,
        "peak_tensor_bytes": meter.peak,
        "rss_growth_bytes": round(growth),
        "memory_bytes": memory.nbytes,
        "weight_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "first_answer_seconds": first,
        "answer_seconds": later,
    }


def restart_peak_rss() -> None:
    """Let Linux count this process's peak memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


@torch.no_grad()
def measure_transformer(options: argparse.Namespace, frames: int) -> dict:
    """Read generated frames into a growing cache until a limit, and ask; `extrapolate` completes the row."""
    device = torch.device(options.device)
    model, processor = build(options.preset, device)
    transformer = build_transformer(model)
    text, per_frame, piece = transformer.config, model.config.tokens_per_frame, model._frames_at_once
    element = transformer.lm_head.weight.element_size()
    token_bytes = 2 * text.num_hidden_layers * text.hidden_size * element
    question = torch.tensor([processor.tokenizer(QUESTION).input_ids], device=device)

    def read(cache: DynamicCache, pictures: np.ndarray) -> float:
        start = now(device)
        features = model.get_video_features(torch.from_numpy(pictures)[None]).pooler_output
        transformer.model(inputs_embeds=features.flatten(0, 1)[None], past_key_values=cache, use_cache=True)
        return now(device) - start

    def ask(cache: DynamicCache) -> float:
        length = cache.get_seq_length()
        ids = torch.cat([question.new_ones(1, length), question], dim=1)
        start = now(device)
        transformer.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True, **ANSWER
        )
        seconds = now(device) - start
        cache.crop(length - cache.get_seq_length())  # that many tokens off the end
        return seconds

    pictures = np.zeros((piece, 3, *2 * [model.config.vision_config.image_size]), np.uint8)
    warm = DynamicCache(config=text)
    read(warm, pictures)
    ask(warm)

    cache, pieces, start = DynamicCache(config=text), [], now(device)
    drawn = DrawnFrames(frames, model.config.vision_config.image_size)
    with tqdm(total=frames, desc=f"transformer, {frames:,} frames", mininterval=1, disable=None) as bar:
        for batch in picture_batches(processor, drawn, 1.0, piece):
            pieces.append((cache.get_seq_length(), read(cache, batch.frames)))
            bar.update(len(batch.frames))
            is_full = (cache.get_seq_length() + piece * per_frame) * token_bytes > options.cache_limit * 1e9
            if now(device) - start > options.time_limit or is_full:
                break
    # A shorter last piece says nothing about the others, and thousands would only make the file long.
    pieces = [p for p in pieces if p[0] + piece * per_frame <= frames * per_frame]
    pieces = pieces[:: 1 + len(pieces) // 200]
    row = {
        "tokens": frames * per_frame,
        "frames_read": cache.get_seq_length() // per_frame,
        "seconds_read": now(device) - start,
        "piece_tokens": piece * per_frame,
        "cache_bytes": frames * per_frame * token_bytes,
        "parameters": count(transformer),
        "parameters_of_ours": count(model.model.language_model),
    }
    if row["cache_bytes"] <= options.cache_limit * 1e9:
        if missing := frames * per_frame - cache.get_seq_length():
            fill(cache, text, missing, transformer)
            length = cache.get_seq_length()
            for _ in range(3):
                pieces.append((length, read(cache, pictures)))
                cache.crop(length - cache.get_seq_length())
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        if held != row["cache_bytes"]:
            raise RuntimeError(f"the cache holds {held:,} bytes, expected {row['cache_bytes']:,}")
        row["first_answer_seconds"], *row["answer_seconds"] = [ask(cache) for _ in range(1 + options.repeats)]
    return row | {"pieces": pieces}


def fill(cache: DynamicCache, text: LlamaConfig, tokens: int, like: torch.nn.Module) -> None:
    """Append noise to every layer of a cache."""
    shape = (1, text.num_key_value_heads, tokens, text.hidden_size // text.num_attention_heads)
    for layer in range(text.num_hidden_layers):
        keys, values = (torch.randn(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        cache.update(keys, values, layer)


def measure_film(options: argparse.Namespace, frames: int) -> dict:
    """Write a film of `frames` seconds, then decode and watch it."""
    device = torch.device(options.device)
    model, processor = build(options.preset, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        total = frames * FILM_FPS
        pictures = numbered_frames(total, FILM_SIZE, FILM_SIZE)
        pictures = tqdm(pictures, total=total, desc="writing a film", mininterval=1, disable=None)
        write_video(path, pictures, FILM_FPS, options={"preset": "ultrafast"})
        model.watch(path, processor=processor, end=1.0)
        start = now(device)
        memory = model.watch(path, processor=processor)
        seconds = now(device) - start
    if memory.frames_seen != frames:
        raise RuntimeError(f"{memory.frames_seen} frames of a film of {frames} seconds were seen")
    return {"seconds": seconds, "size": FILM_SIZE, "film_fps": FILM_FPS, "codec": "libx264"}


@torch.no_grad()
def measure_speed(options: argparse.Namespace, frames: int) -> dict:
    """Read `--prefill` tokens of text, then decode one by one: as it is, and, in "compiled", with compiled layers."""
    device = torch.device(options.device)
    model, _ = build(options.preset, device)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(FIRST_WORD, model.config.text_config.vocab_size, (1, options.prefill), generator=generator).to(
        device
    )

    def prefill():
        start = now(device)
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return out.past_key_values, now(device) - start

    def decode(state) -> tuple[list[int], float]:
        state, token, said = state.fork(), ids[:, -1:], []
        start = now(device)
        for _ in range(DECODED):
            out = model(input_ids=token, past_key_values=state, use_cache=True)
            state, token = out.past_key_values, out.logits[:, -1:, FIRST_WORD:].argmax(-1) + FIRST_WORD
            said.append(token)
        return torch.cat(said, dim=1)[0].tolist(), now(device) - start

    prefill()
    times = [prefill() for _ in range(options.repeats)]
    state = times[0][0]
    decode(state)
    plain = [decode(state) for _ in range(options.repeats)]
    row = {
        "tokens": options.prefill,
        "prefill_tokens_per_second": options.prefill / statistics.median(seconds for _, seconds in times),
        "decode_tokens_per_second": DECODED / statistics.median(seconds for _, seconds in plain),
    }
    try:
        start = now(device)
        for layer in model.model.language_model.layers:
            layer.compile(backend=COMPILER)
        decode(state)
        row["compile_seconds"] = now(device) - start
        compiled = [decode(state) for _ in range(options.repeats)]
    except TorchDynamoException as error:  # what was measured without it stays
        return row | {"compile_failure": f"{type(error).__name__}: {error}"[:500]}
    row["compiled_decode_tokens_per_second"] = DECODED / statistics.median(seconds for _, seconds in compiled)
    return row | {"compiled_says_the_same": compiled[0][0] == plain[0][0]}


POINTS = {
    "watch": measure_watch,
    "transformer": measure_transformer,
    "film": measure_film,
    "speed": measure_speed,
}


def measure(options: argparse.Namespace, kind: str, frames: int) -> dict:
    """Return the row of one point; a device that is too small is told in it."""
    if options.threads:
        torch.set_num_threads(options.threads)
    row = {"kind": kind, "frames": frames, "threads": torch.get_num_threads()}
    try:
        return row | POINTS[kind](options, frames)
    except torch.OutOfMemoryError:
        return row | {"failure": "out of memory"}


def measure_in_own_process(arguments: list[str], kind: str, frames: int) -> dict:
    """Return the row of one point; why one failed is on the terminal."""
    command = [sys.executable, __file__, *arguments, "--point", kind, str(frames)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"kind": kind, "frames": frames, "failure": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


# Joining.


def extrapolate(rows: list[dict]) -> None:
    """Add `seconds`, `answer` and `extrapolated` (names of what was not measured) to the rows of the transformer.

    The time of a piece of tokens is a + b x tokens in the cache, fitted over all rows, so that reading takes a
    sum that is quadratic in the length; the time of an answer likewise is a line.
    """
    rows = [row for row in rows if row["kind"] == "transformer" and "failure" not in row]
    pieces = [tuple(piece) for row in rows for piece in row["pieces"]]
    answers = [(row["tokens"], statistics.median(row["answer_seconds"])) for row in rows if "answer_seconds" in row]
    for row in rows:
        row["extrapolated"] = []
        if row["frames_read"] == row["frames"]:
            row["seconds"] = row["seconds_read"]
        elif line := _line(pieces):
            cached = np.arange(0, row["tokens"], row["piece_tokens"])
            row["seconds"] = float((line[0] + line[1] * cached).sum())
            row["extrapolated"].append("seconds")
        if "answer_seconds" in row:
            row["answer"] = statistics.median(row["answer_seconds"])
        elif line := _line(answers):
            row["answer"] = float(line[0] + line[1] * row["tokens"])
            row["extrapolated"].append("answer")


def _line(points: list[tuple[float, float]]) -> tuple[float, float] | None:
    """Return a and b of y = a + b x by least squares; None without two different x."""
    if len({x for x, _ in points}) < 2:
        return None
    slope, start = np.polyfit(*zip(*points), 1)
    return float(start), float(slope)


def describe(row: dict) -> str:
    """Return a line for the terminal."""
    words = [f"{row['kind']:<12} {row['frames']:>7,} s of video"]
    if "failure" in row:
        return f"{words[0]}  {row['failure']}"
    if "prefill_tokens_per_second" in row:
        names = ("prefill", "decode", "compiled_decode")
        return "  ".join(["speed", *(f"{n} {row.get(f'{n}_tokens_per_second', 0):,.0f} tokens/s" for n in names)])
    seconds = row.get("seconds", row.get("seconds_read"))
    words.append(f"{seconds:.1f} s, {row.get('frames_read', row['frames']) / seconds:,.0f} x real time")
    if row["kind"] == "watch":
        words.append(f"tensors {row['peak_tensor_bytes'] / 1e6:.2f} MB, memory {row['memory_bytes'] / 1e6:.2f} MB")
        words.append(f"process {row['rss_growth_bytes'] / 1e6:+.1f} MB")
        words.append(f"drawing {row['drawing_cpu_seconds'] / seconds:.0%}")
    if row["kind"] == "transformer":
        words.append(f"cache {row['cache_bytes'] / 1e6:,.1f} MB, {row['frames_read']:,} frames read")
    if "answer_seconds" in row:
        words.append(f"answer {statistics.median(row['answer_seconds']):.3f} s")
    return "  ".join(words)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=LENGTHS, default="tiny", help="the small model that ships, or the paper's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", help="frames, one a second (default: 1 min to 24 h)")
    parser.add_argument("--film-seconds", type=int, default=600, help="of the real file; 0: none (default: 600)")
    parser.add_argument("--prefill", type=int, default=16_384, help="tokens (default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds the transformer may read, a length")
    parser.add_argument("--cache-limit", type=float, default=4, help="GB of the transformer's cache (default: 4)")
    parser.add_argument("--repeats", type=int, default=9, help="answers, and times of prefill and decoding")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--point", nargs=2, metavar=("KIND", "FRAMES"), help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> None:
    arguments, parser = sys.argv[1:] if arguments is None else arguments, build_parser()
    options = parser.parse_args(arguments)
    if options.point:
        kind, frames = options.point
        print(json.dumps(measure(options, kind, int(frames))))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no GPU; use --device cpu")
    lengths = options.lengths or LENGTHS[options.preset]
    points = [(kind, frames) for kind in ("watch", "transformer") for frames in lengths]
    points += [("film", options.film_seconds)] * (options.film_seconds > 0) + [("speed", 0)]
    rows = []
    for kind, frames in points:
        rows.append(measure_in_own_process(arguments, kind, frames))
        print(describe(rows[-1]), flush=True)
    extrapolate(rows)
    settings = {name: value for name, value in vars(options).items() if name != "point"}
    settings |= {"lengths": list(lengths), "fps": 1.0, "question": QUESTION, "answer": ANSWER, "seed": SEED}
    settings |= {"threads": options.threads or os.environ.get("OMP_NUM_THREADS"), "decoded": DECODED}
    print(write_result(f"watching_{options.preset.replace('.', '')}", settings, rows))


if __name__ == "__main__":
    main()
