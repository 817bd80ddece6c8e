"""Curves over ranks and epochs: CMC, learning, fidelity."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from tune import advice
from tune.fidelity import MIN_TRIALS
from tune.report import drawing
from tune.report.blocks import Absent, Figure, Table
from tune.report.drawing import BAND, LOOKS
from tune.report.facts import Facts, baseline_group, groups, scale_of
from tune.report.lines import How, Line, data_of, draw, frames_said, line_of, overlay, said_runs
from tune.report.search_pictures import MAX_LINES, noise_of, said_noise

MARKED_RANKS = (1, 2, 5, 10, 20, 50)


def cmc(facts: Facts) -> Figure | Absent:
    """Draw the CMC curves of what is compared, on the official target split."""
    title = "CMC curves"
    if not facts.plan.labelled:
        return Absent(title, "The target has no labels, so no rank of a match is known.")
    lines = [
        line
        for group in groups(facts)
        if (line := line_of(group.title, [dict(enumerate(one.record.cmc, 1)) for one in group.trainings])) is not None
    ]
    if not lines:
        return Absent(title, "No training that is over has a CMC curve on record.")
    first = [f"{line.title} {100 * line.mean[0]:.1f} %" for line in lines]
    alt = f"Share of queries with a match up to each rank, 1 to {lines[0].at[-1]}. Rank 1: {', '.join(first)}."
    how = How(
        key="cmc",
        label="queries with a match, %",
        alt=alt,
        along="rank (logarithmic)",
        factor=100.0,
        ranks=MARKED_RANKS,
        finish=_ranks,
    )
    svg, frames = overlay(lines, how)
    what = "Official target split, after the last epoch: mean over runs, band ± 1 sd."
    caption = f"{what} {said_runs(facts)}{frames_said(frames)}"
    data = data_of(lines, step="rank", factor=100.0, unit=", %", digits=".1f")
    return Figure(key="cmc", title=title, svg=svg, alt=alt, caption=caption, data=data)


def _ranks(axes: Axes) -> None:
    axes.set_xlim(0.95, axes.get_xlim()[1])
    drawing.logarithmic(axes, which="x")


def learning(facts: Facts) -> Figure | Absent:
    """Draw the objective over epochs: every trial of a search, or the arms of a comparison."""
    title, metric = "Learning curves", facts.outcome.metric
    curves = {one.name: one.curve(metric) for one in facts.searched}
    if not any(len(curve) > 1 for curve in curves.values()):
        if facts.plan.study.is_comparison or not any(curves.values()):
            return _identity(facts, title)
        return Absent(title, f"{metric} was reported after one epoch only.")
    if facts.plan.study.is_comparison:
        return _compared(facts, title, metric, note="")
    return _trials(facts, title, curves)


def _identity(facts: Facts, title: str) -> Figure | Absent:
    """Where no accuracy is known before the last epoch the identity loss is what can be followed."""
    note = f"{facts.outcome.metric} is known after the last epoch only, so this is the identity loss (eq. 1) instead. "
    return _compared(facts, f"{title} (identity loss)", "train/loss_identity", note=note)


def _compared(facts: Facts, title: str, metric: str, *, note: str) -> Figure | Absent:
    scale = scale_of(metric)
    found = groups(facts)
    lines = [
        line for one in found if (line := line_of(one.title, [t.curve(metric) for t in one.trainings])) is not None
    ]
    if not lines or max(len(line.at) for line in lines) < 2:
        return Absent(title, f"No training has {metric} of more than one epoch on record.")
    last = max(line.at[-1] for line in lines)
    ends = ", ".join(f"{line.title} {scale.text(line.mean[-1])}{scale.unit}" for line in lines)
    alt = f"{metric} over {last} epochs. At the end: {ends}."
    how = How(
        key="learning",
        label=f"{metric}{scale.unit}",
        alt=alt,
        factor=scale.factor,
        finish=lambda axes: drawing.epochs(axes, last),
    )
    svg, frames = overlay(lines, how)
    caption = f"{note}Mean over runs, band ± 1 sd. {said_runs(facts)}{frames_said(frames)}"
    data = data_of(lines, step="epoch", factor=scale.factor, unit=scale.unit, digits=".3g" if not scale.unit else ".1f")
    return Figure(key="learning", title=title, svg=svg, alt=alt, caption=caption, data=data)


def _trials(facts: Facts, title: str, curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw every trial's objective, the best of them and the baseline's band."""
    outcome, scale = facts.outcome, scale_of(facts.outcome.metric)
    best = outcome.best
    band = line_of("baseline", [one.curve(outcome.metric) for one in baseline_group(facts).trainings])
    last = max(max(curve) for curve in curves.values() if curve)
    drawn = [name for name, curve in curves.items() if curve][:MAX_LINES]
    with drawing.canvas(3.3, key="learning") as (figure, grid):
        axes = grid[0][0]
        for place, name in enumerate(drawn):
            steps = sorted(curves[name])
            ended = facts.training(name).state in ("pruned", "diverged")
            axes.plot(steps, [scale.factor * curves[name][step] for step in steps], color="#9a9a9a", lw=0.8,
                      label="trial" if place == 0 else None, marker="v" if ended else None, markevery=[-1])  # fmt: skip
        how = How(key="learning", label="", alt="", factor=scale.factor, finish=lambda _: None)
        if band is not None:
            draw(axes, band, LOOKS[1], how)
        if best is not None and curves.get(best.name):
            draw(axes, Line(f"best: {best.name}", *_one(curves[best.name]), 1), LOOKS[0], how)
        axes.set_ylabel(f"{outcome.metric}{scale.unit}")
        axes.set_xlabel("epoch")
        drawing.epochs(axes, last)
        drawing.legend(figure, axes, num=3)
        top = "" if best is None else f" The best, {best.name}, ends at {scale.text(best.value)}{scale.unit}."
        alt = f"{outcome.metric} over {last} epochs of {len(drawn)} trials.{top} {said_noise(noise_of(outcome), scale)}"
        svg = drawing.to_svg(figure, key="learning", alt=alt)
    seeds = "one seed" if band is None or band.n == 1 else f"its mean ± 1 sd over n = {band.n} seeds"
    caption = (
        f"n = {len(drawn)} trials, one seed each; dashed: the baseline, {seeds}. What counts is the last epoch, "
        "never the best one. A triangle ends a trial that was pruned or diverged."
    )
    if len(drawn) < sum(map(bool, curves.values())):
        caption += f" Drawn are the first {len(drawn)} of {sum(map(bool, curves.values()))}."
    rows = [[name, *(scale.text(curves[name].get(step)) for step in range(1, last + 1))] for name in drawn]
    data = Table(
        headers=["trial", *map(str, range(1, last + 1))], rows=rows, note=f"{outcome.metric}{scale.unit} by epoch"
    )
    return Figure(key="learning", title=title, svg=svg, alt=alt, caption=caption, data=data)


def _one(curve: Mapping[int, float]) -> tuple[list[int], list[float], list[float]]:
    steps = sorted(curve)
    return steps, [curve[step] for step in steps], [0.0] * len(steps)


def fidelity(facts: Facts) -> Figure | Absent:
    """Draw Kendall's τ between each epoch and the last: from where on early ranks can be trusted."""
    title = "From which epoch on pruning is safe"
    if facts.plan.study.is_comparison:
        return Absent(title, "Nothing is pruned in a comparison.")
    report = advice.fidelity_report(facts.plan, facts.outcome)
    n = report.get("n", 0)
    if n < MIN_TRIALS:
        why = f"It takes {MIN_TRIALS} full trials or more with {facts.outcome.metric} by epoch; here n = {n}."
        return Absent(title, why)
    points = [row for row in report["epochs"][:-1] if row["tau"] is not None]  # the last epoch foretells itself
    if not points:
        return Absent(title, f"No epoch before the last tells n = {n} trials apart by {facts.outcome.metric}.")
    at = [row["epoch"] for row in points]
    with drawing.canvas(2.7, key="fidelity") as (figure, grid):
        axes = grid[0][0]
        axes.fill_between(at, [row["low"] for row in points], [row["high"] for row in points], color=BAND, lw=0,
                          label="95 % interval")  # fmt: skip
        axes.plot(at, [row["tau"] for row in points], "o-", color="#000000", label="Kendall's τ with the last epoch")
        axes.axhline(0.5, color="#555555", ls=(0, (4, 3)), lw=1, label="what the lower end must reach")
        axes.set_ylim(-1.05, 1.05)
        drawing.epochs(axes, at[-1])
        axes.set_ylabel("τ")
        axes.set_xlabel("epoch")
        drawing.legend(figure, axes, num=3)
        first = f"{points[0]['tau']:.2f} after epoch {at[0]}"
        end = f"{points[-1]['tau']:.2f} after epoch {at[-1]}"
        alt = f"Kendall's tau of {facts.outcome.metric} with the last epoch, n = {n} trials: {first}, {end}."
        svg = drawing.to_svg(figure, key="fidelity", alt=alt)
    rows = [[str(row["epoch"]), f"{row['tau']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}"] for row in points]
    data = Table(headers=["epoch", "τ", "95 % interval"], rows=rows, numeric=[True] * 3)
    caption = advice.fidelity_sentence(report) + " The interval is a bootstrap over trials."
    return Figure(key="fidelity", title=title, svg=svg, alt=alt, caption=caption, data=data)
