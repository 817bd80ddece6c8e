"""Registry versions and aliases: a model is loaded and has embedded a probe batch before an alias moves to it."""

from __future__ import annotations

import base64
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
from mmfa.errors import ConfigError, MmfaError
from mmfa.pictures import encoded
from tune import model_card
from tune.confirm import Standing

logger = logging.getLogger(__name__)

CANDIDATE, CHAMPION = "candidate", "champion"
"""Best found by the objective; best by a verdict."""
LABEL_FREE = "label_free/score"
HISTORY = 20
"""Champions that the model's description lists."""
REQUIREMENTS = ("torch", "torchvision", "numpy", "safetensors", "pyarrow", "scipy", "pillow", "filelock")


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
        keys = ["objective", "data.fingerprint"]
        keys += ["mmfa.study"] if tags["objective"] == LABEL_FREE else []  # its unit is the study's own seed noise
        comparable = all(standing.tags.get(key) == tags[key] for key in keys)
        before = float(standing.tags.get("objective.value", "nan"))
        if comparable and before >= value:
            stays = f"Nothing was promoted: {name}@{CANDIDATE} stays version {standing.version}"
            of = standing.tags.get("mmfa.study", "another study")
            return f"{stays} of {of}: it scored {_score(before, tags)}, this study's best {_score(value, tags)}."
    version = _new_version(client, promoted)
    client.set_registered_model_alias(name, CANDIDATE, version)
    found = f"the best that was found, by {tags['objective']} (n = 1 seed)"
    return f"Promoted: {name}@{CANDIDATE} is now version {version}: {found}."


def _score(value: float, tags: Mapping[str, str]) -> str:
    return f"{value:.2f}" if tags["objective"] == LABEL_FREE else f"{100 * value:.1f} %"


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
    try:
        config = TrialConfig.from_json(version.tags["config"])
    except ConfigError:  # written by another version of this program
        return None, _incomparable(name, version, ["config"])
    return Standing(version=str(version.version), config=config, of=of), ""


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
    if (told := _stands(client, promoted, challenged=challenged)) is not None:
        return told
    version = _new_version(client, promoted)
    if (told := _stands(client, promoted, challenged=challenged)) is not None:  # it took a while to register
        return told
    client.set_registered_model_alias(name, CHAMPION, version)
    _write_history(client, promoted)
    return f"Promoted: {name}@{CHAMPION} is now version {version}, by its verdict."


def _stands(client: MlflowClient, promoted: Promoted, *, challenged: str) -> str | None:
    """Return why the alias is not moved, or None where the champion is the one that was challenged."""
    name = promoted.name
    standing = _standing(client, name, CHAMPION)
    if standing is not None and _is_same(standing, promoted):
        _write_history(client, promoted)  # a kill may have come between the alias and its history
        return f"Promoted before: {name}@{CHAMPION} is this setting already (version {standing.version})."
    if (str(standing.version) if standing else "") == challenged:
        return None
    now = f"version {standing.version}" if standing else "none"
    against = f"version {challenged}" if challenged else "the baseline"
    return (
        f"{name}@{CHAMPION} was not moved: the verdict is against {against}, but the champion is now {now}; a study "
        "with another --seed challenges it, if it was judged on the same data and in the same way."
    )


def _write_history(client: MlflowClient, promoted: Promoted) -> None:
    """Write down who was champion from when until when: on the versions, and in the model's description, newest first.

    A version has been champion if it holds the alias, or has been given ``champion.since`` when it did.
    """
    name = promoted.name
    standing = _standing(client, name, CHAMPION)
    found = client.search_model_versions(f"name = '{name}'", max_results=1000)
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lines = []
    for version in sorted(found, key=lambda version: -int(version.version)):
        tags = dict(version.tags)
        holds = standing is not None and str(standing.version) == str(version.version)
        if holds and "champion.since" not in tags:
            tags["champion.since"] = at
            client.set_model_version_tag(name, version.version, "champion.since", at)
        if not holds and "champion.since" in tags and "champion.until" not in tags and standing is not None:
            tags["champion.until"] = at
            client.set_model_version_tag(name, version.version, "champion.until", at)
            client.set_model_version_tag(name, version.version, "champion.beaten_by", f"version {standing.version}")
        if "champion.since" in tags:
            lines.append(_line_of_history(str(version.version), tags))
    history = "\n".join(["## Champions, by verdict alone", *lines[:HISTORY]])
    client.update_registered_model(name, f"{_about(promoted)}\n\n{history}"[: model_card.LONGEST])


def _about(promoted: Promoted) -> str:
    """Return the model's description without its history."""
    data = TrialConfig.from_json(promoted.tags["config"]).data
    return model_card.about(promoted.name, data.source, data.target)


def _line_of_history(version: str, tags: Mapping[str, str]) -> str:
    until = f" until {tags['champion.until']}" if "champion.until" in tags else ""
    delta = 100 * float(tags.get("verdict.delta", "nan"))
    return (
        f"- version {version}: since {tags['champion.since']}{until}; {tags.get('verdict', '')} "
        f"{tags.get('verdict.against', '')} by {delta:+.1f} points of target mAP (n = {tags.get('verdict.n', '?')}), "
        f"{tags.get('mmfa.study', '?')}"
    )


def _is_same(standing: ModelVersion, promoted: Promoted) -> bool:
    same = all(standing.tags.get(key) == promoted.tags[key] for key in ("mmfa.study", "mmfa.lineage"))
    return same and bool(standing.run_id == promoted.run_id)


def _new_version(client: MlflowClient, promoted: Promoted) -> str:
    """Register weights and try them; return the version, which no alias names yet."""
    version = _register(client, promoted)
    _smoke_load(promoted.name, version, promoted.probe)
    promoted.check()
    return version


def _standing(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
            return None
        raise


def _register(client: MlflowClient, promoted: Promoted) -> str:
    """Log the model (code, safetensors and card) and make it a version; return the version."""
    name, run = promoted.name, client.get_run(promoted.run_id)
    card = model_card.text(run, promoted.tags)
    model = client.create_logged_model(run.info.experiment_id, name="embedder", source_run_id=promoted.run_id)
    here = Path(__file__).resolve().parent
    requirements = [f"{package}=={importlib.metadata.version(package)}" for package in REQUIREMENTS]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            path,
            python_model=str(here / "served_model.py"),
            artifacts={"checkpoint": str(promoted.export)},
            code_paths=[str(Path(mmfa.__file__).parent)],
            pip_requirements=requirements,
            signature=_signature(),
            input_example=_example(promoted.probe),
        )
        (path / model_card.FILE).write_text(f"# {name}\n\n{card}", encoding="utf-8")
        client.log_model_artifacts(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    try:
        client.create_registered_model(name, description=_about(promoted))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=promoted.run_id,
        tags=dict(promoted.tags),
        description=card[: model_card.LONGEST],
        model_id=model.model_id,
    )
    return str(version.version)


def _signature() -> ModelSignature:
    """One embedding of D dimensions for each image; no schema of MLflow's knows all that an image may come as."""
    return ModelSignature(outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]))


def _example(probe: np.ndarray) -> list[str]:
    """Return what a server may be sent: the content of an image file, in base64."""
    return [base64.b64encode(encoded(probe[0])).decode()]


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
