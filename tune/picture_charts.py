"""Charts of the pictures of the method: t-SNE of both domains, and gains by camera pair, attribute and identity.

Shapes: N points, D dimensions, Q queries, C cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import threadpoolctl  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from mmfa.data.records import Domain, Floats, Ints
from mmfa.data.store import Store
from mmfa.retrieval import Embedder
from tune.picture_facts import SEED, Group, Picture, Seen, by_attribute, by_identity, features_of, grouped, split_of

NUM_POINTS = 250
"""Of each domain in t-SNE."""
NEIGHBOURS = 10
NUM_IDENTITIES = 8
"""Of those that gained most, and of those that lost most."""
PERPLEXITY = 30.0
DPI = 110
SETTINGS: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "text.parse_math": False,
}
DOMAINS = (("source", "#d55e00", "x"), ("target", "#0b3c6f", "o"))
"""Colour and marker: apart in grey by their lightness, and by their shape."""


def tsne(
    sides: Sequence[tuple[str, Embedder]], *, source: Store, target: Store, folder: Path, differing: str = ""
) -> Picture:
    """Draw source and target features by two models, side by side, each laid out by itself.

    Points are people that no training saw, where both datasets have some. The layout is the same for the same features:
    fixed seed, one thread.

    Args:
        sides: title and model, left and right.
        source: of both models.
        target: of both models.
        folder: where ``tsne.png`` is written.
        differing: what the two differ in, in a sentence.
    """
    rows = [_sample(store.domain) for store in (source, target)]
    is_target_N = np.repeat([False, True], [len(part) for part in rows])
    shares = []
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.4, 4.0), layout="constrained")
        for axes, (title, embedder) in zip(figure.subplots(1, 2), sides, strict=True):
            parts = [
                features_of(embedder, store, part, source=store is source)
                for store, part in zip((source, target), rows, strict=True)
            ]
            features_ND = np.concatenate(parts)
            points_N2 = _layout(features_ND)
            shares.append(own_share(features_ND, is_target_N))
            for (name, colour, marker), chosen_N in zip(DOMAINS, (~is_target_N, is_target_N), strict=True):
                look = {"facecolors": "none", "edgecolors": colour} if marker == "o" else {"color": colour}
                x, y = points_N2[chosen_N].T
                axes.scatter(x, y, s=14, marker=marker, linewidths=0.8, label=name, **look)
            axes.set_title(f"{title}\n{100 * shares[-1]:.0f} % of neighbours are of the same domain")
            axes.set_xticks([])
            axes.set_yticks([])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(folder / "tsne.png", dpi=DPI)
    (left, _), (right, _) = sides
    splits = " and ".join(
        f"{len(part)} {store.domain.name} ({split_of(store.domain, part)})"
        for store, part in zip((source, target), rows, strict=True)
    )
    mixed = _mixed(is_target_N)
    return Picture(
        file="tsne.png",
        title=f"Source and target features: {left} and {right} (t-SNE)",
        alt=(
            f"Two scatter plots of source (crosses) and target (circles). Of the {NEIGHBOURS} nearest neighbours, "
            f"{100 * shares[0]:.0f} % are of the same domain by {left}, {100 * shares[1]:.0f} % by {right}; "
            f"{100 * mixed:.0f} % would be domains that cannot be told apart."
        ),
        caption=(
            f"One training each. {differing}{' ' if differing else ''}Images: {splits}, drawn at random (seed {SEED}); "
            f"perplexity {PERPLEXITY:g}. Positions and sizes in t-SNE mean little; the share of the {NEIGHBOURS} "
            f"nearest neighbours (in the features themselves) that are of the same domain is {100 * mixed:.0f} % where "
            "the domains are fully mixed and 100 % where they lie apart."
        ),
    )


def _sample(domain: Domain) -> Ints:
    """Return rows of people that no training saw, or of training where there are none."""
    rows = domain.rows("query", "gallery")
    rows = rows if len(rows) else domain.rows("train")
    return np.sort(np.random.default_rng(SEED).permutation(rows)[:NUM_POINTS])


def _layout(features_ND: Floats) -> Floats:
    perplexity = min(PERPLEXITY, (len(features_ND) - 1) / 3)
    with threadpoolctl.threadpool_limits(limits=1):  # the order of a sum over threads would show
        points_N2: Floats = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features_ND)
    return points_N2


def own_share(features_ND: Floats, is_target_N: np.ndarray) -> float:
    """Return the share of each image's nearest neighbours that are of its own domain."""
    number = min(NEIGHBOURS, len(features_ND) - 1)
    nearest_NK = NearestNeighbors(n_neighbors=number).fit(features_ND).kneighbors(return_distance=False)
    return float((is_target_N[nearest_NK] == is_target_N[:, None]).mean())


def _mixed(is_target_N: np.ndarray) -> float:
    """Return that share where the domain says nothing."""
    sizes = np.array([(~is_target_N).sum(), is_target_N.sum()])
    return float((sizes * (sizes - 1)).sum() / (sizes.sum() * (sizes.sum() - 1)))


def gains(before: Seen, after: Seen, folder: Path) -> list[Picture]:
    """Draw which camera pairs, attributes and identities gained or lost between two models."""
    whole = grouped(before, after, [("all", np.ones(len(before.test.query), dtype=bool))])[0]
    of_what = (
        f"Mean average precision of {after.title} minus that of {before.title}, in points, over the queries of each "
        f"group; all {whole.n:,} queries: {_points(whole.gain)}. One training each: seeds' differences are in it. "
        f"{before.test.domain.name}, official test split: {before.test.said}."
    )
    drawn = [_cameras(before, after, of_what, folder)]
    attributes = grouped(before, after, by_attribute(before.test))
    if attributes:
        title = "Who gained and who lost, by attribute"
        drawn.append(_bars(attributes, "gains-attributes.png", title, of_what, folder))
    people = grouped(before, after, by_identity(before.test))
    if len(people) > 2 * NUM_IDENTITIES:
        people = people[:NUM_IDENTITIES] + people[-NUM_IDENTITIES:]
    title = f"The {NUM_IDENTITIES} identities that gained most, and the {NUM_IDENTITIES} that gained least or lost"
    return [*drawn, _bars(people, "gains-identities.png", title, of_what, folder, people=False)]


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f}".replace("-", "−")


def _cameras(before: Seen, after: Seen, of_what: str, folder: Path) -> Picture:
    """Draw the gains of each query camera in the images of each gallery camera."""
    test = before.test
    cams_Q, cameras = test.domain.camids[test.query], before.cameras
    own = np.unique(cams_Q)
    change_QC = after.precision[1] - before.precision[1]
    gain_CC: Floats = np.full((len(own), len(cameras)), np.nan, dtype=np.float32)
    n_CC = np.zeros((len(own), len(cameras)), dtype=np.int64)
    for i, camera in enumerate(own.tolist()):
        for j in range(len(cameras)):
            known = change_QC[cams_Q == camera, j]
            known = known[np.isfinite(known)]
            n_CC[i, j] = len(known)
            gain_CC[i, j] = known.mean() if len(known) else np.nan
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(1.6 + 0.75 * len(cameras), 1.5 + 0.62 * len(own)), layout="constrained")
        axes = figure.subplots()
        limit = float(np.nanmax(np.abs(gain_CC))) or 1.0
        axes.imshow(gain_CC, cmap="PuOr", vmin=-2 * limit, vmax=2 * limit, aspect="auto")
        for i, j in zip(*np.nonzero(gain_CC < 0), strict=True):  # in grey, losses would look like gains
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", lw=0, alpha=0.25))
        for i, j in np.ndindex(*gain_CC.shape):
            text = f"{_points(float(gain_CC[i, j]))}\nn={n_CC[i, j]}" if n_CC[i, j] else "–"
            axes.text(j, i, text, ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(cameras)), [f"c{camera + 1}" for camera in cameras.tolist()])
        axes.set_yticks(range(len(own)), [f"c{camera + 1}" for camera in own.tolist()])
        axes.set_xlabel("camera of the gallery images")
        axes.set_ylabel("camera of the query")
        axes.set_title("gain in mAP, points")
        figure.savefig(folder / "gains-cameras.png", dpi=DPI)
    flat = [
        (float(gain_CC[i, j]), f"c{own[i] + 1} in c{cameras[j] + 1}")
        for i, j in np.ndindex(*gain_CC.shape)
        if n_CC[i, j]
    ]
    most, least = max(flat), min(flat)
    return Picture(
        file="gains-cameras.png",
        title="Which camera pairs gained and which lost",
        alt=(
            f"Heat map of {len(flat)} camera pairs: {sum(gain > 0 for gain, _ in flat)} gained. Most: {most[1]}, "
            f"{_points(most[0])} points; least: {least[1]}, {_points(least[0])}."
        ),
        caption=(
            "Each query is searched in the images of one gallery camera at a time; n is the number of queries with a "
            "right image there. Its own camera is junk and counts nowhere. Purple: gained; orange and hatched: lost. "
            f"{of_what}"
        ),
    )


def _bars(
    groups: Sequence[Group], file: str, title: str, of_what: str, folder: Path, *, people: bool = True
) -> Picture:
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.4, 0.9 + 0.2 * len(groups)), layout="constrained")
        _draw_bars(figure.subplots(), groups, people=people)
        figure.savefig(folder / file, dpi=DPI)
    first, last = groups[0], groups[-1]
    return Picture(
        file=file,
        title=title,
        alt=(
            f"Bars of {len(groups)} groups, from {first.name} ({_points(first.gain)} points, n = {first.n} queries) to "
            f"{last.name} ({_points(last.gain)}, n = {last.n})."
        ),
        caption=f"n: queries{', of so many people' if people else ''}. {of_what}",
    )


def _draw_bars(axes: Axes, groups: Sequence[Group], *, people: bool) -> None:
    """Draw a bar for each group, and its numbers in columns to the right."""
    places = range(len(groups))
    gains_G = [100 * group.gain for group in groups]
    axes.barh(places, gains_G, height=0.7, color=["#54308a" if gain >= 0 else "#e9a04a" for gain in gains_G],
              hatch=["" if gain >= 0 else "////" for gain in gains_G])  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, [group.name for group in groups], fontsize=8)
    axes.set_ylim(len(groups) - 0.4, -1.6)
    low, high = min(0.0, *gains_G), max(0.0, *gains_G)
    width = high - low or 1.0
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.set_xlim(low - 0.02 * width, high + 0.63 * width)
    columns = {0.11: "gain", 0.37: "mAP, %", 0.62: "n (people)" if people else "n"}
    for at, head in columns.items():
        axes.text(high + at * width, -1, head, va="center", ha="right", fontsize=7.5, fontweight="bold")
    for place, group in zip(places, groups, strict=True):
        n = f"{group.n} ({group.num_ids})" if people else f"{group.n}"
        cells = (_points(group.gain), f"{100 * group.before:.1f} → {100 * group.after:.1f}", n)
        for at, text in zip(columns, cells, strict=True):
            axes.text(high + at * width, place, text, va="center", ha="right", fontsize=7.5)
    axes.set_xlabel("gain in mAP, points", loc="left")
