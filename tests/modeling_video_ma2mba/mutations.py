"""Changes to files for the fuzz tests, and their loop: JSON with hostile things somewhere inside, bytes flipped."""

import json
import random
import resource
import time
from collections.abc import Iterator

import pytest

# What a file may be refused with.
CLEAR = (ValueError, OSError)
MOST_KIB = 300_000

HOSTILE = [
    None, True, False, -1, 0, 1, 2, 7, 3.5, -0.0, 1e-320, 1e308, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**400,
    float("nan"), float("inf"), -float("inf"), "", "x", "0", "-1", "NaN", "\0", "\ud800", "\u202e\x1b[2J", "ß" * 600,
    "../x", "/dev/zero", "a\nb", [], [[]], [1], [None], [-1, 2**63], {}, {"a": {}}, {"": 0}, {"model_type": "x"},
    {"__float__": "Infinity"},
]  # fmt: skip


def change(value, rng: random.Random):
    """Return a JSON value with one thing changed, left out, added or repeated, somewhere inside."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key, kind = rng.choice(list(value)), rng.random()
        if kind < 0.08:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.14:  # under another's name, or an unknown one
            return {**value, rng.choice([*value, "unknown", "", "__class__", key + "\0"]): value[key]}
        return {**value, key: change(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i, kind = rng.randrange(len(value)), rng.random()
        if kind < 0.15:
            return value[:i] + value[i + 1 :]
        if kind < 0.3:
            return value + [value[i]] * rng.choice([1, 1, 100])
        return [*value[:i], change(value[i], rng), *value[i + 1 :]]
    if type(value) is int and rng.random() < 0.3:
        return value + rng.choice([-1, 1, -8, 8, 2**32])
    if rng.random() < 0.02:
        return _nested(rng.choice([30, 300]))
    return rng.choice(HOSTILE)


def _nested(depth: int):
    value = 0
    for _ in range(depth):
        value = {"a": value} if depth % 20 else [value]
    return value


def write_json(value, rng: random.Random, times: int = 2) -> bytes:
    """Return JSON of `value` with up to `times` changes; now and then a name twice, broken text, or brackets alone."""
    for _ in range(rng.randint(1, times)):
        value = change(value, rng)
    text = json.dumps(value)
    kind = rng.random()
    if kind < 0.05 and text.startswith("{"):
        text = text[:-1] + (", " if len(text) > 2 else "") + text[1:]
    elif kind < 0.08:
        text = rng.choice(["[", '{"a":']) * rng.choice([10, 100_000])
    data = text.encode()
    return flip(data, rng, len(data)) if kind > 0.9 else data


def flip(data: bytes, rng: random.Random, reach: int) -> bytes:
    """Return `data` with a few of its first `reach` bytes changed, and now and then its end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(min(reach, len(changed)))] = rng.choice([0, 0xFF, 0x7F, rng.randrange(256)])
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def rounds(name: str, seconds: float) -> Iterator[tuple[str, random.Random]]:
    """Yield seeds, and a generator of each, until this process has worked for so many seconds."""
    end, i = time.process_time() + seconds, 0
    while i == 0 or time.process_time() < end:
        seed = f"{name}-{i}"
        yield seed, random.Random(seed)
        i += 1
    print(f"{name}: {i} rounds in {seconds} s")


def seconds(short: float) -> list:
    """Return the CPU seconds of a test as its parameters: those in CI, and longer in `make test-slow`."""
    return [
        pytest.param(short, id="short", marks=pytest.mark.timeout(300)),
        pytest.param(300, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ]


def fuzz(name, seconds, attempt, allowed=CLEAR, refused_share=4):
    """Call `attempt(rng)` with one generator after the other: it returns, or raises one of `allowed` with a text."""
    count = refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed, rng in rounds(name, seconds):
        count += 1
        try:
            attempt(rng)
        except allowed as error:
            refused += 1
            assert str(error), f"seed {seed!r}: {type(error).__name__} without a text"
        except BaseException as error:
            error.add_note(f"seed {seed!r}")
            raise
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < MOST_KIB, f"seed {seed!r}: {grown} KiB more than before"
    assert refused >= count // refused_share, f"{refused} of {count} refused: the changes do not reach deep"
