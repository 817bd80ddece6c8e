"""Pictures of what alignment did: terms of the loss, the kernel's liveness, gradient shares."""

from __future__ import annotations

from collections.abc import Mapping

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
ALIVE_FROM = 0.01
"""Below this the liveness is drawn on a logarithmic axis."""
FLOOR = 1e-8


def losses(facts: Facts) -> Figure | Absent:
    """Draw the terms of the loss over epochs, setting by setting."""
    return _terms(facts, LOSSES, key="losses", title="Terms of the loss", label="unweighted loss", what=(
        "Means over runs and the batches of an epoch, before the weights λ; L_AAL and L_MDAL are squared MMDs, "
        "whose floor is not 0 on a batch."
    ))  # fmt: skip


def shares(facts: Facts) -> Figure | Absent:
    """Draw the gradient shares over epochs, setting by setting."""
    return _terms(facts, SHARES, key="shares", title="Gradient shares", label="‖λ∇L‖ / ‖∇L_id‖", what=(
        "‖λ ∇L‖ over ‖∇L_id‖ on the pooled features of each epoch's last batch, means over runs: 1 pulls as hard as "
        "the identity loss, and a term far below 0.01 hardly acts. A term whose λ is 0 has no line."
    ))  # fmt: skip


def _terms(facts: Facts, terms: Mapping[str, str], *, key: str, title: str, label: str, what: str) -> Figure | Absent:
    """Draw several metrics over epochs, a frame for each setting, on a logarithmic axis."""
    found: list[tuple[Group, list[Line]]] = []
    for group in groups(facts):
        curves = {name: [_positive(one, metric) for one in group.trainings] for metric, name in terms.items()}
        if kept := [line for name, own in curves.items() if (line := line_of(name, own)) is not None]:
            found.append((group, kept))
    if not found:
        return Absent(title, f"No training that is over has {label} on record.")
    last = max(line.at[-1] for _, lines in found for line in lines)
    looks = dict(zip(terms.values(), LOOKS, strict=False))
    size = drawing.frames(len(found))
    with drawing.canvas(0.9 + 1.7 * size[0], size=size, key=key, sharex=True, sharey=True) as (figure, grid):
        used = drawing.hide_rest(grid, len(found))
        for axes, (group, lines) in zip(used, found, strict=True):
            for line in lines:
                look = looks[line.title]
                every = max(1, len(line.at) // 6)
                axes.plot(line.at, line.mean, color=look.color, ls=look.style, marker=look.marker, markevery=every,
                          label=line.title, lw=1.3, ms=3.5)  # fmt: skip
            axes.set_title(f"{group.title}, n = {len(group.trainings)}", fontsize=7.5)
            drawing.epochs(axes, last)
        drawing.logarithmic(used[0], which="y")
        drawing.label_lowest(used, size[1], "epoch")
        figure.supylabel(f"{label} (logarithmic)", fontsize=8)
        fullest = max(range(len(used)), key=lambda place: len(found[place][1]))
        drawing.legend(figure, used[fullest], num=4)
        ends = "; ".join(
            f"{group.title}: " + ", ".join(f"{line.title} {line.mean[-1]:.2g}" for line in lines)
            for group, lines in found
        )
        alt = f"{title} over {last} epochs, means over runs. At the end: {ends}."
        svg = drawing.to_svg(figure, key=key, alt=alt)
    named = [
        Line(f"{group.title}: {line.title}", line.at, line.mean, line.sd, line.n)
        for group, lines in found
        for line in lines
    ]
    data = data_of(named, step="epoch", factor=1.0, unit="", digits=".3g")
    return Figure(key=key, title=title, svg=svg, alt=alt, caption=f"{what} {said_runs(facts)}", data=data)


def _positive(one: Training, metric: str) -> dict[int, float]:
    """Return the curve where it can be drawn on a logarithmic axis."""
    return {step: value for step, value in one.curve(metric).items() if value > 0}


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
