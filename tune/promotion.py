"""Registry versions and aliases: a model is loaded and has embedded a probe batch before an alias moves to it."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from mmfa.config import TrialConfig
from mmfa.data import catalog
from mmfa.errors import MmfaError
from tune.confirm import Standing

logger = logging.getLogger(__name__)

CANDIDATE, CHAMPION = "candidate", "champion"
"""Best found by the objective; best by a verdict."""
REQUIREMENTS = ("torch", "torchvision", "numpy", "safetensors", "pyarrow", "scipy", "pillow")


def model_name(source: str, target: str) -> str:
    """Return the registered model's name for a pair of datasets."""
    return f"mmfa-{catalog.slug(source)}-to-{catalog.slug(target)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Promoted:
    """A training that is to become a version of the registered model."""

    name: str
    """Registered model."""
    run_id: str
    export: Path
    """Folder with its weights."""
    probe: np.ndarray
    """Images, uint8 [N, H, W, 3], that the loaded model must embed."""
    tags: Mapping[str, str]
    """Of the version; ``mmfa.study``, ``mmfa.lineage``, ``config``, ``protocol``, ``data.fingerprint`` among them."""
    check: Callable[[], None]
    """Raises where this driver may write no more."""


def promote_candidate(client: MlflowClient, promoted: Promoted, *, value: float) -> str:
    """Register a trial's weights and move the alias ``candidate`` to them; return what was done, in a sentence.

    A standing candidate that scored as high by the same objective on the same data stays.

    Args:
        client: MLflow client.
        promoted: The trial, with ``objective`` among its tags.
        value: Its objective.

    Raises:
        MmfaError: the registered model does not load or does not embed.
    """
    name, tags = promoted.name, promoted.tags
    standing = _standing(client, name, CANDIDATE)
    if standing is not None:
        if _is_same(standing, promoted):
            return f"Promoted before: {name}@{CANDIDATE} is this trial already (version {standing.version})."
        comparable = all(standing.tags.get(key) == tags[key] for key in ("objective", "data.fingerprint"))
        before = float(standing.tags.get("objective.value", "nan"))
        if comparable and before >= value:
            stays = f"Nothing was promoted: {name}@{CANDIDATE} stays version {standing.version}"
            of = standing.tags.get("mmfa.study", "another study")
            return f"{stays} of {of}: it scored {_score(before, tags)}, this study's best {_score(value, tags)}."
    version = _new_version(client, promoted)
    client.set_registered_model_alias(name, CANDIDATE, version)
    return f"Promoted: {name}@{CANDIDATE} is now version {version}; it is the best that was found, confirmed or not."


def _score(value: float, tags: Mapping[str, str]) -> str:
    return f"{value:.2f}" if tags["objective"] == "label_free/score" else f"{100 * value:.1f} %"


def standing_champion(client: MlflowClient, name: str, *, tags: Mapping[str, str]) -> tuple[Standing | None, str]:
    """Return the champion that a new one must beat, if one stands that can be compared, and what to say if not.

    Args:
        client: MLflow client.
        name: Registered model.
        tags: What a version must have in common with this study: ``data.fingerprint`` and ``protocol``.
    """
    version = _standing(client, name, CHAMPION)
    if version is None:
        return None, ""
    differing = [key for key, value in tags.items() if version.tags.get(key) != value]
    if differing or "config" not in version.tags:
        return None, _incomparable(name, version, differing)
    of = version.tags.get("mmfa.study", "another study")
    return Standing(version=str(version.version), config=TrialConfig.from_json(version.tags["config"]), of=of), ""


def _incomparable(name: str, version: ModelVersion, differing: list[str]) -> str:
    what = " and ".join(differing) or "config"
    return (
        f"{name}@{CHAMPION} (version {version.version}) was judged on another {what} and cannot be challenged here; to "
        "let a new one stand, remove the alias in MLflow (its version stays)."
    )


def promote_champion(client: MlflowClient, promoted: Promoted, *, challenged: str) -> str:
    """Make a setting that BEATS the champion: register it, move the alias, write the change into both versions.

    Args:
        client: MLflow client.
        promoted: A confirmation of the setting, with its verdict among its tags.
        challenged: Version of the champion that the verdict was against; "" where none stood and it was the baseline.

    Raises:
        MmfaError: the registered model does not load or does not embed.
    """
    name = promoted.name
    standing = _standing(client, name, CHAMPION)
    if standing is not None and _is_same(standing, promoted):
        return f"Promoted before: {name}@{CHAMPION} is this setting already (version {standing.version})."
    if (str(standing.version) if standing else "") != challenged:
        now = f"version {standing.version}" if standing else "none"
        against = f"version {challenged}" if challenged else "the baseline"
        return (
            f"{name}@{CHAMPION} was not moved: the verdict is against {against}, "
            f"but the champion is now {now}; a study that begins now challenges it."
        )
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    more = {"champion.since": at, "champion.after": challenged or "none: it beat the baseline"}
    version = _new_version(client, dataclasses.replace(promoted, tags={**promoted.tags, **more}))
    if standing is not None:
        client.set_model_version_tag(name, standing.version, "champion.until", at)
        client.set_model_version_tag(name, standing.version, "champion.beaten_by", f"version {version}")
    client.set_registered_model_alias(name, CHAMPION, version)
    _write_history(client, name)
    return f"Promoted: {name}@{CHAMPION} is now version {version}, by its verdict."


def _write_history(client: MlflowClient, name: str) -> None:
    """Keep the champions, newest first, where the registry shows them: in the model's description."""
    found = client.search_model_versions(f"name = '{name}'", max_results=1000)
    champions = sorted((v for v in found if "champion.since" in v.tags), key=lambda v: -int(v.version))
    lines = [
        f"- version {v.version}: champion since {v.tags['champion.since']}, {v.tags.get('verdict', '')} "
        f"{v.tags.get('verdict.against', '')} {100 * float(v.tags.get('verdict.delta', 'nan')):+.1f} points mAP "
        f"(n = {v.tags.get('verdict.n', '?')}), {v.tags.get('mmfa.study', '?')}"
        + (f"; until {v.tags['champion.until']}" if "champion.until" in v.tags else "")
        for v in champions
    ]
    client.update_registered_model(name, "Champions, by verdict alone:\n" + "\n".join(lines))


def _is_same(standing: ModelVersion, promoted: Promoted) -> bool:
    same = all(standing.tags.get(key) == promoted.tags[key] for key in ("mmfa.study", "mmfa.lineage"))
    return same and bool(standing.run_id == promoted.run_id)


def _new_version(client: MlflowClient, promoted: Promoted) -> str:
    """Register weights and try them; return the version, which no alias names yet."""
    version = _register(client, name=promoted.name, run_id=promoted.run_id, export=promoted.export, tags=promoted.tags)
    _smoke_load(promoted.name, version, promoted.probe)
    promoted.check()
    return version


def _standing(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
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
