"""From a study and what the command line asks to a plan; every contradiction is found here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfa.config import TrialConfig, profile
from mmfa.errors import ConfigError
from studies.plan import FRESH, SEARCH, SPLIT_SETS, Arm, Plan
from studies.protocol import NO_PRUNING, Objective
from studies.spec import CONTROLS, Choices, Range, Study


def resolve(
    study: Study,
    *,
    profile_name: str,
    overrides: Mapping[str, Any],
    source: str | None = None,
    target: str | None = None,
    seed: int = 0,
    trials: int | None = None,
    confirm_seeds: int | None = None,
    quick: bool = False,
    labelled: bool = True,
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
        confirm_seeds: Number of fresh seeds that replaces the study's.
        quick: One seed of each control, and no confirmation.
        labelled: Whether the target has labels; without them a search goes by ``label_free/score``.

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
    if confirm_seeds is not None and (confirm_seeds < 2 or quick or study.is_comparison):
        raise ConfigError(
            "--confirm-seeds must be 2 or more, without --quick, for a study that searches (a comparison's seeds are "
            f"its --trials), but got {confirm_seeds}."
        )
    if not labelled:
        if confirm_seeds is not None:
            raise ConfigError("--confirm-seeds is for targets with labels: without them nothing can be judged.")
        study = _without_labels(study)
    pairs = study.pairs.get(profile_name, []) if source is None and target is None else []
    if len(pairs) > 1 and study.space:
        raise ConfigError(
            f"{study.origin}: [pairs] a search has one pair, but got {len(pairs)}; keep one, or use --target."
        )
    pair = {"data.source": pairs[0][0], "data.target": pairs[0][1]} if pairs else {}
    given = {name: value for name, value in names.items() if value is not None}
    steps = {f"{study.origin}: [pairs]": pair, f"{study.origin}: [fixed]": study.fixed, "--set:": overrides}
    base = _with_absolute_weights(_overridden(profile(profile_name), {**steps, "--seed:": given}))
    arms = _arms(study, base, [(pair[0], pair[1]) for pair in pairs] or [(base.data.source, base.data.target)])
    fresh = 0 if quick or not labelled or study.is_comparison else confirm_seeds or study.protocol.confirm_seeds
    plan = Plan(
        study=study, profile=profile_name, baseline=base, arms=arms, trials=trials or study.trials,
        confirm_seeds=fresh, quick=quick, labelled=labelled,
    )  # fmt: skip
    _check_baseline(plan)
    return plan


def _overridden(base: TrialConfig, steps: Mapping[str, Mapping[str, Any]]) -> TrialConfig:
    """Return a config with one set of overrides after the other; an error begins with where the bad one came from."""
    for where, values in steps.items():
        try:
            base = base.with_overrides(values)
        except ConfigError as error:
            raise ConfigError(f"{where} {error}") from None
    return base


def _without_labels(study: Study) -> Study:
    """Return the study as it can be asked of an unlabelled target."""
    if study.is_comparison:
        raise ConfigError(
            f"{study.origin}: an unlabelled target cannot be compared on: a comparison is judged by test labels; use a "
            "study that searches, which goes by label_free/score there, or python -m mmfa train."
        )
    if study.pruning is not None:
        raise ConfigError(f"{study.origin}: [pruning] {NO_PRUNING}; take it out for an unlabelled target.")
    objective = Objective(metric="label_free/score", weights=study.objective.weights)
    seeds = max(3, study.protocol.baseline_seeds)
    protocol = study.protocol.model_copy(update={"baseline_seeds": seeds})
    return study.model_copy(update={"objective": objective, "protocol": protocol})


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
        controls = CONTROLS if study.controls else {}
        settings |= {name: (f"{name} (control)", overrides) for name, overrides in controls.items()}
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
        for name in plan.baseline_params(arm):
            if name in plan.study.space and not _holds(plan.study.space[name], flat[name]):
                way = "search it under a condition (`when`) that the baseline does not meet"
                raise ConfigError(
                    f"{plan.study.origin}: [space] {name!r} must contain the baseline, {flat[name]!r}; "
                    f"{way if flat[name] is None else 'widen it'}."
                )
        _check_choices(plan, arm)
    small = [name for name in plan.datasets() if name in SPLIT_SETS]
    if small and plan.baseline.data.num_val_ids:
        raise ConfigError(
            f"{small[0]} is too small to hold identities out from, so it has no target_val and nothing can be searched "
            "on it; search on other data, and judge settings there with a comparison that sets data.num_val_ids to 0."
        )
    for seed in [*plan.control_seeds, *plan.fresh_seeds]:
        try:
            plan.baseline.with_overrides({"run.seed": seed})
        except ConfigError as error:
            raise ConfigError(f"--seed: {error} Fresh seeds begin {FRESH} above it.") from None
    if plan.study.is_comparison:
        _check_points(plan)
        _check_judged(plan)
    elif plan.baseline.data.num_val_ids == 0 and plan.labels == "none":
        raise ConfigError(
            "data.num_val_ids=0 leaves no source_val, by which label_free/score is guarded; set it to 1 or more."
        )
    elif plan.baseline.data.num_val_ids == 0 and plan.labels == "target_val":
        raise ConfigError("data.num_val_ids=0 leaves no target_val, the objective of this study; set it to 1 or more.")


def _holds(dimension: Range | Choices, value: Any) -> bool:
    if isinstance(dimension, Choices):
        return dimension.label(value) is not None
    return value is not None and (dimension.low <= value <= dimension.high or (dimension.zero and value == 0))


def _check_judged(plan: Plan) -> None:
    """Pairs of arms that get a verdict are runs over seeds of their own data."""
    on_splits = next((arm for arm in plan.arms if arm.config.data.target in SPLIT_SETS), None)
    if plan.study.protocol.judge and on_splits is not None:
        raise ConfigError(
            f"{plan.study.origin}: [protocol] `judge` needs independent runs over seeds, but those on "
            f"{on_splits.config.data.target} are its splits, which share images; take `judge` out."
        )


def _check_points(plan: Plan) -> None:
    for arm in plan.arms:
        for point in plan.points(arm):
            try:
                plan.decode(point, arm)
            except ConfigError as error:
                raise ConfigError(f"--seed and --trials: {error}") from None


def _check_choices(plan: Plan, arm: Arm) -> None:
    """Every value must go with the rest of the baseline: a refusal in the middle of a study comes too late."""
    for name, dimension in plan.study.dimensions.items():
        for label in dimension.labels() if isinstance(dimension, Choices) else []:
            try:
                plan.decode({name: label}, arm)
            except ConfigError as error:
                raise ConfigError(f"{plan.study.origin}: [space] {name!r}, {label!r}: {error}") from None
