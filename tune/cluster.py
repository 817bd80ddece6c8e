"""Ray: started on this machine or joined, and what a trial may take of it."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import ray

from mmfa.errors import MmfaError
from tune.places import first_line
from tune.provenance import num_cores

KNOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray that this driver is connected to."""

    resources: dict[str, float]
    """What a trial takes."""
    workers: int
    """Trials that run at once."""
    node: psutil.Process | None
    """Ray's process on this machine; None where the system does not show it."""
    joined: bool
    """Whether Ray ran before this driver and runs on after it."""
    trials_per_gpu: int = 1
    dashboard: str = ""
    """Address of Ray's own dashboard, where there is one."""
    server: Any = None
    """The actor that serves image stores to nodes that join later: it ends with its last handle, which is this."""

    def alive(self) -> bool:
        """Return whether Ray still runs on this machine: without it, Ray ends this process without a word."""
        if self.node is None:
            return True
        return bool(self.node.is_running() and self.node.status() != psutil.STATUS_ZOMBIE)

    def close(self) -> None:
        """Disconnect, and stop what was started."""
        ray.shutdown()


def start(*, address: str | None, cpus_per_trial: int, trials_per_gpu: int, workers: int | None = None) -> Cluster:
    """Start Ray on this machine, or join the one at ``address``.

    Args:
        address: of Ray.
        cpus_per_trial: cores that a trial takes.
        trials_per_gpu: how many share a GPU, where there is one.
        workers: trials at once; as many as fit on the nodes that are there where it is left out.

    Raises:
        MmfaError: no Ray there, or no room in it for a trial.
    """
    where = address or "local"
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if where == "local":
        options |= {"num_cpus": max(num_cores(), cpus_per_trial), "include_dashboard": False}
    _knock(where)
    try:
        context = ray.init(address=where, **options)
    except ray.exceptions.AuthenticationError:
        raise MmfaError(
            f"Ray at --address {where} asks for a token; set RAY_AUTH_MODE=token, with the cluster's token in "
            "~/.ray/auth_token or RAY_AUTH_TOKEN."
        ) from None
    except (ConnectionError, OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        way_out = (
            "see `df -h /tmp /dev/shm` and the logs in /tmp/ray/session_latest/logs"
            if where == "local"
            else "see `ray status` there, and whether its token is here (RAY_AUTH_MODE=token, ~/.ray/auth_token)"
        )
        raise MmfaError(f"Ray at --address {where} cannot be reached: {first_line(error)}; {way_out}.") from None
    have = ray.cluster_resources()
    resources: dict[str, float] = {"cpu": cpus_per_trial}
    if have.get("GPU", 0):
        resources["gpu"] = 1 / trials_per_gpu
    at_once = workers or fitting(resources)
    if at_once < 1:
        ray.shutdown()
        raise MmfaError(
            f"a trial takes {cpus_per_trial} CPUs{' and a GPU' if 'gpu' in resources else ''} of one node, but no node "
            f"has them: Ray counts {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs in all; lower "
            "--cpus-per-trial, or give --workers where nodes are yet to come."
        )
    dashboard = f"http://{context.dashboard_url}" if getattr(context, "dashboard_url", None) else ""
    return Cluster(resources, at_once, _raylet(), where != "local", trials_per_gpu, dashboard)


def _knock(where: str) -> None:
    """Refuse an address at which nobody listens: Ray itself tries for minutes."""
    host, _, port = where.rpartition(":")
    if not (host and port.isdigit()):  # local, auto, ray://…
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise MmfaError(
            f"Ray at --address {where} cannot be reached: {first_line(error)}; see `ray status` there, or leave "
            "--address out to use this machine alone."
        ) from None


def fitting(trial: Mapping[str, float]) -> int:
    """Return how many trials fit on the nodes that are there."""
    return sum(room(node["Resources"], trial) for node in ray.nodes() if node["Alive"])


def room(node: Mapping[str, float], trial: Mapping[str, float]) -> int:
    """Return how many trials fit on a node at once: nodes differ, and a trial cannot lie across two."""
    # A share such as 1/3 is a binary fraction: three of them must still fit into 1.
    return min(math.floor(node.get(name.upper(), 0) / share + 1e-6) for name, share in trial.items())


def _raylet() -> psutil.Process | None:
    """Return the process of the node that this driver is connected to."""
    node = ray.get_runtime_context().get_node_id()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "raylet" and any(node in word for word in process.cmdline()):
                return process
    return None
