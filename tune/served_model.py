"""The registered model: images in, embeddings out. MLflow runs this file; there is no pickle.

Nobody can have a server read its files: a string, which is all that JSON can send, is the content of an image in
base64, and a file is named by a ``pathlib.Path``, which only Python can send.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
from mlflow.exceptions import MlflowException

COLUMN = "image"
"""The one column of a data frame."""
_TAKEN = (
    "images are RGB pixels, uint8 [N, H, W, 3] or a list of [H, W, 3]; the content of image files as bytes, or as "
    "base64 in a string; files as pathlib.Path; or a data frame with any of these in the column 'image'"
)


class Embedder(mlflow.pyfunc.PythonModel):
    """Embeds images with the weights of a study's trial."""

    def load_context(self, context: Any) -> None:
        """Read the weights (safetensors) and their config (JSON)."""
        from mmfa.retrieval import Embedder

        self._embedder = Embedder.load(Path(context.artifacts["checkpoint"]))

    # Of all annotations MLflow passes over an array's in silence; it warns of others at every load, and of none too.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return un-normalised embeddings, float32 [N, D]: compare them by Euclidean distance.

        Args:
            context: MLflow's.
            model_input: RGB pixels, uint8 [N, H, W, 3] or a list of [H, W, 3] of differing sizes; a list of
                ``pathlib.Path``, of the bytes of image files, or of their base64 as strings; or a data frame with any
                of these in its column ``image``.
            params: none are known.

        Raises:
            MlflowException: anything else, or an image that cannot be read or decoded; the first one is named.
        """
        from mmfa.errors import DataError

        try:
            return self._embedder.embed(_pictures(model_input))
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _pictures(given: Any) -> Sequence[Any] | np.ndarray:
    """Return what ``mmfa.retrieval`` takes: one array, or a list of pixels, contents and paths."""
    if hasattr(given, "columns"):  # a pandas data frame
        if COLUMN not in given.columns:
            found = ", ".join(map(str, given.columns)) or "none"
            raise MlflowException.invalid_parameter_value(f"{_TAKEN}; but this one's columns are: {found}.")
        given = given[COLUMN].tolist()
    if isinstance(given, np.ndarray) and given.ndim == 4:
        if given.dtype != np.uint8 or given.shape[-1] != 3:
            what = f"{given.dtype} {list(given.shape)}"
            raise MlflowException.invalid_parameter_value(f"{_TAKEN}; but got {what}.")
        return given
    if isinstance(given, np.ndarray) and given.ndim == 1:
        given = given.tolist()
    if not isinstance(given, list | tuple):
        what = f"{given.dtype} {list(given.shape)}" if isinstance(given, np.ndarray) else type(given).__name__
        raise MlflowException.invalid_parameter_value(f"{_TAKEN}; but got {what}.")
    return [_picture(one, number) for number, one in enumerate(given)]


def _picture(given: Any, number: int) -> Any:
    if isinstance(given, str):
        try:
            return base64.b64decode("".join(given.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise MlflowException.invalid_parameter_value(
                f"a string is the content of an image file in base64, but image {number} is not; file names are taken "
                "as pathlib.Path only, so that nobody can have a server read its files."
            ) from error
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if isinstance(given, Path | np.ndarray):
        return given
    raise MlflowException.invalid_parameter_value(f"{_TAKEN}; but image {number} is {type(given).__name__}.")


mlflow.models.set_model(Embedder())
