"""Media are found where data sets put them, and nothing outside the media folders is ever touched."""

import os

import pytest

from modeling_video_ma2mba.train.data_report import BadRow
from modeling_video_ma2mba.train.media_index import MediaIndex


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def reason(call, *arguments):
    with pytest.raises(BadRow) as raised:
        call(*arguments)
    return raised.value.reason


def test_direct_path_folder_below_and_second_root(tmp_path):
    put(tmp_path, "one/a/1.mp4", "one/0_30_s/b/2.mp4", "two/c/3.mp4", "two/a/1.mp4")
    media = MediaIndex([tmp_path / "one", tmp_path / "two"])
    assert media.find("a/1.mp4", "video") == tmp_path / "one/a/1.mp4"
    assert media.find("b/2.mp4", "video", ["0_30_s"]) == tmp_path / "one/0_30_s/b/2.mp4"
    assert media.find("./c/3.mp4", "video") == tmp_path / "two/c/3.mp4"
    assert media.found_by_name == 0


def test_by_name_in_any_case_with_any_ending_of_the_kind(tmp_path):
    put(tmp_path, "deep/er/Clip.WEBM", "deep/clip.jpg", "x/v_a.b-1.MKV")
    media = MediaIndex([tmp_path])
    assert media.find("clip.mp4", "video") == tmp_path / "deep/er/Clip.WEBM"
    assert media.find("other/CLIP.png", "image") == tmp_path / "deep/clip.jpg"
    assert media.found_by_name == 2
    assert media.find_id("v_a.b-1", "video") == tmp_path / "x/v_a.b-1.MKV"  # dots belong to the id
    assert media.found_by_name == 2  # ids name no folder


def test_of_several_names_the_one_in_the_most_similar_folders(tmp_path):
    put(tmp_path, "part_1/p1/7.mp4", "part_2/p2/7.mp4", "part_2/p3/7.mp4", "ids/AbC.mp4", "ids/abc.mp4")
    media = MediaIndex([tmp_path])
    assert media.find("p2/7.mp4", "video") == tmp_path / "part_2/p2/7.mp4"
    assert reason(media.find, "p9/7.mp4", "video") == "media name is not unique"
    assert media.find_id("AbC", "video") == tmp_path / "ids/AbC.mp4"
    assert reason(media.find_id, "ABC", "video") == "media name is not unique"


def test_accented_names_in_either_unicode_form(tmp_path):
    put(tmp_path, "d/caf\u00e9.mp4")
    assert MediaIndex([tmp_path]).find("cafe\u0301.mp4", "video").name == "caf\u00e9.mp4"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.mp4", "a/../../secret.mp4", "a\\..\\secret.mp4", "/etc/passwd", "\\\\host\\a.mp4", "~/a.mp4",
        "C:/a.mp4", "https://example.invalid/a.mp4", "file:///etc/passwd", "", "  ", "a\0.mp4", "a" * 5000,
    ],
)  # fmt: skip
def test_paths_that_are_not_relative_are_refused(tmp_path, name):
    put(tmp_path, "secret.mp4", "root/a/x.mp4")
    media = MediaIndex([tmp_path / "root"])
    assert reason(media.find, name, "video") == "media path refused"
    assert reason(media.find_frames, name) == "media path refused"


def test_hostile_folders_and_ids_are_refused(tmp_path):
    put(tmp_path, "secret.mp4", "root/a/x.mp4")
    media = MediaIndex([tmp_path / "root"])
    assert reason(media.find, "secret.mp4", "video", ["../"]) == "media path refused"
    assert reason(media.find_id, "a/x", "video") == "media path refused"
    assert reason(media.find, "b" * 300 + ".mp4", "video") == "media not found"


def test_links_that_leave_the_roots_are_refused_unless_their_folder_is_a_root_too(tmp_path):
    put(tmp_path, "outside/o.mp4", "root/in.mp4")
    (tmp_path / "root/file.mp4").symlink_to(tmp_path / "outside/o.mp4")
    (tmp_path / "root/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "root/inside.mp4").symlink_to(tmp_path / "root/in.mp4")
    (tmp_path / "root/broken.mp4").symlink_to(tmp_path / "root/nothing.mp4")
    (tmp_path / "root/deep").mkdir()
    (tmp_path / "root/deep/byname.mp4").symlink_to(tmp_path / "outside/o.mp4")
    media = MediaIndex([tmp_path / "root"])
    for name in ("file.mp4", "folder/o.mp4", "byname.mp4"):
        assert reason(media.find, name, "video") == "media path refused"
    assert media.find("inside.mp4", "video") == tmp_path / "root/in.mp4"
    assert reason(media.find, "broken.mp4", "video") == "media not found"
    both = MediaIndex([tmp_path / "root", tmp_path / "outside"])
    assert both.find("folder/o.mp4", "video") == tmp_path / "outside/o.mp4"


def test_missing_empty_and_other_kinds(tmp_path):
    put(tmp_path, "a.jpg", "notes.txt", "._b.mp4")
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    media = MediaIndex([tmp_path])
    assert reason(media.find, "b.mp4", "video") == "media not found"
    assert reason(media.find, "empty.mp4", "video") == "media file is empty"
    assert reason(media.find, "a.jpg", "video") == "media of another kind"
    assert reason(media.find, "pipe.mp4", "video") == "media not found"
    assert reason(media.find_id, "notes", "video") == "media not found"


def test_folders_of_frames(tmp_path):
    put(tmp_path, "hound/v1/0001.jpg", "hound/v1/0002.jpg", "text/v2/readme.txt")
    media = MediaIndex([tmp_path])
    assert media.find_frames("v1", ["hound"]) == tmp_path / "hound/v1"
    assert reason(media.find_frames, "text/v2") == "folder without an image"
    assert reason(media.find_frames, "hound/v9") == "media not found"


def test_the_index_is_built_once(tmp_path, monkeypatch):
    put(tmp_path, "d/a.mp4", "d/b.mp4")
    walks = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *args: walks.append(args) or walk(*args))
    media = MediaIndex([tmp_path, tmp_path / "d", tmp_path])  # one root in another, one twice
    assert {media.find_id(id, "video").name for id in "ab"} == {"a.mp4", "b.mp4"}
    assert len(walks) == 2


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        MediaIndex([tmp_path / "nothing"])
    with pytest.raises(ValueError, match="at least one"):
        MediaIndex([])
