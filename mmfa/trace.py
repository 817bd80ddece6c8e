"""Where the time of a training goes: a torch profiler trace of some steps, and a table of the parts of others."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

PARTS = ("data", "forward", "losses", "alignment", "backward", "optimiser")
"""Parts of a step, in their order.

``data`` is the wait for a batch; the gradient of the alignment terms is formed in their forward pass and so counts as
``alignment``.
"""
DIAGNOSTICS, EVALUATION = "diagnostics", "evaluation"
"""Parts of an epoch: what its last step adds, and what comes after its steps."""
TRACE, OPERATIONS, TABLE = "trace.json.gz", "operations.txt", "parts.csv"
"""Files: a timeline for chrome://tracing or ui.perfetto.dev, operations by their own time, seconds of each part."""
_ROWS = 60

logger = logging.getLogger(__name__)

_NOTHING = contextlib.nullcontext()
_watch: Callable[[str], AbstractContextManager[object]] | None = None


def part(name: str) -> AbstractContextManager[object]:
    """Return a context for one part of the work: nothing at all unless something is watching."""
    return _NOTHING if _watch is None else _watch(name)


@contextlib.contextmanager
def watched(watch: Callable[[str], AbstractContextManager[object]]) -> Iterator[None]:
    """Have ``watch`` called for every :func:`part` within."""
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before


class Stopwatch:
    """Adds up the seconds of each part, waiting for the device at both ends of it.

    Args:
        device: what is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time one part; parts do not contain each other."""
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Trace:
    """Profiles the first epoch that a training takes, and leaves its numbers as they are.

    After some steps of warming up come steps under torch's profiler, then as many whose parts are timed one by one,
    which a GPU does not overlap then; an epoch too short for that many has fewer.

    Args:
        folder: where the files go; made where it is missing.
        warmup: steps before; a compiled backbone is ready after three.
        steps: under the profiler, and timed.
    """

    def __init__(self, folder: Path, *, warmup: int = 10, steps: int = 10) -> None:
        self.folder = folder
        self.done = False
        self._warmup, self._steps = warmup, steps
        self._profiler: profile | None = None
        self._watching = contextlib.ExitStack()
        self._stopwatch = Stopwatch(torch.device("cpu"))
        self._timed = 0
        self._told = False

    @contextlib.contextmanager
    def epoch(self, device: torch.device) -> Iterator[None]:
        """Watch one epoch, during which :meth:`before_step` is called; write the files at its end."""
        self._stopwatch = Stopwatch(device)
        try:
            yield
            self._stop()
            self._write()
        finally:
            self._watching.close()
            self.done = True

    def before_step(self, step: int, num_steps: int) -> None:
        """Begin or end what has its time now.

        Args:
            step: from 0.
            num_steps: of the epoch.
        """
        warmup = min(self._warmup, (num_steps - 1) // 3)
        steps = max(1, min(self._steps, (num_steps - warmup) // 2))
        if step == warmup:
            self._watching.enter_context(watched(record_function))
            activities = _activities(self._stopwatch.device)
            self._profiler = self._watching.enter_context(profile(activities=activities))
        elif step == warmup + steps:
            self._stop()
            self._watching.enter_context(watched(self._stopwatch))
            self._timed = steps
        elif step == warmup + 2 * steps:
            self._stop()
        if step == num_steps - 1 and _watch is None:
            self._watching.enter_context(watched(self._diagnostics))

    def _diagnostics(self, name: str) -> AbstractContextManager[object]:
        return self._stopwatch(name) if name == DIAGNOSTICS else _NOTHING

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Time what comes after the steps."""
        self._stop()
        with self._stopwatch(EVALUATION):
            yield

    def rows(self) -> list[tuple[str, float, float]]:
        """Return part, seconds and share of the step, for each part of one step; without share, those of the epoch."""
        found = {name: self._stopwatch.seconds.get(name, 0.0) / max(self._timed, 1) for name in PARTS}
        whole = sum(found.values()) or 1.0
        rows = [(name, seconds, seconds / whole) for name, seconds in found.items()]
        of_epoch = ((name, self._stopwatch.seconds.get(name, 0.0)) for name in (DIAGNOSTICS, EVALUATION))
        return [*rows, *((name, seconds, math.nan) for name, seconds in of_epoch)]

    def told(self) -> str:
        """Return the table as text, once; nothing before it is there and afterwards."""
        if not self.done or self._told:
            return ""
        self._told = True
        shown = [
            f"  {name:12} {1000 * seconds:10.2f} ms" + (" in the epoch" if math.isnan(share) else f" {share:7.1%}")
            for name, seconds, share in self.rows()
        ]
        kept = [f"trace: {self.folder / TRACE}"] if (self.folder / TRACE).exists() else []
        return "\n".join(["where the time of a step went:", *shown, *kept, ""])

    def _stop(self) -> None:
        """End what is watching; the profiler's files are written at once, while it is not timed."""
        self._watching.close()
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        with _as_far_as_it_can_be_written():
            self.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.folder / TRACE))
            order = "self_cuda_time_total" if self._stopwatch.device.type == "cuda" else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=order, row_limit=_ROWS)
            (self.folder / OPERATIONS).write_text(table + "\n")

    def _write(self) -> None:
        with _as_far_as_it_can_be_written(), (self.folder / TABLE).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("part", "seconds", "share of the step", "of"))
            for name, seconds, share in self.rows():
                of, shown = ("epoch", "") if math.isnan(share) else ("step", f"{share:.4f}")
                writer.writerow((name, f"{seconds:.6f}", shown, of))


@contextlib.contextmanager
def _as_far_as_it_can_be_written() -> Iterator[None]:
    """Warn of a full disk and the like: a training is worth more than its profile."""
    try:
        yield
    except OSError as error:
        logger.warning("the profile of the training is not all there: %s", error)


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
