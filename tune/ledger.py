"""The record of truth: Optuna studies in one database, one for the controls and one for each arm.

A *lineage* is one point of a study, however often its training was lost and taken up again; each attempt is
an Optuna trial. The first attempt of a lineage has no ``lineage`` attribute, a retry carries its index.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from mmfa.errors import MmfaError
from studies.plan import SEARCH, Fixed
from tune.database import Database, Known
from tune.lease import Lease, create_table
from tune.places import first_line, safe_url

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "lost", "complete", "diverged", "pruned"]
LOCK_SECONDS = 60
"""How long a write waits for another one on SQLite."""
OPEN_TRIES = 4
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Lineage:
    """One point and its attempts, oldest first."""

    stage: str
    index: int
    attempts: tuple[FrozenTrial, ...]

    @property
    def last(self) -> FrozenTrial:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def name(self) -> str:
        """``search/0003`` or ``controls/target_bn-s0``: the stage, then the lineage's number or what it was named."""
        return f"{self.stage}/{self.attempts[0].user_attrs.get('name', f'{self.index:04d}')}"

    @property
    def role(self) -> str:
        """``source_only``, ``target_bn``, ``baseline``, ``candidate``, what it confirms, or its arm."""
        if (fixed := self.attempts[0].user_attrs.get("role")) is not None:
            return str(fixed)
        if self.stage != SEARCH:
            return self.stage
        return "baseline" if self.index == 0 else "candidate"

    @property
    def fixed_config(self) -> str | None:
        """The config, as JSON, of a training that was known beforehand; None for a point of an arm."""
        return self.attempts[0].user_attrs.get("config")

    @property
    def state(self) -> State:
        """What has become of it; ``lost`` is to be tried again."""
        last = self.last
        if last.user_attrs.get("outcome") == "diverged" and last.state is not TrialState.WAITING:
            return "diverged"
        states: dict[TrialState, State] = {
            TrialState.WAITING: "waiting",
            TrialState.RUNNING: "running",
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
        }
        return states.get(last.state, "lost")

    def point(self) -> dict[str, Any]:
        """Return its parameters, all that any attempt knows.

        Optuna's ask writes one parameter at a time, so an attempt that was killed within it has but some of them.
        """
        merged: dict[str, Any] = {}
        for trial in self.attempts:
            merged |= trial.system_attrs.get("fixed_params", {}) | trial.params
        return merged

    @property
    def terminal(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state in ("complete", "diverged", "pruned") and self.last.state.is_finished()


class StageLedger:
    """One Optuna study of the ledger.

    Args:
        study: It.
        stage: Its name within the study.
        database: Where it lies.
    """

    def __init__(self, study: optuna.Study, *, stage: str, database: Database) -> None:
        self.study, self.stage, self.database = study, stage, database
        self._id = database.get_study_id_from_name(study.study_name)

    @property
    def _known(self) -> Known:
        return self.database.known(self._id)

    def at_once(self) -> AbstractContextManager[None]:
        """Have all that is written within written at the end, in one transaction, or nothing of it."""
        return self.database.at_once()

    @property
    def num_lineages(self) -> int:
        """How many lineages there are."""
        return len(self._known.lineages)

    @property
    def num_attempts(self) -> int:
        """How many attempts there are, of all lineages."""
        return len(self._known.trials)

    @property
    def num_waiting(self) -> int:
        """How many lineages wait for their next attempt."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _lineage(self, index: int) -> Lineage:
        known = self._known
        return Lineage(self.stage, index, tuple(known.trials[number] for number in known.lineages[index]))

    def lineages(self) -> list[Lineage]:
        """Return all lineages in the order of their first attempts."""
        return [self._lineage(index) for index in range(self.num_lineages)]

    def lineage_of(self, number: int) -> Lineage:
        """Return the lineage that the trial ``number`` belongs to."""
        return self._lineage(self._known.lineage_of[number])

    def reap(self) -> list[Lineage]:
        """Close what a dead driver left running and enqueue every lost lineage again; return those.

        All of it at once, so a kill leaves it to be done again.
        """
        again = []
        with self.at_once():
            for lineage in self.lineages():
                if lineage.last.state is TrialState.RUNNING:
                    self.study.tell(lineage.last.number, state=TrialState.FAIL)
                    lineage = self._lineage(lineage.index)
                if lineage.state == "lost":
                    first = lineage.attempts[0].user_attrs
                    attrs = {**first, "lineage": lineage.index, "retry_of": lineage.last.number}
                    self.study.enqueue_trial(lineage.point(), user_attrs=attrs)
                    again.append(lineage)
        return again

    def enqueue(self, params: Mapping[str, Any], **attrs: Any) -> None:
        """Add a first attempt with given parameters."""
        self.study.enqueue_trial(dict(params), user_attrs=attrs)

    def enqueue_fixed(self, runs: Sequence[Fixed]) -> None:
        """Add the first attempts of trainings that are known beforehand, each once."""
        known = {lineage.attempts[0].user_attrs.get("name") for lineage in self.lineages()}
        with self.at_once():
            for run in runs:
                if run.name not in known:
                    self.enqueue({}, name=run.name, role=run.role, config=run.config.to_json())

    def ask(
        self, distributions: Mapping[str, optuna.distributions.BaseDistribution] = MappingProxyType({})
    ) -> optuna.Trial:
        """Start the next waiting trial, or a new one, with the given parameters suggested at once."""
        with self.at_once():
            return self.study.ask(dict(distributions))

    def report(self, trial: optuna.Trial, *, value: float, step: int) -> None:
        """Record an intermediate value once; a non-finite one is left out (Optuna stores inf as a result)."""
        if math.isfinite(value):
            trial.report(value, step)

    def complete(self, trial: optuna.Trial, *, value: float, metrics: Mapping[str, float]) -> None:
        """Close a trial with its objective.

        Raises:
            MmfaError: a non-finite objective, which Optuna would store as a result.
        """
        if not math.isfinite(value):
            raise MmfaError(f"an objective must be finite, but trial {trial.number} got {value}.")
        with self.at_once():
            trial.set_user_attr("metrics", dict(metrics))
            self.study.tell(trial, value)

    def diverge(self, trial: optuna.Trial, *, reason: str) -> None:
        """Close a trial whose loss became non-finite: terminal, counted, never tried again."""
        with self.at_once():
            trial.set_user_attr("reason", reason)
            trial.set_user_attr("outcome", "diverged")
            self.study.tell(trial, state=TrialState.FAIL)

    def prune(self, trial: optuna.Trial, *, reason: str) -> None:
        """Close a trial that was ended early; its intermediate values stay, and it has no objective."""
        with self.at_once():
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=TrialState.PRUNED)

    def lose(self, trial: optuna.Trial, *, reason: str) -> None:
        """Close a trial that infrastructure lost; :meth:`reap` enqueues it again at the next start."""
        with self.at_once():
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=TrialState.FAIL)


def _patiently(call: Callable[[], Made]) -> Made:
    """Call again where another process was making the same tables at the same moment."""
    for _ in range(OPEN_TRIES - 1):
        try:
            return call()
        except (sa.exc.OperationalError, sa.exc.IntegrityError, optuna.exceptions.StorageInternalError):
            time.sleep(0.5)
    return call()


DATABASE_PATIENCE_SECONDS = 300.0
"""How long a database that was there may be away before the study stops."""


def _reconnect_patiently(engine: sa.Engine) -> None:
    """Wait for a database server that was there and is being restarted."""

    @sa.event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        ends = time.monotonic() + DATABASE_PATIENCE_SECONDS
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                if time.monotonic() > ends:
                    raise
                logger.warning("the ledger does not answer, trying again: %s", first_line(error))
            time.sleep(2.0)


class Ledger:
    """The database of a study's trials; a study is opened under a lease.

    Args:
        url: SQLAlchemy URL.

    Raises:
        MmfaError: a database that cannot be opened or that holds something else.
    """

    def __init__(self, url: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        kwargs = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        try:
            self.storage = Database(_patiently(lambda: optuna.storages.RDBStorage(url, engine_kwargs=kwargs)))
            self._lease_engine = sa.create_engine(url, **kwargs)
            _patiently(lambda: create_table(self._lease_engine))
        except ImportError:
            raise MmfaError(
                f"the ledger {safe_url(url)} needs psycopg: pip install 'mmfa-study[cluster]' (in a checkout: "
                "pip install -c constraints.txt -e '.[cluster]')."
            ) from None
        except (sa.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            way_out = "Give another --ledger."
            if "database is locked" in str(error):
                way_out = "Another process writes to it, or was stopped while it did: end that one, and run this again."
            raise MmfaError(f"the ledger {safe_url(url)} cannot be opened: {first_line(error)}. {way_out}") from None
        if not url.startswith("sqlite"):
            for engine in (self.storage.engine, self._lease_engine):
                _reconnect_patiently(engine)

    def lease(self, study_name: str, *, seconds: float) -> Lease:
        """Take the study's lease and let no transaction commit without it."""
        lease = Lease(self._lease_engine, study=study_name, seconds=seconds)
        lease.guard(self.storage.engine)
        return lease

    def open(self, name: str, *, stage: str, sampler: optuna.samplers.BaseSampler | None = None) -> StageLedger:
        """Open or create one stage of a study: ``<name>`` for the search, ``<name>/<stage>`` for the others."""
        full = name if stage == SEARCH else f"{name}/{stage}"
        study = optuna.create_study(
            storage=self.storage, study_name=full, directions=["maximize"], load_if_exists=True, sampler=sampler
        )
        self.storage.forget()  # what is opened is read from the database
        return StageLedger(study, stage=stage, database=self.storage)

    def register(self, stage: StageLedger, *, identity: Mapping[str, Any]) -> None:
        """Write down what the study is before its first trial; later calls change nothing.

        Args:
            stage: The search.
            identity: What makes two commands the same study, its protocol included.
        """
        attrs = stage.study.user_attrs
        stage.study.set_user_attr("identity", dict(identity))
        stage.study.set_user_attr("ledger", attrs.get("ledger") or uuid.uuid4().hex)
        stage.study.set_user_attr("registered_at", attrs.get("registered_at") or time.time())

    def register_number(self, stage: StageLedger, name: str, number: int, *, asked: bool) -> int:
        """Write down how many trials or fresh seeds a study has, or read it; return the number that holds.

        Args:
            stage: The search.
            name: ``trials`` or ``confirm_seeds``.
            number: Of this command.
            asked: Whether the user gave that number.

        Raises:
            MmfaError: a number below the one that was registered.
        """
        attrs = stage.study.user_attrs
        before = attrs.get(name)
        if before is None or number > before:
            if before is not None:
                change = {"at": time.time(), "what": name, "from": before, "to": number}
                stage.study.set_user_attr("amendments", [*attrs.get("amendments", []), change])
            stage.study.set_user_attr(name, number)
            return number
        if asked and number < before:
            option = f"--{name.replace('_', '-')}"
            what = name.replace("_", " ")
            raise MmfaError(f"the number of {what} may only grow: this study has {before}, but {option} is {number}.")
        return int(before)
