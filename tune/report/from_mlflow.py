"""Facts of a study that is read back: the ledger says what it was and what came out, MLflow how each training went."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mmfa.config import TrialConfig
from mmfa.errors import MmfaError
from studies.plan import CONFIRM, SEARCH, Arm, Plan
from studies.spec import CONTROLS, Study
from tune import outcomes, provenance
from tune.ledger import Ledger, Lineage, StageLedger
from tune.places import first_line
from tune.recorder import LINEAGE_TAG
from tune.report.facts import ARTIFACT, Epoch, Facts, Record, trainings

CLOCK = "train/seconds"
"""Every epoch reports it: what else carries its time was measured in that epoch."""
CMC = "cmc/target"
AFTER = ("target/", "target_a_to_b/", "target_b_to_a/", "probe/", "pseudo/", "cluster/", "attributes/", "label_free/",
         "cmc/")  # fmt: skip
"""Beginnings of metrics that are not of an epoch: they are in the ledger, or none of the training's."""
REPLAYS = "replays.jsonl"
FINISHED = "FINISHED"


def names(ledger: Ledger) -> list[str]:
    """Return the studies of a ledger."""
    return [study.study_name for study in ledger.storage.get_all_studies() if "/" not in study.study_name]


def check_name(ledger: Ledger, study_id: str) -> None:
    """Raise MmfaError, with the nearest name, where the ledger has no such study."""
    if study_id not in (known := names(ledger)):
        raise MmfaError(
            f"--study-run: the ledger has no study {study_id!r}; {_near(study_id, known)} Or give another --out or "
            "--ledger."
        )


def _near(wanted: str, known: Sequence[str]) -> str:
    """Return the studies whose name, without the hash at its end, is nearest; all where none is near."""
    stems = {name: name.rpartition("-")[0] for name in known}
    own = {wanted, wanted.rpartition("-")[0] or wanted}
    found = {near for one in own for near in difflib.get_close_matches(one, stems.values(), n=1)}
    names_found = [name for name in known if stems[name] in found]
    listed = ", ".join(map(repr, names_found or known)) or "none"
    return f"did you mean {listed}?" if names_found else f"it has {listed}."


def gather(client: MlflowClient, run: Run, ledger: Ledger, study_id: str) -> Facts:
    """Return what the report tells of a study.

    Args:
        client: Of the tracking server or database.
        run: The study's own run.
        ledger: Where its trials are.
        study_id: Its name.

    Raises:
        MmfaError: a study that this ledger does not have, or one whose description cannot be read.
    """
    check_name(ledger, study_id)
    kept = _artifacts(client, run)
    about: Mapping[str, Any] = _json(kept, ARTIFACT) or {}
    registry = _stage(ledger, study_id, SEARCH)
    attrs = registry.study.user_attrs
    if "identity" not in attrs:
        raise MmfaError(f"the ledger has no more of {study_id!r} than its name: no training of it was ever prepared.")
    study = _study(kept.get("study.json"), attrs, question=_question(run))
    plan = _plan(study, attrs, about, judged="verdict.json" in kept)
    stages = _stages(ledger, study_id, plan)
    lineages = [lineage for stage in stages for lineage in stage.lineages()]
    known = {child.data.tags[LINEAGE_TAG]: child for child in _children(client, run)}
    seconds = about.get("seconds", {})
    records = {
        lineage.name: _record(client, known[lineage.name], seconds.get(lineage.name))
        for lineage in lineages
        if lineage.name in known
    }
    plan = _seen(plan, about, lineages)
    verdict = _json(kept, "verdict.json")
    over = all(lineage.terminal for lineage in lineages) and run.info.status == FINISHED
    counted: Mapping[str, Any] = _json(kept, "test_label_readings.json") or {}
    return Facts(
        study_id=study_id,
        plan=plan,
        outcome=outcomes.read(plan, lineages),
        trainings=trainings(plan, lineages, records),
        verdict=verdict if over else None,
        verdict_lost=over and verdict is None and _judges(plan, lineages),
        regret=(_json(kept, "outcome.json") or {}).get("regret", ()) if over else (),
        readings={name: counted[name] for name in ("total", "why") if name in counted} if over else {},
        replays=len(kept.get(REPLAYS, "").splitlines()),
        command=about.get("command", ""),
        commits=list(attrs.get("commits", [])),
        hardware=run.data.tags.get("hardware", ""),
        versions=_versions(run.data.tags),
        fingerprints=json.loads(run.data.tags.get("data.fingerprint", "{}")),
        amendments=attrs.get("amendments", []),
        promotion=run.data.tags.get("promotion", "") if over else "",
        no_pictures=about.get("no_pictures", "") if over else "They are drawn when the study ends.",
        closed=over,
        unknown=_unknown(about, kept, lineages, records, over=over),
    )


def _question(run: Run) -> str:
    """Return what the study asks; older runs have it in their description only."""
    tags: Mapping[str, str] = run.data.tags
    return tags.get("question") or tags.get("mlflow.note.content", "").strip("*")


def _unknown(
    about: Mapping[str, Any], kept: Mapping[str, str], lineages: Sequence[Lineage], records: Mapping[str, Record], *,
    over: bool,
) -> list[str]:  # fmt: skip
    """Return sentences on what could not be read back."""
    lines = []
    if not about:
        why = "it was closed before such a file was kept" if over else "it is written when the study ends"
        lines.append(f"The command and the time of each training are in {ARTIFACT} of the study's run, and {why}.")
    missing = [name for name in ("study.json", "outcome.json", "test_label_readings.json") if over and name not in kept]
    if missing:
        lines.append(f"The study's run lacks {', '.join(missing)}; run the command of the study again to have them.")
    bare = [one.name for one in lineages if one.terminal and not records.get(one.name, Record()).epochs]
    if bare:
        lines.append(f"MLflow has no epoch of {', '.join(bare)}: their curves are missing, their results are not.")
    return lines


def _versions(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the versions in the order in which provenance names them."""
    found = {name.removeprefix("version."): value for name, value in tags.items() if name.startswith("version.")}
    order = ["python", *provenance.PACKAGES]
    return {name: found[name] for name in [*order, *sorted(set(found) - set(order))] if name in found}


# The ledger.


def _stage(ledger: Ledger, study_id: str, stage: str) -> StageLedger:
    full = study_id if stage == SEARCH else f"{study_id}/{stage}"
    study = optuna.load_study(study_name=full, storage=ledger.storage)
    return StageLedger(study, stage=stage, database=ledger.storage)


def _stages(ledger: Ledger, study_id: str, plan: Plan) -> list[StageLedger]:
    """Return the stages that there are, in the order in which they run."""
    there = {study.study_name for study in ledger.storage.get_all_studies()}
    wanted = ["controls", *(arm.name for arm in plan.arms), CONFIRM]
    return [_stage(ledger, study_id, name) for name in wanted if name == SEARCH or f"{study_id}/{name}" in there]


def _study(text: str | None, attrs: Mapping[str, Any], *, question: str) -> Study:
    """Return the study as its file said it; without that file as far as the ledger's registration goes."""
    identity = attrs["identity"]
    if text is None:
        rows = [name.rpartition(".")[2] for name in identity["arms"]]
        offsets = identity["seed_offsets"]
        own = [name for name in dict.fromkeys(rows) if name not in (SEARCH, *CONTROLS)]
        fields = ("objective", "criteria", "protocol", "pruning", "start_up", "space")
        record = {name: identity[name] for name in fields if name in identity} | {
            "question": question or "The question is not on record.",
            "trials": attrs["trials"],
            "arms": {name: {"seed_offset": offsets.get(name, 0)} for name in own},
            "controls": any(name in rows for name in CONTROLS) or bool(identity["space"]),
            "name": identity["study"],
        }
        text = json.dumps(record)
    try:
        return Study.model_validate_json(text)
    except ValueError as error:  # pydantic's
        raise MmfaError(
            f"study.json of the study's run is not a study of this version ({first_line(error)}); make the report with "
            "the version that ran it."
        ) from None


def _plan(study: Study, attrs: Mapping[str, Any], about: Mapping[str, Any], *, judged: bool) -> Plan:
    """Return the plan that the ledger registered."""
    identity = attrs["identity"]
    arms = []
    for name, flat in identity["arms"].items():
        row = name.rpartition(".")[2]
        title = study.arms[row].title or row if row in study.arms else "MMFA" if row == "mmfa" else row
        title = f"{row} (control)" if row in CONTROLS else "" if row == SEARCH else title
        arms.append(Arm(name=name, title=title, config=TrialConfig.from_json(json.dumps(flat)), row=row))
    return Plan(
        study=study,
        profile=identity["profile"],
        baseline=TrialConfig.from_json(json.dumps(identity["baseline"])),
        arms=tuple(arms),
        trials=int(attrs["trials"]),
        confirm_seeds=0
        if study.is_comparison or about.get("quick", not judged)
        else int(attrs.get("confirm_seeds", 0)),
        quick=bool(about.get("quick", not judged and not study.is_comparison)),
        labelled=bool(about.get("labelled", True)),
    )


def _seen(plan: Plan, about: Mapping[str, Any], lineages: Sequence[Lineage]) -> Plan:
    """Return the plan with what can be told from the trainings where it was not written down."""
    if about:
        return plan
    measured = [lineage.last.user_attrs.get("metrics", {}) for lineage in lineages if lineage.state == "complete"]
    labelled = not measured or any("target/mAP" in metrics for metrics in measured)
    confirmed = any(lineage.stage == CONFIRM for lineage in lineages)
    return dataclasses.replace(plan, labelled=labelled, quick=plan.quick and labelled and not confirmed)


def _judges(plan: Plan, lineages: Sequence[Lineage]) -> bool:
    """Whether a verdict was made: something was confirmed, or arms were to be judged."""
    confirmed = any(lineage.stage == CONFIRM and lineage.state == "complete" for lineage in lineages)
    return plan.labelled and (confirmed or (plan.study.is_comparison and bool(plan.study.protocol.judge)))


# MLflow.


def _children(client: MlflowClient, run: Run) -> Iterator[Run]:
    token = None
    while True:
        found = client.search_runs(
            [run.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run.info.run_id}'",
            max_results=1000,
            page_token=token,
        )
        yield from (child for child in found if LINEAGE_TAG in child.data.tags)
        token = found.token
        if not token:
            return


def _record(client: MlflowClient, run: Run, seconds: float | None) -> Record:
    """Return how a training went; of an epoch that was trained twice the last time."""
    clock = {metric.step: metric.timestamp for metric in _history(client, run, CLOCK)}
    measured: dict[int, dict[str, float]] = {step: {} for step in clock}
    for name in sorted(run.data.metrics):
        if name.startswith(AFTER) or "/" not in name:  # what has no stroke is a copy, under a name for MLflow's pages
            continue
        for metric in _history(client, run, name):
            if clock.get(metric.step) == metric.timestamp:
                measured[metric.step][name] = _value(metric)
    epochs = tuple(
        Epoch(number=step, ended_at=clock[step], metrics=metrics) for step, metrics in sorted(measured.items())
    )
    curve = {metric.step: metric.value for metric in _history(client, run, CMC)}
    return Record(epochs=epochs, cmc=tuple(curve[rank] for rank in sorted(curve)), seconds=seconds)


def _history(client: MlflowClient, run: Run, name: str) -> list[Metric]:
    """Return all values of a metric, oldest first."""
    if name not in run.data.metrics:
        return []
    return sorted(client.get_metric_history(run.info.run_id, name), key=lambda metric: metric.timestamp)


def _value(metric: Metric) -> float:
    """Return a value as it was measured: MLflow keeps infinity as the largest number there is."""
    value = float(metric.value)
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _artifacts(client: MlflowClient, run: Run) -> dict[str, str]:
    """Return the study run's texts by name; those that cannot be read are missing."""
    wanted = ("study.json", "verdict.json", "outcome.json", "test_label_readings.json", ARTIFACT, REPLAYS)
    found = {}
    try:
        there = {file.path for file in client.list_artifacts(run.info.run_id)}
    except (MlflowException, OSError):
        there = set()
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            if name in there:
                try:
                    found[name] = Path(client.download_artifacts(run.info.run_id, name, folder)).read_text()
                except (MlflowException, OSError, UnicodeDecodeError):
                    continue
    return found


def _json(kept: Mapping[str, str], name: str) -> Any:
    """Return an artifact's content; None where it is missing or damaged."""
    try:
        return json.loads(kept[name])
    except (KeyError, ValueError):
        return None
