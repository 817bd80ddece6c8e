"""Which training identities are held out for validation."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from mmfa.data.records import Domain, Ints
from mmfa.data.splits.ten import SHA256 as SMALL
from mmfa.errors import DataError

logger = logging.getLogger(__name__)

HOLD_OUT_SEED = 20180704
"""Never a run's seed: every run of every study must hold out the same identities."""


def held_out_pids(train_pids: Ints, *, num_ids: int) -> Ints:
    """Choose the identities to hold out: a function of the identities and of nothing else.

    Fewer identities asked of the same list are always a subset of more.

    Args:
        train_pids: [K] identities in any order.
        num_ids: how many of them; at most half.

    Returns:
        int64 [num_ids], ascending.

    Raises:
        DataError: more than half of the identities asked.
    """
    pids = np.unique(np.asarray(train_pids, dtype=np.int64))
    if num_ids > len(pids) // 2:
        raise DataError(
            f"At most half of the training identities can be held out, but data.num_val_ids={num_ids} "
            f"of {len(pids)} were asked; lower it to {len(pids) // 2} or less."
        )
    order = np.random.Generator(np.random.PCG64(HOLD_OUT_SEED)).permutation(len(pids))
    return np.sort(pids[order[:num_ids]])


def hold_out(domain: Domain, *, num_ids: int) -> Domain:
    """Return a copy of the domain in which ``num_ids`` training identities are for validation.

    Only identities seen by two cameras or more are eligible. Of each of their (pid, camid) the first image by path
    becomes ``val_query``, the others ``val_gallery``.

    Args:
        domain: with its official splits; an unlabelled one is returned as it is.
        num_ids: identities to hold out; 0 changes nothing.

    Raises:
        DataError: more identities than half of the eligible ones, a dataset too small to hold any out, or no query
            with an image by another camera.
    """
    if num_ids == 0 or not domain.labelled:
        return domain
    if domain.name in SMALL:
        raise DataError(
            f"{domain.name} is too small to hold out from, but data.num_val_ids={num_ids} were asked; "
            "set data.num_val_ids=0 and choose settings on other datasets."
        )
    train = domain.rows("train")
    seen = np.unique(np.stack([domain.pids[train], domain.camids[train]]), axis=1)
    eligible, num_cameras = np.unique(seen[0], return_counts=True)
    chosen = held_out_pids(eligible[num_cameras >= 2], num_ids=num_ids)

    rows = train[np.isin(domain.pids[train], chosen)]
    pairs = np.stack([domain.pids[rows], domain.camids[rows]], axis=1)
    first = np.unique(pairs, axis=0, return_index=True)[1]  # paths ascend, so the first row is the first path
    splits = domain.splits.astype("<U11")
    splits[rows] = "val_gallery"
    splits[rows[first]] = "val_query"
    held = dataclasses.replace(domain, splits=splits)
    _check_queries(held)
    return held


def _check_queries(domain: Domain) -> None:
    query, gallery = domain.rows("val_query"), domain.rows("val_gallery")
    cameras: dict[int, set[int]] = {}
    for row in gallery.tolist():
        cameras.setdefault(int(domain.pids[row]), set()).add(int(domain.camids[row]))
    alone = sum(not cameras.get(int(domain.pids[row]), set()) - {int(domain.camids[row])} for row in query.tolist())
    if alone == len(query):
        raise DataError(
            "A held-out query needs a gallery image of the same identity by another camera, but none of the "
            f"{len(query)} of {domain.name} has one; set data.num_val_ids=0 or use data with more images per camera."
        )
    if alone:
        logger.warning(
            "%s: %d of %d held-out queries have no second image in another camera and will be skipped",
            domain.name, alone, len(query),
        )  # fmt: skip
