"""What to run next: our ``Searcher`` over Optuna's ask/tell; controls first, then the baseline, then the sampler."""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import optuna
import ray.tune.search
import scipy.stats.qmc
from optuna.trial import FrozenTrial

from mmfa.config import TrialConfig, field_type
from studies.plan import CONFIRM, Arm, Plan
from studies.spec import Choices, Scalar
from tune import doctor, scoring
from tune.database import Database
from tune.interrupt import Stop
from tune.job import ROW, Job, as_config, last_words, mark_pruned
from tune.ledger import Lineage, StageLedger
from tune.unrepeated import Unrepeated

logger = logging.getLogger(__name__)

CONTROLS = "controls"
FIXED = (CONTROLS, CONFIRM)
"""Stages of trainings whose settings were known before they began."""
FEW = 200
"""Trials of a search up to which a Gaussian process is quick to ask; what that takes grows faster than they do."""
HISTORY = 1000
"""Trials of a search up to which its sampler sees all of them."""
Stages = tuple[StageLedger, ...]
"""Controls, where there are any, then the arms."""


class Observer(Protocol):
    """Whoever wants to know how the trials go: the console and the recorder."""

    def trial_started(self, lineage: Lineage, config: TrialConfig) -> None:
        """A worker is about to get this lineage."""

    def trial_epoch(self, name: str, report: dict[str, Any]) -> None:
        """An epoch is over; may be told more than once."""

    def trial_finished(self, name: str, state: str, record: dict[str, Any]) -> None:
        """``state`` is complete, diverged, pruned or lost."""


def distributions(plan: Plan) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return the space as Optuna's distributions; of a comparison, what its points vary."""
    result: dict[str, optuna.distributions.BaseDistribution] = {}
    if plan.study.is_comparison:
        return {name: optuna.distributions.IntDistribution(0, 2**31 - 1) for name in ("run.seed", "data.split")}
    for name, dimension in plan.study.dimensions.items():
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
    """Return what draws a search's next point, seeded by study and ledger's length: a restart draws other points.

    A Gaussian process among numbers while trials are few, which finds good ones sooner (benchmarks/economy.py). Else
    multivariate TPE, grouped, for dimensions that depend on others.
    """
    seed = int(np.random.SeedSequence([plan.baseline.run.seed, num_trials]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if plan.study.suits_gaussian_process and num_trials <= FEW:
            spread = functools.partial(start_up_point, plan, plan.arms[0])
            return Unrepeated(spread=spread, seed=seed, n_startup_trials=plan.study.start_up)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=plan.study.start_up, multivariate=True, group=True
        )


class Recent(optuna.samplers.BaseSampler):
    """A sampler that is shown a part of a long study, so that what it takes to ask it stops growing.

    Up to :data:`HISTORY` trials it is shown all. Of a longer study TPE still has all that it takes for good points, for
    the best ones stay; the others, against which it holds them, are the newest, which it weighs most anyway.

    Args:
        sampler: It.
        database: Where the study lies.
    """

    def __init__(self, sampler: optuna.samplers.BaseSampler, database: Database) -> None:
        self._sampler, self._database = sampler, database

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        """Return what is sampled together."""
        with self._database.part(HISTORY):
            return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, optuna.distributions.BaseDistribution]
    ) -> dict[str, Any]:
        """Return a point."""
        with self._database.part(HISTORY):
            return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        """Return a value."""
        with self._database.part(HISTORY):
            return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """Return what ends trials early: ASHA over the ledger's intermediate values, so a restart keeps its rungs."""
    if (pruning := plan.study.pruning) is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=pruning.grace_period, reduction_factor=pruning.reduction_factor
    )


def config_of(plan: Plan, lineage: Lineage) -> TrialConfig:
    """Return the config of a lineage."""
    if lineage.fixed_config is not None:
        return TrialConfig.from_json(lineage.fixed_config)
    return plan.decode(lineage.last.params, plan.arm(lineage.stage))


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
    """Reap what a dead driver left and enqueue what is known beforehand: controls, start-up points, seeds.

    What is to be confirmed is known only after the search: see ``tune/confirm.py``.
    """
    for stage in stages:
        for lineage in stage.reap():
            logger.info("%s was left unfinished; it is taken up again", lineage.name)
        if stage.stage == CONTROLS:
            stage.enqueue_fixed(plan.controls)
        if stage.stage in FIXED:
            continue
        stage.study.pruner = pruner(plan)
        arm = plan.arm(stage.stage)
        first = stage.num_lineages
        with stage.at_once():
            if plan.study.is_comparison:
                for point in plan.points(arm)[first:]:
                    stage.enqueue(point)
                continue
            for index in range(first, min(plan.trials, 1 + plan.study.start_up)):
                stage.enqueue(start_up_point(plan, arm, index))


def scored(plan: Plan, stage: str, metrics: Mapping[str, float], value: float) -> dict[str, float]:
    """Return a trial's metrics with its objective, which the worker does not know where it depends on other trials."""
    return {**metrics, **({} if stage == CONTROLS else {plan.metric: value})}


class StudySearcher(ray.tune.search.Searcher):
    """Hands Tune the trials of a study and tells the ledger how they end.

    Args:
        plan: What to run.
        stages: Controls and arms, or confirmations, already prepared.
        make_job: Turns a lineage and its config into what a worker gets.
        observers: Told in order.
        stop: Told when the study cannot go on; where it is set, nothing new is started.
        baseline: Metrics of the baseline's seeds, where trials are scored in units of its noise.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        stages: Stages,
        make_job: Callable[[Lineage, TrialConfig], Job],
        observers: tuple[Observer, ...],
        stop: Stop,
        baseline: Sequence[Mapping[str, float]] = (),
    ) -> None:
        super().__init__()
        self._plan, self._stages, self._make_job = plan, stages, make_job
        self._observers, self._stop, self._baseline = observers, stop, baseline
        self._live: dict[str, tuple[StageLedger, Lineage, optuna.Trial]] = {}
        self._reported: dict[str, set[int]] = {}
        self.failures: dict[str, str] = {}
        self.out_of_memory: list[str] = []
        """Trials that did not fit beside the others on a GPU: nothing more is started then."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of the next trial, or FINISHED when nothing is left to start."""
        for stage in () if self._stop or self.out_of_memory else self._in_turn():
            if (trial := self._next(stage)) is not None:
                lineage = stage.lineage_of(trial.number)
                config = config_of(self._plan, lineage)
                self._live[trial_id] = (stage, lineage, trial)
                self._reported[lineage.name] = set()
                for observer in self._observers:
                    observer.trial_started(lineage, config)
                return as_config(self._make_job(lineage, config))
        return str(ray.tune.search.Searcher.FINISHED)

    def _in_turn(self) -> list[StageLedger]:
        """Controls first, then the arm that has started the fewest: an unfinished study compares like with like."""

        def started(stage: StageLedger) -> int:
            return -1 if stage.stage == CONTROLS else stage.num_lineages - stage.num_waiting

        return sorted(self._stages, key=started)

    def _next(self, stage: StageLedger) -> optuna.Trial | None:
        waiting = stage.num_waiting > 0
        grows = stage.stage not in FIXED and not self._plan.study.is_comparison
        if not waiting and not (grows and stage.num_lineages < self._plan.trials):
            return None
        if not waiting:
            stage.study.sampler = Recent(sampler(self._plan, num_trials=stage.num_attempts), stage.database)
        with stage.at_once():
            trial = stage.ask()
            if stage.stage not in FIXED:
                suggest(trial, self._plan, self._plan.arm(stage.stage))
        return trial

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch on to the ledger and the observers, and mark a trial that is to end there."""
        if trial_id not in self._live or "epoch" not in (row := json.loads(result[ROW])):
            return
        stage, lineage, trial = self._live[trial_id]
        self._epoch(stage, lineage, trial, row["epoch"])
        last = row["epoch"]["epoch"] == row["epoch"]["num_epochs"]
        if self._prunable(stage.stage, lineage) and not last and trial.should_prune():
            mark_pruned(self._make_job(lineage, config_of(self._plan, lineage)))

    def _prunable(self, stage: str, lineage: Lineage) -> bool:
        """Whether [pruning] may end a trial: never the baseline's, a control's or a confirmation's."""
        exempt = stage in FIXED or lineage.name == self._plan.baseline_run
        return self._plan.study.pruning is not None and not exempt

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the ledger how a trial ended; the last row may be known here only."""
        if trial_id not in self._live:
            return None
        stage, lineage, trial = self._live.pop(trial_id)
        row = json.loads((result or {}).get(ROW, "{}"))
        if error or "result" not in row:
            reason = row.get("failed") or self._last_words(lineage, trial)
            stage.lose(trial, reason=reason)
            if row.get("out_of_memory"):
                self.out_of_memory.append(lineage.name)
            self.failures[lineage.name] = reason
            return self._tell(lineage.name, "lost", {"reason": reason})
        record = row["result"]
        with stage.at_once():
            record = self._close(stage, lineage, trial, record)
        del self._reported[lineage.name]
        self._tell(lineage.name, record["outcome"], record)
        if record["outcome"] == "diverged" and lineage.name == self._plan.baseline_run:
            self._stop.end(f"the baseline diverged: {record['reason']}")
        return None

    def _close(
        self, stage: StageLedger, lineage: Lineage, trial: optuna.Trial, record: dict[str, Any]
    ) -> dict[str, Any]:
        """Write a trial's end into the ledger; return its record, with its objective where it has one."""
        for report in record["history"]:
            self._epoch(stage, lineage, trial, report)
        if record["outcome"] == "diverged":
            stage.diverge(trial, reason=record["reason"])
        elif record["outcome"] == "pruned":
            stage.prune(trial, reason=record["reason"])
        else:
            metrics = record["metrics"]
            value = self._value(lineage, metrics, aligns=doctor.aligns(record["config"]))
            stage.complete(trial, value=value, metrics=metrics)
            return {**record, "metrics": scored(self._plan, stage.stage, metrics, value)}
        return record

    def _value(self, lineage: Lineage, metrics: Mapping[str, float], *, aligns: bool) -> float:
        """Return what the ledger keeps as a trial's value: the objective, seen through the label firewall."""
        if self._plan.study.is_comparison:
            return metrics[self._plan.metric]
        if lineage.stage == CONTROLS and self._plan.labels == "none":
            return metrics["source_val/mAP"]  # the objective is defined by these runs, so it comes after them
        exempt = lineage.name == self._plan.baseline_run
        seen = scoring.view(self._plan.study.objective, metrics, self._baseline, aligns=aligns, exempt=exempt)
        assert seen is not None, "a finished trial has what its objective reads"
        return scoring.score(seen)

    def _on_the_way(self, metrics: Mapping[str, float]) -> float | None:
        """Return an epoch's objective, where it has one before the end."""
        if self._plan.study.is_comparison:
            return metrics.get(self._plan.metric)
        if self._plan.labels != "target_val":
            return None
        seen = scoring.view(self._plan.study.objective, metrics, ())
        return None if seen is None else scoring.score(seen)

    def _epoch(self, stage: StageLedger, lineage: Lineage, trial: optuna.Trial, report: dict[str, Any]) -> None:
        if report["epoch"] in self._reported[lineage.name]:
            return
        self._reported[lineage.name].add(report["epoch"])
        if (value := self._on_the_way(report["metrics"])) is not None:
            stage.report(trial, value=value, step=report["epoch"])
        for observer in self._observers:
            observer.trial_epoch(lineage.name, report)

    def _tell(self, name: str, state: str, record: dict[str, Any]) -> None:
        for observer in self._observers:
            observer.trial_finished(name, state, record)

    def _last_words(self, lineage: Lineage, trial: optuna.Trial) -> str:
        job = self._make_job(lineage, config_of(self._plan, lineage))
        return (last_words(job).strip().splitlines() or ["its worker was lost"])[-1]

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
