"""Lines over epochs or ranks, with their spread over runs: what several pictures are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from tune.report import drawing
from tune.report.blocks import Table
from tune.report.drawing import LOOKS, OTHERS
from tune.report.facts import Facts


@dataclass(frozen=True, slots=True)
class Line:
    """A mean over runs with its spread, along epochs or ranks."""

    title: str
    at: list[int]
    mean: list[float]
    sd: list[float]
    """Zeros for one run."""
    n: int


def line_of(title: str, curves: Sequence[Mapping[int, float]]) -> Line | None:
    """Return the mean of curves where all of them are finite; None where there is nothing.

    A diverged run's curve is shorter than the others': the mean ends where the first of them does, else it would jump.
    """
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    at = sorted(set.intersection(*(set(curve) for curve in curves)))
    at = [step for step in at if all(math.isfinite(curve[step]) for curve in curves)]
    if not at:
        return None
    columns = [[curve[step] for curve in curves] for step in at]
    sd = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    return Line(title, at, [statistics.fmean(column) for column in columns], sd, len(curves))


@dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """How lines are drawn together."""

    key: str
    label: str
    alt: str
    along: str = "epoch"
    factor: float = 1.0
    floor: float | None = None
    """What is below is drawn here, where an axis is logarithmic."""
    ranks: tuple[int, ...] = ()
    """Where the markers stand; by default some evenly."""
    finish: Callable[[Axes], None]
    """Sets up a frame's axes."""


def draw(axes: Axes, line: Line, look: drawing.Look, how: How) -> None:
    """Draw a line with its band of ± 1 sd."""
    mean, sd = ([how.factor * value for value in values] for values in (line.mean, line.sd))
    low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
    if how.floor is not None:
        mean, low, high = ([max(value, how.floor) for value in values] for values in (mean, low, high))
    if line.n > 1:
        axes.fill_between(line.at, low, high, color=look.color, alpha=0.14, lw=0)
    every = max(1, len(line.at) // 8)
    marked = [place for place, at in enumerate(line.at) if (at in how.ranks if how.ranks else place % every == 0)]
    axes.plot(line.at, mean, color=look.color, ls=look.style, marker=look.marker, markevery=marked,
              label=f"{line.title}, n = {line.n}")  # fmt: skip


def overlay(lines: Sequence[Line], how: How) -> tuple[Markup, int]:
    """Draw lines in one frame, or where there are too many each in its own with the others in grey; return the SVG
    and the number of frames."""
    if len(lines) <= len(LOOKS):
        with drawing.canvas(3.3, key=how.key) as (figure, grid):
            axes = grid[0][0]
            for line, look in zip(lines, LOOKS, strict=False):
                draw(axes, line, look, how)
            axes.set_ylabel(how.label)
            axes.set_xlabel(how.along)
            how.finish(axes)
            drawing.legend(figure, axes, num=3)
            return drawing.to_svg(figure, key=how.key, alt=how.alt), 1
    size = drawing.frames(len(lines))
    with drawing.canvas(0.4 + 1.55 * size[0], size=size, key=how.key, sharex=True, sharey=True) as (figure, grid):
        used = drawing.hide_rest(grid, len(lines))
        for axes, line in zip(used, lines, strict=True):
            for other in lines:
                values = [max(how.factor * value, how.floor or -math.inf) for value in other.mean]
                axes.plot(other.at, values, color=OTHERS, lw=0.7)
            draw(axes, line, LOOKS[0], how)
            axes.set_title(f"{line.title}, n = {line.n}", fontsize=7.5)
            how.finish(axes)
        drawing.label_lowest(used, size[1], how.along)
        figure.supylabel(how.label, fontsize=9)
        return drawing.to_svg(figure, key=how.key, alt=how.alt), len(lines)


def data_of(lines: Sequence[Line], *, step: str, factor: float, unit: str, digits: str) -> Table:
    """Return mean ± sd of every line at every step."""
    steps = sorted({at for line in lines for at in line.at})

    def cell(line: Line, at: int) -> str:
        if at not in line.at:
            return "–"
        place = line.at.index(at)
        spread = f" ± {factor * line.sd[place]:{digits}}" if line.n > 1 else ""
        return f"{factor * line.mean[place]:{digits}}{spread}"

    rows = [[str(at), *(cell(line, at) for line in lines)] for at in steps]
    headers = [step, *(f"{line.title}{unit}, n = {line.n}" for line in lines)]
    return Table(headers=headers, rows=rows, numeric=[True] * len(headers))


def frames_said(frames: int) -> str:
    return "" if frames == 1 else " Each setting has a frame of its own; the grey lines are the means of the others."


def said_runs(facts: Facts) -> str:
    """Say what the runs of the compared groups are."""
    if facts.plan.study.is_comparison:
        return "Every arm over its seeds."
    if facts.verdict is not None:
        return (
            "Settings that were confirmed run on fresh seeds; the controls on the seeds of the search, so they are "
            "shown for orientation and judge nothing."
        )
    return "Nothing is confirmed: the best trial was chosen among many and has one seed, so luck is part of it."
