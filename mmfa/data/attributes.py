"""Attribute annotations: the MATLAB files of Lin et al., and their binary encoding.

Lin et al., "Improving person re-identification by attribute and identity learning", Pattern Recognition 2019.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from mmfa.config import Age
from mmfa.data.records import AttributeCodes, AttributeTable, Bools, Bytes, Floats, Ints, name_pids
from mmfa.errors import DataError

UPPER_COLOURS = ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")
LOWER_COLOURS = ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")
MARKET_FIELDS = (
    *("gender", "hair", "up", "down", "clothes", "hat", "backpack", "bag", "handbag", "age"),
    *(f"up{colour}" for colour in UPPER_COLOURS),
    *(f"down{colour}" for colour in LOWER_COLOURS),
)
"""The 27 annotated fields of Market-1501, in the order of our columns (the file's own order varies)."""
DUKE_FIELDS = (
    *("gender", "top", "shoes", "boots", "hat", "backpack", "bag", "handbag"),
    *(f"up{colour}" for colour in ("black", "white", "red", "purple", "gray", "blue", "green", "brown")),
    *(f"down{colour}" for colour in ("black", "white", "red", "gray", "blue", "green", "brown")),
)
"""The 23 annotated fields of DukeMTMC-reID, all of two values."""
AGES = ("young", "teenager", "adult", "old")
"""Meaning of the age codes 1 to 4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationFile:
    """One release of annotations."""

    struct: str
    """Its one variable; the file is named after it."""
    fields: tuple[str, ...]
    """What it annotates, in the order of our columns."""
    structs: tuple[str, str]
    """Its two structs in the order in which the release has them."""
    release: str
    """Name of the release, and of the folder that it comes in."""

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.struct}.mat"


MARKET = AnnotationFile(
    struct="market_attribute", fields=MARKET_FIELDS, structs=("test", "train"), release="Market-1501_Attribute"
)
DUKE = AnnotationFile(
    struct="duke_attribute", fields=DUKE_FIELDS, structs=("train", "test"), release="DukeMTMC-attribute"
)

_IDENTITY = re.compile(r"\d{4}", re.ASCII)


def common(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Return the attributes that two domains share, in the order of the first.

    >>> len(common(MARKET_FIELDS, DUKE_FIELDS))
    18
    """
    return tuple(name for name in names if name in others)


def read_mat(path: Path, kind: AnnotationFile) -> AttributeCodes:
    """Read an attribute file: train and test identities joined, fields addressed by name.

    Raises:
        DataError: not such a file, a missing field, a code out of range or an identity annotated twice.
    """
    try:
        content = scipy.io.loadmat(path, simplify_cells=True)
    except Exception as error:  # scipy raises anything on a damaged file
        raise DataError(
            f"An attribute file must be a MATLAB v5 .mat, but {path} cannot be read as one ({error}); restore it."
        ) from error
    pids, codes = [], []
    for split in ("train", "test"):
        split_pids, split_codes = _read_struct(_struct(content, split, path, kind), f"{path}, {split}", kind)
        pids.append(split_pids)
        codes.append(split_codes)
    joined = np.concatenate(pids)
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    twice = np.unique(joined[1:][joined[1:] == joined[:-1]])
    if twice.size:
        raise DataError(
            f"An identity must be annotated once, but {path} annotates {name_pids(twice)} twice; repair it."
        )
    return AttributeCodes(fields=kind.fields, pids=joined, codes=np.concatenate(codes)[order])


def write_mat(path: Path, attributes: AttributeCodes, *, kind: AnnotationFile, train_pids: Ints) -> None:
    """Write annotations as a release has them, byte for byte the same for the same annotations.

    As in the releases, the two structs have their fields in different orders.

    Args:
        path: the file to write.
        attributes: codes of all identities.
        kind: whose names and order of structs.
        train_pids: identities of the ``train`` struct; all others go to ``test``.
    """
    is_train = np.isin(attributes.pids, train_pids)
    structs = {}
    for split in kind.structs:
        member = is_train if split == "train" else ~is_train
        names = np.empty((1, int(member.sum())), dtype=object)
        names[0] = [f"{pid:04d}" for pid in attributes.pids[member].tolist()]
        order = sorted(attributes.fields) if split == "train" else attributes.fields
        columns = {field: attributes.codes[member, attributes.fields.index(field)][None] for field in order}
        structs[split] = {**columns, "image_index": names}
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {kind.struct: structs})
    header = f"MATLAB 5.0 MAT-file, {kind.struct}".ljust(116)  # scipy puts the time of day here
    path.write_bytes(header.encode() + buffer.getvalue()[116:])


def encode(attributes: AttributeCodes, *, age: Age) -> AttributeTable:
    """Encode codes as binary columns: 1 becomes 0, 2 becomes 1, 0 is masked out.

    Args:
        attributes: codes by identity.
        age: ``onehot`` gives four columns, ``binary`` one (adult or old against young or teenager), ``drop`` none.
    """
    names: list[str] = []
    values: list[Floats] = []
    masks: list[Bools] = []
    for i, field in enumerate(attributes.fields):
        codes = attributes.codes[:, i]
        for name, positive in _columns(field, codes, age=age):
            names.append(name)
            values.append((positive & (codes > 0)).astype(np.float32))
            masks.append(codes > 0)
    shape = (len(attributes.pids), len(names))
    return AttributeTable(
        names=tuple(names),
        pids=attributes.pids,
        values=np.stack(values, axis=1) if names else np.zeros(shape, np.float32),
        mask=np.stack(masks, axis=1) if names else np.zeros(shape, np.bool_),
    )


def _columns(field: str, codes: Bytes, *, age: Age) -> list[tuple[str, Bools]]:
    if field != "age":
        return [(field, codes == 2)]
    if age == "onehot":
        return [(f"age_{name}", codes == code) for code, name in enumerate(AGES, start=1)]
    return [("age_adult_or_old", codes >= 3)] if age == "binary" else []


def _struct(content: Mapping[str, Any], split: str, path: Path, kind: AnnotationFile) -> Mapping[str, Any]:
    struct = content.get(kind.struct)
    found = struct if isinstance(struct, Mapping) else content
    if not isinstance(struct, Mapping) or not isinstance(struct.get(split), Mapping):
        names = ", ".join(sorted(name for name in found if not name.startswith("__"))) or "nothing"
        raise DataError(
            f"{path} must hold the struct {kind.struct!r} with the structs 'train' and 'test', but {names} was found; "
            f"use the file of the {kind.release} release."
        )
    split_struct: Mapping[str, Any] = struct[split]
    return split_struct


def _read_struct(struct: Mapping[str, Any], where: str, kind: AnnotationFile) -> tuple[Ints, Bytes]:
    missing = [field for field in (*kind.fields, "image_index") if field not in struct]
    if missing:
        raise DataError(
            f"All {len(kind.fields)} fields and image_index must be there, but {where} lacks {', '.join(missing)}; "
            f"use the file of the {kind.release} release."
        )
    names = np.atleast_1d(struct["image_index"]).ravel()
    odd = [name for name in names if not isinstance(name, str) or not _IDENTITY.fullmatch(name)]
    if odd:
        raise DataError(f"image_index must name identities like '0002', but {where} has '{odd[0]}'; repair it.")
    pids = np.array([int(name) for name in names], dtype=np.int64)
    codes = [_read_field(field, np.atleast_1d(struct[field]).ravel(), pids, where) for field in kind.fields]
    return pids, np.stack(codes, axis=1)


def _read_field(field: str, column: Any, pids: Ints, where: str) -> Bytes:
    if len(column) != len(pids):
        raise DataError(
            f"Each field must have one code per identity, but {where} has {len(column)} of {field!r} "
            f"for {len(pids)} identities; repair it."
        )
    highest = len(AGES) if field == "age" else 2
    bad = np.flatnonzero(~np.isin(column, np.arange(highest + 1)))
    if bad.size:
        raise DataError(
            f"Codes of {field!r} must be 1 to {highest}, or 0 where missing, but {where} has "
            f"{column[bad[0]]} for identity {pids[bad[0]]:04d}; repair it."
        )
    return np.asarray(column, dtype=np.uint8)
