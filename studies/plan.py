"""A plan: a study resolved against a profile, datasets, overrides and a seed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmfa.config import TrialConfig, canonical_json, profile
from mmfa.errors import ConfigError
from studies.spec import Choices, Range, Scalar, Study

CONTROLS: dict[str, dict[str, Any]] = {
    "source_only": {"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0, "data.use_target": False},
    "target_bn": {"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0},
}
"""Runs without alignment that every study is compared with; ``target_bn`` lets BatchNorm see target images."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study will run: the baseline's config and the space around it."""

    study: Study
    profile: str
    baseline: TrialConfig
    trials: int

    def control(self, name: str) -> TrialConfig:
        """Return the config of a control: the baseline without alignment."""
        return self.baseline.with_overrides(CONTROLS[name])

    def baseline_params(self) -> dict[str, Scalar]:
        """Return the baseline as a point of the space."""
        flat = self.baseline.flatten()
        point: dict[str, Scalar] = {}
        for name, dimension in self.study.space.items():
            label = dimension.label(flat[name]) if isinstance(dimension, Choices) else flat[name]
            point[name] = label if label is not None else flat[name]
        return point

    def decode(self, params: Mapping[str, Scalar]) -> TrialConfig:
        """Return the config of a point of the space."""
        values = {}
        for name, label in params.items():
            dimension = self.study.space[name]
            values[name] = dimension.value(label) if isinstance(dimension, Choices) else label
        return self.baseline.with_overrides(values)

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Return ``{field: (paper, here)}`` for every field in which the baseline differs from the paper."""
        paper, here = TrialConfig().flatten(), self.baseline.flatten()
        return {name: (paper[name], here[name]) for name in paper if paper[name] != here[name]}

    def identity(self, *, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """Return what makes two commands the same study: content, not resources, not the number of trials."""
        return {
            "study": self.study.name,
            "objective": self.study.objective.metric,
            "start_up": self.study.start_up,
            "space": {name: dimension.model_dump() for name, dimension in self.study.space.items()},
            "profile": self.profile,
            "baseline": self.baseline.flatten(),
            "fingerprints": dict(fingerprints),
        }


def digest(identity: Mapping[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of an identity's SHA-256."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]


def resolve(
    study: Study,
    *,
    profile_name: str,
    overrides: Mapping[str, Any],
    source: str | None = None,
    target: str | None = None,
    seed: int = 0,
    trials: int | None = None,
) -> Plan:
    """Return the plan of a study.

    Args:
        study: The study.
        profile_name: A profile of ``mmfa.config``.
        overrides: Dotted fields that replace the profile's and the study's [fixed].
        source: Catalogue name that replaces the profile's.
        target: Likewise.
        seed: Seed of every trial of the search.
        trials: Number of trials that replaces the study's.

    Raises:
        ConfigError: a name or value that does not hold, an override of what is searched, or a baseline
            outside the space.
    """
    searched = sorted(set(overrides) & set(study.space))
    if searched:
        raise ConfigError(f"--set {searched[0]} would fix what {study.origin} searches; take it out of [space] first.")
    names = {"data.source": source, "data.target": target, "run.seed": seed}
    for name, option in (("data.source", "--source"), ("data.target", "--target"), ("run.seed", "--seed")):
        if name in overrides or name in study.fixed:
            raise ConfigError(f"{name} is not set here; use {option}.")
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials must be 1 or more, but got {trials}.")
    base = profile(profile_name)
    try:
        base = base.with_overrides(study.fixed)
    except ConfigError as error:
        raise ConfigError(f"{study.origin}: [fixed] {error}") from None
    try:
        base = base.with_overrides(overrides)
    except ConfigError as error:
        raise ConfigError(f"--set: {error}") from None
    base = base.with_overrides({name: value for name, value in names.items() if value is not None})
    plan = Plan(study=study, profile=profile_name, baseline=base, trials=trials or study.trials)
    _check_baseline(plan)
    return plan


def _check_baseline(plan: Plan) -> None:
    """The paper's defaults are trial 0, so they must be a point of the space; and ``target_val`` must exist."""
    flat = plan.baseline.flatten()
    for name, dimension in plan.study.space.items():
        value = flat[name]
        inside = (
            dimension.low <= value <= dimension.high
            if isinstance(dimension, Range)
            else dimension.label(value) is not None
        )
        if not inside:
            raise ConfigError(f"{plan.study.origin}: [space] {name!r} must contain the baseline, {value!r}; widen it.")
    _check_space(plan)
    if plan.baseline.data.num_val_ids == 0:
        raise ConfigError("data.num_val_ids=0 leaves no target_val, the objective of this study; set it to 1 or more.")


def _check_space(plan: Plan) -> None:
    """Every value must go with the rest of the baseline: a refusal in the middle of a study comes too late."""
    for name, dimension in plan.study.space.items():
        if isinstance(dimension, Range):
            continue
        for label in dimension.labels():
            try:
                plan.decode({name: label})
            except ConfigError as error:
                raise ConfigError(f"{plan.study.origin}: [space] {name!r}, {label!r}: {error}") from None


def grown(plan: Plan, *, trials: int) -> Plan:
    """Return the plan with another number of trials."""
    return dataclasses.replace(plan, trials=trials)
