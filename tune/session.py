"""A study while this driver holds it: what was asked, where it lies, what is left."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmfa.config import TrialConfig
from mmfa.errors import CheckpointError, MmfaError
from studies.plan import CONFIRM, SEARCH, Plan, grown
from tune import confirm, mirror, outcomes, scoring, search
from tune.job import RESULT, Job, read_readings, read_result
from tune.lease import Fence, Lease
from tune.ledger import Ledger, Lineage, StageLedger
from tune.places import Places
from tune.preflight import Stores


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for."""

    plan: Plan
    places: Places
    trials_asked: bool
    cpus_per_trial: int
    trials_per_gpu: int | None
    """None where it is to be measured."""
    workers: int | None = None
    """Trials at once; None for as many as fit."""
    address: str | None
    promote: Literal["never", "candidate", "champion"]
    confirm_seeds_asked: bool = False
    strict_counts: bool = False
    lease_seconds: float
    torch_trace: bool = False
    """Whether the baseline is profiled."""
    command: str
    """What to type to go on."""
    python: str
    """The interpreter to type in front of ``-m mlflow``."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A study while this driver holds it."""

    request: Request
    plan: Plan
    study_id: str
    stores: Stores
    lease: Lease
    fence: Fence
    ledger: Ledger
    registry: StageLedger
    """Where the study as a whole is written down: its search, or an empty stage where it has arms."""
    stages: tuple[StageLedger, ...]
    """Controls, where there are any, then the arms, then confirmations, where there will be any."""
    scratch: Path
    """Where workers have their copies of what lies on an object store, a folder for each driver.

    It bears the ledger's name too: the same study may be run elsewhere at the same time.
    """

    @property
    def folder(self) -> Path:
        """Everything that the study keeps on storage, or the driver's copy of it."""
        return self.request.places.copy / self.study_id

    def folder_of(self, name: str) -> Path:
        """The folder of a lineage; of one on an object store a copy, complete once the lineage is over."""
        folder = self.folder / name.replace("/", "-")
        uri = self.uri_of(name)
        if uri and not (folder / RESULT).exists():
            mirror.pull(folder, uri, without="attempt-")
        return folder

    def uri_of(self, name: str) -> str:
        """The URI of a lineage's folder; "" where it lies in a folder that all nodes share."""
        return self.request.places.uri_of(self.study_id, name.replace("/", "-"))

    def lineages(self) -> list[Lineage]:
        """All lineages, controls first."""
        return [lineage for stage in self.stages for lineage in stage.lineages()]

    def config_of(self, lineage: Lineage) -> TrialConfig:
        """The config of a lineage."""
        return search.config_of(self.plan, lineage)

    def outcome(self) -> outcomes.Outcome:
        """What the ledger says so far."""
        return outcomes.read(self.plan, self.lineages())

    def baseline_metrics(self) -> list[dict[str, float]]:
        """Metrics of the baseline's seeds that have a result."""
        rows = self.outcome().control(confirm.BASELINE)
        # Where trials are scored in its noise, trial 0 is one of those that are scored.
        return [row.metrics for row in rows if row.arm == search.CONTROLS or self.plan.labels != "none"]

    def noise_is_known(self) -> bool:
        """Whether two seeds of the baseline or more have a result."""
        return len(self.baseline_metrics()) > 1

    def diverged_baseline(self) -> str:
        """Why the paper's defaults diverged, or "" where they did not."""
        first = next((lineage for lineage in self.lineages() if lineage.name == self.plan.baseline_run), None)
        return str(first.last.user_attrs.get("reason", "")) if first is not None and first.state == "diverged" else ""

    def to_train(self) -> bool:
        """Whether anything is left that may be trained."""
        return self.left() > 0 and not self.diverged_baseline()

    def notes(self) -> list[str]:
        """What was told of lineages while they were trained: checkpoints that were set aside."""
        told = []
        for lineage in self.lineages():
            with contextlib.suppress(CheckpointError):
                told += [f"{lineage.name}: {note}" for note in read_result(self.folder_of(lineage.name))["notes"]]
        return told

    def record_of(self, name: str) -> dict[str, Any]:
        """Return the record of a finished lineage, with its objective.

        Raises:
            CheckpointError: no record, or a damaged one.
        """
        record = read_result(self.folder_of(name))
        last = next(lineage.last for lineage in self.lineages() if lineage.name == name)
        if record["outcome"] != "complete" or last.value is None:
            return record
        stage = name.partition("/")[0]
        return {**record, "metrics": search.scored(self.plan, stage, record["metrics"], last.value)}

    def training_seconds(self) -> list[float]:
        """Return the time that each finished training took, its evaluation included."""
        found = []
        for lineage in self.lineages():
            with contextlib.suppress(CheckpointError):
                record = read_result(self.folder_of(lineage.name))
                found.append(sum(r["metrics"]["train/seconds"] for r in record["history"]) + record["test_seconds"])
        return found

    def commits(self, commit: str) -> list[str]:
        """Return the commits that have trained in this study, this one last if anything is left to train."""
        if not self.to_train():
            return list(self.registry.study.user_attrs.get("commits", [commit]))
        before = [known for known in self.registry.study.user_attrs.get("commits", []) if known != commit]
        self.registry.study.set_user_attr("commits", [*before, commit])
        return [*before, commit]

    def left(self) -> int:
        """How many lineages are not over yet; of confirmations that are not settled, how many there will be."""
        count = self.left_in(self.searched)
        if not self.plan.judges:
            return count
        settled = confirm.read(self.registry)
        expected = self.plan.num_confirmations if settled is None else len(confirm.runs(self.plan, settled))
        over = sum(lineage.terminal for lineage in self.lineages() if lineage.stage == CONFIRM)
        return count + max(0, expected - over)

    def left_in(self, stages: Sequence[StageLedger]) -> int:
        """How many lineages of some stages are not over yet; of confirmations, those that are enqueued."""
        count = 0
        for stage in stages:
            lineages = stage.lineages()
            expected = (
                len(lineages) if stage.stage in search.FIXED else self.plan.num_trials_of(self.plan.arm(stage.stage))
            )
            count += expected - sum(lineage.terminal for lineage in lineages)
        return count

    @property
    def phases(self) -> list[tuple[StageLedger, ...]]:
        """What runs together: confirmations after the search, and the search after the noise that it is scored in."""
        controls, arms, confirmations = (
            tuple(stage for stage in self.stages if kind(stage.stage))
            for kind in (
                lambda name: name == search.CONTROLS,
                lambda name: name not in search.FIXED,
                lambda name: name == CONFIRM,
            )
        )
        apart = self.plan.labels == "none" and bool(controls)
        phases = [controls, arms, confirmations] if apart else [controls + arms, confirmations]
        return [phase for phase in phases if phase]

    @property
    def searched(self) -> tuple[StageLedger, ...]:
        """Everything that comes before confirmations."""
        return tuple(stage for stage in self.stages if stage.stage != CONFIRM)

    def readings(self) -> list[dict[str, Any]]:
        """Every time that the official test labels were read for this study: by a trial, or by a verdict."""
        found = [entry for lineage in self.lineages() for entry in read_readings(self.folder_of(lineage.name))]
        return sorted([*found, *self.registry.study.user_attrs.get("readings", [])], key=lambda entry: entry["at"])

    def count_reading(self, why: str) -> None:
        """Write down that recorded results of the official test labels were looked at, once for each reason."""
        known = self.registry.study.user_attrs.get("readings", [])
        if why not in (entry["why"] for entry in known):
            entry = {"at": time.time(), "trial": "", "attempt": 0, "why": why}
            self.registry.study.set_user_attr("readings", [*known, entry])

    def job(self, lineage: Lineage, config: TrialConfig, *, trials_per_gpu: int = 1) -> Job:
        """What a worker gets to train a lineage."""
        uri = self.uri_of(lineage.name)
        scratch = self.scratch / str(self.fence.counter) / lineage.name.replace("/", "-")
        return Job(
            name=lineage.name,
            config=config.to_json(),
            source_store=str(self.stores.paths[config.data.source]),
            target_store=str(self.stores.paths[config.data.target]),
            fingerprints=self.stores.contents(),
            folder=str(scratch if uri else self.folder_of(lineage.name)),
            uri=uri,
            attempt=len(lineage.attempts),
            fence_folder=self.fence.folder,
            fence_counter=self.fence.counter,
            threads=self.request.cpus_per_trial,
            trials_per_gpu=trials_per_gpu,
            reading=self._reading(lineage),
            criteria=self.plan.criteria,
            prunable=self.plan.study.pruning is not None and lineage.stage not in search.FIXED,
            torch_trace=self.request.torch_trace and lineage.name == self._profiled,
        )

    @property
    def _profiled(self) -> str:
        """The lineage that is profiled where one is to be: the baseline, or the first of a comparison's arms."""
        return self.plan.baseline_run or f"{self.plan.arms[0].name}/0000"

    def recall(self, name: str) -> Any:
        """Return what was remembered of how the study runs; None where nothing was."""
        return self.registry.study.user_attrs.get(name)

    def remember(self, name: str, value: Any) -> None:
        """Write down how the study runs: no part of what it is."""
        self.registry.study.set_user_attr(name, value)

    def _reading(self, lineage: Lineage) -> str:
        """Why the official test labels are read at the end of a training; "" where there are none."""
        if not self.plan.labelled:
            return ""
        if self.plan.study.is_comparison:
            return scoring.COMPARED
        return scoring.CONFIRMED if lineage.stage == CONFIRM else scoring.READINGS[self.plan.labels]


def open_session(
    request: Request, stores: Stores, ledger: Ledger, lease: Lease, study_id: str, identity: dict[str, Any]
) -> Session:
    """Register the study, put up the fence, reap what was left.

    Raises:
        MmfaError: fewer trials than before, or storage that belongs to another ledger.
    """
    registry = ledger.open(study_id, stage=SEARCH)
    ledger.register(registry, identity=identity)
    number = ledger.register_number(registry, "trials", request.plan.trials, asked=request.trials_asked)
    fresh = None
    if request.plan.labelled and not request.plan.study.is_comparison:  # with --quick too: before anybody sees a result
        wanted = request.plan.confirm_seeds or request.plan.study.protocol.confirm_seeds
        fresh = ledger.register_number(registry, "confirm_seeds", wanted, asked=request.confirm_seeds_asked)
    folder, uri = request.places.copy / study_id, request.places.uri_of(study_id)
    ledger_id = str(registry.study.user_attrs["ledger"])
    _claim(folder, uri, ledger_id=ledger_id)
    fence = Fence(f"{uri or folder}/fence", lease.counter)
    fence.put_up()
    asked_for = request.plan
    if asked_for.quick and fresh is not None and confirm.read(registry) is not None:
        asked_for = dataclasses.replace(asked_for, quick=False, confirm_seeds=fresh)
    plan = grown(asked_for, trials=number, confirm_seeds=fresh)
    names = [*(["controls"] if plan.controls else []), *(arm.name for arm in plan.arms)]
    names += [CONFIRM] if plan.judges else []
    stages = tuple(registry if name == SEARCH else ledger.open(study_id, stage=name) for name in names)
    search.prepare(plan, stages)
    return Session(
        request=request,
        plan=plan,
        study_id=study_id,
        stores=stores,
        lease=lease,
        fence=fence,
        ledger=ledger,
        registry=registry,
        stages=stages,
        scratch=request.places.cache_dir / "trials" / f"{study_id}-{ledger_id[:8]}",
    )


def _claim(folder: Path, uri: str, *, ledger_id: str) -> None:
    """Tie a study's storage to its ledger: results of one must not be taken for another's."""
    mark = folder / "ledger"
    known = mark.read_bytes() if mark.exists() else None
    if uri:
        known = mirror.read(f"{uri}/ledger") or known  # a copy of another object store's study is not for this one
    if known not in (None, ledger_id.encode()):
        raise MmfaError(
            f"{uri or folder} holds trainings of this study that another ledger counts; give that --ledger, "
            "or another --storage, or remove the folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if uri:
        mirror.write(f"{uri}/ledger", ledger_id.encode())
    temporary = mark.with_name(f"ledger.{os.getpid()}.tmp")
    temporary.write_text(ledger_id)
    temporary.replace(mark)
