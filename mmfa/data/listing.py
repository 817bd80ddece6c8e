"""List folders of a data root; nothing is ever written there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmfa.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
"""What people's own images may be called, in any case."""
IMAGE_FORMATS = ("JPEG", "PNG", "BMP")
"""Pillow's names of the same."""


def find_root(data_root: Path, roots: Sequence[str], folders: Sequence[str], *, title: str, example: str) -> Path:
    """Return the first of ``roots`` under the data root that has all ``folders``.

    Raises:
        DataError: there is none; says what was looked for, what was found, and the layout expected.
    """
    for candidate in roots:
        if all((data_root / candidate / folder).is_dir() for folder in folders):
            return data_root / candidate
    raise DataError(
        f"{title} was looked for in {', '.join(roots)} under {data_root}, but {_found(data_root, roots, folders)}; "
        f"one of these places must hold the folders {', '.join(folders)} with files like {example}."
    )


def files(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Return the ascending names of the files in a folder that end so, in any case; others are none of ours."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                entry.name for entry in entries if entry.name.lower().endswith(tuple(suffixes)) and entry.is_file()
            )
    except OSError as error:
        raise unreadable(error) from error
    refuse_undecodable(folder, found)
    return found


def unreadable(error: OSError) -> DataError:
    """Return the error of a file or folder of a dataset that cannot be read."""
    return DataError(
        f"All of a dataset must be readable, but {error.filename}: {error.strerror}; mend its permissions."
    )


def refuse_undecodable(folder: Path, names: Sequence[str]) -> None:
    """Raise DataError for names that are not UTF-8: a store could not hold them."""
    odd = [name for name in names if name != name.encode(errors="replace").decode()]
    if odd:
        raise DataError(
            f"File names must be UTF-8, but {len(odd)} in {folder} are not: {', '.join(map(ascii, odd[:5]))}; "
            "rename them."
        )


def refuse_odd_names(folder: Path, odd: Sequence[str], *, rule: str) -> None:
    """Raise DataError if any name is odd, listing the first few."""
    if odd:
        raise DataError(
            f"{rule}, but {len(odd)} in {folder} are not: {', '.join(sorted(odd)[:5])}; rename or remove them."
        )


def _found(data_root: Path, roots: Sequence[str], folders: Sequence[str]) -> str:
    if not data_root.is_dir():
        return "that is not a folder"
    for candidate in roots:
        if (data_root / candidate).is_dir():
            missing = [folder for folder in folders if not (data_root / candidate / folder).is_dir()]
            return f"{candidate} has no {', '.join(missing)}"
    names = sorted(entry.name for entry in data_root.iterdir())
    if not names:
        return "that folder is empty"
    if set(folders) <= set(names):
        return f"that is the dataset itself, and what is asked for is the folder that holds it ({data_root.parent})"
    return "found " + ", ".join(names[:8]) + (f", ... ({len(names)} entries)" if len(names) > 8 else "")
