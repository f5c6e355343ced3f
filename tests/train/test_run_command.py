"""What the commands that train share."""

import argparse

import pytest

from modeling_video_ma2mba.train.recipes import load_recipe
from modeling_video_ma2mba.train.run_command import add_run_options, run_arguments, run_command


@pytest.fixture
def options(tmp_path):
    parser = argparse.ArgumentParser()
    add_run_options(parser, "samples", batch_size=1, logging_steps=1)
    return parser.parse_args(["--output", str(tmp_path), "--device", "cpu", "--report-to", "none"])


def test_an_interrupted_run_says_how_to_go_on(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert run_command("stage 2", interrupted) == 130
    expected = "stage 2: interrupted; the same command goes on from the last checkpoint\n"
    assert capsys.readouterr().err == expected


def test_a_cpu_pins_no_memory(options):
    assert run_arguments(load_recipe("tiny", "2"), options, world_size=1).dataloader_pin_memory is False


def test_processes_that_would_train_alone_are_refused(options):
    with pytest.raises(ValueError, match="8 processes were launched, but each would train alone, on cpu"):
        run_arguments(load_recipe("tiny", "2"), options, world_size=8)
