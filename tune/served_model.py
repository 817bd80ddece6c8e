"""The registered model: images in, embeddings out. MLflow runs this file; there is no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np


class Embedder(mlflow.pyfunc.PythonModel):
    """Embeds images with the weights of a study's trial."""

    def load_context(self, context: Any) -> None:
        """Read the weights (safetensors) and their config (JSON)."""
        from mmfa.checkpoint import load_model
        from mmfa.hardware import Hardware

        self._model, self._config = load_model(Path(context.artifacts["checkpoint"]))
        self._hardware = Hardware.choose("auto", self._config.run)
        self._model.to(self._hardware.device).to(memory_format=self._hardware.memory_format)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return un-normalised embeddings, float32 [N, D], of RGB images, uint8 [N, H, W, 3] of any size."""
        from mmfa.evaluate import embed

        images = np.asarray(model_input)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images must be RGB, uint8 [N, H, W, 3], but got {images.dtype} {list(images.shape)}; "
                "stack them with numpy.stack after resizing to one size."
            )
        data = self._config.data
        features = embed(
            self._model,
            images,
            np.arange(len(images)),
            height=data.image_height,
            width=data.image_width,
            hardware=self._hardware,
        )
        return np.asarray(features.cpu())


mlflow.models.set_model(Embedder())
