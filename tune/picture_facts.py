"""What pictures of a model are drawn from: features of the official test split, and each query's average precision.

Shapes: Q queries, G gallery images, D pooled dimensions, C cameras.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmfa.data.attributes import encode
from mmfa.data.protocols import directions
from mmfa.data.records import Bools, Domain, Floats, Ints
from mmfa.data.store import Store
from mmfa.evaluate import embed
from mmfa.ranking import distances
from mmfa.retrieval import Embedder, Judged, average_precision, judge

MADE_OF = "made-of.json"
"""In a study's folder of pictures: the trainings that they show."""
LIMIT = 5000
"""Test images at most: a driver may have no GPU. More identities are left out, drawn at random."""
SEED = 20181
"""Of every sample: of images, identities, points."""
TWO_SIDED = {
    "gender": ("male", "female"),
    "hair": ("short hair", "long hair"),
    "up": ("long sleeves", "short sleeves"),
    "down": ("long lower clothing", "short lower clothing"),
    "clothes": ("dress", "trousers"),
    "top": ("short upper clothing", "long upper clothing"),
    "shoes": ("dark shoes", "light shoes"),
}
"""Attributes both values of which say something: what 1 and 2 mean in the releases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A trained model as a picture names it."""

    title: str
    """In a few words."""
    export: Path
    """What ``Training.export`` wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One file, and what it shows."""

    file: str
    title: str
    alt: str
    """What is seen, with the key numbers."""
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Official:
    """Queries and gallery of the official split, in the first direction of its protocol."""

    store: Store
    query: Ints
    """[Q] rows of the store."""
    gallery: Ints
    """[G] rows of the store."""
    num_left_out: int
    """Test images beyond :data:`LIMIT`."""

    @classmethod
    def of(cls, store: Store) -> Official:
        """Return the test split of a target, or a sample of its identities."""
        query, gallery = next(iter(directions(store.domain).values()))
        total = len(query) + len(gallery)
        if total > LIMIT:
            pids, sizes = np.unique(store.domain.pids[np.r_[query, gallery]], return_counts=True)
            order = np.random.default_rng(SEED).permutation(np.flatnonzero(pids > 0))  # without distractors
            kept = pids[order[np.cumsum(sizes[order]) <= LIMIT]]
            query, gallery = (rows[np.isin(store.domain.pids[rows], kept)] for rows in (query, gallery))
        return cls(store=store, query=query, gallery=gallery, num_left_out=total - len(query) - len(gallery))

    @property
    def domain(self) -> Domain:
        """Labels of the store."""
        return self.store.domain

    @property
    def said(self) -> str:
        """How much of the split this is, in words."""
        whole = f"{len(self.query):,} queries and {len(self.gallery):,} gallery images"
        if not self.num_left_out:
            return whole
        return f"{whole}, a sample of identities without distractors ({self.num_left_out:,} images are left out)"


class Seen:
    """One model's view of a test: every query judged.

    Args:
        title: of the model.
        embedder: the model.
        test: of the target.
    """

    def __init__(self, title: str, embedder: Embedder, test: Official) -> None:
        self.title, self.test = title, test
        self._rows = np.unique(np.r_[test.query, test.gallery])
        self._features = features_of(embedder, test.store, self._rows)

    def features(self, rows: Ints) -> Floats:
        """Return embeddings of test rows, float32."""
        return self._features[np.searchsorted(self._rows, rows)]

    @functools.cached_property
    def precision(self) -> tuple[Floats, Floats]:
        """Average precision of each query, ap_Q, and in the gallery images of one camera alone, ap_QC; else nan."""
        camids = self.test.domain.camids[self.test.gallery]
        cameras = self.cameras
        ap_Q = np.full(len(self.test.query), np.nan, dtype=np.float32)
        ap_QC = np.full((len(self.test.query), len(cameras)), np.nan, dtype=np.float32)
        row = 0
        for rows_qG in self._distances(self.test.query):
            for row_G in rows_qG:
                judged = self._judge(row, row_G)
                ap_Q[row] = judged.average_precision
                for column, camera in enumerate(cameras.tolist()):
                    of_camera = (camids[judged.order_G] == camera) & ~judged.junk_G
                    ap_QC[row, column] = average_precision(judged.right_G[of_camera])
                row += 1
        return ap_Q, ap_QC

    @property
    def cameras(self) -> Ints:
        """[C] the gallery's cameras, ascending."""
        return np.unique(self.test.domain.camids[self.test.gallery])

    def judged(self, query: int) -> tuple[Judged, Floats]:
        """Return one query's judgement, by its place among the queries, and its Euclidean distances_G."""
        (row_G,) = next(iter(self._distances(self.test.query[[query]])))
        return self._judge(query, row_G), np.sqrt(row_G)

    def _distances(self, rows: Ints) -> Iterator[Floats]:
        return distances(torch.from_numpy(self.features(rows)), torch.from_numpy(self.features(self.test.gallery)))

    def _judge(self, query: int, distances_G: Floats) -> Judged:
        domain, row = self.test.domain, self.test.query[query]
        return judge(
            distances_G,
            pid=int(domain.pids[row]),
            camid=int(domain.camids[row]),
            gallery_pids=domain.pids[self.test.gallery],
            gallery_camids=domain.camids[self.test.gallery],
        )


def features_of(embedder: Embedder, store: Store, rows: Ints, *, source: bool = False) -> Floats:
    """Return embeddings of a store's rows, float32 [N, D]; ``source``: with its BatchNorm statistics, if it has own."""
    data = embedder.config.data
    features_ND = embed(
        embedder.model,
        store.images,
        rows,
        height=data.image_height,
        width=data.image_width,
        hardware=embedder.hardware,
        domain="source" if source else "target",
    )
    return features_ND.cpu().numpy()


def split_of(domain: Domain, rows: Ints) -> str:
    """Return in words where images are from."""
    return "training split" if (domain.splits[rows] == "train").all() else "official test split"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Queries that have something in common."""

    name: str
    n: int
    """Queries with a right image in the gallery."""
    num_ids: int
    before: float
    """Their mean average precision."""
    after: float

    @property
    def gain(self) -> float:
        """After minus before."""
        return self.after - self.before


def grouped(before: Seen, after: Seen, members: Sequence[tuple[str, Bools]]) -> list[Group]:
    """Return groups of queries with both models' mean average precision, the largest gain first; none that is empty."""
    counts_Q = np.isfinite(before.precision[0])
    pids = before.test.domain.pids[before.test.query]
    groups = []
    for name, member_Q in members:
        chosen = member_Q & counts_Q
        if chosen.any():
            first, second = (float(seen.precision[0][chosen].mean()) for seen in (before, after))
            num_ids = len(np.unique(pids[chosen]))
            groups.append(Group(name=name, n=int(chosen.sum()), num_ids=num_ids, before=first, after=second))
    return sorted(groups, key=lambda group: -group.gain)


def by_identity(test: Official) -> list[tuple[str, Bools]]:
    """Return the queries of each identity."""
    pids = test.domain.pids[test.query]
    return [(f"{pid:04d}", pids == pid) for pid in np.unique(pids).tolist()]


def by_attribute(test: Official) -> list[tuple[str, Bools]]:
    """Return the queries of people with each attribute; nothing where the target has no annotations."""
    codes = test.domain.attributes
    if codes is None:
        return []
    table = encode(codes, age="onehot")
    pids = test.domain.pids[test.query]
    known_Q = np.isin(pids, table.pids)
    values_QM, mask_QM = (np.zeros((len(pids), len(table.names)), dtype=bool) for _ in range(2))
    values, mask = table.rows(pids[known_Q])
    values_QM[known_Q], mask_QM[known_Q] = values > 0, mask
    members = []
    for column, name in enumerate(table.names):
        no, yes = TWO_SIDED.get(name, ("", _spelt(name)))
        members.append((yes, values_QM[:, column] & mask_QM[:, column]))
        if no:
            members.append((no, ~values_QM[:, column] & mask_QM[:, column]))
    return members


def _spelt(name: str) -> str:
    """Return an attribute in words: ``upred`` is ``red upper``."""
    for prefix, words in (("age_", "{}"), ("up", "{} upper"), ("down", "{} lower")):
        if name.startswith(prefix):
            return words.format(name.removeprefix(prefix))
    return name
