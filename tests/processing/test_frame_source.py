"""FrameSource: slices in any order, its file's life, and what keeps Trainer and accelerate away from it."""

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device

from modeling_video_ma2mba.processing.frame_source import FrameSource

FRAMES = np.random.default_rng(0).integers(0, 256, (11, 3, 6, 5), dtype=np.uint8)


def chunks():
    yield FRAMES[:4]
    yield torch.from_numpy(FRAMES[4:9])
    yield FRAMES[9:]


@pytest.fixture(params=["array", "tensor", "file"])
def source(request, tmp_path):
    if request.param == "file":
        made = FrameSource.create_file(chunks(), limit_bytes=FRAMES.nbytes, directory=tmp_path)
    else:
        made = FrameSource(torch.from_numpy(FRAMES) if request.param == "tensor" else FRAMES)
    with made:
        yield made


def test_slices_in_any_order(source):
    assert (len(source), tuple(source.shape), source.dtype) == (11, (11, 3, 6, 5), torch.uint8)
    bounds = [(8, 11), (0, 4), (4, 8), (0, 11), (-2, None), (None, None), (10, 99), (5, 5), (7, 3), (40, 50)]
    for start, stop in bounds:
        got = source[start:stop]
        assert isinstance(got, torch.Tensor) and got.dtype == torch.uint8
        assert torch.equal(got, torch.from_numpy(FRAMES[start:stop]))


def test_a_slice_is_a_copy(source):
    source[0:2].fill_(0)
    assert torch.equal(source[0:2], torch.from_numpy(FRAMES[0:2]))


def test_wrong_index(source):
    with pytest.raises(ValueError, match="step 2"):
        source[0:4:2]
    with pytest.raises(ValueError, match="step -1"):
        source[::-1]
    with pytest.raises(TypeError, match=r"frames\[i:i \+ 1\]"):
        source[3]
    with pytest.raises(TypeError):
        iter(source)


def test_closed(source):
    source.close()
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source[0:1]
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(source)


def test_stays_on_the_host(source):
    assert not isinstance(source, (torch.Tensor, Mapping, Sequence, tuple, list))
    assert not hasattr(source, "to") and not hasattr(source, "pin_memory")
    batch = send_to_device({"pixel_values_videos": source, "input_ids": torch.zeros(1)}, torch.device("meta"))
    assert batch["pixel_values_videos"] is source
    assert batch["input_ids"].device.type == "meta"


def test_pickled_copy_reads_and_owns_nothing(source):
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy[2:7], torch.from_numpy(FRAMES[2:7]))
    copy.close()
    assert torch.equal(source[2:7], torch.from_numpy(FRAMES[2:7]))


def test_file_goes_when_closed_or_forgotten(tmp_path):
    source = FrameSource.create_file(chunks(), limit_bytes=2**20, directory=tmp_path)
    assert os.path.getsize(source.path) == FRAMES.nbytes
    source.close()
    assert not os.listdir(tmp_path)
    source = FrameSource.create_file(chunks(), limit_bytes=2**20, directory=tmp_path)
    source[0:3]
    assert len(os.listdir(tmp_path)) == 1
    del source
    gc.collect()
    assert not os.listdir(tmp_path)


def test_file_goes_when_the_process_ends(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from modeling_video_ma2mba.processing.frame_source import FrameSource\n"
        "s = FrameSource.create_file([np.zeros((2, 3, 4, 4), np.uint8)], 1000, directory=sys.argv[1])\n"
        "assert s[0:1].sum() == 0 and len(__import__('os').listdir(sys.argv[1])) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert not os.listdir(tmp_path)


def _forget(source, queue):
    total = int(source[0:11].sum())
    source.close()
    del source
    gc.collect()
    queue.put(total)


def test_forked_child_does_not_remove_the_file(tmp_path):
    with FrameSource.create_file(chunks(), limit_bytes=2**20, directory=tmp_path) as source:
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_forget, args=(source, queue))
        child.start()
        child.join(60)
        assert child.exitcode == 0 and queue.get() == int(FRAMES.sum())
        assert torch.equal(source[0:11], torch.from_numpy(FRAMES))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([FRAMES, FRAMES[:, :, :3]], "fit all frames to one size"),
        ([FRAMES.astype(np.float32)], "must be uint8"),
        ([np.zeros((2, 6, 5, 3), np.uint8)], "channels before height"),
        ([], "at least one"),
        ([FRAMES, FRAMES], "limit_bytes"),
    ],
)
def test_refused_frames_leave_no_file(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        FrameSource.create_file(bad, limit_bytes=FRAMES.nbytes + 1, directory=tmp_path)
    assert not os.listdir(tmp_path)


def test_an_error_of_the_iterator_passes_and_leaves_no_file(tmp_path):
    def broken():
        yield FRAMES
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        FrameSource.create_file(broken(), limit_bytes=2**20, directory=tmp_path)
    assert not os.listdir(tmp_path)


def test_array_must_be_frames():
    with pytest.raises(ValueError, match=r"\(F, 3, H, W\)"):
        FrameSource(np.zeros((2, 6, 5, 3), np.uint8))
