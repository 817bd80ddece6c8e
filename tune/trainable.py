"""One trial: config → ``Training`` → ``ray.tune.report``, with checkpoints by lineage.

Whoever starts on a lineage first sends again what it has already been through, so that a driver or a worker that died
in between has lost no report.
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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfa.config import TrialConfig
from mmfa.errors import CheckpointError, DivergedError, MmfaError
from tune import mirror
from tune.job import (
    ERROR,
    EXPORT,
    JOURNAL,
    OWNER,
    PROBE,
    PRUNED,
    READINGS,
    RESULT,
    ROW,
    TORCH_TRACE,
    Job,
    read_result,
)
from tune.patience import append, when_there_is_room
from tune.sharing import is_out_of_memory, limit_memory

if TYPE_CHECKING:
    from mmfa.data.store import Store
    from mmfa.reports import EpochReport
    from mmfa.training import Training

logger = logging.getLogger(__name__)


def run(config: dict[str, Any]) -> None:
    """Train one trial inside Ray Tune."""
    import ray.tune

    from mmfa.data.prefetch import prefetch
    from tune import nodes

    job = Job(**config["job"])
    folder = Path(job.folder)
    try:
        for store in (job.source_store, job.target_store):
            nodes.fetch(store)
        when_there_is_room(lambda: folder.mkdir(parents=True, exist_ok=True))
        _forget_word(job)
        # A report waits for the driver; the next epoch waits for the report only where the driver may end it there.
        for row in train(job) if job.prunable else prefetch(train(job)):
            ray.tune.report({ROW: json.dumps(row)})  # as text: Tune flattens nested results
    except Exception:
        _leave_word(job, traceback.format_exc())
        raise


def _forget_word(job: Job) -> None:
    """Remove what an attempt before this one left: the driver would take it for this one's."""
    (Path(job.folder) / ERROR).unlink(missing_ok=True)
    if job.uri:
        mirror.remove(job.uri, ERROR)


def _leave_word(job: Job, text: str) -> None:
    """Tell the driver why a trial failed, where storage can still be written."""
    with contextlib.suppress(OSError):
        if job.uri:
            mirror.write(f"{job.uri}/{ERROR}", text.encode(), seconds=0)
        else:
            (Path(job.folder) / ERROR).write_text(text)


def train(job: Job) -> Iterator[dict[str, Any]]:
    """Train one lineage from where it stands; yield a row per epoch and a last one with the outcome.

    Rows are ``{"epoch": report}`` and ``{"result": record}``; the record is also ``result.json``.
    """
    folder = Path(job.folder)
    notes: list[str] = []
    try:
        job.pull()
        if (folder / RESULT).exists():
            try:
                record = read_result(folder)
            except CheckpointError as error:
                aside = (folder / RESULT).rename(folder / f"{RESULT}.corrupt")
                notes.append(f"{error} It was set aside as {aside.name}, and the trial was trained again.")
            else:
                _check_config(record, job)
                job.fence.check()
                _clear(job)  # of a worker that died before it had
                yield from ({"epoch": report} for report in record["history"])
                yield {"result": record}
                return
        yield from _train(job.claimed(), notes)
    except MmfaError as error:
        yield {"failed": str(error)}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _give_memory_back(error)
        yield {"failed": f"out of GPU memory with {job.trials_per_gpu} trials on a GPU", "out_of_memory": True}


def _give_memory_back(error: BaseException) -> None:
    """Free what a failed training holds: the worker stays for other trials."""
    import gc

    import torch

    traceback.clear_frames(error.__traceback__)
    gc.collect()
    torch.cuda.empty_cache()


def _check_config(record: dict[str, Any], job: Job) -> None:
    if record["config"] != json.loads(job.config):
        raise CheckpointError(
            f"{job.folder}/{RESULT} is of another trial of that name; give another --storage, or remove the folder."
        )


def _train(job: Job, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Train what is left of a lineage and write its result."""
    import torch

    torch.set_num_threads(job.threads)
    limit_memory(job.trials_per_gpu)
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
        when_there_is_room(lambda: training.export(Path(job.folder) / EXPORT, before_commit=job.check))
    record = _record(job, training) | {"started_at": started, "notes": notes} | outcome
    _finish(job, record)
    yield {"result": record}


def _is_pruned(job: Job, training: Training) -> bool:
    """Whether the driver ends a trial here; one whose last epoch is trained has nothing left to save, and completes."""
    trained = len(training.history) == training.config.optim.num_epochs
    if not job.prunable or trained:
        return False
    return PRUNED in mirror.sizes(job.uri) if job.uri else (Path(job.folder) / PRUNED).exists()


def _pruned(training: Training) -> dict[str, Any]:
    epoch, num_epochs = len(training.history), training.config.optim.num_epochs
    return {"outcome": "pruned", "reason": f"ended early by [pruning], after epoch {epoch} of {num_epochs}"}


def _judge(job: Job, training: Training) -> dict[str, Any]:
    """Take the label-free criteria, then read the official target split, once, where it has labels."""
    before = time.perf_counter()
    job.check()  # before the labels are read
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
    when_there_is_room(lambda: taken.save(Path(job.folder) / PROBE, before_commit=job.check))
    return criteria.compute(taken, **job.criteria)


def _write_reading(job: Job) -> None:
    """Count a reading of the official test labels before it is done: a kill in between counts one too many."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"at": time.time(), "trial": job.name, "attempt": job.attempt, "why": job.reading}
    append(folder / READINGS, json.dumps(entry))
    job.push()


def epoch_row(report: EpochReport) -> dict[str, Any]:
    """Return what the driver is told of an epoch."""
    return {
        "epoch": report.epoch,
        "num_epochs": report.num_epochs,
        "ended_at": report.ended_at,
        "metrics": report.metrics(),
    }


@functools.cache
def _mapped(path: str) -> Store:
    """Return a memory-mapped store; a worker keeps it for its next trials."""
    from mmfa.data.store import open_store

    return open_store(Path(path))


def _store(job: Job, path: str) -> Store:
    """Return a store that holds what the driver's does: a node that joined later was checked by nobody."""
    store = _mapped(path)
    expected = job.fingerprints.get(path, store.fingerprint)
    if store.fingerprint != expected:
        raise MmfaError(
            f"{path} on {platform.node()} holds other images ({store.fingerprint}) than the driver's ({expected}); "
            "delete it there and run again."
        )
    return store


def _open(job: Job, notes: list[str]) -> Training:
    """Return the training, resumed from the newest intact checkpoint of any attempt; add what there is to tell."""
    from mmfa.checkpoint import newest_intact
    from mmfa.trace import Trace
    from mmfa.training import Training

    def corrupt(path: Path, reason: str) -> None:
        notes.append(
            f"{path} was corrupt ({reason}) and was set aside; the trial went on from the checkpoint before it."
        )
        logger.warning("%s", notes[-1])

    config = TrialConfig.from_json(job.config)
    trace = Trace(Path(job.folder) / TORCH_TRACE) if job.torch_trace else None
    source, target = (_store(job, path) for path in (job.source_store, job.target_store))
    training = Training(config, source=source, target=target, trace=trace)
    checkpoint = newest_intact(sorted(Path(job.folder).glob("attempt-*")), on_corrupt=corrupt)
    if checkpoint is not None:
        training.resume(checkpoint)
    return training


def _save(job: Job, training: Training) -> None:
    """Commit a checkpoint behind the fence and write down who trained the epoch."""
    job.check()  # before anything is written
    folder = Path(job.folder)
    when_there_is_room(lambda: training.save(folder / f"attempt-{job.attempt:04d}", before_commit=job.check))
    entry = {
        "attempt": job.attempt,
        "driver": job.fence_counter,
        "epoch": len(training.history),
        "host": platform.node(),
        "pid": os.getpid(),
        "at": time.time(),
    }
    append(folder / JOURNAL, json.dumps(entry))
    job.push()


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
        "backbone_runs": training.backbone_runs,
    }


def _write_result(job: Job, text: str) -> None:
    temporary = Path(job.folder) / f"{RESULT}.{os.getpid()}.tmp"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    job.check()
    temporary.replace(Path(job.folder) / RESULT)


def _finish(job: Job, record: dict[str, Any]) -> None:
    """Move the result into place behind the fence, then drop the checkpoints that it makes needless."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    record["ended_at"] = time.time()
    for leftover in folder.glob(f"{RESULT}.*.tmp"):
        leftover.unlink(missing_ok=True)
    when_there_is_room(lambda: _write_result(job, json.dumps(record)))
    job.push()
    _clear(job)


def _clear(job: Job) -> None:
    """Drop what a result makes needless, and this node's copy of what is on an object store."""
    folder = Path(job.folder)
    for needless in (PRUNED, OWNER):
        (folder / needless).unlink(missing_ok=True)
    for attempt in folder.glob("attempt-*"):
        shutil.rmtree(attempt, ignore_errors=True)
    if job.uri:
        mirror.drop(job.uri, *{path.split("/")[0] for path in mirror.sizes(job.uri) if path.startswith("attempt-")})
        mirror.remove(job.uri, PRUNED, OWNER)
        shutil.rmtree(folder, ignore_errors=True)
