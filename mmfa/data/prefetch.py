"""Make items ahead of their use, in one thread."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Tensors = TypeVar("Tensors", bound=tuple[Tensor | None, ...])


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing the thread says."""

    error: BaseException | None


def prefetch_onto(device: torch.device, items: Iterator[Tensors]) -> Generator[Tensors]:
    """Yield tuples of tensors as :func:`prefetch` does; those of a GPU are made on a stream of their own.

    Copies and augmentation so run beside the training's own work, and neither the thread nor the consumer waits.
    """
    if device.type != "cuda":
        return prefetch(items)
    return _awaited(prefetch(_recorded(items, _stream(device))), device)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a device's batches: memory is kept by stream, and a new one each epoch would keep more."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _recorded(items: Iterator[Tensors], stream: torch.cuda.Stream) -> Iterator[tuple[Tensors, torch.cuda.Event]]:
    while True:
        with torch.cuda.stream(stream):  # by the item: whoever drops a generator leaves its contexts, in any thread
            item = next(items, None)
        if item is None:
            return
        yield item, stream.record_event()


def _awaited(made: Generator[tuple[Tensors, torch.cuda.Event]], device: torch.device) -> Generator[Tensors]:
    with contextlib.closing(made):
        for item, event in made:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(event)
            for tensor in item:
                if tensor is not None:
                    tensor.record_stream(stream)
            yield item


def prefetch(items: Iterator[Item], *, depth: int = 2) -> Generator[Item]:
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
