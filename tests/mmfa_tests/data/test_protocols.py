"""Queries and galleries of each kind of dataset, and the error of overlapping splits."""

import dataclasses
import math

import numpy as np
import pytest
from mmfa_tests.data.test_splits import prid, small_domain, viper

from mmfa.data import protocols
from mmfa.errors import DataError


def test_viper_is_tested_in_both_directions():
    domain = viper().with_split(4)
    found = protocols.directions(domain)
    assert list(found) == ["a_to_b", "b_to_a"]
    query, gallery = found["a_to_b"]
    assert (domain.camids[query] == 0).all() and (domain.camids[gallery] == 1).all() and len(query) == 316
    np.testing.assert_array_equal(found["b_to_a"], (gallery, query))


def test_prid_is_tested_from_a_to_b():
    domain = prid().with_split(4)
    (query, gallery) = protocols.directions(domain)[""]
    np.testing.assert_array_equal(query, domain.rows("query"))
    np.testing.assert_array_equal(gallery, domain.rows("gallery"))


def test_official_splits_are_taken_as_they_are():
    domain = small_domain({1: (0, 1), 2: (0, 1)})
    splits = np.array(["query", "gallery"] * 4)
    found = protocols.directions(dataclasses.replace(domain, splits=splits))
    assert list(found) == [""] and found[""][0].tolist() == [0, 2, 4, 6]


def test_a_domain_without_queries_is_refused():
    with pytest.raises(DataError, match="needs queries and a gallery, but viper has 0 and 0 of them; assign its split"):
        protocols.directions(viper())
    domain = small_domain({1: (0, 1)})
    unlabelled = dataclasses.replace(domain, pids=np.full(4, -1), labelled=False)
    with pytest.raises(DataError, match="needs identities, but small is unlabelled"):
        protocols.directions(unlabelled)


def test_the_error_of_overlapping_splits():
    values = [0.1, 0.4, 0.2, 0.3, 0.35, 0.15, 0.2, 0.3, 0.25, 0.25]
    mean = sum(values) / 10
    variance = sum((value - mean) ** 2 for value in values) / 9
    found = protocols.overlapping_error(values, test_share=1.0)
    assert math.isclose(found, math.sqrt((1 / 10 + 1) * variance))
    naive = math.sqrt(variance / 10)
    assert round(found / naive, 1) == 3.3
