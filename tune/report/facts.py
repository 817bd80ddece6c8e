"""All that the report tells of a study, whether it has just ended or is read back from MLflow and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studies.plan import CONFIRM, Plan
from tune import search, words
from tune.confirm import MATCHED
from tune.ledger import Lineage
from tune.outcomes import Outcome
from tune.summary import LABEL_FREE

ARTIFACT = "report.json"
"""Artifact of the study's run: what the page needs and neither the runs nor the ledger hold."""
CONTROL_TITLES = {"source_only": "source only (control)", "target_bn": "target in BN (control)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What one epoch of a training reported."""

    number: int
    """From 1."""
    ended_at: int
    """Unix milliseconds."""
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is known of a lineage beyond the ledger: from its ``result.json``, or from its MLflow run."""

    epochs: tuple[Epoch, ...] = ()
    cmc: tuple[float, ...] = ()
    """Of the official target split after the last epoch, from rank 1 on; fractions."""
    seconds: float | None = None
    """Of the training and its evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One lineage, over or not."""

    name: str
    stage: str
    role: str
    state: str
    reason: str
    attempts: int
    config: dict[str, Any]
    """By dotted names."""
    value: float | None
    """The objective; none where there is no result."""
    final: dict[str, float]
    """All metrics after the last epoch; empty where there is no result."""
    record: Record

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.config["run.seed"])

    def curve(self, metric: str) -> dict[int, float]:
        """Return a metric by epoch, where it was reported."""
        return {epoch.number: epoch.metrics[metric] for epoch in self.record.epochs if metric in epoch.metrics}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Trainings of one setting over seeds."""

    title: str
    trainings: tuple[Training, ...]

    def values(self, metric: str) -> list[float]:
        """Return a final metric, run by run."""
        return [one.final[metric] for one in self.trainings if metric in one.final]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A study as the report tells it; equal facts give equal pages, byte for byte."""

    study_id: str
    plan: Plan
    outcome: Outcome
    trainings: tuple[Training, ...]
    verdict: Mapping[str, Any] | None = None
    """The record of ``verdict.json``."""
    verdict_lost: bool = False
    """Whether there was a verdict that could not be read back."""
    regret: Sequence[Mapping[str, Any]] = ()
    readings: Mapping[str, Any] = field(default_factory=dict)
    """How often the official test labels were read: ``total``, and by reason in ``why``; empty where not known."""
    replays: int = 0
    """How often criteria were recomputed afterwards, which looks at the recorded results once more."""
    command: str = ""
    """What was typed; "" where not known."""
    commits: Sequence[str] = ()
    hardware: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of the image stores and weights, by name."""
    amendments: Sequence[Mapping[str, Any]] = ()
    promotion: str = ""
    no_pictures: str = ""
    """Why the page has no pictures of the method, in a sentence; "" where there may be some."""
    closed: bool = True
    """Whether the study is over, judged and recorded."""
    unknown: Sequence[str] = ()
    """Sentences on what could not be read back."""

    @property
    def left(self) -> int:
        """How many trainings that the ledger knows of are not over."""
        return sum(one.state not in ("complete", "diverged", "pruned") for one in self.trainings)

    def training(self, name: str) -> Training:
        """Return a training by its lineage's name."""
        return next(one for one in self.trainings if one.name == name)

    def setting(self, title: str, names: Sequence[str]) -> Group:
        """Return a group of trainings by name."""
        return Group(title=title, trainings=tuple(self.training(name) for name in names))

    @property
    def searched(self) -> list[Training]:
        """The trials of a search, or the runs of a comparison."""
        return [one for one in self.trainings if one.stage not in search.FIXED]


@dataclass(frozen=True, slots=True)
class Scale:
    """How a metric is shown."""

    factor: float
    unit: str
    """Behind a number: `` %`` or nothing."""

    def text(self, value: float | None) -> str:
        """Return a value for a table."""
        if value is None:
            return "–"
        return f"{self.factor * value:.1f}" if self.unit else f"{value:.3g}"


def scale_of(metric: str) -> Scale:
    """Return how a metric is shown: accuracies in percent, everything else as it is."""
    accuracy = metric.startswith(("target", "source_val/", "cmc/")) and metric != LABEL_FREE
    return Scale(100.0, " %") if accuracy else Scale(1.0, "")


def trainings(plan: Plan, lineages: Sequence[Lineage], records: Mapping[str, Record]) -> tuple[Training, ...]:
    """Return what is known of every lineage, in the ledger's order."""
    result = []
    for lineage in lineages:
        last, over = lineage.last, lineage.terminal
        if lineage.fixed_config is not None:
            config = search.config_of(plan, lineage)
        else:  # a point that waits or was lost may not have all of its parameters yet
            config = plan.decode(lineage.point(), plan.arm(lineage.stage))
        result.append(
            Training(
                name=lineage.name,
                stage=lineage.stage,
                role=lineage.role,
                state=lineage.state,
                reason=str(last.user_attrs.get("reason", "")),
                attempts=len(lineage.attempts),
                config=config.flatten(),
                value=last.value if lineage.state == "complete" else None,
                final=dict(last.user_attrs.get("metrics", {})) if over else {},
                record=records.get(lineage.name, Record()),
            )
        )
    return tuple(result)


def groups(facts: Facts) -> list[Group]:
    """Return the settings that are compared, each with its runs over seeds.

    Of a comparison the arms; of a search that was judged the settings on fresh seeds and the controls; of one that was
    not the best trial, the baseline and the controls.
    """
    found = _arms(facts) if facts.plan.study.is_comparison else _confirmed(facts) or _searched(facts)
    return [group for group in found if group.trainings]


def _arms(facts: Facts) -> list[Group]:
    several = len({arm.pair for arm in facts.plan.arms}) > 1
    return [
        facts.setting(
            f"{arm.title}, {arm.pair.replace(' to ', ' → ')}" if several else arm.title,
            [row.name for row in facts.outcome.of_arm(arm.name)],
        )
        for arm in facts.plan.arms
    ]


def _confirmed(facts: Facts) -> list[Group]:
    rows = [row for row in facts.outcome.rows if row.arm == CONFIRM and row.value is not None]
    if not rows:
        return []
    result = []
    for role in dict.fromkeys(row.role for row in rows):
        name = role.removesuffix(MATCHED)
        title = words.title(facts.plan, name) + (" unaligned" if role.endswith(MATCHED) else "")
        result.append(facts.setting(title, [row.name for row in rows if row.role == role]))
    return result + _controls(facts)


def _searched(facts: Facts) -> list[Group]:
    outcome = facts.outcome
    baseline = facts.setting(words.title(facts.plan, "baseline"), [row.name for row in outcome.control("baseline")])
    best = outcome.best
    challenger = [] if best is None or best is outcome.baseline else [facts.setting(f"best: {best.name}", [best.name])]
    return [baseline, *challenger, *_controls(facts)]


def _controls(facts: Facts) -> list[Group]:
    return [
        facts.setting(title, [row.name for row in facts.outcome.control(role)])
        for role, title in CONTROL_TITLES.items()
    ]


def baseline_group(facts: Facts) -> Group:
    """Return the baseline's seeds of the search: the seed noise."""
    names = [row.name for row in facts.outcome.control("baseline")]
    return facts.setting(words.title(facts.plan, "baseline"), names)
