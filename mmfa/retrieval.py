"""Use a trained model: embed images, files and whole folders, search a gallery, judge one query by the protocol.

Shapes: N images, Q queries, G gallery images, D pooled dimensions, K results; h x w as stored, H x W as they come.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import nn

from mmfa import evaluate
from mmfa.checkpoint import load_model
from mmfa.config import TrialConfig, canonical_json
from mmfa.data import listing
from mmfa.data.augment import resize
from mmfa.data.records import Bools, Bytes, Floats, Ints, Progress, no_progress
from mmfa.errors import DataError
from mmfa.folding import folded
from mmfa.hardware import Hardware
from mmfa.model import MMFA
from mmfa.ranking import distances

Picture = Path | bytes | Bytes
"""A file, the content of one, or RGB pixels, uint8 [H, W, 3] of any size."""

EMBEDDING = 2
"""Raised where the same weights embed the same picture otherwise than before: what was kept of it is stale then."""
MAX_PIXELS = 89_478_485
"""Of one image, by which Pillow tells a decompression bomb; larger ones are refused before they are decoded."""


LARGE = 8_000_000
"""Pixels beyond which images are decoded one after the other, however many threads there are: memory is not theirs."""
_TURN = threading.Lock()


class UnreadableError(DataError):
    """One image that cannot be read or decoded."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Some of the pictures that are being embedded."""

    rows: list[int]
    """Those that could be read."""
    features_BD: Floats
    """Their embeddings."""
    unreadable: dict[int, UnreadableError]
    """Why the others could not, by row."""
    stop: int
    """How many pictures are done, all batches taken together."""


class Embedder:
    """A trained model, ready to embed pictures as its evaluation embedded them.

    Pictures are turned as their EXIF orientation says, resized to the size of the store that the model was trained
    from, and from there to the network's input: the network never saw anything sharper.

    Args:
        model: in any mode; moved to the device.
        config: of its training.
        device: ``auto`` (a GPU where there is one), or a torch device such as ``cpu`` or ``cuda:1``.

    Raises:
        ConfigError: an unknown device, or one that is not there.
    """

    def __init__(self, model: MMFA, config: TrialConfig, *, device: str = "auto") -> None:
        self.config = config
        self.hardware = Hardware.choose(device, config.run)
        self.model = model.to(memory_format=self.hardware.memory_format).to(self.hardware.device)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """Read what ``Training.export`` wrote.

        Raises:
            CheckpointError: missing, damaged, of another format or version, or not an exported model.
            ConfigError: an unknown device, or one that is not there.
        """
        model, config = load_model(folder)
        return cls(model, config, device=device)

    @functools.cached_property
    def _backbone(self) -> nn.Sequential:
        return folded(self.model.backbone, domain="target")

    @functools.cached_property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of all that an embedding follows from beside the image: weights, config, code."""
        made_by = [EMBEDDING, PIL.__version__, torch.__version__, self.hardware.bf16]
        digest = hashlib.sha256(canonical_json([made_by, self.config.to_json()]).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def embed(self, pictures: Sequence[Picture] | Bytes, *, progress: Progress = no_progress) -> Floats:
        """Return un-normalised embeddings, float32 [N, D]: compare them by Euclidean distance (sec. 4.1).

        Args:
            pictures: files, contents or arrays, mixed as you like, or one array uint8 [N, H, W, 3].
            progress: called after every batch.

        Raises:
            DataError: a picture that cannot be read or decoded, or is no uint8 [H, W, 3]; the first one is named.
        """
        features_ND = np.empty((len(pictures), self.model.num_features), dtype=np.float32)
        for batch in self.batches(pictures):
            if batch.unreadable:
                raise next(iter(batch.unreadable.values()))
            features_ND[batch.rows] = batch.features_BD
            progress("embedding", batch.stop, len(pictures))
        return features_ND

    def batches(self, pictures: Sequence[Picture] | Bytes) -> Iterator[Batch]:
        """Embed batch by batch, and pass over what cannot be read."""
        data = self.config.data
        with ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1)) as pool:
            for begin in range(0, len(pictures), evaluate.BATCH):
                chunk = pictures[begin : begin + evaluate.BATCH]
                found = dict(enumerate(pool.map(self._stored, chunk, itertools.count(begin)), start=begin))
                images = {row: image for row, image in found.items() if isinstance(image, np.ndarray)}
                features_BD = torch.empty(0, self.model.num_features)
                if images:
                    features_BD = evaluate.embed(
                        self.model,
                        np.stack(list(images.values())),
                        np.arange(len(images)),
                        height=data.image_height,
                        width=data.image_width,
                        hardware=self.hardware,
                        backbone=self._backbone,
                    )
                yield Batch(
                    rows=list(images),
                    features_BD=features_BD.cpu().numpy(),
                    unreadable={row: error for row, error in found.items() if isinstance(error, UnreadableError)},
                    stop=begin + len(chunk),
                )

    def _stored(self, picture: Picture, row: int) -> Bytes | UnreadableError:
        data = self.config.data
        name = str(picture) if isinstance(picture, Path) else f"image {row}"
        try:
            content = _content(picture, name)
            with _TURN if _num_pixels(content) > LARGE else contextlib.nullcontext():
                image_1HWC = torch.from_numpy(np.array(pixels(content, name=name))[None])
                return resize(image_1HWC, height=data.store_height, width=data.store_width)[0].numpy()
        except UnreadableError as error:
            return error


def pixels(picture: Picture, *, name: str) -> Bytes:
    """Return the RGB pixels of a picture, uint8 [H, W, 3].

    Args:
        picture: a file, the content of one, or pixels.
        name: what to call it in an error.

    Raises:
        UnreadableError: it cannot be read or decoded, is too large, or is no uint8 [H, W, 3].
    """
    picture = _content(picture, name)
    if isinstance(picture, bytes):
        return _decode(picture, name)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or 0 in picture.shape:
        raise UnreadableError(
            f"Pixels must be RGB, uint8 [H, W, 3], but {name} is {picture.dtype} {list(picture.shape)}; convert it."
        )
    return picture


def _content(picture: Picture, name: str) -> bytes | Bytes:
    if not isinstance(picture, Path):
        return picture
    try:
        return picture.read_bytes()
    except OSError as error:
        raise UnreadableError(f"Every image must be readable, but {name} is not: {error.strerror}.") from error


def _num_pixels(content: bytes | Bytes) -> int:
    """Return how many pixels decoding would make, by the header; 0 where nothing is decoded, or nothing can be."""
    if not isinstance(content, bytes):
        return 0
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content), formats=listing.IMAGE_FORMATS) as image:
        return image.width * image.height
    return 0


def _decode(content: bytes, name: str) -> Bytes:
    kinds = " or ".join(listing.IMAGE_FORMATS)
    try:
        with Image.open(io.BytesIO(content), formats=listing.IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(
                    f"An image may have {MAX_PIXELS:,} pixels, but {name} has {image.width} x {image.height}; "
                    "make it smaller."
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    # What Pillow raises on damaged files; its warning of large ones, where warnings are errors.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(f"Every image must be an intact {kinds}, but {name} cannot be decoded.") from error


def search(query_QD: Floats, gallery_GD: Floats, *, top: int) -> tuple[Ints, Floats]:
    """Return the nearest gallery rows of each query, nearest first; equal distances in the order of the gallery.

    Args:
        query_QD: float32, un-normalised.
        gallery_GD: float32, un-normalised.
        top: K, from 1; the whole gallery where that is smaller.

    Returns:
        rows_QK, and their Euclidean distances_QK.

    Raises:
        DataError: an empty gallery.
        NotFiniteError: features that are not finite.

    >>> search(np.zeros((1, 2), np.float32), np.array([[3, 4], [0, 1]], np.float32), top=5)
    (array([[1, 0]]), array([[1., 5.]], dtype=float32))
    """
    assert top >= 1, top
    top = min(top, len(gallery_GD))
    rows_QK = np.empty((len(query_QD), top), dtype=np.int64)
    distances_QK = np.empty((len(query_QD), top), dtype=np.float32)
    query = 0
    for rows_qG in distances(torch.from_numpy(query_QD), torch.from_numpy(gallery_GD)):
        for row_G in rows_qG:
            near = np.flatnonzero(row_G <= np.partition(row_G, top - 1)[top - 1])
            near = near[np.argsort(row_G[near], kind="stable")][:top]
            exact_K = np.linalg.norm(gallery_GD[near] - query_QD[query], axis=1)  # of |x|² + |y|² - 2xy little is left
            order = np.argsort(exact_K, kind="stable")
            rows_QK[query], distances_QK[query] = near[order], exact_K[order]
            query += 1
    return rows_QK, distances_QK


class Judged(NamedTuple):
    """One query against a gallery of known people."""

    order_G: Ints
    """Gallery rows, nearest first; among equals those that are wrong come first."""
    right_G: Bools
    """In that order: the query's pid, by another camera."""
    junk_G: Bools
    """In that order: the query's pid by its own camera, which the protocol takes out."""
    average_precision: float
    """nan without a right one."""


def judge(
    distances_G: Floats, *, pid: int, camid: int, gallery_pids: Ints, gallery_camids: Ints
) -> Judged:  # fmt: skip
    """Return what the single-query protocol of Market-1501 says of one query, as :func:`mmfa.ranking.rank` does of all.

    Args:
        distances_G: smaller is nearer.
        pid: of the query.
        camid: of the query.
        gallery_pids: [G]
        gallery_camids: [G]

    >>> judge(np.array([0.1, 0.2, 0.3, 0.4], np.float32), pid=7, camid=0, gallery_pids=np.array([7, 7, 1, 7]),
    ...     gallery_camids=np.array([0, 1, 1, 2])).average_precision
    0.8333333333333333
    """
    same_G = (gallery_pids == pid) & (pid > 0)
    junk_G = same_G & (gallery_camids == camid)
    right_G = same_G & ~junk_G
    order_G = np.lexsort((right_G, distances_G))
    return Judged(
        order_G=order_G,
        right_G=right_G[order_G],
        junk_G=junk_G[order_G],
        average_precision=average_precision(right_G[order_G[~junk_G[order_G]]]),
    )


def average_precision(right_G: Bools) -> float:
    """Return the mean of precision at each right image of a ranked list without junk; nan where there is none.

    >>> average_precision(np.array([True, False, True]))
    0.8333333333333333
    """
    ranks = np.flatnonzero(right_G)
    if not len(ranks):
        return float("nan")
    return float((np.arange(1, len(ranks) + 1) / (ranks + 1)).mean())
