"""Registry versions and aliases: a model is loaded and has embedded a probe batch before an alias moves to it."""

from __future__ import annotations

import importlib.metadata
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

import mmfa
from mmfa.data import catalog
from mmfa.errors import MmfaError

logger = logging.getLogger(__name__)

ALIAS = "candidate"
REQUIREMENTS = ("torch", "torchvision", "numpy", "safetensors", "pyarrow", "scipy", "pillow")


def model_name(source: str, target: str) -> str:
    """Return the registered model's name for a pair of datasets."""
    return f"mmfa-{catalog.slug(source)}-to-{catalog.slug(target)}"


def promote(
    client: MlflowClient,
    *,
    name: str,
    run_id: str,
    export: Path,
    probe: np.ndarray,
    value: float,
    tags: Mapping[str, str],
    check: Callable[[], None],
) -> str:
    """Register a trial's weights and move the alias ``candidate`` to them; return what was done, in a sentence.

    A standing candidate that scored as high by the same objective on the same data stays.

    Args:
        client: MLflow client.
        name: Registered model.
        run_id: The trial's run.
        export: Folder with its weights.
        probe: Images, uint8 [N, H, W, 3], that the loaded model must embed.
        value: The trial's objective.
        tags: Tags of the version; ``mmfa.study``, ``mmfa.lineage``, ``objective`` and ``data.fingerprint`` among them.
        check: Raises where this driver may write no more.

    Raises:
        MmfaError: the registered model does not load or does not embed.
    """
    standing = _standing(client, name)
    if standing is not None:
        same = all(standing.tags.get(key) == tags[key] for key in ("mmfa.study", "mmfa.lineage"))
        if same and standing.run_id == run_id:
            return f"Promoted before: {name}@{ALIAS} is this trial already (version {standing.version})."
        comparable = all(standing.tags.get(key) == tags[key] for key in ("objective", "data.fingerprint"))
        before = float(standing.tags.get("objective.value", "nan"))
        if comparable and before >= value:
            stays = f"Nothing was promoted: {name}@{ALIAS} stays version {standing.version}"
            of = standing.tags.get("mmfa.study", "another study")
            return f"{stays} of {of}: it scored {100 * before:.1f} %, this study's best {100 * value:.1f} %."
    version = _register(client, name=name, run_id=run_id, export=export, tags={**tags, "objective.value": repr(value)})
    _smoke_load(name, version, probe)
    check()
    client.set_registered_model_alias(name, ALIAS, version)
    return f"Promoted: {name}@{ALIAS} is now version {version}."


def _standing(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:
        return None


def _register(client: MlflowClient, *, name: str, run_id: str, export: Path, tags: Mapping[str, str]) -> str:
    """Log the model (code and safetensors) and make it a version; return the version."""
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, name="embedder", source_run_id=run_id)
    here = Path(__file__).resolve().parent
    requirements = [f"{package}=={importlib.metadata.version(package)}" for package in REQUIREMENTS]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            path,
            python_model=str(here / "served_model.py"),
            artifacts={"checkpoint": str(export)},
            code_paths=[str(Path(mmfa.__file__).parent)],
            pip_requirements=requirements,
            signature=_signature(),
        )
        client.log_model_artifacts(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name, source=f"models:/{model.model_id}", run_id=run_id, tags=dict(tags), model_id=model.model_id
    )
    return str(version.version)


def _signature() -> ModelSignature:
    """Images of any number and size in, one embedding of D dimensions each out."""
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    return ModelSignature(inputs=images, outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]))


def _smoke_load(name: str, version: str, probe: np.ndarray) -> None:
    """Load a version back and embed the probe with it."""
    try:
        embeddings = np.asarray(mlflow.pyfunc.load_model(f"models:/{name}/{version}").predict(probe))
    except Exception as error:  # whatever a model may do when it is loaded: it must not get the alias
        raise MmfaError(
            f"version {version} of {name} does not load or embed ({error}); the alias was not moved."
        ) from error
    if embeddings.ndim != 2 or len(embeddings) != len(probe) or not np.isfinite(embeddings).all():
        raise MmfaError(
            f"version {version} of {name} embeds {len(probe)} images as {embeddings.shape}; no alias was moved."
        )
