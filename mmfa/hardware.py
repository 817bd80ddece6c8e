"""Where a model runs: device, precision of the backbone, memory format, compiled or not.

TF32 is used neither in a training nor where images are embedded: under bf16 the convolutions do not need it, the heads
are about 1 % of a ResNet-50 step's arithmetic, and distances, the kernels' and those that rank, would lose 13 of their
24 bits. ``run.precision=fp32`` means what it says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmfa.config import RunConfig
from mmfa.errors import ConfigError

_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """A device and how a training or an evaluation uses it."""

    device: torch.device
    """Where weights and batches live."""
    bf16: bool
    """Whether the backbone runs in bfloat16 autocast."""
    channels_last: bool
    """Whether images and weights are laid out channels-last."""
    compiled: bool = False
    """Whether a training compiles the backbone, as far as its check allows."""

    @classmethod
    def choose(cls, device: str = "auto", run: RunConfig | None = None) -> Hardware:
        """Return what ``run`` asks of a device.

        ``auto`` in it: bf16 where the device has it, channels-last there and on every CPU, which is faster in fp32
        too, compiled on a GPU and nowhere else.

        Args:
            device: ``auto`` (a GPU where there is one), or a torch device such as ``cpu`` or ``cuda:1``.
            run: precision, memory format and compilation; by default all automatic.

        Raises:
            ConfigError: an unknown device, or one that is not there.
        """
        run = run or RunConfig()
        chosen = _device(device)
        bf16 = run.precision == "bf16" or (run.precision == "auto" and _has_bf16(chosen))
        faster = bf16 or chosen.type == "cpu"
        channels_last = run.channels_last == "on" or (run.channels_last == "auto" and faster)
        compiled = run.compile != "off" and chosen.type == "cuda"
        return cls(device=chosen, bf16=bf16, channels_last=channels_last, compiled=compiled)

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of four-dimensional tensors."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        """Return a fresh autocast context for the backbone."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def place(self, images_BCHW: Tensor) -> Tensor:
        """Return images on the device in the memory format."""
        return images_BCHW.to(self.device, memory_format=self.memory_format)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', but got {name!r}.") from error
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()):
        # Some of torch's calls take a GPU by its number only.
        return device if device.type == "cpu" else torch.device("cuda", _number(device))
    raise ConfigError(f"device {name!r} is not there (GPUs seen: {torch.cuda.device_count()}); use 'cpu' or 'auto'.")


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was for want of GPU memory, which cuDNN, cuBLAS and CUDA's graphs say in words of their own."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def precise() -> AbstractContextManager[None]:
    """Return a context in which cuDNN takes no TF32 and the same algorithm each time; outside is what was there."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@contextlib.contextmanager
def deterministic(device: torch.device, *, seed: tuple[int, int]) -> Iterator[None]:
    """Seed torch's global generators within, :func:`precise` besides, and put back outside what was there."""
    devices = [device] if device.type == "cuda" else []
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices), precise():
        torch.default_generator.manual_seed(state)
        for index in devices:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(state)
        yield
