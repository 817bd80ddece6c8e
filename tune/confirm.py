"""Confirmation: which settings go on from the search, and the runs on fresh seeds that judge them.

Which settings those are is written into the ledger once, before the first of them runs: a study that is taken up again,
or that is given more seeds, goes on with the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mmfa.config import TrialConfig
from studies.plan import CONFIRM, Fixed, Plan
from tune.ledger import StageLedger
from tune.outcomes import Outcome, Row

BASELINE, CHAMPION = "baseline", "champion"
MATCHED = "-matched"
"""Behind a setting's name: the same without alignment, its control."""
WITHOUT_ALIGNMENT = {"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0}
ATTRIBUTE = "confirm"
"""Attribute of the study in the ledger that holds what is confirmed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The registered model's champion, as far as it can be challenged."""

    version: str
    config: TrialConfig
    of: str
    """The study that made it champion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """What goes on from the search."""

    settings: dict[str, TrialConfig]
    """By name: ``baseline``, ``search-0006``, ``search-0006-matched``; ``champion`` where one stands that none of them
    is."""
    champion: str
    """The setting that the standing champion has; "" where none stands."""
    champion_version: str
    arms: dict[str, str]
    """The setting that stands for each arm: its best."""

    @property
    def candidates(self) -> list[str]:
        """The settings that challenge the baseline."""
        fixed = (BASELINE, CHAMPION)
        return [name for name in self.settings if name not in fixed and not name.endswith(MATCHED)]

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :func:`read` reads back."""
        settings = {name: config.to_json() for name, config in self.settings.items()}
        more = {"champion": self.champion, "champion_version": self.champion_version, "arms": self.arms}
        return {"settings": settings, **more}


def setting_of(row: Row) -> str:
    """Return the name of the setting of a trial: ``search-0006``."""
    return row.name.replace("/", "-")


def ranked(plan: Plan, outcome: Outcome) -> list[Row]:
    """Return the trials that may be chosen, best first by the objective, each setting once."""
    allowed = [row for row in outcome.search if row.value is not None and row.name not in outcome.vetoed]
    found: dict[str, Row] = {}
    for row in sorted(allowed, key=lambda row: -(row.value or 0)):
        found.setdefault(str(seedless(_config(plan, row))), row)
    return list(found.values())


def shortlist(plan: Plan, outcome: Outcome) -> list[Row]:
    """Return the best trials by the objective that pass the guards, best first; with arms, the best of each.

    The baseline's own setting is no candidate: it is what they challenge.
    """
    own = seedless(plan.baseline)
    rows = ranked(plan, outcome)
    if len(plan.arms) > 1:
        firsts = {row.arm: row for row in reversed(rows)}
        return [row for row in rows if firsts[row.arm] is row and seedless(_config(plan, row)) != own]
    return [row for row in rows if seedless(_config(plan, row)) != own][: plan.study.protocol.shortlist]


def best_of_arms(plan: Plan, outcome: Outcome) -> dict[str, str]:
    """Return the setting that stands for each arm: its best, which may be the baseline itself."""
    firsts = {row.arm: row for row in reversed(ranked(plan, outcome))}
    own = seedless(plan.baseline)
    return {arm: BASELINE if seedless(_config(plan, row)) == own else setting_of(row) for arm, row in firsts.items()}


def _config(plan: Plan, row: Row) -> TrialConfig:
    return plan.decode(row.params, plan.arm(row.arm))


def read(registry: StageLedger) -> Confirmed | None:
    """Return what is confirmed, or None before that is settled."""
    known = registry.study.user_attrs.get(ATTRIBUTE)
    if known is None:
        return None
    settings = {name: TrialConfig.from_json(text) for name, text in known["settings"].items()}
    names = ("champion", "champion_version", "arms")
    return Confirmed(settings=settings, **{name: known[name] for name in names})


def settle(registry: StageLedger, plan: Plan, outcome: Outcome, champion: Standing | None) -> Confirmed:
    """Settle what is confirmed and write it down; what was confirmed before stays, so that every look counts."""
    before = read(registry)
    settings = dict(before.settings) if before else {BASELINE: plan.baseline}
    for row in shortlist(plan, outcome):
        config = _config(plan, row)
        if any(seedless(config) == seedless(known) for known in settings.values()):
            continue
        settings[setting_of(row)] = config
        if (matched := config.with_overrides(WITHOUT_ALIGNMENT)) != config:
            settings[setting_of(row) + MATCHED] = matched
    name, version = (before.champion, before.champion_version) if before else ("", "")
    if champion is not None and before is None:
        version = champion.version
        name = next((known for known, config in settings.items() if seedless(config) == seedless(champion.config)), "")
        if not name:
            name, settings[CHAMPION] = CHAMPION, champion.config
    arms = best_of_arms(plan, outcome)
    settled = Confirmed(settings=settings, champion=name, champion_version=version, arms=arms)
    if before is None or settled != before:
        registry.study.set_user_attr(ATTRIBUTE, settled.to_json())
    return settled


def seedless(config: TrialConfig) -> dict[str, Any]:
    """Return a config's fields but its seed."""
    return {name: value for name, value in config.flatten().items() if name != "run.seed"}


def runs(plan: Plan, confirmed: Confirmed) -> list[Fixed]:
    """Return every setting with every fresh seed, seed by seed: an unfinished stage compares like with like."""
    if not confirmed.candidates:
        return []
    return [
        Fixed(name=f"{name}-s{seed}", role=name, config=config.with_overrides({"run.seed": seed}))
        for seed in plan.fresh_seeds
        for name, config in confirmed.settings.items()
    ]


def diverged(outcome: Outcome, name: str) -> int:
    """Return how many confirmations of a setting diverged."""
    return sum(row.arm == CONFIRM and row.role == name and row.state == "diverged" for row in outcome.rows)


def of_setting(outcome: Outcome, name: str) -> list[Row]:
    """Return the confirmations of a setting that have a result."""
    return [row for row in outcome.rows if row.arm == CONFIRM and row.role == name and row.value is not None]


def params_of(plan: Plan, config: TrialConfig) -> dict[str, Any]:
    """Return what a setting has in the fields that the study searches."""
    flat = config.flatten()
    return {name: json.loads(json.dumps(flat[name])) for name in plan.study.space}
