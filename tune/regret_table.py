"""Which trial each criterion would have promoted: the regret of a finished search, from its probes and its metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfa.errors import CheckpointError
from mmfa.probe import Probe
from studies.protocol import CRITERIA
from tune import criteria, regret
from tune.job import PROBE
from tune.outcomes import Row


def of(rows: Sequence[Row], folders: Mapping[str, Path], *, objective: str) -> list[dict[str, Any]]:
    """Return the table of a search that is just over, as plain data, the oracle last.

    Args:
        rows: trials of the search.
        folders: of their lineages, with their probes.
        objective: what the study chose by.
    """
    done = {row.name: row for row in rows if row.value is not None}
    metrics = {name: dict(row.metrics) | {objective: row.value or 0.0} for name, row in done.items()}
    probes = {}
    for name in done:
        try:
            probes[name] = Probe.load(folders[name] / PROBE)
        except CheckpointError:  # criteria that need it then have a smaller n
            continue
    return table(metrics, probes, first=[objective])


def table(
    metrics: Mapping[str, Mapping[str, float]], probes: Mapping[str, Probe], *, first: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the regret of every criterion that at least one trial has, as plain data, the oracle last.

    Args:
        metrics: by trial.
        probes: by trial, for the criterion that needs all of them at once.
        first: names of more criteria among the metrics, which head the table.
    """
    ensemble = criteria.ensv({name: probe for name, probe in probes.items() if probe.finite})
    shares = {name: {criteria.ENSV: value} for name, value in ensemble.items()}
    trials = [{**values, **shares.get(name, {})} for name, values in metrics.items()]
    wanted = dict.fromkeys([*first, *CRITERIA, criteria.ENSV])
    known = [name for name in wanted if any(name in trial for trial in trials)]
    found = regret.selection_regret(trials, names=list(metrics), criteria=known)
    return [dataclasses.asdict(one) for one in found]
