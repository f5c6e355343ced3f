"""`video-ma2mba push MODEL REPO_ID --space`: the web page to the Hub as a Space, with this package's code in it.

    push_space("tiny", "me/page", dry_run=True)     # the files and their sizes, nothing is sent
    push_space("me/mine", "me/page")                # a page that asks the model me/mine of the Hub

A Space installs what its requirements.txt names and has nothing else, so the package travels as files.
"""

import tempfile
from pathlib import Path

from modeling_video_ma2mba.hub_cards.own_package import NAME, own_package
from modeling_video_ma2mba.hub_cards.push import Upload, check_repo_id, upload_files
from modeling_video_ma2mba.shipped_model import SHIPPED, is_shipped

_SPACE = f"{NAME}/hub_cards/space/"


def push_space(model: str, repo_id: str, *, public: bool = False, dry_run: bool = False) -> Upload:
    """Upload the page in one commit: what a Space runs, this package, the shipped model, and requirements.txt.

    Args:
        model: which the page asks: a Hub name, or "tiny" for the shipped one; kept as the Space's variable.
        repo_id: "name" or "owner/name" of a Space; made if it is not there.
        public: make a new Space public. One that exists stays as it is.

    Raises:
        ValueError: a name that is none, a package without its files, nobody is logged in, or the Hub refuses.
        OSError: a file cannot be read, or the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    _check_model(model)
    package = own_package()
    sources = {"LICENSE": package.licence}
    for name, path in package.files.items():
        sources[name.removeprefix(_SPACE)] = path
    with tempfile.TemporaryDirectory() as scratch:
        sources["requirements.txt"] = Path(scratch) / "requirements.txt"
        sources["requirements.txt"].write_text("\n".join(package.requirements) + "\n", encoding="utf-8")
        variables = {"VIDEO_MA2MBA_MODEL": model}
        return upload_files(sources, repo_id, "space", left=[], variables=variables, public=public, dry_run=dry_run)


def _check_model(model: str) -> None:
    if model == SHIPPED:
        if not is_shipped():
            raise ValueError(f"this installation came without the model {SHIPPED!r}: name a model on the Hub")
    elif Path(model).is_dir():
        raise ValueError(
            f"{model} is a folder of this machine, which a Space does not see: push it, then name it here"
        )
    else:
        check_repo_id(model)
