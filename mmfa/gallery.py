"""A folder of images, embedded once: what has not changed is taken from a cache.

Shapes: B images of a batch, G gallery images, D pooled dimensions.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import filelock
import numpy as np

from mmfa.config import canonical_json
from mmfa.data import listing
from mmfa.data.folder import domain_name
from mmfa.data.records import Floats, Progress, no_progress
from mmfa.errors import DataError
from mmfa.retrieval import Embedder

logger = logging.getLogger(__name__)

SAVE_SECONDS = 60.0
"""How often a folder that is being embedded is saved."""
_FORMAT = 1
"""Version of the cache's files: another one is made again."""
_NONE: Floats = np.empty((0, 0), dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gallery:
    """A folder of images, embedded."""

    folder: Path
    """Absolute."""
    names: tuple[str, ...]
    """[G] files relative to the folder, with forward slashes, ascending."""
    features_GD: Floats
    """float32 [G, D], un-normalised."""
    skipped: tuple[tuple[str, str], ...]
    """Name and reason of each file that could not be read or decoded."""
    num_cached: int
    """Images whose embedding was known."""


def find_images(folder: Path) -> list[str]:
    """Return the images anywhere below a folder, relative to it, ascending; hidden files and folders are passed over.

    Raises:
        DataError: no such folder, one that cannot be read, no image in it, or a file name that is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"A gallery must be a folder of images, but {folder} is {_kind(folder)}; check the path.")

    def unreadable(error: OSError) -> NoReturn:
        raise listing.unreadable(error) from error

    found: list[str] = []
    for where, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = (name for name in names if name.lower().endswith(listing.IMAGE_SUFFIXES) and not name.startswith("."))
        below = Path(where).relative_to(folder).as_posix()
        found += images if below == "." else (f"{below}/{name}" for name in images)
    listing.refuse_undecodable(folder, found)
    if not found:
        endings = ", ".join(listing.IMAGE_SUFFIXES)
        raise DataError(f"A gallery must hold images, but {folder} has none; images end in {endings}.")
    return sorted(found)


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "not there"


def embed_folder(
    embedder: Embedder, folder: Path, *, cache_dir: Path, strict: bool = False, progress: Progress = no_progress
) -> Gallery:
    """Embed all images below a folder, or take from the cache those that have not changed since.

    A file is known by its name, size and time of change, a model by its weights. What is done is saved once a minute
    and when it is interrupted, so the next call goes on from there; a second process waits for the first.

    Args:
        embedder: the model.
        folder: any folder; its subfolders too.
        cache_dir: folder of everything that can be made again.
        strict: whether an image that cannot be read or decoded is an error; by default it is skipped and listed.
        progress: called as images are embedded.

    Raises:
        DataError: no such folder, no image that can be read, a cache that cannot be written, or ``strict`` and an image
            that cannot be read.
    """
    folder = folder.resolve()
    names = find_images(folder)
    path = cache_file(folder, embedder, cache_dir=cache_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            cache = _Cache.open(path, folder=folder)
            num_known = cache.keep(names)
            skipped = _embed_missing(embedder, cache, strict=strict, progress=progress)
    except OSError as error:
        raise DataError(
            f"{path} must be written, so that nothing is embedded twice, but it cannot be ({error.strerror}); "
            "make room there or choose another --cache-dir."
        ) from error
    known = [name for name in names if name in cache.features]
    if not known:
        raise DataError(f"None of the {len(names):,} images of {folder} can be decoded; the first: {skipped[0][1]}")
    return Gallery(
        folder=folder,
        names=tuple(known),
        features_GD=cache.matrix(known),
        skipped=tuple(skipped),
        num_cached=num_known,
    )


def cache_file(folder: Path, embedder: Embedder, *, cache_dir: Path) -> Path:
    """Return where the embeddings of a folder by a model are kept."""
    return cache_dir / "embeddings" / f"{domain_name(folder)}-{embedder.fingerprint}.npz"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        logger.warning("waiting for another process that embeds the same folder with the same model")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _embed_missing(
    embedder: Embedder, cache: _Cache, *, strict: bool, progress: Progress
) -> list[tuple[str, str]]:  # fmt: skip
    """Embed what the cache lacks and save it; return name and reason of what cannot be read."""
    missing, skipped = cache.missing, []
    saved_at = time.monotonic()
    try:
        for batch in embedder.batches([cache.folder / name for name in missing]):
            if strict and batch.unreadable:
                raise next(iter(batch.unreadable.values()))
            skipped += [(missing[row], str(error)) for row, error in batch.unreadable.items()]
            cache.add([missing[row] for row in batch.rows], batch.features_BD)
            progress(f"embedding {cache.folder.name}", batch.stop, len(missing))
            if time.monotonic() - saved_at > SAVE_SECONDS:
                cache.save()
                saved_at = time.monotonic()
    finally:
        cache.save()
    return skipped


class _Cache:
    """The embeddings of one folder by one model: one ``.npz`` that holds no pickle."""

    def __init__(self, path: Path, folder: Path, stamps: dict[str, list[int]], stored_GD: Floats) -> None:
        self.path, self.folder = path, folder
        self.stamps, self.features = stamps, dict(zip(stamps, stored_GD, strict=True))
        self.missing: list[str] = []
        self._stored_GD = stored_GD
        self._whole = False
        self._changed = False

    @classmethod
    def open(cls, path: Path, *, folder: Path) -> _Cache:
        """Read a file; one that is damaged, or of another folder or version, is as good as none."""
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # only the holder of the lock has any
            leftover.unlink(missing_ok=True)
        try:
            with np.load(path, allow_pickle=False) as stored:  # zipfile compares the checksum of what is read whole
                known, features_GD = json.loads(stored["listing"].tobytes()), stored["features"]
            stamps = known["stamps"]
            if known["format"] != _FORMAT or known["folder"] != str(folder) or len(stamps) != len(features_GD):
                raise ValueError("of another folder or version")
        except FileNotFoundError:
            return cls(path, folder, {}, _NONE)
        except Exception as error:  # a damaged file makes zipfile and numpy raise anything
            logger.warning("%s is not what was written (%s); it is made again.", path, error)
            return cls(path, folder, {}, _NONE)
        return cls(path, folder, stamps, features_GD)

    def keep(self, names: Sequence[str]) -> int:
        """Keep what is known of the files as they are now; note what is missing; return how many are known."""
        now = {name: stamp for name in names if (stamp := _stamp(f"{self.folder}/{name}")) is not None}
        kept = {name for name, stamp in now.items() if self.stamps.get(name) == stamp}
        self.features = {name: feature_D for name, feature_D in self.features.items() if name in kept}
        self._changed = len(kept) != len(self.stamps)
        self.stamps = now
        self.missing = [name for name in names if name not in kept]
        self._whole = not self.missing and not self._changed and list(self.features) == list(names)
        return len(kept)

    def add(self, names: Sequence[str], features_BD: Floats) -> None:
        """Take up the embeddings of files; of one that is gone meanwhile nothing is saved."""
        self.features.update(zip(names, features_BD, strict=True))
        self._changed |= bool(names)

    def matrix(self, names: Sequence[str]) -> Floats:
        """Return the embeddings of files as rows, float32 [G, D]: as they were read, where nothing has changed."""
        return self._stored_GD if self._whole else np.stack([self.features[name] for name in names])

    def save(self) -> None:
        """Write the file, where it holds something else, so that it appears complete or not at all."""
        stamps = {name: self.stamps[name] for name in sorted(self.features) if name in self.stamps}
        if not stamps or not self._changed:
            return
        known = canonical_json({"format": _FORMAT, "folder": str(self.folder), "stamps": stamps}).encode()
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                features_GD = np.stack([self.features[name] for name in stamps])
                np.savez(file, features=features_GD, listing=np.frombuffer(known, dtype=np.uint8))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            self._changed = False
        finally:
            temporary.unlink(missing_ok=True)


def _stamp(path: str) -> list[int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path for each of 20,000 files would take as long as all the rest)
    except OSError:  # it is gone, or out of reach: reading it will say so
        return None
    return [found.st_size, found.st_mtime_ns]
