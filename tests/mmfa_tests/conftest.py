"""Two tiny domains, held in memory, and the config that trains on them in a second."""

from pathlib import Path

import numpy as np
import pytest

from mmfa.config import profile
from mmfa.data.records import AttributeCodes, Domain
from mmfa.data.store import Store


def tiny_store(name, *, seed, num_ids=16, cameras=3, shots=2, fields=("hat", "bag")):
    """Return a store whose identities differ in the colours of their upper and lower half.

    Its two attributes, whatever their names, say whether the halves are red; without names there are none.
    """
    rng = np.random.default_rng(seed)
    rows = [
        (split, pid, camid, shot)
        for split, first in (("train", 1), ("test", 101))
        for pid in range(first, first + num_ids)
        for camid in range(cameras)
        for shot in range(shots)
    ]
    colours = {pid: rng.integers(0, 256, (2, 3)) for _, pid, _, _ in rows}
    images = np.stack([np.repeat(colours[pid], 16, axis=0)[:, None].repeat(16, axis=1) for _, pid, _, _ in rows])
    images = (images + rng.normal(0, 20, images.shape)).clip(0, 255).astype(np.uint8)
    paths = [f"{split}/{pid:04d}_c{camid}_{shot}.jpg" for split, pid, camid, shot in rows]
    splits = ["train" if split == "train" else ("query" if shot == 0 else "gallery") for split, _, _, shot in rows]
    order = np.argsort(paths)
    pids = np.array(sorted(colours), dtype=np.int64)
    codes = np.stack([1 + (colours[pid][:, 0] > 127) for pid in pids.tolist()]).astype(np.uint8)
    codes[0, 0] = 0  # one annotation is missing
    return Store(
        path=Path(name),
        domain=Domain(
            name=name,
            paths=tuple(np.array(paths)[order].tolist()),
            pids=np.array([row[1] for row in rows], dtype=np.int64)[order],
            camids=np.array([row[2] for row in rows], dtype=np.int64)[order],
            splits=np.array(splits)[order],
            attributes=AttributeCodes(fields=fields, pids=pids, codes=codes) if fields else None,
        ),
        images=images[order],
        fingerprint=f"{seed:012x}",
    )


@pytest.fixture(scope="session")
def source():
    return tiny_store("tiny-source", seed=1)


@pytest.fixture(scope="session")
def target():
    return tiny_store("tiny-target", seed=2)


@pytest.fixture(scope="session")
def unannotated():
    return tiny_store("tiny-source", seed=1, fields=())


@pytest.fixture(scope="session")
def tiny():
    return profile("embedded").with_overrides(
        {
            "model.id_head_width": 16,
            "optim.num_epochs": 3,
            "optim.warmup_epochs": 1,
            "optim.average_decay": 0.9,
            "data.num_val_ids": 6,
            "data.image_height": 32,
            "data.image_width": 16,
            "data.store_height": 32,
            "data.store_width": 16,
            "data.source_batch": 8,
            "data.target_batch": 6,
            "run.precision": "fp32",
        }
    )
