"""Everything that can be known to fail is checked before the first trial."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import sqlalchemy as sa

from mmfa.config import TrialConfig
from mmfa.errors import MmfaError
from tune import mirror
from tune.places import Places, first_line, safe_url

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ANSWER_SECONDS = 8.0
"""How long a tracking server may take to answer before it counts as absent."""


EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment on its trainings instead of on traces of language models."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The image stores of a study."""

    paths: dict[str, Path]
    """By catalogue name."""
    fingerprints: dict[str, str]
    """Likewise; of a dataset with splits theirs too, after a plus sign."""

    def contents(self) -> dict[str, str]:
        """Return the fingerprint of what each store holds, by its path."""
        return {str(path): self.fingerprints[name].partition("+")[0] for name, path in self.paths.items()}


def check_writable(folder: Path, *, option: str) -> None:
    """Write a file into a folder, read it back and remove it.

    Raises:
        MmfaError: the folder cannot be made, written or read.
    """
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("mmfa")
        if probe.read_text() != "mmfa":
            raise OSError(0, "what was written reads back differently")
        probe.unlink()
    except OSError as error:
        raise MmfaError(f"{folder} cannot be written ({error.strerror}); give another folder with {option}.") from None


def check_object_store(uri: str) -> None:
    """Write an object, read it back and remove it.

    Raises:
        MmfaError: any of that fails.
    """
    name = f".probe-{uuid.uuid4().hex}"
    try:
        mirror.write(f"{uri}/{name}", b"mmfa", seconds=0)
        if mirror.read(f"{uri}/{name}", seconds=0) != b"mmfa":
            raise OSError("what was written reads back differently")
        mirror.remove(uri, name)
    except OSError as error:
        raise MmfaError(
            f"--storage {uri} cannot be used: {first_line(error)}. Check bucket, credentials and endpoint "
            "(AWS_ENDPOINT_URL), or give a folder that all nodes share."
        ) from None


def check_places(where: Places) -> None:
    """Check every folder of a study."""
    check_writable(where.out, option="--out")
    if mirror.is_remote(where.storage):
        check_object_store(where.storage)
    check_writable(where.copy, option="--storage")
    check_writable(where.cache_dir, option="--cache-dir")
    if where.tracking.startswith(("http://", "https://")):
        _check_server(where.tracking)
    for url, option in ((where.ledger, "--ledger"), (where.tracking, "--tracking-uri")):
        if url.startswith("sqlite:///"):
            _check_sqlite(Path(url.removeprefix("sqlite:///")), option=option)


def _check_sqlite(file: Path, *, option: str) -> None:
    check_writable(file.parent, option=option)
    if file.is_dir():
        raise MmfaError(f"{option} must be a file, but {file} is a folder.")
    if file.exists() and not os.access(file, os.W_OK):
        raise MmfaError(f"{option}: {file} cannot be written; change its permissions or give another file.")
    if file.exists() and file.stat().st_size:
        with file.open("rb") as start:
            if start.read(15) != b"SQLite format 3":
                raise MmfaError(f"{option}: {file} is not an SQLite database; give another file.")


def weights_fingerprints(configs: Sequence[TrialConfig]) -> dict[str, str]:
    """Return the SHA-256 of every file of starting weights, by its path.

    Raises:
        MmfaError: a file that cannot be read.
    """
    files = {config.model.weights for config in configs} - {"imagenet", "none"}
    try:
        return {f"weights {name}": hashlib.sha256(Path(name).read_bytes()).hexdigest()[:12] for name in sorted(files)}
    except OSError as error:
        raise MmfaError(
            f"--weights must name a file that can be read, but {error.filename}: {error.strerror}."
        ) from None


def open_tracking(where: Places, *, experiment: str) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id.

    Raises:
        MmfaError: a server that does not answer, or a database that holds something else.
    """
    remote = where.tracking.startswith(("http://", "https://"))
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    artifacts = None if remote else (where.out / "mlartifacts").as_uri()
    try:
        _make_whole(where.tracking)
        client = MlflowClient(where.tracking, where.tracking)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise MmfaError(
                f"the MLflow experiment {experiment!r} was deleted: restore it with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or give another --tracking-uri."
            )
        if found is None:
            return client, client.create_experiment(experiment, artifacts, EXPERIMENT_TAGS)
        return client, found.experiment_id
    except (MlflowException, sa.exc.SQLAlchemyError, ImportError, OSError) as error:
        raise MmfaError(
            f"MLflow at {safe_url(where.tracking)} cannot be used: {first_line(error)}. Give another --tracking-uri."
        ) from None


def _make_whole(uri: str) -> None:
    """Have MLflow make a new file under another name, then move it: half of its migrations cannot be gone on with."""
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or file.exists():
        return
    from mlflow.tracking import MlflowClient

    with filelock.FileLock(file.with_name(f".{file.name}.lock")):
        if file.exists():
            return
        for left in file.parent.glob(f".{file.name}.new*"):
            left.unlink()
        new = file.with_name(f".{file.name}.new")
        client = MlflowClient(f"sqlite:///{new}")
        client.search_experiments(max_results=1)
        client._tracking_client.store.engine.dispose()
        new.rename(file)


def _check_server(uri: str) -> None:
    """Ask a tracking server for its health."""
    way_out = "Start it, or leave out --tracking-uri to record into a local database."
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS) as answer:
            answer.read(64)
    except urllib.error.HTTPError as error:
        hint = " (a server refuses unknown host names: start it with --allowed-hosts)" if error.code == 403 else ""
        raise MmfaError(f"the tracking server {uri} answered {error.code} {error.reason}{hint}. {way_out}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise MmfaError(f"the tracking server {uri} does not answer ({reason}). {way_out}") from None


def prepare_stores(
    configs: Sequence[TrialConfig],
    where: Places,
    *,
    strict_counts: bool = False,
    progress: Callable[[str, int, int], None],
) -> Stores:
    """Open or build the store of every dataset that the configs name.

    Raises:
        MmfaError: missing or damaged data.
    """
    from mmfa.data import catalog
    from mmfa.data.splits.ten import SHA256
    from mmfa.data.store import build, open_store

    sources = {config.data.source for config in configs}
    size = {"height": configs[0].data.store_height, "width": configs[0].data.store_width}
    stores = Stores({}, {})
    for name in dict.fromkeys(name for config in configs for name in (config.data.source, config.data.target)):
        dataset = catalog.load(
            name,
            data_root=where.data_root,
            cache_dir=where.cache_dir,
            strict_counts=strict_counts,
            attributes_required=name in sources,
            progress=progress,
        )
        stores.paths[name] = build(dataset, cache_dir=where.cache_dir, progress=progress, **size)
        splits = f"+splits-{SHA256[name][:8]}" if name in SHA256 else ""
        stores.fingerprints[name] = open_store(stores.paths[name]).fingerprint + splits
    return stores


def check_trainings(configs: Sequence[TrialConfig], stores: Stores) -> list[str]:
    """Build each training and throw it away: weights, sizes and splits are known to hold before a worker starts.

    Returns:
        what a user should know: sources without attributes.

    Raises:
        MmfaError: missing weights, too few images or identities.
    """
    from mmfa.data.store import open_store
    from mmfa.training import Training

    opened = {name: open_store(path) for name, path in stores.paths.items()}
    notes = []
    for config in configs:
        source, target = opened[config.data.source], opened[config.data.target]
        if not Training(config, source=source, target=target, device="cpu").attribute_names:
            notes.append(f"{config.data.source} has no attributes: L_attr and L_AAL are off.")
    return list(dict.fromkeys(notes))
