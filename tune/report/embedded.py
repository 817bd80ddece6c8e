"""Pictures made elsewhere, put into the page as they are: ranked galleries, attention maps, t-SNE.

A folder of them holds ``pictures.json``, a list of ``{"file", "title", "alt", "caption"}``.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from mmfa.errors import DataError
from tune.report.blocks import Picture

INDEX = "pictures.json"
KEYS = ("file", "title", "alt", "caption")
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def read(folder: Path) -> list[Picture]:
    """Return the pictures of a folder in the order of its index; none where there is no such folder.

    Raises:
        DataError: an index that is none, a file that is not there, lies outside, or is neither PNG nor JPEG.
    """
    if not folder.exists():
        return []
    index = folder / INDEX
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{index} must be a JSON list of pictures, but it cannot be read ({error}).") from None
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise DataError(f"{index} must be a list of objects with texts for {', '.join(KEYS)}; make the pictures again.")
    return [_picture(folder, entry) for entry in entries]


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in KEYS)


def _picture(folder: Path, entry: dict[str, str]) -> Picture:
    name = entry["file"]
    path = folder / name
    kind = TYPES.get(path.suffix.lower())
    if kind is None or Path(name).name != name:
        raise DataError(f"{folder / INDEX}: a picture is a PNG or JPEG file of that folder, but got {name!r}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{folder / INDEX} lists {name}, which cannot be read ({error.strerror}).") from None
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(title=entry["title"], uri=uri, alt=entry["alt"], caption=entry["caption"])
