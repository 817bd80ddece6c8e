"""The feature maps of the last convolutional layer: what Figure 1 of the paper shows.

Shapes: N images, B of a batch, D channels, h x w positions of a map.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmfa import evaluate
from mmfa.data.augment import prepare
from mmfa.data.records import Bytes, Floats, Ints
from mmfa.hardware import precise
from mmfa.norm import select
from mmfa.retrieval import Embedder


def peaks(embedder: Embedder, images: Bytes, rows: Ints) -> Floats:
    """Return the highest activation of each feature map of each image, float32 [N, D].

    It is what global max-pooling passes on; with another pooling it is not the embedding.

    Args:
        embedder: the model.
        images: uint8 [*, H, W, 3], such as a store's, read batch by batch.
        rows: [N] which of them.
    """
    found = [maps_BDhw.amax(dim=(2, 3)).cpu().numpy() for maps_BDhw in _maps(embedder, images, rows)]
    return np.concatenate(found) if found else np.empty((0, embedder.model.num_features), np.float32)


def maps(embedder: Embedder, images: Bytes, rows: Ints, channels: Ints) -> Floats:
    """Return one feature map of each image, float32 [N, h, w].

    Args:
        embedder: the model.
        images: uint8 [*, H, W, 3].
        rows: [N] which of them.
        channels: [N] which feature map of each.
    """
    found, begin = [], 0
    for maps_BDhw in _maps(embedder, images, rows):
        of_batch = torch.from_numpy(channels[begin : begin + len(maps_BDhw)]).to(maps_BDhw.device)
        found.append(maps_BDhw[torch.arange(len(maps_BDhw)), of_batch].cpu().numpy())
        begin += len(maps_BDhw)
    return np.concatenate(found)


def _maps(embedder: Embedder, images: Bytes, rows: Ints) -> Iterator[Tensor]:
    """Yield the float32 feature maps of successive batches; target images, where BatchNorm tells the domains apart."""
    model, hardware, data = embedder.model, embedder.hardware, embedder.config.data
    model.eval()
    select(model, "target")
    for begin in range(0, len(rows), evaluate.BATCH):
        batch = prepare(images[rows[begin : begin + evaluate.BATCH]], height=data.image_height, width=data.image_width)
        with torch.no_grad(), precise(), hardware.autocast():
            maps_BDhw = model.backbone(hardware.place(batch)).float()
        yield maps_BDhw
