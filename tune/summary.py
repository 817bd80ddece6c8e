"""The result of a study as a person reads it: a table and what it is worth, in plain words."""

from __future__ import annotations

import rich.box
from rich.table import Table
from rich.text import Text

from studies.plan import Plan
from tune.console import percent, points, short, symbol
from tune.outcome import Outcome, Row

TITLES = {"source_only": "source only (control)", "target_bn": "target in BN (control)"}


def table(plan: Plan, outcome: Outcome) -> Table:
    """Return the best trial against the paper's defaults and the controls."""
    result = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title=Text(plan.study.question), title_justify="left")
    result.add_column("setting", no_wrap=True)
    for name in plan.study.space:
        result.add_column(symbol(name), justify="right")
    for title in (f"{outcome.metric.replace('/', chr(10))} %", "Δ\npoints", "target\nmAP %", "target\nrank-1 %"):
        result.add_column(title, justify="right")
    for title, row in _compared(outcome):
        config = plan.control(row.role) if row.role in TITLES else plan.decode(row.params)
        flat = config.flatten()
        shown = [short(flat[name]) for name in plan.study.space]
        value = percent(row.value) if row.state == "complete" else row.state
        difference = points(outcome.difference(row)) if row is not outcome.baseline else ""
        official = [percent(row.metrics.get(key)) for key in ("target/mAP", "target/rank1")]
        result.add_row(title, *shown, value, difference, *official)
    return result


def _compared(outcome: Outcome) -> list[tuple[str, Row]]:
    rows = []
    if outcome.best is not None and outcome.best is not outcome.baseline:
        rows.append((f"best: {outcome.best.name}", outcome.best))
    if outcome.baseline is not None:
        rows.append(("the paper's defaults", outcome.baseline))
    return rows + [(TITLES[row.role], row) for row in outcome.rows if row.role in TITLES]


def sentences(outcome: Outcome) -> list[str]:
    """Return in plain words what the numbers are worth."""
    lines = [
        f"Chosen by {outcome.metric}: labels of held-out target identities were used to choose "
        "(selection.labels = target_val). target/* is the official split, read once per training and used for nothing."
    ]
    if outcome.noise_sd is None:
        lines.append("Seed noise: not known yet, the paper's defaults ran with one seed (n = 1).")
    else:
        lines.append(
            f"Seed noise known so far: the paper's defaults over n = {len(outcome.noise)} seeds have "
            f"sd {100 * outcome.noise_sd:.1f} points of {outcome.metric}."
        )
    searched = sum(row.value is not None for row in outcome.search)
    lines.append(
        f"Every setting was trained with one seed, and the best is the highest of n = {searched}: this confirms "
        "nothing yet. A difference counts only when fresh seeds show it again."
    )
    diverged = [row.name for row in outcome.rows if row.state == "diverged"]
    if diverged:
        lines.append(f"Diverged, and counted: {', '.join(diverged)}.")
    return lines
