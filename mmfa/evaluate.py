"""Embed images with a model and judge its retrieval by a dataset's protocol.

Shapes: N images, D pooled dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmfa.data.batches import prepare
from mmfa.data.records import Bytes, Ints
from mmfa.data.store import Store
from mmfa.hardware import Hardware
from mmfa.model import MMFA
from mmfa.ranking import RetrievalReport, distances, rank

BATCH = 128
"""Images embedded at once."""


@torch.no_grad()
def embed(model: MMFA, images: Bytes, rows: Ints, *, height: int, width: int, hardware: Hardware) -> Tensor:
    """Return the un-normalised pooled features of images; the model is left in the mode it came in.

    Args:
        model: on ``hardware.device``.
        images: uint8 [N, H, W, 3], such as a store's, read batch by batch.
        rows: which of them, in the order of the result.
        height: of the network's input, pixels.
        width: of the network's input, pixels.
        hardware: device, autocast and memory format.

    Returns:
        features_ND, float32, on the model's device.
    """
    features_ND = torch.empty(len(rows), model.num_features, device=hardware.device)
    was_training = model.training
    model.eval()
    try:
        for begin in range(0, len(rows), BATCH):
            images_BCHW = prepare(images[rows[begin : begin + BATCH]], height=height, width=width)
            with hardware.autocast():
                features_ND[begin : begin + BATCH] = model.embed(hardware.place(images_BCHW))
    finally:
        model.train(was_training)
    return features_ND


def evaluate(
    model: MMFA, store: Store, *, query_rows: Ints, gallery_rows: Ints, height: int, width: int, hardware: Hardware
) -> RetrievalReport:
    """Return the retrieval of query images in gallery images, by L2 distance of un-normalised features (sec. 4.1).

    Args:
        model: on ``hardware.device``.
        store: images with pids and camids.
        query_rows: rows of the store.
        gallery_rows: rows of the store.
        height: of the network's input, pixels.
        width: of the network's input, pixels.
        hardware: device, autocast and memory format.

    Raises:
        DataError: an empty gallery, or no query with a positive.
        NotFiniteError: features that are not finite.
    """
    query_ND, gallery_ND = (
        embed(model, store.images, rows, height=height, width=width, hardware=hardware)
        for rows in (query_rows, gallery_rows)
    )
    pids, camids = store.domain.pids, store.domain.camids
    return rank(
        distances(query_ND, gallery_ND),
        query_pids=pids[query_rows],
        query_camids=camids[query_rows],
        gallery_pids=pids[gallery_rows],
        gallery_camids=camids[gallery_rows],
    )
