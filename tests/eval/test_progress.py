"""What is said about a run on its way, on a terminal and in a log."""

import io
import sys

import pytest

from modeling_video_ma2mba.eval import progress
from modeling_video_ma2mba.eval.progress import Progress


class Screen(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def screen(monkeypatch):
    def use(is_terminal):
        monkeypatch.setattr(sys, "stderr", Screen(is_terminal))
        return sys.stderr

    return use


def test_a_bar_moves_within_a_video(screen):
    shown = screen(True)
    with Progress("asking", videos=2, frames=10) as one:
        one.bar.mininterval = 0
        for _ in range(3):
            one.read()
        assert one.bar.n == 3 and "3/10" in shown.getvalue() and "0 of 2 videos" in shown.getvalue()
        one.video_done(unread=2, errors=4)
        one.bar.refresh()
        assert one.bar.n == 5 and "1 of 2 videos, 4 errors" in shown.getvalue()
    assert "asking: 1 of 2" not in shown.getvalue()  # that is for logs


def test_a_log_gets_a_line_now_and_then(screen, monkeypatch):
    shown = screen(False)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("asking", videos=2, frames=200) as one:
        for _ in range(100):
            now[0] += 1.0
            one.read()
        one.video_done(unread=0, errors=0)
        assert shown.getvalue() == "asking: 0 of 2 videos, 60 of 200 frames\n"
    assert shown.getvalue().splitlines()[1:] == ["asking: 1 of 2 videos, 100 of 200 frames"]


def test_other_processes_say_nothing(screen):
    for is_terminal in (True, False):
        shown = screen(is_terminal)
        with Progress("asking", videos=1, frames=1, show=False) as one:
            one.read()
        assert shown.getvalue() == ""
