"""Paired source and target batches, every draw of which follows from the seed and the epoch's number.

Shapes: B images, C = 3 channels, H x W pixels, M attribute columns, K training identities.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmfa.config import DataConfig
from mmfa.data.attributes import encode
from mmfa.data.augment import Draws, augment, draw, normalise
from mmfa.data.augment import prepare as prepare
from mmfa.data.pixels import Pixels, move, place
from mmfa.data.prefetch import prefetch_onto
from mmfa.data.records import Bools, Domain, Floats, Ints
from mmfa.data.store import Store
from mmfa.errors import DataError


class Batch(NamedTuple):
    """One step's input, on the training's device."""

    source_BCHW: Tensor
    """float32, normalised."""
    labels_B: Tensor
    """int64: the source image's place in the ascending training identities."""
    attributes_BM: Tensor
    """float32 in {0, 1}."""
    mask_BM: Tensor
    """bool: true where annotated."""
    target_BCHW: Tensor | None
    """float32, normalised; none where the target does not take part."""


class Batches:
    """Epochs of paired batches.

    An epoch is one pass over the source in a new order, its last partial batch dropped; the target is an endless
    stream of reshuffled passes. Nothing is carried from one epoch to the next, so a run resumed at any epoch draws
    what a run that was never stopped draws. Torch's global generator is not used.

    Args:
        config: sizes, crop and flip, and how many identities of each domain to hold out.
        source: labelled images.
        target: unlabelled images.
        seed: of orders and augmentation.
        device: where the batches are wanted.
        channels_last: memory format of the images.

    Raises:
        DataError: an unlabelled source, fewer training images than one batch takes, too few identities to hold out,
            held-out queries that have no match, or a source identity that its attributes leave out.
        ConfigError: images that are to wait on a GPU where there is none.
    """

    source_domain: Domain
    """The source with its split and its held-out identities."""
    target_domain: Domain
    """The target with its split and its held-out identities: its rows are the target store's."""
    train_pids: Ints
    """int64 [K], ascending: class k is identity ``train_pids[k]``."""
    attribute_names: tuple[str, ...]
    """The M columns; empty where the source has no annotations."""
    num_steps: int
    """Batches in an epoch."""
    pixels: dict[str, Pixels]
    """All images of ``source`` and ``target``, by row of their stores."""

    def __init__(
        self, config: DataConfig, *, source: Store, target: Store, seed: int, device: torch.device, channels_last: bool
    ) -> None:
        self._config, self._seed, self._device, self._channels_last = config, seed, device, channels_last
        if not source.domain.labelled:
            raise DataError(f"A source needs identities, but {source.domain.name} is unlabelled; name another source.")
        self.source_domain = domain = _split(source.domain, config)
        self.target_domain = _split(target.domain, config)
        self._source_rows = _train_rows(domain, batch=config.source_batch, field="data.source_batch")
        self._target_rows = np.empty(0, dtype=np.int64)
        if config.use_target:
            self._target_rows = _train_rows(self.target_domain, batch=config.target_batch, field="data.target_batch")
        self.train_pids = domain.train_pids
        self.num_steps = len(self._source_rows) // config.source_batch
        pids = domain.pids[self._source_rows]
        self._labels = np.searchsorted(self.train_pids, pids)
        self.attribute_names, self._attributes, self._mask = _attributes(domain, pids, config)
        images = {"source": source.images, "target": target.images}
        self.pixels = place(images, placement=config.placement, device=device)

    def epoch(self, epoch: int) -> Generator[Batch]:
        """Yield the :attr:`num_steps` batches of one epoch, counted from 0; a thread prepares two in advance."""
        return prefetch_onto(self._device, self._make(epoch))

    def _make(self, epoch: int) -> Iterator[Batch]:
        config = self._config
        order = _generator(self._seed, "source", epoch).permutation(len(self._source_rows))
        target_order = self._target_order(epoch)
        for step in range(self.num_steps):
            generator = _generator(self._seed, "augment", epoch * self.num_steps + step)
            at = order[step * config.source_batch : (step + 1) * config.source_batch]
            source_BCHW = self._images("source", self._source_rows[at], generator)
            target_BCHW = None
            if config.use_target:
                target_BCHW = self._images("target", self._target_rows[target_order[step]], generator)
            yield Batch(
                source_BCHW=source_BCHW,
                labels_B=self._move(self._labels[at]),
                attributes_BM=self._move(self._attributes[at]),
                mask_BM=self._move(self._mask[at]),
                target_BCHW=target_BCHW,
            )

    def _target_order(self, epoch: int) -> Ints:
        """Return [num_steps, target batch] places in the target's training rows: a stretch of the endless stream."""
        num, batch = len(self._target_rows), self._config.target_batch
        if not num:
            return np.empty((self.num_steps, 0), dtype=np.int64)
        first, last = epoch * self.num_steps * batch, (epoch + 1) * self.num_steps * batch
        passes = range(first // num, -(-last // num))
        stream = np.concatenate([_generator(self._seed, "target", number).permutation(num) for number in passes])
        start = first - passes[0] * num
        return stream[start : start + last - first].reshape(self.num_steps, batch)

    def _images(self, role: str, rows: Ints, generator: np.random.Generator) -> Tensor:
        pixels = self.pixels[role]
        height, width = pixels.shape[1:3]
        draws: Draws = draw(self._config, generator, num=len(rows), stored=(height, width))
        return normalise(augment(pixels.rows(rows), draws, self._config), channels_last=self._channels_last)

    def _move(self, array: np.ndarray) -> Tensor:
        return move(array, self._device)


def _split(domain: Domain, config: DataConfig) -> Domain:
    return domain.with_split(config.split).with_held_out(config.num_val_ids)


def _train_rows(domain: Domain, *, batch: int, field: str) -> Ints:
    rows = domain.rows("train")
    if len(rows) < batch:
        raise DataError(
            f"A batch must not be larger than the training split, but {field}={batch} and {domain.name} has "
            f"{len(rows)} training images; lower {field}."
        )
    return rows


def _attributes(domain: Domain, pids: Ints, config: DataConfig) -> tuple[tuple[str, ...], Floats, Bools]:
    if domain.attributes is None:
        return (), np.zeros((len(pids), 0), np.float32), np.zeros((len(pids), 0), np.bool_)
    table = encode(domain.attributes, age=config.age)
    return table.names, *table.rows(pids)


def _generator(seed: int, stream: str, index: int) -> np.random.Generator:
    entropy = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index])
    return np.random.Generator(np.random.PCG64(entropy))
