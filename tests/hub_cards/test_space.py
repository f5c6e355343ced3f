"""The web page: people do not mix, limits hold, files go; and a person's main path in a real browser."""

import importlib.util
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if importlib.util.find_spec("gradio") is None:
    pytest.skip('the web page needs gradio: pip install "video-ma2mba[demo]"', allow_module_level=True)

from modeling_video_ma2mba.hub_cards.space_page import Page
from modeling_video_ma2mba.hub_cards.space_samples import make_samples
from modeling_video_ma2mba.hub_cards.space_sessions import Sessions
from modeling_video_ma2mba.hub_cards.space_viewer import Limits, Viewer
from modeling_video_ma2mba.processing.video_reader import iter_frames
from modeling_video_ma2mba.train.synthetic_video import write_video
from modeling_video_ma2mba.train.tiny_model import build_tiny_model

SCREENSHOT = Path(__file__).resolve().parents[2] / "hub_cards" / "space" / "page.png"


@pytest.fixture(scope="module")
def tiny():
    model, processor = build_tiny_model(0)
    return model.eval(), processor


@pytest.fixture
def viewer(tiny):
    return Viewer(*tiny, Limits(answer_tokens=4))


@pytest.fixture
def sessions():
    sessions = Sessions(idle_seconds=3600)
    yield sessions
    sessions.close_all()


@pytest.fixture
def films(tmp_path):
    """Two different videos of 6 and 50 s."""
    random = np.random.default_rng(1)
    paths = []
    for name, seconds in (("short.mp4", 6), ("long.mp4", 50)):
        colours = random.integers(0, 255, (seconds, 1, 1, 3), dtype=np.uint8)
        write_video(tmp_path / name, np.broadcast_to(colours, (seconds, 64, 64, 3)), fps=1)
        paths.append(str(tmp_path / name))
    return paths


def equal(one, two):
    return all(
        torch.allclose(a, b, atol=1e-4)
        for a, b in zip((*one.state.conv, *one.state.ssm), (*two.state.conv, *two.state.ssm))
    )


def test_two_people_do_not_mix(viewer, sessions, films):
    anna, ben = sessions.get("a"), sessions.get("b")
    assert anna.folder != ben.folder and sessions.get("a") is anna
    watches = [viewer.watch(anna, films[0]), viewer.watch(ben, films[1])]
    for _ in range(3):  # in turns
        for watch in watches:
            next(watch)
    for watch in watches:
        list(watch)
    for session, path in zip((anna, ben), films):
        alone = viewer.model.watch(path, processor=viewer.processor, progress=False)
        assert session.memory.frames_seen == alone.frames_seen and equal(session.memory, alone)
        assert session.memory.videos[0].name == Path(path).name and session.memory.videos[0].complete
    assert not equal(anna.memory, ben.memory)
    viewer.look_back(ben, 0)
    assert anna.as_of is None
    sessions.close("b")
    assert anna.folder.exists() and viewer.memory_asked(anna) is anna.memory
    with pytest.raises(ValueError, match="nothing has been watched"):
        viewer.memory_asked(sessions.get("b"))


def test_progress_and_timeline(viewer, sessions, films):
    session = sessions.get("a")
    steps = list(viewer.watch(session, films[1]))
    assert [step.seconds for step in steps] == list(range(2, 51, 2)) and steps[-1].frames == 50
    times = [moment.seconds for moment in session.timeline]
    assert len(times) in (24, 25) and times == sorted(times) and times[-1] == 50
    assert sum(step.has_new_moment for step in steps) == len(times)
    list(viewer.watch(session, films[0]))
    assert [moment.seconds for moment in session.timeline] == [1, 2, 3, 4, 5, 6]


def test_as_of_is_a_watch_of_the_beginning(viewer, sessions, films):
    session = sessions.get("a")
    list(viewer.watch(session, films[1]))
    for index in (0, 5, 20):
        moment = viewer.look_back(session, index)
        memory = viewer.memory_asked(session)
        assert memory.seconds_seen == moment.seconds < 50
        end = moment.seconds
        begin = viewer.model.watch(films[1], processor=viewer.processor, end=end, progress=False)
        assert equal(memory, begin)
    shown = np.asarray(Image.open(session.timeline[20].picture)).mean(axis=(0, 1))  # JPEG keeps the mean colour
    # The picture shown is the last one that this memory knows.
    *_, (_, pictures) = iter_frames(films[1], fps=1.0, end=end, chunk=1)
    assert np.abs(shown - pictures[-1].mean(axis=(0, 1))).max() < 2
    viewer.look_back(session, None)
    assert viewer.memory_asked(session).seconds_seen == 50


def test_answers_stream_and_many_questions(viewer, sessions, films):
    session = sessions.get("a")
    list(viewer.watch(session, films[0]))
    for question in ("what colour is it ?", "which digit was shown ?"):
        parts = list(viewer.answer(viewer.memory_asked(session), question))
        whole = viewer.model.ask(
            session.memory, question, processor=viewer.processor, max_new_tokens=4, do_sample=False,
            stop_on_repetition=True,
        )  # fmt: skip
        assert parts[-1] == whole and len(parts) > 1
        assert all(whole.startswith(part) for part in parts)
    for question, reason in (("  ", "type a question"), ("a" * 501, "501 letters"), ("<video> ?", "<video>")):
        with pytest.raises(ValueError, match=reason):
            list(viewer.answer(session.memory, question))


def test_limits(tiny, sessions, films):
    session = sessions.get("a")
    with pytest.raises(ValueError, match=r"long\.mp4 lasts 0:50, allowed here are 0:20"):
        list(Viewer(*tiny, Limits(video_seconds=20)).watch(session, films[1]))
    with pytest.raises(ValueError, match="allowed here are 0 MiB"):
        list(Viewer(*tiny, Limits(upload_bytes=1000)).watch(session, films[1]))
    assert session.memory is None
    steps = list(Viewer(*tiny, Limits(watch_seconds=0)).watch(session, films[1]))
    assert len(steps) == 1 and "stopped" in steps[0].note
    assert session.memory.frames_seen == 2 and not session.memory.videos[0].complete
    assert Viewer(*tiny, Limits(snapshot_bytes=0)).snapshots == 2


def test_bad_files_give_one_line_and_keep_nothing_else(viewer, sessions, films, tmp_path):
    session = sessions.get("a")
    hostile = tmp_path / "m.safetensors"
    hostile.write_bytes(b"\xff" * 64)
    (tmp_path / "no_video.mp4").write_bytes(b"hello" * 100)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(Path(films[1]).read_bytes()[:-2000])
    for see in (lambda: viewer.open_memory(session, str(hostile)),
                lambda: list(viewer.watch(session, str(tmp_path / "no_video.mp4"))),
                lambda: list(viewer.watch(session, str(damaged)))):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            see()
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    list(viewer.watch(session, films[0]))
    with pytest.raises(ValueError):
        viewer.open_memory(session, str(hostile))
    assert session.memory.frames_seen == 6  # a wrong memory file does not cost the memory there was


def test_memory_out_and_in_again(viewer, tiny, sessions, films, tmp_path):
    anna, ben = sessions.get("a"), sessions.get("b")
    assert viewer.save_memory(anna) is None
    list(viewer.watch(anna, films[0]))
    path = Path(viewer.save_memory(anna))
    assert path.parent == anna.folder and path.name == "short.safetensors"
    taken = shutil.copy(path, tmp_path)
    viewer.open_memory(ben, taken)
    assert equal(anna.memory, ben.memory) and ben.timeline == []
    other = Viewer(build_tiny_model(1)[0].eval(), tiny[1], Limits())
    with pytest.raises(ValueError, match="another model"):
        other.open_memory(ben, taken)


def test_files_go_with_the_session(viewer, films, tmp_path):
    sessions = Sessions(idle_seconds=100)
    anna, ben, eve = (sessions.get(key) for key in ("a", "b", "../../e"))
    assert eve.folder.parent == anna.folder.parent
    shared, own = tmp_path / "shared.mp4", tmp_path / "own.mp4"
    for path in (shared, own):
        shutil.copy(films[0], path)
    anna.uploads |= {str(shared), str(own)}
    ben.uploads.add(str(shared))
    watch = viewer.watch(anna, str(own))
    next(watch)
    assert list((anna.folder / "snapshots").iterdir())
    sessions.close("a")
    assert list(watch) == [] and anna.memory is None  # a watch that runs ends, and writes nothing more
    assert not anna.folder.exists() and not own.exists() and shared.exists()
    ben.last_used -= 101
    sessions.close_idle()
    assert not ben.folder.exists() and not shared.exists() and eve.folder.exists()
    sessions.close_all()
    assert not eve.folder.parent.exists()


def test_idle_sessions_are_looked_for():
    sessions = Sessions(idle_seconds=0)
    folder = sessions.get("a").folder
    sessions.watch_over(0.01)
    for _ in range(500):
        if not folder.exists():
            break
        threading.Event().wait(0.01)
    assert not folder.exists()
    sessions.close_all()


def test_samples_play_in_browsers_and_have_questions(tmp_path):
    from modeling_video_ma2mba.processing.video_reader import probe

    for sample in make_samples(tmp_path):
        assert probe(sample.path).codec == "h264" and len(sample.questions) >= 3
        assert sample.path.read_bytes().find(b"moov") < sample.path.read_bytes().find(b"mdat")


@contextmanager
def serving(tiny, tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    page = Page(*tiny, Limits(answer_tokens=8), make_samples(folder))
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        yield page
    finally:
        page.blocks.close()
        page.sessions.close_all()


@pytest.mark.slow
def test_the_main_path_in_a_browser(tiny, films, tmp_path):
    """A sample, questions, back in time, memory out and in, a second person, a file that is no video."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: install it, such as with apt-get install chromium")
    with serving(tiny, tmp_path) as site, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        asked_outside = []
        anna, ben = browser.new_page(viewport={"width": 1240, "height": 1060}), browser.new_page()
        for page in (anna, ben):
            page.set_default_timeout(120_000)
            page.on("request", lambda request: asked_outside.append(request.url))
            page.goto(site.blocks.local_url)

        anna.get_by_role("button", name="32 s").click()
        anna.get_by_text("Watched 0:32 of 0:32, 32 frames").wait_for()
        assert anna.locator("#timeline button img").count() == 24
        anna.wait_for_function("document.querySelector('#video video').currentTime > 0")  # it plays

        def ask(page, question, answers):
            page.locator("#question textarea").fill(question)
            page.locator("#ask").click()
            page.wait_for_function(f"document.querySelectorAll('#talk .bot.message').length >= {answers}")

        ask(anna, "what was shown first ?", 1)
        anna.locator("#timeline button:has(img)").nth(8).click()
        anna.get_by_text("As of 0:12").wait_for()
        ask(anna, "what was shown last ?", 2)
        anna.get_by_text("[as of 0:12]").wait_for()
        anna.wait_for_function("document.querySelector('#question textarea').value === ''")
        anna.screenshot(path=SCREENSHOT)
        assert SCREENSHOT.stat().st_size < 300_000
        with anna.expect_download() as download:
            anna.locator("#save").click()
        memory = tmp_path / "taken.safetensors"
        download.value.save_as(memory)

        ben.locator("#question textarea").fill("what was shown first ?")
        ben.locator("#ask").click()
        ben.get_by_text("nothing has been watched yet").first.wait_for()
        ben.locator("input[type=file][accept*='safetensors']").set_input_files(memory)
        ben.get_by_text("Opened a memory of 0:32").wait_for()
        ask(ben, "what was shown first ?", 1)
        texts = [page.locator("#talk .bot.message").first.inner_text().strip() for page in (anna, ben)]
        assert texts[0] == texts[1]
        wrong = tmp_path / "no_video.mp4"
        wrong.write_bytes(b"hello" * 100)
        ben.locator("#video input[type=file]").set_input_files(wrong)
        ben.get_by_text("cannot read no_video.mp4").first.wait_for()

        assert all(url.startswith((site.blocks.local_url, "data:", "blob:")) for url in asked_outside), asked_outside
        assert len(site.sessions._sessions) == 2
        folders = [session.folder for session in site.sessions._sessions.values()]
        anna.close()
        ben.close()
        for _ in range(300):
            if not any(folder.exists() for folder in folders):
                break
            threading.Event().wait(0.1)
        assert not any(folder.exists() for folder in folders)
        browser.close()
