"""Datasets by name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from mmfa.data import folder, market_layout, two_camera
from mmfa.data.pedestrians.domains import DOMAINS
from mmfa.data.pedestrians.render import ensure_rendered
from mmfa.data.records import Dataset, Progress, no_progress
from mmfa.errors import DataError, did_you_mean

MARKET_LIKE = {layout.name: layout for layout in (market_layout.MARKET, market_layout.DUKE)}
TWO_CAMERA = {layout.name: layout for layout in (two_camera.VIPER, two_camera.PRID)}
BENCHMARKS = (*MARKET_LIKE, *TWO_CAMERA)
"""Datasets that are read from the user's own copy under a data root."""


def names() -> tuple[str, ...]:
    """Return every fixed name that :func:`load` knows; it takes ``folder:PATH`` besides."""
    return (*DOMAINS, *BENCHMARKS)


def check_name(name: str) -> None:
    """Raise DataError unless :func:`load` knows the name; the nearest one is named."""
    if name not in names() and not name.startswith(folder.PREFIX):
        raise DataError(f"{name!r} is not a dataset{did_you_mean(name, (*names(), 'folder:PATH'))}")


def needs_data_root(name: str) -> bool:
    """Return whether a dataset is looked for under the data root."""
    return name in BENCHMARKS


def slug(name: str) -> str:
    """Return the short name of a dataset, fit for a file name: the name of its domain.

    Raises:
        DataError: an unknown name.
    """
    check_name(name)
    return folder.domain_name(_path(name)) if name.startswith(folder.PREFIX) else name


def load(
    name: str, *, data_root: Path | None, cache_dir: Path, strict_counts: bool = False,
    attributes_required: bool = True, progress: Progress = no_progress,
) -> Dataset:  # fmt: skip
    """List a dataset; the embedded ones are rendered on first use.

    Args:
        name: one of :func:`names`, or ``folder:PATH``.
        data_root: folder of the user's datasets; only benchmarks need it, and it is never written to.
        cache_dir: folder of everything that can be made again.
        strict_counts: raise where published counts are not met, instead of a warning.
        attributes_required: true for a source: Market-1501 and DukeMTMC-reID must have their attribute file, and a
            folder must be labelled; VIPeR, PRID 2011 and folders may lack attributes.
        progress: called as pictures are rendered.

    Raises:
        DataError: an unknown name, no data root, or a dataset that does not hold.
    """
    check_name(name)
    if name in DOMAINS:
        root = ensure_rendered(name, cache_dir=cache_dir, progress=progress)
        layout = market_layout.MARKET
        dataset = market_layout.read(layout, root, name=name)
        return market_layout.with_attributes(
            dataclasses.replace(dataset, published={}), layout, root / layout.annotations.file
        )
    if name.startswith(folder.PREFIX):
        return folder.load(_path(name), unlabelled_allowed=not attributes_required)
    if data_root is None:
        raise DataError(
            f"{name} is read from your own copy, but no data root was given; "
            f"name the folder that holds {_roots(name)[0]} with --data-root."
        )
    if name in TWO_CAMERA:
        return two_camera.load(TWO_CAMERA[name], data_root, strict_counts=strict_counts)
    return market_layout.load(
        MARKET_LIKE[name], data_root, strict_counts=strict_counts, attributes_required=attributes_required
    )


def expected_layout(name: str) -> str:
    """Return where a benchmark is expected under the data root."""
    folders = tuple(market_layout.FOLDERS) if name in MARKET_LIKE else ("cam_a", "cam_b")
    return f"{_roots(name)[0]}/{{{','.join(folders)}}}"


def nothing_found(data_root: Path) -> str:
    """Return what to do about a data root in which no benchmark lies."""
    if all((data_root / folder).is_dir() for folder in market_layout.FOLDERS):
        return f"{data_root} is a dataset itself: give {data_root.parent}, or name folder:{data_root}."
    return f"A benchmark would lie in {data_root / expected_layout(market_layout.MARKET.name)}, for instance."


def is_labelled(name: str) -> bool:
    """Return whether a dataset has identities; only a folder of images alone has none.

    Raises:
        DataError: a folder that is not there or holds nothing.
    """
    return not name.startswith(folder.PREFIX) or folder.load(_path(name), unlabelled_allowed=True).domain.labelled


def is_present(name: str, data_root: Path) -> bool:
    """Return whether a benchmark seems to lie under the data root, whatever state it is in."""
    return any((data_root / root).is_dir() for root in _roots(name))


def default_cache_dir() -> Path:
    """Return ``$MMFA_CACHE_DIR``, else ``$XDG_CACHE_HOME/mmfa``, else ``~/.cache/mmfa``."""
    if chosen := os.environ.get("MMFA_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mmfa"


def _path(name: str) -> Path:
    return Path(name.removeprefix(folder.PREFIX)).expanduser()


def _roots(name: str) -> tuple[str, ...]:
    return MARKET_LIKE[name].roots if name in MARKET_LIKE else TWO_CAMERA[name].roots
