"""Label-free criteria: against plain loops, by hand, and whatever order the images come in."""

import math

import numpy as np
import pytest
from references import jaccard as reference
from references import ranking
from tune_tests.probes import COLLAPSED, NAMES, people, probe_of, shuffled

from tune.criteria import attribute_information, compute, cross_camera_mAP, effective_rank, silhouette

# pseudo/*


@pytest.mark.parametrize("seed", range(8))
def test_cross_camera_map_equals_the_plain_loops(seed):
    rng = np.random.default_rng(seed)
    made, _ = people(num_ids=7, num_cameras=3, shots=2, spread=float(rng.choice([0.2, 0.4, 0.6])), seed=seed)
    probe = probe_of(sorted(made.embeddings_ND.tolist(), key=lambda row: np.float16(row).tobytes()), made.camids_N)
    given = {"k1": 6, "k2": 3}, {"eps": float(rng.choice([0.4, 0.6])), "min_samples": int(rng.choice([2, 4]))}
    distances = reference.squared_distances(probe.embeddings_ND.tolist())
    labels = reference.dbscan(reference.jaccard_distances(distances, **given[0]), **given[1])
    clustered = [image for image, label in enumerate(labels) if label >= 0]
    camids, pids = probe.camids_N.tolist(), [label + 1 for label in labels]
    judged = ranking.rank(
        [distances[image] for image in clustered],
        query_pids=[pids[image] for image in clustered],
        query_camids=[camids[image] for image in clustered],
        gallery_pids=pids,
        gallery_camids=camids,
        max_rank=5,
    )
    share = len(clustered) / len(labels)
    assert cross_camera_mAP(probe, **given[0], **given[1]) == pytest.approx(
        {
            "pseudo/xcam_mAP": judged["mAP"] * share,
            "pseudo/clustered": share,
            "pseudo/num_clusters": max(labels) + 1,
        },
        rel=1e-6,
    )
    assert judged["mAP"] > 0 and max(labels) > 0


def test_perfect_clusters_score_1():
    probe, _ = people()
    assert cross_camera_mAP(probe) == {"pseudo/xcam_mAP": 1.0, "pseudo/clustered": 1.0, "pseudo/num_clusters": 8.0}


def test_images_without_a_cluster_cost_their_share_and_are_no_queries():
    probe, _ = people()
    alone = 30 * np.eye(16)[:8]
    more = probe_of(np.concatenate([probe.embeddings_ND, alone]), np.concatenate([probe.camids_N, np.arange(8) % 4]))
    got = cross_camera_mAP(more, k1=23, k2=1)  # more would give them a share in the company of others
    share = 192 / 200
    assert got == {"pseudo/xcam_mAP": share, "pseudo/clustered": share, "pseudo/num_clusters": 8.0}


@pytest.mark.parametrize("name", COLLAPSED)
def test_fewer_than_two_clusters_score_0(name):
    got = cross_camera_mAP(probe_of(COLLAPSED[name]))
    assert got["pseudo/xcam_mAP"] == 0 or name == "five points"


def test_nobody_in_a_cluster_scores_0():
    everybody_alone = cross_camera_mAP(probe_of(np.random.default_rng(0).normal(size=(50, 8))), eps=1e-3)
    assert everybody_alone == {"pseudo/xcam_mAP": 0.0, "pseudo/clustered": 0.0, "pseudo/num_clusters": 0.0}


def test_one_cluster_scores_0_however_good():
    probe, _ = people(num_ids=1)
    assert cross_camera_mAP(probe) == {"pseudo/xcam_mAP": 0.0, "pseudo/clustered": 1.0, "pseudo/num_clusters": 1.0}


def test_clusters_of_one_camera_score_0():
    probe, pids = people()
    by_camera = cross_camera_mAP(probe_of(probe.embeddings_ND, pids % 4))
    assert by_camera == {"pseudo/xcam_mAP": 0.0, "pseudo/clustered": 1.0, "pseudo/num_clusters": 8.0}

    alone = probe_of(np.concatenate([probe.embeddings_ND, 30 * np.eye(16)[:8]]), [*(pids % 4), *range(8)])
    assert cross_camera_mAP(alone, k1=23, k2=1)["pseudo/xcam_mAP"] == 0  # not of theirs, who are nobody, either


# cluster/silhouette


def plain_silhouette(vectors, labels):
    distances = [[math.dist(x, y) for y in vectors] for x in vectors]
    scores = []
    for image, row in enumerate(distances):
        means = {}
        for label in set(labels):
            members = [other for other in range(len(labels)) if labels[other] == label and other != image]
            means[label] = sum(row[other] for other in members) / len(members)
        own = means.pop(labels[image])
        nearest = min(means.values())
        scores.append((nearest - own) / max(own, nearest))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(3))
def test_silhouette_of_plain_clusters_equals_the_plain_loops(seed):
    probe, pids = people(num_cameras=2, shots=3, seed=seed)
    unit = [[v / math.hypot(*row) for v in row] for row in probe.embeddings_ND.tolist()]
    got = silhouette(probe, k=8)
    assert got == pytest.approx(plain_silhouette(unit, pids.tolist()), rel=1e-4) and got > 0.8


def test_silhouette_sees_directions_and_not_lengths():
    probe, _ = people()
    lengths = 2.0 ** np.random.default_rng(0).integers(-3, 4, (len(probe.camids_N), 1))
    assert silhouette(probe_of(probe.embeddings_ND * lengths), k=8) == pytest.approx(silhouette(probe, k=8), rel=1e-4)


def test_silhouette_repeats_itself_and_falls_with_the_spread():
    values = [silhouette(people(spread=spread)[0], k=8) for spread in (0.05, 0.5, 2.0)]
    assert values == sorted(values, reverse=True) and values[0] > 0.8 > 0.3 > values[2]
    assert silhouette(people(spread=2.0)[0], k=8) == values[2]


@pytest.mark.parametrize("name", COLLAPSED)
def test_no_more_than_k_embeddings_have_the_lowest_silhouette(name):
    assert silhouette(probe_of(COLLAPSED[name]), k=5) == -1
    directions = np.random.default_rng(0).normal(size=(6, 4))
    assert silhouette(probe_of(directions[:5]), k=5) == -1
    assert silhouette(probe_of(directions), k=5) > -1


def test_a_silhouette_needs_two_clusters():
    probe, _ = people()
    with pytest.raises(ValueError, match=r"k >= 2 must hold.*got k=1"):
        silhouette(probe, k=1)
    with pytest.raises(ValueError, match="k >= 2"):
        compute(probe, k=0, eps=0.6, min_samples=4)


# attributes/information


def entropy(p):
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


@pytest.mark.parametrize("seed", range(4))
def test_information_equals_the_plain_loops(seed):
    rng = np.random.default_rng(seed)
    given = rng.choice([0.0, 1.0, 0.25, *rng.random(5)], (int(rng.integers(1, 20)), int(rng.integers(1, 5))))
    probe = probe_of(np.zeros((len(given), 2)), attributes=given)
    columns = probe.attributes_NM.T.tolist()
    expected = [entropy(sum(p) / len(p)) - sum(map(entropy, p)) / len(p) for p in columns]
    assert attribute_information(probe) == pytest.approx(sum(expected) / len(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("attributes", "information"),
    [
        ([[0.0], [1.0]], 1.0),
        ([[0.5], [0.5]], 0.0),
        ([[1.0], [1.0]], 0.0),
        ([[0.0, 1.0], [1.0, 1.0]], 0.5),
        ([[0.25], [0.75]], 1 - (2 - 0.75 * math.log2(3))),
    ],
)
def test_information_by_hand(attributes, information):
    assert attribute_information(probe_of(np.zeros((2, 1)), attributes=attributes)) == pytest.approx(information)


def test_without_heads_there_is_no_information():
    assert attribute_information(probe_of(np.zeros((3, 2)))) is None
    assert set(compute(probe_of(np.eye(8)), k=3, eps=0.6, min_samples=2)) == NAMES - {"attributes/information"}


# probe/effective_rank


@pytest.mark.parametrize("shape", [(30, 5), (5, 30), (20, 20)])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_effective_rank_equals_its_definition(shape, scale):
    given = (scale * np.random.default_rng(0).normal(size=shape)).astype(np.float16)
    singular = np.linalg.svd(given.astype(np.float64) - given.astype(np.float64).mean(axis=0), compute_uv=False)
    shares = (singular / singular.sum()).tolist()
    expected = math.exp(-sum(p * math.log(p) for p in shares if p > 1e-12))
    assert effective_rank(probe_of(given)) == pytest.approx(expected, rel=1e-9)


def test_effective_rank_by_hand():
    corners = [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]
    assert effective_rank(probe_of(corners)) == pytest.approx(2)
    assert effective_rank(probe_of([*corners, [0, 0, 1], [0, 0, -1]])) == pytest.approx(3)
    assert effective_rank(probe_of(np.arange(10)[:, None] * np.ones(6))) == pytest.approx(1)
    assert effective_rank(probe_of([[3, 0], [-3, 0], [0, 1], [0, -1]])) == pytest.approx(4 / 3**0.75)
    assert effective_rank(probe_of(np.full((9, 700), 0.1))) == effective_rank(probe_of([[5.0, 5]])) == 0


# All of them


@pytest.mark.parametrize("spread", [0.05, 0.6])
def test_the_order_of_the_images_changes_nothing(spread):
    probe, _ = people(spread=spread)
    settings = {"k": 12, "eps": 0.6, "min_samples": 4}
    expected = compute(probe, **settings)
    assert set(expected) == NAMES and expected["probe/finite"] == 1
    for seed in range(4):
        got = compute(shuffled(probe, seed), **settings)
        exact = {name for name in NAMES if name.startswith(("pseudo/", "cluster/"))}
        assert {name: got[name] for name in exact} == {name: expected[name] for name in exact}
        assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", COLLAPSED)
def test_collapsed_embeddings_have_defined_values(name):
    got = compute(probe_of(COLLAPSED[name]), k=5, eps=0.6, min_samples=4)
    assert all(map(math.isfinite, got.values())) and got["cluster/silhouette"] == -1
    assert got["probe/effective_rank"] <= 1 + 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_probe_that_is_not_finite_says_only_that(bad):
    probe, _ = people()
    for name in ("embeddings_ND", "attributes_NM"):
        broken = shuffled(probe, 0)
        getattr(broken, name)[3, 1] = bad
        assert compute(broken, k=8, eps=0.6, min_samples=4) == {"probe/finite": 0.0}
