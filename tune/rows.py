"""A trial as rows of Optuna's tables: what is inserted of a new one, and what is changed of one that is there."""

from __future__ import annotations

import datetime
import json
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial

TRIALS: sa.Table = models.TrialModel.__table__
KEYS: dict[sa.Table, str] = {
    models.TrialParamModel.__table__: "param_name",
    models.TrialUserAttributeModel.__table__: "key",
    models.TrialSystemAttributeModel.__table__: "key",
    models.TrialIntermediateValueModel.__table__: "step",
    models.TrialValueModel.__table__: "objective",
}
"""The tables of what a trial has, and what tells their rows of one trial apart."""


def _utc(moment: datetime.datetime | None) -> datetime.datetime | None:
    """Return a local time as the tables have it."""
    return None if moment is None else moment.astimezone(datetime.UTC).replace(tzinfo=None)


def _own_row(trial: FrozenTrial) -> dict[str, Any]:
    times = {"datetime_start": _utc(trial.datetime_start), "datetime_complete": _utc(trial.datetime_complete)}
    return {"state": trial.state, **times}


def add(connection: sa.Connection, study_id: int, trial: FrozenTrial) -> int:
    """Insert a trial; return its id."""
    row = {"number": trial.number, "study_id": study_id, **_own_row(trial)}
    key = connection.execute(TRIALS.insert(), row).inserted_primary_key
    assert key is not None
    return int(key[0])


def update(connection: sa.Connection, row: int, old: FrozenTrial, new: FrozenTrial) -> None:
    """Write a trial's new state, where it is still in the old one."""
    if old.state is new.state:
        return
    same = (TRIALS.c.trial_id == row) & (TRIALS.c.state == old.state)
    if connection.execute(TRIALS.update().where(same).values(**_own_row(new))).rowcount != 1:
        raise StorageInternalError(f"trial {new.number} is not {old.state.name} in the ledger: it was changed there.")


def _rest(trial: FrozenTrial | None) -> list[dict[Any, dict[str, Any]]]:
    """Return the rows of what a trial has, by key, table by table as in :data:`KEYS`."""
    if trial is None:
        return [{} for _ in KEYS]
    stored_step = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    stored_value = models.TrialValueModel.value_to_stored_repr
    return [
        {
            name: {
                "param_value": space.to_internal_repr(trial.params[name]),
                "distribution_json": distribution_to_json(space),
            }
            for name, space in trial.distributions.items()
        },
        {key: {"value_json": json.dumps(value)} for key, value in trial.user_attrs.items()},
        {key: {"value_json": json.dumps(value)} for key, value in trial.system_attrs.items()},
        {
            step: dict(zip(("intermediate_value", "intermediate_value_type"), stored_step(value), strict=True))
            for step, value in trial.intermediate_values.items()
        },
        {
            objective: dict(zip(("value", "value_type"), stored_value(value), strict=True))
            for objective, value in enumerate(trial.values or ())
        },
    ]


def write_rest(connection: sa.Connection, row: int, old: FrozenTrial | None, new: FrozenTrial) -> None:
    """Insert and update the rows of what a trial has."""
    for (table, key), before, now in zip(KEYS.items(), _rest(old), _rest(new), strict=True):
        if added := [{"trial_id": row, key: at, **one} for at, one in now.items() if at not in before]:
            connection.execute(table.insert(), added)
        for at, one in now.items():
            if at in before and before[at] != one:
                same = (table.c.trial_id == row) & (table.c[key] == at)
                connection.execute(table.update().where(same).values(**one))
