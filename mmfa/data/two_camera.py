"""VIPeR and PRID 2011: two views, one image of each person in each.

Gray et al., "Evaluating appearance models for recognition, reacquisition, and tracking", PETS 2007: 632 persons.
Hirzer et al., "Person re-identification by descriptive and discriminative classification", SCIA 2011 (single-shot
version): 385 persons in view A, 749 in view B, of whom 200 are the same.

The images have no official split: ``Domain.with_split`` gives them one of ten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmfa.data import counts, listing
from mmfa.data.records import Dataset, Domain
from mmfa.data.splits.ten import PID_OFFSET, PRID_IDS, known_ids
from mmfa.errors import DataError

FOLDERS = ("cam_a", "cam_b")
SPLIT_PERSONS = "of them in the shipped splits"
ONLY_IN_A = 1000
"""Added to the pids of PRID's persons whom only view A shows: view B has other people under the same numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoCameras:
    """How a dataset of two views lies on the disk."""

    name: str
    """Catalogue name."""
    title: str
    """What its authors call it."""
    roots: tuple[str, ...]
    """Where ``cam_a`` and ``cam_b`` are looked for under the data root; the first that has them wins."""
    file_name: re.Pattern[str]
    """The whole base name."""
    grammar: str
    """The same in words."""
    example: str
    """A file name."""
    suffix: str
    """What images end in."""
    image_format: str
    """Pillow's name of their encoding."""
    published: Mapping[str, int]
    """Counts that a complete copy has."""


VIPER = TwoCameras(
    name="viper",
    title="VIPeR",
    roots=("viper/VIPeR", "VIPeR"),
    file_name=re.compile(r"(?P<number>\d{3})_\d{1,3}\.bmp", re.ASCII),
    grammar="<person:3 digits>_<angle>.bmp",
    example="000_45.bmp",
    suffix=".bmp",
    image_format="BMP",
    published={"persons in cam_a": 632, "persons in cam_b": 632, "persons in both": 632, SPLIT_PERSONS: 632},
)
PRID = TwoCameras(
    name="prid2011",
    title="PRID 2011",
    roots=("prid2011/prid_2011/single_shot", "prid_2011/single_shot"),
    file_name=re.compile(r"person_(?P<number>(?!0000)\d{4})\.png", re.ASCII),
    grammar="person_<4 digits, from 0001>.png",
    example="person_0001.png",
    suffix=".png",
    image_format="PNG",
    published={"persons in cam_a": 385, "persons in cam_b": 749, "persons in both": 200, SPLIT_PERSONS: 200},
)


def load(layout: TwoCameras, data_root: Path, *, strict_counts: bool = False) -> Dataset:
    """Find and list a dataset under the data root.

    Args:
        layout: which one.
        data_root: folder that holds one of the layout's ``roots``.
        strict_counts: raise where the published counts are not met, instead of a warning.

    Raises:
        DataError: no such layout, a file name outside the grammar, two images of a person in a view, a folder without
            images, or other counts than published with ``strict_counts``.
    """
    root = listing.find_root(data_root, layout.roots, FOLDERS, title=layout.title, example=layout.example)
    rows = sorted(row for camid in range(2) for row in _read_view(layout, root, camid))
    paths, pids, camids = zip(*rows, strict=True)
    domain = Domain(
        name=layout.name,
        paths=paths,
        pids=np.array(pids, dtype=np.int64),
        camids=np.array(camids, dtype=np.int64),
        splits=np.full(len(paths), "unused", dtype="<U11"),
    )
    found = count(domain)
    counts.check(layout.title, found, layout.published, strict=strict_counts)
    return Dataset(
        root=root,
        domain=domain,
        attribute_file=None,
        formats=(layout.image_format,),
        counts=found,
        published=layout.published,
    )


def count(domain: Domain) -> dict[str, int]:
    """Return what authors publish counts of; persons are paired by pid, never by position."""
    view_a, view_b = (domain.pids[domain.camids == camid] for camid in range(2))
    both = np.intersect1d(view_a, view_b)
    return {
        "persons in cam_a": len(view_a),
        "persons in cam_b": len(view_b),
        "persons in both": len(both),
        SPLIT_PERSONS: len(np.intersect1d(both, known_ids(domain.name))),
    }


def _read_view(layout: TwoCameras, root: Path, camid: int) -> list[tuple[str, int, int]]:
    """Return (path, pid, camid) of one view's images."""
    folder = root / FOLDERS[camid]
    files = {file: layout.file_name.fullmatch(file) for file in listing.files(folder, (layout.suffix,))}
    odd = [file for file, match in files.items() if match is None]
    listing.refuse_odd_names(folder, odd, rule=f"Every {layout.suffix} must be named {layout.grammar}")
    if not files:
        raise DataError(f"Each folder must hold images, but {folder} has none; restore it.")
    of_pid: dict[int, str] = {}
    for file, match in files.items():
        assert match is not None
        pid = _pid(layout, int(match["number"]), camid)
        if pid in of_pid:
            raise DataError(
                f"{layout.title} has one image of a person in each view, but {folder} has both {of_pid[pid]} and "
                f"{file}; remove one."
            )
        of_pid[pid] = file
    return [(f"{FOLDERS[camid]}/{file}", pid, camid) for pid, file in of_pid.items()]


def _pid(layout: TwoCameras, number: int, camid: int) -> int:
    only_in_a = layout.name == PRID.name and camid == 0 and number > PRID_IDS[-1]
    return number + PID_OFFSET[layout.name] + (ONLY_IN_A if only_in_a else 0)
