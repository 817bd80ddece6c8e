"""What a study found so far, read from the ledger: best, baseline, controls, arms, differences, seed noise."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmfa.data.protocols import overlapping_error
from studies.plan import CONFIRM, SEARCH, Plan
from tune import criteria, doctor, scoring
from tune.ledger import Lineage


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
    curve: dict[int, float]
    """The objective after each epoch."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rows of a study and what they say.

    ``rows`` are the controls, the trials and the confirmations.
    """

    metric: str
    labels: str
    trials: int
    rows: list[Row]
    baseline_run: str = f"{SEARCH}/0000"
    selects: bool = True
    """Whether the objective chooses among trials: not in a comparison."""
    vetoed: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Why trials may not be chosen, by name."""

    @property
    def search(self) -> list[Row]:
        """The trials: all but the controls and confirmations of a search."""
        return [row for row in self.rows if row.arm not in ("controls", CONFIRM)]

    def control(self, role: str) -> list[Row]:
        """Return the runs of a control, or the repeats of the baseline, one for each seed, that have a result."""
        found = [row for row in self.rows if row.arm == "controls" and row.role == role and row.value is not None]
        own = self.baseline
        first = role == "baseline" and own is not None and own.value is not None and self.labels != "none"
        return [own, *found] if first and own is not None else found

    @property
    def noise(self) -> list[float]:
        """The baseline's objective, seed by seed."""
        return [row.value for row in self.control("baseline") if row.value is not None]

    @property
    def baseline(self) -> Row | None:
        """The run that the others are compared with, where there is one."""
        return next((row for row in self.rows if row.name == self.baseline_run), None)

    @property
    def best(self) -> Row | None:
        """The trial with the highest objective that no guard vetoes, or None where nothing is selected."""
        if not self.selects:
            return None
        allowed = (row for row in self.search if row.value is not None and row.name not in self.vetoed)
        return max(allowed, key=lambda row: row.value or 0, default=None)

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
        """Return a row's objective minus the baseline's mean over its seeds."""
        return None if row.value is None or not self.noise else row.value - statistics.fmean(self.noise)

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
        curve=dict(last.intermediate_values),
    )


def read(plan: Plan, lineages: Sequence[Lineage]) -> Outcome:
    """Return the outcome as the ledger has it: terminal lineages only, in the order of their stages."""
    rows = [_row(item) for item in lineages if item.terminal]
    selects = not plan.study.is_comparison
    if selects and plan.labels == "none":
        rows = _scored_controls(plan, rows)
    found = Outcome(plan.metric, plan.labels, plan.num_trials, rows, plan.baseline_run, selects)
    return dataclasses.replace(found, vetoed=_vetoed(plan, found)) if selects else found


def _vetoed(plan: Plan, outcome: Outcome) -> dict[str, list[str]]:
    """Return why trials may not be chosen, by name: guards veto, they never rank. The baseline is what they go by."""
    baseline = [row.metrics for row in outcome.control("baseline")]
    result = {}
    for row in outcome.search:
        if row.value is not None and row is not outcome.baseline:
            aligns = doctor.aligns(plan.decode(row.params, plan.arm(row.arm)).flatten())
            if reasons := criteria.guards(row.metrics, baseline, aligns=aligns):
                result[row.name] = reasons
    return result


def _scored_controls(plan: Plan, rows: list[Row]) -> list[Row]:
    """Return the rows with the controls' ``label_free/score``, defined only once the baseline's noise is known."""
    controls = [row for row in rows if row.arm == "controls" and row.value is not None]
    baseline = [row.metrics for row in controls if row.role == "baseline"]
    result = []
    for row in rows:
        if row.arm == "controls" and row.value is not None:
            seen = scoring.view(plan.study.objective, row.metrics, baseline) if len(baseline) > 1 else None
            row = dataclasses.replace(row, value=None if seen is None else scoring.score(seen))
        result.append(row)
    return result
