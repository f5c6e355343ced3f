"""`push_to_hub`: to a Hub on this machine and back, into a process that has never seen this package."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from modeling_video_ma2mba.hub_cards.folder_check import check_card, check_loads, folder_files
from modeling_video_ma2mba.hub_cards.push import push_to_hub, upload_text
from modeling_video_ma2mba.train.synthetic_video import write_video
from tests.hub_cards.hub_server import TOKEN, run, running_hub

ROOT = Path(__file__).resolve().parents[2]
CARD = "---\nlicense: apache-2.0\n---\n\n# A model\n"


@pytest.fixture(scope="module")
def folders(model_folders, tmp_path_factory):
    """The small models with cards."""
    top = Path(shutil.copytree(model_folders, tmp_path_factory.mktemp("cards") / "models"))
    for folder in top.iterdir():
        (folder / "README.md").write_text(CARD)
    return top


@pytest.fixture
def film(tmp_path):
    write_video(tmp_path / "film.mp4", np.full((20, 64, 64, 3), 200, dtype=np.uint8), fps=10)
    return tmp_path / "film.mp4"


@pytest.fixture
def qa_copy(folders, tmp_path):
    """The first folder, to be damaged."""
    return Path(shutil.copytree(folders / "qa", tmp_path / "qa"))


PUSH = """
import sys
import _video_ma2mba_cli as cli
from transformers import AutoTokenizer
import modeling_video_ma2mba as package
top = sys.argv[1]
for name, more in (("qa", ["--public"]), ("text", []), ("clips", [])):
    assert cli.main(["push", f"{top}/{name}", f"me/{name}", *more]) == 0
model = package.VideoMa2mbaForConditionalGeneration.from_pretrained(f"{top}/qa")
model.push_to_hub("me/transformers-own")
package.VideoMa2mbaProcessor.from_pretrained(f"{top}/qa").push_to_hub("me/transformers-own")
model.save_pretrained("saved", push_to_hub=True, repo_id="me/saved")
"""
LOAD = """
import sys, importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_video_ma2mba":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers import AutoModelForMultimodalLM, AutoModelForVideoClassification, AutoProcessor, AutoTokenizer
from transformers import pipeline
film, trust = sys.argv[1], {"trust_remote_code": True}
def show(kinds, name):
    for kind in kinds:
        print(name, type(kind.from_pretrained(name, **trust)).__name__)
show([AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor], "me/qa")
show([AutoConfig, AutoModel, AutoModelForCausalLM], "me/text")
show([AutoConfig, AutoModel, AutoModelForVideoClassification, AutoProcessor], "me/clips")
show([AutoModelForImageTextToText, AutoProcessor], "me/transformers-own")
for name in ("me/qa", "me/transformers-own"):
    pipe = pipeline("video-qa", model=name, device="cpu", **trust)
    print(sorted(pipe(video=film, question="who wins ?", max_new_tokens=3)))
print(len(pipeline("video-classification", model="me/clips", device="cpu", **trust)(film, top_k=3)))
tokens = AutoTokenizer.from_pretrained("me/text", **trust)("who wins ?", return_tensors="pt")["input_ids"]
print(tuple(AutoModelForCausalLM.from_pretrained("me/text", **trust).generate(tokens, max_new_tokens=2).shape))
"""


def test_to_the_hub_and_back_without_the_package(folders, film, tmp_path):
    with running_hub() as hub:
        done = run(PUSH, folders, tmp_path, hub)
        assert done.returncode == 0, done.stderr[-3000:]
        assert TOKEN not in done.stdout + done.stderr
        assert "README.md" in done.stdout and f"{hub.endpoint}/me/qa/commit/" in done.stdout
        assert {name: one["private"] for name, one in hub.repositories.items()} == {
            "me/qa": False, "me/text": True, "me/clips": True, "me/transformers-own": False, "me/saved": False,
        }  # fmt: skip
        for repository in hub.repositories.values():
            assert repository["large"] == {"model.safetensors"}
            references = json.loads(repository["files"]["config.json"])["auto_map"].values()
            # The processor's file is pushed with the processor.
            files = {f"{reference.split('.')[0]}.py" for reference in references if "rocess" not in reference}
            assert files <= set(repository["files"])
        assert hub.repositories["me/qa"]["files"]["README.md"] == CARD.encode()
        assert hub.repositories["me/qa"]["files"]["LICENSE-CODE"] == (ROOT / "LICENSE").read_bytes()
        assert "pipeline_video_qa.py" in hub.repositories["me/saved"]["files"]
        loaded = run(LOAD, film, tmp_path, hub)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert loaded.stdout.splitlines() == [
        "me/qa VideoMa2mbaConfig",
        "me/qa VideoMa2mbaModel",
        "me/qa VideoMa2mbaForConditionalGeneration",
        "me/qa VideoMa2mbaForConditionalGeneration",
        "me/qa VideoMa2mbaProcessor",
        "me/text Ma2mbaConfig",
        "me/text Ma2mbaModel",
        "me/text Ma2mbaForCausalLM",
        "me/clips VideoMambaConfig",
        "me/clips VideoMambaModel",
        "me/clips VideoMambaForVideoClassification",
        "me/clips VideoMambaProcessor",
        "me/transformers-own VideoMa2mbaForConditionalGeneration",
        "me/transformers-own VideoMa2mbaProcessor",
        "['answer']",
        "['answer']",
        "3",
        "(1, 5)",
    ]


def test_a_dry_run_lists_the_files_and_sends_nothing(folders, monkeypatch):
    monkeypatch.setattr("modeling_video_ma2mba.hub_cards.push.HfApi", None)
    (folders / "qa" / "checkpoint-5").mkdir(exist_ok=True)
    upload = push_to_hub(folders / "qa", "me/mine", dry_run=True)
    assert upload.sizes["model.safetensors"] == (folders / "qa" / "model.safetensors").stat().st_size
    assert {"README.md", "config.json", "tokenizer.json", "pipeline_video_qa.py", "modeling_video_ma2mba.py"} <= set(
        upload.sizes
    )
    assert upload.left == ["checkpoint-5"] and upload.url is None
    text = upload_text(upload, "me/mine")
    assert f"{upload.sizes['model.safetensors']:,}" in text and "nothing was sent" in text


def test_the_shipped_model_may_be_pushed():
    upload = push_to_hub("tiny", "me/tiny", dry_run=True)
    assert {"model.safetensors", "run.json", "processing_video_ma2mba.py", "logs/stage2.json"} <= set(upload.sizes)


def test_nobody_is_logged_in(folders, monkeypatch):
    monkeypatch.setattr("modeling_video_ma2mba.hub_cards.push.get_token", lambda: None)
    with pytest.raises(ValueError, match="hf auth login"):
        push_to_hub(folders / "clips", "me/mine")


@pytest.mark.parametrize("name", ["a/b/c", "../mine", "me/", "me/mine --public"])
def test_a_name_that_is_none(folders, name):
    with pytest.raises(ValueError, match="no name of a repository"):
        push_to_hub(folders / "qa", name, dry_run=True)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("optimizer.pt", "a pickle"),
        ("pytorch_model.bin", "a pickle"),
        ("helper.py", "code that is not this package's"),
        (".env", "hidden"),
        ("notes\n.md", "a name that is hidden"),
        ("film.mp4", "a kind of file"),
        ("deep/er/film.mp4", "a kind of file"),
    ],
)
def test_strange_files_are_refused(qa_copy, name, reason):
    (qa_copy / name).parent.mkdir(parents=True, exist_ok=True)
    (qa_copy / name).write_text("x")
    with pytest.raises(ValueError, match=reason):
        folder_files(qa_copy)


def test_links_out_of_the_folder_are_refused(qa_copy, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "others").mkdir()
    (qa_copy / "link.json").symlink_to(tmp_path / "secret.json")
    (qa_copy / "folder").symlink_to(tmp_path / "others")
    with pytest.raises(
        ValueError, match=r"folder \(a link out of the folder\), link.json \(a link out of the folder\)"
    ):
        folder_files(qa_copy)


def test_own_code_in_the_folder_is_replaced(qa_copy):
    (qa_copy / "modeling_ma2mba.py").write_text("import os; os.abort()")
    (qa_copy / "LICENSE").write_text("of the weights")
    (qa_copy / "LICENSE-CODE").write_text("of older code")
    upload = push_to_hub(qa_copy, "me/mine", dry_run=True)
    assert upload.sizes["LICENSE-CODE"] == (ROOT / "LICENSE").stat().st_size
    assert upload.sizes["LICENSE"] == len("of the weights")
    assert upload.sizes["modeling_ma2mba.py"] == (ROOT / "modeling_video_ma2mba" / "modeling_ma2mba.py").stat().st_size


@pytest.mark.parametrize(
    "text, reason",
    [
        (None, "has no card"),
        ("# no head\n", "names no licence"),
        ("---\nlicense: [\n---\n", "not YAML"),
        ("---\nlicense: mit\n---\n{{name}}\n", "line 4 is still to be filled in"),
        ("---\nlicense: mit\n---\nTrained on [More Information Needed]\n", "filled in: Trained on"),
        ("---\nlicense: mit\n---\n[to fill in: data]\n", "still to be filled in"),
    ],
)
def test_cards_that_are_not_done_are_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=reason):
        check_card(tmp_path / "README.md")


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def cut_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def shrink_frames(folder):
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens_per_frame": 9}))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (cut_weights, "damaged"),
        (lambda folder: edit_config(folder, model_type="bert"), "not one of this package"),
        (lambda folder: edit_config(folder, architectures=["os.system"]), "expected one class of this package"),
        (lambda folder: edit_config(folder, tie_word_embeddings=False), "missing keys"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no processor or tokenizer that loads"),
        (shrink_frames, "the processor writes 9 tokens a frame"),
    ],
)
def test_folders_that_do_not_load_are_refused(qa_copy, damage, reason):
    damage(qa_copy)
    with pytest.raises((ValueError, OSError), match=reason):
        check_loads(qa_copy)
