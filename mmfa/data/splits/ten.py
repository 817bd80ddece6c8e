"""The ten train/test splits of VIPeR and of PRID 2011.

They are shipped as ``<name>.json`` beside this file: ids as the file names have them, drawn once by :func:`draw`.
Numbers that refer to "the ten splits" can be compared only if these never change, so their SHA-256 is checked.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json

import numpy as np

from mmfa.data.records import Domain, Ints
from mmfa.errors import DataError

NUM_SPLITS = 10
SEED = 20180704
SHA256 = {
    "viper": "8fb536bfa8c93c1e493536bf57320cc85a9934eff05ad9d92727b2f47c5ea4e3",
    "prid2011": "50b0b45d7f722bffce4e1a6690b4554c29e16d44c0672876852be6bfcdb73d49",
}
"""Of each shipped file."""

_VIPER_GAPS = (
    *((247, 299), (349, 349), (352, 352), (356, 356), (363, 363), (396, 499), (530, 530), (559, 559), (586, 586)),
    *((602, 602), (644, 644), (663, 663), (665, 665), (668, 668), (681, 681), (688, 688), (691, 691), (694, 695)),
    *((704, 704), (710, 710), (712, 712), (718, 719), (727, 727), (730, 730), (739, 739), (742, 799), (810, 810)),
    (857, 857),
)
VIPER_IDS = np.setdiff1d(np.arange(874), np.concatenate([np.arange(low, high + 1) for low, high in _VIPER_GAPS]))
"""The 632 numbers of VIPeR's file names: 0 to 873 with gaps."""
PRID_IDS = np.arange(1, 201)
"""The 200 persons of PRID 2011 that both views show."""

PID_OFFSET = {"viper": 1, "prid2011": 0}
"""Added to a number of a file name to give a pid: VIPeR has a person 000, but pid 0 matches nobody."""
_IDS = {"viper": VIPER_IDS, "prid2011": PRID_IDS}


def draw(name: str) -> str:
    """Return the text of the shipped file: half of the identities to train, ten times."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    ids = _IDS[name]
    halves = [np.sort(generator.permutation(ids)[: len(ids) // 2]).tolist() for _ in range(NUM_SPLITS)]
    lines = ",\n  ".join(json.dumps(half) for half in halves)
    return f'{{"dataset": "{name}", "seed": {SEED}, "train": [\n  {lines}\n]}}\n'


def train_pids(name: str, number: int) -> Ints:
    """Return the ascending pids that train in one split; the other identities of both views are tested.

    Args:
        name: ``viper`` or ``prid2011``.
        number: of the split, 0 to 9.

    Raises:
        DataError: no such split, or a file that is not the one that was shipped.
    """
    if not 0 <= number < NUM_SPLITS:
        raise DataError(f"A split of {name} is one of 0 to {NUM_SPLITS - 1}, but got {number}; choose one of those.")
    return _shipped(name)[number]


def known_ids(name: str) -> Ints:
    """Return the pids that the shipped splits of a dataset divide."""
    return _IDS[name] + PID_OFFSET[name]


def assign(domain: Domain, number: int) -> Domain:
    """Return the domain with one of its ten splits; a domain that has official splits is returned as it is.

    Training: both images of half of the identities. Query: view A of the other half; gallery: view B of everyone who
    does not train. Persons of view A whom view B does not show are ``unused``.

    Raises:
        DataError: no such split, or a damaged split file.
    """
    if domain.name not in SHA256:
        return domain
    in_training = np.isin(domain.pids, train_pids(domain.name, number))
    in_both_views = np.isin(domain.pids, known_ids(domain.name))
    splits = np.full(len(domain.paths), "unused", dtype="<U11")
    splits[in_training] = "train"
    splits[~in_training & in_both_views & (domain.camids == 0)] = "query"
    splits[~in_training & (domain.camids == 1)] = "gallery"
    return dataclasses.replace(domain, splits=splits)


@functools.cache
def _shipped(name: str) -> list[Ints]:
    file = importlib.resources.files("mmfa.data.splits") / f"{name}.json"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"The splits of {name} are part of mmfa, but {file} is missing; install mmfa again.") from error
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise DataError(
            f"The splits of {name} must be those that were shipped, but {file} has been changed; install mmfa again."
        )
    return [np.array(ids, dtype=np.int64) + PID_OFFSET[name] for ids in json.loads(content)["train"]]
