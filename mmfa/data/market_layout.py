"""Market-1501 and folders laid out like it.

Zheng et al., "Scalable person re-identification: a benchmark", ICCV 2015: 1,501 identities, six cameras.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from pathlib import Path

import numpy as np

from mmfa.data.attributes import read_market_mat
from mmfa.data.records import Dataset, Domain, Split
from mmfa.errors import DataError

logger = logging.getLogger(__name__)

FOLDERS: dict[str, Split] = {"bounding_box_test": "gallery", "bounding_box_train": "train", "query": "query"}
ROOTS = ("market1501/Market-1501-v15.09.15", "Market-1501-v15.09.15", "market1501")
"""Where the three folders are looked for under the data root; the first that has them wins."""
FILE_NAME = re.compile(r"(?P<pid>-1|\d{4})_c(?P<camid>[1-6])s\d+_\d{6}_\d{2}\.jpg", re.ASCII)
"""The whole base name; never searched for in a path, where a folder ``run3_c5`` would be read as a camera."""
JUNK_PID, DISTRACTOR_PID = -1, 0
ATTRIBUTE_FILE = "market_attribute.mat"
ATTRIBUTE_FOLDER = "Market-1501_Attribute"

PUBLISHED_COUNTS = {
    "training identities": 751,
    "training images": 12_936,
    "query identities": 750,
    "query images": 3_368,
    "gallery images": 15_913,
    "distractor images": 2_798,
}


def load_market(data_root: Path, *, strict_counts: bool = False, attributes_required: bool = True) -> Dataset:
    """Find and list Market-1501 under the data root; nothing is ever written there.

    Args:
        data_root: folder that holds one of :data:`ROOTS`.
        strict_counts: raise where the published counts are not met, instead of a warning.
        attributes_required: raise where there is no attribute file, instead of a dataset without attributes.

    Raises:
        DataError: no such layout, a file name outside the grammar, no attribute file where one is required,
            or other counts than published with ``strict_counts``.
    """
    root = find_root(data_root)
    domain = read_layout(root, name="market1501")
    check_counts(domain, strict=strict_counts)
    attribute_file = find_attribute_file(root, data_root, required=attributes_required)
    return with_attributes(root, domain, attribute_file)


def find_root(data_root: Path) -> Path:
    """Return the first of :data:`ROOTS` under the data root that has the three folders.

    Raises:
        DataError: there is none; says what was looked for, what was found, and the layout expected.
    """
    for candidate in ROOTS:
        if all((data_root / candidate / folder).is_dir() for folder in FOLDERS):
            return data_root / candidate
    raise DataError(
        f"Market-1501 was looked for in {', '.join(ROOTS)} under {data_root}, but {_found(data_root)}; "
        f"one of them must hold the folders {', '.join(FOLDERS)} with files like 0002_c1s1_000451_03.jpg."
    )


def _found(data_root: Path) -> str:
    if not data_root.is_dir():
        return "that is not a folder"
    for candidate in ROOTS:
        if (data_root / candidate).is_dir():
            missing = [folder for folder in FOLDERS if not (data_root / candidate / folder).is_dir()]
            return f"{candidate} has no {', '.join(missing)}"
    names = sorted(entry.name for entry in data_root.iterdir())
    if not names:
        return "that folder is empty"
    return "found " + ", ".join(names[:8]) + (f", ... ({len(names)} entries)" if len(names) > 8 else "")


def read_layout(root: Path, *, name: str) -> Domain:
    """List the three folders under ``root``, ordered by path; junk detections (pid -1) are left out.

    Raises:
        DataError: a ``.jpg`` outside the grammar, a distractor outside the gallery, or a folder without images.
    """
    rows: list[tuple[str, int, int, str]] = []
    for folder, split in FOLDERS.items():
        parsed = _read_folder(root / folder, split)
        if not parsed:
            raise DataError(f"Each folder must hold images, but {root / folder} has none; restore it.")
        rows.extend((f"{folder}/{file}", pid, camid, split) for file, pid, camid in parsed)
    paths, pids, camids, splits = zip(*sorted(rows), strict=True)
    return Domain(
        name=name,
        paths=paths,
        pids=np.array(pids, dtype=np.int64),
        camids=np.array(camids, dtype=np.int64),
        splits=np.array(splits, dtype="<U11"),
    )


def _read_folder(folder: Path, split: Split) -> list[tuple[str, int, int]]:
    """Return (file name, pid, camid) of all images but junk."""
    rows: list[tuple[str, int, int]] = []
    odd: list[str] = []
    with os.scandir(folder) as entries:
        files = [entry.name for entry in entries if entry.name.lower().endswith(".jpg") and entry.is_file()]
    for file in files:
        match = FILE_NAME.fullmatch(file)
        pid = int(match["pid"]) if match else None
        if match is None or pid is None or (pid == DISTRACTOR_PID and split != "gallery"):
            odd.append(file)
        elif pid != JUNK_PID:
            rows.append((file, pid, int(match["camid"]) - 1))
    if odd:
        raise DataError(
            "Every .jpg must be named <pid:4 digits or -1>_c<1-6>s<sequence>_<frame:6>_<box:2>.jpg, with pid 0000 "
            f"in bounding_box_test only, but {len(odd)} in {folder} are not: {', '.join(sorted(odd)[:5])}; "
            "rename or remove them."
        )
    return rows


def check_counts(domain: Domain, *, strict: bool) -> None:
    """Compare the counts of a Market-1501 with the published ones.

    Raises:
        DataError: they differ and ``strict`` is set; otherwise a warning is logged.
    """
    train, query, gallery = domain.rows("train"), domain.rows("query"), domain.rows("gallery")
    found = {
        "training identities": len(np.unique(domain.pids[train])),
        "training images": len(train),
        "query identities": len(np.unique(domain.pids[query])),
        "query images": len(query),
        "gallery images": len(gallery),
        "distractor images": int((domain.pids[gallery] == DISTRACTOR_PID).sum()),
    }
    odd = [
        f"{what}: {found[what]:,} found, {number:,} published"
        for what, number in PUBLISHED_COUNTS.items()
        if found[what] != number
    ]
    if odd and strict:
        raise DataError(
            f"Market-1501 must have its published counts with strict counts, but got {'; '.join(odd)}; "
            "restore the missing files or allow subsets."
        )
    if odd:
        logger.warning("NOT THE PUBLISHED Market-1501, results will not compare with others': %s", "; ".join(odd))


def find_attribute_file(root: Path, data_root: Path, *, required: bool) -> Path | None:
    """Return the first ``market_attribute.mat`` beside the images or in the data root.

    Raises:
        DataError: there is none although it is required; says where it was looked for.
    """
    folders = [folder for base in (root, data_root) for folder in (base, base / ATTRIBUTE_FOLDER)]
    for folder in folders:
        if (folder / ATTRIBUTE_FILE).is_file():
            return folder / ATTRIBUTE_FILE
    if not required:
        return None
    raise DataError(
        f"A source needs its attribute annotations, but {ATTRIBUTE_FILE} is not in any of "
        f"{', '.join(str(folder) for folder in dict.fromkeys(folders))}; "
        "put the file of the Market-1501_Attribute release into one of them."
    )


def with_attributes(root: Path, domain: Domain, attribute_file: Path | None) -> Dataset:
    """Return the dataset with its annotations, if it has any.

    Which identities must be annotated depends on those held out: ``Batches`` sees to it.

    Raises:
        DataError: a file that does not hold.
    """
    attributes = None if attribute_file is None else read_market_mat(attribute_file)
    return Dataset(root=root, domain=dataclasses.replace(domain, attributes=attributes), attribute_file=attribute_file)
