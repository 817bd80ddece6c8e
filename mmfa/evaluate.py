"""Embed images with a model and judge its retrieval by a dataset's protocol.

Shapes: N images, D pooled dimensions, M attributes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmfa.config import Age, TrialConfig
from mmfa.data.attributes import encode
from mmfa.data.augment import prepare
from mmfa.data.pixels import Pixels
from mmfa.data.prefetch import prefetch_onto
from mmfa.data.protocols import directions
from mmfa.data.records import Bools, Bytes, Domain, Floats, Ints
from mmfa.data.store import Store
from mmfa.folding import folded
from mmfa.hardware import Hardware, precise
from mmfa.model import MMFA
from mmfa.norm import DomainRole
from mmfa.ranking import RetrievalReport, mean_report, rank_features
from mmfa.reports import TestReport

BATCH = 128
"""Images embedded at once on a CPU."""
GPU_BATCH = 512
"""The same on a GPU, which 128 do not fill."""


@torch.no_grad()
def embed(
    model: MMFA, images: Bytes | Pixels, rows: Ints, *, height: int, width: int, hardware: Hardware,
    domain: DomainRole = "target", backbone: nn.Sequential | None = None,
) -> Tensor:  # fmt: skip
    """Return the un-normalised pooled features of images.

    The model is left as it is: a copy of its backbone, BatchNorm folded into the convolutions, does the work. A thread
    reads and normalises the next batches meanwhile.

    Args:
        model: on ``hardware.device``.
        images: uint8 [N, H, W, 3], such as a store's, read batch by batch, or what :func:`place` made of them.
        rows: which of them, in the order of the result.
        height: of the network's input, pixels.
        width: of the network's input, pixels.
        hardware: device, autocast and memory format.
        domain: whose BatchNorm statistics are used, where each has its own.
        backbone: the model's, folded, where it is at hand.

    Returns:
        features_ND, float32, on the model's device.
    """
    pixels = images if isinstance(images, Pixels) else Pixels(images, device=hardware.device)
    size = GPU_BATCH if hardware.device.type == "cuda" else BATCH
    chunks = [rows[begin : begin + size] for begin in range(0, len(rows), size)]

    def prepared() -> Iterator[tuple[Tensor]]:
        for chunk in chunks:
            images_BHWC = pixels.rows(chunk)
            yield (prepare(images_BHWC, height=height, width=width, channels_last=hardware.channels_last),)

    features_ND = torch.empty(len(rows), model.num_features, device=hardware.device)
    backbone = folded(model.backbone, domain=domain) if backbone is None else backbone
    with precise(), contextlib.closing(prefetch_onto(hardware.device, prepared())) as batches:
        for number, (images_BCHW,) in enumerate(batches):
            with hardware.autocast():
                features_ND[number * size : (number + 1) * size] = model.pooled(backbone(images_BCHW))
    return features_ND


def evaluate(
    model: MMFA, store: Store, *, query_rows: Ints, gallery_rows: Ints, height: int, width: int, hardware: Hardware,
    domain: DomainRole = "target", pixels: Pixels | None = None,
) -> RetrievalReport:  # fmt: skip
    """Return the retrieval of query images in gallery images, by L2 distance of un-normalised features (sec. 4.1).

    Args:
        model: on ``hardware.device``.
        store: images with pids and camids.
        query_rows: rows of the store.
        gallery_rows: rows of the store.
        height: of the network's input, pixels.
        width: of the network's input, pixels.
        hardware: device, autocast and memory format.
        domain: whose BatchNorm statistics are used, where each has its own.
        pixels: the store's images where they are at hand already.

    Raises:
        DataError: an empty gallery, or no query with a positive.
        NotFiniteError: features that are not finite.
    """
    query_QD, gallery_GD = (
        embed(model, pixels or store.images, rows, height=height, width=width, hardware=hardware, domain=domain)
        for rows in (query_rows, gallery_rows)
    )
    return retrieve(query_QD, gallery_GD, store.domain, query_rows, gallery_rows)


def evaluate_test(
    model: MMFA, store: Store, *, config: TrialConfig, attribute_names: Sequence[str], hardware: Hardware,
    pixels: Pixels | None = None,
) -> TestReport:  # fmt: skip
    """Judge a finished model by the official test split of a target: every direction, and its attributes.

    Each image is embedded once.

    Args:
        model: on ``hardware.device``.
        store: the target, with its official splits.
        config: of the model's training.
        attribute_names: columns of the model's attribute heads.
        hardware: device, autocast and memory format.
        pixels: the store's images where they are at hand already.

    Raises:
        DataError: a target without queries or gallery, or no query with a positive.
        NotFiniteError: features that are not finite.
    """
    ways = directions(store.domain)
    rows = np.unique(np.concatenate([part for way in ways.values() for part in way]))
    data = config.data
    images = pixels or store.images
    features_ND = embed(model, images, rows, height=data.image_height, width=data.image_width, hardware=hardware)
    retrieval: dict[str, RetrievalReport] = {}
    for suffix, way in ways.items():
        query_QD, gallery_GD = (features_ND[np.searchsorted(rows, part)] for part in way)
        name = f"target_{suffix}" if suffix else "target"
        retrieval[name] = retrieve(query_QD, gallery_GD, store.domain, *way, with_cosine=True)
    if "target" not in retrieval:
        retrieval = {"target": mean_report(list(retrieval.values())), **retrieval}
    attributes = attribute_transfer(
        model, features_ND, rows, store.domain, attribute_names=attribute_names, age=data.age
    )
    return TestReport(retrieval=retrieval, attributes=attributes)


def attribute_accuracy(outputs_NM: Floats, values_NM: Floats, mask_NM: Bools) -> dict[str, float]:
    """Return the accuracy over annotated entries, and its balanced form; nothing where nothing is annotated.

    Args:
        outputs_NM: pre-sigmoid outputs; above 0 means yes.
        values_NM: 0 or 1.
        mask_NM: true where annotated.

    Returns:
        ``attribute_accuracy``, the mean over all entries, and ``attribute_balanced_accuracy``, the mean over attributes
        of the mean over the classes that occur.
    """
    if not mask_NM.any():
        return {}
    correct_NM = (outputs_NM > 0) == (values_NM > 0)
    balanced = []
    for correct_N, yes_N, mask_N in zip(correct_NM.T, values_NM.T > 0, mask_NM.T, strict=True):
        classes = [correct_N[mask_N & (yes_N == value)] for value in (False, True)]
        occurring = [float(members.mean()) for members in classes if len(members)]
        if occurring:
            balanced.append(sum(occurring) / len(occurring))
    return {
        "attribute_accuracy": float(correct_NM[mask_NM].mean()),
        "attribute_balanced_accuracy": sum(balanced) / len(balanced),
    }


def retrieve(
    query_QD: Tensor, gallery_GD: Tensor, domain: Domain, query_rows: Ints, gallery_rows: Ints,
    *, with_cosine: bool = False,
) -> RetrievalReport:  # fmt: skip
    """Return the retrieval of embedded queries in an embedded gallery.

    Args:
        query_QD: features of the query rows.
        gallery_GD: features of the gallery rows.
        domain: whose rows they are.
        query_rows: [Q]
        gallery_rows: [G]
        with_cosine: whether mAP by cosine distance is wanted too, for information.
    """

    def ranked(query_QD: Tensor, gallery_GD: Tensor) -> RetrievalReport:
        return rank_features(
            query_QD,
            gallery_GD,
            query_pids=domain.pids[query_rows],
            query_camids=domain.camids[query_rows],
            gallery_pids=domain.pids[gallery_rows],
            gallery_camids=domain.camids[gallery_rows],
        )

    report = ranked(query_QD, gallery_GD)
    if not with_cosine:
        return report
    # Between unit vectors d² = 2 - 2 cos: the order is that of cosine distance.
    cosine = ranked(functional.normalize(query_QD), functional.normalize(gallery_GD))
    return dataclasses.replace(report, mAP_cosine=cosine.mAP)


@torch.no_grad()
def attribute_transfer(
    model: MMFA,
    features_ND: Tensor,
    rows: Ints,
    domain: Domain,
    *,
    attribute_names: Sequence[str],
    age: Age,
    role: DomainRole = "target",
) -> dict[str, float]:
    """Return how well the heads, trained on the source, tell another domain's attributes of the same name.

    Args:
        model: in any mode.
        features_ND: pooled features of the rows.
        rows: of the domain.
        domain: with annotations, else there is nothing to tell.
        attribute_names: columns of the heads.
        age: reading of the domain's age.
        role: whose BatchNorm statistics the heads use.

    Returns:
        as :func:`attribute_accuracy`; empty where nothing is common or annotated.
    """
    if domain.attributes is None:
        return {}
    table = encode(domain.attributes, age=age)
    common = [name for name in attribute_names if name in table.names]
    annotated = np.isin(domain.pids[rows], table.pids)
    if not common or not annotated.any():
        return {}
    values_NM, mask_NM = table.rows(domain.pids[rows[annotated]])
    theirs, ours = ([names.index(name) for name in common] for names in (table.names, list(attribute_names)))
    was_training = model.training
    model.eval()
    try:  # in batches: the hidden layers of all heads are many times as wide as the features
        chosen_ND = features_ND[torch.from_numpy(annotated).to(features_ND.device)]
        outputs_NM = torch.cat([model.attributes(part_BD, domain=role) for part_BD in torch.split(chosen_ND, BATCH)])
    finally:
        model.train(was_training)
    return attribute_accuracy(outputs_NM[:, ours].cpu().numpy(), values_NM[:, theirs], mask_NM[:, theirs])
