"""Held-out identities, and the ten splits of the small datasets."""

import dataclasses
import hashlib
import importlib.resources
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmfa.data.records import Domain
from mmfa.data.splits import NUM_SPLITS, held_out_pids, ten
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


def test_nobody_is_held_out_of_an_unlabelled_domain():
    paths = ("a.jpg", "b.jpg")
    splits = np.full(2, "train", dtype="<U11")
    domain = Domain(name="x", paths=paths, pids=np.full(2, -1), camids=np.zeros(2, int), splits=splits, labelled=False)
    assert domain.with_held_out(100) is domain and domain.with_split(3) is domain


# The ten splits


def two_views(name, *, shared, only_a=(), only_b=()):
    """A domain of one image per person and view; pids as the loader gives them."""
    rows = sorted(
        (f"cam_{view}/{pid:04d}.png", pid, camid)
        for view, camid, only in (("a", 0, only_a), ("b", 1, only_b))
        for pid in (*shared, *only)
    )
    paths, pids, camids = zip(*rows, strict=True)
    splits = np.full(len(rows), "unused", dtype="<U11")
    return Domain(name=name, paths=paths, pids=np.array(pids), camids=np.array(camids), splits=splits)


def prid():
    return two_views("prid2011", shared=range(1, 201), only_a=range(1201, 1386), only_b=range(201, 750))


def viper():
    return two_views("viper", shared=(ten.VIPER_IDS + 1).tolist())


@pytest.mark.parametrize("name", ["viper", "prid2011"])
def test_the_shipped_splits_are_what_the_repository_draws(name):
    shipped = (importlib.resources.files("mmfa.data.splits") / f"{name}.json").read_text()
    assert shipped == ten.draw(name)
    assert hashlib.sha256(shipped.encode()).hexdigest() == ten.SHA256[name]
    content = json.loads(shipped)
    assert set(content) == {"dataset", "seed", "train"} and len(content["train"]) == NUM_SPLITS == 10
    half = {"viper": 316, "prid2011": 100}[name]
    for ids in content["train"]:
        assert ids == sorted(set(ids)) and len(ids) == half
    assert len({tuple(ids) for ids in content["train"]}) == 10


def test_vipers_numbers_have_gaps_and_begin_with_000():
    assert len(ten.VIPER_IDS) == 632
    assert ten.VIPER_IDS[[0, 1, -2, -1]].tolist() == [0, 1, 872, 873]
    assert not np.isin([247, 299, 450, 742, 857], ten.VIPER_IDS).any()


@pytest.mark.parametrize("number", range(10))
def test_viper_is_halved_by_identity(number):
    domain = viper().with_split(number)
    train, query, gallery = (domain.rows(split) for split in ("train", "query", "gallery"))
    assert (len(train), len(query), len(gallery)) == (632, 316, 316)
    assert (domain.camids[query] == 0).all() and (domain.camids[gallery] == 1).all()
    np.testing.assert_array_equal(np.sort(domain.pids[query]), np.sort(domain.pids[gallery]))
    assert not np.isin(domain.pids[train], domain.pids[query]).any()
    assert len(domain.train_pids) == 316 and domain.pids.min() == 1


@pytest.mark.parametrize("number", range(10))
def test_prids_gallery_is_649_and_not_464(number):
    domain = prid().with_split(number)
    train, query, gallery = (domain.rows(split) for split in ("train", "query", "gallery"))
    assert (len(train), len(query), len(gallery)) == (200, 100, 649)
    assert (domain.camids[query] == 0).all() and (domain.camids[gallery] == 1).all()
    assert domain.pids[query].max() <= 200
    unused = domain.rows("unused")
    assert len(unused) == 185 and (domain.camids[unused] == 0).all()
    assert not np.isin(domain.pids[unused], domain.pids[gallery]).any(), "the same numbers in view B are other people"
    assert np.isin(domain.pids[query], domain.pids[gallery]).all()


def test_a_split_replaces_another_and_differs_from_it():
    domain = prid()
    one, other = domain.with_split(0), domain.with_split(9)
    assert one.splits.tolist() == other.with_split(0).splits.tolist() != other.splits.tolist()
    assert (domain.splits == "unused").all(), "the original is unchanged"


def test_a_domain_with_official_splits_keeps_them():
    domain = small_domain({1: (0, 1)})
    assert domain.with_split(5) is domain


@pytest.mark.parametrize("number", [-1, 10])
def test_there_are_ten_splits(number):
    with pytest.raises(DataError, match=f"one of 0 to 9, but got {number}"):
        prid().with_split(number)


@pytest.mark.parametrize("make", [viper, prid])
def test_the_small_datasets_are_too_small_to_hold_out_from(make):
    domain = make().with_split(0)
    assert domain.with_held_out(0) is domain
    with pytest.raises(DataError, match=r"too small to hold out from, but .*=5 were asked; set data\.num_val_ids=0"):
        domain.with_held_out(5)


@pytest.fixture
def shipped_elsewhere(tmp_path, monkeypatch):
    """The split files copied, so that they can be damaged."""
    for name in ten.SHA256:
        shutil.copy(importlib.resources.files("mmfa.data.splits") / f"{name}.json", tmp_path)
    monkeypatch.setattr(importlib.resources, "files", lambda package: Path(tmp_path))
    ten._shipped.cache_clear()
    yield tmp_path
    ten._shipped.cache_clear()


def test_a_changed_or_missing_split_file_is_named(shipped_elsewhere):
    assert (prid().with_split(0).splits == "train").sum() == 200
    ten._shipped.cache_clear()
    path = shipped_elsewhere / "prid2011.json"
    path.write_text(path.read_text().replace("[3, ", "[2, ", 1))
    with pytest.raises(DataError, match=r"those that were shipped, but .*prid2011\.json has been changed"):
        prid().with_split(0)
    path.unlink()
    with pytest.raises(DataError, match=r"prid2011\.json is missing"):
        prid().with_split(0)
