"""One step of a training: forward, losses, backward, update."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmfa import compiled
from mmfa.config import TrialConfig
from mmfa.data.batches import Batch
from mmfa.hardware import Hardware
from mmfa.model import MMFA, Features
from mmfa.objective import LossTerms, Objective
from mmfa.optim import Average, build_sgd, set_rate
from mmfa.trace import part


class Forwarded(NamedTuple):
    """What the first half of a step gives."""

    source: Features
    target: Features | None
    terms: LossTerms


class Step:
    """What is done to a model with every batch; nothing in it waits for the device.

    Args:
        model: on the device of ``hardware``.
        config: of the trial.
        hardware: device, precision, memory format, compiled or not.
    """

    def __init__(self, model: MMFA, config: TrialConfig, hardware: Hardware) -> None:
        self.model, self.config, self.hardware = model, config, hardware
        self.optimiser = build_sgd(model, config.optim)
        self.objective = Objective(config.loss, config.kernel)
        decay = config.optim.average_decay
        self.average = None if decay is None else Average(model, decay=decay)
        self.backbone_runs = compiled.EAGER
        """How the backbone runs, in words."""
        self.compiled: compiled.Forward | None = None
        """The compiled backbone, where there is one."""
        self._is_prepared = False

    def prepare(self, batch: Batch) -> None:
        """Compile where the hardware asks for it, checked on this batch; does nothing when called again."""
        if self._is_prepared or not self.hardware.compiled:
            return
        self.compiled, self.backbone_runs = compiled.compile_backbone(
            self.model, lambda plain: self._pooled(batch, plain=plain)
        )
        self._is_prepared = True

    def close(self) -> None:
        """Let go of what was compiled, in the thread that took the steps; a later step would compile again."""
        if self._is_prepared:
            self.compiled, self._is_prepared = None, False
            compiled.release()

    def forward(self, batch: Batch) -> Forwarded:
        """Forward the source, then the target, or both as one batch, through the same weights; take the losses."""
        if self.compiled is not None:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with part("forward"), compiled.in_place(self.model, self.compiled):
            source, target = self._features(batch, self.hardware)
        terms = self.objective(
            source, target, labels_B=batch.labels_B, attributes_BM=batch.attributes_BM, mask_BM=batch.mask_BM
        )
        return Forwarded(source, target, terms)

    def update(self, terms: LossTerms, *, rate: float) -> None:
        """Move the weights, and their average, down the gradient of the total at this rate."""
        with part("backward"):
            terms.total.backward()  # type: ignore[no-untyped-call]
        with part("optimiser"):
            if self.config.optim.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm, foreach=True)
            set_rate(self.optimiser, rate)
            self.optimiser.step()
            # Before the next forward pass: CUDA graphs put the next gradients where these are.
            self.optimiser.zero_grad(set_to_none=True)
            self.model.keep_in_range()
            if self.average is not None:
                self.average.update()

    def _features(self, batch: Batch, hardware: Hardware) -> tuple[Features, Features | None]:
        loss = self.config.loss
        aligns = loss.lambda_aal > 0 or loss.lambda_mdal > 0
        target: Features | None = None
        with hardware.autocast():
            if batch.target_BCHW is not None and self.config.model.bn_mode == "joint":
                return self.model.forward_joint(batch.source_BCHW, batch.target_BCHW)
            source = self.model(batch.source_BCHW)
            if batch.target_BCHW is not None:
                with contextlib.nullcontext() if aligns else torch.no_grad():
                    target = self.model(batch.target_BCHW, domain="target")
        return source, target

    def _pooled(self, batch: Batch, *, plain: bool) -> Sequence[Tensor]:
        """Return the pooled features of a batch, in float32 throughout where they are to be plain."""
        hardware = dataclasses.replace(self.hardware, bf16=False) if plain else self.hardware
        return [features.pooled_BD for features in self._features(batch, hardware) if features is not None]
