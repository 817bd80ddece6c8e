"""Datasets by name."""

from __future__ import annotations

import os
from pathlib import Path

from mmfa.data import market_layout
from mmfa.data.pedestrians.domains import DOMAINS
from mmfa.data.pedestrians.render import ensure_rendered
from mmfa.data.records import Dataset, Progress, no_progress
from mmfa.errors import DataError, did_you_mean


def names() -> tuple[str, ...]:
    """Return every name that :func:`load` knows."""
    return (*DOMAINS, "market1501")


def load(
    name: str, *, data_root: Path | None, cache_dir: Path, strict_counts: bool = False,
    attributes_required: bool = True, progress: Progress = no_progress,
) -> Dataset:  # fmt: skip
    """List a dataset; the embedded ones are rendered on first use.

    Args:
        name: one of :func:`names`.
        data_root: folder of the user's datasets; not needed for the embedded ones, and never written to.
        cache_dir: folder of everything that can be made again.
        strict_counts: raise where published counts are not met, instead of a warning.
        attributes_required: false for a target, whose attributes nothing reads: they may be missing.
        progress: called as pictures are rendered.

    Raises:
        DataError: an unknown name, no data root, or a dataset that does not hold.
    """
    if name in DOMAINS:
        root = ensure_rendered(name, cache_dir=cache_dir, progress=progress)
        return market_layout.with_attributes(
            root, market_layout.read_layout(root, name=name), root / market_layout.ATTRIBUTE_FILE
        )
    if name != "market1501":
        raise DataError(f"{name!r} is not a dataset of this version{did_you_mean(name, names())}")
    if data_root is None:
        raise DataError(
            "market1501 is read from your own copy, but no data root was given; "
            f"name the folder that holds {market_layout.ROOTS[0]} with --data-root."
        )
    return market_layout.load_market(data_root, strict_counts=strict_counts, attributes_required=attributes_required)


def default_cache_dir() -> Path:
    """Return ``$MMFA_CACHE_DIR``, else ``$XDG_CACHE_HOME/mmfa``, else ``~/.cache/mmfa``."""
    if chosen := os.environ.get("MMFA_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mmfa"
