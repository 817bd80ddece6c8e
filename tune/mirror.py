"""Folders on an object store, worked on as local copies: pulled before use, pushed as they grow.

An object appears whole or not at all, but a folder of them does not. So the file that vouches for the others in a
folder (:data:`LAST`) is uploaded last, and a folder without it is not pulled.
"""

from __future__ import annotations

import contextlib
import functools
import re
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from mmfa.errors import MmfaError
from tune.patience import patiently, when_there_is_room
from tune.places import first_line

STATE, RESULT = "state.json", "result.json"
LAST = (STATE, RESULT)
"""Uploaded after everything else in their folder: what they vouch for is then there."""
_VOUCHED = re.compile(r"(^|/)(epoch-\d+|export)/")
"""Folders that count only with their ``state.json``."""
_SCRAP = re.compile(r"\.(tmp|corrupt)(/|$)")


def is_remote(where: str) -> bool:
    """Whether a place is the URI of an object store, and not a folder."""
    return "://" in where


@functools.cache
def _bucket(uri: str) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's file system and the bucket's path in it: opened once, for Amazon's is asked for its region."""
    system, path = fs.FileSystem.from_uri(uri)
    return system, path.rstrip("/")


def _open(uri: str, *, seconds: float | None = None) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's file system and the path in it; wait where the store does not answer.

    Raises:
        MmfaError: a scheme that pyarrow does not know, or a URI that does not hold.
        OSError: the store does not answer.
    """
    parts = urllib.parse.urlsplit(uri)
    try:
        if not parts.netloc:
            raise ValueError("it names no bucket")
        system, root = patiently(lambda: _bucket(f"{parts.scheme}://{parts.netloc}"), seconds=seconds)
    except (pa.ArrowInvalid, ValueError) as error:
        raise MmfaError(
            f"{uri} cannot be opened: {first_line(error)}; give a folder that all nodes share, or s3://bucket/path."
        ) from None
    return system, f"{root}/{parts.path.strip('/')}".rstrip("/")


def sizes(uri: str) -> dict[str, int]:
    """Return the size of every file below a URI, by its path from there."""
    system, root = _open(uri)
    found = patiently(lambda: system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)))
    return {info.path[len(root) + 1 :]: info.size for info in found if info.type == fs.FileType.File}


def read(uri: str, *, seconds: float | None = None) -> bytes | None:
    """Return an object's bytes, or None where there is none; ``seconds``: how long to try."""
    system, path = _open(uri, seconds=seconds)

    def get() -> bytes:
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())

    try:
        return patiently(get, seconds=seconds)
    except FileNotFoundError:
        return None


def write(uri: str, content: bytes, *, seconds: float | None = None, check: Callable[[], None] = lambda: None) -> None:
    """Write an object, whole or not at all.

    Args:
        uri: of the object.
        content: its bytes.
        seconds: how long to try.
        check: called before every try; what it raises ends them.
    """
    system, path = _open(uri, seconds=seconds)

    def put() -> None:
        check()
        with system.open_output_stream(path) as stream:
            stream.write(content)

    patiently(put, seconds=seconds)


def remove(uri: str, *paths: str) -> None:
    """Remove objects below a URI; those that are gone already are passed over."""
    system, root = _open(uri)
    for path in paths:
        try:
            patiently(lambda path=path: system.delete_file(f"{root}/{path}"))  # type: ignore[misc]
        except FileNotFoundError:
            continue


def drop(uri: str, *folders: str) -> None:
    """Remove folders below a URI, what vouches for their files first; those that are gone already are passed over."""
    system, root = _open(uri)
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
    for path in sorted(there, key=_last_last):
        size, vouched = there[path], _VOUCHED.search(path)
        torn = vouched is not None and f"{path[: vouched.end()]}{STATE}" not in there
        if torn or (without and path.startswith(without)):
            continue
        local = folder / path
        if local.exists() and local.stat().st_size == size:
            continue
        content = read(f"{uri}/{path}")
        if content is not None:
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary = local.with_name(f"{local.name}.pulled.tmp")
            when_there_is_room(functools.partial(temporary.write_bytes, content))
            temporary.replace(local)


def push(folder: Path, uri: str, *, check: Callable[[], None], own: str = "") -> None:
    """Upload what is new or has grown, what vouches for others last.

    Args:
        folder: the local copy.
        uri: of the folder on the object store.
        check: called before every upload; what it raises ends the upload there.
        own: a subfolder of which the object store keeps no more than the local copy has.
    """
    there = sizes(uri)
    here = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not _SCRAP.search(path.relative_to(folder).as_posix())
    }
    for path in sorted(here, key=_last_last):
        if path != RESULT and _is_there(path, here, there):
            continue
        write(f"{uri}/{path}", here[path].read_bytes(), check=check)
    if own:
        kept = {str(PurePosixPath(path).parent) for path in here}
        drop(uri, *sorted({str(PurePosixPath(path).parent) for path in there if path.startswith(f"{own}/")} - kept))


def _last_last(path: str) -> tuple[bool, str]:
    """Order files so that what vouches for others is moved after them: a kill in between must not vouch too soon."""
    return PurePosixPath(path).name in LAST, path


def _is_there(path: str, here: Mapping[str, Path], there: Mapping[str, int]) -> bool:
    """Whether a file need not be uploaded: its size tells, and of a folder that is vouched for whether it is whole.

    Weights of one model all have one size, so what another attempt left there of an epoch may not be kept.
    """
    vouched = _VOUCHED.search(path)
    names = [path, f"{path[: vouched.end()]}{STATE}"] if vouched is not None else [path]
    return all(name in here and there.get(name) == here[name].stat().st_size for name in names)
