"""Distances, CMC and average precision: pure functions that know nothing of datasets.

Shapes: Q queries, G gallery images, D dimensions; q a chunk of queries.
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

CHUNK = 1024
"""Queries whose distances are held at once."""
_EMPTY_GALLERY = (
    "queries are ranked in a gallery, but it holds no image; check the split that the gallery is taken from."
)


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
    if not len(gallery_GD):
        raise DataError(_EMPTY_GALLERY)
    centre_D = gallery_GD.float().mean(dim=0)
    query_QD, gallery_GD = query_QD.float() - centre_D, gallery_GD.float() - centre_D
    query_Q, gallery_G = (torch.linalg.vector_norm(given, dim=1).square_() for given in (query_QD, gallery_GD))
    if not (torch.isfinite(query_Q).all() and torch.isfinite(gallery_G).all()):
        raise NotFiniteError(
            "features must be finite to be ranked, but some are nan or infinite; the model has diverged."
        )
    buffer_qG = gallery_GD.new_empty(min(chunk, len(query_QD)), len(gallery_GD))
    for query_qD, query_q in zip(torch.split(query_QD, chunk), torch.split(query_Q, chunk), strict=True):
        distances_qG = torch.add(query_q[:, None], gallery_G, out=buffer_qG[: len(query_qD)])
        distances_qG.addmm_(query_qD, gallery_GD.T, alpha=-2).clamp_(min=0)
        yield distances_qG.cpu().numpy()


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
    if not len(gallery_pids):
        raise DataError(_EMPTY_GALLERY)
    gallery = _Gallery(gallery_pids, gallery_camids)
    found: list[NDArray[np.intp]] = []
    for rows_qG in [distances_QG] if isinstance(distances_QG, np.ndarray) else distances_QG:
        row_G = np.empty(rows_qG.shape[1], dtype=rows_qG.dtype)
        for given_G in rows_qG:
            np.copyto(row_G, given_G)
            query = len(found)
            found.append(gallery.negatives_before(row_G, pid=query_pids[query], camid=query_camids[query]))
    assert len(found) == len(query_pids) == len(query_camids), "one row of distances for each query"
    has_positive_Q = np.array([len(negatives_P) > 0 for negatives_P in found], dtype=bool)
    if not has_positive_Q.any():
        raise DataError(_no_positive(query_pids, gallery_pids))
    return _report(found, query_pids[has_positive_Q], max_rank=max_rank)


def _report(every: list[NDArray[np.intp]], pids_Q: NDArray[np.int64], *, max_rank: int) -> RetrievalReport:
    """Return all scores from the number of negatives as near as or nearer than each positive of each query.

    P runs over the positives of all queries, nearest first within each; Q over the queries that have one.
    """
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


class _Gallery:
    """Gallery images by pid, so that a query finds its own in O(log G)."""

    def __init__(self, pids: NDArray[np.int64], camids: NDArray[np.int64]) -> None:
        self._order = np.argsort(pids, kind="stable")
        self._sorted = pids[self._order]
        self._camids = camids

    def negatives_before(self, row_G: NDArray[np.floating[Any]], *, pid: int, camid: int) -> NDArray[np.intp]:
        """Return for each positive, nearest first, how many negatives are as near or nearer; overwrites ``row_G``."""
        begin, end = np.searchsorted(self._sorted, [pid, pid + 1]) if pid > 0 else (0, 0)
        same = self._order[begin:end]
        own = row_G[same]
        positives_P = np.sort(own[self._camids[same] != camid])
        row_G[same] = np.inf
        row_G.sort()
        num_negatives = len(row_G) - len(same)
        ends = [row_G[0], row_G[num_negatives - 1]] if num_negatives else []
        if not np.isfinite(own).all() or not all(map(math.isfinite, ends)) or math.isnan(row_G[-1]):  # nan sorts last
            raise NotFiniteError(
                "distances must be finite to be ranked, but some are nan or infinite; check the features."
            )
        return np.searchsorted(row_G[:num_negatives], positives_P, side="right")


def _no_positive(query_pids: NDArray[np.int64], gallery_pids: NDArray[np.int64]) -> str:
    known = np.isin(query_pids, gallery_pids[gallery_pids > 0])
    return (
        "a query needs a gallery image of its pid from another camera, but none of the "
        f"{len(query_pids)} queries has one: {int((~known).sum())} have a pid that is not in the gallery, "
        f"{int(known.sum())} have it there only under their own camera, which is junk; "
        "check the pids and camera ids that the file names give."
    )
