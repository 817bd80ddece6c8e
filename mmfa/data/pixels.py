"""Where the pixels of a dataset wait, and how those of a batch reach the device that works on them.

Shapes: N images of h x w pixels, B images of a batch. Pixels are uint8 in NHWC until they are normalised.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from mmfa.config import Placement
from mmfa.data.records import Bytes, Ints
from mmfa.errors import ConfigError

logger = logging.getLogger(__name__)

SHARE = 0.25
"""Of a GPU's free memory: what images may take of it where ``data.placement`` is ``auto``."""
_CHUNK = 1024
"""Images sent to the device at once when all are."""


class Pixels:
    """The images of one dataset, of which any rows can be had on a device.

    Args:
        images_NhwC: uint8 [N, h, w, 3], an array or a memory map.
        device: where they are wanted.
        resident: whether all of them are copied there now; else rows are sent when they are asked for.
    """

    def __init__(self, images_NhwC: Bytes, *, device: torch.device, resident: bool = False) -> None:
        self.shape = images_NhwC.shape
        self.resident = resident
        self._host, self._device = images_NhwC, device
        self._all_NhwC = self._copied() if resident else None

    def rows(self, rows_B: Ints) -> Tensor:
        """Return uint8 [B, h, w, 3] on the device, a copy that may be written to."""
        if self._all_NhwC is not None:
            return self._all_NhwC.index_select(0, move(rows_B, self._device))
        if self._device.type != "cuda":
            return torch.from_numpy(self._host[rows_B])
        pinned_BhwC = torch.empty((len(rows_B), *self.shape[1:]), dtype=torch.uint8, pin_memory=True)
        # NumPy fills a buffer of its own first where it is to raise for a row that is not there: "clip" has none.
        np.take(self._host, rows_B, axis=0, out=pinned_BhwC.numpy(), mode="clip")
        return pinned_BhwC.to(self._device, non_blocking=True)

    def _copied(self) -> Tensor:
        all_NhwC = torch.empty(self.shape, dtype=torch.uint8, device=self._device)
        for begin in range(0, len(all_NhwC), _CHUNK):
            part = torch.from_numpy(self._host[begin : begin + _CHUNK].copy())  # of a read-only map it would warn
            all_NhwC[begin : begin + _CHUNK] = part.to(self._device)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # other streams read it
        return all_NhwC


def place(datasets: dict[str, Bytes], *, placement: Placement, device: torch.device) -> dict[str, Pixels]:
    """Decide once where the images of a training wait.

    Args:
        datasets: uint8 [N, h, w, 3] by name; the same array under two names is held once.
        placement: ``device``, ``host``, or ``auto``: all of them on a GPU if they take at most :data:`SHARE` of what is
            free there.
        device: of the training.

    Raises:
        ConfigError: ``device`` where there is no GPU.
    """
    if placement == "device" and device.type != "cuda":
        raise ConfigError(
            f"data.placement='device' keeps the images in a GPU's memory, but the training runs on {device}; "
            "set it to 'auto' or 'host'."
        )
    if device.type != "cuda":
        return {name: Pixels(images, device=device) for name, images in datasets.items()}
    num_bytes = sum({id(images): images.nbytes for images in datasets.values()}.values())
    free = free_memory(device)
    resident = placement == "device" or (placement == "auto" and fits(num_bytes, free=free))
    logger.info(
        "%.2f GB of images wait %s (data.placement=%s, %.2f GB are free on %s)",
        num_bytes / 1e9, f"on {device}" if resident else "on the host", placement, free / 1e9, device,
    )  # fmt: skip
    made = {id(images): Pixels(images, device=device, resident=resident) for images in datasets.values()}
    return {name: made[id(images)] for name, images in datasets.items()}


def fits(num_bytes: int, *, free: int) -> bool:
    """Return whether images of this size are kept on a device with so much free memory, in bytes."""
    return num_bytes <= SHARE * free


def free_memory(device: torch.device) -> int:
    """Return the bytes of a GPU that this process may still take: the rest of its share where it has been given one."""
    free, total = torch.cuda.mem_get_info(device)
    share = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free, share - torch.cuda.memory_reserved(device))


def move(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array on a device; to a GPU it is copied in the background, from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
