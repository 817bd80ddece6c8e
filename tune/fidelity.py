"""From which epoch on the order of trials is that of their last epoch: whether pruning is safe, and from when.

Shapes: T trials, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

MIN_TRIALS = 10
"""Full trials without which no grace period is recommended (HONESTY.md, sec. 5)."""
LOWEST_TAU = 0.5
"""What the lower bound must reach: three of four pairs of trials already stand in their final order."""
NUM_RESAMPLES = 1000
COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """How well one epoch foretells the last."""

    epoch: int
    """From 1."""
    tau: float | None
    """Kendall's tau-b with the last epoch; none where either epoch has the same value in all trials."""
    low: float | None
    """Lower end of the bootstrap interval; none where tau is."""
    high: float | None
    """Its upper end."""
    n: int
    """Full trials."""


def fidelity(curves: Sequence[Sequence[float]], *, seed: int = 0) -> list[Fidelity]:
    """Return for each epoch Kendall's tau-b with the last, and a 95 % percentile bootstrap interval over trials.

    Args:
        curves: of finished full trials, the objective after each epoch; pruned trials would bend the result, for they
            are those that an early epoch already held for bad.
        seed: of the resamples, which are the same for all epochs. A resample in which an epoch does not tell any two
            trials apart counts as tau = 0: it shows no order.

    Raises:
        ValueError: curves of different lengths, or with values that are not finite.
    """
    if not curves:
        return []
    lengths = sorted({len(curve) for curve in curves})
    if len(lengths) > 1:
        raise ValueError(f"full trials have the same epochs, but the curves have {lengths}; leave out the others.")
    values_TE = np.array(curves, dtype=np.float64)
    if not np.isfinite(values_TE).all():
        raise ValueError(f"full trials have finite values, but got {values_TE[~np.isfinite(values_TE)][0]}.")
    num = len(curves)
    drawn_RT = np.random.default_rng(seed).integers(num, size=(NUM_RESAMPLES, num))
    counts_RT = np.ones((1 + NUM_RESAMPLES, num))  # first the trials themselves
    counts_RT[1:] = [np.bincount(drawn_T, minlength=num) for drawn_T in drawn_RT]
    last_TT = _signs(values_TE[:, -1])
    return [
        _point(epoch, _taus(counts_RT, _signs(values_T), last_TT), num=num)
        for epoch, values_T in enumerate(values_TE.T, start=1)
    ]


def recommended_grace(
    points: Sequence[Fidelity], *, lowest: float = LOWEST_TAU, min_trials: int = MIN_TRIALS
) -> int | None:
    """Return the first epoch from which on pruning is safe, or None where there is none before the last.

    Args:
        points: of :func:`fidelity`.
        lowest: what the lower bound of tau must reach at that epoch and at all later ones.
        min_trials: full trials without which nothing is recommended.
    """
    if not points or points[0].n < min_trials:
        return None
    grace = None
    for point in reversed(points[:-1]):  # the last epoch foretells itself
        if point.low is None or point.low < lowest:
            break
        grace = point.epoch
    return grace


def _signs(values_T: Doubles) -> Doubles:
    return np.sign(values_T[:, None] - values_T)


def _taus(counts_RT: Doubles, ours_TT: Doubles, last_TT: Doubles) -> Doubles:
    """Return tau-b of resamples in which trial t occurs counts_RT[r, t] times; nan where it is not defined."""
    concordance_R, ours_R, last_R = (
        np.einsum("rt,rt->r", counts_RT @ pairs_TT, counts_RT)
        for pairs_TT in (ours_TT * last_TT, ours_TT**2, last_TT**2)
    )
    scale_R = np.sqrt(ours_R * last_R)
    taus_R: Doubles = np.divide(concordance_R, scale_R, out=np.full(len(scale_R), np.nan), where=scale_R > 0)
    return taus_R


def _point(epoch: int, taus: Doubles, *, num: int) -> Fidelity:
    tau = float(taus[0])
    if math.isnan(tau):
        return Fidelity(epoch=epoch, tau=None, low=None, high=None, n=num)
    outside = 50 * (1 - COVERAGE)
    low, high = np.percentile(np.nan_to_num(taus[1:], nan=0.0), [outside, 100 - outside]).tolist()
    return Fidelity(epoch=epoch, tau=tau, low=low, high=high, n=num)
