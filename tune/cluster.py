"""Ray: started on this machine or joined, and what a trial may take of it."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import psutil
import ray

from mmfa.errors import MmfaError
from tune.places import first_line
from tune.provenance import num_cores


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray that this driver is connected to."""

    resources: dict[str, float]
    """What a trial takes."""
    workers: int
    """Trials that run at once."""
    node: psutil.Process | None
    """The node's process, where Ray was started by this driver."""

    def alive(self) -> bool:
        """Return whether a Ray started by this driver still runs; True for any other, which Ray itself watches."""
        if self.node is None:
            return True
        return bool(self.node.is_running() and self.node.status() != psutil.STATUS_ZOMBIE)

    def close(self) -> None:
        """Disconnect, and stop what was started."""
        ray.shutdown()


def start(*, address: str | None, cpus_per_trial: int, trials_per_gpu: int) -> Cluster:
    """Start Ray on this machine, or join the one at ``address`` (or ``$RAY_ADDRESS``).

    Raises:
        MmfaError: no Ray there, or no room in it for a trial.
    """
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if where == "local":
        options |= {"num_cpus": max(num_cores(), cpus_per_trial), "include_dashboard": False}
    try:
        ray.init(address=where, **options)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise MmfaError(f"Ray at --address {where} cannot be reached: {first_line(error)}.") from None
    have = ray.cluster_resources()
    resources: dict[str, float] = {"cpu": cpus_per_trial}
    workers = math.floor(have.get("CPU", 0) / cpus_per_trial)
    if have.get("GPU", 0):
        resources["gpu"] = 1 / trials_per_gpu
        workers = min(workers, math.floor(have["GPU"] * trials_per_gpu))
    if workers < 1:
        ray.shutdown()
        cpus = have.get("CPU", 0)
        raise MmfaError(f"a trial takes {cpus_per_trial} CPUs, but Ray has {cpus:g}; lower --cpus-per-trial.")
    return Cluster(resources, workers, _raylet() if where == "local" else None)


def _raylet() -> psutil.Process | None:
    children = psutil.Process().children(recursive=True)
    return next((child for child in children if child.name() == "raylet"), None)
