"""Held-out identities."""

import dataclasses
import logging

import numpy as np
import pytest

from mmfa.data.records import Domain
from mmfa.data.splits import held_out_pids
from mmfa.errors import DataError


def small_domain(cameras_by_pid, *, images=2):
    rows = [
        (f"bounding_box_train/{pid:04d}_c{camid + 1}s1_{take:06d}_00.jpg", pid, camid)
        for pid, cameras in cameras_by_pid.items()
        for camid in cameras
        for take in range(images)
    ]
    paths, pids, camids = zip(*sorted(rows), strict=True)
    splits = np.full(len(rows), "train")
    return Domain(name="small", paths=paths, pids=np.array(pids), camids=np.array(camids), splits=splits)


def test_the_choice_depends_on_the_set_of_identities_alone():
    pids = np.arange(100, 160)
    chosen = held_out_pids(pids, num_ids=10)
    assert len(np.unique(chosen)) == 10 and np.isin(chosen, pids).all()
    shuffled = np.random.default_rng(0).permutation(np.repeat(pids, 3))
    np.testing.assert_array_equal(held_out_pids(shuffled, num_ids=10), chosen)
    assert not np.array_equal(held_out_pids(pids[:-1], num_ids=10), chosen)


def test_the_choice_is_pinned():
    """Every published validation number refers to it."""
    np.testing.assert_array_equal(held_out_pids(np.arange(1, 21), num_ids=5), [1, 5, 9, 10, 12])


def test_fewer_are_a_subset_of_more():
    pids = np.arange(1, 61)
    assert set(held_out_pids(pids, num_ids=5)) < set(held_out_pids(pids, num_ids=30))


def test_more_than_half_is_an_error():
    held_out_pids(np.arange(10), num_ids=5)
    with pytest.raises(DataError, match="num_val_ids=6 of 10 were asked; lower it to 5"):
        held_out_pids(np.arange(10), num_ids=6)


def test_held_out_identities_leave_training_entirely():
    domain = small_domain(dict.fromkeys(range(1, 21), (0, 2, 5)), images=3)
    held = domain.with_held_out(6)
    chosen = held_out_pids(np.arange(1, 21), num_ids=6)
    np.testing.assert_array_equal(held.train_pids, np.setdiff1d(domain.train_pids, chosen))
    query, gallery = held.rows("val_query"), held.rows("val_gallery")
    np.testing.assert_array_equal(np.unique(held.pids[query]), chosen)
    np.testing.assert_array_equal(np.unique(held.pids[gallery]), chosen)
    assert len(query) == 6 * 3 and len(gallery) == 6 * 3 * 2
    for row in query:
        same = (held.pids == held.pids[row]) & (held.camids == held.camids[row])
        assert held.paths[row] == min(path for path, is_same in zip(held.paths, same, strict=True) if is_same)
    assert (domain.splits == "train").all(), "the original is unchanged"


def test_holding_out_nobody_changes_nothing():
    domain = small_domain({1: (0, 1), 2: (0, 1)})
    assert domain.with_held_out(0) is domain


def test_an_identity_of_one_camera_is_never_held_out():
    domain = small_domain({pid: (0, 1) if pid > 10 else (0,) for pid in range(1, 21)})
    held = domain.with_held_out(5)
    assert held.pids[held.rows("val_query")].min() > 10
    with pytest.raises(DataError, match="of 10 were asked"):
        domain.with_held_out(6)


def test_queries_without_a_positive_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        small_domain(dict.fromkeys(range(1, 11), (0, 1)), images=2).with_held_out(2)
    assert not caplog.records
    domain = small_domain(dict.fromkeys(range(1, 11), (0, 1)), images=2)
    chosen = int(held_out_pids(np.arange(1, 11), num_ids=2)[0])
    kept = [f"{chosen:04d}_c2s1_000001" not in path for path in domain.paths]
    fewer = dataclasses.replace(
        domain,
        paths=tuple(path for path, is_kept in zip(domain.paths, kept, strict=True) if is_kept),
        **{column: getattr(domain, column)[kept] for column in ("pids", "camids", "splits")},
    )
    with caplog.at_level(logging.WARNING):
        fewer.with_held_out(2)
    assert "1 of 4 held-out queries" in caplog.text


def test_no_query_with_a_positive_is_an_error():
    with pytest.raises(DataError, match=r"another camera, but none of the 4 of small has one; set data\.num_val_ids=0"):
        small_domain(dict.fromkeys(range(1, 11), (0, 1)), images=1).with_held_out(2)


def test_rows_of_splits_ascend():
    held = small_domain(dict.fromkeys(range(1, 11), (0, 1))).with_held_out(3)
    both = held.rows("val_gallery", "val_query")
    np.testing.assert_array_equal(both, np.sort(both))
    assert len(both) + len(held.rows("train")) == len(held.paths)
