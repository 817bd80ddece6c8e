"""Optuna's tables behind a copy of them in memory: a read asks the database nothing, a write is the rows that changed.

Optuna's own storage reads every trial that is not over again at each look, since another process may have written it,
and makes each value a transaction of several queries; with a long study or many workers that is most of what an ask
costs. Under the study's lease no other process writes, so what was read and written here is what the tables hold. Where
a write fails that is no longer known, and everything is read again. Opening, reading and studies are left to Optuna.
"""

from __future__ import annotations

import bisect
import copy
import datetime
import json
import logging
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mmfa.errors import MmfaError
from tune import rows
from tune.places import first_line

logger = logging.getLogger(__name__)

SCHEMA = 12
"""Version of Optuna's tables that is written here."""
BEST = 25
"""Trials that TPE takes for good ones, at most (``default_gamma``): a part of a study that has these has them all."""
TRIES = 5
"""How often a write is tried whose connection breaks; to each connection a database that is away gets its time."""


class Known:
    """What the tables hold of one Optuna study that is to be maximised.

    Args:
        trials: All of its trials, by number.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self.trials: list[FrozenTrial] = []
        self.open: dict[int, None] = {}
        """Numbers of the trials that wait or run."""
        self.lineages: list[list[int]] = []
        """Numbers of the attempts of each lineage."""
        self.lineage_of: list[int] = []
        """Lineage of each trial."""
        self.spaces: dict[str, BaseDistribution] = {}
        self._ranked: list[tuple[float, int]] = []
        self._newest: list[int] = []
        self._lost: list[int] = []
        for trial in trials:
            self.put(trial)

    def put(self, trial: FrozenTrial) -> None:
        """Take in a trial that is new, or as it is now; one that is over changes no more."""
        if trial.number == len(self.trials):
            self._add(trial)
        self.trials[trial.number] = trial
        self.spaces |= trial.distributions
        if not trial.state.is_finished():
            return
        self.open.pop(trial.number)
        if trial.state is TrialState.FAIL:
            self._lost.append(trial.number)
        else:
            bisect.insort(self._newest, trial.number)
        if trial.state is TrialState.COMPLETE:
            assert trial.value is not None
            bisect.insort(self._ranked, (-trial.value, trial.number))

    def _add(self, trial: FrozenTrial) -> None:
        self.trials.append(trial)
        self.open[trial.number] = None
        lineage = trial.user_attrs.get("lineage", len(self.lineages))
        if lineage == len(self.lineages):
            self.lineages.append([])
        self.lineages[lineage].append(trial.number)
        self.lineage_of.append(lineage)

    def part(self, newest: int) -> list[FrozenTrial]:
        """Return the newest trials that have a result or were pruned, the newest lost, the best, and all not over."""
        best = (number for _, number in self._ranked[:BEST])
        shown = {*self._newest[-newest:], *self._lost[-newest:], *best, *self.open}
        return [self.trials[number] for number in sorted(shown)]


class Database(optuna.storages.BaseStorage):
    """The tables of a ledger, for one thread of the driver that holds the lease.

    Args:
        tables: Optuna's own storage.

    Raises:
        MmfaError: an Optuna with other tables.
    """

    def __init__(self, tables: optuna.storages.RDBStorage) -> None:
        if models.SCHEMA_VERSION != SCHEMA:
            raise MmfaError(
                f"the ledger is written as Optuna 5.0 writes it (tables of version {SCHEMA}), but Optuna "
                f"{optuna.__version__} has version {models.SCHEMA_VERSION}; pip install 'optuna>=5.0,<5.1'."
            )
        self._tables, self.engine = tables, tables.engine
        self._known: dict[int, Known] = {}
        self._where: dict[int, tuple[int, int]] = {}
        """Study and number of each trial, by its id here."""
        self._ids: dict[int, int] = {}
        """Id in the tables, by id here, of trials that were not read from them; 0 until they are there."""
        self._before: dict[tuple[int, int], FrozenTrial | None] | None = None
        """Within :meth:`at_once`: trials that were changed, by study and number, as the tables have them."""
        self._newest: int | None = None

    # Reading.

    def known(self, study_id: int) -> Known:
        """Return what there is of a study, read where that is not known yet."""
        if study_id not in self._known:
            trials = self._tables.get_all_trials(study_id, deepcopy=False)
            self._known[study_id] = Known(trials)
            self._where |= {trial._trial_id: (study_id, trial.number) for trial in trials}
        return self._known[study_id]

    def forget(self) -> None:
        """Have everything read again."""
        self._known.clear()

    @contextmanager
    def part(self, newest: int) -> Iterator[None]:
        """Show within, of a study that is longer, its :meth:`Known.part`."""
        self._newest = newest
        try:
            yield
        finally:
            self._newest = None

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial as it is now."""
        return _own(self._now(self._where[trial_id]))  # Optuna's Trial writes into what it gets

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of a trial."""
        return self.known(study_id).trials[trial_number]._trial_id

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study in their order; those that are not over without a look at the others."""
        known = self.known(study_id)
        if states is not None and not any(state in states for state in TrialState if state.is_finished()):
            trials = [known.trials[number] for number in known.open]
        else:
            trials = list(known.trials) if self._newest is None else known.part(self._newest)
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    # Writing.

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Write all that is changed within in one transaction at the end, or nothing of it.

        No transaction is open before: a sampler may take its time within, and a driver that is frozen holds no lock.
        """
        if self._before is not None:
            yield
            return
        self._before = {}
        try:
            yield
            if self._before:
                self.write(self._before)
        except BaseException:
            for where in [where for where, before in self._before.items() if before is None]:
                del self._where[self._now(where)._trial_id]
            self.forget()
            raise
        finally:
            self._before = None

    def write(self, before: Mapping[tuple[int, int], FrozenTrial | None]) -> None:
        """Bring the tables up to what is known here; where the connection breaks, on another one.

        Args:
            before: What they have of the trials that were changed, by study and number; None of new ones.

        Raises:
            OperationalError: the connection broke too often, or in the commit itself, which may have been made or not.
        """
        for tries_left in reversed(range(TRIES)):
            try:
                with self.engine.begin() as connection:
                    added = self._write(connection, before)
            except sa.exc.OperationalError as error:
                committing = error.statement is None
                if not tries_left or committing or not error.connection_invalidated:
                    raise
                logger.warning("the ledger went away; what it was to be told is sent again: %s", first_line(error))
            else:
                self._ids |= added
                return

    def _write(self, connection: sa.Connection, before: Mapping[tuple[int, int], FrozenTrial | None]) -> dict[int, int]:
        added = {}
        for where, old in before.items():
            new = self._now(where)
            if old is None:
                row = added[new._trial_id] = rows.add(connection, where[0], new)
            else:
                row = self._ids.get(new._trial_id, new._trial_id)
                rows.update(connection, row, old, new)
            rows.write_rest(connection, row, old, new)
        return added

    def _now(self, where: tuple[int, int]) -> FrozenTrial:
        study_id, number = where
        return self.known(study_id).trials[number]

    @contextmanager
    def _changed(self, trial_id: int) -> Iterator[FrozenTrial]:
        """Yield a trial to be changed, here and at the end in the tables."""
        where = self._where[trial_id]
        old = self._now(where)
        self.check_trial_is_updatable(trial_id, old.state)
        with self.at_once():
            assert self._before is not None
            new = _own(old)
            yield new
            self._before.setdefault(where, old)
            self.known(where[0]).put(new)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial; it gets into the tables as it is at the end of :meth:`at_once`, its parameters included."""
        known = self.known(study_id)
        trial = _own(template_trial or optuna.trial.create_trial(state=TrialState.RUNNING))
        trial.user_attrs, trial.system_attrs = _json(trial.user_attrs), _json(trial.system_attrs)
        trial_id = -len(self._ids) - 1  # the tables number theirs from 1
        trial.number, trial._trial_id = len(known.trials), trial_id
        with self.at_once():
            assert self._before is not None
            where = (study_id, trial.number)
            self._ids[trial_id], self._where[trial_id] = 0, where
            self._before[where] = None
            known.put(trial)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter."""
        spaces = self.known(self._where[trial_id][0]).spaces
        check_distribution_compatibility(spaces.get(param_name, distribution), distribution)
        with self._changed(trial_id) as trial:
            trial.params[param_name] = distribution.to_external_repr(param_value_internal)
            trial.distributions[param_name] = distribution

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state, and its result; False where a trial that does not wait is to run."""
        with self._changed(trial_id) as trial:
            if state is TrialState.RUNNING and trial.state is not TrialState.WAITING:
                return False
            trial.state = state
            if values is not None:
                trial.values = list(values)
            if state is TrialState.RUNNING:
                trial.datetime_start = datetime.datetime.now()
            if state.is_finished():
                trial.datetime_complete = datetime.datetime.now()
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set the value at a step."""
        with self._changed(trial_id) as trial:
            trial.intermediate_values[step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of ours."""
        with self._changed(trial_id) as trial:
            trial.user_attrs[key] = _json(value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of Optuna's."""
        with self._changed(trial_id) as trial:
            trial.system_attrs[key] = _json(value)

    # Studies are seldom asked for.

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Add a study."""
        return self._tables.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""
        self._tables.delete_study(study_id)
        self.forget()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of ours."""
        self._tables.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of Optuna's."""
        self._tables.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return self._tables.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._tables.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return what is to become of the objective."""
        return self._tables.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return our attributes."""
        return self._tables.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return Optuna's attributes."""
        return self._tables.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[Any]:
        """Return all studies."""
        return self._tables.get_all_studies()


def _json(value: Any) -> Any:
    """Return a value as the tables give it back, names that many trials share kept once."""
    return json.loads(json.dumps(value), object_pairs_hook=lambda pairs: {sys.intern(key): one for key, one in pairs})


def _own(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy that can be changed without changing the other."""
    own = copy.copy(trial)
    for name in ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values"):
        setattr(own, name, dict(getattr(trial, name)))
    return own
