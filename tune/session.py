"""A study while this driver holds it: what was asked, where it lies, what is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmfa.config import TrialConfig
from studies.plan import Plan, digest, grown
from tune import outcome as outcomes
from tune import search
from tune.lease import Fence, Lease
from tune.ledger import Ledger, Lineage, StageLedger
from tune.places import Places
from tune.preflight import Stores
from tune.trainable import Job


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
    lease_seconds: float
    command: str


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
    controls: StageLedger
    search: StageLedger

    @property
    def folder(self) -> Path:
        """Everything that the study keeps on storage."""
        return self.request.places.storage / self.study_id

    def folder_of(self, name: str) -> Path:
        """The folder of a lineage."""
        return self.folder / name.replace("/", "-")

    def lineages(self) -> list[Lineage]:
        """All lineages, controls first."""
        return [*self.controls.lineages(), *self.search.lineages()]

    def config_of(self, lineage: Lineage) -> TrialConfig:
        """The config of a lineage."""
        if lineage.stage == "controls":
            return self.plan.control(lineage.attempts[0].user_attrs["control"])
        return self.plan.decode(lineage.last.params)

    def outcome(self) -> outcomes.Outcome:
        """What the ledger says so far."""
        noise = self.ledger.family_values(self.family, baseline=outcomes.baseline_value)
        return outcomes.read(self.plan, controls=self.controls, search=self.search, noise=noise)

    def diverged_baseline(self) -> str:
        """Why the paper's defaults diverged, or "" where they did not."""
        first = next(iter(self.search.lineages()), None)
        return str(first.last.user_attrs.get("reason", "")) if first is not None and first.state == "diverged" else ""

    def left(self) -> int:
        """How many lineages are not over yet."""
        over = sum(lineage.terminal for lineage in self.lineages())
        return self.plan.trials + len(self.controls.lineages()) - over

    def job(self, lineage: Lineage, config: TrialConfig) -> Job:
        """What a worker gets to train a lineage."""
        return Job(
            name=lineage.name,
            config=config.to_json(),
            source_store=str(self.stores.source),
            target_store=str(self.stores.target),
            folder=str(self.folder_of(lineage.name)),
            attempt=len(lineage.attempts),
            fence_folder=str(self.fence.folder),
            fence_counter=self.fence.counter,
            threads=self.request.cpus_per_trial,
        )


def open_session(
    request: Request, stores: Stores, ledger: Ledger, lease: Lease, study_id: str, identity: dict[str, Any]
) -> Session:
    """Put up the fence, register the study, reap what was left."""
    fence = Fence(request.places.storage / study_id / "fence", lease.counter)
    fence.put_up()
    baseline = {name: value for name, value in identity["baseline"].items() if name != "run.seed"}
    family = digest({**identity, "baseline": baseline})
    controls, trials = ledger.open(study_id, stage="controls"), ledger.open(study_id, stage="search")
    number = ledger.register(
        trials, identity=identity, family=family, trials=request.plan.trials, asked=request.trials_asked
    )
    plan = grown(request.plan, trials=number)
    search.prepare(plan, controls=controls, search=trials)
    return Session(
        request=request,
        plan=plan,
        study_id=study_id,
        stores=stores,
        lease=lease,
        fence=fence,
        ledger=ledger,
        family=family,
        controls=controls,
        search=trials,
    )
