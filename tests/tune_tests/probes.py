"""Probes made by hand."""

import numpy as np

from mmfa.probe import Probe

NAMES = {
    *("probe/finite", "pseudo/xcam_mAP", "pseudo/clustered", "pseudo/num_clusters"),
    *("cluster/silhouette", "attributes/information", "probe/effective_rank"),
}
"""Metrics of one probe."""


def probe_of(embeddings, camids=None, attributes=None):
    """Return a probe; without camids over three cameras in turn, without attributes of a model without heads."""
    embeddings = np.asarray(embeddings, dtype=np.float16)
    num = len(embeddings)
    return Probe(
        embeddings_ND=embeddings,
        attributes_NM=np.asarray(np.zeros((num, 0)) if attributes is None else attributes, dtype=np.float16),
        camids_N=np.asarray(np.arange(num) % 3 if camids is None else camids, dtype=np.int64),
    )


def people(*, num_ids=8, num_cameras=4, shots=6, spread=0.05, width=16, seed=0, num_attributes=3):
    """Return a probe in which each person has a place of their own, and the persons."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(num_ids), num_cameras * shots)
    camids = np.tile(np.repeat(np.arange(num_cameras), shots), num_ids)
    places = rng.normal(size=(num_ids, width))
    embeddings = places[pids] + spread * rng.normal(size=(len(pids), width))
    return probe_of(embeddings, camids, rng.random((len(pids), num_attributes))), pids


def shuffled(probe, seed):
    """Return the same images in another order."""
    order = np.random.default_rng(seed).permutation(len(probe.camids_N))
    return probe_of(probe.embeddings_ND[order], probe.camids_N[order], probe.attributes_NM[order])


COLLAPSED = {
    "one point": np.ones((60, 4)),
    "the origin": np.zeros((60, 4)),
    "five points": np.arange(60)[:, None] % 5 * np.ones(4) + 1,
    "one image": np.ones((1, 4)),
}
