"""What a study found so far, read from the ledger: best, baseline, controls, differences, seed noise."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import optuna

from studies.plan import CONTROLS, Plan
from tune.ledger import Lineage, StageLedger


@dataclass(frozen=True, slots=True)
class Row:
    """One lineage that is over."""

    name: str
    role: str
    state: str
    params: dict[str, Any]
    value: float | None
    metrics: dict[str, float]
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rows of a study and what they say.

    ``noise`` holds the baseline's objective in every study of the same family (same question, data and settings;
    other seeds) that the ledger knows, this one included.
    """

    metric: str
    trials: int
    rows: list[Row]
    noise: list[float]

    @property
    def search(self) -> list[Row]:
        """The trials: the baseline and the candidates."""
        return [row for row in self.rows if row.role in ("baseline", "candidate")]

    @property
    def baseline(self) -> Row | None:
        """The paper's defaults."""
        return next((row for row in self.rows if row.role == "baseline"), None)

    @property
    def best(self) -> Row | None:
        """The trial with the highest objective."""
        return max((row for row in self.search if row.value is not None), key=lambda row: row.value or 0, default=None)

    @property
    def noise_sd(self) -> float | None:
        """Standard deviation of the baseline over seeds, or None where one seed is all there is."""
        return statistics.stdev(self.noise) if len(self.noise) > 1 else None

    @property
    def num_terminal(self) -> int:
        """How many trials of the search are over."""
        return len(self.search)

    def difference(self, row: Row) -> float | None:
        """Return a row's objective minus the baseline's."""
        if row.value is None or self.baseline is None or self.baseline.value is None:
            return None
        return row.value - self.baseline.value

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "objective": self.metric,
            "labels": "target_val",
            "trials": self.trials,
            "terminal": self.num_terminal,
            "best": self.best.name if self.best else None,
            "seed_noise": {"n": len(self.noise), "sd": self.noise_sd, "values": self.noise},
            "rows": [
                {
                    "name": row.name,
                    "role": row.role,
                    "state": row.state,
                    "params": row.params,
                    "value": row.value,
                    "difference": self.difference(row),
                    "metrics": row.metrics,
                    "reason": row.reason,
                }
                for row in self.rows
            ],
        }


def _row(lineage: Lineage) -> Row:
    last = lineage.last
    role = lineage.attempts[0].user_attrs.get("control") or ("baseline" if lineage.index == 0 else "candidate")
    return Row(
        name=lineage.name,
        role=role,
        state=lineage.state,
        params=dict(last.params),
        value=last.value if lineage.state == "complete" else None,
        metrics=dict(last.user_attrs.get("metrics", {})),
        reason=last.user_attrs.get("reason", ""),
    )


def read(plan: Plan, *, controls: StageLedger, search: StageLedger, noise: list[float]) -> Outcome:
    """Return the outcome as the ledger has it: terminal lineages only, controls in their own order."""
    rows = [_row(item) for item in search.lineages() if item.terminal]
    by_role = {row.role: row for row in (_row(item) for item in controls.lineages() if item.terminal)}
    ordered = [by_role[name] for name in CONTROLS if name in by_role]
    return Outcome(plan.study.objective.metric, plan.trials, ordered + rows, noise)


def baseline_value(study: optuna.Study) -> float | None:
    """Return the objective of a search's baseline, or None where it has none yet."""
    lineages = StageLedger(study, stage="search").lineages()
    return lineages[0].last.value if lineages and lineages[0].state == "complete" else None
