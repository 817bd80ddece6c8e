"""Pictures of what alignment did: terms of the loss, the kernel's liveness, gradient shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes

from tune.report import drawing
from tune.report.blocks import Absent, Figure
from tune.report.drawing import LOOKS
from tune.report.facts import Facts, Group, Training, groups
from tune.report.lines import How, Line, data_of, frames_said, line_of, overlay, said_runs

LIVENESS = "mmd/kernel_liveness"
LOSSES = {
    "train/loss_identity": "identity",
    "train/loss_attribute": "attribute",
    "train/loss_aal": "AAL",
    "train/loss_mdal": "MDAL",
}
SHARES = {"grad_share/attr": "attribute (λ1)", "grad_share/aal": "AAL (λ2)", "grad_share/mdal": "MDAL (λ3)"}
WEIGHTS = {
    "grad_share/attr": "loss.lambda_attr",
    "grad_share/aal": "loss.lambda_aal",
    "grad_share/mdal": "loss.lambda_mdal",
}
ALIVE_FROM = 0.01
"""Below this the liveness is drawn on a logarithmic axis."""
FLOOR = 1e-8
Curve = Callable[[Training, str], Mapping[int, float]]
"""A metric by epoch, as far as it is to be drawn."""


def losses(facts: Facts) -> Figure | Absent:
    """Draw the terms of the loss over epochs, setting by setting."""
    return _terms(facts, LOSSES, _positive, key="losses", title="Terms of the loss", label="unweighted loss", what=(
        "Means over runs and the batches of an epoch, before the weights λ; L_AAL and L_MDAL are squared MMDs, "
        "whose floor is not 0 on a batch."
    ))  # fmt: skip


def shares(facts: Facts) -> Figure | Absent:
    """Draw the gradient shares over epochs, setting by setting; a term that acts on nothing is drawn as such."""
    return _terms(facts, SHARES, _acting, key="shares", title="Gradient shares", label="‖λ∇L‖ / ‖∇L_id‖", what=(
        "‖λ ∇L‖ over ‖∇L_id‖ on the pooled features of each epoch's last batch, means over runs: 1 pulls as hard as "
        "the identity loss, and a term far below 0.01 hardly acts. A term whose λ is 0 has no line; × at the foot is "
        "a share of exactly 0 although λ is not: a dead term, whose λ does nothing."
    ))  # fmt: skip


def _positive(one: Training, metric: str) -> dict[int, float]:
    """Return the curve where it can be drawn on a logarithmic axis."""
    return {step: value for step, value in one.curve(metric).items() if value > 0}


def _acting(one: Training, metric: str) -> dict[int, float]:
    """Return a share's curve; nothing where the term has no weight, whose share is 0 for that reason."""
    return one.curve(metric) if one.config[WEIGHTS[metric]] != 0 else {}


def _terms(
    facts: Facts, terms: Mapping[str, str], curve: Curve, *, key: str, title: str, label: str, what: str
) -> Figure | Absent:
    """Draw several metrics over epochs, a frame for each setting, on a logarithmic axis."""
    found: list[tuple[Group, list[Line]]] = []
    dead: list[str] = []
    for group in groups(facts):
        curves = {name: [curve(one, metric) for one in group.trainings] for metric, name in terms.items()}
        if kept := [line for name, own in curves.items() if (line := line_of(name, own)) is not None]:
            found.append((group, kept))
        for name, own in curves.items():
            ends = [values[max(values)] for values in own if values]
            dead += [f"{group.title}, {name}, in {ends.count(0)} of {len(ends)} runs"] if 0 in ends else []
    if not found:
        return Absent(title, f"No training that is over has {label} on record.")
    last = max(line.at[-1] for _, lines in found for line in lines)
    size = drawing.frames(len(found))
    with drawing.canvas(0.9 + 1.7 * size[0], size=size, key=key, sharex=True, sharey=True) as (figure, grid):
        used = drawing.hide_rest(grid, len(found))
        floor = _floor([line for _, lines in found for line in lines])
        for axes, (group, lines) in zip(used, found, strict=True):
            for line in lines:
                _draw(axes, line, LOOKS[list(terms.values()).index(line.title)], floor)
            axes.set_title(f"{group.title}, {_number(lines)}", fontsize=7.5)
            drawing.epochs(axes, last)
        drawing.logarithmic(used[0], which="y")
        drawing.label_lowest(used, size[1], "epoch")
        figure.supylabel(f"{label} (logarithmic)", fontsize=8)
        fullest = max(range(len(used)), key=lambda place: len(found[place][1]))
        drawing.legend(figure, used[fullest], num=4)
        ends_said = "; ".join(
            f"{group.title}: " + ", ".join(f"{line.title} {_end(line)}" for line in lines) for group, lines in found
        )
        alt = f"{title} over {last} epochs, means over runs. At the end: {ends_said}."
        svg = drawing.to_svg(figure, key=key, alt=alt)
    named = [
        Line(f"{group.title}: {line.title}", line.at, line.mean, line.sd, line.n)
        for group, lines in found
        for line in lines
    ]
    data = data_of(named, step="epoch", factor=1.0, unit="", digits=".3g")
    doctor = f" Dead after the last epoch: {'; '.join(dead)}." if dead else ""
    caption = f"{what}{doctor} {said_runs(facts)}"
    return Figure(key=key, title=title, svg=svg, alt=alt, caption=caption, data=data)


def _draw(axes: Axes, line: Line, look: drawing.Look, floor: float) -> None:
    """Draw a mean; where it is 0, which has no place on the axis, a cross at its foot."""
    every = max(1, len(line.at) // 6)
    axes.plot(line.at, [value or floor for value in line.mean], color=look.color, ls=look.style, marker=look.marker,
              markevery=every, label=line.title, lw=1.3, ms=3.5)  # fmt: skip
    if zeros := [at for at, value in zip(line.at, line.mean, strict=True) if value == 0]:
        axes.plot(zeros, [floor] * len(zeros), ls="", marker="x", color=look.color, ms=6, mew=1.6)
        axes.annotate("0: dead", (zeros[0], floor), (0, 5), textcoords="offset points", fontsize=7)


def _floor(lines: Sequence[Line]) -> float:
    """Return where 0 is drawn: a power of ten well below all that is not."""
    least = min((value for line in lines for value in line.mean if value > 0), default=1.0)
    return float(10.0 ** (math.floor(math.log10(least)) - 1))


def _number(lines: Sequence[Line]) -> str:
    """Return of how many runs the lines are; some runs may lack a term."""
    counts = sorted({line.n for line in lines})
    return f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}"


def _end(line: Line) -> str:
    return f"{line.mean[-1]:.2g}" if line.mean[-1] else "0 (dead)"


def liveness(facts: Facts) -> Figure | Absent:
    """Draw the mean kernel between different samples over epochs: near 0 the kernel is dead."""
    title = "Is the kernel alive?"
    lines = [
        line
        for group in groups(facts)
        if (line := line_of(group.title, [one.curve(LIVENESS) for one in group.trainings])) is not None
    ]
    if not lines:
        return Absent(title, "No setting that is compared lets target images through the kernel of L_MDAL.")
    low = min(value for line in lines for value in line.mean)
    floor = FLOOR if low < ALIVE_FROM else None
    last = max(line.at[-1] for line in lines)
    ends = ", ".join(f"{line.title} {line.mean[-1]:.2g}" for line in lines)
    alt = f"Mean off-diagonal kernel over {last} epochs; 0 is dead, 1 sees no difference. At the end: {ends}."

    def finish(axes: Axes) -> None:
        drawing.epochs(axes, last)
        if floor is not None:
            axes.set_ylim(max(floor, low / 3), 2)
            drawing.logarithmic(axes, which="y")
        else:
            axes.set_ylim(0, 1)

    how = How(key="liveness", label="mean kernel", alt=alt, floor=floor, finish=finish)
    svg, frames = overlay(lines, how)
    dead = sorted({row.name for row in facts.outcome.rows if row.metrics.get("mmd/plateau") == 1})
    doctor = f" On the plateau of a dead kernel after the last epoch: {', '.join(dead)}." if dead else ""
    caption = (
        f"Mean of the kernel between different samples of each epoch's last batch, over runs, band ± 1 sd. Near 0 the "
        f"kernel sees nothing and λ3 does nothing; near 1 it tells nothing apart.{doctor}{frames_said(frames)}"
    )
    data = data_of(lines, step="epoch", factor=1.0, unit="", digits=".3g")
    return Figure(key="liveness", title=title, svg=svg, alt=alt, caption=caption, data=data)
