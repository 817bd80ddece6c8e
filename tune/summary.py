"""The result of a search as a person reads it: a table and what it is worth, in plain words."""

from __future__ import annotations

import datetime
import io
import statistics

import rich.box
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from mmfa.config import TrialConfig
from studies.plan import SEARCH, Plan
from tune import comparison, provenance
from tune.outcome import Outcome, Row
from tune.wording import percent, points, short, symbol

PAGE_WIDTH = 110
MANY = 4
"""Dimensions beyond which a row names only those that differ."""
TITLES = {"source_only": "source only (control)", "target_bn": "target in BN (control)"}


def table(plan: Plan, outcome: Outcome) -> Table:
    """Return the best trials against the paper's defaults and the controls, or the arms of a comparison."""
    if plan.study.is_comparison:
        return comparison.table(plan, outcome)
    result = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title=Text(plan.study.question), title_justify="left")
    result.add_column("setting", no_wrap=True)
    many = len(plan.study.space) > MANY
    for name in ["differs from the baseline in"] if many else plan.study.space:
        result.add_column(symbol(name).replace(".", "\n"), justify="left" if many else "right")
    for title in (f"{outcome.metric.replace('/', chr(10))} %", "Δ\npoints", "target\nmAP %", "target\nrank-1 %"):
        result.add_column(title, justify="right")
    for title, row in _compared(plan, outcome):
        shown = [short(value) for value in plan.labels_of(_config(plan, row))]
        shown = [_differing(plan, shown)] if many else shown
        value = percent(row.value) if row.state == "complete" else row.state
        difference = points(outcome.difference(row)) if row is not outcome.baseline else ""
        official = [percent(row.metrics.get(key)) for key in ("target/mAP", "target/rank1")]
        result.add_row(title, *shown, value, difference, *official)
    return result


def _differing(plan: Plan, shown: list[str]) -> str:
    base = [short(value) for value in plan.labels_of(plan.baseline)]
    named = zip(plan.study.space, shown, base, strict=True)
    return ", ".join(f"{symbol(name).rpartition('.')[2]} {value}" for name, value, usual in named if value != usual)


def page(plan: Plan, outcome: Outcome, *, study_id: str, command: str, commits: list[str], seconds: list[float]) -> str:
    """Return the result as text that stands on its own: what was run, on what, and what came out.

    Args:
        plan: What was asked.
        outcome: What came out.
        study_id: The study.
        command: What was typed.
        commits: Of the code that drove the study.
        seconds: Time of each training, its evaluation included.
    """
    cost = f"{statistics.fmean(seconds):.1f} s a training (n = {len(seconds)}" if seconds else "no training is over"
    cost += f", sd {statistics.stdev(seconds):.1f})" if len(seconds) > 1 else ")" if seconds else ""
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    head = [
        f"{study_id}, {datetime.date.today().isoformat()}: {command}",
        f"{provenance.hardware()}; {versions}; commit {', '.join(commits)}; profile {plan.profile}; {cost}",
    ]
    console = RichConsole(file=io.StringIO(), width=PAGE_WIDTH, highlight=False)
    curves = comparison.curves(plan, outcome) if plan.study.is_comparison else []
    for part in (*map(Text, head), table(plan, outcome), *map(Text, [*sentences(plan, outcome), *curves])):
        console.print(part)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _config(plan: Plan, row: Row) -> TrialConfig:
    return plan.control(row.role) if row.arm == "controls" else plan.decode(row.params, plan.arm(row.arm))


def _compared(plan: Plan, outcome: Outcome) -> list[tuple[str, Row]]:
    rows = []
    for arm in plan.arms:
        found = outcome.of_arm(arm.name)
        first = next((row for row in outcome.rows if row.name == f"{arm.name}/0000"), None)
        if not found:
            continue
        best = max(found, key=lambda row: row.value or 0)
        if arm.name != SEARCH:
            rows.append((f"{arm.title}, best of {len(found)}: {best.name}", best))
            rows += [(f"{arm.title}, as the paper has the rest", first)] if first not in (best, None) else []
        elif best is not outcome.baseline:
            rows.append((f"best: {best.name}", best))
        elif others := [row for row in found if row is not best]:
            next_best = max(others, key=lambda row: row.value or 0)
            rows.append((f"best of the others: {next_best.name}", next_best))
    if outcome.baseline is not None and outcome.baseline.arm == SEARCH:
        rows.append(("the baseline" if plan.deviations() else "the paper's defaults", outcome.baseline))
    return rows + [(TITLES[row.role], row) for row in outcome.rows if row.arm == "controls"]


def sentences(plan: Plan, outcome: Outcome) -> list[str]:
    """Return in plain words what the numbers are worth."""
    described = comparison.sentences if plan.study.is_comparison else _search_sentences
    lines = described(plan, outcome)
    diverged = [row.name for row in outcome.rows if row.state == "diverged"]
    if diverged:
        lines.append(f"Diverged, and counted: {', '.join(diverged)}.")
    return lines


def _search_sentences(plan: Plan, outcome: Outcome) -> list[str]:
    lines = [
        f"Chosen by {outcome.metric}: labels of held-out target identities were used to choose "
        "(selection.labels = target_val). target/* is the official split, read once per training and used for nothing."
    ]
    if fixed := plan.deviations():
        said = ", ".join(f"{name} = {short(value)}" for name, value in fixed.items())
        lines.append(f"The baseline is the paper's defaults in the profile {plan.profile} but for {said}.")
    if plan.arms[0].name == SEARCH and outcome.noise_sd is None:
        lines.append("Seed noise: not known yet, the baseline ran with one seed (n = 1).")
    elif outcome.noise_sd is not None:
        lines.append(
            f"Seed noise known so far: the baseline over n = {len(outcome.noise)} seeds have "
            f"sd {100 * outcome.noise_sd:.1f} points of {outcome.metric}."
        )
    searched = sum(row.value is not None for row in outcome.search)
    if outcome.best is not None and outcome.best is outcome.baseline:
        lines.append("No other setting came out above the baseline.")
    arms = f" in {len(plan.arms)} arms with equal budgets" if len(plan.arms) > 1 else ""
    lines.append(
        f"Every setting was trained with one seed, and the best is the highest of n = {searched}{arms}: this confirms "
        "nothing yet. A difference counts only when fresh seeds show it again."
    )
    return lines
