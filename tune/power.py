"""How many seeds a difference takes: power of the verdict, and the noise that the best of many trials rides on.

Fractions in [0, 1]. Shapes: P nodes of a quadrature.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

Z_DETECTION = 1.96 + 0.84
"""Normal quantiles of a two-sided 5 % test and of 80 % power."""


def seeds_needed(sd: float, delta: float) -> int:
    """Return the seeds per arm that tell a true difference from none: two-sided 5 %, about 80 % power.

    ceil(2 ((1.96 + 0.84) sd / delta)²), at least 2: normal quantiles, one comparison. Below about ten seeds Welch's
    test takes one or two more, and several challenges take more still: :func:`power` is exact.

    Args:
        sd: over seeds, of one arm; a fraction.
        delta: the true difference, of either sign.

    Raises:
        ValueError: ``sd`` negative or not finite, or ``delta`` 0 or not finite.

    >>> seeds_needed(0.03, 0.07), seeds_needed(0.03, 0.01)
    (3, 142)
    """
    if not 0 <= sd < math.inf:
        raise ValueError(f"`sd >= 0` must hold, and finite, but got {sd}.")
    if not math.isfinite(delta) or delta == 0:
        raise ValueError(f"`delta` must be finite and not 0, but got {delta}; no number of seeds shows no difference.")
    return max(2, math.ceil(2 * (Z_DETECTION * sd / delta) ** 2))


def power(
    *,
    delta: float,
    sd: float,
    num_seeds: int,
    num_challenges: int = 1,
    delta_min: float = 0.0,
    alpha: float = 0.05,
) -> float:
    """Return the probability that a candidate truly better by ``delta`` is judged BEATS.

    Exact for normal runs of equal spread: noncentral t's are mixed over the share of the arms in the noise seen, which
    sets Welch's degrees of freedom. One challenge of several is held to Holm's first step, alpha / k, which makes it a
    lower bound.

    Args:
        delta: true difference of mAP, a fraction.
        sd: of the runs of either arm over seeds.
        num_seeds: per arm; one gives no BEATS.
        num_challenges: k.
        delta_min: as in :func:`judge`.
        alpha: of all challenges together; divide it by the looks.

    Raises:
        ValueError: ``sd`` not above 0, fewer than one seed or challenge, negative ``delta_min``, ``alpha`` outside
            (0, 1), or a ``delta`` that is not finite.

    >>> round(power(delta=0.07, sd=0.03, num_seeds=5), 2), round(power(delta=0.07, sd=0.03, num_seeds=8), 2)
    (0.88, 0.99)
    """
    if not (0 < sd < math.inf and math.isfinite(delta) and 0 <= delta_min < math.inf and 0 < alpha < 1):
        raise ValueError(
            "`sd > 0`, `delta_min >= 0`, `0 < alpha < 1` must hold, and all be finite, but got "
            f"{delta=}, {sd=}, {delta_min=}, {alpha=}."
        )
    if min(num_seeds, num_challenges) < 1:
        raise ValueError(f"`>= 1` must hold for both, but got {num_seeds=}, {num_challenges=}.")
    if num_seeds < 2:
        return 0.0
    nodes_P, weights_P = np.polynomial.legendre.leggauss(128)
    quantiles_P, weights_P = (nodes_P + 1) / 2, weights_P / 2
    df = num_seeds - 1
    share_P = special.betaincinv(df / 2, df / 2, quantiles_P)  # of the candidate in the sum of variances
    error_P = sd * np.sqrt(2 * special.gammaincinv(df, quantiles_P) / df / num_seeds)
    critical_P = -special.stdtrit(df / (share_P**2 + (1 - share_P) ** 2), alpha / (2 * num_challenges))
    least_PP = np.maximum(critical_P[:, None] * error_P, delta_min)
    beats_PP = special.ndtr((delta - least_PP) / (sd * math.sqrt(2 / num_seeds)))
    return float(weights_P @ beats_PP @ weights_P)


def expected_max_noise(sd: float, num_trials: int) -> float:
    """Return by how much the best of equal trials exceeds their mean, by seed noise alone (Blom 1958).

    Args:
        sd: of one setting over seeds.
        num_trials: how many were searched; 1 gives 0.

    Raises:
        ValueError: ``sd`` negative or not finite, or no trial.

    >>> round(expected_max_noise(0.03, 50), 4)
    0.0673
    """
    if not 0 <= sd < math.inf or num_trials < 1:
        raise ValueError(f"`sd >= 0`, finite, and `num_trials >= 1` must hold, but got {sd=}, {num_trials=}.")
    return sd * float(special.ndtri((num_trials - 0.375) / (num_trials + 0.25)))


def looks_factor(looks: int) -> int:
    """Return what p is multiplied by at a look: 1, 6, 12, 20, …

    The first look is the planned one and spends α. Later ones were not planned, and nobody knows how many will follow:
    with i (i + 1) all of them together spend at most α / 2 more, however many there are (Bonferroni; the sum of
    1 / (i (i + 1)) from 2 on is 1 / 2).
    """
    return 1 if looks == 1 else looks * (looks + 1)
