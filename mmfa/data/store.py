"""A dataset decoded once: one Arrow IPC file that every trial maps into memory.

The file has one record batch: columns ``path``, ``pid``, ``camid``, ``split`` and ``image`` (a fixed-shape tensor),
uncompressed, so that all images are one array in the mapped file. Name, attributes and fingerprint stand in the
schema's metadata.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import PIL
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from mmfa.config import canonical_json
from mmfa.data import listing
from mmfa.data.augment import resize
from mmfa.data.records import AttributeCodes, Bytes, Dataset, Domain, Progress, no_progress
from mmfa.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of the file: raised whenever its content is read or made differently."""
_METADATA = b"mmfa"
_JPEG = b"\xff\xd8"
"""How a JPEG begins."""
_CHUNK = 64
"""Images decoded by one task of the thread pool."""
_SYNCED = 64
"""Tasks after which what they wrote is sent to the disk."""
_FINGERPRINT_DIGITS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """An opened image store."""

    path: Path
    """The file."""
    domain: Domain
    """Labels, with the official splits."""
    images: Bytes
    """uint8 [N, H, W, 3], read-only, mapped from the file without a copy; row n is ``domain.paths[n]``."""
    fingerprint: str
    """12 hexadecimal digits of the content: image files, labels and attributes; not of place, time or stored size."""


def build(dataset: Dataset, *, cache_dir: Path, height: int, width: int, progress: Progress = no_progress) -> Path:
    """Decode a dataset into ``cache_dir/stores`` unless that has been done, and return the file.

    Whatever process comes second waits for the first; a process killed in the middle leaves only temporary files,
    which the next build removes.

    Args:
        dataset: what to decode; unchanged files (by path, size and time) are not read again.
        cache_dir: folder of everything that can be made again.
        height: of the stored images; images of another size are resized, antialiased bilinear.
        width: of the stored images.
        progress: called as images are decoded.

    Raises:
        DataError: an image that cannot be read, or no room for the store.
    """
    folder = cache_dir / "stores"
    path = folder / f"{dataset.domain.name}-{height}x{width}-{_listing_key(dataset)}.arrow"
    try:
        if not path.exists():
            _build_once(path, dataset, shape=(len(dataset.domain.paths), height, width, 3), progress=progress)
    except OSError as error:
        raise DataError(
            f"{path} must be written once before training, but it cannot be ({type(error).__name__}: {error}); "
            "make room there or choose another --cache-dir."
        ) from error
    return path


def _build_once(path: Path, dataset: Dataset, *, shape: tuple[int, int, int, int], progress: Progress) -> None:
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        if path.exists():  # another process was faster
            return
        for leftover in folder.glob("*.tmp"):  # only the holder of the lock has any
            leftover.unlink()
        logger.info("building %s from %d images", path, len(dataset.domain.paths))
        with _removed(path.with_suffix(".tmp")) as made:
            with made.open("wb") as file:
                first = _write_around_pixels(file, dataset.domain, shape, fingerprint="0" * _FINGERPRINT_DIGITS)
                digests = _decode_all(dataset, file.fileno(), first, shape[1:], progress)
                fingerprint = _fingerprint(dataset.domain, digests)
                assert _write_around_pixels(file, dataset.domain, shape, fingerprint=fingerprint) == first
                file.flush()
                os.fsync(file.fileno())
            made.replace(path)
        _sync(folder)


def open_store(path: Path) -> Store:
    """Map a store that :func:`build` made.

    Raises:
        DataError: a file that is missing, damaged or of another format version.
    """
    try:
        source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(source)
        metadata = json.loads(reader.schema.metadata[_METADATA])
        if metadata["format"] != FORMAT:
            raise DataError(
                f"A store must have format {FORMAT}, but {path} has {metadata['format']}; delete it and run again."
            )
        batch = reader.get_batch(0)
        images: Bytes = batch.column("image").to_numpy_ndarray()
        domain = _domain(batch, metadata)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path} is not an intact image store ({error}); delete it and run again.") from error
    _read_ahead(path)
    return Store(path=path, domain=domain, images=images, fingerprint=metadata["fingerprint"])


def _listing_key(dataset: Dataset) -> str:
    """Hash what a listing shows and what decodes it: it changes when a file does, and costs no reading."""
    made_by = [FORMAT, PIL.__version__, torch.__version__, version("torchvision")]
    files = {name: f"{dataset.root}/{name}" for name in dataset.domain.paths}  # a Path for each costs more than stat
    if dataset.attribute_file:
        files["attributes"] = str(dataset.attribute_file)
    stats = [(name, os.stat(path)) for name, path in files.items()]  # noqa: PTH116
    listed = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return hashlib.sha256(canonical_json([made_by, dataset.domain.name, listed]).encode()).hexdigest()[:12]


def _decode_all(dataset: Dataset, file: int, first: int, shape: tuple[int, ...], progress: Progress) -> list[str]:
    """Write all pixels into an open file from position ``first``, with all cores; return the SHA-256 of each image."""
    total = len(dataset.domain.paths)
    digests: list[str] = []
    chunks = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        tasks = [pool.submit(_decode_chunk, dataset, chunk, file, first, shape) for chunk in chunks]
        try:
            for number, task in enumerate(tasks, start=1):
                digests.extend(task.result())
                if number % _SYNCED == 0:  # while the others decode: little is left to wait for at the end
                    os.fdatasync(file)
                progress(f"decoding {dataset.domain.name}", len(digests), total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return digests


def _decode_chunk(dataset: Dataset, rows: range, file: int, first: int, shape: tuple[int, ...]) -> list[str]:
    pixels = np.empty((len(rows), *shape), dtype=np.uint8)
    digests = []
    for out_HWC, row in zip(pixels, rows, strict=True):
        path = f"{dataset.root}/{dataset.domain.paths[row]}"
        content = _read(path)
        digests.append(hashlib.sha256(content).hexdigest())
        image_hwC = _decode(content, path, dataset.formats)
        if image_hwC.shape != out_HWC.shape:
            image_hwC = resize(image_hwC[None], height=shape[0], width=shape[1])[0]
        out_HWC[:] = image_hwC.numpy()
    if os.pwrite(file, pixels.data, first + rows.start * math.prod(shape)) != pixels.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return digests


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.read()
    except OSError as error:
        raise listing.unreadable(error) from error


def _decode(content: bytes, path: str, formats: tuple[str, ...]) -> Tensor:
    """Return the uint8 [H, W, 3] pixels of a file.

    torchvision decodes a JPEG twice as fast as Pillow, to the same pixels, as long as it does (0.29 announces the end);
    what it refuses may still be fit for Pillow.
    """
    if content.startswith(_JPEG) and "JPEG" in formats:
        import torchvision.io as decoders  # as long to import as torch, and only needed here

        with contextlib.suppress(RuntimeError, AttributeError):
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            image_Chw: Tensor = decoders.decode_jpeg(encoded, mode=decoders.ImageReadMode.RGB)
            return image_Chw.permute(1, 2, 0)
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow on damaged files
        kinds = " or ".join(formats)
        raise DataError(f"Every image must be an intact {kinds}, but {path} cannot be decoded; restore it.") from error


def _fingerprint(domain: Domain, digests: list[str]) -> str:
    digest = hashlib.sha256()
    labels = zip(domain.paths, digests, domain.pids.tolist(), domain.camids.tolist(), domain.splits, strict=True)
    for path, content, pid, camid, split in labels:
        digest.update(canonical_json([path, content, pid, camid, str(split)]).encode())
    digest.update(canonical_json(_attributes_json(domain.attributes)).encode())
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def _write_around_pixels(file: BinaryIO, domain: Domain, shape: tuple[int, int, int, int], *, fingerprint: str) -> int:
    """Write a store from the start of a file, except for its pixels; return where they belong.

    Decoded pixels so reach their place without a copy elsewhere. What surrounds them has one length, whatever the
    fingerprint, which is known last.
    """
    pixels = np.empty(shape, dtype=np.uint8)  # never touched: it takes address space, and no memory
    image = pa.fixed_shape_tensor(pa.uint8(), shape[1:])
    values = pa.Array.from_buffers(pa.uint8(), pixels.size, [None, pa.py_buffer(pixels)])
    storage = pa.FixedSizeListArray.from_arrays(values, pixels.size // len(pixels))
    metadata = {
        "format": FORMAT,
        "name": domain.name,
        "fingerprint": fingerprint,
        "labelled": domain.labelled,
        "attributes": _attributes_json(domain.attributes),
    }
    batch = pa.record_batch(
        {
            "path": pa.array(domain.paths, pa.string()),
            "pid": pa.array(domain.pids),
            "camid": pa.array(domain.camids),
            "split": pa.array(domain.splits.tolist(), pa.string()),
            "image": pa.ExtensionArray.from_storage(image, storage),
        }
    ).replace_schema_metadata({_METADATA: canonical_json(metadata)})
    file.seek(0)
    sink = _Skipping(file, address=pixels.ctypes.data)
    options = pa.ipc.IpcWriteOptions(allow_64bit=True)  # more than 2**31 bytes of pixels
    with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.skipped_at


class _Skipping:
    """A file in which one buffer, known by its address, is not written but left out."""

    closed = False

    def __init__(self, file: BinaryIO, *, address: int) -> None:
        self._file, self._address = file, address
        self.skipped_at = -1

    def write(self, data: Any) -> int:
        """Take one buffer from Arrow."""
        if isinstance(data, pa.Buffer) and data.address == self._address:
            self.skipped_at = self._file.tell()
            self._file.seek(data.size, os.SEEK_CUR)
            return int(data.size)
        return self._file.write(data)

    def tell(self) -> int:
        """Return the position, from which Arrow reckons its offsets."""
        return self._file.tell()

    def flush(self) -> None:
        """Do nothing: the owner of the file does."""

    def close(self) -> None:
        """Do nothing: the owner of the file does."""


def _domain(batch: pa.RecordBatch, metadata: dict[str, Any]) -> Domain:
    attributes = metadata["attributes"]
    return Domain(
        name=metadata["name"],
        paths=tuple(batch.column("path").to_pylist()),
        pids=batch.column("pid").to_numpy(),
        camids=batch.column("camid").to_numpy(),
        splits=np.array(batch.column("split").to_pylist(), dtype="<U11"),
        labelled=metadata["labelled"],
        attributes=attributes
        and AttributeCodes(
            fields=tuple(attributes["fields"]),
            pids=np.array(attributes["pids"], dtype=np.int64),
            codes=np.array(attributes["codes"], dtype=np.uint8),
        ),
    )


def _attributes_json(attributes: AttributeCodes | None) -> dict[str, Any] | None:
    if attributes is None:
        return None
    return {
        "fields": list(attributes.fields),
        "pids": attributes.pids.tolist(),
        "codes": attributes.codes.tolist(),
    }


@contextmanager
def _removed(path: Path) -> Iterator[Path]:
    """Remove the file, if it is still there, on the way out."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make a rename in the folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_ahead(path: Path) -> None:
    """Ask for the whole file: training reads it at random, which a cold disk serves ten times slower."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
