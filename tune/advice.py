"""What a finished search says about its own space: settings at the edge, each factor by itself, pruning, selection."""

from __future__ import annotations

import math
from typing import Any

from studies.plan import Plan
from studies.spec import ON, Choices, Range
from tune import fidelity
from tune.outcomes import Outcome, Row
from tune.wording import short, symbol

EDGE = 0.05
"""Share of a range, in its own scale, that counts as its edge."""
BINS = 4
"""Equal parts of a range, in its own scale, in which a factor is looked at by itself."""


def place(dimension: Range, value: float) -> float:
    """Return where a value lies in its range, from 0 to 1, on the scale that is searched."""
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def boundaries(plan: Plan, best: Row | None) -> list[str]:
    """Return a sentence for each dimension of which the best trial lies at the edge; the baseline's are no finding."""
    if best is None or best.name.endswith("/0000"):
        return []
    lines = []
    for name, dimension in plan.study.space.items():
        value = best.params.get(name)
        if isinstance(dimension, Choices) or not isinstance(value, int | float):
            continue
        at = place(dimension, value)
        if EDGE <= at <= 1 - EDGE:
            continue
        end = "lower" if at < EDGE else "upper"
        lines.append(
            f"The best {symbol(name)}, {short(float(value))}, lies at the {end} edge of its range "
            f"[{dimension.low:g}, {dimension.high:g}]: widen it before you believe that nothing beyond is better."
        )
    return lines


def isolation(plan: Plan, outcome: Outcome) -> dict[str, list[dict[str, Any]]]:
    """Return for each dimension, part by part, the best trial over all the others, and of how many."""
    result = {}
    for name, dimension in plan.study.space.items():
        parts: dict[str, list[Row]] = {}
        for row in outcome.search:
            off = row.params.get(f"{name}{ON}") is False
            if row.value is not None and row.name not in outcome.vetoed and (off or name in row.params):
                part = "0: off" if off else _part(dimension, row.params[name])
                parts.setdefault(part, []).append(row)
        result[name] = [
            {"part": part, "n": len(rows), "best": max(row.value or 0 for row in rows), "trial": _best(rows).name}
            for part, rows in sorted(parts.items())
        ]
    return result


def _best(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: row.value or 0)


def _part(dimension: Range | Choices, value: Any) -> str:
    if isinstance(dimension, Choices):
        return str(value)
    number = min(BINS - 1, int(BINS * place(dimension, value)))
    ends = [_at(dimension, (number + step) / BINS) for step in (0, 1)]
    return f"{number + 1}: {ends[0]:.3g} to {ends[1]:.3g}"


def _at(dimension: Range, share: float) -> float:
    if dimension.log:
        return float(dimension.low * (dimension.high / dimension.low) ** share)
    return dimension.low + share * (dimension.high - dimension.low)


def curves(outcome: Outcome, num_epochs: int) -> list[list[float]]:
    """Return the objective after each epoch of every full trial of the search."""
    found = [[row.curve[epoch] for epoch in sorted(row.curve)] for row in outcome.search if row.value is not None]
    return [curve for curve in found if len(curve) == num_epochs]


def fidelity_report(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """Return Kendall's τ of each epoch with the last, and the grace period that follows; empty without curves."""
    points = fidelity.fidelity(curves(outcome, plan.baseline.optim.num_epochs))
    if not points:
        return {}
    rows = [{"epoch": p.epoch, "tau": p.tau, "low": p.low, "high": p.high} for p in points]
    return {"n": points[0].n, "grace_period": fidelity.recommended_grace(points), "epochs": rows}


def fidelity_sentence(report: dict[str, Any]) -> str:
    """Return in plain words from which epoch on pruning is safe."""
    if not report:
        return ""
    if (n := report["n"]) < fidelity.MIN_TRIALS:
        return f"Fidelity: fewer than {fidelity.MIN_TRIALS} full trials (n = {n}) recommend nothing about pruning."
    shown = [row for row in report["epochs"][:-1] if row["tau"] is not None]  # the last one agrees with itself
    picks = [shown[len(shown) * share // 4] for share in (1, 2, 3)] if len(shown) > 3 else shown
    taus = ", ".join(f"epoch {p['epoch']}: {p['tau']:.2f} ({p['low']:.2f} to {p['high']:.2f})" for p in picks)
    grace = report["grace_period"]
    if grace is not None:
        advice = f"[pruning] grace_period = {grace} is safe by this."
    else:
        advice = "No epoch before the last is safe to prune at."
    return (
        f"Fidelity (Kendall's τ of the objective with the last epoch, n = {n} trials, 95 % interval): {taus}. {advice}"
    )
