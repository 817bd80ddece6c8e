"""What label-free criteria see of a finished model: a sample of unlabelled target images, embedded, and their cameras.

Shapes: N images, D pooled dimensions, M attributes.
"""

from __future__ import annotations

import io
import os
import uuid
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from mmfa import checkpoint
from mmfa.data.records import Ints
from mmfa.errors import CheckpointError, DataError
from mmfa.evaluate import BATCH, embed
from mmfa.training import Training

LIMIT = 3000
"""Images of a probe: 3000 x 2048 float16 are 12 MB."""
_SEED = 20181
"""Of the sample, whatever the seed of the training."""

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Probe:
    """Unlabelled target-training images as a finished model embeds them: no pids, so no criterion can read a label.

    The images stand in a random order: that of a dataset's paths is that of its pids.
    """

    embeddings_ND: Halves
    """float16, un-normalised; a feature beyond 65504 is infinite here, and left so for a guard to see."""
    attributes_NM: Halves
    """float16 in [0, 1], sigmoid of the attribute heads; M is 0 without heads."""
    camids_N: Ints
    """int64, cameras."""

    def __post_init__(self) -> None:
        assert not (wrong := _wrong({name: getattr(self, name) for name in _DTYPES})), wrong

    @property
    def finite(self) -> bool:
        """Whether no entry is nan or infinite."""
        return bool(np.isfinite(self.embeddings_ND).all() and np.isfinite(self.attributes_NM).all())

    def save(self, path: Path, *, before_commit: Callable[[], None] = checkpoint.nothing) -> None:
        """Write one ``.npz`` that appears complete or not at all; one that is there already is replaced.

        Args:
            path: its folder is made if missing; one process at a time writes the file.
            before_commit: called right before the file gets its name; what it raises ends the save without a trace.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **{name: getattr(self, name) for name in _DTYPES})
                file.flush()
                os.fsync(file.fileno())
            before_commit()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and verify what :meth:`save` wrote.

        A file system that fails to answer is no damage: its ``OSError`` passes through.

        Raises:
            CheckpointError: missing, damaged, or no probe.
        """
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(f"a probe is read from its file, but {path} is missing; train again.") from error
        try:
            return cls(**_arrays(content))
        except Exception as error:  # a damaged file makes zipfile and numpy raise anything
            raise CheckpointError(
                f"a probe must be the file that was written, but {path} is damaged or something else "
                f"({str(error).rstrip('.') or type(error).__name__}); remove it and train again."
            ) from error


_DTYPES = {"embeddings_ND": np.float16, "attributes_NM": np.float16, "camids_N": np.int64}
"""Arrays of the file: the fields of :class:`Probe`."""


def take(training: Training, *, limit: int = LIMIT) -> Probe:
    """Embed a sample of the target's training images with the evaluated model; the training is left as it was.

    Held-out identities are not among them. The sample follows from the number of training images alone: all trials on
    the same data show the same images, in the same order.

    Args:
        training: at any point; meant for its end.
        limit: images at most.

    Raises:
        DataError: a target without training images.
    """
    rows = training.target_rows
    if not len(rows):
        raise DataError(
            f"a probe needs training images of the target, but {training.target.domain.name} has none; "
            "use a target with a training split, or a study without label-free criteria."
        )
    rows = rows[np.random.default_rng([_SEED, len(rows)]).permutation(len(rows))[:limit]]
    model, data = training.evaluated_model, training.config.data
    features_ND = embed(
        model,
        training.target.images,
        rows,
        height=data.image_height,
        width=data.image_width,
        hardware=training.hardware,
    )
    was_training = model.training
    model.eval()
    try:  # in batches: the hidden layers of all heads are many times as wide as the features
        with torch.no_grad():
            outputs_NM = torch.cat([model.attributes(part_BD) for part_BD in torch.split(features_ND, BATCH)])
    finally:
        model.train(was_training)
    with np.errstate(over="ignore"):  # a feature that is too large stays visible as infinity
        embeddings_ND, attributes_NM = (
            given.cpu().numpy().astype(np.float16) for given in (features_ND, outputs_NM.sigmoid())
        )
    return Probe(embeddings_ND=embeddings_ND, attributes_NM=attributes_NM, camids_N=training.target.domain.camids[rows])


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if (damaged := archive.testzip()) is not None:  # numpy itself may stop reading before the checksum
            raise ValueError(f"the checksum of {damaged} differs")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name].copy() for name in _DTYPES}  # numpy gives views of a buffer
    if wrong := _wrong(arrays):
        raise ValueError(wrong)
    return arrays


def _wrong(arrays: Mapping[str, np.ndarray]) -> str:
    """Return what is wrong with the dtypes or shapes, or nothing."""
    right = all(
        array.dtype == _DTYPES[name]
        and array.ndim == len(name.rpartition("_")[2])
        and len(array) == len(arrays["camids_N"])
        for name, array in arrays.items()
    )
    return "" if right else ", ".join(f"{name}: {array.dtype} {list(array.shape)}" for name, array in arrays.items())
