"""What a study found so far, read from the ledger: best, baseline, controls, arms, differences, seed noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from mmfa.data.protocols import overlapping_error
from studies.plan import SEARCH, Plan
from studies.spec import CONTROLS
from tune.ledger import Lineage, StageLedger


@dataclass(frozen=True, slots=True)
class Row:
    """One lineage that is over."""

    name: str
    arm: str
    """Its stage: an arm, or ``controls``."""
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
    labels: str
    trials: int
    rows: list[Row]
    noise: list[float]
    baseline_run: str = f"{SEARCH}/0000"

    @property
    def search(self) -> list[Row]:
        """The trials: all but the controls of a search."""
        return [row for row in self.rows if row.arm != "controls"]

    @property
    def baseline(self) -> Row | None:
        """The run that the others are compared with, where there is one."""
        return next((row for row in self.rows if row.name == self.baseline_run), None)

    @property
    def best(self) -> Row | None:
        """The trial with the highest objective, or None where nothing is selected."""
        if self.labels == "none":
            return None
        return max((row for row in self.search if row.value is not None), key=lambda row: row.value or 0, default=None)

    @property
    def noise_sd(self) -> float | None:
        """Standard deviation of the baseline over seeds, or None where one seed is all there is."""
        return statistics.stdev(self.noise) if len(self.noise) > 1 else None

    @property
    def num_terminal(self) -> int:
        """How many trials of the search are over."""
        return len(self.search)

    def of_arm(self, name: str) -> list[Row]:
        """Return the rows of an arm that have a result."""
        return [row for row in self.rows if row.arm == name and row.value is not None]

    def difference(self, row: Row) -> float | None:
        """Return a row's objective minus the baseline's."""
        if row.value is None or self.baseline is None or self.baseline.value is None:
            return None
        return row.value - self.baseline.value

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "objective": self.metric,
            "labels": self.labels,
            "trials": self.trials,
            "terminal": self.num_terminal,
            "best": self.best.name if self.best else None,
            "seed_noise": {"n": len(self.noise), "sd": self.noise_sd, "values": self.noise},
            "rows": [
                {
                    "name": row.name,
                    "arm": row.arm,
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


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over runs."""

    n: int
    mean: float
    sd: float | None
    """None for one run."""
    variance_of_mean: float
    """Squared standard error of the mean; 0 where one run is all there is."""


def spread(rows: Sequence[Row], metric: str, *, overlapping: bool = False) -> Spread | None:
    """Return the spread of a metric over rows, or None where no row has it.

    Args:
        rows: runs over seeds, or over splits.
        metric: its name.
        overlapping: whether the runs are halves that share images (Nadeau and Bengio, 2003).
    """
    values = [row.metrics[metric] for row in rows if metric in row.metrics]
    if not values:
        return None
    if len(values) == 1:
        return Spread(1, values[0], None, 0.0)
    sd = statistics.stdev(values)
    variance = overlapping_error(values, test_share=1.0) ** 2 if overlapping else sd**2 / len(values)
    return Spread(len(values), statistics.fmean(values), sd, variance)


def _row(lineage: Lineage) -> Row:
    last = lineage.last
    return Row(
        name=lineage.name,
        arm=lineage.stage,
        role=lineage.role,
        state=lineage.state,
        params=dict(last.params),
        value=last.value if lineage.state == "complete" else None,
        metrics=dict(last.user_attrs.get("metrics", {})),
        reason=last.user_attrs.get("reason", ""),
    )


def read(plan: Plan, lineages: Sequence[Lineage], *, noise: list[float]) -> Outcome:
    """Return the outcome as the ledger has it: terminal lineages only, controls first and in their own order."""
    rows = [_row(item) for item in lineages if item.terminal]
    order = list(CONTROLS)
    controls = sorted((row for row in rows if row.arm == "controls"), key=lambda row: order.index(row.role))
    others = [row for row in rows if row.arm != "controls"]
    return Outcome(plan.metric, plan.labels, plan.num_trials, controls + others, noise, plan.baseline_run)


def baseline_value(study: optuna.Study) -> float | None:
    """Return the objective of a search's baseline, or None where it has none yet."""
    lineages = StageLedger(study, stage=SEARCH).lineages()
    return lineages[0].last.value if lineages and lineages[0].state == "complete" else None
