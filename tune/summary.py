"""The result of a search as a person reads it: a table and what it is worth, in plain words."""

from __future__ import annotations

import datetime
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rich.box
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from mmfa.config import TrialConfig
from studies.plan import CONFIRM, SEARCH, Plan
from tune import advice, comparison, doctor, provenance, words
from tune.outcomes import Outcome, Row
from tune.wording import percent, points, short, symbol

LABEL_FREE = "label_free/score"
PAGE_WIDTH = 110
REGRET = "Which trial each criterion would have promoted, its target mAP, and what that costs in points"
MANY = 4
"""Dimensions beyond which a row names only those that differ."""
TITLES = {"source_only": "source only (control)", "target_bn": "target in BN (control)"}


@dataclass(frozen=True, slots=True)
class Report:
    """All that a result page tells."""

    plan: Plan
    outcome: Outcome
    verdict: Mapping[str, Any] | None
    """The record of ``verdict.json``."""
    more: Mapping[str, Any]
    """What the search says about itself: regret, fidelity, isolation, boundaries, vetoes."""
    readings: Mapping[str, Any] | None = None
    """How often the official test labels were read, and why."""


def table(plan: Plan, outcome: Outcome) -> Table:
    """Return the best trials against the paper's defaults and the controls, or the arms of a comparison."""
    if plan.study.is_comparison:
        return comparison.table(plan, outcome)
    result = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title=Text(plan.study.question), title_justify="left")
    result.add_column("setting", no_wrap=True)
    result.add_column("n", justify="right")
    many = len(plan.study.space) > MANY
    for name in ["differs from the baseline in"] if many else plan.study.space:
        result.add_column(symbol(name).replace(".", "\n"), justify="left" if many else "right")
    unit = "" if plan.metric == LABEL_FREE else " %"
    for title in (f"{outcome.metric.replace('/', chr(10))}{unit}", f"Δ{'' if not unit else chr(10) + 'points'}"):
        result.add_column(title, justify="right")
    official = ("target/mAP", "target/rank1") if plan.labelled else ()
    for title in ("target\nmAP %", "target\nrank-1 %")[: len(official)]:
        result.add_column(title, justify="right")
    for title, rows in _compared(plan, outcome):
        shown = [short(value) for value in plan.labels_of(_config(plan, rows[0]))]
        shown = [_differing(plan, shown)] if many else shown
        values = [row.value for row in rows if row.value is not None]
        value = _mean(values, plain=not unit) if values else rows[0].state
        title += " (vetoed)" if rows[0].name in outcome.vetoed else ""
        differences = [found for row in rows if (found := outcome.difference(row)) is not None]
        is_baseline = rows[0] is outcome.baseline or rows[0].role == "baseline"
        difference = "" if is_baseline or not differences else statistics.fmean(differences)
        delta = difference if isinstance(difference, str) else f"{difference:+.2f}" if not unit else points(difference)
        tested = [_mean([row.metrics[key] for row in rows if key in row.metrics]) for key in official]
        result.add_row(title, str(len(values)), *shown, value, delta, *tested)
    return result


def markdown(table: Table) -> str:
    """Return a table of the terminal as one of Markdown."""

    def line(cells: Iterable[object]) -> str:
        plain = (cell.plain if isinstance(cell, Text) else str(cell) for cell in cells)
        return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in plain)} |"

    columns = table.columns
    rule = line("---:" if column.justify == "right" else "---" for column in columns)
    rows = zip(*(column.cells for column in columns), strict=True)
    caption = table.caption.plain if isinstance(table.caption, Text) else table.caption
    more = ["", caption] if caption else []
    return "\n".join([line(column.header for column in columns), rule, *map(line, rows), *more])


def _mean(values: Sequence[float], *, plain: bool = False) -> str:
    """Return a mean and, for two values or more, their standard deviation, in percent unless ``plain``."""
    if not values:
        return "–"
    found = [statistics.fmean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{value:.2f}" if plain else f"{100 * value:.1f}" for value in found)


def verdict_table(plan: Plan, verdict: Mapping[str, Any]) -> Table:
    """Return one row per judgement: what fresh seeds say on the official target split."""
    title = "On fresh seeds: difference of target mAP in points"
    result = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    result.add_column("candidate against")
    for name in ("n", "Δ", "95 %", "p adj.", "verdict"):
        result.add_column(name, justify="right", no_wrap=True)
    for one in verdict["judgements"]:
        name = words.title(plan, one["candidate"])
        against = f"{name} against {words.title(plan, one['baseline'])}"
        rows = [(against, one["contrast"], one["p_adjusted"], one["word"])]
        if (aligned := one["alignment"]) is not None:
            rows.append((f"{name} against itself unaligned", aligned, None, ""))
        for title, contrast, p, word in rows:
            interval = contrast["interval"]
            shown = "–" if interval is None else f"{points(interval[0])} … {points(interval[1])}"
            n = f"{contrast['n_candidate']}, {contrast['n_other']}"
            result.add_row(title, n, points(contrast["delta"]), shown, "" if p is None else f"{p:.2g}", word)
    return result


def regret_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per criterion: the trial that it would have promoted, and what that costs in target mAP."""
    result = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title=REGRET, title_justify="left")
    result.add_column("criterion", no_wrap=True)
    for name in ("n", "promotes", "mAP %", "cost", "Spearman"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        rho = "–" if row["rho"] is None else f"{row['rho']:+.2f}"
        cost = "–" if row["cost"] is None else f"{100 * row['cost']:.1f}"
        name = "target/mAP (oracle)" if row["criterion"] == "target/mAP" else row["criterion"]
        result.add_row(name, str(row["n"]), row["promoted"] or "–", percent(row["target"]), cost, rho)
    return result


def _differing(plan: Plan, shown: list[str]) -> str:
    base = [short(value) for value in plan.labels_of(plan.baseline)]
    named = zip(plan.study.space, shown, base, strict=True)
    return ", ".join(f"{symbol(name).rpartition('.')[2]} {value}" for name, value, usual in named if value != usual)


def page(report: Report, *, study_id: str, command: str, commits: list[str], seconds: list[float]) -> str:
    """Return the result as text that stands on its own: what was run, on what, and what came out.

    Args:
        report: What was asked and what came out.
        study_id: The study.
        command: What was typed.
        commits: Of the code that drove the study.
        seconds: Time of each training, its evaluation included.
    """
    plan, outcome = report.plan, report.outcome
    cost = f"{statistics.fmean(seconds):.1f} s a training (n = {len(seconds)}" if seconds else "no training is over"
    cost += f", sd {statistics.stdev(seconds):.1f})" if len(seconds) > 1 else ")" if seconds else ""
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    head = [
        f"{study_id}, {datetime.date.today().isoformat()}: {command}",
        f"{provenance.hardware()}; {versions}; commit {', '.join(commits)}; profile {plan.profile}; {cost}",
    ]
    console = RichConsole(file=io.StringIO(), width=PAGE_WIDTH, highlight=False)
    curves = comparison.curves(plan, outcome) if plan.study.is_comparison else []
    tables = [table(plan, outcome)]
    tables += [verdict_table(plan, report.verdict)] if report.verdict is not None else []
    regret = [regret_table(report.more["regret"])] if report.more.get("regret") else []
    for part in (*map(Text, head), *tables, *map(Text, sentences(report)), *regret, *map(Text, curves)):
        console.print(part)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _config(plan: Plan, row: Row) -> TrialConfig:
    if row.arm == "controls":
        return next(run.config for run in plan.controls if run.role == row.role)
    return plan.decode(row.params, plan.arm(row.arm))


def _compared(plan: Plan, outcome: Outcome) -> list[tuple[str, list[Row]]]:
    """Return what the table compares, with the runs of each: one of a trial, one per seed of baseline and controls."""
    rows: list[tuple[str, list[Row]]] = []
    for arm in plan.arms:
        found = outcome.of_arm(arm.name)
        first = next((row for row in outcome.rows if row.name == f"{arm.name}/0000"), None)
        if not found:
            continue
        best = max([row for row in found if row.name not in outcome.vetoed] or found, key=lambda row: row.value or 0)
        if arm.name != SEARCH:
            rows.append((f"{arm.title}, best of {len(found)}: {best.name}", [best]))
            if first not in (best, None, outcome.baseline) and first is not None:
                rows.append((f"{arm.title}, as the paper has the rest", [first]))
        elif best is not outcome.baseline:
            rows.append((f"best: {best.name}", [best]))
        elif others := [row for row in found if row is not best]:
            next_best = max(others, key=lambda row: row.value or 0)
            rows.append((f"best of the others: {next_best.name}", [next_best]))
    titles = {"baseline": words.title(plan, "baseline"), **TITLES}
    groups = ((title, outcome.control(role)) for role, title in titles.items())
    return rows + [(title, group) for title, group in groups if group]


def answer(report: Report) -> list[str]:
    """Return what was asked, what came out and how sure it is: all that a verdict or a comparison says."""
    plan, outcome = report.plan, report.outcome
    lines = comparison.sentences(plan, outcome, readings=report.readings) if plan.study.is_comparison else []
    if not plan.study.is_comparison or report.verdict is not None:
        lines += words.sentences(plan, outcome, report.verdict, readings=report.readings)
    return lines


def sentences(report: Report) -> list[str]:
    """Return in plain words what the numbers are worth."""
    plan, outcome, more = report.plan, report.outcome, report.more
    lines = answer(report)
    if (fixed := plan.deviations()) and not plan.study.is_comparison:
        said = ", ".join(f"{name} = {short(value)}" for name, value in fixed.items())
        lines.append(f"The baseline is the paper's defaults in the profile {plan.profile} but for {said}.")
    nuisances = [name for name in plan.study.space if plan.study.scientific and name not in plan.study.scientific]
    if nuisances:
        asked = ", ".join(map(symbol, plan.study.scientific))
        lines.append(
            f"The question is about {asked}; {', '.join(map(symbol, nuisances))} were tuned for fairness only."
        )
    lines += more.get("boundaries", [])
    lines += [f"{name} was vetoed: {'; '.join(reasons)}." for name, reasons in more.get("vetoed", {}).items()]
    if told := advice.fidelity_sentence(more.get("fidelity", {})):
        lines.append(told)
    if dead := [row.name for row in outcome.rows if _is_dead(plan, row)]:
        lines.append(f"{doctor.DEAD}: {', '.join(dead)}.")
    for state, said in (("diverged", "Diverged, and counted"), ("pruned", "Ended early by [pruning], and counted")):
        if names := [row.name for row in outcome.rows if row.state == state]:
            lines.append(f"{said}: {', '.join(names)}.")
    return lines


def _is_dead(plan: Plan, row: Row) -> bool:
    in_search = row.arm not in ("controls", CONFIRM)
    return in_search and row.metrics.get("mmd/plateau") == 1 and doctor.aligns(_config(plan, row).flatten())
