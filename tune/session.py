"""A study while this driver holds it: what was asked, where it lies, what is left."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmfa.config import TrialConfig
from mmfa.errors import CheckpointError, MmfaError
from studies.plan import SEARCH, Plan, digest, grown
from tune import outcome as outcomes
from tune import search
from tune.lease import Fence, Lease
from tune.ledger import Ledger, Lineage, StageLedger
from tune.places import Places
from tune.preflight import Stores
from tune.trainable import Job, read_result


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for."""

    plan: Plan
    places: Places
    trials_asked: bool
    cpus_per_trial: int
    trials_per_gpu: int
    address: str | None
    promote: Literal["never", "candidate"]
    strict_counts: bool = False
    lease_seconds: float
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
    family: str
    registry: StageLedger
    """Where the study as a whole is written down: its search, or an empty stage where it has arms."""
    stages: tuple[StageLedger, ...]
    """Controls, where there are any, then the arms."""

    @property
    def folder(self) -> Path:
        """Everything that the study keeps on storage."""
        return self.request.places.storage / self.study_id

    def folder_of(self, name: str) -> Path:
        """The folder of a lineage."""
        return self.folder / name.replace("/", "-")

    def lineages(self) -> list[Lineage]:
        """All lineages, controls first."""
        return [lineage for stage in self.stages for lineage in stage.lineages()]

    def config_of(self, lineage: Lineage) -> TrialConfig:
        """The config of a lineage."""
        if lineage.stage == "controls":
            return self.plan.control(lineage.attempts[0].user_attrs["control"])
        return self.plan.decode(lineage.last.params, self.plan.arm(lineage.stage))

    def outcome(self) -> outcomes.Outcome:
        """What the ledger says so far."""
        noise = self.ledger.family_values(self.family, baseline=outcomes.baseline_value)
        return outcomes.read(self.plan, self.lineages(), noise=noise)

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
        """How many lineages are not over yet."""
        return self.plan.num_trainings - sum(lineage.terminal for lineage in self.lineages())

    def job(self, lineage: Lineage, config: TrialConfig) -> Job:
        """What a worker gets to train a lineage."""
        return Job(
            name=lineage.name,
            config=config.to_json(),
            source_store=str(self.stores.paths[config.data.source]),
            target_store=str(self.stores.paths[config.data.target]),
            folder=str(self.folder_of(lineage.name)),
            attempt=len(lineage.attempts),
            fence_folder=str(self.fence.folder),
            fence_counter=self.fence.counter,
            threads=self.request.cpus_per_trial,
        )


def open_session(
    request: Request, stores: Stores, ledger: Ledger, lease: Lease, study_id: str, identity: dict[str, Any]
) -> Session:
    """Register the study, put up the fence, reap what was left.

    Raises:
        MmfaError: fewer trials than before, or storage that belongs to another ledger.
    """
    family = digest(_seedless(identity))
    registry = ledger.open(study_id, stage=SEARCH)
    number = ledger.register(
        registry, identity=identity, family=family, trials=request.plan.trials, asked=request.trials_asked
    )
    folder = request.places.storage / study_id
    _claim(folder, ledger_id=registry.study.user_attrs["ledger"])
    fence = Fence(folder / "fence", lease.counter)
    fence.put_up()
    plan = grown(request.plan, trials=number)
    names = [*(["controls"] if plan.controls else []), *(arm.name for arm in plan.arms)]
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
        family=family,
        registry=registry,
        stages=stages,
    )


def _seedless(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what studies that differ in their seed have in common."""

    def without(config: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in config.items() if name != "run.seed"}

    arms = {name: without(config) for name, config in identity["arms"].items()}
    return {**identity, "baseline": without(identity["baseline"]), "arms": arms}


def _claim(folder: Path, *, ledger_id: str) -> None:
    """Tie a study's storage to its ledger: results of one must not be taken for another's."""
    mark = folder / "ledger"
    if mark.exists() and mark.read_text() != ledger_id:
        raise MmfaError(
            f"{folder} holds trainings of this study that another ledger counts; give that --ledger, "
            "or another --storage, or remove the folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = mark.with_name(f"ledger.{os.getpid()}.tmp")
    temporary.write_text(ledger_id)
    temporary.replace(mark)
