"""The three stages as commands: from a folder of videos and a json to a model, chained, resumed, and refused."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_video_ma2mba import VideoMa2mbaForConditionalGeneration
from modeling_video_ma2mba.train.readers import READERS
from modeling_video_ma2mba.train.run_stage import main
from modeling_video_ma2mba.train.synthetic_video import write_video

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture
def start(tiny_video_config, processor, tmp_path):
    """A model folder to begin with."""
    torch.manual_seed(0)
    VideoMa2mbaForConditionalGeneration(tiny_video_config).save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def data(tmp_path):
    """Eight clips of one colour each, captions and questions in LLaVA's format."""
    folder = tmp_path / "data"
    folder.mkdir()
    captions, questions = [], []
    for i in range(8):
        colour = list(COLOURS)[i % 2]
        frames = np.full((20, 64, 64, 3), COLOURS[colour], dtype=np.uint8)
        write_video(folder / f"{i}.mp4", frames, fps=10)
        turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": f"a {colour} car"}]
        captions.append({"id": i, "video": f"{i}.mp4", "conversations": turns})
        for question, answer in (("what is it ?", colour), ("who wins ?", "a car")):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            questions.append({"id": f"{i}-{answer}", "video": f"{i}.mp4", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


def run(stage, start, data, output, *more):
    words = ["--recipe", "tiny", "--init-from", str(start), "--data", str(data), "--output", str(output)]
    words += ["--override", "global_batch_size=4", "--override", "max_steps=3", "--device", "cpu", "--workers", "0"]
    return main(stage, [*words, "--report-to", "none", *more])


def weights(folder):
    return dict(VideoMa2mbaForConditionalGeneration.from_pretrained(folder).named_parameters())


def test_stages_chain_and_leave_all_that_is_needed_to_repeat_them(start, data, tmp_path, capsys):
    assert run("1", start, f"llava-pretrain:{data / 'captions.json'}", tmp_path / "one") == 0
    before, after = weights(start), weights(tmp_path / "one")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("projector" in name for name in moved)
    assert run("2", tmp_path / "one", data / "questions.json", tmp_path / "two", "--workers", "2") == 0
    manifest = json.loads((tmp_path / "two" / "run.json").read_text())
    assert manifest["recipe"]["stage"] == "2" and manifest["recipe"]["max_steps"] == 3
    assert manifest["data"]["samples"] == 8  # sixteen questions about eight videos
    assert {"torch", "transformers"} <= set(manifest["versions"])
    assert f"the model is in {tmp_path / 'two'}, the log" in capsys.readouterr().out
    assert not list((tmp_path / "two").glob("frames-*"))
    later = weights(tmp_path / "two")
    still = {name for name in after if torch.equal(after[name], later[name])}
    assert still == set(VideoMa2mbaForConditionalGeneration.from_pretrained(start).unused_parameters())


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(start, data, tmp_path):
    words = ("--override", "max_steps=4", "--save-steps", "2")
    assert run("2", start, data / "questions.json", tmp_path / "whole", *words) == 0
    assert run("2", start, data / "questions.json", tmp_path / "parts", *words) == 0
    for path in (tmp_path / "parts").glob("model*.safetensors"):
        path.unlink()
    (tmp_path / "parts" / "checkpoint-4" / "trainer_state.json").unlink()  # as if killed while saving step 4
    assert run("2", start, data / "questions.json", tmp_path / "parts", *words) == 0
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_does_not_go_on_under_other_settings(start, data, tmp_path, capsys):
    assert run("2", start, data / "questions.json", tmp_path / "run") == 0
    assert run("2", start, data / "questions.json", tmp_path / "run", "--override", "learning_rate=1e-5") == 2
    assert "learning_rate was 0.002, is 1e-05" in capsys.readouterr().err
    rows = json.loads((data / "questions.json").read_text())[:-1]
    (data / "questions.json").write_text(json.dumps(rows))
    assert run("2", start, data / "questions.json", tmp_path / "run") == 2
    assert "the data are others" in capsys.readouterr().err


def test_a_finished_run_says_so_and_stays_as_it_is(start, data, tmp_path, capsys):
    assert run("2", start, data / "questions.json", tmp_path / "run") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert run("2", start, data / "questions.json", tmp_path / "run") == 0
    assert f"already finished; the model is in {tmp_path / 'run'}" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert {p.name for p in before if before[p] != after[p]} <= {"run", "left_out_rows.jsonl"}


@pytest.mark.parametrize("words", [(), ("--streaming",)])
def test_a_run_whose_steps_are_done_only_writes_its_model(start, data, tmp_path, words):
    """As if killed while the trained model was written, in the middle of an epoch."""
    assert run("2", start, data / "questions.json", tmp_path / "run", *words) == 0
    before = weights(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    assert run("2", start, data / "questions.json", tmp_path / "run", *words) == 0
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("words", [(), ("--streaming",)])
def test_excluded_videos_are_not_trained_on(start, data, tmp_path, capsys, words):
    (tmp_path / "test.csv").write_text("video_name,question\n3,who\nfolder/5.mp4,what\n")
    words = ("--exclude", str(tmp_path / "test.csv"), *words)
    # Videos that cannot be read are listed if they are touched.
    (data / "3.mp4").write_bytes(b"no video")
    (data / "5.mp4").write_bytes(b"no video")
    assert run("2", start, data / "questions.json", tmp_path / "run", *words) == 0
    assert "left out on request: 4 samples, in the list of excluded ids" in capsys.readouterr().out
    assert not (tmp_path / "run" / "left_out_media.jsonl").exists()


def test_help_names_the_readers_and_the_fields_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        main("2", ["--help"])
    shown = capsys.readouterr().out
    assert "vision_learning_rate" in shown
    assert all(name in shown for name in READERS)


def test_lora_leaves_an_adapter_and_a_whole_model(start, data, tmp_path):
    words = ("--override", "lora_rank=4", "--override", "trains=[projector, language_model]")
    assert run("2", start, data / "questions.json", tmp_path / "lora", *words) == 0
    assert (tmp_path / "lora" / "adapter" / "adapter_model.safetensors").is_file()
    before, after = weights(start), weights(tmp_path / "lora")
    assert before.keys() == after.keys()
    assert any("in_proj" in name and not torch.equal(before[name], after[name]) for name in before)


def test_what_was_left_out_is_listed(start, data, tmp_path, caplog):
    rows = json.loads((data / "questions.json").read_text())
    rows.append({"id": "gone", "video": "gone.mp4", "conversations": rows[0]["conversations"]})
    (data / "questions.json").write_text(json.dumps(rows))
    (data / "7.mp4").write_bytes(b"no video")
    with caplog.at_level(logging.WARNING):
        words = ("--override", "max_bad_share=0.9")
        assert run("2", start, data / "questions.json", tmp_path / "run", *words) == 0
    assert "gone" in (tmp_path / "run" / "left_out_rows.jsonl").read_text()
    assert "7.mp4" in (tmp_path / "run" / "left_out_media.jsonl").read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        (("--override", "lr=1"), "no field 'lr'"),
        (("--data", "missing.json"), "missing.json"),
        (("--override", "max_bad_share=-1"), "max_bad_share"),
        (("--batch-size", "3"), "cannot be made of 1 devices"),
        (("--batch-size", "0"), "--batch-size 0: give 1 or more"),
        (("--init-from", "/no/such/folder"), "no such folder"),
        (("--save-steps", "0"), "--save-steps 0: give a number of steps"),
        (("--streaming", "--override", "max_steps=null"), "add --override max_steps="),
        (("--streaming", "--shuffle-buffer", "0"), "--shuffle-buffer 0"),
        (("--exclude", "missing.txt"), "missing.txt"),
    ],
)
def test_bad_input_is_one_line(start, data, tmp_path, capsys, words, message):
    assert run("2", start, data / "questions.json", tmp_path / "run", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("stage 2: error:") and message in line


def test_two_processes_share_the_global_batch(start, data, tmp_path):
    """Videos of unequal lengths, and one process that has none of them in a step."""
    rows = json.loads((data / "questions.json").read_text())
    write_video(data / "long.mp4", np.full((70, 64, 64, 3), COLOURS["red"], dtype=np.uint8), fps=10)
    rows.append({"id": "long", "video": "long.mp4", "conversations": rows[0]["conversations"]})
    (data / "questions.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29741"]
    command += [str(ROOT / "train" / "stage2.py"), "--recipe", "tiny", "--init-from", str(start), "--device", "cpu"]
    command += ["--data", str(data / "questions.json"), "--output", str(tmp_path / "two"), "--report-to", "none"]
    command += ["--override", "global_batch_size=4", "--override", "max_steps=4", "--workers", "1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = weights(start), weights(tmp_path / "two")
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == set(VideoMa2mbaForConditionalGeneration.from_pretrained(start).unused_parameters())
    state = json.loads((tmp_path / "two" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert len(list((tmp_path / "two" / "checkpoint-4").glob("rng_state_*.pth"))) == 2  # two processes there were
