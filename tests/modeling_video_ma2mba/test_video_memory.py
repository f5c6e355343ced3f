"""Watch once, ask many: equal to one prompt with everything in it, whatever the pieces, files and interruptions."""

import json
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_video_ma2mba import RecurrentState, VideoMa2mbaForConditionalGeneration, VideoMemory, watching
from modeling_video_ma2mba.frame_feed import BATCHES_AHEAD
from modeling_video_ma2mba.live_memory import MemoryMeter
from modeling_video_ma2mba.model_fingerprint import model_fingerprint
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.synthetic_video import write_video
from modeling_video_ma2mba.video_chat import conversation

# A random model would end at once, or answer outside its vocabulary; to be compared, answers have to be words.
NOT_WORDS = [*range(7), *range(25, 32)]
GREEDY = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": NOT_WORDS}
QUESTION = "who wins ?"


@pytest.fixture(scope="module")
def model(shared_video_config):
    """fp64: what differs differs visibly."""
    torch.manual_seed(0)
    return VideoMa2mbaForConditionalGeneration(shared_video_config).double().eval()


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Files of 7 and 5 seconds, all seconds different."""
    folder = tmp_path_factory.mktemp("films")
    random = np.random.default_rng(1)
    for name, seconds in (("a", 7), ("b", 5)):
        frames = np.repeat(random.integers(0, 255, (seconds, 4, 4, 3), dtype=np.uint8), 5, axis=0)
        write_video(folder / f"{name}.mp4", frames.repeat(16, axis=1).repeat(16, axis=2), fps=5)
    return str(folder / "a.mp4"), str(folder / "b.mp4")


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 2)


def pictures(count, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(count)]


def whole_prompt(processor, video, question, **options):
    text = processor.apply_chat_template(conversation(None, question), add_generation_prompt=True)
    return processor(text=text, videos=[video], return_tensors="pt", **options)


def generated(model, processor, inputs, **options):
    out = model.generate(**inputs, **{**GREEDY, **options})
    return processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def tensors(state):
    return (*state.conv, *state.ssm)


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(tensors(one.state), tensors(two.state)))


def test_the_ids_are_those_of_the_whole_prompt(processor):
    frames = pictures(3)
    for question in (QUESTION, "", "  what is it ?  "):
        before, after = processor.split_prompt(conversation(None, question))
        inside = [processor.video_token_id] * (3 * processor.tokens_per_frame)
        assert [*before, *inside, *after] == whole_prompt(processor, frames, question)["input_ids"][0].tolist()
        started = processor.split_prompt(conversation(None, question), answer_start="it is")
        assert started == (before, [*after, *processor.tokenizer("it is")["input_ids"]])
    with pytest.raises(ValueError, match="2 <video>"):
        processor.split_prompt(conversation(None, "a <video> b"))
    with pytest.raises(ValueError, match="1 <image>"):
        processor.split_prompt(conversation(None, "an <image>"))


@pytest.mark.parametrize("segment", [1, 3, 7, 64, 4096])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_equal_to_the_whole_prompt(model, processor, films, monkeypatch, segment, batch):
    inputs = whole_prompt(processor, films[0], QUESTION)
    expected = model(**inputs)
    monkeypatch.setattr(model.model.language_model, "segment_length", segment)
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", batch)
    memory = model.watch(films[0], processor=processor)
    _, after = processor.split_prompt(conversation(None, QUESTION))
    assert memory.state.seen_tokens == inputs["input_ids"].shape[1] - len(after)
    out = model(input_ids=torch.tensor([after]), past_key_values=memory.state.fork())
    assert (out.logits - expected.logits[:, -len(after) :]).abs().max() < 1e-10
    for mine, theirs in zip(tensors(out.past_key_values), tensors(expected.past_key_values)):
        assert (mine - theirs).abs().max() < 1e-10
    assert model.ask(memory, QUESTION, processor=processor, **GREEDY) == generated(model, processor, inputs)


def test_fp32_text(tiny_video_model, processor, films):
    memory = tiny_video_model.watch(films[0], processor=processor)
    expected = generated(tiny_video_model, processor, whole_prompt(processor, films[0], QUESTION))
    assert tiny_video_model.ask(memory, QUESTION, processor=processor, **GREEDY) == expected


@pytest.mark.parametrize("kind", ["list", "array", "channels first", "generator", "PIL", "FrameSource"])
def test_pictures(model, processor, kind):
    from modeling_video_ma2mba.processing.frame_source import FrameSource

    frames = pictures(5)
    stacked = np.stack(frames)
    video = {
        "list": lambda: frames,
        "array": lambda: stacked,
        "channels first": lambda: torch.from_numpy(stacked).permute(0, 3, 1, 2),
        "generator": lambda: (frame for frame in frames),
        "PIL": lambda: [Image.fromarray(frame) for frame in frames],
        "FrameSource": lambda: FrameSource(np.stack([processor.fit_frame(frame) for frame in frames])),
    }[kind]()
    memory = model.watch(video, processor=processor, fps=2.0)
    assert (memory.frames_seen, memory.seconds_seen) == (5, 2.5)
    assert memory.videos[0].name == "frames"
    expected = generated(model, processor, whole_prompt(processor, frames, QUESTION))
    assert model.ask(memory, QUESTION, processor=processor, **GREEDY) == expected


def test_texts_between_pictures(model, processor, tmp_path):
    """Read in their places, in batches of any size; the memory can be kept, and files from before texts are read."""
    frames = pictures(6)
    text = processor.apply_chat_template(conversation(None, QUESTION), add_generation_prompt=True)
    parts = ["it is", frames[:2], "red", "car", frames[2:], "hi"]
    shown = "".join(part if isinstance(part, str) else "<video>" for part in parts)
    inputs = processor(text=text.replace("<video>", shown), videos=[parts[1], parts[4]], return_tensors="pt")
    items = ["it is", *frames[:2], "red", "car", *frames[2:], "hi"]
    memory = model.watch(iter(items), processor=processor)
    assert memory.videos[0].text_tokens == 5 and memory.frames_seen == 6
    assert model.ask(memory, QUESTION, processor=processor, **GREEDY) == generated(model, processor, inputs)
    memory.save(tmp_path / "film.safetensors")
    assert equal(model.load_memory(tmp_path / "film.safetensors"), memory)
    with pytest.raises(ValueError, match="holds <image> or <video>"):
        model.watch(iter([*frames, "a <video>"]), processor=processor)
    with pytest.raises(ValueError, match="without a frame"):
        model.watch(iter(["it is"]), processor=processor)

    plain = model.watch(iter(frames), processor=processor)
    plain.save(tmp_path / "old.safetensors")
    header = json.loads(RecurrentState.load_metadata(tmp_path / "old.safetensors")["video_memory"])
    assert header["videos"][0].pop("text_tokens") == 0
    plain.state.save(tmp_path / "old.safetensors", {"video_memory": json.dumps(header)})
    assert model.load_memory(tmp_path / "old.safetensors").videos == plain.videos


def test_rate_and_part_of_a_file(model, processor, films):
    memory = model.watch(films[0], processor=processor, fps=2.0, start=1.0, end=4.0)
    assert (memory.frames_seen, memory.seconds_seen) == (6, 3.0)
    assert (memory.videos[0].start, memory.videos[0].end) == (1.0, 4.0)
    frames = list(processor.stream_frames(films[0], fps=2.0, start=1.0, end=4.0))
    assert equal(memory, model.watch(frames, processor=processor, fps=2.0))


def test_a_memory_can_be_extended(model, processor, films):
    a = model.watch(films[0], processor=processor)
    before = [t.clone() for t in tensors(a.state)]
    together = model.watch(list(films), processor=processor)
    assert equal(model.watch(films[1], processor=processor, memory=a), together)
    assert all(torch.equal(one, two) for one, two in zip(tensors(a.state), before)) and a.frames_seen == 7
    assert [video.name for video in together.videos] == list(films)
    assert together.seconds_seen == 12.0 and together.interrupted_from is None
    again = model.watch(films[0], processor=processor, memory=a)  # seen twice, not gone on with
    assert again.frames_seen == 14


def test_several_questions_in_one_pass(model, processor, films):
    memory = model.watch(films[0], processor=processor)
    questions = [QUESTION, "what is it ? red blue car", "hi"]
    alone = [model.ask(memory, question, processor=processor, **GREEDY) for question in questions]
    rows = []
    hook = model.lm_head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    together = model.ask(memory, questions, processor=processor, **GREEDY)
    hook.remove()
    assert together == alone and set(rows) == {3}
    assert model.ask(memory, [QUESTION], processor=processor, **GREEDY) == alone[:1]


def test_answers_cost_the_same_after_any_length(model, processor):
    memories = [model.watch(pictures(count), processor=processor) for count in (2, 60)]
    peaks = []
    for memory in memories:
        with MemoryMeter(torch.device("cpu")) as meter:
            model.ask(memory, QUESTION, processor=processor, **GREEDY)
        peaks.append(meter.peak)
    assert peaks[0] == peaks[1]
    # A question longer than all that was seen.
    long = "red blue car " * 30
    expected = generated(model, processor, whole_prompt(processor, pictures(2), long))
    assert model.ask(memories[0], long, processor=processor, **GREEDY) == expected


def test_options_of_generate(model, processor, films):
    from transformers import TextStreamer

    memory = model.watch(films[0], processor=processor)
    beams = generated(model, processor, whole_prompt(processor, films[0], QUESTION), num_beams=3)
    assert model.ask(memory, QUESTION, processor=processor, **GREEDY, num_beams=3) == beams
    sampled = []
    for _ in range(2):
        torch.manual_seed(0)
        sampled.append(model.ask(memory, QUESTION, processor=processor, **{**GREEDY, "do_sample": True}))
    assert sampled[0] == sampled[1]
    said = []

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            said.append(text)

    streamer = Streamer(processor.tokenizer, skip_prompt=True)
    whole = model.ask(memory, QUESTION, processor=processor, **GREEDY, streamer=streamer)
    assert "".join(said).split() == whole.split()
    long = {**GREEDY, "max_new_tokens": 60}
    stopped = model.ask(memory, QUESTION, processor=processor, **long, stop_on_repetition=True)
    unstopped = model.ask(memory, QUESTION, processor=processor, **long)
    assert len(stopped.split()) < len(unstopped.split()) == 60 and unstopped.startswith(stopped)
    with pytest.raises(ValueError, match="one answer to a question"):
        model.ask(memory, QUESTION, processor=processor, **GREEDY, num_beams=2, num_return_sequences=2)
    with pytest.raises(ValueError, match="use_cache=False"):
        model.ask(memory, QUESTION, processor=processor, use_cache=False)


def test_two_threads_ask_at_once(model, processor, films):
    memory = model.watch(films[0], processor=processor)
    questions = [QUESTION, "what is it ?"]
    expected = [model.ask(memory, question, processor=processor, **GREEDY) for question in questions]
    found = [[], []]

    def work(i):
        found[i] = [model.ask(memory, questions[i], processor=processor, **GREEDY) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[answer] * 5 for answer in expected]


def test_chat_remembers_its_turns(model, processor, films):
    memory = model.watch(films[0], processor=processor)
    before = [t.clone() for t in tensors(memory.state)]
    chat = model.chat(memory, processor=processor)
    texts = [QUESTION, "what is it ?", "red car ?"]
    read = []
    hook = model.model.language_model.norm_f.register_forward_hook(lambda _, __, y: read.append(y.shape[1]))
    messages = conversation(None, texts[0])
    for i, text in enumerate(texts):
        if i:
            messages.append({"role": "user", "content": text})
        read.clear()
        said = chat.ask(text, **GREEDY)
        if i:
            assert sum(read) < 35  # earlier questions are not read again
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=prompt, videos=[films[0]], return_tensors="pt")
        assert said == generated(model, processor, inputs), i
        messages.append({"role": "assistant", "content": said})
    hook.remove()
    assert chat.messages == messages
    assert all(torch.equal(one, two) for one, two in zip(tensors(memory.state), before))
    with pytest.raises(ValueError, match="<video>"):
        chat.ask("<video>", **GREEDY)
    assert chat.messages == messages
    other = model.chat(memory, processor=processor)
    assert other.ask(texts[0], **GREEDY) == messages[1]["content"]


def test_system_text(model, processor, films):
    memory = model.watch(films[0], processor=processor, system="Be brief")
    text = processor.apply_chat_template(conversation("Be brief", QUESTION), add_generation_prompt=True)
    expected = generated(model, processor, processor(text=text, videos=[films[0]], return_tensors="pt"))
    assert model.ask(memory, QUESTION, processor=processor, **GREEDY) == expected
    assert model.watch(films[1], processor=processor, memory=memory).system == "Be brief"
    with pytest.raises(ValueError, match="leave system out"):
        model.watch(films[1], processor=processor, memory=memory, system="Be long")


class Stop(Exception):
    pass


@pytest.mark.parametrize("failing_step", [0, 1, 3, 4, 6])
@pytest.mark.parametrize("error_type", [Stop, KeyboardInterrupt])
def test_an_interrupted_watch_goes_on_exactly(
    model, processor, films, small_batches, monkeypatch, tmp_path, failing_step, error_type
):
    whole = model.watch(list(films), processor=processor)
    steps = [0]
    read = type(model)._read

    def failing(self, state, ids, frames=None):
        steps[0] += frames is not None
        if frames is not None and steps[0] == failing_step + 1:
            raise error_type
        return read(self, state, ids, frames)

    monkeypatch.setattr(type(model), "_read", failing)
    with pytest.raises(error_type) as caught:
        model.watch(list(films), processor=processor)
    memory = caught.value.memory
    if failing_step == 0:
        assert memory is None
        return
    # 4 batches of the first file, then those of the second
    assert memory.frames_seen == [0, 2, 0, 6, 7, 0, 11][failing_step] and memory.interrupted_from == 0
    memory.save(tmp_path / "m.safetensors")
    loaded = model.load_memory(tmp_path / "m.safetensors")
    for start in (memory, loaded):
        if failing_step == 1:
            with pytest.raises(ValueError, match="go on with the same"):
                model.watch(list(films), processor=processor, memory=start, fps=2.0)
        done = model.watch(list(films), processor=processor, memory=start)
        assert equal(done, whole) and done.videos == whole.videos and done.interrupted_from is None


def test_other_videos_after_an_interruption_are_seen_whole(model, processor, films, small_batches):
    def failing():
        yield from pictures(3)
        raise Stop

    with pytest.raises(Stop) as caught:
        model.watch(failing(), processor=processor)
    assert caught.value.memory.frames_seen == 2  # the third waited for its batch
    rest = model.watch(iter(pictures(5)[2:]), processor=processor, memory=caught.value.memory)
    assert equal(rest, model.watch(pictures(5), processor=processor))
    more = model.watch(films[1], processor=processor, memory=caught.value.memory)
    assert more.frames_seen == 7 and [video.complete for video in more.videos] == [False, True]


def test_a_damaged_file_gives_what_came_before(model, processor, films, small_batches, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(Path(films[0]).read_bytes()[:60])
    with pytest.raises(VideoReadError, match=r"cut\.mp4") as caught:
        model.watch([films[0], str(path)], processor=processor)
    assert caught.value.memory.frames_seen == 7
    assert caught.value.memory.videos[0].complete
    with pytest.raises(FileNotFoundError, match=r"none\.mp4") as caught:
        model.watch([films[0], str(tmp_path / "none.mp4")], processor=processor)
    assert caught.value.memory is None


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_save_and_load(model, tiny_video_model, processor, films, tmp_path, dtype):
    path = tmp_path / "film.safetensors"
    for one, other in ((model, tiny_video_model), (tiny_video_model, model)):
        memory = one.watch(list(films), processor=processor)
        memory.save(path, dtype=dtype)
        memory.save(path, dtype=dtype)  # over itself
        assert sorted(p.name for p in tmp_path.iterdir()) == ["film.safetensors"]
        loaded = VideoMemory.load(path, model=one)
        assert (loaded.videos, loaded.prompt_ids, loaded.system) == (memory.videos, memory.prompt_ids, None)
        assert (loaded.frames_seen, loaded.seconds_seen) == (12, 12.0)
        tolerance = {None: 0, "float32": 1e-6, "bfloat16": 1e-2}[dtype]
        for mine, theirs in zip(tensors(loaded.state), tensors(memory.state)):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, check_dtype=dtype is None)
        assert all(t.dtype in (torch.float32, torch.float64) for t in loaded.state.ssm)
        if dtype is None:
            for reader in (one, other):  # a model in another dtype is the same model
                first = model.ask(memory, QUESTION, processor=processor, **GREEDY)
                answer = reader.ask(reader.load_memory(path), QUESTION, processor=processor, **GREEDY)
                assert answer == first
        more = one.watch(films[0], processor=processor, memory=loaded)
        assert more.frames_seen == 19
    with pytest.raises(ValueError, match="dtype='int8'"):
        memory.save(path, dtype="int8")


def test_the_file_may_change_once_it_is_loaded(model, processor, films, tmp_path):
    path = tmp_path / "film.safetensors"
    memory = model.watch(films[0], processor=processor)
    memory.save(path)
    loaded = model.load_memory(path)
    with open(path, "r+b") as file:
        file.seek(3000)
        file.write(bytes(path.stat().st_size - 3000))
    assert equal(loaded, memory)


def test_another_model_is_refused(model, tiny_video_config, processor, films, tmp_path):
    path = tmp_path / "film.safetensors"
    memory = model.watch(films[0], processor=processor)
    memory.save(path)
    torch.manual_seed(0)
    trained = VideoMa2mbaForConditionalGeneration(tiny_video_config).eval()
    assert model_fingerprint(trained) == model_fingerprint(model) == memory.fingerprint  # same seed, another dtype
    assert model_fingerprint(trained.bfloat16()) == memory.fingerprint
    trained.float().model.multi_modal_projector.linear_2.weight.data.mul_(1.1)
    with pytest.raises(ValueError, match=r"film\.safetensors: made by another model"):
        trained.load_memory(path)
    for use in (
        lambda: trained.ask(memory, QUESTION, processor=processor),
        lambda: trained.chat(memory, processor=processor),
        lambda: trained.watch(films[1], processor=processor, memory=memory),
    ):
        with pytest.raises(ValueError, match="made by another model"):
            use()
    torch.manual_seed(0)
    stepped = VideoMa2mbaForConditionalGeneration(tiny_video_config)
    optimizer = torch.optim.AdamW(stepped.parameters(), lr=4e-6)
    stepped(input_ids=torch.tensor([[7, 8, 9, 10]]), labels=torch.tensor([[7, 8, 9, 10]])).loss.backward()
    optimizer.step()
    assert model_fingerprint(stepped) != memory.fingerprint


def test_another_template_is_refused(model, processor, films):
    from modeling_video_ma2mba import VideoMa2mbaProcessor

    memory = model.watch(films[0], processor=processor)
    other = VideoMa2mbaProcessor(
        processor.image_processor, processor.tokenizer, tokens_per_frame=4, chat_template="hi <video> red"
    )
    with pytest.raises(ValueError, match="begins the prompt in another way"):
        model.ask(memory, QUESTION, processor=other)
    wrong = VideoMa2mbaProcessor(processor.image_processor, processor.tokenizer, tokens_per_frame=9)
    with pytest.raises(ValueError, match="tokens_per_frame=9, this model 4"):
        model.watch(films[0], processor=wrong)


def test_damaged_and_foreign_files(model, processor, films, tmp_path):
    path = tmp_path / "film.safetensors"
    memory = model.watch(films[0], processor=processor)
    memory.save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole + b"more", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"film\.safetensors: damaged"):
            model.load_memory(path)
    path.write_bytes(struct.pack("<Q", 2**40) + whole[8:])
    with pytest.raises(ValueError, match="its header would take"):
        model.load_memory(path)
    memory.state.save(path)
    with pytest.raises(ValueError, match="not that of a video memory"):
        model.load_memory(path)


HOSTILE = {
    "format": "video-memory-9", "frames": 99, "prompt_ids": [1, -1], "system": 3, "interrupted_from": 7,
    "videos": [], "fingerprint": 5,
}  # fmt: skip
HOSTILE_VIDEO = {
    "text_tokens": -1,
    "fps": 0,
    "seconds": 10**400,
    "frames": True,
    "name": None,
    "end": float("nan"),
    "complete": 1,
}


@pytest.mark.parametrize("field", [*HOSTILE, *(f"video {name}" for name in HOSTILE_VIDEO), "deep", "rows", "list"])
def test_hostile_headers(model, processor, films, tmp_path, field):
    path = tmp_path / "film.safetensors"
    memory = model.watch(films[0], processor=processor)
    memory.save(path)
    metadata = RecurrentState.load_metadata(path)
    header = json.loads(metadata["video_memory"])
    state = memory.state
    if field in HOSTILE:
        header[field] = HOSTILE[field]
    elif field.startswith("video "):
        header["videos"][0][field[6:]] = HOSTILE_VIDEO[field[6:]]
    text = json.dumps([1] if field == "list" else header)
    if field == "deep":
        text = "[" * 100_000
    if field == "rows":
        state = state.repeat(3)
    state.save(path, {"video_memory": text})
    with pytest.raises(ValueError, match=r"film\.safetensors"):
        model.load_memory(path)


def test_snapshots(model, processor, monkeypatch, tmp_path):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 1)
    frames = pictures(40)
    memory = model.watch(iter(frames), processor=processor, snapshots=5, snapshot_folder=tmp_path / "s")
    assert len(list((tmp_path / "s").iterdir())) <= 5
    times = [seconds for seconds, _ in memory.snapshots.taken]
    assert times == [1, 9, 17, 25, 33]
    for asked, real in ((1, 1), (8.5, 1), (20, 17), (39, 33)):
        earlier = memory.as_of(asked)
        assert earlier.seconds_seen == earlier.frames_seen == real
        assert equal(earlier, model.watch(frames[:real], processor=processor))
    assert memory.as_of(40) is memory and memory.as_of(1000) is memory
    with pytest.raises(ValueError, match="no snapshot is left"):
        memory.as_of(0.5)
    with pytest.raises(ValueError, match="has no snapshots"):
        model.watch(frames[:3], processor=processor).as_of(1)
    with pytest.raises(ValueError, match="snapshots=1"):
        model.watch(frames, processor=processor, snapshots=1)
    with pytest.raises(ValueError, match="is not empty"):
        model.watch(frames, processor=processor, snapshots=3, snapshot_folder=tmp_path / "s")


def test_snapshots_of_two_continuations(model, processor, monkeypatch):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 1)
    begin, one, two = pictures(3), pictures(3, seed=1), pictures(3, seed=2)
    memory = model.watch(begin, processor=processor, snapshots=8)
    folder = memory.snapshots.folder.path
    first = model.watch(one, processor=processor, memory=memory, snapshots=8)
    second = model.watch(two, processor=processor, memory=memory, snapshots=8)
    assert equal(first.as_of(4), model.watch([*begin, one[0]], processor=processor))
    assert equal(second.as_of(4), model.watch([*begin, two[0]], processor=processor))
    assert second.as_of(2).frames_seen == memory.as_of(2).frames_seen == 2
    assert folder.is_dir()
    del memory, first, second
    assert not folder.exists()


def test_memory_does_not_grow_with_the_length(tiny_video_model, processor, monkeypatch):
    monkeypatch.setattr(watching, "FRAMES_AT_ONCE", 16)
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (40, 60, 3), dtype=np.uint8)

    def stream(count):
        return (np.roll(picture, i, axis=0) for i in range(count))

    tensors_at_most = []
    for count in (64, 512):
        with MemoryMeter(torch.device("cpu")) as meter:
            memory = tiny_video_model.watch(stream(count), processor=processor)
        tensors_at_most.append(meter.peak)
        assert memory.frames_seen == count
    assert tensors_at_most[1] == tensors_at_most[0]
    one_batch = 16 * 3 * 56 * 56
    tracemalloc.start()  # arrays are on the host, in the thread that decodes
    tiny_video_model.watch(stream(256), processor=processor)
    arrays_at_most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Some wait, one is read, one is being made (twice, when its frames are put together): not all 16.
    assert arrays_at_most < (BATCHES_AHEAD + 6) * one_batch


def test_arguments(model, processor, films):
    memory = model.watch(films[0], processor=processor)
    for arguments, message in (
        ({"video": list(films), "start": 1.0}, "one video file"),
        ({"video": pictures(2), "end": 1.0}, "one video file"),
        ({"video": []}, "empty list"),
        ({"video": iter([])}, "without a frame"),
        ({"video": np.zeros((20, 30, 3), np.uint8)}, "frames of shape"),
        ({"video": films[0], "fps": 0.0}, "fps=0.0"),
        ({"video": pictures(2), "fps": -1.0}, "fps=-1.0"),
        ({"video": films[0], "snapshot_folder": "x"}, "snapshots=0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.watch(**arguments, processor=processor)
    with pytest.raises(TypeError, match="paths alone"):
        model.watch([films[0], pictures(1)[0]], processor=processor)
    with pytest.raises(TypeError, match="type int"):
        model.watch(3, processor=processor)
    for question in ([], [3], ""[:0].split()):
        with pytest.raises(ValueError, match="give a question"):
            model.ask(memory, question, processor=processor)
    with pytest.raises(TypeError, match="a turn is text"):
        model.chat(memory, processor=processor).ask(3)


def test_a_fresh_process_without_the_package(tiny_video_model, processor, films, tmp_path):
    """The folder alone watches, asks, saves and loads; an installed package reads what it wrote."""
    tiny_video_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    expected = tiny_video_model.watch(list(films), processor=processor)
    expected.save(tmp_path / "theirs.safetensors")
    code = f"""
import sys, importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_video_ma2mba":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained("model", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("model", trust_remote_code=True)
memory = model.watch({list(films)!r}, processor=processor, snapshots=2)
memory.save("ours.safetensors")
print(type(memory).__module__.split(".")[0], memory.frames_seen)
for path in ("ours.safetensors", "theirs.safetensors"):
    print(model.ask(model.load_memory(path), {QUESTION!r}, processor=processor, **{GREEDY}))
print(model.chat(memory, processor=processor).ask({QUESTION!r}, **{GREEDY}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    answer = tiny_video_model.ask(expected, QUESTION, processor=processor, **GREEDY)
    assert lines == ["transformers_modules 12", answer, answer, answer]
    assert equal(tiny_video_model.load_memory(tmp_path / "ours.safetensors"), expected)
