"""What a training takes of its machine, epoch by epoch, under the names by which MLflow shows system metrics."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from pathlib import Path
from statistics import fmean

import torch

SAMPLE_SECONDS = 1.0
"""Least time between two looks at how busy the GPU is."""
MEGABYTE = 1e6


class Usage:
    """Measures this process from one call of :meth:`take` to the next.

    Args:
        device: Where it trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._looked = 0.0
        self._begin()

    def _begin(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._looked, self._busy = max(self._wall, self._looked), list[float]()
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)

    def look(self) -> None:
        """Note how busy the GPU is, where a second has passed; NVML is asked, where ``nvidia-ml-py`` is installed."""
        if self._device is None or (now := time.perf_counter()) - self._looked < SAMPLE_SECONDS:
            return
        self._looked = now
        try:
            self._busy.append(float(torch.cuda.utilization(self._device)))
        except Exception:  # NVML is not there, or refuses, as of a part of a GPU: its errors are no class of torch's
            self._looked = math.inf  # it would refuse again

    def take(self) -> dict[str, float]:
        """Return what was taken since the last time: 100 % of CPU is one core, memory is this process's."""
        wall = max(time.perf_counter() - self._wall, 1e-9)
        values = {
            "system/process_cpu_percentage": 100 * (time.process_time() - self._cpu) / wall,
            "system/process_memory_megabytes": _resident() / MEGABYTE,
        }
        if self._device is not None:
            free, total = torch.cuda.mem_get_info(self._device)
            values |= {
                "system/gpu_process_memory_megabytes": torch.cuda.max_memory_reserved(self._device) / MEGABYTE,
                "system/gpu_memory_usage_percentage": 100 * (total - free) / total,
            }
            if self._busy:
                values["system/gpu_utilization_percentage"] = fmean(self._busy)
        self._begin()
        return values


def _resident() -> float:
    """Return the bytes of this process that are in memory; where there is no /proc, the most there ever were."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
