"""Every Python snippet of the README runs as it stands, in order, on a tiny model."""

import re
from pathlib import Path

import numpy as np
import torch
from transformers import BertTokenizer, Mamba2Config, Mamba2ForCausalLM

from modeling_video_ma2mba import VideoMambaConfig, VideoMambaForVideoClassification
from modeling_video_ma2mba.train.synthetic_video import write_video
from tests.modeling_video_ma2mba.multimodal_model import WORDS
from tests.modeling_video_ma2mba.videomamba_reference import published as multi_modal

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_snippets_run(tiny_video_model, processor, tmp_path, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) >= 4
    monkeypatch.chdir(tmp_path)
    tiny_video_model.save_pretrained("model")
    processor.save_pretrained("model")
    config = Mamba2Config(
        hidden_size=64, num_heads=4, head_dim=32, n_groups=1, num_hidden_layers=2, vocab_size=32, state_size=16
    )
    Mamba2ForCausalLM(config).save_pretrained("mamba2")
    for name in ("film.mp4", "a.mp4", "b.mp4"):
        write_video(name, np.full((20, 64, 64, 3), 99, dtype=np.uint8), fps=10)
    clips = VideoMambaForVideoClassification(
        VideoMambaConfig(hidden_size=16, num_hidden_layers=2, image_size=32, num_frames=2, num_labels=4)
    )
    published = {name.removeprefix("videomamba."): tensor for name, tensor in clips.state_dict().items()}
    torch.save({"model": published}, "videomamba_m16_k400_f8_res224.pth")
    torch.save({"model": multi_modal(family="multi_modal")}, "videomamba_m16_25M_f8_res224.pth")
    BertTokenizer(vocab={word: i for i, word in enumerate([*WORDS, "far"])}).save_pretrained("bert-base-uncased")
    names = {"path": "model", "mamba2_folder": "mamba2", "tokenizer_folder": "model"}
    torch.manual_seed(0)
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert Path("film.safetensors").is_file()


def test_tables_are_those_of_the_result_files():
    """A figure in README or card comes from a result file: `python benchmarks/readme_tables.py --write`."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for file in module.MARKERS:
        assert module.with_tables(file) == (ROOT / file).read_text(encoding="utf-8"), file


def test_commands_exist():
    """Every `video-ma2mba COMMAND` and `make TARGET` named in the README is there."""
    import _video_ma2mba_cli as cli

    commands = cli._parser()._subparsers._group_actions[0].choices
    assert set(re.findall(r"video-ma2mba (\w+)", README)) - {"is"} <= set(commands)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
