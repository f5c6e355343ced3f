"""`push_space`: the page to a Hub on this machine, downloaded from there, and started with nothing but those files."""

import os
import subprocess
import sys

import pytest
import yaml

from modeling_video_ma2mba.hub_cards.own_package import own_package
from modeling_video_ma2mba.hub_cards.push_space import push_space
from tests.hub_cards.hub_server import ROOT, TOKEN, run, running_hub

PUSH = """
import sys
import _video_ma2mba_cli as cli
from huggingface_hub import snapshot_download
assert cli.main(["push", "me/mine", "me/page", "--space", "--public"]) == 0
assert cli.main(["push", "tiny", "me/page", "--space"]) == 0  # again, with another model
assert cli.main(["push", "me/mine", "private-page", "--space"]) == 0
snapshot_download("me/page", repo_type="space", local_dir=sys.argv[1])
"""
# What `python app.py` does, up to the web server; a person then watches a sample and asks.
START = """
import importlib.util, runpy, sys, unittest.mock
if importlib.util.find_spec("gradio") is None:
    sys.modules["gradio"] = unittest.mock.MagicMock()
from modeling_video_ma2mba.hub_cards import space_page
def use(page, port=None):
    session, sample = page.sessions.get("a"), page.samples[0]
    list(page.viewer.watch(session, str(sample.path)))
    *_, answer = page.viewer.answer(page.viewer.memory_asked(session), sample.questions[0])
    print("answer:", answer)
space_page.Page.launch = use
runpy.run_path("app.py", run_name="__main__")
own = [module for name, module in sys.modules.items() if name.split(".")[0] == "modeling_video_ma2mba"]
print("\\n".join(sorted(module.__file__ for module in own)))
"""


def start(folder):
    """Run the app of a folder as Python does in it: its own files come before whatever is installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    kept |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VIDEO_MA2MBA_MODEL": "tiny"}
    return subprocess.run(
        [sys.executable, "-c", START], cwd=folder, env=kept, capture_output=True, text=True, timeout=500
    )


def test_to_the_hub_and_running_from_there(tmp_path):
    folder = tmp_path / "space"
    with running_hub() as hub:
        done = run(PUSH, folder, tmp_path, hub)
        assert done.returncode == 0, done.stderr[-3000:]
        assert TOKEN not in done.stdout + done.stderr and f"{hub.endpoint}/spaces/me/page/commit/" in done.stdout
        page, private = hub.repositories["spaces/me/page"], hub.repositories["spaces/me/private-page"]
        assert page["sdk"] == "gradio" and not page["private"] and private["private"]
        assert page["variables"] == {"VIDEO_MA2MBA_MODEL": "tiny"}
        assert private["variables"] == {"VIDEO_MA2MBA_MODEL": "me/mine"}
        requests = [path for _, path in hub.requests if "private-page" in path]
        variables, commit = (f"/api/spaces/me/private-page/{name}" for name in ("variables", "commit/main"))
        assert requests.index(variables) < requests.index(commit)  # the first start knows the model
    head = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio" and (folder / head["app_file"]).is_file()
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert "torch>=2.6" in requirements and "gradio>=6" in requirements
    assert not any("ma2mba" in line or "pytest" in line for line in requirements)

    started = start(folder)
    assert started.returncode == 0, started.stderr[-3000:]
    answer, *modules = started.stdout.splitlines()
    assert answer.removeprefix("answer:").strip()
    assert len(modules) > 30 and all(module.startswith(f"{folder}/modeling_video_ma2mba/") for module in modules)


def test_a_dry_run_lists_the_files_and_sends_nothing(monkeypatch):
    monkeypatch.setattr("modeling_video_ma2mba.hub_cards.push.HfApi", None)
    upload = push_space("tiny", "me/page", dry_run=True)
    assert upload.url is None and upload.left == []
    top = {name for name in upload.sizes if "/" not in name}
    assert top == {"LICENSE", "README.md", "app.py", "page.png", "requirements.txt"}
    own = "modeling_video_ma2mba"
    assert {f"{own}/__init__.py", f"{own}/train/recipes.yaml", f"{own}/hub_cards/tiny/model.safetensors"} <= set(
        upload.sizes
    )
    assert not any(name.startswith(f"{own}/hub_cards/space/") or "__pycache__" in name for name in upload.sizes)


@pytest.mark.parametrize(
    "model, repo_id, reason",
    [
        ("tiny", "a/b/c", "no name of a repository"),
        ("a/b/c", "me/page", "no name of a repository"),
        ("folder", "me/page", "a Space does not see"),
    ],
)
def test_names_that_are_none(tmp_path, monkeypatch, model, repo_id, reason):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=reason):
        push_space(model, repo_id, dry_run=True)


def test_without_the_weights(monkeypatch):
    monkeypatch.setattr("modeling_video_ma2mba.hub_cards.push_space.is_shipped", lambda: False)
    with pytest.raises(ValueError, match="name a model on the Hub"):
        push_space("tiny", "me/page", dry_run=True)


def test_code_copied_by_hand_is_not_pushed(monkeypatch, tmp_path):
    monkeypatch.setattr("modeling_video_ma2mba.__file__", str(tmp_path / "modeling_video_ma2mba" / "__init__.py"))
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(ValueError, match="install it with pip"):
        own_package()
