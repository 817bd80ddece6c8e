"""Pictures of what a search says about its factors together: importance, and pairs of λ's."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.tri import Triangulation

from studies.plan import Plan
from studies.spec import ON, Range
from tune import search
from tune.outcomes import Outcome, Row
from tune.report import drawing
from tune.report.blocks import Absent, Figure, Table
from tune.report.facts import Facts, Scale, scale_of
from tune.report.search_pictures import NOTHING_SEARCHED
from tune.wording import symbol

MIN_IMPORTANCE = 10
"""Trials without which no importance is told."""
TOP_TRIALS = 5
"""PED-ANOVA holds the best trials against all; so many are the least that its authors advise."""
NUM_RESAMPLES = 100
MAX_WORK = 20_000
"""Trials of all resamples together; a longer search gets fewer resamples, below :data:`FEWEST` none."""
FEWEST = 20
MIN_FILLED = 20
"""Trials from which a surface is laid between the points."""
MAX_PAIRS = 3
ARM = "arm"


def importance(facts: Facts) -> Figure | Absent:
    """Draw how much each factor has to do with being among the best trials."""
    title, plan, outcome = "Importance", facts.plan, facts.outcome
    if plan.study.is_comparison:
        return Absent(title, NOTHING_SEARCHED)
    rows = _rows(outcome)
    if len(rows) < MIN_IMPORTANCE:
        return Absent(
            title, f"n = {len(rows)} trials with a result are too few; importance is told from {MIN_IMPORTANCE} on."
        )
    if len({row.value for row in rows}) == 1:
        return Absent(title, f"All n = {len(rows)} trials have the same {outcome.metric}.")
    if len(plan.study.dimensions) + (len(plan.arms) > 1) < 2:
        return Absent(title, "One factor is searched, so nothing else can have more or less of a share.")
    top = max(TOP_TRIALS, round(0.1 * len(rows)))
    shares = _shares(plan, rows, top)
    intervals = _intervals(plan, rows, top, list(shares))
    names = sorted(shares, key=lambda name: shares[name])
    with drawing.canvas(0.8 + 0.28 * len(names), key="importance") as (figure, grid):
        axes = grid[0][0]
        values = [shares[name] for name in names]
        axes.barh(range(len(names)), values, color="#9a9a9a", edgecolor="#333333", height=0.6)
        for place, name in enumerate(names):
            if name in intervals:
                axes.plot(intervals[name], [place, place], "|-", color="#000000", lw=1.2, ms=7)
        axes.set_yticks(range(len(names)), [_title(name) for name in names])
        axes.set_xlabel("share of importance (all together: 1)")
        axes.set_xlim(0, 1)
        said = ", ".join(f"{_title(name)} {shares[name]:.2f}{_said(intervals.get(name))}" for name in names[::-1])
        alt = f"Importance of {len(names)} factors for {outcome.metric}, highest first: {said}."
        svg = drawing.to_svg(figure, key="importance", alt=alt)
    caption = (
        f"PED-ANOVA (optuna {optuna.__version__}): how differently the best {top} of n = {len(rows)} trials lie along "
        "each factor from all of them, as shares of the sum. It says nothing of the direction, and factors that act "
        "only together share it."
    )
    if intervals:
        caption += f" Lines: 95 % percentile interval over {_num(len(rows))} bootstrap samples of the trials."
    if len(rows) < 3 * MIN_IMPORTANCE:
        caption += " So few trials order factors poorly: read the intervals, not the bars."
    if any(spec.when for spec in plan.study.dimensions.values()):
        caption += " A factor that not every trial has is told from those that have it, of which there may be few."
    cells = [
        [_title(name), f"{shares[name]:.3f}", _said(intervals.get(name)).strip(" ()") or "–"] for name in names[::-1]
    ]
    data = Table(headers=["factor", "share", "95 % interval"], rows=cells)
    return Figure(key="importance", title=title, svg=svg, alt=alt, caption=caption, data=data)


def _title(name: str) -> str:
    """Return how a dimension is called; one that is switched on and off is searched as two."""
    return f"{symbol(name.removesuffix(ON))} on or off" if name.endswith(ON) else symbol(name)


def _said(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"


def _rows(outcome: Outcome) -> list[Row]:
    return [row for row in outcome.search if row.value is not None and row.name not in outcome.vetoed]


def _num(trials: int) -> int:
    return min(NUM_RESAMPLES, MAX_WORK // trials)


def _shares(plan: Plan, rows: Sequence[Row], top: int) -> dict[str, float]:
    """Return each factor's importance; they add up to 1."""
    space = search.distributions(plan)
    if len(plan.arms) > 1:
        space = {ARM: optuna.distributions.CategoricalDistribution([arm.name for arm in plan.arms])} | space
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Some regimes for parameter")  # the caption tells of them
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=min(0.99, top / len(rows)))
        study = optuna.create_study(direction="maximize")
        study.add_trials([_trial(space, row) for row in rows])
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _trial(space: Mapping[str, optuna.distributions.BaseDistribution], row: Row) -> optuna.trial.FrozenTrial:
    params: dict[str, Any] = {ARM: row.arm, **row.params}
    known = {name: params[name] for name in space if name in params}
    return optuna.trial.create_trial(params=known, distributions={name: space[name] for name in known}, value=row.value)


def _intervals(plan: Plan, rows: Sequence[Row], top: int, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return percentile intervals over resampled trials, the same for the same trials."""
    if _num(len(rows)) < FEWEST:
        return {}
    rng, drawn = np.random.default_rng(0), []
    for _ in range(_num(len(rows))):
        sample = [rows[index] for index in rng.integers(len(rows), size=len(rows))]
        if len({row.value for row in sample}) > 1:
            shares = _shares(plan, sample, top)
            drawn.append([shares.get(name, 0.0) for name in names])
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    return {name: (float(low[at]), float(high[at])) for at, name in enumerate(names)}


def contours(facts: Facts) -> Figure | Absent:
    """Draw the objective over pairs of λ's: the trials, and a surface between them where there are enough."""
    title, plan, outcome = "Pairs of loss weights", facts.plan, facts.outcome
    if plan.study.is_comparison:
        return Absent(title, NOTHING_SEARCHED)
    ranges = {name: dim for name, dim in plan.study.space.items() if isinstance(dim, Range)}
    weights = [name for name in ranges if name.startswith("loss.lambda_")] or list(ranges)
    pairs = list(itertools.combinations(weights, 2))[:MAX_PAIRS]
    if not pairs:
        return Absent(title, "Fewer than two ranges are searched, so there is no pair to look at.")
    rows = _rows(outcome)
    points = {pair: [row for row in rows if all(name in row.params for name in pair)] for pair in pairs}
    if max(map(len, points.values())) < 2:
        return Absent(title, f"n = {len(rows)} trial with a result is no surface.")
    scale = scale_of(outcome.metric)
    values = [scale.factor * (row.value or 0) for row in rows]
    ends = (min(values), max(values) if max(values) > min(values) else min(values) + 1)
    with drawing.canvas(2.9 if len(pairs) > 1 else 3.6, size=(1, len(pairs)), key="contours") as (figure, grid):
        for axes, pair in zip(grid[0], pairs, strict=True):
            shown = _pair(axes, points[pair], pair, ranges, scale, ends, outcome)
        bar = figure.colorbar(shown, ax=list(grid[0]), location="bottom", shrink=0.6, aspect=40, pad=0.03)
        bar.set_label(f"{outcome.metric}{scale.unit}", fontsize=8)
        best = max(rows, key=lambda row: row.value or 0)
        at = ", ".join(f"{symbol(name)} = {_text(best.params.get(name))}" for name in weights)
        alt = f"{outcome.metric} over pairs of {', '.join(map(symbol, weights))}; the highest is {best.name} at {at}."
        svg = drawing.to_svg(figure, key="contours", alt=alt)
    return Figure(
        key="contours",
        title=title,
        svg=svg,
        alt=alt,
        caption=_contour_caption(points),
        data=_table(rows, weights, scale, outcome.metric),
    )


def _contour_caption(points: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    number = {len(rows) for rows in points.values()}
    n = " and ".join(map(str, sorted(number))).replace(" and ", ", ", len(number) - 2 if len(number) > 2 else 0)
    text = f"Each point is a trial (n = {n}, one seed each), lighter is better; star: the best; square: the baseline."
    if max(number) >= MIN_FILLED:
        text += (
            " The fill is laid straight between neighbouring points: it smooths nothing, and the factors that are not "
            "in a frame differ from point to point."
        )
    else:
        text += f" No surface is drawn: fewer than {MIN_FILLED} trials would make one of noise."
    return text


def _pair(
    axes: Axes,
    rows: Sequence[Row],
    pair: tuple[str, str],
    ranges: Mapping[str, Range],
    scale: Scale,
    ends: tuple[float, float],
    outcome: Outcome,
) -> Any:
    """Draw one pair; return what a colour bar explains."""
    x, y = ([float(row.params[name]) for row in rows] for name in pair)
    z = [scale.factor * (row.value or 0) for row in rows]
    if len(rows) >= MIN_FILLED:
        _fill(axes, x, y, z, [ranges[name] for name in pair], ends)
    shown = axes.scatter(
        x, y, c=z, cmap="gray", vmin=ends[0], vmax=ends[1], edgecolors="#000000", linewidths=0.8, s=26, zorder=3
    )
    order = {row.name: place for place, row in enumerate(rows)}
    best = max(rows, key=lambda row: row.value or 0, default=None)
    for row, marker, size in ((best, "*", 15), (outcome.baseline, "s", 9)):
        if row is not None and row.name in order:
            axes.plot(
                x[order[row.name]], y[order[row.name]], marker, mfc="none", mec="#b8480a", mew=1.4, ms=size, zorder=4
            )
    for which, name in zip("xy", pair, strict=True):
        getattr(axes, f"set_{which}lim")(*_ends(ranges[name]))
        getattr(axes, f"set_{which}label")(symbol(name))
        if ranges[name].log:
            drawing.logarithmic(axes, which=which)
    return shown


def _ends(spec: Range) -> tuple[float, float]:
    """Return the ends of an axis: a range with some room, so that points at its edge are whole."""
    if spec.log:
        room = (spec.high / spec.low) ** 0.06
        return spec.low / room, spec.high * room
    return spec.low - 0.06 * (spec.high - spec.low), spec.high + 0.06 * (spec.high - spec.low)


def _fill(
    axes: Axes, x: list[float], y: list[float], z: list[float], ranges: Sequence[Range], ends: tuple[float, float]
) -> None:
    """Fill between points that are neighbours on the scales that are searched; of points on a line nothing."""
    scaled = [np.log(values) if spec.log else np.array(values) for values, spec in zip((x, y), ranges, strict=True)]
    try:
        triangles = Triangulation(*scaled).triangles
    except (RuntimeError, ValueError):
        return
    levels = np.linspace(*ends, 9)
    axes.tricontourf(Triangulation(x, y, triangles), z, levels=levels, cmap="gray", extend="both", alpha=0.6)


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Row], weights: Sequence[str], scale: Scale, metric: str) -> Table:
    ordered = sorted(rows, key=lambda row: (-(row.value or 0), row.name))
    cells = [[row.name, *(_text(row.params.get(name)) for name in weights), scale.text(row.value)] for row in ordered]
    return Table(headers=["trial", *map(symbol, weights), f"{metric}{scale.unit}"], rows=cells)
