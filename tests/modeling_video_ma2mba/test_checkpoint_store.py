"""The stack of checkpoints gives back what it took, and its host memory follows what is in it."""

import gc
import itertools
import weakref

import pytest
import torch

from modeling_video_ma2mba import checkpoint_store
from modeling_video_ma2mba.checkpoint_store import CheckpointStack, HostSlabs

CPU = torch.device("cpu")


def entry(seed, *shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("on_host", [False, True])
def test_the_last_in_is_the_first_out(on_host):
    stack, expected = CheckpointStack(on_host, CPU), []
    order = [1, 1, 1, -1, 1, -1, -1, 1, 1, -1, -1, -1]  # push and pop may alternate
    for i, step in enumerate(order):
        if step == 1:
            expected.append(entry(i, (3, 5), (2, i + 1, 4), (1,)))
            stack.push(expected[-1])
        else:
            got, want = stack.pop(), expected.pop()
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert len(stack) == len(expected)
        waiting = sum(tensor.nbytes for tensors in expected for tensor in tensors)
        assert stack.host_bytes == (waiting if on_host else 0)
    assert len(stack) == 0


@pytest.mark.parametrize("on_host", [False, True])
def test_empty_stacks_have_nothing_to_give(on_host):
    with pytest.raises(IndexError):
        CheckpointStack(on_host, CPU).pop()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_host_keeps_every_bit(dtype):
    stack = CheckpointStack(True, CPU)
    tensors = [*entry(0, (3, 7), (5,), dtype=dtype), torch.tensor([float("nan"), -0.0, float("inf")], dtype=dtype)]
    views = [tensors[0].t(), tensors[0][:, ::2], torch.empty(0, 4, dtype=dtype), torch.tensor(3.0, dtype=dtype)]
    stack.push([*tensors, *views])
    for got, want in zip(stack.pop(), [*tensors, *views], strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        assert torch.equal(got.reshape(-1).view(torch.uint8), want.reshape(-1).view(torch.uint8))


def test_the_host_copy_is_independent_of_its_source():
    stack = CheckpointStack(True, CPU)
    (source,) = entry(0, (4, 4))
    before = source.clone()
    stack.push([source])
    source.zero_()
    stack.push(entry(1, (4, 4)))
    top = stack.pop()
    (below,) = stack.pop()
    stack.push(entry(2, (4, 4)))  # takes the memory of what was popped
    assert torch.equal(below, before) and torch.equal(top[0], entry(1, (4, 4))[0])


def test_sources_on_the_host_are_let_go():
    stack = CheckpointStack(True, CPU)
    (source,) = entry(0, (64,))
    alive = weakref.ref(source)
    stack.push([source])
    del source
    gc.collect()
    assert alive() is None


# Slabs


def test_pieces_do_not_overlap(monkeypatch):
    monkeypatch.setattr(checkpoint_store, "_SLAB_BYTES", 1024)
    slabs = HostSlabs(pinned=False)
    sources = entry(0, *[(size,) for size in (1, 7, 16, 17, 100, 255, 256, 257, 3, 600)])
    pieces = [slabs.like(source) for source in sources]
    for piece, source in zip(pieces, sources):
        piece.copy_(source)
    assert all(torch.equal(piece, source) for piece, source in zip(pieces, sources))
    starts = sorted((piece.data_ptr(), piece.nbytes) for piece in pieces)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(starts))


def test_memory_that_was_given_back_is_used_again(monkeypatch):
    monkeypatch.setattr(checkpoint_store, "_SLAB_BYTES", 4096)
    slabs, sizes = HostSlabs(pinned=False), []
    allocate = slabs._allocate
    slabs._allocate = lambda size: sizes.append(size) or allocate(size)
    like = torch.empty(100)
    for _ in range(50):
        pieces = [slabs.like(like) for _ in range(6)]
        slabs.give_back(pieces[3:])
        slabs.give_back(pieces[:3])
    assert sum(sizes) <= 8 * 100 * 4 * 6, "each round allocates anew"
    pieces = [slabs.like(like) for _ in range(200)]
    slabs.give_back(pieces)
    held = sum(len(slab) for slab, _ in slabs.slabs)
    assert held <= 2 * 4096, "an emptied stack holds on to its memory"


def test_little_is_wasted(monkeypatch):
    monkeypatch.setattr(checkpoint_store, "_SLAB_BYTES", 2**20)
    for size in (1, 1000, 300_000, 3_000_000):
        slabs, like = HostSlabs(pinned=False), torch.empty(size, dtype=torch.uint8)
        count = max(1, 20_000_000 // max(size, 1000))
        for _ in range(count):
            slabs.like(like)
        held, asked = sum(len(slab) for slab, _ in slabs.slabs), count * max(size, 64)
        assert held <= 1.5 * asked + 2**20, (size, held, asked)
    small = HostSlabs(pinned=False)
    small.like(torch.empty(10))
    assert sum(len(slab) for slab, _ in small.slabs) <= 4096, "a small model takes a large slab"


# CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_to_and_from_a_device_are_ordered():
    device = torch.device("cuda")
    stack, expected = CheckpointStack(True, device), []
    for i in range(8):
        tensors = [torch.randn(2**22, device=device).sort().values, torch.full((2**20,), float(i), device=device)]
        expected.append([tensor.cpu() for tensor in tensors])
        stack.push(tensors)
        del tensors
        torch.full((2**22,), -1.0, device=device)  # lands in what was freed
    for want in reversed(expected):
        got = stack.pop()
        assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    assert len(stack) == 0 and stack.host_bytes == 0
