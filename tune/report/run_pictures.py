"""Pictures of runs over seeds: every run with its mean and interval, differences with theirs, and seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from scipy import stats

from mmfa.data.protocols import overlapping_error
from studies.plan import SPLIT_SETS, Arm, Plan
from tune import words
from tune.report import drawing
from tune.report.blocks import Absent, Figure, Table
from tune.report.facts import Facts, Group, groups
from tune.wording import points

JUDGED = "target/mAP"
LOST = "verdict.json is missing or damaged; the study's own command judges again, without training anything."
ROW = 0.36
"""Inches of a row."""
BELOW = 0.17
"""How far below the middle of a row its runs lie, and above it their mean."""
FEWEST = 3
"""Runs without which no interval is drawn: that of two is so wide that nothing else could be seen."""
NUM_CHARS = 26
"""Of a title beside an axis before it is broken."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its 95 % interval (Student's t)."""

    value: float
    low: float | None
    """None for one run."""
    high: float | None


def mean_of(values: Sequence[float], *, overlapping: bool = False) -> Mean:
    """Return the mean of runs; those over splits that share images have Nadeau and Bengio's standard error."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Mean(middle, None, None)
    error = (
        overlapping_error(values, test_share=1.0) if overlapping else statistics.stdev(values) / math.sqrt(len(values))
    )
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Mean(middle, middle - half, middle + half)


def broken(title: str) -> str:
    """Return a title on two lines where it is long."""
    if len(title) <= NUM_CHARS or " " not in title:
        return title
    spaces = [place for place, letter in enumerate(title) if letter == " "]
    at = min(spaces, key=lambda place: abs(place - len(title) / 2))
    return f"{title[:at]}\n{title[at + 1 :]}"


def runs(facts: Facts) -> Figure | Absent:
    """Draw every run of what is compared, with means and intervals, and published numbers of the same pair."""
    title = "Every run"
    if not facts.plan.labelled:
        return Absent(title, "The target has no labels, so no run has an accuracy on it.")
    found = [group for group in groups(facts) if group.values(JUDGED)]
    if not found:
        return Absent(title, "No training that is over has a result.")
    splits = any(arm.config.data.target in SPLIT_SETS for arm in facts.plan.arms)
    published = _published(facts)
    with drawing.canvas(0.7 + ROW * len(found), key="runs") as (figure, grid):
        axes = grid[0][0]
        for place, group in enumerate(found):
            _row(axes, place, [100 * value for value in group.values(JUDGED)], "a run", splits=splits)
            if (number := published.get(group.title)) is not None:
                axes.plot(number, place - BELOW, "x", color="#b8480a", ms=7, mew=2,
                          label="published" if number is next(iter(published.values())) else None)  # fmt: skip
        axes.set_yticks(range(len(found)), [broken(group.title) for group in found], fontsize=7.5)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlabel(f"{JUDGED} on the official split, %")
        drawing.legend(figure, axes, num=4)
        said = "; ".join(f"{group.title} {_spread(group)}" for group in found)
        alt = f"{JUDGED} of every run, in percent, mean ± sd: {said}."
        svg = drawing.to_svg(figure, key="runs", alt=alt)
    drawn = "Circles: runs; diamonds: means; lines: 95 % intervals of the means (Student's t; three runs or more)."
    caption = f"{drawn} {_who(facts)}"
    caption += " Runs are splits that share images, so the intervals are Nadeau and Bengio's." if splits else ""
    caption += " ×: published for the same pair." if published else ""
    rows = [
        [group.title, str(one.seed), f"{100 * one.final[JUDGED]:.2f}", one.name]
        for group in found
        for one in group.trainings
        if JUDGED in one.final
    ]
    data = Table(headers=["setting", "seed", f"{JUDGED} %", "run"], rows=rows, numeric=[False, True, True, False])
    return Figure(key="runs", title=title, svg=svg, alt=alt, caption=caption, data=data)


def _row(axes: Axes, place: int, values: Sequence[float], unit: str, *, splits: bool) -> None:
    """Draw runs in a row of their own, their mean and its interval just above them; the first row names all three."""
    named = place == 0
    axes.plot(values, [place + BELOW] * len(values), "o", color="#555555", mfc="none", ms=4.5,
              label=unit if named else None)  # fmt: skip
    mean = mean_of(values, overlapping=splits)
    if mean.low is not None and mean.high is not None and len(values) >= FEWEST:
        axes.plot([mean.low, mean.high], [place - BELOW] * 2, "|-", color="#000000", lw=1.6,
                  label="95 % of the mean" if named else None)  # fmt: skip
    axes.plot(mean.value, place - BELOW, "D", color="#000000", ms=5, label="mean" if named else None)
    axes.grid(visible=False, axis="y")


def _spread(group: Group) -> str:
    values = [100 * value for value in group.values(JUDGED)]
    sd = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{sd} (n = {len(values)})"


def _who(facts: Facts) -> str:
    if facts.plan.study.is_comparison:
        return "Nothing was selected: every arm was trained over seeds."
    if facts.verdict is not None:
        return "Confirmed settings and the baseline run on fresh seeds; the controls on the seeds of the search."
    return "One seed of the best trial, which was chosen among many: nothing is confirmed."


def _published(facts: Facts) -> dict[str, float]:
    """Return published mAP in percent by group, where it is of the arm's own pair."""
    if not facts.plan.study.is_comparison:
        return {}
    titles = [group.title for group in groups(facts)]
    several = len({arm.pair for arm in facts.plan.arms}) > 1
    result = {}
    for arm in facts.plan.arms:
        title = f"{arm.title}, {arm.pair.replace(' to ', ' → ')}" if several else arm.title
        values = {
            str(name): value for name, value in facts.plan.study.reported.get(arm.pair, {}).get(arm.row, {}).items()
        }
        if "mAP" in values and title in titles:
            result[title] = values["mAP"]
    return result


def forest(facts: Facts) -> Figure | Absent:
    """Draw the differences that the verdict rests on, with their intervals."""
    title = "Differences that were judged"
    if facts.verdict is None:
        return Absent(title, _unjudged(facts))
    rows = _contrasts(facts.plan, facts.verdict)
    minimum = facts.plan.study.protocol.delta_min
    with drawing.canvas(0.75 + ROW * 1.1 * len(rows), key="forest") as (figure, grid):
        axes = grid[0][0]
        axes.axvspan(
            -minimum, minimum, color="#e6e6e6", lw=0, zorder=0, label=f"within ± {minimum:g}: too small to matter"
        )
        axes.axvline(0, color="#555555", lw=1)
        for place, (_, contrast, word) in enumerate(rows):
            middle = 100 * contrast["delta"]
            if contrast["interval"] is not None:
                low, high = (100 * end for end in contrast["interval"])
                axes.plot([low, high], [place, place], "|-", color="#000000", lw=1.6, ms=7)
            axes.plot(middle, place, "D" if word else "o", color="#000000", mfc="#000000" if word else "#ffffff", ms=6)
            axes.annotate(f"{points(contrast['delta'])} {word}".strip(), (middle, place), (0, 5), fontsize=7.5,
                          textcoords="offset points", ha="center", va="bottom")  # fmt: skip
        axes.set_yticks(range(len(rows)), [broken(name) for name, _, _ in rows], fontsize=7.5)
        axes.set_ylim(len(rows) - 0.5, -0.6)
        axes.set_xlabel(f"difference of {JUDGED}, points")
        axes.margins(x=0.12)
        drawing.legend(figure, axes, num=1)
        said = "; ".join(
            f"{name}: {points(one['delta'])} ({interval(one)}){f', {word}' if word else ''}" for name, one, word in rows
        )
        alt = f"Differences of {JUDGED} in points with 95 % intervals. {said}."
        svg = drawing.to_svg(figure, key="forest", alt=alt)
    cells = [
        [
            name,
            f"{one['n_candidate']}, {one['n_other']}",
            points(one["delta"]),
            interval(one).removeprefix("95 %: "),
            f"{one['p']:.2g}" if one["p"] is not None else "–",
            word,
        ]
        for name, one, word in rows
    ]
    data = Table(
        headers=["difference", "n", "points", "95 % interval", "p, one test", "word"],
        rows=cells,
        numeric=[False, True, True, True, True, False],
    )
    caption = (
        "Filled: what a word was given for; open: its parts. Lines: 95 % bootstrap over seeds and identities, wider "
        f"than the test, which knows of seeds only. {_numbers(rows)}"
    )
    return Figure(key="forest", title=title, svg=svg, alt=alt, caption=caption, data=data)


def _contrasts(plan: Plan, verdict: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    rows: list[tuple[str, Mapping[str, Any], str]] = []
    for one in verdict["judgements"]:
        name = words.title(plan, one["candidate"])
        rows.append((f"{name} − {words.title(plan, one['baseline'])}", one["contrast"], one["word"]))
        if one["alignment"] is not None:
            rows.append((f"{name}: alignment's share", one["alignment"], ""))
            rows.append((f"{name}: the rest", one["rest"], ""))
    return rows


def _numbers(rows: Sequence[tuple[str, Mapping[str, Any], str]]) -> str:
    """Return of how many runs the differences are; diverged ones may be missing in some."""
    numbers = {name: f"{one['n_candidate']} and {one['n_other']}" for name, one, _ in rows}
    if len(set(numbers.values())) == 1:
        return f"n = {next(iter(numbers.values()))} runs."
    return "Runs: " + "; ".join(f"{name}, n = {n}" for name, n in numbers.items()) + "."


def interval(contrast: Mapping[str, Any]) -> str:
    """Return a difference's interval in words."""
    if contrast["interval"] is None:
        return "no interval"
    low, high = contrast["interval"]
    return f"95 %: {points(low)} to {points(high)}"


def _unjudged(facts: Facts) -> str:
    plan = facts.plan
    if not plan.labelled:
        return "The target has no labels, so nothing can be judged."
    if not facts.closed:
        return "The study is not finished, so nothing is judged yet."
    if facts.verdict_lost:
        return LOST
    if plan.study.is_comparison:
        return "The study file names no pair of arms under [protocol] judge; the table tells what is settled."
    if plan.quick:
        return "--quick leaves fresh seeds out, so nothing is judged."
    return "No setting went on to fresh seeds, so nothing is judged."


def paired(facts: Facts) -> Figure | Absent:
    """Draw the difference of two arms seed by seed, where both ran on the same seeds."""
    title, plan = "Seed by seed", facts.plan
    if not plan.study.is_comparison:
        return Absent(title, "This is about arms on the same seeds; a search compares its settings above.")
    pairs = [(one, other) for one, other in _pairs(plan) if len(_differences(facts, one, other)) > 1]
    if not pairs:
        return Absent(title, "No two arms that are compared share two seeds or more.")
    found = {f"{one.title} − {other.title}{_of(plan, one)}": _differences(facts, one, other) for one, other in pairs}
    splits = any(arm.config.data.target in SPLIT_SETS for arm in plan.arms)
    with drawing.canvas(0.7 + ROW * len(found), key="paired") as (figure, grid):
        axes = grid[0][0]
        axes.axvline(0, color="#555555", lw=1)
        for place, values in enumerate(found.values()):
            _row(axes, place, [100 * value for value in values.values()], "a seed", splits=splits)
        axes.set_yticks(range(len(found)), [broken(name) for name in found], fontsize=7.5)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlabel(f"difference of {JUDGED} at the same seed, points")
        drawing.legend(figure, axes, num=3)
        said = "; ".join(
            f"{name} {points(statistics.fmean(values.values()))} (n = {len(values)})" for name, values in found.items()
        )
        alt = f"Differences of {JUDGED} in points between arms at the same seeds: {said}."
        svg = drawing.to_svg(figure, key="paired", alt=alt)
    caption = (
        "One seed gives both arms the same start, batches and identities, so part of the noise cancels. Lines: 95 % "
        "intervals of the mean difference (Student's t; three seeds or more), each by itself. Verdicts do not rest "
        "on this: they use Welch's test over unpaired runs, as registered."
    )
    rows = [[name, str(seed), points(value)] for name, values in found.items() for seed, value in values.items()]
    data = Table(headers=["difference", "seed or split", "points"], rows=rows, numeric=[False, True, True])
    return Figure(key="paired", title=title, svg=svg, alt=alt, caption=caption, data=data)


def _of(plan: Plan, arm: Arm) -> str:
    return f" ({arm.pair.replace(' to ', ' → ')})" if len({one.pair for one in plan.arms}) > 1 else ""


def _pairs(plan: Plan) -> list[tuple[Arm, Arm]]:
    """Return the arms that are judged against each other, or the method's (else the first) against all others."""
    result = []
    for pair in dict.fromkeys(arm.pair for arm in plan.arms):
        arms = {arm.row: arm for arm in plan.arms if arm.pair == pair}
        judged = plan.study.protocol.judge
        first = "mmfa" if "mmfa" in arms else next(iter(arms))
        names = [(one, other) for one, other in judged] or [(first, row) for row in arms if row != first]
        result += [(arms[one], arms[other]) for one, other in names]
    return result


def _differences(facts: Facts, one: Arm, other: Arm) -> dict[int, float]:
    """Return the difference of target mAP by what both have in common: the seed, or the split."""
    field = "data.split" if one.config.data.target in SPLIT_SETS else "run.seed"
    sides = [
        {row.params.get(field): row.metrics[JUDGED] for row in facts.outcome.of_arm(arm.name) if JUDGED in row.metrics}
        for arm in (one, other)
    ]
    return {int(seed): sides[0][seed] - sides[1][seed] for seed in sides[0] if seed in sides[1] and seed is not None}
