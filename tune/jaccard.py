"""The Jaccard distance of k-reciprocal neighbourhoods (Zhong et al., CVPR 2017): how alike two images' company is.

Shapes: N images, K nearest neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from mmfa.data.records import Floats, Ints


def jaccard_distances(distances_NN: Floats, *, k1: int = 20, k2: int = 6) -> Floats:
    """Return the Jaccard distance of k-reciprocal neighbourhoods (Zhong et al., CVPR 2017, eq. 5 to 11).

    An image is its own first neighbour; of equal distances the earlier column is nearer. Distances enter by their order
    and relative to the largest of their row, so that a common factor changes nothing.

    Args:
        distances_NN: squared L2.
        k1: neighbours that must be mutual; half of it for those of the neighbours.
        k2: neighbours whose memberships are averaged; 1: none.

    Returns:
        float32 in [0, 1], symmetric.
    """
    num = len(distances_NN)
    nearest_NK = _nearest(distances_NN, max(k1 + 1, k2))
    reciprocal, half = (_reciprocal(nearest_NK[:, : k + 1]) for k in (k1, round(k1 / 2)))
    # A neighbour brings its own half neighbourhood where more than two thirds of that are shared.
    shared = (reciprocal @ half.T).multiply(reciprocal).tocoo()
    bring = 3 * shared.data > 2 * np.diff(half.indptr)[shared.col]
    bringing = sparse.csr_array((shared.data[bring], (shared.row[bring], shared.col[bring])), shape=(num, num))
    expanded = (reciprocal + bringing @ half).tocoo()
    largest_N = np.maximum(distances_NN.max(axis=1), np.finfo(np.float32).tiny)
    near = np.where(expanded.row == expanded.col, 0, distances_NN[expanded.row, expanded.col])
    weights = np.exp(-near.astype(np.float64) / largest_N[expanded.row])
    weights /= np.bincount(expanded.row, weights, minlength=num)[expanded.row]
    membership = sparse.csr_array((weights, (expanded.row, expanded.col)), shape=(num, num))
    averaged = _neighbours(nearest_NK[:, :k2]) @ membership / min(k2, num)
    return _jaccard(averaged.tocsr())


def _nearest(distances_NN: Floats, k: int) -> Ints:
    """Return the k nearest of each image, itself first; of equal ones the earlier."""
    nearest_NK = np.empty((len(distances_NN), min(k, len(distances_NN))), dtype=np.int64)
    for image, given_N in enumerate(distances_NN):
        row_N = given_N.copy()
        row_N[image] = -1
        nearest_NK[image] = np.argsort(row_N, kind="stable")[: nearest_NK.shape[1]]
    return nearest_NK


def _neighbours(nearest_NK: Ints) -> Any:
    """Return a sparse [N, N] with 1 at each image's neighbours."""
    num, k = nearest_NK.shape
    starts = np.arange(0, num * k + 1, k)
    return sparse.csr_array((np.ones(num * k, dtype=np.int64), nearest_NK.ravel(), starts), shape=(num, num))


def _reciprocal(nearest_NK: Ints) -> Any:
    """Return a sparse [N, N] with 1 where two images are neighbours of each other."""
    neighbours = _neighbours(nearest_NK)
    return neighbours.multiply(neighbours.T).tocsr()


def _jaccard(membership: Any) -> Floats:
    """Return 1 - Σ min / Σ max of all pairs of rows, each of which sums to 1."""
    columns = membership.tocsc()
    num = membership.shape[0]
    result_NN = np.empty((num, num), dtype=np.float32)
    for image in range(num):
        own = slice(membership.indptr[image], membership.indptr[image + 1])
        others = columns[:, membership.indices[own]]
        least = np.minimum(others.data, np.repeat(membership.data[own], np.diff(others.indptr)))
        shared_N = np.bincount(others.indices, least, minlength=num)
        result_NN[image] = np.maximum(1 - shared_N / (2 - shared_N), 0)  # rounding: an image is at -1e-16 from itself
    result_NN += result_NN.T.copy()
    result_NN /= 2
    return result_NN
