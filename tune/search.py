"""What to run next: our ``Searcher`` over Optuna's ask/tell; controls first, then the baseline, then the sampler."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
import ray.tune.search
import scipy.stats.qmc

from mmfa.config import TrialConfig, field_type
from studies.plan import Arm, Plan
from studies.spec import Choices, Scalar
from tune.interrupt import Stop
from tune.ledger import Lineage, StageLedger
from tune.trainable import ERROR, ROW, Job, as_config

logger = logging.getLogger(__name__)

Stages = tuple[StageLedger, ...]
"""Controls, where there are any, then the arms."""


class Observer(Protocol):
    """Whoever wants to know how the trials go: the console and the recorder."""

    def trial_started(self, lineage: Lineage, config: TrialConfig) -> None:
        """A worker is about to get this lineage."""

    def trial_epoch(self, name: str, report: dict[str, Any]) -> None:
        """An epoch is over; may be told more than once."""

    def trial_finished(self, name: str, state: str, record: dict[str, Any]) -> None:
        """``state`` is complete, diverged or lost."""


def distributions(plan: Plan) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return the space as Optuna's distributions; of a comparison, what its points vary."""
    result: dict[str, optuna.distributions.BaseDistribution] = {}
    if plan.study.is_comparison:
        return {name: optuna.distributions.IntDistribution(0, 2**31 - 1) for name in ("run.seed", "data.split")}
    for name, dimension in plan.study.space.items():
        if isinstance(dimension, Choices):
            result[name] = optuna.distributions.CategoricalDistribution(dimension.labels())
        elif field_type(name) is int:
            result[name] = optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), dimension.log)
        else:
            result[name] = optuna.distributions.FloatDistribution(dimension.low, dimension.high, dimension.log)
    return result


def start_up_point(plan: Plan, arm: Arm, index: int) -> dict[str, Scalar]:
    """Return the point of lineage ``index``: the arm's baseline for 0, then a scrambled Halton sequence by the seed."""
    if index == 0:
        return plan.baseline_params(arm)
    space = distributions(plan)
    halton = scipy.stats.qmc.Halton(d=len(space), rng=np.random.default_rng(plan.baseline.run.seed))
    unit = halton.random(index)[index - 1]
    point = {name: _at(space[name], float(u)) for name, u in zip(space, unit, strict=True)}
    return {name: point[name] for name in plan.active(point)}


def _at(distribution: optuna.distributions.BaseDistribution, u: float) -> Scalar:
    """Return the value at quantile ``u`` in [0, 1) of a distribution."""
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        choice: Scalar = distribution.choices[int(u * len(distribution.choices))]  # type: ignore[assignment]
        return choice
    assert isinstance(distribution, optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, optuna.distributions.IntDistribution):
        high += 1
    value = low * (high / low) ** u if distribution.log else low + (high - low) * u
    if isinstance(distribution, optuna.distributions.IntDistribution):
        return min(int(value), distribution.high)
    return min(max(value, distribution.low), distribution.high)


def sampler(plan: Plan, *, num_trials: int) -> optuna.samplers.BaseSampler:
    """Return TPE, seeded by the study and the ledger's length: a restart never draws the same points again."""
    seed = int(np.random.SeedSequence([plan.baseline.run.seed, num_trials]).generate_state(1)[0])
    grouped = any(dimension.when for dimension in plan.study.space.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=plan.study.start_up, multivariate=grouped, group=grouped
        )


def suggest(trial: optuna.Trial, plan: Plan, arm: Arm) -> None:
    """Give a trial its parameters, one after the other: whether a dimension is searched may depend on those before."""
    for name, distribution in distributions(plan).items():
        wanted = plan.points(arm)[0] if plan.study.is_comparison else plan.active(trial.params)
        if name in wanted:
            _suggest(trial, name, distribution)


def _suggest(trial: optuna.Trial, name: str, distribution: optuna.distributions.BaseDistribution) -> None:
    match distribution:
        case optuna.distributions.FloatDistribution():
            trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        case optuna.distributions.IntDistribution():
            trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
        case optuna.distributions.CategoricalDistribution():
            trial.suggest_categorical(name, distribution.choices)


def prepare(plan: Plan, stages: Stages) -> None:
    """Reap what a dead driver left and enqueue what is known beforehand: controls, start-up points, seeds."""
    for stage in stages:
        for lineage in stage.reap():
            logger.info("%s was left unfinished; it is taken up again", lineage.name)
        if stage.stage == "controls":
            known = {lineage.last.user_attrs.get("control") for lineage in stage.lineages()}
            for name in plan.controls:
                if name not in known:
                    stage.enqueue({}, control=name)
            continue
        arm = plan.arm(stage.stage)
        first = len(stage.lineages())
        if plan.study.is_comparison:
            for point in plan.points(arm)[first:]:
                stage.enqueue(point)
            continue
        for index in range(first, min(plan.trials, 1 + plan.study.start_up)):
            stage.enqueue(start_up_point(plan, arm, index))


class StudySearcher(ray.tune.search.Searcher):
    """Hands Tune the trials of a study and tells the ledger how they end.

    Args:
        plan: What to run.
        stages: Controls and arms, already prepared.
        make_job: Turns a lineage and its config into what a worker gets.
        observers: Told in order.
        stop: Told when the study cannot go on; where it is set, nothing new is started.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        stages: Stages,
        make_job: Callable[[Lineage, TrialConfig], Job],
        observers: tuple[Observer, ...],
        stop: Stop,
    ) -> None:
        super().__init__()
        self._plan, self._stages, self._make_job = plan, stages, make_job
        self._observers, self._stop = observers, stop
        self._live: dict[str, tuple[StageLedger, Lineage, optuna.Trial]] = {}
        self._reported: dict[str, set[int]] = {}
        self.failures: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of the next trial, or FINISHED when nothing is left to start."""
        for stage in () if self._stop else self._in_turn():
            if (trial := self._next(stage)) is not None:
                lineage = stage.lineage_of(trial.number)
                config = self._config(stage.stage, trial)
                self._live[trial_id] = (stage, lineage, trial)
                self._reported[lineage.name] = set()
                for observer in self._observers:
                    observer.trial_started(lineage, config)
                return as_config(self._make_job(lineage, config))
        return str(ray.tune.search.Searcher.FINISHED)

    def _in_turn(self) -> list[StageLedger]:
        """Controls first, then the arm that has started the fewest: an unfinished study compares like with like."""

        def started(stage: StageLedger) -> int:
            waiting = sum(lineage.state == "waiting" for lineage in stage.lineages())
            return -1 if stage.stage == "controls" else len(stage.lineages()) - waiting

        return sorted(self._stages, key=started)

    def _next(self, stage: StageLedger) -> optuna.Trial | None:
        lineages = stage.lineages()
        waiting = any(lineage.state == "waiting" for lineage in lineages)
        grows = stage.stage != "controls" and not self._plan.study.is_comparison
        if not waiting and not (grows and len(lineages) < self._plan.trials):
            return None
        if not waiting:
            stage.study.sampler = sampler(self._plan, num_trials=sum(len(item.attempts) for item in lineages))
        trial = stage.ask()
        if stage.stage != "controls":
            suggest(trial, self._plan, self._plan.arm(stage.stage))
        return trial

    def _config(self, stage: str, trial: optuna.Trial) -> TrialConfig:
        if stage == "controls":
            return self._plan.control(trial.user_attrs["control"])
        return self._plan.decode(trial.params, self._plan.arm(stage))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch on to the ledger and the observers."""
        if trial_id in self._live and "epoch" in (row := json.loads(result[ROW])):
            self._epoch(*self._live[trial_id], row["epoch"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the ledger how a trial ended; the last row may be known here only."""
        if trial_id not in self._live:
            return None
        stage, lineage, trial = self._live.pop(trial_id)
        row = json.loads((result or {}).get(ROW, "{}"))
        if error or "result" not in row:
            reason = row.get("failed") or self._last_words(lineage, trial)
            stage.lose(trial, reason=reason)
            self.failures[lineage.name] = reason
            return self._tell(lineage.name, "lost", {"reason": reason})
        record = row["result"]
        for report in record["history"]:
            self._epoch(stage, lineage, trial, report)
        if record["outcome"] == "diverged":
            stage.diverge(trial, reason=record["reason"])
        else:
            metrics = record["metrics"]
            stage.complete(trial, value=metrics[self._plan.metric], metrics=metrics)
        self._tell(lineage.name, record["outcome"], record)
        if record["outcome"] == "diverged" and lineage.name == self._plan.baseline_run:
            self._stop.end(f"the baseline diverged: {record['reason']}")
        return None

    def _epoch(self, stage: StageLedger, lineage: Lineage, trial: optuna.Trial, report: dict[str, Any]) -> None:
        value = report["metrics"].get(self._plan.metric)
        if report["epoch"] in self._reported[lineage.name]:
            return
        self._reported[lineage.name].add(report["epoch"])
        if value is not None:
            stage.report(trial, value=value, step=report["epoch"])
        for observer in self._observers:
            observer.trial_epoch(lineage.name, report)

    def _tell(self, name: str, state: str, record: dict[str, Any]) -> None:
        for observer in self._observers:
            observer.trial_finished(name, state, record)

    def _last_words(self, lineage: Lineage, trial: optuna.Trial) -> str:
        job = self._make_job(lineage, self._config(lineage.stage, trial))
        file = Path(job.folder) / ERROR
        return file.read_text().strip().splitlines()[-1] if file.exists() else "its worker was lost"

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
