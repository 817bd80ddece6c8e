"""What every node must have before a trial lands on it: storage that it can write, weights, and the image stores.

The driver's node serves its stores through Ray; another one fetches what it lacks, once, under the lock that builds
them too. A node that joins later is served when its first trial arrives.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import ray
import ray.util.scheduling_strategies

from mmfa.config import TrialConfig
from mmfa.errors import MmfaError
from tune import mirror, preflight
from tune.places import Places, first_line

logger = logging.getLogger(__name__)

CHUNK_BYTES = 32 << 20
POLL_SECONDS = 0.5
SWEEP_SECONDS = 20.0
SERVER = "mmfa-stores"
"""Name of the actor that serves stores; a job's names are its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a study needs of a node."""

    storage: str
    """A folder that all nodes share, or the URI of an object store."""
    cache_dir: str
    stores: dict[str, str]
    """Fingerprint of the content by path."""
    weights: dict[str, str]
    """Of each backbone that does not start at random: a config that has it, as JSON, and the first digits of the
    file's SHA-256; "" where the weights are published ones."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster."""

    node_id: str
    name: str


class _Server:
    """Reads out the stores on the driver's node."""

    def __init__(self) -> None:
        self._served = 0
        self._known: dict[str, tuple[int, str]] = {}

    def size_and_digest(self, path: str) -> tuple[int, str]:
        if path not in self._known:
            with Path(path).open("rb") as file:
                self._known[path] = Path(path).stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[path]

    def read(self, path: str, offset: int) -> bytes:
        with Path(path).open("rb") as file:
            file.seek(offset)
            content = file.read(CHUNK_BYTES)
        self._served += len(content)
        return content

    def served(self) -> int:
        return self._served


def needs_of(
    configs: Sequence[TrialConfig], stores: preflight.Stores, where: Places, digests: Mapping[str, str]
) -> Needs:
    """Return what trainings need of a node.

    Args:
        configs: the trainings.
        stores: the driver's.
        where: the study's places.
        digests: first digits of the SHA-256 of each file of weights, by ``weights PATH``.
    """
    models = {
        config.model.backbone + config.model.weights: config for config in configs if config.model.weights != "none"
    }
    return Needs(
        storage=where.storage,
        cache_dir=str(where.cache_dir),
        stores=stores.contents(),
        weights={config.to_json(): digests.get(f"weights {config.model.weights}", "") for config in models.values()},
    )


def prepare(needs: Needs, progress: Callable[[str, int, int], None]) -> Any:
    """Check every node of the cluster and send it the stores that it lacks.

    Returns:
        The server of stores: nodes that join later are served for as long as somebody holds it.

    Raises:
        MmfaError: what a node cannot do, with the node's name.
    """
    here = ray.get_runtime_context().get_node_id()
    pinned = on_node(here)
    server = ray.remote(_Server).options(name=SERVER, num_cpus=0, scheduling_strategy=pinned).remote()
    nodes = alive()
    token = f".seen-by-all-{uuid.uuid4().hex}"
    _put(needs.storage, token)
    try:
        _raise_first(nodes, _on_each(nodes, _check, needs, token))
        lacking = _on_each(nodes, _lacks, needs)
        _raise_first(nodes, [answer if isinstance(answer, str) else "" for answer in lacking])
        total = sum(ray.get(server.size_and_digest.remote(path))[0] for paths in lacking for path in paths)
        if total:
            count = sum(bool(paths) for paths in lacking)
            what = f"sending image stores to {count} node{'s' if count > 1 else ''}, MB"
            tell = functools.partial(_told, server, progress, what, total)
            _raise_first(nodes, _on_each(nodes, _fetch_all, needs, tell=tell))
    finally:
        _take_away(needs.storage, token)
    return server


def _told(server: Any, progress: Callable[[str, int, int], None], what: str, total: int) -> None:
    progress(what, min(ray.get(server.served.remote()), total) >> 20, max(total >> 20, 1))


def alive() -> list[Node]:
    """Return the nodes that Ray counts as alive, the driver's among them."""
    found = [node for node in ray.nodes() if node["Alive"]]
    return [Node(node["NodeID"], f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})") for node in found]


def sweep(scratch: Path, counter: int) -> None:
    """Remove what workers of this driver and of older ones have left on any node; a younger one's may be at work.

    Args:
        scratch: folder of the workers' copies, with a folder for each driver in it.
        counter: this driver's.
    """
    with contextlib.suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
        ray.get([_task(node, _sweep).remote(str(scratch), counter) for node in alive()], timeout=SWEEP_SECONDS)


def on_node(node_id: str) -> Any:
    """Have Ray run something on one node and nowhere else."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)


def _task(node: Node, call: Callable[..., Any]) -> Any:
    return ray.remote(call).options(num_cpus=0, max_retries=2, scheduling_strategy=on_node(node.node_id))


def _on_each(
    nodes: Sequence[Node], call: Callable[..., Any], *arguments: Any, tell: Callable[[], None] = lambda: None
) -> list[Any]:
    """Call on every node at once; return what came, or a node's error as text."""
    waiting = refs = [_task(node, call).remote(*arguments) for node in nodes]
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
        tell()
    return [_came(ref) for ref in refs]


def _came(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return f"it cannot be checked ({type(error.cause).__name__}: {first_line(error.cause)}); is this version there?"
    except ray.exceptions.RayError as error:
        return f"it was lost while it was being checked ({first_line(error)})"


def _raise_first(nodes: Sequence[Node], answers: Sequence[str]) -> None:
    problems = [f"node {node.name}: {answer}" for node, answer in zip(nodes, answers, strict=True) if answer]
    if problems:
        more = f" ({len(problems) - 1} other nodes have problems too.)" if len(problems) > 1 else ""
        raise MmfaError(problems[0] + more)


def _put(storage: str, token: str) -> None:
    if mirror.is_remote(storage):
        mirror.write(f"{storage}/{token}", b"mmfa")
    else:
        (Path(storage) / token).write_bytes(b"mmfa")


def _take_away(storage: str, token: str) -> None:
    if mirror.is_remote(storage):
        mirror.remove(storage, token)
    else:
        (Path(storage) / token).unlink(missing_ok=True)


# What runs on a node. Answers are texts: an error's class may not travel.


def _sweep(scratch: str, counter: int) -> None:
    for folder in Path(scratch).glob("*"):
        if folder.name.isdigit() and int(folder.name) <= counter:
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not there, or not empty
        Path(scratch).rmdir()


def _check(needs: Needs, token: str) -> str:
    """Return what is wrong with a node, or ""."""
    try:
        preflight.check_writable(Path(needs.cache_dir), option="--cache-dir")
        if mirror.is_remote(needs.storage):
            preflight.check_object_store(needs.storage)  # does not wait for what never answers
            seen = mirror.read(f"{needs.storage}/{token}") == b"mmfa"
        else:
            seen = (Path(needs.storage) / token).exists()
            if seen:
                preflight.check_writable(Path(needs.storage), option="--storage")
        if not seen:
            return (
                f"--storage {needs.storage} is not what the driver sees there; give a folder that all nodes share, "
                "or s3://bucket/path."
            )
        return _check_weights(needs.weights)
    except (MmfaError, OSError) as error:
        return str(error)


def _check_weights(weights: dict[str, str]) -> str:
    from mmfa.backbone import resolve_weights

    for text, digest in weights.items():
        model = TrialConfig.from_json(text).model
        if digest:
            file = Path(model.weights)
            if not file.exists() or not hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest):
                return f"--weights {file} is not there, or is not the driver's file; copy it to the same place."
        else:
            resolve_weights(model)
    return ""


def _lacks(needs: Needs) -> list[str] | str:
    """Return the stores that a node lacks, or what is wrong with one that it has."""
    there = {path: fingerprint for path, fingerprint in needs.stores.items() if Path(path).exists()}
    return _compared(there) or [path for path in needs.stores if path not in there]


def _fetch_all(needs: Needs) -> str:
    try:
        for path in needs.stores:
            fetch(path)
    except (MmfaError, OSError) as error:
        return str(error)
    return _compared(needs.stores)


def _compared(stores: Mapping[str, str]) -> str:
    from mmfa.data.store import open_store

    try:
        for path, fingerprint in stores.items():
            if (found := open_store(Path(path)).fingerprint) != fingerprint:
                return (
                    f"{path} holds other images ({found}) than the driver's ({fingerprint}); delete it and run again."
                )
    except (MmfaError, OSError) as error:
        return str(error)
    return ""


def fetch(path: str) -> None:
    """Have a store on this node: copied from the driver's node, whole and checked, unless it is there.

    Raises:
        MmfaError: no driver that serves it, no room, or a copy that came out different.
    """
    target = Path(path)
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / ".lock"):
            if not target.exists():
                _copy(target, ray.get_actor(SERVER))
    except ValueError:
        raise MmfaError(f"{path} is missing on {platform.node()}, and nobody serves it; run the study again.") from None
    except OSError as error:
        raise MmfaError(
            f"{path} cannot be written on {platform.node()} ({error.strerror or error}); make room there, or choose "
            "another --cache-dir."
        ) from None


def _copy(target: Path, server: Any) -> None:
    size, digest = ray.get(server.size_and_digest.remote(str(target)))
    temporary = target.with_suffix(".tmp")
    seen = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            for offset in range(0, size, CHUNK_BYTES):
                content = ray.get(server.read.remote(str(target), offset))
                seen.update(content)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if seen.hexdigest() != digest:
            raise MmfaError(f"{target} came out different from the driver's copy; run the study again.")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
