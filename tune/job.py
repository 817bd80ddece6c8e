"""What a worker is told of a trial, and what the folder of a lineage holds.

While it trains there is ``attempt-0001/epoch-0003/…``; once it is over ``result.json``, ``export/`` (the weights that
were evaluated) and ``probe.npz`` (what label-free criteria see). ``readings.jsonl`` has a line for every time that the
official test labels were read, ``journal.jsonl`` one for every epoch that was committed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmfa.errors import CheckpointError
from tune import mirror
from tune.lease import Fence, LeaseLostError
from tune.patience import when_there_is_room

RESULT = "result.json"
EXPORT = "export"
JOURNAL = "journal.jsonl"
READINGS = "readings.jsonl"
PROBE = "probe.npz"
TORCH_TRACE = "torch-trace"
"""Where the profile of the first epoch goes, of a trial that is profiled."""
PRUNED = "pruned"
"""Mark of the driver: this lineage ends where it stands."""
OWNER = "owner"
"""Says which worker may commit: the last one that has taken a lineage up."""
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
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of what the driver's stores hold, by path: a node's own may not hold something else."""
    trials_per_gpu: int = 1
    """How many share a GPU's memory."""
    uri: str = ""
    """Where that folder lies on an object store; ``folder`` is then this node's copy of it."""
    prunable: bool = False
    """Whether the driver may end the trial early: it then waits for the driver after every epoch."""
    torch_trace: bool = False
    """Whether the first epoch that is trained is profiled."""
    owner: str = ""
    """The worker that has the lineage; see :meth:`claimed`."""

    @property
    def fence(self) -> Fence:
        """The driver's counter."""
        return Fence(self.fence_folder, self.fence_counter)

    def claimed(self) -> Job:
        """Take the lineage up: a worker that had it before, on a node that was cut off, may commit no more."""
        claim = dataclasses.replace(self, owner=uuid.uuid4().hex)
        self.fence.check()  # a worker of a driver that is gone must not take it from the present one's
        if self.uri:
            mirror.write(f"{self.uri}/{OWNER}", claim.owner.encode(), check=self.fence.check)
        else:
            when_there_is_room(claim._sign)
        return claim

    def _sign(self) -> None:
        """Write the owner, whole or not at all."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        temporary = Path(self.folder) / f"{OWNER}.{self.owner}.tmp"
        try:
            temporary.write_text(self.owner)
            temporary.replace(temporary.with_name(OWNER))
        finally:
            temporary.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise LeaseLostError where another driver has the study, or another worker this lineage."""
        self.fence.check()
        if self.uri:
            found = (mirror.read(f"{self.uri}/{OWNER}") or b"").decode()
        else:
            file = Path(self.folder) / OWNER
            found = file.read_text() if file.exists() else ""
        if found != self.owner:
            raise LeaseLostError(f"{self.name} was taken up by another worker; this one changes nothing more.")

    def pull(self) -> None:
        """Bring this node's copy up to what the object store has."""
        if self.uri:
            mirror.pull(Path(self.folder), self.uri)

    def push(self) -> None:
        """Bring the object store up to this node's copy, behind the fence."""
        if self.uri:
            own = f"attempt-{self.attempt:04d}"
            mirror.push(Path(self.folder), self.uri, check=self.check, own=own)


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
    if job.uri:
        mirror.write(f"{job.uri}/{PRUNED}", b"pruned")
    else:
        (Path(job.folder) / PRUNED).touch()


def last_words(job: Job) -> str:
    """Return the traceback that a trial left behind, or "" where there is none; called by the driver."""
    try:
        if job.uri:
            return (mirror.read(f"{job.uri}/{ERROR}") or b"").decode()
        return (Path(job.folder) / ERROR).read_text()
    except OSError:
        return ""


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


def as_config(job: Job) -> dict[str, Any]:
    """Return the job as the config of a Ray Tune trial."""
    return {"job": asdict(job)}
