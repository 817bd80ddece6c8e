"""How pictures are drawn: matplotlib without its global state, as inline SVG that is the same for the same data.

Lines differ in style and marker, not in colour alone; fills are shades of grey that print.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

WIDTH = 5.8
"""Inches; the page scales it to its column."""
NUM_EPOCH_TICKS = 9
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FONT = "'DejaVu Sans', Verdana, sans-serif"
"""Text stays text: it can be searched and copied; layout is measured with the first of these."""
SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How a line is told from the others, also without colour."""

    color: str
    style: Any
    marker: str


LOOKS = (
    Look("#000000", "-", "o"),
    Look("#0063a6", (0, (5, 1.5)), "s"),
    Look("#b8480a", (0, (1.2, 1.2)), "^"),
    Look("#007a57", (0, (5, 1.5, 1.2, 1.5)), "D"),
    Look("#8a5a83", (0, (8, 2, 1.2, 2, 1.2, 2)), "v"),
)
"""Of up to five lines in one frame; where there are more, each gets a frame of its own."""
BAND = "#c9c9c9"
OTHERS = "#bdbdbd"


@contextmanager
def canvas(height: float, *, size: tuple[int, int] = (1, 1), key: str, **more: Any) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure and its axes, ``size`` rows and columns of them, drawn in the report's style."""
    settings: Any = {**SETTINGS, "svg.hashsalt": key}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(*size, squeeze=False, **more)


def to_svg(figure: Figure, *, key: str, alt: str) -> Markup:
    """Return a figure as an ``<svg>`` element whose ids begin with ``key``."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    for child in list(root):
        if child.tag == f"{{{SVG}}}metadata":
            root.remove(child)
    for parent in root.iter():
        for child in list(parent):
            if child.tag == f"{{{SVG}}}style":
                parent.remove(child)
    _rename(root, key)
    ElementTree.register_namespace("", SVG)
    text = ElementTree.tostring(root, encoding="unicode").replace(f' xmlns="{SVG}"', "", 1)
    return Markup(re.sub(r">\s+<", ">\n<", text))


def _rename(root: ElementTree.Element, key: str) -> None:
    """Keep the ids that something refers to, unique on the page, and drop the others."""
    link = f"{{{XLINK}}}href"
    used: dict[str, str] = {}

    def new(name: str) -> str:
        return used.setdefault(name, f"{key}-{len(used)}")

    for element in root.iter():
        if (target := element.attrib.pop(link, None)) is not None:  # HTML knows it without its prefix
            element.set("href", f"#{new(target[1:])}" if target.startswith("#") else target)
        for name, value in element.attrib.items():
            if "url(#" in value:
                element.set(name, re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{new(found[1])})", value))
            if name == "style" and "font" in value:
                element.set(name, value.replace("'DejaVu Sans'", FONT))
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in used:
            element.set("id", used[name])


def plain(value: float, _: int = 0) -> str:
    """Return a tick's number without needless digits."""
    return f"{value:.3g}" if 1e-4 <= abs(value) < 1e5 or value == 0 else f"{value:.0e}"


def logarithmic(axes: Axes, *, which: str) -> None:
    """Make an axis logarithmic, with plain numbers at powers of ten, or at 1, 2 and 5 of them where there are few."""
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    axis = getattr(axes, f"{which}axis")
    subs = (1.0, 2.0, 5.0) if high / low < 60 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_formatter(NullFormatter())


def epochs(axes: Axes, last: int) -> None:
    """Set the ticks of an axis of epochs, at whole numbers."""
    step = max(1, -(-last // NUM_EPOCH_TICKS))
    ticks = list(range(step, last + 1, step))
    axes.set_xticks([1, *[tick for tick in ticks if tick > 1]] if step > 1 or last < 3 else ticks)


def legend(figure: Figure, axes: Axes, *, num: int) -> None:
    """Put a legend above the frames, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        figure.legend(handles, labels, loc="outside upper left", ncols=max(1, min(num, 78 // (longest + 8))))


def frames(number: int, columns: int = 3) -> tuple[int, int]:
    """Return rows and columns of a grid that has so many frames."""
    columns = min(columns, number)
    return -(-number // columns), columns


def hide_rest(axes: Any, used: int) -> list[Axes]:
    """Return the frames of a grid in order and take away those that are not used."""
    flat: list[Axes] = list(axes.flat)
    for one in flat[used:]:
        one.remove()
    return flat[:used]


def label_lowest(used: Sequence[Axes], columns: int, text: str) -> None:
    """Label the axis below the lowest frame of each column of a grid, and no other."""
    for place, axes in enumerate(used):
        lowest = place + columns >= len(used)
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel(text if lowest else "")
