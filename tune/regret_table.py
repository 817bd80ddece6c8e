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
from tune.outcome import Row
from tune.trainable import PROBE


def of(rows: Sequence[Row], folders: Mapping[str, Path], *, objective: str) -> list[dict[str, Any]]:
    """Return the table as plain data, the oracle last.

    Args:
        rows: trials of the search.
        folders: of their lineages, with their probes.
        objective: what the study chose by.
    """
    done = [row for row in rows if row.value is not None]
    metrics = [dict(row.metrics) | {objective: row.value or 0.0} for row in done]
    probes = {}
    for row in done:
        try:
            probes[row.name] = Probe.load(folders[row.name] / PROBE)
        except CheckpointError:  # criteria that need it then say n
            continue
    for name, value in criteria.ensv({name: probe for name, probe in probes.items() if probe.finite}).items():
        metrics[[row.name for row in done].index(name)][criteria.ENSV] = value
    return table(metrics, [row.name for row in done], more=[objective])


def table(metrics: Sequence[Mapping[str, float]], names: Sequence[str], *, more: Sequence[str]) -> list[dict[str, Any]]:
    """Return the regret of every criterion that at least one trial has, and of ``more``, the study's own first."""
    wanted = list(dict.fromkeys([*more, *CRITERIA, criteria.ENSV]))
    known = [name for name in wanted if any(name in trial for trial in metrics)]
    return [dataclasses.asdict(one) for one in regret.selection_regret(metrics, names=names, criteria=known)]
