"""Checkpoints and exported models: a folder with safetensors weights and a JSON state, written whole or not at all.

Nothing is pickled: a checkpoint from anywhere can be opened without running code from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from mmfa.config import TrialConfig, canonical_json
from mmfa.errors import CheckpointError, ConfigError
from mmfa.model import MMFA, build

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of the layout; another one is refused."""

NUM_KEPT = 2
"""Checkpoints kept in a folder: the newest, and the one to fall back on."""

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_EPOCH = re.compile(r"epoch-\d{4,}")
_NUM_NAMED = 3
"""Differing tensors named in a message."""


class _DamagedError(CheckpointError):
    """The files are not what was written: another checkpoint may still do."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What one folder holds, verified."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def nothing() -> None:
    """Do nothing: the default ``before_commit``."""


def save(
    folder: Path,
    name: str,
    *,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    before_commit: Callable[[], None] = nothing,
) -> Path:
    """Write ``folder/name`` so that it appears complete or not at all, whenever the process or the machine stops.

    Args:
        folder: made if missing; one process at a time writes into it.
        name: of the new folder; one that is there already is replaced.
        tensors: on any device, in any memory format.
        state: values that JSON can hold.
        before_commit: called right before the folder gets its name; what it raises ends the save without a trace.

    Returns:
        the new folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder, name)
    temporary = _temporary(folder / name)
    temporary.mkdir()
    try:
        _write(temporary, tensors, state)
        before_commit()
        final = folder / name
        if final.exists():
            final.rename(_temporary(final))
        temporary.rename(final)
        _fsync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _remove_leftovers(folder, name)
    return final


def keep_newest(folder: Path) -> None:
    """Remove all epochs but the newest :data:`NUM_KEPT` from a folder of checkpoints, and what a killed save left."""
    _remove_leftovers(folder, "epoch-*")
    for path in _epochs([folder])[NUM_KEPT:]:
        removed = path.rename(_temporary(path))  # a kill within the removal leaves nothing that looks like an epoch
        shutil.rmtree(removed, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint or exported model.

    Raises:
        CheckpointError: missing, damaged or of another format; the file is named.
    """
    record = _read_state(path / _STATE)
    file = path / _TENSORS
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _DamagedError(f"{file} is missing; use another checkpoint.") from error
    if hashlib.sha256(content).hexdigest() != record["tensors_sha256"]:
        raise _DamagedError(f"{file} is not what was written (its SHA-256 differs); use another checkpoint.")
    return Checkpoint(path, safetensors.torch.load(content), record["state"])


def newest_intact(folders: Iterable[Path], *, on_corrupt: Callable[[Path, str], None]) -> Checkpoint | None:
    """Return the newest epoch that can be read, or None where there is none.

    A file system that fails to answer is no damage: its ``OSError`` passes through. A checkpoint that its writer
    removes meanwhile is passed over.

    Args:
        folders: folders of checkpoints; those that do not exist are passed over.
        on_corrupt: told the new path of each damaged checkpoint, which is set aside as ``*.corrupt``, and the reason.

    Raises:
        CheckpointError: a checkpoint of another format.
    """
    for path in _epochs(folders):
        try:
            return load(path)
        except _DamagedError as error:
            aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.corrupt")
            try:
                path.rename(aside)
            except FileNotFoundError:  # gone, not damaged
                continue
            logger.warning("set aside %s: %s", aside, error)
            on_corrupt(aside, str(error))
    return None


def load_model(folder: Path) -> tuple[MMFA, TrialConfig]:
    """Return the model that ``Training.export`` wrote, in eval mode on the CPU, and its config.

    Raises:
        CheckpointError: missing, damaged, of another format or version, or not an exported model.
    """
    exported = load(folder)
    if exported.state.get("kind") != "model":
        raise CheckpointError(f"{folder} is a checkpoint and not an exported model; export it with Training.export.")
    state = exported.state
    try:
        config = TrialConfig.from_json(state["config"])
        model = build(config, num_ids=len(state["pids"]), num_attributes=len(state["attribute_names"]))
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise other_version(exported, str(error).rstrip(".")) from error
    check_tensors(exported, exported.tensors, model.state_dict())
    model.load_state_dict(exported.tensors)
    return model.eval(), config


def other_version(saved: Checkpoint, reason: str) -> CheckpointError:
    """Return the error of an intact checkpoint that this version does not understand."""
    return CheckpointError(
        f"{saved.path / _STATE} must come from a version with the same fields and layers, but it is of mmfa "
        f"{written_by(saved)} ({reason}); use that version, or train and export afresh."
    )


def written_by(saved: Checkpoint) -> str:
    """Return the version of mmfa that a checkpoint says it is of."""
    versions = saved.state.get("versions")
    return str(versions.get("mmfa", "unknown")) if isinstance(versions, dict) else "unknown"


def check_tensors(saved: Checkpoint, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with those to be filled.

    Raises:
        CheckpointError: they differ; the first few are named.
    """
    theirs, ours = ({name: value.shape for name, value in given.items()} for given in (found, wanted))
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if differing:
        more = f", ... ({len(differing)} in all)" if len(differing) > _NUM_NAMED else ""
        raise other_version(saved, f"differing tensors: {', '.join(differing[:_NUM_NAMED])}{more}")


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix/``, without it."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return ``"key (theirs, here ours)"`` of each key whose values differ or that only one of them has."""
    keys = [*ours, *(key for key in theirs if key not in ours)]
    shown = {key: [repr(side[key]) if key in side else "absent" for side in (theirs, ours)] for key in keys}
    return [f"{key} ({left}, here {right})" for key, (left, right) in shown.items() if left != right]


def _write(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    content = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    record = {
        "format": FORMAT,
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
        "state": state,
    }
    record["record_sha256"] = _record_sha256(record)
    for name, data in ((_TENSORS, content), (_STATE, json.dumps(record, indent=1).encode())):
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _fsync(folder)


def _read_state(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
        intact = isinstance(record, dict) and record.pop("record_sha256", None) == _record_sha256(record)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _DamagedError(f"{file} is missing; use another checkpoint.") from error
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"{file} is not the state of a checkpoint ({error}); use another checkpoint.") from error
    if not intact:
        raise _DamagedError(f"{file} is not what was written (its SHA-256 differs); use another checkpoint.")
    if record.get("format") != FORMAT:  # believed only now: a damaged digit is damage and no other format
        raise CheckpointError(
            f"{file} has format {record.get('format')}, this version reads {FORMAT}; use the version it came from."
        )
    return dict(record)


def _record_sha256(record: Mapping[str, Any]) -> str:
    """Hash all of a record but the hash itself."""
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()


def _temporary(path: Path) -> Path:
    """Return a name beside ``path`` that :func:`_remove_leftovers` clears away."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _epochs(folders: Iterable[Path]) -> list[Path]:
    """Return all ``epoch-NNNN`` of the folders, newest epoch first, later folders before earlier ones."""
    found = [
        (int(path.name.removeprefix("epoch-")), order, path)
        for order, folder in enumerate(folders)
        if folder.is_dir()
        for path in folder.iterdir()
        if _EPOCH.fullmatch(path.name)
    ]
    return [path for _, _, path in sorted(found, reverse=True)]


def _remove_leftovers(folder: Path, name: str) -> None:
    for path in folder.glob(f".{name}.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
