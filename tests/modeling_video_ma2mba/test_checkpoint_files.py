"""Checkpoints from strangers: clear errors, nothing outside the folder, nothing allocated before the checks."""

import importlib.util
import json
import os
import random
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_video_ma2mba.checkpoint_files import ConversionError, TensorFiles, read_json, read_tensors
from modeling_video_ma2mba.convert_llava_mamba import convert_llava_mamba


def _sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


published, mutations = _sibling("llava_mamba_folder"), _sibling("mutations")


def write_header(path, header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape=(4,), begin=0, end=16, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry((2**40, 2**40))}, "damaged|no parameter has"),
        ({"a": entry((2**62, 4))}, "no parameter has"),
        ({"a": entry((-4,))}, "no parameter has"),
        ({"a": entry((4.0,))}, "no parameter has"),
        ({"a": entry((True, 4))}, "no parameter has"),
        ({"a": entry("4")}, "no parameter has"),
        ({"a": entry((1,) * 70)}, "no parameter has"),
        ({"a": entry((2**40, 0), 0, 0)}, "no parameter has"),
        ({"a": entry((8,), 0, 32)}, "damaged"),
        ({"a": entry((4,), 4, 20)}, "damaged"),
        ({"a": entry((4,)), "b": entry((4,))}, "damaged"),
        ({"a": entry((2,), 0, 8), "b": entry((2,), 4, 12)}, "damaged"),
        ({"a": entry(dtype="F4")}, "has dtype 'F4'"),
        ({"a": entry(dtype=["F32"])}, "has dtype"),
        ({"a": 3}, "has dtype None"),
        ({"a\x1b[2J": entry()}, "no name of a parameter"),
        ({"a" * 600: entry()}, "no name of a parameter"),
        ([], "holds a list"),
        (b'{"a":1,"a":1}', "holds a name twice"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_hostile_headers(tmp_path, header, message):
    write_header(tmp_path / "model.safetensors", header)
    with pytest.raises(ConversionError, match=message) as error:
        TensorFiles(tmp_path)
    assert "model.safetensors" in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 700


@pytest.mark.parametrize("length", [2**63, 2**40, 16 << 20 | 1, 100])
def test_header_lengths_are_checked_before_reading(tmp_path, length):
    write_header(tmp_path / "model.safetensors", b"{}", length=length)
    with pytest.raises(ConversionError, match=f"its header claims {length} bytes"):
        TensorFiles(tmp_path)
    # A file that is as large as it says, in holes that take no space: refused unread.
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 32)
    if length != 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ConversionError, match=f"its header claims {length} bytes"):
            TensorFiles(tmp_path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB


def test_links_that_leave_the_folder(tmp_path):
    folder, secret = tmp_path / "folder", tmp_path / "secret.safetensors"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, secret)
    (tmp_path / "secret.json").write_text("{}")
    (folder / "model.safetensors").symlink_to(secret)
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ConversionError, match=r"is a link to .*secret\.safetensors, outside its folder"):
        TensorFiles(folder)
    with pytest.raises(ConversionError, match=r"is a link to .*secret\.json, outside its folder"):
        read_json(folder / "config.json")
    (folder / "model.safetensors").unlink()
    (folder / "part.safetensors").symlink_to(secret)
    index = {"weight_map": {"a": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="outside its folder"):
        TensorFiles(folder)
    # Within the folder, and as the Hub's cache has it.
    (folder / "part.safetensors").unlink()
    os.replace(secret, folder / "real.safetensors")
    (folder / "part.safetensors").symlink_to("real.safetensors")
    assert torch.equal(read_tensors(folder)["a"], torch.ones(2))
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "main").mkdir(parents=True)
    os.replace(folder / "real.safetensors", cache / "blobs" / "0123")
    (cache / "snapshots" / "main" / "model.safetensors").symlink_to("../../blobs/0123")
    assert torch.equal(read_tensors(cache / "snapshots" / "main")["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../x.safetensors"}, "not a plain file name"),
        ({"a": "/etc/passwd"}, "not a plain file name"),
        ({"a": "..\\x.safetensors"}, "not a plain file name"),
        ({"a": ["x"]}, "not a plain file name"),
        ({"a": None}, "not a plain file name"),
        ({"a": ".."}, "which is missing"),
        ({"a": "x\0.safetensors"}, "which is missing"),
        ({"a": "gone.safetensors"}, "which is missing"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, r"repeats \['a'\]"),
        ({"a": "one.safetensors", "c": "one.safetensors"}, "1 tensors that no shard holds, e.g. 'c'"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_hostile_indexes(tmp_path, weight_map, message):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "two.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConversionError, match=message):
        TensorFiles(tmp_path)


def test_hostile_bins(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for tensors, message in (
        ({"a": torch.ones(1).expand(10**12)}, "has not so many numbers"),
        ({"a": torch.ones(3).to_sparse()}, "has not so many numbers"),
        ({7: torch.ones(3)}, "no name of a parameter"),
        ({"a": "text"}, "more than named tensors"),
    ):
        torch.save(tensors, path)
        with pytest.raises(ConversionError, match=message):
            TensorFiles(tmp_path)
    torch.save({"a": torch.ones(3)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data + b"\0" * (1 << 20 if name.endswith("data.pkl") else 0))
    with pytest.raises(ConversionError, match="packed parts"):
        TensorFiles(tmp_path)
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConversionError, match=r"torch 1\.6 or newer"):
        TensorFiles(tmp_path)


def test_json_is_limited(tmp_path):
    (tmp_path / "config.json").write_text(" " * (17 << 20))
    with pytest.raises(ConversionError, match="at most 16777216 are read"):
        read_json(tmp_path / "config.json")


def check_refused_or_converted(folder, out):
    try:
        convert_llava_mamba(folder, out)
    except ConversionError:
        return False
    return True


# More in `make test-slow`; a round takes 5 to 200 ms.
ROUNDS = [pytest.param(40, id="short"), pytest.param(2000, id="long", marks=pytest.mark.slow)]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_fuzzed_weights(tiny_tokenizer, tmp_path, rounds, form):
    """Bytes of headers and pickles are changed, cut off and repeated; entries of headers as well."""
    folder = published.write_folder(tmp_path / "folder", published.make_tensors(), tiny_tokenizer, form=form)
    path = folder / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    whole, rng, refused = path.read_bytes(), random.Random(1), 0
    length = struct.unpack("<Q", whole[:8])[0] if form == "safetensors" else 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(rounds):
        data = bytearray(whole)
        if form == "safetensors" and rng.random() < 0.5:
            write_header(path, mutations.change(json.loads(whole[8 : 8 + length]), rng), whole[8 + length :])
        else:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(8 + length)] = rng.randrange(256)
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            path.unlink()  # a mapped file must not shrink
            path.write_bytes(data)
        refused += not check_refused_or_converted(folder, tmp_path / f"out{i % 2}")
    assert refused > rounds // 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
