"""Distances, CMC and average precision: pure functions that know nothing of datasets.

Shapes: Q queries, G gallery images, D dimensions; q a chunk of queries, g a tile of the gallery; S gallery images of a
query's pid, P positives among them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfa.errors import DataError

CHUNK = 768
"""Queries whose distances are held at once: in Market-1501's gallery they and a tile of it take 63 MB."""
TILE = 1024
"""Gallery images whose centred features are held at once: a copy of all would double what features take."""
BLOCK = 64
"""Queries of which the images of their own pid are looked up at once."""
FEW = 20
"""Positives of a query up to which counting what is nearer than each is faster than sorting the row."""
_EMPTY_GALLERY = (
    "queries are ranked in a gallery, but it holds no image; check the split that the gallery is taken from."
)
_NOT_FINITE = "distances must be finite to be ranked, but some are nan or infinite; check the features."


class NotFiniteError(DataError):
    """Features or distances that are nan or infinite: the model has diverged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalReport:
    """Retrieval quality over the queries that have a positive, as fractions in [0, 1]."""

    mAP: float
    """Mean average precision, rectangle rule: the mean of precision at each positive."""
    mAP_trapezoid: float
    """The same with the trapezoid rule of Market-1501's own code: 0.5 to 1 point lower."""
    cmc: tuple[float, ...]
    """Share of queries with a positive among the first 1, 2, ..., ``max_rank``."""
    mINP: float
    """Mean inverse negative penalty: positives over the rank of the last of them."""
    num_queries: int
    """Queries that count."""
    num_skipped: int
    """Queries without a positive in the gallery."""
    mAP_cosine: float | None = None
    """mAP by cosine distance, for information; none where it was not asked for."""
    identities: tuple[tuple[int, float, int], ...] = ()
    """By ascending pid: the sum of its queries' average precisions, and their number; of one direction only."""

    def rank(self, k: int) -> float:
        """Return CMC at rank k, from 1.

        Raises:
            IndexError: k outside 1..max_rank.
        """
        if not 1 <= k <= len(self.cmc):
            raise IndexError(f"1 <= k <= {len(self.cmc)} must hold, but got {k}.")
        return self.cmc[k - 1]

    def to_json(self) -> str:
        """Return JSON that :meth:`from_json` reads back exactly."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the report that ``dataclasses.asdict`` took apart, also after a trip through JSON."""
        identities = tuple((pid, total, number) for pid, total, number in values.get("identities", ()))
        return cls(**{**values, "cmc": tuple(values["cmc"]), "identities": identities})


def distances(query_QD: Tensor, gallery_GD: Tensor, *, chunk: int = CHUNK) -> Iterator[NDArray[np.float32]]:
    """Yield squared L2 distances distances_qG of successive chunks of queries, in one reused buffer.

    Features are centred first: |x|² + |y|² - 2xy loses near-duplicates far from the origin.

    Raises:
        DataError: an empty gallery.
        NotFiniteError: features that are not finite.
    """
    for rows_qG in _distances(query_QD, gallery_GD, chunk=chunk):
        yield rows_qG.cpu().numpy()


def _distances(query_QD: Tensor, gallery_GD: Tensor, *, chunk: int) -> Iterator[Tensor]:
    """Yield what :func:`distances` does, on the features' device."""
    if not len(gallery_GD):
        raise DataError(_EMPTY_GALLERY)
    centre_D = gallery_GD.mean(dim=0, dtype=torch.float32)
    tile_gD = centre_D.new_empty(min(TILE, len(gallery_GD)), len(centre_D))
    query_Q, gallery_G = (_squared_lengths(given, centre_D, tile_gD) for given in (query_QD, gallery_GD))
    if not (torch.isfinite(query_Q).all() and torch.isfinite(gallery_G).all()):
        raise NotFiniteError(
            "features must be finite to be ranked, but some are nan or infinite; the model has diverged."
        )
    buffer_qG = centre_D.new_empty(min(chunk, len(query_QD)), len(gallery_GD))
    buffer_qD = centre_D.new_empty(len(buffer_qG), len(centre_D))
    for part_qD, query_q in zip(torch.split(query_QD, chunk), torch.split(query_Q, chunk), strict=True):
        rows_qG = buffer_qG[: len(part_qD)]
        query_qD = torch.sub(part_qD, centre_D, out=buffer_qD[: len(part_qD)])
        for begin in range(0, len(gallery_GD), TILE):
            tile = slice(begin, begin + TILE)
            gallery_gD = torch.sub(gallery_GD[tile], centre_D, out=tile_gD[: len(gallery_GD[tile])])
            distances_qg = torch.add(query_q[:, None], gallery_G[tile], out=rows_qG[:, tile])
            distances_qg.addmm_(query_qD, gallery_gD.T, alpha=-2).clamp_(min=0)  # while it is in the cache
        yield rows_qG


def _squared_lengths(given_ND: Tensor, centre_D: Tensor, tile_gD: Tensor) -> Tensor:
    """Return |x - centre|² of all features, by way of a buffer."""
    lengths = given_ND.new_empty(len(given_ND), dtype=centre_D.dtype)
    for part_gD, length_g in zip(*(torch.split(one, len(tile_gD)) for one in (given_ND, lengths)), strict=True):
        torch.linalg.vector_norm(torch.sub(part_gD, centre_D, out=tile_gD[: len(part_gD)]), dim=1, out=length_g)
    return lengths.square_()


def rank(
    distances_QG: NDArray[np.floating[Any]] | Iterable[NDArray[np.floating[Any]]],
    *,
    query_pids: NDArray[np.int64],
    query_camids: NDArray[np.int64],
    gallery_pids: NDArray[np.int64],
    gallery_camids: NDArray[np.int64],
    max_rank: int = 50,
) -> RetrievalReport:
    """Return CMC, both mean average precisions and mINP under the single-query protocol of Market-1501.

    Gallery images of the query's pid **and** camera are junk and removed; a query without a positive left is skipped
    and counted; gallery pids of 0 or less match nobody. A tie counts against the model.

    Args:
        distances_QG: the matrix, or its rows in successive chunks; smaller is nearer; never changed.
        query_pids: [Q]
        query_camids: [Q]
        gallery_pids: [G]
        gallery_camids: [G]
        max_rank: length of the CMC, which stays at its last value beyond the end of a short gallery.

    Raises:
        DataError: an empty gallery, or no query with a positive (which rule removed them, and how many).
        NotFiniteError: distances that are not finite.

    >>> report = rank(np.array([[0.1, 0.2, 0.3, 0.4, 0.5]]), query_pids=np.array([7]), query_camids=np.array([0]),
    ...     gallery_pids=np.array([7, 1, 7, 2, 3]), gallery_camids=np.array([1, 1, 2, 1, 1]))
    >>> round(report.mAP, 4), round(report.mAP_trapezoid, 4)
    (0.8333, 0.7917)
    """
    own = _Own(query_pids, query_camids, gallery_pids, gallery_camids)
    found: list[NDArray[np.intp]] = []
    for rows_qG in [distances_QG] if isinstance(distances_QG, np.ndarray) else distances_QG:
        for begin in range(0, len(rows_qG), BLOCK):
            found += own.negatives_before(rows_qG[begin : begin + BLOCK], first=len(found))
    return _report(found, query_pids, gallery_pids, max_rank=max_rank)


def rank_features(
    query_QD: Tensor,
    gallery_GD: Tensor,
    *,
    query_pids: NDArray[np.int64],
    query_camids: NDArray[np.int64],
    gallery_pids: NDArray[np.int64],
    gallery_camids: NDArray[np.int64],
    max_rank: int = 50,
) -> RetrievalReport:
    """Return what :func:`rank` makes of :func:`distances`; features on a GPU are ranked there.

    Arguments and errors are theirs.
    """
    labels = (query_pids, query_camids, gallery_pids, gallery_camids)
    if query_QD.device.type == "cpu":
        names = ("query_pids", "query_camids", "gallery_pids", "gallery_camids")
        return rank(distances(query_QD, gallery_GD), **dict(zip(names, labels, strict=True)), max_rank=max_rank)
    return _report(_ranked_on_device(query_QD, gallery_GD, _Own(*labels)), query_pids, gallery_pids, max_rank=max_rank)


def _ranked_on_device(query_QD: Tensor, gallery_GD: Tensor, own: _Own) -> list[NDArray[np.intp]]:
    """Return what :meth:`_Own.negatives_before` does, for all queries, from whole chunks on the features' device."""
    found: list[NDArray[np.intp]] = []
    for rows_qG in _distances(query_QD, gallery_GD, chunk=CHUNK):
        is_finite = torch.isfinite(rows_qG).all()
        same, owned, positive = (
            torch.from_numpy(given).to(rows_qG.device) for given in own.padded(len(found), len(rows_qG))
        )
        removed = owned.any(dim=1, keepdim=True)  # also where a column stands again: which of them is written last?
        own_qS = rows_qG.gather(1, same)
        positives_qS = torch.where(positive, own_qS, torch.inf).sort(dim=1).values
        rows_qG.scatter_(1, same, torch.where(removed, torch.inf, own_qS))
        negatives_qS = torch.searchsorted(rows_qG.sort(dim=1).values, positives_qS, right=True)
        if not is_finite:
            raise NotFiniteError(_NOT_FINITE)
        numbers_q = positive.sum(dim=1).tolist()
        rows = zip(negatives_qS.cpu().numpy(), numbers_q, strict=True)
        found += [negatives_S[:number] for negatives_S, number in rows]
    return found


def _report(
    every: list[NDArray[np.intp]], query_pids: NDArray[np.int64], gallery_pids: NDArray[np.int64], *, max_rank: int
) -> RetrievalReport:
    """Return all scores from the number of negatives as near as or nearer than each positive of each query.

    P runs over the positives of all queries, nearest first within each; Q over the queries that have one.
    """
    assert len(every) == len(query_pids), "one row of distances for each query"
    has_positive_Q = np.array([len(negatives_P) > 0 for negatives_P in every], dtype=bool)
    if not has_positive_Q.any():
        raise DataError(_no_positive(query_pids, gallery_pids))
    pids_Q = query_pids[has_positive_Q]
    found = [negatives_P for negatives_P in every if len(negatives_P)]
    negatives_P = np.concatenate(found)
    num_positives = np.array([len(negatives) for negatives in found])
    ends = np.cumsum(num_positives)
    starts = ends - num_positives
    before_P = np.arange(len(negatives_P)) - np.repeat(starts, num_positives)
    ranks_P = negatives_P + before_P  # from 0
    precision_P = (before_P + 1) / (ranks_P + 1)
    earlier_P = np.where(ranks_P > 0, before_P / np.maximum(ranks_P, 1), 1.0)  # precision just before the positive
    trapezoid_P = (precision_P + earlier_P) / 2
    hits = np.bincount(negatives_P[starts], minlength=max_rank)[:max_rank]
    ap_Q = np.add.reduceat(precision_P, starts) / num_positives
    pids_I, identity_Q, queries_I = np.unique(pids_Q, return_inverse=True, return_counts=True)
    ap_I = np.bincount(identity_Q, weights=ap_Q)
    return RetrievalReport(
        mAP=float(ap_Q.mean()),
        mAP_trapezoid=float((np.add.reduceat(trapezoid_P, starts) / num_positives).mean()),
        cmc=tuple((np.cumsum(hits) / len(found)).tolist()),
        mINP=float((num_positives / (ranks_P[ends - 1] + 1)).mean()),
        num_queries=len(found),
        num_skipped=len(every) - len(found),
        identities=tuple(zip(pids_I.tolist(), ap_I.tolist(), queries_I.tolist(), strict=True)),
    )


def mean_report(reports: Sequence[RetrievalReport]) -> RetrievalReport:
    """Return the mean of one report or more, such as of the directions of a protocol; queries are added up.

    The cosine mAP is the mean's only where all of them have one.
    """

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(reports)

    cosine = [report.mAP_cosine for report in reports if report.mAP_cosine is not None]
    return RetrievalReport(
        mAP=mean(report.mAP for report in reports),
        mAP_trapezoid=mean(report.mAP_trapezoid for report in reports),
        cmc=tuple(mean(shares) for shares in zip(*(report.cmc for report in reports), strict=True)),
        mINP=mean(report.mINP for report in reports),
        num_queries=sum(report.num_queries for report in reports),
        num_skipped=sum(report.num_skipped for report in reports),
        mAP_cosine=mean(cosine) if len(cosine) == len(reports) else None,
        identities=reports[0].identities if len(reports) == 1 else (),
    )


class _Own:
    """Gallery images of each query's own pid: found once for all, a stretch of the gallery sorted by pid."""

    def __init__(
        self,
        query_pids: NDArray[np.int64],
        query_camids: NDArray[np.int64],
        gallery_pids: NDArray[np.int64],
        gallery_camids: NDArray[np.int64],
    ) -> None:
        assert len(query_pids) == len(query_camids), "a camera for each query"
        if not len(gallery_pids):
            raise DataError(_EMPTY_GALLERY)
        self._order = np.argsort(gallery_pids, kind="stable")
        ascending = gallery_pids[self._order]
        self._begins = np.searchsorted(ascending, query_pids)
        self._ends = np.where(query_pids > 0, np.searchsorted(ascending, query_pids, side="right"), self._begins)
        self._query_camids, self._gallery_camids = query_camids, gallery_camids

    def negatives_before(self, rows_qG: NDArray[np.floating[Any]], *, first: int) -> list[NDArray[np.intp]]:
        """Return for each positive of some queries, nearest first, how many negatives are as near or nearer.

        Args:
            rows_qG: distances of successive queries.
            first: number of the first of them.
        """
        same_qS, is_own_qS, positive_qS = self.padded(first, len(rows_qG))
        values_qS = np.take_along_axis(rows_qG, same_qS, axis=1)
        nearest_qS = np.sort(np.where(positive_qS, values_qS, np.inf), axis=1)
        own_qS = np.sort(np.where(is_own_qS, values_qS, np.inf), axis=1)
        as_near_G = np.empty((FEW, rows_qG.shape[1]), dtype=bool)
        found = []
        for row_G, nearest_S, own_S, number in zip(
            rows_qG, nearest_qS, own_qS, positive_qS.sum(axis=1).tolist(), strict=True
        ):
            if not (math.isfinite(_sum(row_G)) or np.isfinite(row_G).all()):  # or too large to be added up
                raise NotFiniteError(_NOT_FINITE)
            nearest_P = nearest_S[:number]
            found.append(_before(row_G, nearest_P, as_near_G) - np.searchsorted(own_S, nearest_P, side="right"))
        return found

    def padded(self, first: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return for some queries, [q, S] each: columns, which of them have the query's pid, which are its positives.

        Where a query has fewer than S the first of them stands again, or any column where it has none.
        """
        begins, ends = self._begins[first : first + number, None], self._ends[first : first + number, None]
        places = begins + np.arange(max(1, int((ends - begins).max())))
        own = places < ends
        same = self._order[np.minimum(np.where(own, places, begins), len(self._order) - 1)]
        others = self._gallery_camids[same] != self._query_camids[first : first + number, None]
        return same.astype(np.int64), own, own & others


def _sum(row_G: NDArray[np.floating[Any]]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(row_G.sum())


def _before(
    row_G: NDArray[np.floating[Any]], nearest_P: NDArray[np.floating[Any]], as_near_G: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Return how many distances are at most each of a few; a buffer is given for those that are."""
    if len(nearest_P) > len(as_near_G):  # to sort is faster then
        return np.searchsorted(np.sort(row_G), nearest_P, side="right")
    as_near_PG = np.less_equal(row_G, nearest_P[:, None], out=as_near_G[: len(nearest_P)])
    return np.array([np.count_nonzero(one_G) for one_G in as_near_PG], dtype=np.intp)


def _no_positive(query_pids: NDArray[np.int64], gallery_pids: NDArray[np.int64]) -> str:
    known = np.isin(query_pids, gallery_pids[gallery_pids > 0])
    return (
        "a query needs a gallery image of its pid from another camera, but none of the "
        f"{len(query_pids)} queries has one: {int((~known).sum())} have a pid that is not in the gallery, "
        f"{int(known.sum())} have it there only under their own camera, which is junk; "
        "check the pids and camera ids that the file names give."
    )
