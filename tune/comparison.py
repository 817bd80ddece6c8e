"""A comparison of arms over seeds as a person reads it: means, spreads, and the published numbers beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import rich.box
from rich.table import Table
from rich.text import Text

from studies.plan import SPLIT_SETS, Arm, Plan
from tune.outcomes import Outcome, Spread, spread
from tune.wording import percent
from tune.words import read_times

OURS = {"target_val/mAP": "val mAP", "target/mAP": "mAP", "target/rank1": "rank-1", "mmd/kernel_liveness": "alive"}
"""Metrics of the table and their titles; accuracies in percent."""
SHARE = "grad_share/mdal"
CURVE = ("rank1", "rank5", "rank10", "mAP")
"""What Tables 2 and 3 print."""


def table(plan: Plan, outcome: Outcome) -> Table:
    """Return one row per arm, with published numbers where the study has them, grouped by pair."""
    result = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title=Text(plan.study.question), title_justify="left")
    result.add_column("arm", no_wrap=True)
    result.add_column("n", justify="right")
    metrics = [name for name in OURS if spread(outcome.search, name) is not None]
    for name in metrics:
        result.add_column(OURS[name] if name.startswith("mmd/") else f"{OURS[name]} %", justify="right")
    result.add_column("λ3 share", justify="right")
    published = _published(plan)
    for title, _ in published:
        result.add_column(title, justify="right")
    for pair in dict.fromkeys(arm.pair for arm in plan.arms):
        arms = [arm for arm in plan.arms if arm.pair == pair]
        if len(arms) < len(plan.arms):
            result.add_row(Text(pair.replace(" to ", " → "), "bold"))
        for arm in arms:
            rows = outcome.of_arm(arm.name)
            values = [_cell(spread(rows, name), name) for name in metrics]
            share = spread(rows, SHARE)
            paper = [_number(numbers(plan, pair, arm.row, source)) for _, source in published]
            result.add_row(arm.title, str(len(rows)), *values, f"{share.mean:.2g}" if share else "–", *paper)
        ours = {arm.row for arm in arms}
        for other in plan.study.reported.get(pair, {}):
            if other not in ours:
                paper = [_number(numbers(plan, pair, other, source)) for _, source in published]
                result.add_row(Text(f"{other} (published)", "dim"), "", *[""] * len(metrics), "", *paper)
    elsewhere = [f"({title[-2]}) published for {source[0]}" for title, source in published if source[0]]
    result.caption, result.caption_justify = Text("; ".join(elsewhere).replace(" to ", " → ")), "left"
    return result


def _published(plan: Plan) -> list[tuple[str, tuple[str | None, str]]]:
    """Return titles and (pair, metric) of the published columns; a pair of None is the row's own."""
    reported = plan.study.reported
    if not reported:
        return []
    if any(arm.pair in reported for arm in plan.arms):
        return [("paper mAP %", (None, "mAP")), ("paper rank-1 %", (None, "rank1"))]
    with_map = [pair for pair, rows in reported.items() if any("mAP" in found for found in rows.values())]
    return [(f"paper mAP % ({letter})", (pair, "mAP")) for letter, pair in zip("ab", with_map, strict=False)]


def numbers(plan: Plan, pair: str, row: str, source: tuple[str | None, str]) -> float | None:
    """Return a published number in percent, or None."""
    elsewhere, metric = source
    found = plan.study.reported.get(elsewhere or pair, {}).get(row, {})
    return {str(name): value for name, value in found.items()}.get(metric)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _cell(found: Spread | None, metric: str) -> str:
    if found is None:
        return "–"
    if metric.startswith("mmd/"):
        return f"{found.mean:.3f}" if found.mean >= 5e-4 or found.mean == 0 else f"{found.mean:.0e}"
    return percent(found.mean) + ("" if found.sd is None else f" ± {100 * found.sd:.1f}")


def sentences(plan: Plan, outcome: Outcome, *, readings: Mapping[str, Any] | None = None) -> list[str]:
    """Return in plain words what the table is worth, and which steps of the published order hold.

    Args:
        plan: What was asked.
        outcome: What came out.
        readings: How often the official test labels were read, where it is on record.
    """
    counted = f"; its labels were read {read_times(readings)}" if readings and readings["total"] else ""
    lines = [
        f"Nothing was selected (selection.labels = none): every arm was trained on {_seeds(plan)}. target/* is the "
        f"official split, evaluated after the last epoch of each training{counted}. ± is the standard deviation over "
        "those runs."
    ]
    over_splits = [arm for arm in plan.arms if arm.config.data.target in SPLIT_SETS]
    if over_splits:
        lines.append(
            "Where n counts splits, they share images: the standard error of the mean is then Nadeau and Bengio's, "
            f"sd · sqrt(1/n + 1), and not sd/√n: {'; '.join(_error(outcome, arm) for arm in over_splits)}."
        )
    for pair in dict.fromkeys(arm.pair for arm in plan.arms):
        lines += _order(plan, outcome, [arm for arm in plan.arms if arm.pair == pair])
    return lines


def _seeds(plan: Plan) -> str:
    return "seeds of its own" if any(arm.seed_offset for arm in plan.study.arms.values()) else "the same seeds"


def _error(outcome: Outcome, arm: Arm) -> str:
    found = spread(outcome.of_arm(arm.name), "target/rank1", overlapping=True)
    value = "no result" if found is None else f"rank-1 {percent(found.mean)} ± {percent(found.variance_of_mean**0.5)} %"
    return f"{arm.title} on {arm.pair.replace(' to ', ' → ')} {value}"


def curves(plan: Plan, outcome: Outcome) -> list[str]:
    """Return rank-1 / 5 / 10 / mAP of every arm and of everything published, a line each."""
    lines = ["In %, rank-1 / rank-5 / rank-10 / mAP:"]
    for arm in plan.arms:
        found = [spread(outcome.of_arm(arm.name), f"target/{name}") for name in CURVE]
        shown = " / ".join(percent(None if value is None else value.mean) for value in found)
        lines.append(f"  {arm.pair}: {arm.title}: {shown}")
    for pair, rows in plan.study.reported.items():
        titles = {arm.row: arm.title for arm in plan.arms}
        for row, values in rows.items():
            known = {str(name): value for name, value in values.items()}
            shown = " / ".join(f"{known[name]:.1f}" if name in known else "–" for name in CURVE)
            lines.append(f"  {pair}: {titles.get(row, row)}, published: {shown}")
    return lines


def _order(plan: Plan, outcome: Outcome, arms: list[Arm]) -> list[str]:
    """Compare neighbours in the published order of mAP with ours: the difference of means ± its standard error."""
    lines: dict[str, list[str]] = {}
    for title, source in _published(plan):
        known = {arm.name: numbers(plan, arm.pair, arm.row, source) for arm in arms}
        ranked = sorted((arm for arm in arms if known[arm.name] is not None), key=lambda arm: known[arm.name] or 0)
        steps = [_step(outcome, low, high) for low, high in itertools.pairwise(ranked)] if source[1] == "mAP" else []
        if steps:
            lines.setdefault("; ".join(steps), []).append(title)
    return [
        f"Published order by {' and '.join(titles)}, lowest first, and here: {step}." for step, titles in lines.items()
    ]


def _step(outcome: Outcome, low: Arm, high: Arm) -> str:
    splits = low.config.data.target in SPLIT_SETS
    below, above = (spread(outcome.of_arm(arm.name), "target/mAP", overlapping=splits) for arm in (low, high))
    if below is None or above is None:
        return f"{low.title} < {high.title}: no result"
    difference = above.mean - below.mean
    error = math.sqrt(below.variance_of_mean + above.variance_of_mean)
    if min(below.n, above.n) < 2:
        return f"{low.title} < {high.title}: {100 * difference:+.1f} points, one run each"
    clear = abs(difference) > 2 * error
    verdict = ("holds" if difference > 0 else "reversed") if clear else "not settled"
    return f"{low.title} < {high.title} {verdict} ({100 * difference:+.1f} ± {100 * error:.1f} points)"
