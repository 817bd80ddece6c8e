"""What each criterion would have chosen, and what that would have cost in target mAP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_TRIALS = 4
"""Trials without which no order is worth a coefficient: three are in a given order by chance once in six."""
NUM_PERMUTATIONS = 9999
"""Random ones; with up to seven trials all of them are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Regret:
    """One criterion as a judge of finished trials."""

    criterion: str
    """Its metric name."""
    n: int
    """Trials that have both its value and the oracle's."""
    promoted: str | None
    """The first trial with its highest value; none where n is 0."""
    target: float | None
    """The oracle's value of that trial."""
    cost: float | None
    """How much lower that is than the highest of all trials, as a fraction: 0.01 is one point."""
    rho: float | None
    """Spearman's, with the oracle; none for fewer than four trials or where all values are the same."""
    p: float | None
    """Two-sided, of a permutation test: a coefficient of 1 over four trials has 1/12."""


def selection_regret(
    trials: Sequence[Mapping[str, float]],
    *,
    names: Sequence[str],
    criteria: Sequence[str],
    oracle: str = "target/mAP",
) -> list[Regret]:
    """Return the regret of each criterion, and last the oracle's own.

    Args:
        trials: metrics of each finished trial; those that lack a value, or have nan for it, are left out.
        names: of the trials, in the same order.
        criteria: metric names.
        oracle: what the trials are worth.

    Raises:
        ValueError: another number of names than of trials.
    """
    if len(names) != len(trials):
        raise ValueError(f"each trial has one name, but got {len(trials)} trials and {len(names)} names.")
    return [
        _regret(criterion, trials, names, oracle)
        for criterion in (*(name for name in criteria if name != oracle), oracle)
    ]


def _regret(criterion: str, trials: Sequence[Mapping[str, float]], names: Sequence[str], oracle: str) -> Regret:
    judged = [
        (values[criterion], values[oracle], name)
        for values, name in zip(trials, names, strict=True)
        if _known(values, criterion) and _known(values, oracle)
    ]
    if not judged:
        return Regret(criterion=criterion, n=0, promoted=None, target=None, cost=None, rho=None, p=None)
    _, target, promoted = max(judged, key=lambda trial: trial[0])
    best = max(values[oracle] for values in trials if _known(values, oracle))
    rho, p = _spearman([trial[0] for trial in judged], [trial[1] for trial in judged])
    return Regret(
        criterion=criterion, n=len(judged), promoted=promoted, target=target, cost=best - target, rho=rho, p=p
    )


def _known(values: Mapping[str, float], name: str) -> bool:
    return not math.isnan(values.get(name, math.nan))


def _spearman(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float | None, float | None]:
    """Return rho and its p, or nothing where there is no order to compare."""
    if len(ours) < MIN_TRIALS or len(set(ours)) == 1 or len(set(theirs)) == 1:
        return None, None
    ranks, fixed = (stats.zscore(stats.rankdata(values)) for values in (ours, theirs))
    test = stats.permutation_test(
        (ranks,),
        lambda permuted, axis: (permuted * fixed).mean(axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=NUM_PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(test.statistic), float(test.pvalue)
