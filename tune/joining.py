"""What happens between a cluster's answer and the first trial: nodes made ready, and GPUs shared out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import ray

from mmfa.errors import MmfaError
from tune import nodes, preflight, sharing
from tune.cluster import Cluster, fitting
from tune.console import Console
from tune.ledger import StageLedger
from tune.session import Session

REMEMBERED = "trials_per_gpu"
"""The study remembers how many trials share a GPU: a second driver does not measure again."""


def prepared(session: Session, cluster: Cluster, console: Console) -> Cluster:
    """Have every node of a cluster ready, and settle how many trials share a GPU.

    Raises:
        MmfaError: what a node cannot do, with its name; or a trial that does not fit on a GPU.
    """
    places, configs = session.request.places, session.plan.configs()
    if cluster.joined:  # on this machine alone, all this is known to hold
        digests = preflight.weights_fingerprints(configs)
        with console.bars() as progress:
            server = nodes.prepare(nodes.needs_of(configs, session.stores, places, digests), progress)
        cluster = dataclasses.replace(cluster, server=server)
    if "gpu" not in cluster.resources or session.request.trials_per_gpu is not None:
        return cluster
    known = session.recall(REMEMBERED)
    chosen = int(known) if known else _measured(session, console)
    session.remember(REMEMBERED, chosen)
    return _shared(session, cluster, chosen, fitting)


def _measured(session: Session, console: Console) -> int:
    """Measure on one node of each kind of GPU; return what suits them all."""
    config = session.plan.baseline
    stores = [str(session.stores.paths[name]) for name in (config.data.source, config.data.target)]
    cpus = session.request.cpus_per_trial
    chosen = []
    for kind, (node, resources) in _kinds_of_gpus().items():
        console.say(f"--trials-per-gpu auto: training an epoch with 1, 2, 4, … trials on one {kind} …")
        if resources.get("CPU", 0) < cpus:
            raise MmfaError(
                f"--trials-per-gpu auto: a trial takes {cpus} CPUs, but node {node.name} has "
                f"{resources.get('CPU', 0):g}; lower --cpus-per-trial."
            )
        # Ray fills one GPU after the other: with more than its share of the CPUs on one, another would stand idle.
        most = min(sharing.MOST, max(1, int(resources["CPU"] // (cpus * resources["GPU"]))))
        trials, samples = sharing.choose(functools.partial(sharing.measure, config, stores, node, cpus=cpus), most=most)
        console.say(f"{sharing.told(samples)}. So {trials} {'trial has' if trials == 1 else 'trials share'} a GPU.")
        session.remember(f"{REMEMBERED} on {kind}", sharing.as_record(samples))
        chosen.append(trials)
    return min(chosen)


def _kinds_of_gpus() -> dict[str, tuple[nodes.Node, dict[str, float]]]:
    """Return a node of each kind of GPU, the one with the fewest CPUs for each of its GPUs."""
    found: dict[str, tuple[nodes.Node, dict[str, float]]] = {}
    resources = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    for node in nodes.alive():
        have = resources.get(node.node_id, {})
        kinds = [name.partition(":")[2] for name in have if name.startswith("accelerator_type:")]
        kind = kinds[0] if kinds else "GPU"
        if have.get("GPU", 0) and (kind not in found or _cpus_per_gpu(have) < _cpus_per_gpu(found[kind][1])):
            found[kind] = (node, have)
    return found


def _cpus_per_gpu(resources: Mapping[str, float]) -> float:
    return resources.get("CPU", 0) / resources["GPU"]


def _shared(session: Session, cluster: Cluster, trials: int, fitting: Callable[[Mapping[str, float]], int]) -> Cluster:
    resources = {**cluster.resources, "gpu": 1 / trials}
    workers = session.request.workers or fitting(resources)
    return dataclasses.replace(cluster, resources=resources, trials_per_gpu=trials, workers=workers)


def thinned(
    session: Session,
    cluster: Cluster,
    phase: tuple[StageLedger, ...],
    console: Console,
    *,
    fitting: Callable[[Mapping[str, float]], int] = fitting,
) -> tuple[Cluster, str]:
    """Put half as many trials on a GPU and enqueue again what ran out of memory; return why that cannot be, or ""."""
    if cluster.trials_per_gpu == 1:
        return cluster, (
            "a trial ran out of GPU memory although it had the GPU to itself; make data.source_batch, "
            "data.target_batch or the images smaller with --set, or set run.compile=off, whose check needs "
            "the memory of a step in float32 (either makes another study), or use larger GPUs."
        )
    fewer = cluster.trials_per_gpu // 2
    console.say(f"Out of GPU memory with {cluster.trials_per_gpu} trials on a GPU: it goes on with {fewer}.")
    session.remember(REMEMBERED, fewer)
    for stage in phase:
        stage.reap()
    return _shared(session, cluster, fewer, fitting), ""
