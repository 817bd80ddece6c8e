"""From the confirmations in the ledger to ``verdict.json``: what was asked, found, and how sure it is."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmfa.errors import CheckpointError
from studies.plan import Plan, digest
from tune import confirm, power, provenance, verdict
from tune.job import read_result
from tune.outcomes import Outcome, Row
from tune.session import Session

SCHEMA = 1
"""Of ``verdict.json``; docs/verdicts.md describes it."""
ALPHA = 0.05
JUDGED = "target/mAP"
"""What verdicts are made on: the official target split, after the last epoch."""
LOOKS = "looks"


def judge(session: Session, outcome: Outcome) -> dict[str, Any] | None:
    """Return the record of ``verdict.json``, or None for a study that judges nothing; the look is counted."""
    plan = session.plan
    if not plan.labelled or not (plan.judges or plan.study.protocol.judge):
        return None
    groups = _challenges(session, outcome)
    if not any(groups.values()):
        return None
    seeds = plan.trials if plan.study.is_comparison else plan.confirm_seeds
    looks = _count_look(session, seeds)
    session.count_reading(f"verdict on {seeds} seeds; judged")
    minimum = plan.study.protocol.delta_min / 100
    found = {
        against: verdict.judge(challenges, delta_min=minimum, alpha=ALPHA, looks=power.looks_factor(looks))
        for against, challenges in groups.items()
        if challenges
    }
    judged = [
        _judgement(session, outcome, against, _without_diverged(plan, outcome, one), len(found[against]))
        for against in found
        for one in found[against]
    ]
    return _frame(session, outcome) | {
        "looks": looks,
        "looks_factor": power.looks_factor(looks),
        "judgements": judged,
        "power": [_power(plan, outcome, against, len(found[against]), looks) for against in found],
        "readings": counted(session),
    }


def counted(session: Session) -> dict[str, Any]:
    """Return how often the official test labels were read, by reason."""
    reasons = Counter(entry["why"] for entry in session.readings())
    return {"total": sum(reasons.values()), "why": dict(reasons)}


def fingerprint(plan: Plan) -> str:
    """Return what two verdicts have in common that may be compared: how they were judged, not what was searched."""
    return digest({"metric": JUDGED, "alpha": ALPHA, "delta_min": plan.study.protocol.delta_min, "epoch": "last"})


def _frame(session: Session, outcome: Outcome) -> dict[str, Any]:
    """Return what surrounds the judgements: the registration, the data, the search."""
    plan, study = session.plan, session.plan.study
    attrs = session.registry.study.user_attrs
    registered = {
        "at": attrs["registered_at"],
        "study": session.study_id,
        "protocol": study.protocol.model_dump() | {"confirm_seeds": _first(attrs, "confirm_seeds")},
        "trials": _first(attrs, "trials"),
        "direction": "higher is better",
        "objective": study.objective.model_dump(exclude_none=True),
        "amendments": attrs.get("amendments", []),
    }
    return {
        "schema": SCHEMA,
        "study": session.study_id,
        "question": study.question,
        "written_at": time.time(),
        "registered": registered,
        "judged_by": {"metric": JUDGED, "fingerprint": fingerprint(plan), "alpha": ALPHA},
        "labels": {"selection": plan.labels, "objective": plan.metric},
        "data": {"fingerprints": session.stores.fingerprints, "profile": plan.profile},
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "commits": list(attrs.get("commits", [])),
        "seed_noise": _noise(plan, outcome),
        "controls": {role: _spread(outcome.control(role)) for role in ("baseline", "source_only", "target_bn")},
        "vetoed": outcome.vetoed,
    }


def _first(attrs: Mapping[str, Any], name: str) -> int:
    """Return a number as it was registered, before any amendment."""
    changes = [change["from"] for change in attrs.get("amendments", []) if change["what"] == name]
    return int([*changes, attrs.get(name, 0)][0])


def _noise(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    sd = outcome.noise_sd
    trials = len(outcome.search)
    largest = None if sd is None or not trials else power.expected_max_noise(sd, trials)
    return {"metric": plan.metric, "n": len(outcome.noise), "sd": sd, "trials": trials, "expected_max": largest}


def _spread(rows: Sequence[Row]) -> dict[str, Any]:
    """Return n, mean and sd of the official target mAP."""
    values = [row.metrics[JUDGED] for row in rows if JUDGED in row.metrics]
    mean = statistics.fmean(values) if values else None
    return {"n": len(values), "mean": mean, "sd": statistics.stdev(values) if len(values) > 1 else None}


def _count_look(session: Session, seeds: int) -> int:
    """Return how many numbers of seeds have been judged so far, this one included."""
    study = session.registry.study
    looks = study.user_attrs.get(LOOKS, [])
    if seeds not in looks:
        looks = [*looks, seeds]
        study.set_user_attr(LOOKS, looks)
    return len(looks)


def _challenges(session: Session, outcome: Outcome) -> dict[str, list[verdict.Challenge]]:
    """Return the challenges by what they are against: ``baseline``, ``champion``, ``arms``; Holm counts within each."""
    plan = session.plan
    if plan.study.is_comparison:
        return {"arms": _between_arms(session, outcome)}
    settled = confirm.read(session.registry)
    assert settled is not None, "confirmations were settled before they ran"
    runs = {name: _runs(session, name, confirm.of_setting(outcome, name)) for name in settled.settings}
    groups = {confirm.BASELINE: _against(runs, settled, confirm.BASELINE)}
    if settled.champion not in ("", confirm.BASELINE):
        groups[confirm.CHAMPION] = _against(runs, settled, settled.champion)
    pairs = [[settled.arms.get(name, "") for name in pair] for pair in plan.study.protocol.judge]
    groups["arms"] = [
        verdict.Challenge(candidate=one, baseline=other)
        for pair in pairs
        if (one := runs.get(pair[0])) is not None and (other := runs.get(pair[1])) is not None
    ]
    return groups


def _against(runs: dict[str, verdict.Runs | None], settled: confirm.Confirmed, other: str) -> list[verdict.Challenge]:
    baseline = runs.get(other)
    return [
        verdict.Challenge(candidate=candidate, baseline=baseline, matched=runs.get(name + confirm.MATCHED))
        for name in settled.candidates
        if name != other and (candidate := runs[name]) is not None and baseline is not None
    ]


def _between_arms(session: Session, outcome: Outcome) -> list[verdict.Challenge]:
    result = []
    for pair in dict.fromkeys(arm.pair for arm in session.plan.arms):
        arms = {arm.row: arm for arm in session.plan.arms if arm.pair == pair}
        for names in session.plan.study.protocol.judge:
            one, other = (_runs(session, arms[name].name, outcome.of_arm(arms[name].name)) for name in names)
            if one is not None and other is not None:
                result.append(verdict.Challenge(candidate=one, baseline=other))
    return result


def _runs(session: Session, name: str, rows: Sequence[Row]) -> verdict.Runs | None:
    """Return the runs of a setting, with the AP of each identity where all records have it."""
    if not rows:
        return None
    lineages = {lineage.name: lineage for lineage in session.lineages()}
    identities = [_identities(session, row.name) for row in rows]
    known = [[(pid, number) for pid, _, number in one] for one in identities]
    same = bool(known[0]) and all(one == known[0] for one in known)
    sums = [[total for _, total, _ in one] for one in identities] if same else [[] for _ in rows]
    return verdict.Runs(
        name=name,
        seeds=tuple(session.config_of(lineages[row.name]).run.seed for row in rows),
        mAP=tuple(row.metrics[JUDGED] for row in rows),
        identity_ap_RI=np.array(sums, dtype=np.float64).reshape(len(rows), -1),
        identity_queries_I=np.array([number for _, number in known[0]] if same else [], dtype=np.int64),
    )


def _identities(session: Session, name: str) -> list[tuple[int, float, int]]:
    try:
        record = read_result(session.folder_of(name))
    except CheckpointError:  # its mAP is in the ledger; without the identities there is a test but no interval
        return []
    return [(pid, total, number) for pid, total, number in record["test"]["retrieval"]["target"].get("identities", [])]


def _judgement(session: Session, outcome: Outcome, against: str, one: verdict.Judgement, num: int) -> dict[str, Any]:
    """Return a judgement with its setting and, for one that was searched, what became of its score."""
    record = one.to_json() | {"against": against, "challenges": num, "setting": None, "search": None}
    settled = confirm.read(session.registry)
    if session.plan.study.is_comparison or settled is None:
        return record
    record["setting"] = confirm.params_of(session.plan, settled.settings[one.candidate])
    row = next((row for row in outcome.search if confirm.setting_of(row) == one.candidate), None)
    confirmed = [run.value for run in confirm.of_setting(outcome, one.candidate) if run.value is not None]
    if row is None or row.value is None or not confirmed:
        return record
    best = max((other.metrics.get(JUDGED, 0.0) for other in outcome.search), default=0.0)
    record["search"] = {
        "trial": row.name,
        "metric": session.plan.metric,
        "score": row.value,
        "confirmed": statistics.fmean(confirmed),
        "confirmed_n": len(confirmed),
        "shrinkage": row.value - statistics.fmean(confirmed),
        "oracle_gap": best - row.metrics.get(JUDGED, best),
    }
    return record


def _without_diverged(plan: Plan, outcome: Outcome, one: verdict.Judgement) -> verdict.Judgement:
    """Take the word back where a run of either side diverged: those that did not are no fair sample of the setting."""

    def count(name: str) -> int:
        if plan.study.is_comparison:
            return sum(row.arm == name and row.state == "diverged" for row in outcome.rows)
        return confirm.diverged(outcome, name)

    lost = {name: count(name) for name in (one.candidate, one.baseline)}
    if not any(lost.values()):
        return one
    said = " and ".join(f"{number} of {name}" for name, number in lost.items() if number)
    reason = f"Fresh seeds diverged, {said}: the others are no fair sample of the setting."
    return dataclasses.replace(one, word="UNDETERMINED", reason=reason, seeds_needed=None)


def _power(plan: Plan, outcome: Outcome, against: str, num: int, looks: int) -> dict[str, Any]:
    """Return the chance of BEATS at the planned effect and the noise seen: of the baseline's runs, or of the arms'."""
    effect = plan.study.protocol.planned_effect / 100
    seeds = plan.trials if plan.study.is_comparison else plan.confirm_seeds
    by_setting: dict[str, list[float]] = {}
    for row in outcome.rows:
        if JUDGED in row.metrics and (plan.study.is_comparison or row.arm == "confirm"):
            by_setting.setdefault(row.role, []).append(row.metrics[JUDGED])
    variances = [statistics.variance(values) for values in by_setting.values() if len(values) > 1]
    sd = statistics.fmean(variances) ** 0.5 if variances else 0.0
    chance = None
    if sd > 0:
        least = plan.study.protocol.delta_min / 100
        alpha = ALPHA / power.looks_factor(looks)
        chance = power.power(delta=effect, sd=sd, num_seeds=seeds, num_challenges=num, delta_min=least, alpha=alpha)
    runs = sum(map(len, by_setting.values()))
    more = {"settings": len(variances), "runs": runs, "seeds": seeds, "challenges": num, "power": chance}
    return {"against": against, "effect": effect, "sd": sd, **more}
