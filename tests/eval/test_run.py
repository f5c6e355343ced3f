"""Runs: each video is watched once, kills lose one view at most, several processes equal one."""

import functools
import json
import multiprocessing
import random
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from modeling_video_ma2mba.eval import run
from modeling_video_ma2mba.eval.journal import read_journals
from modeling_video_ma2mba.eval.run import TaskSamples, answer_all, plan_watches, read_questions, samples_hash
from modeling_video_ma2mba.eval.samples import Output, Sample, View
from modeling_video_ma2mba.eval.task import load_task
from modeling_video_ma2mba.processing.video_errors import VideoReadError
from tests.eval.fixtures import make_benchmark

SETTINGS = {"model": {"name": "fake"}, "limit": None}
BROKEN = "7.mp4"


class FakeAnswerer:
    """Knows the number in a video's name; logs what it watches, and cannot read one."""

    def __init__(self, log=None, pause=0.0, broken=BROKEN):
        self.log, self.pause, self.broken = log, pause, broken

    def watch(self, view, on_frame):
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(view.video.name + "\n")
        time.sleep(self.pause)
        if view.video.name == self.broken:
            raise VideoReadError(view.video, "it is broken")
        for _ in run.view_times(view):
            on_frame()
        return view

    def answer(self, seen, samples):
        return [Output(text=f"{seen.video.stem} {one.id}", times=(0.0, 1.5)) for one in samples]

    def score_options(self, seen, samples):
        return [Output(log_likelihoods=(-0.1,) * len(one.options)) for one in samples]


def make_questions(videos=12, each=3):
    """Questions about one video do not stand together."""
    samples = []
    for number in range(each):
        for video in range(videos):
            samples.append(
                Sample(
                    task="video-mme", id=f"{video}-{number}", cluster=f"{video}.mp4", prompt="?", question="?",
                    view=View(video=Path(f"{video}.mp4")), answer=0, options=("a", "b"),
                )
            )  # fmt: skip
    return [TaskSamples(load_task("video-mme"), samples)]


@pytest.fixture(autouse=True)
def lengths(monkeypatch):
    """Video 5 has 6 frames, and so on."""
    monkeypatch.setattr(run, "view_times", lambda view: (0.0,) * (int(view.video.stem) + 1))


def keys(questions):
    return {(sample.task, sample.id) for one in questions for sample in one.samples}


def answered_lines(folder):
    """The keys in all journals, once for every time they were answered by a video that can be read."""
    found = []
    for path in sorted(folder.glob("journal-*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        found += [(one["task"], one["id"]) for row in rows if not row["unreadable"] for one in row["answers"]]
    return found


def test_each_video_is_watched_once_the_longest_first(tmp_path):
    questions = make_questions()
    answer_all(questions, FakeAnswerer(tmp_path / "log"), tmp_path, SETTINGS)
    watched = (tmp_path / "log").read_text().split()
    assert watched == [f"{number}.mp4" for number in reversed(range(12))]  # 12 watches for 36 questions
    outputs, unreadable = read_journals(tmp_path, SETTINGS)
    assert set(outputs) == keys(questions)
    assert outputs["video-mme", "3-1"] == Output(text="3 3-1", times=(0.0, 1.5))
    assert unreadable == {("video-mme", f"7-{number}") for number in range(3)}
    assert "it is broken" in outputs["video-mme", "7-0"].error


def test_a_finished_run_watches_nothing_but_what_was_broken(tmp_path):
    questions = make_questions()
    answer_all(questions, FakeAnswerer(), tmp_path, SETTINGS)
    answer_all(questions, FakeAnswerer(tmp_path / "log"), tmp_path, SETTINGS)
    assert (tmp_path / "log").read_text().split() == [BROKEN]
    answer_all(questions, FakeAnswerer(broken=None), tmp_path, SETTINGS)
    outputs, unreadable = read_journals(tmp_path, SETTINGS)
    assert not unreadable and outputs["video-mme", "7-2"].text == "7 7-2"
    answer_all(questions, FakeAnswerer(tmp_path / "log2"), tmp_path, SETTINGS)
    assert not (tmp_path / "log2").exists()


def test_likelihoods_are_asked_where_there_are_options(tmp_path):
    questions = make_questions(2, 1)
    open_one = Sample(**{**vars(questions[0].samples[0]), "id": "open", "options": (), "answer": "yes"})
    questions[0].samples.append(open_one)
    answer_all(questions, FakeAnswerer(tmp_path / "log"), tmp_path, SETTINGS, likelihood=True)
    outputs, _ = read_journals(tmp_path, SETTINGS)
    assert outputs["video-mme", "0-0"].log_likelihoods == (-0.1, -0.1)
    assert outputs["video-mme", "open"].text == "0 open"
    assert len((tmp_path / "log").read_text().split()) == 2


def test_nonsense_likelihoods_are_errors(tmp_path):
    class Broken(FakeAnswerer):
        def score_options(self, seen, samples):
            return [Output(log_likelihoods=(float("nan"), -1.0)), Output(log_likelihoods=(-1.0,))]

    answer_all(make_questions(1, 2), Broken(), tmp_path, SETTINGS, likelihood=True)
    outputs, unreadable = read_journals(tmp_path, SETTINGS)
    assert all("log-likelihoods" in output.error for output in outputs.values()) and not unreadable


def child(questions, folder, rank=0, processes=1, barrier=None, pause=0.01):
    tqdm.set_lock(threading.RLock())  # the default one is shared with forks: killed holding it, nobody gets it again
    answerer = FakeAnswerer(folder / "log", pause)
    wait = barrier.wait if barrier else lambda: None
    answer_all(questions, answerer, folder, SETTINGS, rank=rank, processes=processes, wait_for_everyone=wait)


def test_kills_at_random_moments(tmp_path):
    """SIGKILL, again and again: only the view in progress is watched again, no answer is lost or there twice."""
    (tmp_path / "whole").mkdir()
    questions = make_questions(40)
    child(questions, tmp_path / "whole", pause=0)
    expected = read_journals(tmp_path / "whole", SETTINGS)

    context, dice = multiprocessing.get_context("fork"), random.Random(0)
    folder = tmp_path / "killed"
    folder.mkdir()
    kills = 0
    while True:
        process = context.Process(target=child, args=(questions, folder))
        process.start()
        process.join(dice.uniform(0.005, 0.06) + 0.002 * kills)  # a busy machine starts slowly
        if process.exitcode == 0:
            break
        process.kill()
        process.join()
        kills += process.exitcode != 0
    assert kills >= 3
    assert read_journals(folder, SETTINGS) == expected
    lines = answered_lines(folder)
    assert len(lines) == len(set(lines)) == 39 * 3
    watched = [name for name in (folder / "log").read_text().split() if name != BROKEN]
    assert len(watched) <= 39 + kills


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_half_written_line_is_as_if_it_were_not_there(tmp_path, share):
    questions = make_questions(4)
    answer_all(questions, FakeAnswerer(), tmp_path, SETTINGS)
    expected = read_journals(tmp_path, SETTINGS)
    path = tmp_path / "journal-0.jsonl"
    whole = path.read_bytes()
    for last in (whole.splitlines(keepends=True)[-1], whole):  # half an answer; half of the settings
        path.write_bytes(whole[: len(whole) - len(last) + int(share * (len(last) - 1))])
        answer_all(questions, FakeAnswerer(), tmp_path, SETTINGS)
        assert read_journals(tmp_path, SETTINGS) == expected
        assert path.read_bytes() == whole


def test_processes_share_the_videos(tmp_path):
    """Two processes, then three that go on: all answers are those of one process, each there once."""
    questions = make_questions()
    (tmp_path / "one").mkdir()
    answer_all(questions, FakeAnswerer(), tmp_path / "one", SETTINGS)
    (tmp_path / "many").mkdir()
    start = functools.partial(run_processes, folder=tmp_path / "many")
    start([TaskSamples(questions[0].task, questions[0].samples[:20])], 2)
    start(questions, 3)
    assert read_journals(tmp_path / "many", SETTINGS) == read_journals(tmp_path / "one", SETTINGS)
    lines = answered_lines(tmp_path / "many")
    assert len(lines) == len(set(lines))
    assert len(list((tmp_path / "many").glob("journal-*.jsonl"))) == 3


def run_processes(questions, processes, folder):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)
    started = [
        context.Process(target=child, args=(questions, folder, r, processes, barrier)) for r in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0


def test_shares_have_as_many_frames():
    shares = plan_watches(make_questions(), {("video-mme", "11-0")}, 3, show=False)
    frames = [sum(watch.frames for watch in share) for share in shares]
    assert sum(frames) == 78 and max(frames) - min(frames) <= 2
    assert sorted(len(watch.samples) for share in shares for watch in share) == [2] + [3] * 11


def test_other_settings_are_refused(tmp_path):
    answer_all(make_questions(1), FakeAnswerer(), tmp_path, SETTINGS)
    other = {"model": {"name": "another"}, "limit": None, "new": (1, 2)}
    with pytest.raises(ValueError, match=r"model.name was 'fake', is 'another'; new was None, is \[1, 2\]"):
        answer_all(make_questions(1), FakeAnswerer(), tmp_path, other)


DAMAGE = {
    "no JSON": b"{half\n",
    "a list": b"[]\n",
    "no answers": b'{"unreadable": false}\n',
    "a field more": b'{"unreadable": false, "answers": [{"task": "t", "id": "1", "no": 1}]}\n',
    "twice": None,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_inside_a_journal_is_named(tmp_path, what):
    answer_all(make_questions(2), FakeAnswerer(), tmp_path, SETTINGS)
    path = tmp_path / "journal-0.jsonl"
    head, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + (DAMAGE[what] or lines[0]) + b"".join(lines))
    with pytest.raises(ValueError, match=r"journal-0\.jsonl: line (2 is damaged|3 answers)"):
        read_journals(tmp_path, SETTINGS)


def test_reading_questions(tmp_path):
    folder = make_benchmark("video-mme", tmp_path / "video-mme")
    (one,) = read_questions(["video-mme"], {"video-mme": folder}, num_frames=2)
    assert len(one.samples) == 6 and {sample.view.num_frames for sample in one.samples} == {2}
    moved = make_benchmark("video-mme", tmp_path / "moved")
    (other,) = read_questions(["video-mme"], {"video-mme": moved}, num_frames=2)
    assert samples_hash(one.samples) == samples_hash(other.samples)
    (limited,) = read_questions(["video-mme"], {"video-mme": folder}, num_frames=2, limit=4)
    assert samples_hash(limited.samples) != samples_hash(one.samples)

    next((folder / "data").iterdir()).unlink()
    with pytest.raises(ValueError, match="cannot be used"):
        read_questions(["video-mme"], {"video-mme": folder}, fps=1.0)
    (one,) = read_questions(["video-mme"], {"video-mme": folder}, fps=1.0, allow_missing=True)
    assert (len(one.samples), len(one.left_out)) == (3, 3)
    for sampling, message in (
        ({"num_frames": 99999999999}, "99,999,999,999 is too much: a number of frames is at most 10,000,000"),
        ({"fps": 1e9}, "frames a second is at most 1,000"),
    ):
        with pytest.raises(ValueError, match=message):
            read_questions(["video-mme"], {"video-mme": folder}, **sampling)
    for tasks, data, message in (
        (["video-mme"], {"mvbench": folder}, "--data for mvbench"),
        (["nothing"], {}, "nothing"),
        (["mvbench", "mvbench"], {}, "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            read_questions(tasks, data)
