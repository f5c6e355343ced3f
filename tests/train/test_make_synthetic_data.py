"""The written files are what the readers take, the same for any number of workers, and apart from one another."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from modeling_video_ma2mba.train import make_synthetic_data
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.make_synthetic_data import FILES, PARTS, Plan, clip_seed, main, write_data
from modeling_video_ma2mba.train.readers import read_data
from modeling_video_ma2mba.train.samples import grouped
from modeling_video_ma2mba.train.scene_questions import (
    TYPES,
    combinations,
    describe,
    frame_caption,
    scene_caption,
    vocabulary,
    wordings,
)
from modeling_video_ma2mba.train.synthetic_video import make_clip
from modeling_video_ma2mba.train.training_set import MediaDecoder

FRAMES = {"1": (4, 8), "1.5": (8, 16), "2": (8, 16), "evaluation": (8, 16)}
READERS = {"1": "llava-pretrain", "1.5": "scenewalk-videos", "2": "llava", "evaluation": "llava"}
STAGES = {"1": "1", "1.5": "1.5", "2": "2", "evaluation": "2"}
COUNT = 36


def plan_of(part, output, **changes):
    return Plan(**{"part": part, "output": output, "count": COUNT, "frames": FRAMES[part], "size": 56, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {part: write_data(plan_of(part, folder)) for part in PARTS}


def rows_of(path):
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def read(written, part):
    report = DataReport()
    samples = list(read_data(f"{READERS[part]}:{written[part]}", STAGES[part], report))
    assert not report.left_out and not report.notes
    return samples


@pytest.mark.parametrize("part", PARTS)
def test_the_readers_take_every_row(written, part):
    samples = read(written, part)
    assert written[part].name == FILES[part] and len(samples) == COUNT
    assert len({sample.id for sample in samples}) == len({sample.media[0].path for sample in samples}) == COUNT
    decode = MediaDecoder(lambda frame: np.asarray(frame).transpose(2, 0, 1))
    for index, sample in enumerate(samples[:9]):
        decoded = decode(sample)
        turn = index // len(TYPES) if part == "evaluation" else index
        expected = FRAMES[part][turn % 2]
        assert [image.shape for image in decoded.images] in ([], [(56, 56, 3)])
        assert decoded.images or sum(map(len, decoded.videos)) == expected


@pytest.mark.parametrize("part", PARTS)
def test_every_word_is_in_the_vocabulary(written, part):
    split = pre_tokenizers.Whitespace()
    texts = [turn["value"] for row in rows_of(written[part]) for turn in row["conversations"]]
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text.split("\n")[-1])}
    assert words <= set(vocabulary())


def test_stage_1_mixes_images_and_videos(written):
    samples = read(written, "1")
    kinds = Counter(sample.media[0].kind for sample in samples)
    assert set(kinds) == {"image", "video"} and min(kinds.values()) > COUNT / 4
    decode = MediaDecoder(lambda frame: np.asarray(frame).transpose(2, 0, 1))
    for index, sample in enumerate(samples):
        plan = plan_of("1", Path())
        clip = make_clip(
            clip_seed(plan, index), FRAMES["1"][index % 2], 56, num_scenes=1, combinations=combinations("training")
        )
        caption = sample.pieces[1].text
        if sample.media[0].kind == "video":
            assert caption == scene_caption(clip, 0)
        else:  # stored without loss
            (image,) = decode(sample).images
            (frame,) = [i for i, drawn in enumerate(clip.frames) if np.array_equal(drawn, image)]
            assert caption == frame_caption(clip, frame)


def test_stage_1_5_cuts_at_the_scenes(written):
    decode = MediaDecoder(lambda frame: np.asarray(frame).transpose(2, 0, 1))
    for index, sample in enumerate(read(written, "1.5")[:6]):
        plan = plan_of("1.5", Path())
        clip = make_clip(clip_seed(plan, index), FRAMES["1.5"][index % 2], 56, combinations=combinations("training"))
        captions = [piece.text for piece in sample.pieces[1::2]]
        assert captions == [scene_caption(clip, place) for place in range(len(clip.scenes))]
        for video, scene in zip(decode(sample).videos, clip.scenes):
            drawn = clip.frames[scene.start_frame : scene.end_frame].astype(int)
            decoded = np.moveaxis(np.asarray(video[0 : len(video)]), 1, -1)
            assert decoded.shape == drawn.shape and np.abs(decoded - drawn).mean() < 8


def test_stage_2_groups_its_questions(written):
    samples = read(written, "2")
    assert [sample.turns for sample in grouped(samples)] == [sample.turns for sample in samples]
    lengths = Counter(len(sample.turns) for sample in samples)
    assert set(lengths) == {1, 21} and 2 <= lengths[1] <= 16
    plan, seen = plan_of("2", Path()), combinations("training")
    for index, sample in enumerate(samples):
        if len(sample.turns) > 1:
            clip = make_clip(clip_seed(plan, index), FRAMES["2"][index % 2], 56, combinations=seen)
            assert sample.turns[-1].answer == describe(clip)
            assert sample.turns[-1].question in wordings("training")["describe"]


def test_evaluation_asks_one_question_of_each_type_and_length(written):
    rows = rows_of(written["evaluation"])
    assert Counter((row["type"], row["frames"]) for row in rows) == {(t, n): 2 for t in TYPES for n in (8, 16)}
    assert all(len(row["conversations"]) == 2 and row["form"].split()[0] == row["type"] for row in rows)


def test_parts_share_no_clip_and_no_wording(written):
    seeds = [clip_seed(plan_of(part, Path()), index) for part in PARTS for index in range(COUNT)]
    assert len(set(seeds)) == len(seeds) == len(PARTS) * COUNT
    asked = {part: {turn.question for s in read(written, part) for turn in s.turns} for part in ("2", "evaluation")}
    assert not asked["2"] & asked["evaluation"]


def test_what_is_held_out_can_be_switched_off(written, tmp_path):
    path = write_data(plan_of("evaluation", tmp_path, count=9, wordings="training", combinations="training"))
    held_out = {row["conversations"][0]["value"] for row in rows_of(written["evaluation"])}
    assert not held_out & {row["conversations"][0]["value"] for row in rows_of(path)}


def test_workers_and_a_second_run_change_nothing(written, tmp_path):
    path = write_data(plan_of("2", tmp_path), workers=2)
    assert path.read_bytes() == written["2"].read_bytes()
    videos = sorted(path.with_suffix("").iterdir())
    assert len(videos) == COUNT
    assert all(video.read_bytes() == (written["2"].with_suffix("") / video.name).read_bytes() for video in videos)


def test_another_seed_gives_other_data(written, tmp_path):
    path = write_data(plan_of("1.5", tmp_path, count=4, seed=1))
    assert not {row["id"] for row in rows_of(path)} & {row["id"] for row in rows_of(written["1.5"])}
    assert [row["conversations"] for row in rows_of(path)] != [r["conversations"] for r in rows_of(written["1.5"])[:4]]


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("3", {}, "choose one of 1, 1.5, 2, evaluation"),
        ("2", {"count": 0}, "count=0"),
        ("2", {"size": 57}, "even"),
        ("2", {"frames": (8, 4)}, "8 or more"),
        ("2", {"single_share": 1.5}, "between 0 and 1"),
        ("evaluation", {"wordings": "all"}, "wordings='all'"),
    ],
)
def test_wrong_plans_are_refused(tmp_path, part, changes, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"part": part, "output": tmp_path, "count": 1, "frames": (8,), **changes})


def test_the_command(tmp_path, capsys):
    assert main(["1.5", "--output", str(tmp_path), "--count", "2", "--frames", "8", "--size", "56"]) == 0
    assert str(tmp_path / "stage1_5.jsonl") in capsys.readouterr().out
    assert main(["2", "--output", str(tmp_path), "--count", "2", "--frames", "4"]) == 2
    assert "8 or more" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    script = Path(make_synthetic_data.__file__)
    code = (
        "import sys, runpy\n"
        "sys.argv = ['make_synthetic_data', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--count" in done.stdout, done.stderr
