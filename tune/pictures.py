"""Pictures of the method between two models: ranked galleries, Figure 1, t-SNE, and who gained or lost.

Drawn once all is judged: nothing is chosen by them. All but t-SNE read the official test labels: Figure 1 and the
feature maps to show different people and to name them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mmfa import activation, pictures
from mmfa.data.records import Domain, Floats, Ints
from mmfa.data.store import Store
from mmfa.pictures import Cell, Mark, Row
from mmfa.retrieval import Embedder
from tune import picture_charts
from tune.picture_facts import SEED, Model, Official, Picture, Seen, split_of

VERSION = 3
"""Raised whenever a picture changes."""
INDEX = "pictures.json"
"""In the folder: what was drawn, in the order in which it is to be read."""
TOP = 10
NUM_QUERIES = 3
NUM_CHANGED = 2
"""Of queries that gained, and of those that lost."""
NUM_IMAGES = 6
"""Pairs in Figure 1, and feature maps beside it."""
NUM_STRONGEST = 6
"""People shown of each feature map."""
LIMIT = 5000
"""Images that feature maps are looked for in, at most."""
FIGURE_SIZE = {"height": 160, "width": 80}
"""Pixels of an image in Figure 1."""
READING = "pictures of the method; chose nothing"
"""Why the official test labels are read."""
LEGEND = (
    "Solid border and tick: the same person by another camera (right). Dashed border and cross: someone else (wrong). "
    "Dotted border and dash: the same person by the query's own camera (junk, which the protocol takes out). Below "
    "each image: its rank, its camera and its Euclidean distance to the query."
)


def draw(
    before: Model,
    after: Model,
    *,
    source: Store,
    target: Store,
    folder: Path,
    unaligned: Model | None = None,
    differing: str = "",
    device: str = "auto",
) -> list[Picture]:
    """Draw everything into a folder, with ``pictures.json`` last; the same models and data give the same pictures.

    Args:
        before: such as the baseline.
        after: such as the candidate.
        source: for t-SNE.
        target: its official test split is drawn; of an unlabelled one only what needs no labels.
        folder: made if missing; files of the same names are replaced.
        unaligned: the left side of t-SNE, a model without alignment; by default ``before``.
        differing: what t-SNE's two sides differ in, in a sentence.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        what was drawn, in the order in which it is to be read.

    Raises:
        CheckpointError: an export that is missing or damaged.
        NotFiniteError: a model that embeds nan.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    load = functools.cache(lambda export: Embedder.load(export, device=device))
    drawn: list[Picture] = []
    if target.domain.labelled:
        test = Official.of(target)
        first, last = (Seen(model.title, load(model.export), test) for model in (before, after))
        drawn += _galleries(first, last, folder)
        drawn += picture_charts.gains(first, last, folder)
    drawn += _figure_one(after.title, load(after.export), target, folder)
    sides = [(model.title, load(model.export)) for model in (unaligned or before, after)]
    drawn.append(picture_charts.tsne(sides, source=source, target=target, folder=folder, differing=differing))
    temporary = folder / f".{INDEX}.tmp"
    temporary.write_text(json.dumps([asdict(picture) for picture in drawn], indent=1, ensure_ascii=False) + "\n")
    temporary.replace(folder / INDEX)
    return drawn


def _galleries(before: Seen, after: Seen, folder: Path) -> list[Picture]:
    """Draw the best, the worst and the most changed queries."""
    ap_Q = after.precision[0]
    change_Q = ap_Q - before.precision[0]
    num_right_Q = _num_right(after.test)
    by_ap = np.lexsort((-num_right_Q, -ap_Q))  # of equal ones those with more to be found; nan comes last
    by_ap = by_ap[np.isfinite(ap_Q[by_ap])]
    by_change = by_ap[np.argsort(-change_Q[by_ap], kind="stable")]
    gained = [row for row in _distinct(after.test, by_change, NUM_CHANGED) if change_Q[row] > 0]
    lost = [row for row in _distinct(after.test, by_change[::-1], NUM_CHANGED) if change_Q[row] < 0]
    sheets = [
        ("best", f"The queries that {after.title} ranks best", _distinct(after.test, by_ap, NUM_QUERIES)),
        ("worst", f"The queries that {after.title} ranks worst", _distinct(after.test, by_ap[::-1], NUM_QUERIES)),
        ("changed", f"The queries that changed most from {before.title} to {after.title}", gained + lost),
    ]
    models = (before, after)
    return [_gallery(f"gallery-{name}.jpg", title, chosen, models, folder) for name, title, chosen in sheets if chosen]


def _num_right(test: Official) -> Ints:
    """Return how many images each query's gallery has of its person by another camera, [Q]."""
    domain = test.domain
    pids, camids = domain.pids[test.gallery], domain.camids[test.gallery]
    return np.array([((pids == domain.pids[row]) & (camids != domain.camids[row])).sum() for row in test.query])


def _distinct(test: Official, queries: Ints, number: int) -> list[int]:
    """Return the first queries of so many different people."""
    found: dict[int, int] = {}
    for query in queries.tolist():
        found.setdefault(int(test.domain.pids[test.query[query]]), query)
        if len(found) == number:
            break
    return list(found.values())


def _gallery(file: str, title: str, queries: Sequence[int], models: Sequence[Seen], folder: Path) -> Picture:
    rows, said = [], []
    for query in queries:
        of_query = []
        for seen in models:
            row, words = _ranked(seen, query)
            rows.append(row)
            of_query.append(f"by {seen.title} {words}")
        said.append(f"{_named(models[0].test, query)}: {'; '.join(of_query)}.")
    pictures.write(pictures.sheet(rows), folder / file)
    test = models[0].test
    return Picture(
        file=file,
        title=title,
        alt=f"The first {TOP} images by both models. {' '.join(said)}",
        caption=f"{LEGEND} AP is the query's average precision. {test.domain.name}, official test split: {test.said}.",
    )


def _named(test: Official, query: int) -> str:
    row = test.query[query]
    return f"person {test.domain.pids[row]:04d}, camera {test.domain.camids[row] + 1}"


def _ranked(seen: Seen, query: int) -> tuple[Row, str]:
    """Return a query and its first images as a row, and in words."""
    test = seen.test
    judged, distances_G = seen.judged(query)
    own = test.query[query]
    cells = [Cell(image_HWC=test.store.images[own], mark="query", caption=("query", f"c{test.domain.camids[own] + 1}"))]
    rank, right = 0, []
    for place, row in enumerate(judged.order_G[:TOP].tolist()):
        mark: Mark = "junk" if judged.junk_G[place] else "right" if judged.right_G[place] else "wrong"
        rank += mark != "junk"
        right += [rank] if mark == "right" else []
        label = "junk" if mark == "junk" else f"{rank}."
        image = test.gallery[row]
        caption = (f"{label} c{test.domain.camids[image] + 1}", f"{distances_G[row]:.2f}")
        cells.append(Cell(image_HWC=test.store.images[image], mark=mark, caption=caption))
    ap = f"AP {100 * judged.average_precision:.1f} %"
    words = f"{ap}, right at {', '.join(map(str, right))}" if right else f"{ap}, none of them right"
    return Row(title=f"{_named(test, query)}   {seen.title}: {ap}", cells=cells), words


def _figure_one(title: str, embedder: Embedder, target: Store, folder: Path) -> list[Picture]:
    """Draw the paper's Figure 1, and the images that its feature maps answer to most strongly."""
    rows = rows_to_show(target.domain)
    peaks_ND = activation.peaks(embedder, target.images, rows)
    channels_N = peaks_ND.argmax(axis=1)
    people_N = target.domain.pids[rows] if target.domain.labelled else np.arange(len(rows))
    shown: list[int] = []
    for place in np.random.default_rng(SEED).permutation(len(rows)).tolist():
        new = channels_N[place] not in channels_N[shown] and people_N[place] not in people_N[shown]
        shown += [place] if new else []
        if len(shown) == NUM_IMAGES:
            break
    drawing = _Drawing(embedder, target, rows, peaks_ND)
    cells = drawing.pairs(shown, channels_N[shown])
    half = 2 * ((len(shown) + 1) // 2)
    sheet = pictures.sheet([Row(title="", cells=part) for part in (cells[:half], cells[half:]) if part], **FIGURE_SIZE)
    pictures.write(sheet, folder / "figure-1.jpg")
    strongest = []
    for channel in channels_N[shown].tolist():
        order = np.argsort(-peaks_ND[:, channel], kind="stable")
        firsts = np.unique(people_N[order], return_index=True)[1]
        places = order[np.sort(firsts)[:NUM_STRONGEST]].tolist()
        cells = drawing.pairs(places, np.full(len(places), channel))
        strongest.append(Row(title=f"Feature map {channel + 1} of {peaks_ND.shape[1]}", cells=cells))
    pictures.write(pictures.sheet(strongest, height=96, width=48), folder / "feature-maps.jpg")
    where = f"{target.domain.name}, {split_of(target.domain, rows)}"
    return _said_of_maps(title, where, channels_N, peaks_ND.shape[1], shown)


def rows_to_show(domain: Domain) -> Ints:
    """Return the rows of the official test split, or of all there is where there is none."""
    rows = domain.rows("query", "gallery")
    return (rows if len(rows) else domain.rows("train"))[:LIMIT]


class _Drawing:
    """Images of some rows, each beside one of its feature maps."""

    def __init__(self, embedder: Embedder, store: Store, rows: Ints, peaks_ND: Floats) -> None:
        self._embedder, self._store, self._rows, self._peaks_ND = embedder, store, rows, peaks_ND

    def pairs(self, places: Sequence[int], channels: Ints) -> list[Cell]:
        """Return an image and its attention region, again and again."""
        domain, rows = self._store.domain, self._rows[list(places)]
        maps_Nhw = activation.maps(self._embedder, self._store.images, rows, channels)
        cells = []
        for place, row, channel, map_hw in zip(places, rows.tolist(), channels.tolist(), maps_Nhw, strict=True):
            image_HWC = self._store.images[row]
            person = f"{domain.pids[row]:04d} c{domain.camids[row] + 1}" if domain.labelled else ""
            over_HWC = pictures.attention(image_HWC, map_hw, **FIGURE_SIZE)
            cells.append(Cell(image_HWC=image_HWC, caption=(person,)))
            cells.append(Cell(image_HWC=over_HWC, caption=(f"{channel + 1}: {self._peaks_ND[place, channel]:.1f}",)))
        return cells


def _said_of_maps(title: str, where: str, channels_N: Ints, num_maps: int, shown: Sequence[int]) -> list[Picture]:
    numbers = [str(channel + 1) for channel in channels_N[shown].tolist()]
    listed = f"{', '.join(numbers[:-1])} and {numbers[-1]}" if len(numbers) > 1 else numbers[0]
    how = (
        "Attention runs from dark (silent) through red to pale yellow (highest); maps of the last convolutional layer "
        f"of {title}, {where}."
    )
    used = f"{len(np.unique(channels_N))} of the {num_maps} feature maps are the highest of some image"
    return [
        Picture(
            file="figure-1.jpg",
            title="Figure 1 of the paper: images and the attention regions of their highest-activated feature maps",
            alt=f"{len(shown)} pairs of an image and its highest-activated feature map laid over it: maps {listed}.",
            caption=(
                f"Left of each pair: an image drawn at random (seed {SEED}; another person and another map each time). "
                "Right: where its highest-activated feature map looks; below it the map's number and its activation. "
                f"{used}, n = {len(channels_N):,} images. {how}"
            ),
        ),
        Picture(
            file="feature-maps.jpg",
            title="What those feature maps answer to",
            alt=f"For maps {listed}: the {NUM_STRONGEST} people they answer to most strongly, and where in the image.",
            caption=(
                f"A row for each map of Figure 1: the {NUM_STRONGEST} people in whose images it is highest, best "
                "first. A map that stands for something seen, such as a colour or a bag, answers to it in all of them. "
                f"{how}"
            ),
        ),
    ]
