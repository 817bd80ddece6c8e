"""Label-free criteria and guards: what a probe says of a trial without any label of the target.

Shapes: N images of a probe, D dimensions, M attributes, K nearest neighbours.

Every criterion is a fraction or a number that grows with what it holds for quality. None depends on the order of the
images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import special
from sklearn.cluster import DBSCAN, KMeans
from sklearn.metrics import silhouette_score

from mmfa.data.records import Bools, Floats, Ints
from mmfa.probe import Probe
from mmfa.ranking import distances, rank
from tune.jaccard import jaccard_distances

FINITE = "probe/finite"
XCAM_MAP = "pseudo/xcam_mAP"
CLUSTERED = "pseudo/clustered"
NUM_CLUSTERS = "pseudo/num_clusters"
SILHOUETTE = "cluster/silhouette"
INFORMATION = "attributes/information"
EFFECTIVE_RANK = "probe/effective_rank"
ENSV = "ensv/rank"

NUM_STARTS = 10
"""Random starts of k-means, of which the tightest counts."""
UNDEFINED_SILHOUETTE = -1.0
"""The lowest there is, where k clusters cannot be told apart."""
MIN_ENSEMBLE = 3
"""Trials from which :func:`ensv` says something: each is judged by at least two others."""
ENSEMBLE_NEIGHBOURS = 3
CLIP = 3.0
"""Standard deviations of the baseline beyond which a criterion counts no further."""
MIN_SEEDS = 2
"""Baseline seeds without which there is no standard deviation."""
COLLAPSED = 0.5
"""Share of the baseline's effective rank below which embeddings have collapsed.

Of 27 trainings on the embedded pair (25 settings; one CPU core each, torch 2.15) those above its source-only control in
target mAP had 0.77 to 1.02 of it, whatever loss weights, pooling or BatchNorm, and the one that λ3 = 1e6 wiped out,
which `pseudo/xcam_mAP` and `cluster/silhouette` hold for nearly the best, 0.41.
"""
SOURCE_SHARE = 0.8
"""Share of the baseline's mAP on held-out source identities below which a trial is worse at what it was taught."""

Doubles = npt.NDArray[np.float64]


def compute(probe: Probe, *, k: int, eps: float, min_samples: int) -> dict[str, float]:
    """Return all criteria of one probe by metric name; of one that is not finite only ``probe/finite`` = 0.

    Args:
        probe: of a finished model.
        k: clusters of :func:`silhouette`.
        eps: of :func:`cross_camera_mAP`.
        min_samples: of :func:`cross_camera_mAP`.

    Raises:
        ValueError: k below 2.
    """
    if not probe.finite:
        return {FINITE: 0.0}
    information = attribute_information(probe)
    return {
        FINITE: 1.0,
        **cross_camera_mAP(probe, eps=eps, min_samples=min_samples),
        SILHOUETTE: silhouette(probe, k=k),
        **({} if information is None else {INFORMATION: information}),
        EFFECTIVE_RANK: effective_rank(probe),
    }


def cross_camera_mAP(  # noqa: N802
    probe: Probe, *, eps: float = 0.6, min_samples: int = 4, k1: int = 20, k2: int = 6
) -> dict[str, float]:
    """Return how well images find those of their cluster under other cameras, by the distance that retrieval uses.

    Clusters come from DBSCAN on :func:`jaccard_distances`. A clustered image is a query; images of its cluster and
    camera are junk; images that no cluster took are distractors. A query whose cluster was seen by its camera alone is
    skipped.

    Args:
        probe: finite.
        eps: Jaccard distance up to which images are neighbours.
        min_samples: neighbours, itself included, that make an image the core of a cluster.
        k1: of :func:`jaccard_distances`.
        k2: of :func:`jaccard_distances`.

    Returns:
        ``pseudo/xcam_mAP``, mAP times the share of images in clusters, 0 for fewer than two clusters or where none has
        two cameras; ``pseudo/clustered``, that share; ``pseudo/num_clusters``.
    """
    probe = _ordered(probe)
    distances_NN = _distances(probe)
    clusters = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    pids_N = clusters.fit_predict(jaccard_distances(distances_NN, k1=k1, k2=k2)).astype(np.int64) + 1  # 0: nobody
    clustered_N = pids_N > 0
    share, num_clusters = float(clustered_N.mean()), int(pids_N.max())
    value = 0.0
    if num_clusters > 1 and _seen_twice(pids_N[clustered_N], probe.camids_N[clustered_N]):
        report = rank(
            distances_NN,  # a query of pid 0 matches nobody and is skipped
            query_pids=pids_N,
            query_camids=probe.camids_N,
            gallery_pids=pids_N,
            gallery_camids=probe.camids_N,
        )
        value = report.mAP * share
    return {XCAM_MAP: value, CLUSTERED: share, NUM_CLUSTERS: float(num_clusters)}


def silhouette(probe: Probe, *, k: int = 40, seed: int = 0) -> float:
    """Return the mean silhouette of k-means clusters of the L2-normalised embeddings, in [-1, 1].

    It is -1 where no more than k embeddings differ: too few images, or collapsed ones, which would otherwise make k
    perfect clusters.

    Args:
        probe: finite.
        k: clusters.
        seed: of the starts of k-means.

    Raises:
        ValueError: k below 2.
    """
    if k < 2:
        raise ValueError(f"k >= 2 must hold, for a silhouette compares clusters, but got {k=}.")
    given_ND = _ordered(probe).embeddings_ND.astype(np.float32)
    lengths_N = np.linalg.norm(given_ND, axis=1, keepdims=True)
    unit_ND = given_ND / np.where(lengths_N > 0, lengths_N, 1)
    if len({row.tobytes() for row in unit_ND}) <= k:
        return UNDEFINED_SILHOUETTE
    labels_N = KMeans(n_clusters=k, n_init=NUM_STARTS, random_state=seed).fit_predict(unit_ND)
    return float(silhouette_score(unit_ND, labels_N))


def attribute_information(probe: Probe) -> float | None:
    """Return (1/M) Σ_m [H(mean_i p_im) - mean_i H(p_im)] in bits, or None without attribute heads.

    It is 1 where every head is sure of every image and says yes to half of them, and 0 where it says the same of all.

    Args:
        probe: finite, not empty.
    """
    if not probe.attributes_NM.shape[1]:
        return None
    p_NM = probe.attributes_NM.astype(np.float64)
    information_M = _binary_entropy(p_NM.mean(axis=0)) - _binary_entropy(p_NM).mean(axis=0)
    return float(information_M.mean())


def effective_rank(probe: Probe) -> float:
    """Return exp(entropy of the normalised singular values) of the centred embeddings (Roy and Vetterli, 2007).

    It lies between 1 and min(N - 1, D), and is 0 where all embeddings are the same.
    """
    centred_ND = probe.embeddings_ND.astype(np.float64)
    centred_ND -= centred_ND.mean(axis=0)
    gram = centred_ND.T @ centred_ND if centred_ND.shape[0] > centred_ND.shape[1] else centred_ND @ centred_ND.T
    squares = np.linalg.eigvalsh(gram)
    singular = np.sqrt(squares[squares > squares[-1] * len(gram) * np.finfo(np.float64).eps])
    if not singular.size:
        return 0.0
    return float(np.exp(special.entr(singular / singular.sum()).sum()))


def ensv(probes: Mapping[str, Probe]) -> dict[str, float]:
    """Return ``ensv/rank`` by trial: its mAP against what the other trials together hold for matches.

    The others vote by their row-standardised similarities, minus squared L2. Two images match that are, in the mean of
    the votes, among each other's nearest three under other cameras; ties are let in. A query ranks the images of other
    cameras. After EnsV (NeurIPS 2024); the retrieval form is ours.

    Args:
        probes: of finished trials on the same data; those that are not finite neither vote nor score.

    Returns:
        fractions, 0 where nothing matches, and below 1 where all agree too, for an image among the nearest three need
        not match; empty for fewer than three trials.

    Raises:
        ValueError: probes of different images.
    """
    finite = {name: probe for name, probe in probes.items() if probe.finite}
    if len(finite) < MIN_ENSEMBLE:
        return {}
    camids_N = next(iter(finite.values())).camids_N
    votes_NN: Doubles = np.zeros((len(camids_N), len(camids_N)))
    for name, probe in finite.items():
        if not np.array_equal(probe.camids_N, camids_N):
            raise ValueError(
                f"trials vote on the same images, but those of {name!r} are not those of {next(iter(finite))!r}; "
                "compare trials on the same data."
            )
        votes_NN += _standardised(_distances(probe))
    gallery_NN = camids_N[:, None] != camids_N
    scores = {}
    for name, probe in finite.items():
        distances_NN = _distances(probe)
        positives_NN = _mutual(votes_NN - _standardised(distances_NN), gallery_NN)
        scores[name] = _mean_average_precision(distances_NN, positives_NN, gallery_NN)
    return scores


def online_score(
    values: Mapping[str, float],
    baseline: Mapping[str, Sequence[float]],
    weights: Mapping[str, float],
    *,
    eps: Mapping[str, float] | float,
) -> float:
    """Return ``label_free/score``, Σ_v w_v · clip((v - mean_base v) / max(sd_base v, eps_v), -3, 3).

    It depends on nothing but the trial and the baseline, so a sampler may learn from it while a study runs.

    Args:
        values: of the trial, by criterion.
        baseline: of the baseline's seeds, by criterion.
        weights: w, by criterion; those it does not name do not count.
        eps: smallest standard deviation that is believed, above 0; one for all or one for each criterion.

    Raises:
        ValueError: a weight of a criterion that has no finite value, or fewer than two finite ones of the baseline, or
            no eps above 0.

    >>> online_score({"cluster/silhouette": 0.75}, {"cluster/silhouette": [0.25, 0.75]}, {"cluster/silhouette": 2.0},
    ...     eps=0.5)
    1.0
    """
    score = 0.0
    for name, weight in weights.items():
        value, seeds = values.get(name, math.nan), baseline.get(name, ())
        floor = eps.get(name, math.nan) if isinstance(eps, Mapping) else eps
        if not math.isfinite(value):
            known = ", ".join(sorted(values)) or "none"
            raise ValueError(f"{name!r} has a weight and needs a finite value, but got {value}; values: {known}.")
        if len(seeds) < MIN_SEEDS or not all(map(math.isfinite, seeds)):
            raise ValueError(
                f"{name!r} needs {MIN_SEEDS} finite values or more of the baseline, but got {list(seeds)}; run more "
                "seeds of it or leave the criterion's weight out."
            )
        if not floor > 0:
            raise ValueError(f"eps of {name!r} must be above 0, but got {floor}.")
        deviation = (value - statistics.fmean(seeds)) / max(statistics.stdev(seeds), floor)
        score += weight * min(max(deviation, -CLIP), CLIP)
    return score


def guards(metrics: Mapping[str, float], baseline: Sequence[Mapping[str, float]], *, aligns: bool) -> list[str]:
    """Return in plain words what vetoes a trial, whatever its score; empty where nothing does.

    A metric that the trial or the whole baseline lacks vetoes nothing; one that is nan does.

    Args:
        metrics: of the trial, its last epoch's and its probe's.
        baseline: the same of each baseline seed.
        aligns: whether λ3 > 0 and target images are used, so that a dead kernel is a fault.
    """
    reasons = []
    if not metrics.get(FINITE, 1.0):
        reasons.append("embeddings or attributes of the target are not finite")
    if aligns and metrics.get("mmd/plateau") == 1:
        reasons.append("L_MDAL sits on its plateau: the kernel is dead and λ3 does nothing")
    for name, share, meaning in (
        (EFFECTIVE_RANK, COLLAPSED, "the embeddings have collapsed"),
        ("source_val/mAP", SOURCE_SHARE, "retrieval on the source itself has suffered"),
    ):
        usual = [seed[name] for seed in baseline if math.isfinite(seed.get(name, math.nan))]
        if usual and name in metrics and not metrics[name] >= share * statistics.fmean(usual):
            least = f"{share:g} x the baseline's {statistics.fmean(usual):.3g}"
            reasons.append(f"{name} is {metrics[name]:.3g} and not at least {least}: {meaning}")
    return reasons


def _ordered(probe: Probe) -> Probe:
    """Return the images in an order that follows from their content: the one they come in may be that of pids."""
    columns = (probe.embeddings_ND, probe.attributes_NM, probe.camids_N)
    order = sorted(range(len(probe.camids_N)), key=lambda image: [column[image].tobytes() for column in columns])
    return Probe(
        embeddings_ND=probe.embeddings_ND[order],
        attributes_NM=probe.attributes_NM[order],
        camids_N=probe.camids_N[order],
    )


def _distances(probe: Probe) -> Floats:
    """Return the distances that retrieval ranks by, squared L2 of un-normalised embeddings."""
    embeddings_ND = torch.from_numpy(probe.embeddings_ND.astype(np.float32))
    distances_NN = np.empty((len(embeddings_ND), len(embeddings_ND)), dtype=np.float32)
    begin = 0
    for rows_nN in distances(embeddings_ND, embeddings_ND):
        distances_NN[begin : begin + len(rows_nN)] = rows_nN
        begin += len(rows_nN)
    return distances_NN


def _seen_twice(pids: Ints, camids: Ints) -> bool:
    """Return whether any pid has two cameras."""
    return len(set(zip(pids.tolist(), camids.tolist(), strict=True))) > len(np.unique(pids))


def _binary_entropy(p: Doubles) -> Doubles:
    return np.asarray((special.entr(p) + special.entr(1 - p)) / math.log(2))


def _standardised(distances_NN: Floats) -> Floats:
    """Return similarities with mean 0 and deviation 1 over the other images of each row; 0 where all are the same."""
    others_NN = ~np.eye(len(distances_NN), dtype=np.bool_)
    similarity_NN = -distances_NN
    mean_N1 = similarity_NN.mean(axis=1, where=others_NN, keepdims=True, dtype=np.float64)
    sd_N1 = similarity_NN.std(axis=1, where=others_NN, keepdims=True, dtype=np.float64)
    standardised_NN: Floats = ((similarity_NN - mean_N1) / np.where(sd_N1 > 0, sd_N1, 1)).astype(np.float32)
    return standardised_NN


def _mutual(votes_NN: Doubles, gallery_NN: Bools) -> Bools:
    """Return where two images are among each other's nearest of the gallery, ties let in."""
    candidates_NN = np.where(gallery_NN, votes_NN, -np.inf)
    k = min(ENSEMBLE_NEIGHBOURS, len(votes_NN))
    least_N1 = np.partition(candidates_NN, -k, axis=1)[:, [-k]]
    near_NN = gallery_NN & (candidates_NN >= least_N1)
    return near_NN & near_NN.T


def _mean_average_precision(distances_NN: Floats, positives_NN: Bools, gallery_NN: Bools) -> float:
    """Return the mean over queries with a positive; a tie counts against the model."""
    found = []
    for distances_N, positives_N, gallery_N in zip(distances_NN, positives_NN, gallery_NN, strict=True):
        if positives_N.any():
            negatives = np.sort(distances_N[gallery_N & ~positives_N])
            before = np.searchsorted(negatives, np.sort(distances_N[positives_N]), side="right")
            places = np.arange(1, len(before) + 1)
            found.append(float((places / (places + before)).mean()))
    return statistics.fmean(found) if found else 0.0
