"""Files from strangers with hostile headers, for as long as there is time: clear errors, little memory.

Each failure names its seed; `random.Random(seed)` repeats its round.
"""

import importlib.util
import json
import struct
from pathlib import Path

import pytest

from modeling_video_ma2mba import RecurrentState, VideoMemory
from modeling_video_ma2mba.checkpoint_files import ConversionError, TensorFiles
from modeling_video_ma2mba.model_fingerprint import model_fingerprint
from modeling_video_ma2mba.video_memory import WatchedVideo

_spec = importlib.util.spec_from_file_location("mutations", Path(__file__).parent / "mutations.py")
mutations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutations)


def split(path):
    """Return header and numbers of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path, header, rng, numbers):
    """Write a safetensors file with this header; its length, the header's bytes and the numbers may be changed too."""
    length = (
        len(header) if rng.random() < 0.95 else rng.choice([0, 1, len(header) + 8, 2**24, 2**31, 2**63, 2**64 - 1])
    )
    if rng.random() < 0.1:
        numbers = numbers[: rng.randrange(len(numbers) + 1)] + b"\0" * rng.choice([0, 1, 1000])
    data = struct.pack("<Q", length) + header + numbers
    if rng.random() < 0.2:
        data = mutations.flip(data, rng, 8 + len(header))
    path.unlink(missing_ok=True)  # a mapped file must not change
    path.write_bytes(data)


def overlapping(header, rng):
    """Move one tensor's bytes to where another's are, or past the end, or so that they run backwards."""
    names = [name for name in header if name != "__metadata__"]
    one, other = rng.choice(names), rng.choice(names)
    begin, end = header[other]["data_offsets"]
    offsets = rng.choice([[begin, end], [begin + 4, end + 4], [end, begin], [begin, 2**62], [-4, end], [begin, begin]])
    return {**header, one: {**header[one], "data_offsets": offsets}}


@pytest.mark.parametrize("seconds", mutations.seconds(15))
def test_headers_of_checkpoints(video_model, tmp_path, seconds):
    video_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    header, numbers = split(path)

    def attempt(rng):
        changed = overlapping(header, rng) if rng.random() < 0.3 else header
        write(path, mutations.write_json(changed, rng), rng, numbers)
        files = TensorFiles(tmp_path)
        for name in files:
            files.read(name)
        files.close()

    mutations.fuzz("headers", seconds, attempt, allowed=ConversionError, refused_share=2)


@pytest.mark.parametrize("seconds", mutations.seconds(15))
def test_headers_of_states_and_memories(video_model, tmp_path, seconds):
    model, path = video_model(), tmp_path / "memory.safetensors"
    config = model.config
    state = model.model.language_model.new_state(1)
    state.seen_tokens = 3 + 4 * config.tokens_per_frame + 2
    watched = WatchedVideo("film.mp4", 1.0, frames=4, seconds=4.0, complete=True, text_tokens=2)
    VideoMemory(state, config, model_fingerprint(model), (5, 6, 7), "be brief", (watched,)).save(path)
    VideoMemory.load(path, model=model)
    whole, numbers = split(path)
    notes = json.loads(whole["__metadata__"]["metadata"])
    memory = json.loads(notes["video_memory"])

    def attempt(rng):
        header, kind = whole, rng.random()
        if kind < 0.5:  # the memory's own header stands as text in a text in the header
            inner = mutations.write_json(memory, rng).decode("utf-8", "replace")
            header = {
                **whole,
                "__metadata__": {**whole["__metadata__"], "metadata": json.dumps({"video_memory": inner})},
            }
        elif kind < 0.65:
            inner = mutations.write_json(notes, rng).decode("utf-8", "replace")
            header = {**whole, "__metadata__": {**whole["__metadata__"], "metadata": inner}}
        elif kind < 0.75:
            header = overlapping(whole, rng)
        text = json.dumps(header).encode() if kind < 0.75 else mutations.write_json(header, rng)
        write(path, text, rng, numbers)
        if rng.random() < 0.5:
            VideoMemory.load(path, model=model)
        else:
            RecurrentState.load(path, config)

    mutations.fuzz("memories", seconds, attempt)
