"""Make items ahead of their use, in one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], *, depth: int = 2) -> Iterator[Item]:
    """Yield the items in order while a thread makes up to ``depth`` of them in advance.

    The thread ends with the items, or when the consumer closes or drops this generator. An exception of ``items`` is
    raised here, after the items before it.
    """
    ready: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()
    slots = threading.Semaphore(depth)
    stopped = threading.Event()

    def produce() -> None:
        error: BaseException = StopIteration()
        try:
            while True:
                slots.acquire()
                if stopped.is_set():
                    return
                ready.put((next(items), None))
        except BaseException as raised:  # the consumer's, whatever it is
            error = raised
        ready.put((None, error))

    thread = threading.Thread(target=produce, name="mmfa-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
            slots.release()
    finally:
        stopped.set()
        slots.release()
        thread.join()
