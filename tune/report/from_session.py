"""Facts of a study that has just ended: from the ledger, and from what its trainings left on storage."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmfa.errors import CheckpointError
from tune import judging, provenance, words
from tune.job import read_result
from tune.outcomes import Outcome
from tune.report.facts import Epoch, Facts, Record, trainings
from tune.session import Session


def gather(
    session: Session,
    outcome: Outcome,
    verdict: Mapping[str, Any] | None,
    *,
    regret: Sequence[Mapping[str, Any]],
    promoted: Sequence[str],
    no_pictures: str = "",
) -> Facts:
    """Return what the report tells.

    Args:
        session: The study, all of whose trainings are over.
        outcome: What the ledger says of it.
        verdict: The record of ``verdict.json``.
        regret: The table of selection regret.
        promoted: What was promoted, or why not.
        no_pictures: Why there are no pictures of the method; "" where there are.
    """
    attrs = session.registry.study.user_attrs
    lineages = session.lineages()
    records = {lineage.name: _record(session, lineage.name) for lineage in lineages}
    return Facts(
        study_id=session.study_id,
        plan=session.plan,
        outcome=outcome,
        trainings=trainings(session.plan, lineages, records),
        verdict=verdict,
        regret=regret,
        readings=judging.counted(session),
        command=words.reproducing(session.plan, session.request.command),
        commits=list(attrs.get("commits", [])),
        hardware=provenance.hardware(),
        versions=provenance.versions(),
        fingerprints=session.stores.fingerprints,
        amendments=attrs.get("amendments", []),
        promotion=" ".join(promoted),
        no_pictures=no_pictures,
    )


def about(session: Session, facts: Facts) -> dict[str, Any]:
    """Return what is kept with the study's run, so that the page can be made again: ``report.json``."""
    return {
        "schema": 1,
        "command": facts.command,
        "no_pictures": facts.no_pictures,
        "quick": session.plan.quick,
        "labelled": session.plan.labelled,
        "seconds": {one.name: one.record.seconds for one in facts.trainings},
    }


def _record(session: Session, name: str) -> Record:
    """Return what a training left; nothing where its record is damaged, which the study's notes tell."""
    with contextlib.suppress(CheckpointError):
        found = read_result(session.folder_of(name))
        epochs = tuple(
            Epoch(number=one["epoch"], ended_at=int(one["ended_at"] * 1000), metrics=one["metrics"])
            for one in found["history"]
        )
        test = found["test"] or {"retrieval": {}}
        return Record(
            epochs=epochs,
            cmc=tuple(test["retrieval"].get("target", {}).get("cmc", ())),
            seconds=sum(epoch.metrics["train/seconds"] for epoch in epochs) + found["test_seconds"],
        )
    return Record()
