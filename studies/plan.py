"""A plan: what a study will run, resolved against a profile, datasets, overrides and a seed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmfa.config import TrialConfig, canonical_json, profile
from studies.spec import CONTROLS, ON, Choices, Scalar, Study

FRESH = 1000
"""Distance of the confirmations' seeds from the study's."""
CONFIRM = "confirm"
"""Stage of the confirmations."""
MIN_SAMPLES = 4
"""DBSCAN's core size for profiles that a study does not name."""
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
class Fixed:
    """A training whose setting is known before the search: a control, or a confirmation."""

    name: str
    """``target_bn-s1``: the setting and its seed."""
    role: str
    """``baseline``, ``source_only``, ``target_bn``, or whose confirmation it is."""
    config: TrialConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study will run: the baseline's config, the arms, and the space around them."""

    study: Study
    profile: str
    baseline: TrialConfig
    arms: tuple[Arm, ...]
    trials: int
    """Trials of each arm: points of a search, seeds of a comparison."""
    confirm_seeds: int
    """Fresh seeds of each setting that is confirmed; 0 for a search that is not judged."""
    quick: bool = False
    """Whether the baseline and its controls run with one seed and nothing is confirmed."""
    labelled: bool = True
    """Whether the target's test split has labels; without them nothing is judged."""

    @property
    def controls(self) -> tuple[Fixed, ...]:
        """The repeats of the baseline and the controls of a search; in a comparison controls are arms.

        The baseline's first seed is trial 0 of the search. Where trials are scored in units of its seed noise all of it
        must be known before the first one is: there R0 seeds come on top.
        """
        if self.study.is_comparison:
            return ()
        seeds = self.control_seeds
        repeats = [seed + 1 for seed in seeds] if self.labels == "none" else seeds[1:]
        return tuple(
            Fixed(
                name=f"{role}-s{seed}",
                role=role,
                config=self.baseline.with_overrides({**CONTROLS.get(role, {}), "run.seed": seed}),
            )
            for role in ("baseline", *CONTROLS)
            for seed in (repeats if role == "baseline" else seeds)
        )

    @property
    def control_seeds(self) -> list[int]:
        """Seeds of the baseline and of each control, the study's own first."""
        number = self.study.protocol.baseline_seeds
        number = 1 if self.quick and self.labels != "none" else number
        return [self.baseline.run.seed + index for index in range(number)]

    @property
    def fresh_seeds(self) -> list[int]:
        """Seeds of the confirmations: none of them was used by the search, the baseline or a control."""
        return [self.baseline.run.seed + FRESH + index for index in range(self.confirm_seeds)]

    @property
    def metric(self) -> str:
        """What the ledger keeps as a trial's value: the objective, or in a comparison without held-out identities
        the official target mAP, which then selects nothing."""
        if self.study.is_comparison and self.baseline.data.num_val_ids == 0:
            return "target/mAP"
        return self.study.objective.metric

    @property
    def labels(self) -> str:
        """Which labels of the target chose among trials: ``none``, also where nothing is chosen, ``target_val``,
        ``oracle``."""
        return "none" if self.study.is_comparison else self.study.objective.labels

    @property
    def criteria(self) -> dict[str, Any]:
        """Settings of the label-free criteria for this profile."""
        own = self.study.criteria
        return {"k": own.k, "eps": own.eps, "min_samples": own.min_samples.get(self.profile, MIN_SAMPLES)}

    @property
    def judges(self) -> bool:
        """Whether confirmations on fresh seeds follow the search."""
        return self.confirm_seeds > 0 and not self.study.is_comparison

    @property
    def num_trials(self) -> int:
        """Trials of all arms."""
        return sum(self.num_trials_of(arm) for arm in self.arms)

    @property
    def num_trainings(self) -> int:
        """Trials, controls and confirmations, as far as the latter can be told: a standing champion comes on top."""
        return self.num_trials + len(self.controls) + self.num_confirmations

    @property
    def num_confirmations(self) -> int:
        """Each shortlisted setting, its matched control and the baseline, over the fresh seeds."""
        if not self.judges:
            return 0
        shortlisted = max(self.study.protocol.shortlist, len(self.arms) if self.study.arms else 0)
        return (2 * shortlisted + 1) * self.confirm_seeds

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
        offset = self.study.arms[arm.row].seed_offset if arm.row in self.study.arms else 0
        return [{"run.seed": seed + offset + index} for index in range(self.trials)]

    def active(self, labels: Mapping[str, Scalar]) -> list[str]:
        """Return the dimensions that are searched where others have the given labels."""
        return [
            name
            for name, dimension in self.study.dimensions.items()
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
        for name, dimension in self.study.dimensions.items():
            if name.endswith(ON):
                point[name] = flat[name.removesuffix(ON)] != 0
                continue
            label = dimension.label(flat[name]) if isinstance(dimension, Choices) else flat[name]
            point[name] = label if label is not None else flat[name]
        return {name: point[name] for name in self.active(point)}

    def decode(self, params: Mapping[str, Scalar], arm: Arm | None = None) -> TrialConfig:
        """Return the config of a point of an arm."""
        values: dict[str, Any] = {}
        for name, label in params.items():
            if name.endswith(ON):
                values |= {} if label else {name.removesuffix(ON): 0.0}
                continue
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
            "objective": self.study.objective.model_dump(exclude_none=True),
            "criteria": self.study.criteria.model_dump(),
            "protocol": self.study.protocol.model_dump(exclude={"confirm_seeds"}),
            "pruning": self.study.pruning.model_dump() if self.study.pruning else None,
            "start_up": self.study.start_up,
            "space": {name: dimension.model_dump() for name, dimension in self.study.space.items()},
            "arms": {arm.name: arm.config.flatten() for arm in self.arms},
            "seed_offsets": {name: arm.seed_offset for name, arm in self.study.arms.items() if arm.seed_offset},
            "profile": self.profile,
            "baseline": self.baseline.flatten(),
            "fingerprints": dict(fingerprints),
        }


def digest(identity: Mapping[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of an identity's SHA-256."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]


def grown(plan: Plan, *, trials: int, confirm_seeds: int | None = None) -> Plan:
    """Return the plan with other numbers of trials and, where it judges, of fresh seeds."""
    fresh = plan.confirm_seeds if confirm_seeds is None or not plan.judges else confirm_seeds
    return dataclasses.replace(plan, trials=trials, confirm_seeds=fresh)
