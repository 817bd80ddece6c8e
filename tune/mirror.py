"""Folders on an object store, worked on as local copies: pulled before use, pushed as they grow.

An object appears whole or not at all, but a folder of them does not. So the file that vouches for the others in a
folder (:data:`LAST`) is uploaded last, and a folder without it is not pulled.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from mmfa.errors import MmfaError
from tune.patience import patiently
from tune.places import first_line

LAST = ("state.json", "result.json")
"""Uploaded after everything else in their folder: what they vouch for is then there."""
_VOUCHED = re.compile(r"(^|/)(epoch-\d+|export)/")
"""Folders that count only with their ``state.json``."""
_SCRAP = re.compile(r"\.(tmp|corrupt)(/|$)")
RESULT = "result.json"
"""Always uploaded: written again, it may have the size that it had."""


def is_remote(where: str) -> bool:
    """Whether a place is the URI of an object store, and not a folder."""
    return "://" in where


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's file system and the path in it.

    Raises:
        MmfaError: a scheme that pyarrow does not know, or a URI that does not hold.
    """
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MmfaError(
            f"{uri} cannot be opened: {first_line(error)}; give a folder that all nodes share, or s3://bucket/path."
        ) from None
    return system, path.rstrip("/")


def sizes(uri: str) -> dict[str, int]:
    """Return the size of every file below a URI, by its path from there."""
    system, root = open_uri(uri)
    found = patiently(lambda: system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)))
    return {info.path[len(root) + 1 :]: info.size for info in found if info.type == fs.FileType.File}


def read(uri: str) -> bytes | None:
    """Return an object's bytes, or None where there is none."""
    system, path = open_uri(uri)

    def get() -> bytes:
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())

    try:
        return patiently(get)
    except FileNotFoundError:
        return None


def write(uri: str, content: bytes, *, seconds: float | None = None) -> None:
    """Write an object, whole or not at all."""
    system, path = open_uri(uri)

    def put() -> None:
        with system.open_output_stream(path) as stream:
            stream.write(content)

    patiently(put, seconds=seconds)


def remove(uri: str, *paths: str) -> None:
    """Remove objects below a URI; those that are gone already are passed over."""
    system, root = open_uri(uri)
    for path in paths:
        try:
            patiently(lambda path=path: system.delete_file(f"{root}/{path}"))  # type: ignore[misc]
        except FileNotFoundError:
            continue


def drop(uri: str, *folders: str) -> None:
    """Remove folders below a URI, what vouches for their files first; those that are gone already are passed over."""
    system, root = open_uri(uri)
    for folder in folders:
        vouchers = [path for path in sizes(f"{uri}/{folder}") if PurePosixPath(path).name in LAST]
        remove(f"{uri}/{folder}", *vouchers)
        # Removing one object after the other would leave an empty one in the folder's own name behind.
        with contextlib.suppress(FileNotFoundError):
            patiently(lambda folder=folder: system.delete_dir(f"{root}/{folder}"))  # type: ignore[misc]


def pull(folder: Path, uri: str, *, without: str = "") -> None:
    """Download what a folder lacks.

    Args:
        folder: the local copy.
        uri: of the folder on the object store.
        without: first letters of paths that are left out.
    """
    there = sizes(uri)
    for path, size in sorted(there.items()):
        vouched = _VOUCHED.search(path)
        torn = vouched is not None and f"{path[: vouched.end()]}state.json" not in there
        if torn or (without and path.startswith(without)):
            continue
        local = folder / path
        if local.exists() and local.stat().st_size == size:
            continue
        content = read(f"{uri}/{path}")
        if content is not None:
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary = local.with_name(f"{local.name}.pulled.tmp")
            temporary.write_bytes(content)
            temporary.replace(local)


def push(folder: Path, uri: str, *, before_commit: Callable[[], None], own: str = "") -> None:
    """Upload what is new or has grown, what vouches for others last.

    Args:
        folder: the local copy.
        uri: of the folder on the object store.
        before_commit: called before each file of :data:`LAST`; what it raises ends the upload there.
        own: a subfolder of which the object store keeps no more than the local copy has.
    """
    there = sizes(uri)
    here = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not _SCRAP.search(path.relative_to(folder).as_posix())
    }
    for path, local in sorted(here.items(), key=lambda item: (PurePosixPath(item[0]).name in LAST, item[0])):
        if there.get(path) == local.stat().st_size and path != RESULT:
            continue
        if PurePosixPath(path).name in LAST:
            before_commit()
        write(f"{uri}/{path}", local.read_bytes())
    if own:
        kept = {str(PurePosixPath(path).parent) for path in here}
        drop(uri, *sorted({str(PurePosixPath(path).parent) for path in there if path.startswith(f"{own}/")} - kept))
