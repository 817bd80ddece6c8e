"""Make items ahead of their use, in one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing the thread says."""

    error: BaseException | None


def prefetch(items: Iterator[Item], *, depth: int = 2) -> Iterator[Item]:
    """Yield the items in order while a thread makes up to ``depth`` of them in advance.

    The thread ends with the items, or when the consumer closes or drops this generator. An exception of ``items`` is
    raised here, after the items before it.
    """
    ready: queue.SimpleQueue[Item | _End] = queue.SimpleQueue()
    slots = threading.Semaphore(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            slots.acquire()
            for item in items:
                ready.put(item)
                slots.acquire()
                if stopped.is_set():
                    return
        except BaseException as error:  # the consumer's, whatever it is
            ready.put(_End(error))
        else:
            ready.put(_End(None))

    thread = threading.Thread(target=produce, name="mmfa-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
            slots.release()
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        slots.release()
        thread.join()
