"""The k-reciprocal Jaccard distance against plain loops and by hand."""

import math

import numpy as np
import pytest
from references import jaccard as reference

from tune.jaccard import jaccard_distances


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("levels", [3, 10_000])  # three values only: nearly everything ties
def test_jaccard_distances_equal_the_plain_loops(seed, levels):
    rng = np.random.default_rng(seed)
    num, (k1, k2) = int(rng.integers(1, 30)), [(20, 6), (5, 3), (6, 1), (1, 2), (3, 50)][seed % 5]
    distances = rng.integers(0, levels, (num, num)).astype(np.float32)
    distances += distances.T
    np.fill_diagonal(distances, 0)
    before = distances.copy()
    got = jaccard_distances(distances, k1=k1, k2=k2)
    np.testing.assert_allclose(got, reference.jaccard_distances(distances.tolist(), k1=k1, k2=k2), atol=1e-6)
    assert got.dtype == np.float32 and np.array_equal(got, got.T) and np.array_equal(distances, before)
    assert got.min() >= 0 and got.max() <= 1


def test_jaccard_by_hand():
    """Two pairs far from each other, k1 = 1: each image knows its partner alone."""
    distances = np.array([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 2], [9, 9, 2, 0]], dtype=np.float32)
    near, nearer = math.exp(-1 / 9), 1.0
    shared = 2 * near / (near + nearer)  # each has 1 at itself and exp(-1/9) at the other
    expected = 1 - shared / (2 - shared)
    got = jaccard_distances(distances, k1=1, k2=1)
    assert got[0, 1] == pytest.approx(expected, rel=1e-5)
    assert got[0, 2] == got[1, 3] == 1 and got[0, 0] == got[3, 3] == 0
    averaged = jaccard_distances(distances, k1=1, k2=2)
    assert averaged[0, 1] == pytest.approx(0, abs=1e-6)  # both have the mean of the two


def test_a_common_factor_changes_no_jaccard_distance():
    distances = np.random.default_rng(0).random((30, 30)).astype(np.float32)
    assert np.array_equal(jaccard_distances(distances), jaccard_distances(1024 * distances))
