"""Optuna's Gaussian process, kept from asking for a setting that it has the answer to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from studies.spec import Scalar

SAME = 0.01
"""Settings of which no number differs by more than this, relatively, are one."""


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
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, optuna.distributions.BaseDistribution]
    ) -> dict[str, Any]:
        """Return a point that no other trial has; a space of few whole numbers may have none left."""
        point = super().sample_relative(study, trial, search_space)
        others = [one.params for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        if not any(_same(point, other) for other in others):
            return point
        spread = [self._spread(trial.number), self._spread(trial.number + 1)]
        new = [one for one in spread if not any(_same(one, other) for other in others)]
        return {name: (new or spread)[0][name] for name in point}


def _same(point: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(point) and all(
        name in other and math.isclose(value, other[name], rel_tol=SAME) for name, value in point.items()
    )
