"""One trial: config → ``Training`` → ``ray.tune.report``, with checkpoints by lineage.

A lineage's folder holds ``attempt-0001/epoch-0003/…`` while it trains and, once it is over, ``result.json``,
``export/`` (the weights that were evaluated) and ``probe.npz`` (what label-free criteria see). ``readings.jsonl`` has a
line for every time that the official test labels were read. Whoever starts on a lineage first sends again what it has
already been through, so that a driver or a worker that died in between has lost no report.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfa.config import TrialConfig
from mmfa.errors import CheckpointError, DivergedError, MmfaError
from tune.lease import Fence

if TYPE_CHECKING:
    from mmfa.data.store import Store
    from mmfa.reports import EpochReport
    from mmfa.training import Training

logger = logging.getLogger(__name__)

RESULT = "result.json"
EXPORT = "export"
JOURNAL = "journal.jsonl"
READINGS = "readings.jsonl"
PROBE = "probe.npz"
PRUNED = "pruned"
"""Mark of the driver: this lineage ends where it stands."""
ERROR = "error.txt"
ROW = "mmfa"
"""Key of a Tune result that holds a row of :func:`train` as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that a worker needs to know of a trial."""

    name: str
    config: str
    source_store: str
    target_store: str
    folder: str
    attempt: int
    fence_folder: str
    fence_counter: int
    threads: int
    reading: str
    """Why the official test labels are read at the end; "" where the target has none."""
    criteria: dict[str, Any]
    """Settings of the label-free criteria."""
    prunable: bool = False
    """Whether the driver may end the trial early: it then waits for the driver after every epoch."""

    @property
    def fence(self) -> Fence:
        """The driver's counter."""
        return Fence(Path(self.fence_folder), self.fence_counter)


def run(config: dict[str, Any]) -> None:
    """Train one trial inside Ray Tune."""
    import ray.tune

    from mmfa.data.prefetch import prefetch

    job = Job(**config["job"])
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    try:
        # A report waits for the driver; the next epoch waits for the report only where the driver may end it there.
        for row in train(job) if job.prunable else prefetch(train(job)):
            ray.tune.report({ROW: json.dumps(row)})  # as text: Tune flattens nested results
    except Exception:
        (folder / ERROR).write_text(traceback.format_exc())
        raise


def train(job: Job) -> Iterator[dict[str, Any]]:
    """Train one lineage from where it stands; yield a row per epoch and a last one with the outcome.

    Rows are ``{"epoch": report}`` and ``{"result": record}``; the record is also ``result.json``.
    """
    folder = Path(job.folder)
    notes: list[str] = []
    try:
        if (folder / RESULT).exists():
            try:
                record = read_result(folder)
            except CheckpointError as error:
                aside = (folder / RESULT).rename(folder / f"{RESULT}.corrupt")
                notes.append(f"{error} It was set aside as {aside.name}, and the trial was trained again.")
            else:
                _check_config(record, job)
                yield from ({"epoch": report} for report in record["history"])
                yield {"result": record}
                return
        yield from _train(job, notes)
    except MmfaError as error:
        yield {"failed": str(error)}


def _check_config(record: dict[str, Any], job: Job) -> None:
    if record["config"] != json.loads(job.config):
        raise CheckpointError(
            f"{job.folder}/{RESULT} is of another trial of that name; give another --storage, or remove the folder."
        )


def _train(job: Job, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Train what is left of a lineage and write its result."""
    import torch

    torch.set_num_threads(job.threads)
    started = time.time()
    training = _open(job, notes)
    for report in training.history:
        yield {"epoch": epoch_row(report)}
    try:
        for report in training.epochs() if not _is_pruned(job, training) else ():
            _save(job, training)
            yield {"epoch": epoch_row(report)}
            if _is_pruned(job, training):
                break
        outcome = _pruned(training) if _is_pruned(job, training) else _judge(job, training) | {"outcome": "complete"}
    except DivergedError as error:
        outcome = {"outcome": "diverged", "reason": str(error)}
    if outcome["outcome"] == "complete":
        training.export(Path(job.folder) / EXPORT, before_commit=job.fence.check)
    record = _record(job, training) | {"started_at": started, "notes": notes} | outcome
    _finish(job, record)
    yield {"result": record}


def _is_pruned(job: Job, training: Training) -> bool:
    """Whether the driver ends a trial here; one whose last epoch is trained has nothing left to save, and completes."""
    trained = len(training.history) == training.config.optim.num_epochs
    return job.prunable and not trained and (Path(job.folder) / PRUNED).exists()


def _pruned(training: Training) -> dict[str, Any]:
    epoch, num_epochs = len(training.history), training.config.optim.num_epochs
    return {"outcome": "pruned", "reason": f"ended early by [pruning], after epoch {epoch} of {num_epochs}"}


def _judge(job: Job, training: Training) -> dict[str, Any]:
    """Take the label-free criteria, then read the official target split, once, where it has labels."""
    before = time.perf_counter()
    metrics = training.history[-1].metrics() | _criteria(job, training)
    test = None
    if job.reading:
        _write_reading(job)
        test = training.test()
        metrics |= test.metrics()
    return {
        "test": None if test is None else asdict(test),
        "test_seconds": time.perf_counter() - before,
        "metrics": metrics,
    }


def _criteria(job: Job, training: Training) -> dict[str, float]:
    """Return the label-free criteria of the finished model; the probe is kept for criteria yet to come."""
    from mmfa import probe
    from tune import criteria

    taken = probe.take(training)
    taken.save(Path(job.folder) / PROBE, before_commit=job.fence.check)
    return criteria.compute(taken, **job.criteria)


def _write_reading(job: Job) -> None:
    """Count a reading of the official test labels before it is done: a kill in between counts one too many."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"at": time.time(), "trial": job.name, "attempt": job.attempt, "why": job.reading}
    with (folder / READINGS).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def epoch_row(report: EpochReport) -> dict[str, Any]:
    """Return what the driver is told of an epoch."""
    return {
        "epoch": report.epoch,
        "num_epochs": report.num_epochs,
        "ended_at": report.ended_at,
        "metrics": report.metrics(),
    }


def read_readings(folder: Path) -> list[dict[str, Any]]:
    """Return every reading of the official test labels for a lineage; a line that a kill cut short is left out."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / READINGS).read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def mark_pruned(job: Job) -> None:
    """Have a trial end after the epoch that it has just reported; called by the driver."""
    (Path(job.folder) / PRUNED).touch()


def read_result(folder: Path) -> dict[str, Any]:
    """Return the record of a finished lineage.

    Raises:
        CheckpointError: no record, or a damaged one.
    """
    try:
        record: dict[str, Any] = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RESULT} cannot be read ({type(error).__name__}).") from None
    return record


@functools.cache
def _store(path: str) -> Store:
    """Return a memory-mapped store; a worker keeps it for its next trials."""
    from mmfa.data.store import open_store

    return open_store(Path(path))


def _open(job: Job, notes: list[str]) -> Training:
    """Return the training, resumed from the newest intact checkpoint of any attempt; add what there is to tell."""
    from mmfa.checkpoint import newest_intact
    from mmfa.training import Training

    def corrupt(path: Path, reason: str) -> None:
        notes.append(
            f"{path} was corrupt ({reason}) and was set aside; the trial went on from the checkpoint before it."
        )
        logger.warning("%s", notes[-1])

    config = TrialConfig.from_json(job.config)
    training = Training(config, source=_store(job.source_store), target=_store(job.target_store))
    checkpoint = newest_intact(sorted(Path(job.folder).glob("attempt-*")), on_corrupt=corrupt)
    if checkpoint is not None:
        training.resume(checkpoint)
    return training


def _save(job: Job, training: Training) -> None:
    """Commit a checkpoint behind the fence and write down who trained the epoch."""
    folder = Path(job.folder)
    training.save(folder / f"attempt-{job.attempt:04d}", before_commit=job.fence.check)
    entry = {
        "attempt": job.attempt,
        "driver": job.fence_counter,
        "epoch": len(training.history),
        "host": platform.node(),
        "pid": os.getpid(),
        "at": time.time(),
    }
    with (folder / JOURNAL).open("a") as journal:
        journal.write(json.dumps(entry) + "\n")


def _record(job: Job, training: Training) -> dict[str, Any]:
    """Return what is known of a lineage before its outcome is."""
    return {
        "name": job.name,
        "reason": "",
        "config": json.loads(job.config),
        "history": [epoch_row(report) for report in training.history],
        "metrics": {},
        "test": None,
        "test_seconds": 0.0,
        "attempt": job.attempt,
        "pid": os.getpid(),
        "threads": job.threads,
    }


def _finish(job: Job, record: dict[str, Any]) -> None:
    """Move the result into place behind the fence, then drop the checkpoints that it makes needless."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    record["ended_at"] = time.time()
    for leftover in folder.glob(f"{RESULT}.*.tmp"):
        leftover.unlink(missing_ok=True)
    temporary = folder / f"{RESULT}.{os.getpid()}.tmp"
    with temporary.open("w") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    job.fence.check()
    temporary.replace(folder / RESULT)
    (folder / PRUNED).unlink(missing_ok=True)
    for attempt in folder.glob("attempt-*"):
        shutil.rmtree(attempt, ignore_errors=True)


def as_config(job: Job) -> dict[str, Any]:
    """Return the job as the config of a Ray Tune trial."""
    return {"job": asdict(job)}
