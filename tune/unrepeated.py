"""Optuna's Gaussian process, kept from asking for a setting that it has the answer to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from studies.spec import Scalar

SAME = 1e-3
"""Of a number's range, on its scale: settings that differ by no more are one."""
TRIES = 8
"""Points of the sequence; where all of them are known, a space of few whole numbers is used up."""


class Unrepeated(optuna.samplers.GPSampler):
    """A Gaussian process that takes a point of a spreading sequence in place of a setting that was asked for before.

    It believes that a second training of a setting would tell more about it, as it does where each one has noise of its
    own, and at the edges of a space it proposes the best corner again and again. Trials of a search share their seed:
    the second training would be the first, bit for bit.

    Args:
        spread: Gives the point of a sequence at an index.
        seed: Of the process's own draws.
        n_startup_trials: From so many complete trials on it proposes.
    """

    def __init__(self, *, spread: Callable[[int], dict[str, Scalar]], seed: int, n_startup_trials: int) -> None:
        super().__init__(seed=seed, n_startup_trials=n_startup_trials)
        self._spread = spread

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a point that no other trial has, as long as there are any."""
        point = super().sample_relative(study, trial, search_space)
        others = [one.params for one in study.get_trials(deepcopy=False) if one.number != trial.number]

        def known(params: Mapping[str, Any]) -> bool:
            return any(same(params, other, search_space) for other in others)

        if not point or not known(point):
            return point
        spread = map(self._spread, range(trial.number, trial.number + TRIES))
        return next(({name: one[name] for name in point} for one in spread if not known(one)), point)


def same(params: Mapping[str, Any], other: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> bool:
    """Return whether two settings are one in a space."""
    return all(
        name in other and _apart(params[name], other[name], distribution) <= SAME
        for name, distribution in space.items()
    )


def _apart(value: float, other: float, distribution: BaseDistribution) -> float:
    if not isinstance(distribution, FloatDistribution):
        return float(value != other)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return abs(math.log(value / other)) / math.log(high / low)
    return abs(value - other) / (high - low)
