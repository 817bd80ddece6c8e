"""People's own data: a folder in Market layout, or any folder of images as an unlabelled target."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NoReturn

import numpy as np

from mmfa.data import listing, market_layout
from mmfa.data.records import Dataset, Domain
from mmfa.errors import DataError

PREFIX = "folder:"


def domain_name(path: Path) -> str:
    """Return ``folder-<base name>-<hash of the path>``, reduced to characters that every file system takes."""
    whole = path.resolve()
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:6]
    return f"folder-{re.sub(r'[^A-Za-z0-9_.-]+', '-', whole.name)}-{digest}"


def _raise(error: OSError) -> NoReturn:
    raise listing.unreadable(error) from error


def load(path: Path, *, unlabelled_allowed: bool) -> Dataset:
    """List a folder.

    Args:
        path: has the three folders of Market-1501 (and ``market_attribute.mat``, if there are annotations), or none
            of them and images anywhere below.
        unlabelled_allowed: false for a source.

    Raises:
        DataError: no such folder, some but not all of the three folders, what :func:`market_layout.read` refuses, or
            an unlabelled source.
    """
    if not path.is_dir():
        raise DataError(f"{PREFIX}PATH must name a folder, but {path} is none; check the path.")
    missing = [folder for folder in market_layout.FOLDERS if not (path / folder).is_dir()]
    if len(missing) == len(market_layout.FOLDERS):
        return _load_unlabelled(path, allowed=unlabelled_allowed)
    if missing:
        raise DataError(
            f"A folder in Market layout must have {', '.join(market_layout.FOLDERS)}, but {path} has no "
            f"{', '.join(missing)}; add what is missing, or give a folder of images alone as an unlabelled target."
        )
    dataset = market_layout.read(market_layout.FOLDER, path, name=domain_name(path))
    file = path / market_layout.FOLDER.annotations.file
    return market_layout.with_attributes(dataset, market_layout.FOLDER, file if file.is_file() else None)


def _load_unlabelled(path: Path, *, allowed: bool) -> Dataset:
    """List all images below a folder; each of its subfolders counts as one camera."""
    paths = sorted(
        (Path(folder) / file).relative_to(path).as_posix()
        for folder, _, names in os.walk(path, onerror=_raise)
        for file in names
        if file.lower().endswith(listing.IMAGE_SUFFIXES) and not file.startswith(".")
    )
    listing.refuse_undecodable(path, paths)
    if not paths:
        raise DataError(
            f"A folder must hold {', '.join(market_layout.FOLDERS)}, or images for an unlabelled target, but {path} "
            f"has neither; images end in {', '.join(listing.IMAGE_SUFFIXES)}."
        )
    if not allowed:
        raise DataError(
            f"A source needs identities, but {path} has none of {', '.join(market_layout.FOLDERS)} and is unlabelled; "
            "use it as a target, or name another source."
        )
    cameras = [file.split("/")[0] if "/" in file else "" for file in paths]
    domain = Domain(
        name=domain_name(path),
        paths=tuple(paths),
        pids=np.full(len(paths), -1, dtype=np.int64),
        camids=np.unique(cameras, return_inverse=True)[1].astype(np.int64),
        splits=np.full(len(paths), "train", dtype="<U11"),
        labelled=False,
    )
    counts = {"unlabelled images": len(paths), "cameras": len(set(cameras))}
    return Dataset(root=path, domain=domain, attribute_file=None, formats=listing.IMAGE_FORMATS, counts=counts)
