"""Streams: one order for any number of processes and workers, no loss, no duplicates, and a cheap way to go on."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from modeling_video_ma2mba.processing.video_errors import VideoReadError
from modeling_video_ma2mba.train.recipes import load_recipe
from modeling_video_ma2mba.train.samples import Media, Turn, conversation
from modeling_video_ma2mba.train.streaming import (
    CANDIDATES,
    DecodingCollator,
    StreamingSet,
    neighbours_grouped,
    shuffled,
)
from modeling_video_ma2mba.train.trainer import VideoMa2mbaTrainer

COUNT = 23


def sample(i, video=None):
    media = Media(kind="video", path=Path(f"{i if video is None else video}.mp4"))
    return conversation(id=str(i), source="test", media=media, turns=[Turn(f"who wins {i} ?", "a car")])


def read(epoch):
    return map(sample, range(COUNT))


def ids(windows):
    return [window[0].id for window in windows]


def batches(data, batch_size, count, rank=0, ranks=1, workers=0):
    """The ids of the first batches that a process gets, as accelerate and the DataLoader make them."""
    if ranks > 1:
        data = IterableDatasetShard(data, batch_size=batch_size, num_processes=ranks, process_index=rank)
    loader = DataLoader(data, batch_size=batch_size, num_workers=workers, collate_fn=ids)
    return list(itertools.islice(loader, count))


def order(count, start=0):
    return ids(itertools.islice(StreamingSet(read, 1, 6, 0, start), count))


def test_every_epoch_has_every_sample_once_in_another_order():
    found = order(3 * COUNT)
    epochs = [found[i : i + COUNT] for i in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(map(int, epoch)) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("ranks, workers", [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_processes_and_workers_share_one_order(ranks, workers):
    steps = 15  # of two samples a process: into the third epoch
    data = StreamingSet(read, 2 * ranks, 6, 0)
    by_rank = [batches(data, 2, steps, rank, ranks, workers) for rank in range(ranks)]
    together = [id for step in range(steps) for rank in range(ranks) for id in by_rank[rank][step]]
    assert together == order(steps * 2 * ranks)


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_where_it_was(workers):
    whole = batches(StreamingSet(read, 4, 6, 0), 4, 20, workers=workers)
    assert batches(StreamingSet(read, 4, 6, 0, start=28), 4, 13, workers=workers) == whole[7:]


def test_a_buffer_of_one_keeps_the_order():
    assert [one.id for one in shuffled(read(0), 1, "seed")] == [str(i) for i in range(COUNT)]
    assert order(COUNT) != [str(i) for i in range(COUNT)]


def test_a_buffer_holds_no_more_than_it_says():
    taken = []
    stream = shuffled((taken.append(i) or sample(i) for i in range(1000)), 10, "seed")
    next(stream)
    assert len(taken) == 10


def test_neighbours_about_one_video_are_joined():
    rows = [sample(0, "a"), sample(1, "a"), sample(2, "b"), sample(3, "a")]
    found = list(neighbours_grouped(rows))
    assert [(one.id, len(one.turns)) for one in found] == [("0", 2), ("2", 1), ("3", 1)]


def test_no_sample_at_all_is_an_error():
    with pytest.raises(ValueError, match="no sample to train on"):
        next(iter(StreamingSet(lambda epoch: [], 1, 1, 0)))


@pytest.mark.parametrize("words", [(0, 1, 0, 0), (1, 0, 0, 0), (4, 1, 0, 3), (1, 1, 0, -1)])
def test_wrong_arguments(words):
    with pytest.raises(ValueError, match="batch_size"):
        StreamingSet(read, *words)


def test_the_next_sample_stands_in_for_one_that_cannot_be_read(tmp_path):
    def decode(one):
        if int(one.id) % 3 == 0:
            raise VideoReadError(f"{one.id}.mp4", "it is broken")
        return one.id

    collate = DecodingCollator(decode, Counter, tmp_path / "bad.jsonl")
    windows = list(itertools.islice(StreamingSet(read, 1, 1, 0), 4))
    assert all(len(window) == CANDIDATES for window in windows)
    assert collate(windows) == {"1": 2, "2": 1, "4": 1}
    assert [json.loads(line)["id"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == ["0", "3"]
    with pytest.raises(RuntimeError, match="8 samples in a row could not be read"):
        DecodingCollator(lambda one: np.load("missing.npy"), list, tmp_path / "bad.jsonl")(windows)


@pytest.mark.parametrize("dispatch", [True, None])
def test_the_trainer_refuses_a_dispatcher(tiny_video_model, tmp_path, dispatch):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, accelerator_config={"dispatch_batches": dispatch}
    )
    with pytest.raises(ValueError, match=f"dispatch_batches={dispatch} with a stream of samples.*False"):
        VideoMa2mbaTrainer(
            model=tiny_video_model,
            args=arguments,
            train_dataset=StreamingSet(read, 1, 1, 0),
            recipe=load_recipe("tiny", "2"),
        )
