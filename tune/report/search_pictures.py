"""Pictures of a search: its trials against the seed noise, and each factor by itself."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from studies.spec import Choices, Range, Scalar
from tune import advice
from tune.outcomes import Outcome, Row
from tune.power import expected_max_noise
from tune.report import drawing
from tune.report.blocks import Absent, Figure, Table
from tune.report.drawing import BAND, OTHERS
from tune.report.facts import Facts, Scale, scale_of
from tune.wording import symbol

Dimension = Range | Choices
OFF = -0.35
"""Where a factor that is switched off is drawn, left of its range, whose parts are 1 wide."""
NOTHING_SEARCHED = "This study compares arms over seeds and searches nothing."
NO_RESULT = "No trial of the search has a result."
MARKS = {"pruned": ("v", "pruned"), "diverged": ("X", "diverged")}


@dataclass(frozen=True, slots=True)
class Noise:
    """The baseline's objective over its seeds."""

    n: int
    mean: float
    sd: float | None
    """None for one seed."""


def noise_of(outcome: Outcome) -> Noise | None:
    """Return the seed noise; None where the baseline has no result."""
    if not outcome.noise:
        return None
    return Noise(len(outcome.noise), statistics.fmean(outcome.noise), outcome.noise_sd)


def draw_noise(axes: Axes, noise: Noise | None, scale: Scale, *, along: str = "y", label: bool = False) -> None:
    """Draw the baseline's mean and, of two seeds or more, its band of ± 1 sd through a frame."""
    if noise is None:
        return
    name = f"baseline, mean ± sd, n = {noise.n}" if noise.sd is not None else "baseline, n = 1"
    line = axes.axhline if along == "y" else axes.axvline
    span = axes.axhspan if along == "y" else axes.axvspan
    middle = scale.factor * noise.mean
    if noise.sd is not None:
        spread = scale.factor * noise.sd
        span(middle - spread, middle + spread, color=BAND, alpha=0.55, lw=0, label=name if label else None)
    line(middle, color="#555555", lw=1, label=name if label and noise.sd is None else None)


def said_noise(noise: Noise | None, scale: Scale) -> str:
    """Return the band in words."""
    if noise is None:
        return "The baseline has no result, so no band is drawn."
    middle = f"{scale.text(noise.mean)}{scale.unit}"
    if noise.sd is None:
        return f"Line: the baseline, {middle} (one seed, so its noise is not known)."
    return f"Band: the baseline's mean ± sd over n = {noise.n} seeds, {scale.text(noise.mean)} ± " + (
        f"{scale.text(noise.sd)}{scale.unit}."
    )


def trials(facts: Facts) -> Figure | Absent:
    """Draw the trials in their order against the baseline's noise and what luck alone would give."""
    title, outcome = "The trials against the seed noise", facts.outcome
    if facts.plan.study.is_comparison:
        return Absent(title, NOTHING_SEARCHED)
    done = [row for row in outcome.search if row.value is not None]
    if not done:
        return Absent(title, NO_RESULT)
    scale, noise, best = scale_of(outcome.metric), noise_of(outcome), outcome.best
    luck = None
    if noise is not None and noise.sd is not None:
        luck = noise.mean + expected_max_noise(noise.sd, len(done))
    with drawing.canvas(3.1, key="trials") as (figure, grid):
        axes = grid[0][0]
        draw_noise(axes, noise, scale, label=True)
        if luck is not None:
            axes.axhline(scale.factor * luck, color="#555555", ls=(0, (4, 3)), lw=1, label="expected highest by luck")
        _trials(axes, outcome, scale, best)
        axes.margins(y=0.1)
        axes.set_xlabel("trial, in the order of the search" if len(facts.plan.arms) == 1 else "trial, arm by arm")
        axes.set_ylabel(f"{outcome.metric}{scale.unit}")
        drawing.legend(figure, axes, num=5)
        top = "no trial may be chosen" if best is None else f"the highest is {best.name} at {scale.text(best.value)}"
        alt = f"{outcome.metric} of {len(done)} trials in their order; {top}{scale.unit if best else ''}."
        svg = drawing.to_svg(figure, key="trials", alt=f"{alt} {said_noise(noise, scale)}")
    caption = f"One seed each, n = {len(done)} trials with a result. {said_noise(noise, scale)}"
    if luck is not None:
        caption += (
            f" Dashed: the highest of {len(done)} trials that are all as good as the baseline, as expected from that "
            f"noise ({scale.text(luck)}{scale.unit}): what lies below it may be luck."
        )
    rows = [
        [row.name, row.state + (", vetoed" if row.name in outcome.vetoed else ""), scale.text(row.value)]
        for row in outcome.search
    ]
    data = Table(headers=["trial", "state", f"{outcome.metric}{scale.unit}"], rows=rows, numeric=[False, False, True])
    return Figure(
        key="trials", title=title, svg=svg, alt=f"{alt} {said_noise(noise, scale)}", caption=caption, data=data
    )


def _trials(axes: Axes, outcome: Outcome, scale: Scale, best: Row | None) -> None:
    """Draw the trials, by what became of them."""
    rows = list(enumerate(outcome.search))
    values = {place: scale.factor * row.value for place, row in rows if row.value is not None}
    plain = [place for place, row in rows if place in values and row.name not in outcome.vetoed and row is not best]
    vetoed = [place for place, row in rows if place in values and row.name in outcome.vetoed]
    if plain:
        axes.plot(plain, [values[place] for place in plain], "o", color="#000000", mfc="#ffffff", label="trial")
    if vetoed:
        axes.plot(vetoed, [values[place] for place in vetoed], "x", color="#000000", label="vetoed")
    if best is not None:
        place = next(place for place, row in rows if row is best)
        axes.plot([place], [values[place]], "*", color="#000000", ms=11, label=f"best: {best.name}")
    for state, (marker, label) in MARKS.items():
        ended = [place for place, row in rows if row.state == state]
        if ended:  # without a result: at the bottom edge
            axes.plot(ended, [0.03] * len(ended), marker, color="#777777", label=label, ls="", clip_on=False,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_xlim(-0.7, len(rows) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def isolation(facts: Facts) -> Figure | Absent:
    """Draw each factor by itself: the best over all the others in each part of its range."""
    title, outcome, plan = "Each factor by itself", facts.outcome, facts.plan
    if plan.study.is_comparison:
        return Absent(title, NOTHING_SEARCHED)
    parts = {name: found for name, found in advice.isolation(plan, outcome).items() if found}
    if len(plan.arms) > 1:
        parts = {"arm": _by_arm(outcome), **parts}
    if not any(parts.values()):
        return Absent(title, "No trial of the search has a result that no guard vetoes.")
    scale, noise = scale_of(outcome.metric), noise_of(outcome)
    size = drawing.frames(len(parts))
    with drawing.canvas(0.5 + 2.1 * size[0], size=size, key="isolation", sharey=True) as (figure, grid):
        used = drawing.hide_rest(grid, len(parts))
        for axes, (name, found) in zip(used, parts.items(), strict=True):
            draw_noise(axes, noise, scale)
            _parts(axes, name, found, scale, plan.study.space.get(name))
        for row in grid:
            row[0].set_ylabel(f"best {outcome.metric}{scale.unit}", fontsize=8)
        shown = "; ".join(_said_parts(name, found, scale) for name, found in parts.items())
        alt = f"Best {outcome.metric} over all other factors, part by part. {shown}."
        svg = drawing.to_svg(figure, key="isolation", alt=alt)
    n = sum(row.value is not None and row.name not in outcome.vetoed for row in outcome.search)
    caption = (
        f"The best of the trials in each part of a factor's range (equal parts on the scale that is searched), over "
        f"whatever the other factors were; below each point its number of trials, n = {n} in all, one seed each. The "
        f"best of more trials is higher by luck alone: compare parts of like n. {said_noise(noise, scale)}"
    )
    cells = [
        [symbol(name), _part(one["part"]), str(one["n"]), scale.text(one["best"]), one["trial"]]
        for name, found in parts.items()
        for one in found
    ]
    data = Table(
        headers=["factor", "part", "n", f"best {outcome.metric}{scale.unit}", "trial"],
        rows=cells,
        numeric=[False, False, True, True, False],
    )
    return Figure(key="isolation", title=title, svg=svg, alt=alt, caption=caption, data=data)


def _by_arm(outcome: Outcome) -> list[dict[str, object]]:
    result: list[dict[str, object]] = []
    for arm in dict.fromkeys(row.arm for row in outcome.search):
        rows = [row for row in outcome.of_arm(arm) if row.name not in outcome.vetoed]
        if rows:
            best = max(rows, key=lambda row: row.value or 0)
            result.append({"part": arm, "n": len(rows), "best": best.value, "trial": best.name})
    return result


def _part(text: str) -> str:
    """Return a part without the number that sorts it."""
    head, colon, rest = text.partition(": ")
    return rest if colon and head.isdigit() else text


def _parts(
    axes: Axes, name: str, found: Sequence[dict[str, object]], scale: Scale, dimension: Dimension | None
) -> None:
    """Draw the best of each part; neighbouring parts of a range are joined, choices have no order."""
    values = [scale.factor * float(str(one["best"])) for one in found]
    spec = dimension if isinstance(dimension, Range) else None
    places = [_place(str(one["part"]), index) if spec else index for index, one in enumerate(found)]
    axes.plot(places, values, "o", color="#000000")
    for (left, low), (right, high) in itertools.pairwise(zip(places, values, strict=True)):
        if spec and left > 0 and right == left + 1:  # part 0 is "off", which is no neighbour of a number
            axes.plot([left, right], [low, high], "-", color="#000000", lw=1)
    for place, one, value in zip(places, found, values, strict=True):
        axes.annotate(f"n={one['n']}", (place, value), (0, -5), textcoords="offset points", ha="center", va="top",
                      fontsize=7.5, bbox={"facecolor": "#ffffff", "alpha": 0.8, "lw": 0, "pad": 0.4})  # fmt: skip
    if spec is not None:
        ticks = {part + 0.5: f"{_edge(spec, part / advice.BINS):.2g}" for part in range(advice.BINS + 1)}
        ticks |= {OFF: "off"} if spec.zero else {}
    else:
        ticks = {float(place): str(one["part"]) for place, one in zip(places, found, strict=True)}
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, ticks.values())) > 9 else {}
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=7.5, **turned)
    axes.set_xlim(min(ticks) - (0.15 if spec else 0.5), max(ticks) + (0.15 if spec else 0.5))
    axes.margins(y=0.22)
    axes.set_title(symbol(name))


def _edge(spec: Range, share: float) -> float:
    """Return the value at a share of a range, on the scale that is searched."""
    return spec.low * (spec.high / spec.low) ** share if spec.log else spec.low + share * (spec.high - spec.low)


def _place(part: str, index: int) -> float:
    """Return the number of a part of a range, so that a part without a trial leaves a gap."""
    head = part.partition(": ")[0]
    return (int(head) or OFF) if head.isdigit() else index


def _said_parts(name: str, found: Sequence[dict[str, object]], scale: Scale) -> str:
    parts = ", ".join(
        f"{_part(str(one['part']))}: {scale.text(float(str(one['best'])))}{scale.unit} (n = {one['n']})"
        for one in found
    )
    return f"{symbol(name)}: {parts}"


def parallel(facts: Facts) -> Figure | Absent:
    """Draw every trial as a line across its parameters to its objective."""
    title, outcome, plan = "All parameters at once", facts.outcome, facts.plan
    if plan.study.is_comparison:
        return Absent(title, NOTHING_SEARCHED)
    rows = [row for row in outcome.search if row.value is not None and row.name not in outcome.vetoed]
    if len(rows) < 2:
        return Absent(title, f"n = {len(rows)} trial with a result is no pattern; two are the least.")
    scale = scale_of(outcome.metric)
    shown = _evenly(sorted(rows, key=lambda row: (row.value or 0, row.name)))
    names = list(plan.study.space)
    values = [row.value or 0.0 for row in shown]
    low, high = min(values), max(values)
    with drawing.canvas(3.4 if len(names) < 6 else 4.0, key="parallel") as (figure, grid):
        axes = grid[0][0]
        for row in shown:
            depth = ((row.value or 0) - low) / (high - low) if high > low else 1.0
            best = row is shown[-1]
            grey = f"{0.82 * (1 - depth):.3f}"
            heights = [*_heights(facts, row), depth]
            axes.plot(range(len(heights)), heights, "o-" if best else "-", color=grey, lw=2.4 if best else 1.1)
        base = outcome.baseline
        if base is not None and base.value is not None:
            at = min(max((base.value - low) / (high - low) if high > low else 1.0, 0), 1)
            line = [*_heights(facts, base), at]
            axes.plot(range(len(line)), line, color="#0063a6", ls=(0, (4, 2)), marker="s", lw=1.8, label="baseline")
        _scales(axes, plan.study.space, scale, low=low, high=high, metric=outcome.metric)
        drawing.legend(figure, axes, num=1)
        last = shown[-1]
        alt = (
            f"{len(shown)} trials as lines across {', '.join(map(symbol, names))} to {outcome.metric}; darker is "
            f"better, from {scale.text(low)} to {scale.text(high)}{scale.unit}, the best being {last.name}."
        )
        svg = drawing.to_svg(figure, key="parallel", alt=alt)
    caption = (
        f"n = {len(rows)} trials, one seed each; darker is better, dots mark the best ({last.name}), the dashed line "
        "with squares is the baseline. Each axis runs over the range that is searched, on its own scale; a gap is a "
        "parameter that is off, or that the trial has not."
    )
    if len(shown) < len(rows):
        caption += f" Drawn are {len(shown)} of them, evenly by rank."
    return Figure(key="parallel", title=title, svg=svg, alt=alt, caption=caption, data=_points(facts, shown[::-1]))


MAX_LINES = 100
"""Lines beyond which a picture shows no more; ``study.parquet`` has them all."""


def _evenly(rows: list[Row]) -> list[Row]:
    """Return so many rows as can be drawn, evenly by rank, the last one among them."""
    step = -(-len(rows) // MAX_LINES)
    return rows[::-1][::step][::-1]


def _height(dimension: Dimension, value: Scalar | None) -> float:
    """Return a parameter's place on its axis, from 0 to 1; nan where the trial has not got it."""
    if value is None:
        return math.nan
    if isinstance(dimension, Choices):
        labels = dimension.labels()
        return labels.index(value) / (len(labels) - 1)
    return advice.place(dimension, float(value))


def _heights(facts: Facts, row: Row) -> list[float]:
    return [_height(dimension, row.params.get(name)) for name, dimension in facts.plan.study.space.items()]


def _ends(dimension: Dimension) -> list[tuple[float, str]]:
    """Return what is written beside an axis, and where."""
    if isinstance(dimension, Choices):
        labels = dimension.labels()
        return [(index / (len(labels) - 1), str(label)) for index, label in enumerate(labels)]
    return [(0.0, drawing.plain(dimension.low)), (1.0, drawing.plain(dimension.high))]


def _scales(axes: Axes, space: Mapping[str, Dimension], scale: Scale, *, low: float, high: float, metric: str) -> None:
    """Draw the upright axes with their ends."""
    names = list(space)
    size = 7.5 if len(names) < 9 else 6.5
    for place, dimension in enumerate(space.values()):
        axes.axvline(place, color=OTHERS, lw=0.8, zorder=0)
        for height, text in _ends(dimension):
            axes.text(place + 0.03, height, text, fontsize=size, va="bottom" if height < 1 else "top", color="#333333",
                      bbox={"facecolor": "#ffffff", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})  # fmt: skip
    axes.axvline(len(names), color=OTHERS, lw=0.8, zorder=0)
    for height, value in ((0.0, low), (1.0, high)):
        axes.text(len(names) + 0.03, height, f"{scale.text(value)}{scale.unit}", fontsize=7.5,
                  va="bottom" if height < 1 else "top")  # fmt: skip
    many = len(names) > 5
    titles = [*map(symbol, names), metric]
    turned: dict[str, Any] = {"rotation": 35, "ha": "right"} if many else {}
    axes.set_xticks(range(len(titles)), titles, fontsize=8, **turned)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(-0.15, len(names) + 0.45)
    axes.set_ylim(-0.04, 1.04)


def _points(facts: Facts, rows: Sequence[Row]) -> Table:
    """Return the trials with their parameters, best first."""
    scale, names = scale_of(facts.outcome.metric), list(facts.plan.study.space)
    cells = [[row.name, *(_cell(row.params.get(name)) for name in names), scale.text(row.value)] for row in rows]
    return Table(
        headers=["trial", *map(symbol, names), f"{facts.outcome.metric}{scale.unit}"],
        rows=cells,
        numeric=[False, *[True] * (len(names) + 1)],
    )


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
