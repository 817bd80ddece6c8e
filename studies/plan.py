"""A plan: a study resolved against a profile, datasets, overrides and a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfa.config import TrialConfig, canonical_json, profile
from mmfa.errors import ConfigError
from studies.spec import CONTROLS, Choices, Range, Scalar, Study

SEARCH = "search"
"""Name of the one arm of a search that declares none."""
SPLIT_SETS = {"viper": 10, "prid2011": 10}
"""Targets that are judged as a mean over splits, and how many: a comparison trains one model on each."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the settings that are compared, or searched with equal budgets."""

    name: str
    """Also the name of its stage in the ledger."""
    title: str
    config: TrialConfig
    """What its points vary: its own baseline."""
    row: str
    """The arm without its pair: the key of the published numbers."""

    @property
    def pair(self) -> str:
        """``market1501 to dukemtmc-reid``."""
        return f"{self.config.data.source} to {self.config.data.target}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study will run: the baseline's config, the arms, and the space around them."""

    study: Study
    profile: str
    baseline: TrialConfig
    arms: tuple[Arm, ...]
    trials: int
    """Trials of each arm: points of a search, seeds of a comparison."""

    @property
    def controls(self) -> tuple[str, ...]:
        """The controls that run on their own; in a comparison they are arms, with as many seeds."""
        return () if self.study.is_comparison else tuple(CONTROLS)

    @property
    def metric(self) -> str:
        """What the ledger keeps as a trial's value: the objective, or in a comparison without held-out identities
        the official target mAP, which then selects nothing."""
        return "target/mAP" if self.baseline.data.num_val_ids == 0 else self.study.objective.metric

    @property
    def labels(self) -> str:
        """Which labels chose among trials: ``none`` where nothing is chosen."""
        return "none" if self.study.is_comparison else "target_val"

    @property
    def num_trials(self) -> int:
        """Trials of all arms."""
        return sum(self.num_trials_of(arm) for arm in self.arms)

    @property
    def num_trainings(self) -> int:
        """Trials and controls."""
        return self.num_trials + len(self.controls)

    @property
    def baseline_run(self) -> str:
        """The run that is the study's baseline: trial 0 of the arm that sets nothing; "" in a comparison."""
        arm = next((arm for arm in self.arms if arm.config == self.baseline), None)
        return "" if arm is None or self.study.is_comparison else f"{arm.name}/0000"

    @property
    def shown(self) -> list[str]:
        """The fields that tell trials apart in a table."""
        if not self.study.is_comparison:
            return list(self.study.space)
        splits = any(arm.config.data.target in SPLIT_SETS for arm in self.arms)
        return ["run.seed", *(["data.split"] if splits else [])]

    def arm(self, name: str) -> Arm:
        """Return an arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def num_trials_of(self, arm: Arm) -> int:
        """Return how many trials an arm has."""
        return len(self.points(arm)) if self.study.is_comparison else self.trials

    def points(self, arm: Arm) -> list[dict[str, Scalar]]:
        """Return what a comparison varies within an arm: the seed, or the split of a dataset that has several."""
        seed = self.baseline.run.seed
        if (splits := SPLIT_SETS.get(arm.config.data.target)) is not None:
            return [{"run.seed": seed, "data.split": split} for split in range(splits)]
        return [{"run.seed": seed + index} for index in range(self.trials)]

    def control(self, name: str) -> TrialConfig:
        """Return the config of a control: the baseline without alignment."""
        return self.baseline.with_overrides(CONTROLS[name])

    def active(self, labels: Mapping[str, Scalar]) -> list[str]:
        """Return the dimensions that are searched where others have the given labels."""
        space = self.study.space
        return [
            name
            for name, dimension in space.items()
            if all(labels.get(other) == label for other, label in dimension.when.items())
        ]

    def labels_of(self, config: TrialConfig) -> list[Any]:
        """Return what a table shows of a config: the values of the :attr:`shown` fields, or the labels they go by."""
        flat, space = config.flatten(), self.study.space
        labels = []
        for name in self.shown:
            dimension = space.get(name)
            label = dimension.label(flat[name]) if isinstance(dimension, Choices) else None
            labels.append(flat[name] if label is None else label)
        return labels

    def baseline_params(self, arm: Arm | None = None) -> dict[str, Scalar]:
        """Return an arm's baseline (without one: the study's) as a point of the space."""
        flat = (arm.config if arm else self.baseline).flatten()
        point: dict[str, Scalar] = {}
        for name, dimension in self.study.space.items():
            label = dimension.label(flat[name]) if isinstance(dimension, Choices) else flat[name]
            point[name] = label if label is not None else flat[name]
        return {name: point[name] for name in self.active(point)}

    def decode(self, params: Mapping[str, Scalar], arm: Arm | None = None) -> TrialConfig:
        """Return the config of a point of an arm."""
        values = {}
        for name, label in params.items():
            dimension = self.study.space.get(name)
            values[name] = dimension.value(label) if isinstance(dimension, Choices) else label
        return (arm.config if arm else self.baseline).with_overrides(values)

    def configs(self) -> list[TrialConfig]:
        """Return the arms' configs."""
        return [arm.config for arm in self.arms]

    def datasets(self) -> list[str]:
        """Return the names of all datasets, sources first."""
        sources = [config.data.source for config in self.configs()]
        return list(dict.fromkeys([*sources, *(config.data.target for config in self.configs())]))

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Return ``{field: (paper, here)}`` for every field in which the baseline differs from the paper."""
        paper, here = TrialConfig().flatten(), self.baseline.flatten()
        return {name: (paper[name], here[name]) for name in paper if paper[name] != here[name]}

    def deviations(self) -> dict[str, Any]:
        """Return the fields in which the baseline differs from its profile: what the study or ``--set`` fixes."""
        plain, here = profile(self.profile).flatten(), self.baseline.flatten()
        asked = ("data.source", "data.target", "run.seed")
        return {name: value for name, value in here.items() if value != plain[name] and name not in asked}

    def identity(self, *, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """Return what makes two commands the same study: content, not resources, not the number of trials."""
        return {
            "study": self.study.name,
            "objective": self.study.objective.metric,
            "start_up": self.study.start_up,
            "space": {name: dimension.model_dump() for name, dimension in self.study.space.items()},
            "arms": {arm.name: arm.config.flatten() for arm in self.arms},
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
        overrides: Dotted fields that replace the profile's and the study's [fixed]; what an arm sets stays its own.
        source: Catalogue name that replaces the profile's and the study's pairs.
        target: Likewise.
        seed: Seed of every trial of a search, first seed of a comparison.
        trials: Number of trials of each arm that replaces the study's.

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
    pairs = study.pairs.get(profile_name, []) if source is None and target is None else []
    if len(pairs) > 1 and study.space:
        raise ConfigError(
            f"{study.origin}: [pairs] a search has one pair, but got {len(pairs)}; keep one, or use --target."
        )
    base = profile(profile_name)
    if pairs:
        base = base.with_overrides({"data.source": pairs[0][0], "data.target": pairs[0][1]})
    try:
        base = base.with_overrides(study.fixed)
    except ConfigError as error:
        raise ConfigError(f"{study.origin}: [fixed] {error}") from None
    try:
        base = base.with_overrides(overrides)
    except ConfigError as error:
        raise ConfigError(f"--set: {error}") from None
    try:
        base = base.with_overrides({name: value for name, value in names.items() if value is not None})
    except ConfigError as error:
        raise ConfigError(f"--seed: {error}") from None
    base = _with_absolute_weights(base)
    arms = _arms(study, base, [(pair[0], pair[1]) for pair in pairs] or [(base.data.source, base.data.target)])
    plan = Plan(study=study, profile=profile_name, baseline=base, arms=arms, trials=trials or study.trials)
    _check_baseline(plan)
    return plan


def _with_absolute_weights(config: TrialConfig) -> TrialConfig:
    """A worker has a working folder of its own, so a file of weights is named from the root."""
    weights = config.model.weights
    if weights in ("imagenet", "none"):
        return config
    return config.with_overrides({"model.weights": str(Path(weights).expanduser().absolute())})


def _arms(study: Study, base: TrialConfig, pairs: list[tuple[str, str]]) -> tuple[Arm, ...]:
    """Return pairs × (declared arms and, in a comparison, controls)."""
    settings = {name: (arm.title or name, arm.set) for name, arm in study.arms.items()}
    if study.is_comparison:
        settings = settings or {"mmfa": ("MMFA", {})}
        settings |= {name: (f"{name} (control)", overrides) for name, overrides in CONTROLS.items()}
    settings = settings or {SEARCH: ("", {})}
    arms = []
    for source, target in pairs:
        prefix = "" if len(pairs) == 1 else re.sub(r"[^\w.-]+", "_", f"{source}-to-{target}") + "."
        for name, (title, overrides) in settings.items():
            try:
                config = base.with_overrides({"data.source": source, "data.target": target, **overrides})
            except ConfigError as error:
                raise ConfigError(f"{study.origin}: [arms.{name}] {error}") from None
            arms.append(Arm(name=prefix + name, title=title, config=_with_absolute_weights(config), row=name))
    return tuple(arms)


def _check_baseline(plan: Plan) -> None:
    """Every arm's baseline is its trial 0, so it must be a point of the space; and the objective must exist."""
    for arm in plan.arms:
        flat = arm.config.flatten()
        for name, dimension in plan.study.space.items():
            value = flat[name]
            inside = (
                dimension.low <= value <= dimension.high
                if isinstance(dimension, Range)
                else dimension.label(value) is not None
            )
            if not inside:
                raise ConfigError(
                    f"{plan.study.origin}: [space] {name!r} must contain the baseline, {value!r}; widen it."
                )
        _check_choices(plan, arm)
    small = [name for name in plan.datasets() if name in SPLIT_SETS]
    if small and plan.baseline.data.num_val_ids:
        raise ConfigError(
            f"{small[0]} is too small to hold identities out from, so it has no target_val and nothing can be searched "
            "on it; search on other data, and judge settings there with a comparison that sets data.num_val_ids to 0."
        )
    if plan.study.is_comparison:
        _check_points(plan)
    elif plan.baseline.data.num_val_ids == 0:
        raise ConfigError("data.num_val_ids=0 leaves no target_val, the objective of this study; set it to 1 or more.")


def _check_points(plan: Plan) -> None:
    for arm in plan.arms:
        for point in plan.points(arm):
            try:
                plan.decode(point, arm)
            except ConfigError as error:
                raise ConfigError(f"--seed and --trials: {error}") from None


def _check_choices(plan: Plan, arm: Arm) -> None:
    """Every value must go with the rest of the baseline: a refusal in the middle of a study comes too late."""
    for name, dimension in plan.study.space.items():
        for label in dimension.labels() if isinstance(dimension, Choices) else []:
            try:
                plan.decode({name: label}, arm)
            except ConfigError as error:
                raise ConfigError(f"{plan.study.origin}: [space] {name!r}, {label!r}: {error}") from None


def grown(plan: Plan, *, trials: int) -> Plan:
    """Return the plan with another number of trials."""
    return dataclasses.replace(plan, trials=trials)
