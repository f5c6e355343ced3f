"""`video-ma2mba data check` tells what a stage would train on, and agrees with the collator."""

import json

import numpy as np
import pytest
import torch

import _video_ma2mba_cli as cli
from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.collator import SampleCollator
from modeling_video_ma2mba.train.data_check import check_data
from modeling_video_ma2mba.train.data_report import DataReport
from modeling_video_ma2mba.train.readers import read_data
from modeling_video_ma2mba.train.recipes import load_recipe
from modeling_video_ma2mba.train.samples import grouped
from modeling_video_ma2mba.train.synthetic_video import write_video
from modeling_video_ma2mba.train.training_set import MediaDecoder


@pytest.fixture
def folder(tiny_video_config, processor, tmp_path):
    torch.manual_seed(0)
    VideoMa2mbaForConditionalGeneration(tiny_video_config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = []
    for i, seconds in enumerate((2, 5, 9)):
        write_video(tmp_path / f"{i}.mp4", np.full((seconds * 10, 64, 64, 3), 90, dtype=np.uint8), fps=10)
        for answer in ("red", "a car"):
            turns = [{"from": "human", "value": "<image>\nwho wins ?"}, {"from": "gpt", "value": answer}]
            rows.append({"id": f"{i}{answer}", "video": f"{i}.mp4", "conversations": turns})
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows.append({**rows[0], "id": "broken", "video": "broken.mp4"})
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.mark.parametrize("limit", [None, 4])
def test_lengths_are_those_of_the_batches(folder, processor, limit):
    recipe = load_recipe("tiny", "2", ["max_frames=4"] if limit else [])
    found = check_data([str(folder / "qa.json")], recipe, str(folder / "model"))
    samples = grouped(read_data([str(folder / "qa.json")], "2", DataReport(), 0))
    decode = MediaDecoder(processor.image_processor.fit, recipe.fps, recipe.max_frames)
    batches = [SampleCollator(processor)([decode(s)]) for s in samples if "broken" not in s.id]
    assert found.lengths == [batch["input_ids"].shape[1] for batch in batches]
    assert found.frames == sum(len(batch["pixel_values_videos"][0]) for batch in batches)
    assert found.seconds == pytest.approx(16, abs=0.5)
    assert [path.endswith("broken.mp4") for path in found.bad] == [True]


def test_the_command_prints_it(folder, capsys):
    words = ["data", "check", "--stage", "2", "--data", str(folder / "qa.json"), "--model", str(folder / "model")]
    assert cli.main([*words, "--tokens-per-second", "1000", "--budget", "1GiB"]) == 0
    printed = capsys.readouterr().out
    for piece in ("3 samples can be used, 1 media files cannot", "broken.mp4", "16 frames", "hours", "within 1.0 GiB"):
        assert piece in printed, printed
    assert cli.main(words) == 0
    assert "the least that would do" in capsys.readouterr().out


def test_rows_left_out_are_named_and_stop_a_run(folder, capsys):
    rows = json.loads((folder / "qa.json").read_text())
    bad = [{"id": f"lost{i}", "video": f"lost{i}.mp4", "conversations": rows[0]["conversations"]} for i in range(22)]
    (folder / "qa.json").write_text(json.dumps([rows[0], *bad]))
    assert cli.main(["data", "check", "--stage", "2", "--data", str(folder / "qa.json")]) == 2  # the shipped model
    printed = capsys.readouterr().out
    assert f"{folder / 'qa.json'} row 2 (lost0): media not found: " in printed
    assert "lost19" in printed and "lost20" not in printed and "... and 2 more" in printed
    assert "a run would stop: 22 of 23 rows (95.7%) were left out" in printed
    words = ["--data", str(folder / "qa.json"), "--override", "max_bad_share=1"]
    assert cli.main(["data", "check", "--stage", "2", *words]) == 0
    assert "would stop" not in capsys.readouterr().out


def test_media_that_stop_a_run_are_told(folder, capsys):
    rows = json.loads((folder / "qa.json").read_text())
    for i in range(25):
        (folder / f"bad{i}.mp4").write_bytes(b"no video")
    bad = [{"id": f"bad{i}", "video": f"bad{i}.mp4", "conversations": rows[0]["conversations"]} for i in range(25)]
    for rest, message in ((rows[:1], "the media of 25 of 26 samples cannot be read"), ([], "no sample can be used")):
        (folder / "qa.json").write_text(json.dumps([*rest, *bad]))
        assert cli.main(["data", "check", "--stage", "2", "--data", str(folder / "qa.json")]) == 2
        assert f"a run would stop: {message}" in capsys.readouterr().out


def test_bad_input_is_one_line(folder, capsys):
    words = ["data", "check", "--stage", "2", "--data", str(folder / "no.json"), "--model", str(folder / "model")]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("video-ma2mba: error:")
