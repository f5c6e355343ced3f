"""Frames that come in while the model watches: sampled as a file's, bounded, nothing lost in silence."""

import threading
import time

import numpy as np
import pytest
import torch

from modeling_video_ma2mba import LiveFrames, watching


def picture(i):
    return np.random.default_rng(i).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def pushed(times, fps=1.0, max_waiting=1000):
    """Return what comes of frames named 0, 1, ... at these times: (seconds, name)."""
    live = LiveFrames(fps=fps, max_waiting=max_waiting)
    for i, moment in enumerate(times):
        live.push(i, moment)
    live.close()
    return list(live), live.frames_dropped


def by_definition(times, fps):
    """The last frame at or before each sample time, counted from the first frame."""
    times = np.asarray(times) - times[0]
    samples = np.arange(int(times[-1] * fps + 1e-6) + 1) / fps
    return [(float(t), int(np.searchsorted(times, t + 1e-6, side="right")) - 1) for t in samples]


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 30.0])
@pytest.mark.parametrize(
    "times",
    [
        np.arange(100) / 25,
        np.arange(10) * 1.0 + 1e9,
        [0.0],
        [5.0, 5.2, 5.4, 9.9, 10.0, 10.1],  # a pause shows the last frame
        np.sort(np.random.default_rng(0).uniform(-3, 8, 60)),
    ],
)
def test_sampled_as_a_file_is(times, fps):
    found, dropped = pushed([float(t) for t in times], fps)
    assert found == by_definition([float(t) for t in times], fps) and dropped == 0


def test_what_finds_no_room_is_counted():
    live = LiveFrames(max_waiting=3)
    assert [live.push(i, float(i)) for i in range(5)] == [True, True, True, False, False]
    assert live.frames_dropped == 2
    assert live.take(2) == [(0.0, 0), (1.0, 1)] and live.push(5, 5.0)
    live.close()
    assert list(live) == [(2.0, 2), (5.0, 5)]
    assert live.take(3) == [] and live.frames_dropped == live.take_dropped() == 2 and live.take_dropped() == 0


def test_a_pipe_is_held_back():
    live = LiveFrames(max_waiting=2)

    def produce():
        for i in range(20):
            assert live.push(i, float(i), wait=None)
        live.close()

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.1)
    assert producer.is_alive() and len(live._waiting) == 2
    assert [i for _, i in live] == list(range(20)) and live.frames_dropped == 0
    producer.join()


def test_waiting_for_room_ends():
    live = LiveFrames(max_waiting=1)
    live.push(0, 0.0)
    began = time.monotonic()
    assert not live.push(1, 1.0, wait=0.1) and 0.09 < time.monotonic() - began < 5
    threading.Timer(0.1, live.close).start()
    assert not live.push(2, 2.0, wait=None)  # closing frees whoever waits
    assert live.frames_dropped == 2


def test_arguments():
    for arguments in ({"fps": 0.0}, {"fps": float("nan")}, {"max_waiting": 0}):
        with pytest.raises(ValueError, match="must be"):
            LiveFrames(**arguments)
    live = LiveFrames()
    live.push(0, 10.0)
    for moment in (9.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="never go back"):
            live.push(1, moment)
    with pytest.raises(ValueError, match="times are in seconds"):
        live.push(1, 10.0 + 1e9)
    live.close()
    with pytest.raises(ValueError, match="closed"):
        live.push(1, 11.0)


@pytest.fixture
def model(tiny_video_model, monkeypatch):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 4)
    return tiny_video_model


def close_to(one, two):
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one.state.ssm, two.state.ssm))


def test_watch_while_frames_come(model, processor):
    live = LiveFrames(max_waiting=4)

    def produce():
        for i in range(10):
            live.push(picture(i), 100.0 + i, wait=None)
        live.close()

    threading.Thread(target=produce).start()
    memory = model.watch(live, processor=processor)
    assert (memory.frames_seen, memory.seconds_seen, memory.frames_dropped) == (10, 10.0, 0)
    assert memory.videos[0].name == "live" and memory.videos[0].complete
    assert close_to(memory, model.watch([picture(i) for i in range(10)], processor=processor))
    with pytest.raises(ValueError, match="sample at 1"):
        model.watch(live, processor=processor, fps=2.0)
    with pytest.raises(ValueError, match="without a frame"):
        model.watch(live, processor=processor)


def test_drops_are_in_the_memory_and_in_its_file(model, processor, tmp_path):
    live = LiveFrames(max_waiting=3)
    for i in range(8):
        live.push(picture(i), float(i))
    live.close()
    memory = model.watch(live, processor=processor)
    assert (memory.frames_seen, memory.frames_dropped) == (3, 5)
    memory.save(tmp_path / "m.safetensors")
    assert model.load_memory(tmp_path / "m.safetensors").frames_dropped == 5


@pytest.mark.parametrize("where", ["reading", "afterwards"])
def test_an_interrupted_watch_loses_no_frame(model, processor, monkeypatch, where):
    live = LiveFrames(max_waiting=20)
    for i in range(10):
        live.push(picture(i), float(i))
    live.close()
    read, calls = type(model)._read, [0]

    def failing(self, state, ids, frames=None):
        calls[0] += frames is not None
        if frames is not None and calls[0] == 2:
            raise KeyboardInterrupt
        return read(self, state, ids, frames)

    with monkeypatch.context() as patch:
        if where == "reading":
            patch.setattr(type(model), "_read", failing)
        else:
            patch.setattr(watching.WatchProgress, "show", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt) as caught:
            model.watch(live, processor=processor)
    seen = caught.value.memory
    assert seen.frames_seen == 4 and len(live._waiting) == 6
    memory = model.watch(live, processor=processor, memory=seen)
    assert memory.frames_seen == 10
    assert close_to(memory, model.watch([picture(i) for i in range(10)], processor=processor))
