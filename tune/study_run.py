"""A study's own run in MLflow: its description, datasets and files, and how its trainings are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.types import ColSpec, DataType, Schema

from mmfa.config import TrialConfig
from studies import library
from studies.plan import Plan
from studies.spec import CONTROLS, Choices, Range, Study
from tune import summary, words
from tune.ledger import Lineage
from tune.session import Session
from tune.view import LOG
from tune.wording import short, symbol

COLUMNS = (
    ("path", DataType.string),
    ("pid", DataType.long),
    ("camid", DataType.long),
    ("split", DataType.string),
    ("image", DataType.binary),
)
"""Of an image store."""


def setting(plan: Plan, lineage: Lineage, config: TrialConfig) -> dict[str, Any]:
    """Return what tells a training from the others of its study: what is searched, or arm and seed."""
    named = dict(zip(map(symbol, plan.shown), plan.labels_of(config), strict=True))
    return {"arm": lineage.role, **named} if plan.study.is_comparison else named


def axes(plan: Plan) -> dict[str, str]:
    """Return the name of each setting by that of its axis: MLflow's are linear, so logarithmic ranges get a log.

    Not those that hold 0 too, which would have no place on it.
    """
    space = plan.study.space
    logs = {symbol(name) for name, one in space.items() if isinstance(one, Range) and one.log and not one.zero}
    names = [*(["arm"] if plan.study.is_comparison else []), *map(symbol, plan.shown)]
    return {(f"{LOG}{name}" if name in logs else name): name for name in names}


def note(session: Session, artifacts: Mapping[str, Any] | None = None) -> str:
    """Return the description of the study's run, as Markdown.

    Args:
        session: The study.
        artifacts: What a study that is over leaves on its run, by name; None where trainings are left to do.
    """
    told = ["*No result yet: trainings are left to do.*"]
    if artifacts is not None:
        plan, outcome = session.plan, session.outcome()
        verdict, readings = artifacts.get("verdict.json"), artifacts.get("test_label_readings.json")
        lines = summary.answer(summary.Report(plan, outcome, verdict, {}, readings))
        parts = [line.partition(": ") for line in lines if not line.startswith("Asked: ")]  # the question stands above
        told = [f"- **{head}:** {rest}" if rest else f"- {head}" for head, _, rest in parts]
        told += ["", summary.markdown(summary.table(plan, outcome))]
    table = ["| | |", "|---|---|", *(f"| {what} | {said} |" for what, said in _how(session).items())]
    command = ["Run it again, or go on with it:", "", f"    {words.reproducing(session.plan, session.request.command)}"]
    return "\n".join([f"**{session.plan.study.question}**", "", *told, "", *table, "", *command])


def _how(session: Session) -> dict[str, str]:
    """Return how the study asks, by what it tells."""
    plan, study = session.plan, session.plan.study
    fixed = ", ".join(f"{symbol(name)} = {short(value)}" for name, value in plan.deviations().items())
    pairs = dict.fromkeys(f"{arm.config.data.source} → {arm.config.data.target}" for arm in plan.arms)
    rows = {"pair": "; ".join(pairs), "profile": plan.profile + (f"; fixed: {fixed}" if fixed else "")}
    if study.is_comparison:
        rows["compared"] = f"{', '.join(arm.name for arm in plan.arms)}; {plan.num_trials} trainings, nothing is chosen"
    else:
        space = "; ".join(_dimension(study, name) for name in study.space)
        arms = f" in each of {len(plan.arms)} arms" if len(plan.arms) > 1 else ""
        rows["searched"] = f"{space}; {plan.trials} trials{arms}, the first of them the baseline"
        rows["objective"] = f"`{plan.metric}`: {words.LABELS[plan.labels]}"
        rows["controls"] = f"without alignment: {', '.join(CONTROLS)}"
    if plan.judges:
        rows["judged by"] = (
            f"`target/mAP` after the last epoch, on {plan.confirm_seeds} fresh seeds of each setting; differences "
            f"below {study.protocol.delta_min:g} points do not matter"
        )
    rows["data"] = ", ".join(f"{name} `{fingerprint}`" for name, fingerprint in session.stores.fingerprints.items())
    rows["files"] = "`study.toml`, `resolved.json`; at the end `result.txt`, `outcome.json` and what was judged"
    return rows


def _dimension(study: Study, name: str) -> str:
    dimension = study.space[name]
    if isinstance(dimension, Choices):
        return f"{symbol(name)} among {', '.join(map(str, dimension.labels()))}"
    zero = " or 0" if dimension.zero else ""
    return f"{symbol(name)} {dimension.low:g} … {dimension.high:g}{' (log)' if dimension.log else ''}{zero}"


def files(session: Session) -> dict[str, str]:
    """Return the study as it was asked, which ``--study`` takes again, and as it was resolved."""
    plan = session.plan
    resolved = plan.identity(fingerprints=session.stores.fingerprints) | {
        "trials": plan.trials,
        "confirm_seeds": plan.confirm_seeds,
        "command": session.request.command,
    }
    return {"study.toml": _toml(plan.study), "resolved.json": json.dumps(resolved, indent=1, ensure_ascii=False)}


def _toml(study: Study) -> str:
    if study.name in library.names() and study.origin == f"{study.name}.toml":
        return (resources.files("studies") / study.origin).read_text(encoding="utf-8")
    return Path(study.origin).read_text(encoding="utf-8")


def datasets(session: Session) -> list[DatasetInput]:
    """Return the datasets with their fingerprints as MLflow knows datasets; the context is ``source`` or ``target``."""
    roles: dict[str, list[str]] = {name: [] for name in session.plan.datasets()}
    for config in session.plan.configs():
        for role, name in (("source", config.data.source), ("target", config.data.target)):
            roles[name] += [] if role in roles[name] else [role]
    return [
        DatasetInput(_dataset(session, name), [InputTag("mlflow.data.context", ", ".join(found))])
        for name, found in roles.items()
    ]


def _dataset(session: Session, name: str) -> Dataset:
    from mmfa.data.store import open_store

    path = session.stores.paths[name]
    store = open_store(path)
    domain = store.domain
    counts = {f"{split} images": int((domain.splits == split).sum()) for split in ("train", "query", "gallery")}
    people = len(set(domain.pids[domain.pids > 0].tolist()))
    profile = {"images": len(domain.paths), "identities": people, "cameras": len(set(domain.camids.tolist())), **counts}
    return Dataset(
        name=name,
        digest=session.stores.fingerprints[name],
        source_type="local",
        source=json.dumps({"uri": str(path)}),
        schema=json.dumps({"mlflow_colspec": Schema([ColSpec(kind, column) for column, kind in COLUMNS]).to_dict()}),
        profile=json.dumps(profile),
    )
