"""`read_ahead`: runs an iterator in a thread, a few items ahead, so that decoding overlaps with compute."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")

# How long the thread may take to notice that nobody reads any more. It is a daemon: an iterator that never returns
# (a camera that hangs) does not keep the process alive.
_PATIENCE = 1.0


def read_ahead(items: Iterator[Item], most_waiting: int) -> Iterator[Item]:
    """Yield the items of an iterator, of which at most `most_waiting` wait; its error is raised in its place.

    Closing this generator ends the thread.
    """
    waiting: queue.Queue = queue.Queue(most_waiting)
    is_over = threading.Event()

    def put(kind: str, value) -> bool:
        while not is_over.is_set():
            try:
                waiting.put((kind, value), timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    break
            put("end", None)
        except BaseException as error:  # whatever it is, it belongs to the reader, who would wait for ever without it
            put("error", error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        is_over.set()
        thread.join(_PATIENCE)
