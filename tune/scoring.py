"""The label firewall: what scores a trial sees one reading of it, in an object that holds nothing else.

A finished trial's metrics hold everything that was measured, official test labels included. :func:`view` is the one
place that picks from them; :func:`score` is given what it picked, and cannot reach the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from studies.protocol import Objective
from tune import criteria

READINGS = {
    "none": "recorded at the end of a trial; chose nothing",
    "target_val": "recorded at the end of a trial; chose nothing",
    "oracle": "objective of an oracle study: it chose",
}
"""Why the official test labels are read at the end of a trial of a search, by what its study selects with."""
CONFIRMED = "confirmation on a fresh seed; judged"
GUARDED = (criteria.FINITE, criteria.EFFECTIVE_RANK, "mmd/plateau", "source_val/mAP")
"""What guards look at."""
EPS = 0.005
"""Smallest standard deviation of a criterion over baseline seeds that ``label_free/score`` believes."""
COMPARED = "run of a comparison; chose nothing"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out target identities: labels of people who are in no other split."""

    mAP: float


@dataclass(frozen=True, slots=True)
class LabelFree:
    """Criteria without any label of the target, in the seed noise of the baseline."""

    values: Mapping[str, float]
    baseline: Mapping[str, tuple[float, ...]]
    weights: Mapping[str, float]
    vetoed: bool
    """Whether a guard vetoes it: collapsed embeddings are well clustered, and a sampler would go there."""


@dataclass(frozen=True, slots=True)
class Oracle:
    """The official test labels of the target, of a study that says so."""

    mAP: float


View = HeldOut | LabelFree | Oracle


def view(
    objective: Objective,
    metrics: Mapping[str, float],
    baseline: Sequence[Mapping[str, float]],
    *,
    aligns: bool = False,
    exempt: bool = False,
) -> View | None:
    """Return the one thing about a trial that its objective may see; None where it was not measured.

    Args:
        objective: of the study.
        metrics: of the trial, or of an epoch of it.
        baseline: metrics of the baseline's seeds; read for ``label_free/score`` alone, and there only its criteria.
        aligns: whether the trial is meant to align, for the guard against dead kernels.
        exempt: whether no guard may veto it: the baseline is what guards go by.
    """
    match objective.labels:
        case "target_val":
            return HeldOut(metrics["target_val/mAP"]) if "target_val/mAP" in metrics else None
        case "oracle":
            return Oracle(metrics["target/mAP"]) if "target/mAP" in metrics else None
    known = {name: weight for name, weight in objective.weights.items() if all(name in run for run in baseline)}
    if not known or not baseline:
        return None
    guarded = {} if exempt else {name: metrics[name] for name in GUARDED if name in metrics}
    return LabelFree(
        {name: metrics[name] for name in known if name in metrics},
        {name: tuple(run[name] for run in baseline) for name in known},
        known,
        bool(criteria.guards(guarded, baseline, aligns=aligns)),
    )


def score(seen: View) -> float:
    """Return a trial's objective; without labels one that is vetoed or lacks a criterion gets the lowest there is."""
    if not isinstance(seen, LabelFree):
        return seen.mAP
    if seen.vetoed or set(seen.values) != set(seen.weights):
        return -criteria.CLIP * sum(seen.weights.values())
    return criteria.online_score(seen.values, seen.baseline, seen.weights, eps=EPS)
