"""Half-written checkpoints are recognised and passed over."""

import json

import pytest
import torch
from safetensors.torch import save_file

from modeling_video_ma2mba.train.checkpoints import last_complete_checkpoint


@pytest.fixture
def write(tmp_path):
    def checkpoint(step, without=(), ranks=1):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.ones(1000)}, str(folder / "model.safetensors"))
        names = ["optimizer.pt", "scheduler.pt"]
        names += ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
        for name in names:
            torch.save({"x": torch.ones(100)}, folder / name)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        for name in without:
            (folder / name).unlink()
        return folder

    return checkpoint


def test_the_newest_by_number_is_taken(write, tmp_path):
    write(9)
    newest = write(10)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("name", ["trainer_state.json", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_folder_without_a_file_is_passed_over(write, tmp_path, name):
    whole = write(2)
    write(4, without=[name])
    assert last_complete_checkpoint(tmp_path) == whole


def test_cut_files_are_recognised(write, tmp_path):
    whole = write(2)
    weights = write(4) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (write(6) / "trainer_state.json").write_text('{"global_st')
    (write(8) / "trainer_state.json").write_text('{"global_step": 7}')
    assert last_complete_checkpoint(tmp_path) == whole


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_cut_states_are_recognised(write, tmp_path, name):
    whole = write(2)
    path = write(4) / name
    path.write_bytes(path.read_bytes()[:-200])
    assert last_complete_checkpoint(tmp_path) == whole


def test_every_process_must_have_written(write, tmp_path):
    whole = write(2, ranks=2)
    write(4, without=["rng_state_1.pth"], ranks=2)
    assert last_complete_checkpoint(tmp_path, world_size=2) == whole


def test_no_checkpoint_at_all(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "missing") is None
