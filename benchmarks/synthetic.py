"""Datasets of any size, made in memory on the spot: people as coloured patterns under noise, labelled and annotated."""

from pathlib import Path

import numpy as np

from mmfa.data.attributes import MARKET_FIELDS
from mmfa.data.records import AttributeCodes, Domain
from mmfa.data.store import Store

TRAIN, TRAIN_IDS, QUERY, GALLERY, TEST_IDS = 12_936, 751, 3_368, 15_913, 750
"""Images and identities of Market-1501."""
CAMERAS = 6


def store(name, *, seed, train=TRAIN, train_ids=TRAIN_IDS, query=QUERY, gallery=GALLERY, test_ids=TEST_IDS,
          height=128, width=64):  # fmt: skip
    """Return an image store of a Market-1501's shape, or of a part of it; counts of 0 leave a split out."""
    rng = np.random.default_rng(seed)
    pids = np.concatenate([
        np.arange(train) % max(train_ids, 1),
        *(train_ids + np.arange(num) % max(test_ids, 1) for num in (query, gallery)),
    ])  # fmt: skip
    camids = rng.integers(0, CAMERAS, len(pids))
    splits = np.repeat(["train", "query", "gallery"], [train, query, gallery])
    known = np.unique(pids)
    codes = rng.integers(1, 3, (len(known), len(MARKET_FIELDS)), dtype=np.uint8)
    domain = Domain(
        name=name,
        paths=tuple(f"{row:06d}.jpg" for row in range(len(pids))),
        pids=pids + 1,
        camids=camids,
        splits=splits.astype("<U11"),
        attributes=AttributeCodes(fields=MARKET_FIELDS, pids=known + 1, codes=codes),
    )
    return Store(path=Path(name), domain=domain, images=paint(rng, pids, height, width), fingerprint=f"{seed:012x}")


def paint(rng, pids, height, width):
    """Return uint8 images: one coarse pattern for each identity, and noise that a few hundred images share."""
    patterns = rng.integers(0, 192, (pids.max() + 1, 8, 4, 3), dtype=np.uint8)
    patterns = patterns.repeat(-(-height // 8), axis=1).repeat(-(-width // 4), axis=2)[:, :height, :width]
    noise = rng.integers(0, 56, (256, -(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    noise = noise.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    noise += rng.integers(0, 8, noise.shape, dtype=np.uint8)
    images = patterns[pids]
    for begin in range(0, len(images), len(noise)):
        part = images[begin : begin + len(noise)]
        part += noise[: len(part)]
    return images
