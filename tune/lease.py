"""One driver per study: a fenced lease in the ledger's database.

A row holds who drives the study, until when by the database's clock, and a counter that grows with every
change of hands. A driver that was frozen past its expiry finds another counter and may write nothing more:
the counter is read inside every transaction on the ledger (:meth:`Lease.guard`), and, from a file beside the
checkpoints, before every checkpoint is moved into place (:class:`Fence`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from mmfa.errors import MmfaError
from tune import mirror
from tune.places import first_line

logger = logging.getLogger(__name__)

_CLOCK = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())",
}
RELEASE_SECONDS = 5.0
_METADATA = sa.MetaData()
_TABLE = sa.Table(
    "mmfa_lease",
    _METADATA,
    sa.Column("study", sa.String(200), primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("counter", sa.Integer, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)


class LeaseHeldError(MmfaError):
    """Another driver holds the study."""


class LeaseLostError(MmfaError):
    """Another driver has taken the study over: nothing more may be written."""


def this_process() -> dict[str, Any]:
    """Return what tells this process from every other: host, boot, process id and its start."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": platform.node(),
        "boot": boot.read_text().strip() if boot.exists() else str(psutil.boot_time()),
        "namespace": os.readlink("/proc/self/ns/pid") if Path("/proc/self/ns/pid").exists() else "",  # noqa: PTH115
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: int) -> str:
    """Return when a process started, by a clock that is never set: ticks since boot where the system tells them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return str(round(psutil.Process(pid).create_time()))


def proven_dead(holder: dict[str, Any]) -> bool:
    """Return whether the holder ran on this very machine and is gone; False where that cannot be known."""
    here = this_process()
    if not holder or any(holder.get(key) != here[key] for key in ("host", "boot", "namespace")):
        return False
    try:
        process = psutil.Process(holder["pid"])
        return bool(_started(holder["pid"]) != holder["started"] or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True, slots=True)
class Fence:
    """The counter as workers see it: a file named by it, in a folder on the storage that all of them share.

    The highest one counts, so a driver that was frozen before it raised its own changes nothing when it thaws.
    """

    folder: str
    """A folder, or a URI on an object store."""
    counter: int

    def check(self) -> None:
        """Raise LeaseLostError where another driver has raised a higher counter."""
        highest = max(self._counters(), default=-1)
        if highest != self.counter:
            raise LeaseLostError(f"another driver has taken over: {self.folder} says {highest}, not {self.counter}.")

    def put_up(self) -> None:
        """Put the counter up and take lower ones down."""
        remote = mirror.is_remote(self.folder)
        if remote:
            mirror.write(f"{self.folder}/{self.counter}", b"up")
        else:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            (Path(self.folder) / str(self.counter)).touch()
        lower = [str(counter) for counter in self._counters() if counter < self.counter]
        if remote:
            mirror.remove(self.folder, *lower)
            return
        for name in lower:
            (Path(self.folder) / name).unlink(missing_ok=True)

    def _counters(self) -> list[int]:
        if mirror.is_remote(self.folder):
            names = list(mirror.sizes(self.folder))
        else:
            names = [path.name for path in Path(self.folder).iterdir()]
        return [int(name) for name in names if name.isdigit()]


def create_table(engine: sa.Engine) -> None:
    """Make the table of leases where there is none."""
    _METADATA.create_all(engine)


class Lease:
    """The right to drive one study; renewed by a thread until released.

    Args:
        engine: Engine on the ledger's database.
        study: Name of the study.
        seconds: How long the lease outlives its last renewal.

    Raises:
        LeaseHeldError: another driver holds it (says who and for how long).
    """

    def __init__(self, engine: sa.Engine, *, study: str, seconds: float) -> None:
        self.study, self.seconds = study, seconds
        self._engine, self._clock = engine, _CLOCK[engine.dialect.name]
        self._lost, self._stop = threading.Event(), threading.Event()
        create_table(engine)
        self.counter = self._acquire()
        self._on_lost: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _acquire(self) -> int:
        with self._engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO mmfa_lease (study, holder, counter, expires) VALUES (:study, '{}', 0, 0) "
                    "ON CONFLICT DO NOTHING"
                ),
                {"study": self.study},
            )
        seen = self._read()
        dead = seen["counter"] if proven_dead(json.loads(seen["holder"])) else -1
        with self._engine.begin() as connection:
            taken = connection.execute(
                sa.text(
                    "UPDATE mmfa_lease SET holder = :holder, counter = counter + 1, "
                    f"expires = {self._clock} + :seconds "
                    f"WHERE study = :study AND (expires < {self._clock} OR counter = :dead)"
                ),
                {"holder": json.dumps(this_process()), "seconds": self.seconds, "study": self.study, "dead": dead},
            ).rowcount
            counter = connection.execute(sa.select(_TABLE.c.counter).where(_TABLE.c.study == self.study)).scalar_one()
        if taken:
            return int(counter)
        seen = self._read()
        holder = json.loads(seen["holder"])
        raise LeaseHeldError(
            f"the study is being driven by process {holder.get('pid')} on {holder.get('host')}, whose lease lasts for "
            f"{max(seen['left'], 0):.0f} s more and is renewed for as long as it lives; wait for its end, or stop it, "
            "and run this command again."
        )

    def _read(self) -> dict[str, Any]:
        with self._engine.begin() as connection:
            left = sa.literal_column(f"expires - {self._clock}", sa.Double).label("left")
            query = sa.select(_TABLE.c.holder, _TABLE.c.counter, left).where(_TABLE.c.study == self.study)
            return dict(connection.execute(query).one()._mapping)

    def _renew(self) -> None:
        statement = sa.text(
            f"UPDATE mmfa_lease SET expires = {self._clock} + :seconds WHERE study = :study AND counter = :counter"
        )
        values = {"seconds": self.seconds, "study": self.study, "counter": self.counter}
        while not self._stop.wait(self.seconds / 4):
            try:
                with self._engine.begin() as connection:
                    renewed = connection.execute(statement, values).rowcount
            except sa.exc.SQLAlchemyError as error:
                logger.warning("the lease could not be renewed, trying again: %s", first_line(error))
                continue
            if not renewed:
                self._lost.set()
                self._on_lost()
                return

    def on_lost(self, call: Callable[[], None]) -> None:
        """Have ``call`` run, on the renewing thread, when another driver has taken over."""
        self._on_lost = call

    def check(self) -> None:
        """Raise LeaseLostError where another driver has taken over; asks the database."""
        if self._lost.is_set() or self._read()["counter"] != self.counter:
            self._lost.set()
            raise LeaseLostError(f"another driver has taken over the study {self.study}; this one writes nothing more.")

    def guard(self, engine: sa.Engine) -> None:
        """Read the counter inside every transaction on ``engine``, before it commits.

        A transaction that finds another counter is rolled back with LeaseLostError.
        """
        lock = " FOR SHARE" if engine.dialect.name == "postgresql" else ""
        query = sa.text(f"SELECT counter FROM mmfa_lease WHERE study = :study{lock}")

        @sa.event.listens_for(engine, "commit")
        def _check(connection: sa.Connection) -> None:
            if connection.execute(query, {"study": self.study}).scalar() != self.counter:
                self._lost.set()
                raise LeaseLostError(f"another driver has taken over the study {self.study}; nothing was written.")

    def release(self) -> None:
        """Let the next driver in at once."""
        self._stop.set()
        self._thread.join(timeout=RELEASE_SECONDS)
        if self._thread.is_alive():  # it waits for a database that is away: the lease runs out by itself
            return
        with contextlib.suppress(sa.exc.SQLAlchemyError), self._engine.begin() as connection:
            mine = (_TABLE.c.study == self.study) & (_TABLE.c.counter == self.counter)
            connection.execute(_TABLE.update().where(mine).values(expires=0.0, holder="{}"))
