"""One dataset as columns, and its attribute annotations.

Shapes: N images, P annotated identities, F annotated fields, M binary attribute columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmfa.errors import DataError

Split = Literal["train", "query", "gallery", "val_query", "val_gallery", "unused"]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Strings = npt.NDArray[np.str_]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing: the default wherever a :data:`Progress` is taken."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttributeTable:
    """Binary attributes by identity: what the losses use."""

    names: tuple[str, ...]
    """The M columns."""
    pids: Ints
    """int64 [P], ascending."""
    values: Floats
    """float32 [P, M] in {0, 1}; 0 where not annotated."""
    mask: Bools
    """bool [P, M], true where annotated."""

    def rows(self, pids: Ints) -> tuple[Floats, Bools]:
        """Return values and mask, [N, M] each, of the given identities.

        Raises:
            DataError: an identity without annotation.
        """
        pids = np.asarray(pids, dtype=np.int64)
        missing = np.setdiff1d(pids, self.pids)
        if missing.size:
            raise DataError(
                f"Every identity must be annotated, but {name_pids(missing)} is not in the attribute table; "
                "use the attribute file that belongs to these images."
            )
        index = np.searchsorted(self.pids, pids)
        return self.values[index], self.mask[index]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttributeCodes:
    """Annotation codes as published: 0 missing, 1 and 2, and 1 to 4 for age."""

    fields: tuple[str, ...]
    """The F annotated fields."""
    pids: Ints
    """int64 [P], ascending."""
    codes: Bytes
    """uint8 [P, F]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Domain:
    """One dataset as columns, ordered by path."""

    name: str
    """Catalogue name."""
    paths: tuple[str, ...]
    """Image files relative to the dataset's root, with forward slashes, ascending."""
    pids: Ints
    """int64 [N] identities; 0: a distractor that matches nobody; -1 throughout an unlabelled domain."""
    camids: Ints
    """int64 [N] cameras, 0-based."""
    splits: Strings
    """[N] values of :data:`Split`."""
    attributes: AttributeCodes | None = None
    """Annotations by identity, where the dataset has any."""
    labelled: bool = True
    """Whether anybody knows who is on the images; if not, all of them are ``train``, and only a target can use them."""

    def __post_init__(self) -> None:
        assert list(self.paths) == sorted(set(self.paths)), "paths must ascend without repetition"
        assert self.labelled or (self.attributes is None and (self.pids == -1).all()), "labels without labelled"
        assert len(self.paths) == len(self.pids) == len(self.camids) == len(self.splits), "columns differ in length"

    def rows(self, *splits: Split) -> Ints:
        """Return the ascending indices of the images in the given splits."""
        return np.flatnonzero(np.isin(self.splits, splits)).astype(np.int64)

    @property
    def train_pids(self) -> Ints:
        """Ascending int64 identities of the split ``train``; their order numbers the classes."""
        return np.unique(self.pids[self.rows("train")])

    def with_split(self, number: int) -> Domain:
        """Return a copy with one of the ten splits of VIPeR or PRID 2011; other domains have one, and keep it.

        Raises:
            DataError: a number outside 0 to 9.
        """
        from mmfa.data.splits import assign  # splits builds on this module

        return assign(self, number)

    def with_held_out(self, num_ids: int) -> Domain:
        """Return a copy in which ``num_ids`` training identities are ``val_query`` and ``val_gallery``.

        An unlabelled domain has no identities to hold out, and is returned as it is.

        Raises:
            DataError: more identities than half of the training ones, or a dataset too small to hold any out.
        """
        from mmfa.data.splits import hold_out  # splits builds on this module

        return hold_out(self, num_ids=num_ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """A domain and where its files lie."""

    root: Path
    """Folder that the domain's paths are relative to."""
    domain: Domain
    """The images and their labels."""
    attribute_file: Path | None
    """The annotations' file, if the dataset has any."""
    formats: tuple[str, ...] = ("JPEG",)
    """Image formats, by Pillow's names, that its files may have."""
    num_junk: int = 0
    """Junk detections that were left out."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was counted."""
    published: Mapping[str, int] = field(default_factory=dict)
    """Those of the counts that its authors published."""


def name_pids(pids: Ints, *, limit: int = 5) -> str:
    """Return ``"identity 3"`` or ``"identities 3, 4, 5, ... (9 in all)"`` for a message."""
    listed = ", ".join(str(pid) for pid in pids[:limit].tolist())
    if len(pids) == 1:
        return f"identity {listed}"
    return f"identities {listed}" + (f", ... ({len(pids)} in all)" if len(pids) > limit else "")
