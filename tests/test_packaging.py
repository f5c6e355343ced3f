"""The wheel: one import name and the console script's module, nothing generic in site-packages."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIST_SPACE = """
import modeling_video_ma2mba
from modeling_video_ma2mba.hub_cards.own_package import own_package
from modeling_video_ma2mba.hub_cards.push_space import push_space
print(modeling_video_ma2mba.__file__)
print(own_package().requirements)
for name, size in push_space("tiny", "me/page", dry_run=True).sizes.items():
    print(name, size)
"""


def test_the_wheel_exposes_one_name(tmp_path):
    if _setuptools_version() < 77:
        pytest.skip("building the wheel here needs setuptools >= 77 in this environment (make test installs it)")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    # A copy of what git does not ignore: building in the checkout would leave a build folder behind.
    source = tmp_path / "source"
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in files}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "modeling_video_ma2mba",
        "_video_ma2mba_cli.py",
    }
    for folder in ("processing", "train", "eval", "hub_cards"):
        for path in (ROOT / folder).glob("*.py"):
            assert f"modeling_video_ma2mba/{folder}/{path.name}" in files

    # A Space made from the wheel is the one that is made from the checkout.
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    lists = []
    for place in (installed, ROOT):
        done = subprocess.run(
            [sys.executable, "-c", LIST_SPACE], cwd=place, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        lists.append(done.stdout.splitlines())
    assert str(installed) in lists[0].pop(0) and str(ROOT) in lists[1].pop(0)
    assert lists[0] == lists[1] and len(lists[0]) > 100


def _setuptools_version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return int(version("setuptools").split(".")[0])
    except PackageNotFoundError:
        return 0


@pytest.mark.parametrize("folder", ["modeling_video_ma2mba", "processing"])
def test_files_for_the_hub_import_each_other_flat(folder):
    """`from .name import thing` only: transformers copies the files of a folder side by side."""
    import re

    for path in (ROOT / folder).glob("*.py"):
        is_command = path.name.startswith("convert_video") or path.name in ("ask.py", "load_model.py")
        if path.name == "__init__.py" or is_command:
            continue  # never copied: command code, which may use the whole package
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.match(r"\s*(from|import) modeling_video_ma2mba", line), f"{path.name}: {line}"
            match = re.match(r"\s*from (\.\S*) import", line)
            assert not match or re.fullmatch(r"\.[a-z_0-9]+", match[1]), f"{path.name}: {line}"


def test_no_file_is_too_long():
    folders = ("modeling_video_ma2mba", "processing", "train", "eval", "hub_cards", "benchmarks")
    for pattern in ("*.py", *(f"{folder}/*.py" for folder in folders)):
        for path in ROOT.glob(pattern):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path
