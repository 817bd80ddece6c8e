"""How many trials share a GPU: measured, for neither memory nor throughput can be guessed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from mmfa.config import TrialConfig
from mmfa.errors import MmfaError
from tune.nodes import Node, on_node

CAP = 0.9
"""Part of a GPU's memory that its trials may take together; the rest is for their CUDA contexts."""
GAIN = 1.05
"""As long as doubling brings so many times the trials an hour, it is tried again."""
MOST = 16
START_SECONDS = 600.0
"""How long the trainings of a measurement may take until all of them have found room."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One epoch, trained by ``trials`` processes on one GPU at once."""

    trials: int
    seconds: float
    """Mean over the processes, evaluation included."""
    peak_bytes: int
    """Of the process that took most."""
    total_bytes: int
    """Of the GPU."""

    @property
    def epochs_per_hour(self) -> float:
        """Of all of them together."""
        return 3600 * self.trials / self.seconds

    @property
    def fits(self) -> bool:
        """Whether the cap holds them all."""
        return self.trials * self.peak_bytes <= CAP * self.total_bytes


def choose(measure: Callable[[int], Sample | None], *, most: int = MOST) -> tuple[int, list[Sample]]:
    """Double the number of trials while they fit and it pays; return the one with the most epochs an hour.

    Args:
        measure: returns what so many trials do, or None where they run out of memory.
        most: trials that may be tried.

    Raises:
        MmfaError: not even one fits.
    """
    samples: list[Sample] = []
    trials = 1
    while trials <= most:
        sample = measure(trials)
        if sample is None or not sample.fits:
            break
        samples.append(sample)
        if len(samples) > 1 and sample.epochs_per_hour < GAIN * samples[-2].epochs_per_hour:
            break
        trials *= 2
    if not samples:
        raise MmfaError(
            f"a trial takes more than {CAP:.0%} of a GPU's memory even alone; make data.source_batch, "
            "data.target_batch or the images smaller with --set, or use a larger GPU."
        )
    return max(samples, key=lambda sample: sample.epochs_per_hour).trials, samples


def told(samples: Sequence[Sample]) -> str:
    """Return what was measured, in words."""
    parts = (
        f"{one.trials} on a GPU: {one.epochs_per_hour:.0f} epochs an hour, {one.peak_bytes / 2**30:.1f} GiB each"
        for one in samples
    )
    return "; ".join(parts)


def as_record(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return what was measured, as data."""
    return [asdict(sample) for sample in samples]


def limit_memory(trials_per_gpu: int) -> None:
    """Let this process have its share of the GPU's memory and no more: past it, it alone runs out."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(CAP / trials_per_gpu if trials_per_gpu > 1 else 1.0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a training failed for want of GPU memory."""
    from mmfa import hardware  # torch comes with it

    return hardware.is_out_of_memory(error)


def measure(config: TrialConfig, stores: Sequence[str], node: Node, trials: int, *, cpus: int) -> Sample | None:
    """Train an epoch of a config on one GPU of a node, ``trials`` times at once; None where memory runs out.

    An epoch before it, which all of them have finished when it begins, takes what comes once in a training: the
    compiler, its check, the first touch of the images.

    Raises:
        MmfaError: a training that fails for another reason.
    """
    actor = ray.remote(_Barrier).options(num_cpus=0, scheduling_strategy=on_node(node.node_id))
    placed, ready = actor.remote(trials), actor.remote(trials)
    once = ray.remote(max_calls=1)(_one_epoch)  # the process ends, and gives its memory back
    task = once.options(
        num_cpus=cpus,
        num_gpus=1 / trials,
        max_retries=0,
        scheduling_strategy=on_node(node.node_id),
    )
    try:
        tasks = [task.remote(config.to_json(), tuple(stores), cpus, trials, placed, ready) for _ in range(trials)]
        begun, _ = ray.wait([placed.opened.remote(), *tasks], timeout=START_SECONDS)
        if not begun:
            for ref in tasks:
                ray.cancel(ref, force=True)
            raise MmfaError(
                f"--trials-per-gpu auto: {trials} trainings found no room on node {node.name} within "
                f"{START_SECONDS:.0f} s; end what else runs there, or give the number."
            )
        seen = ray.get(tasks)
    except ray.exceptions.RayTaskError as error:
        raise MmfaError(f"--trials-per-gpu auto: the measurement failed on node {node.name}: {error.cause}.") from None
    except ray.exceptions.RayError:  # killed by the system: host memory ran out
        return None
    finally:
        for barrier in (placed, ready):
            ray.kill(barrier)
    if any(one is None for one in seen):
        return None
    seconds, peaks, totals = zip(*seen, strict=True)
    return Sample(trials, sum(seconds) / trials, max(peaks), min(totals))


class _Barrier:
    """Lets everybody go at once."""

    def __init__(self, count: int) -> None:
        self._missing, self._open = count, asyncio.Event()

    async def wait(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._open.set()
        await self._open.wait()

    async def opened(self) -> None:
        await self._open.wait()


def _one_epoch(
    config: str, stores: tuple[str, str], threads: int, trials: int, placed: Any, ready: Any
) -> tuple[float, int, int] | None:
    import torch

    from mmfa.data.store import open_store
    from mmfa.training import Training

    torch.set_num_threads(threads)
    limit_memory(trials)
    ray.get(placed.wait.remote())
    source, target = (open_store(Path(path)) for path in stores)
    given = TrialConfig.from_json(config)
    # The second epoch is timed, and is not the last, which evaluates more.
    given = given.with_overrides({"optim.num_epochs": max(3, given.optim.num_epochs)})
    try:
        training = Training(given, source=source, target=target)
        epochs = training.epochs()
        next(epochs)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # the check of the compiled backbone took more than a step does
        ray.get(ready.wait.remote())
        started = time.perf_counter()
        next(epochs)
        seconds = time.perf_counter() - started
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        ready.wait.remote()  # nobody is to wait for it
        return None
    return seconds, *_memory()


def _memory() -> tuple[int, int]:
    """Return the most that this process has had of the device's memory, and all there is; of the host's without one."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    return psutil.Process().memory_info().rss, psutil.virtual_memory().total
