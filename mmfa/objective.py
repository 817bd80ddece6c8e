"""The losses of one step: eq. 1, 2, 3 and 6, and their weighted sum, eq. 7.

Shapes: B images, K identities, M attributes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmfa.config import KernelConfig, LossConfig
from mmfa.mmd import squared_mmd
from mmfa.model import Features
from mmfa.trace import part


class LossTerms(NamedTuple):
    """Scalars of one step, unweighted but ``total``."""

    total: Tensor
    """Eq. 7."""
    identity: Tensor
    """Eq. 1."""
    attribute: Tensor
    """Eq. 2."""
    aal: Tensor
    """Eq. 3."""
    mdal: Tensor
    """Eq. 6."""


class Objective:
    """Eq. 7 with the weights of one trial.

    A term of weight 0 is computed for the report, without a graph, and does not enter the sum: 0 times infinity would.

    Args:
        loss: the weights λ.
        kernel: the kernel of both alignment terms.
    """

    def __init__(self, loss: LossConfig, kernel: KernelConfig) -> None:
        self.weights = {
            "identity": loss.lambda_id,
            "attribute": loss.lambda_attr,
            "aal": loss.lambda_aal,
            "mdal": loss.lambda_mdal,
        }
        self.kernel = kernel

    def __call__(
        self, source: Features, target: Features | None, *, labels_B: Tensor, attributes_BM: Tensor, mask_BM: Tensor
    ) -> LossTerms:
        """Return the terms of one step.

        Args:
            source: features of labelled images, with identity logits.
            target: features of unlabelled images; None makes both alignment terms 0.
            labels_B: class of each source image.
            attributes_BM: 0 or 1.
            mask_BM: true where annotated; the rest is left out of eq. 2 and of its mean.
        """
        identity_BK = source.identity_BK
        assert identity_BK is not None
        losses: dict[str, Callable[[], Tensor]] = {
            "identity": lambda: functional.cross_entropy(identity_BK, labels_B),
            "attribute": lambda: attribute_loss(source.attributes_BM, attributes_BM, mask_BM),
            "aal": lambda: self._aal(source, target),
            "mdal": lambda: self._mdal(source, target),
        }
        terms = {name: self._term(name, loss) for name, loss in losses.items()}
        with part("losses"):
            weighted = [self.weights[name] * term for name, term in terms.items() if self.weights[name] > 0]
            return LossTerms(torch.stack(weighted).sum(), **terms)

    def _term(self, name: str, loss: Callable[[], Tensor]) -> Tensor:
        watched = part("alignment" if name in ("aal", "mdal") else "losses")
        with watched, contextlib.nullcontext() if self.weights[name] > 0 else torch.no_grad():
            return loss()

    def _aal(self, source: Features, target: Features | None) -> Tensor:
        if target is None or source.attributes_BM.shape[1] == 0:
            return source.pooled_BD.new_zeros(())
        return squared_mmd(
            source.aligned_attributes(),
            target.aligned_attributes(),
            bandwidths=self.kernel.alphas,
            scale=self.kernel.scale,
        ).mean()

    def _mdal(self, source: Features, target: Features | None) -> Tensor:
        if target is None:
            return source.pooled_BD.new_zeros(())
        return squared_mmd(
            source.pooled_BD[:, None],
            target.pooled_BD[:, None],
            bandwidths=self.kernel.alphas,
            scale=self.kernel.scale,
        ).sum()


def attribute_loss(outputs_BM: Tensor, attributes_BM: Tensor, mask_BM: Tensor) -> Tensor:
    """Return the sigmoid cross-entropy averaged over annotated entries (eq. 2); 0 where there are none."""
    losses_BM = functional.binary_cross_entropy_with_logits(outputs_BM, attributes_BM, reduction="none")
    return torch.where(mask_BM, losses_BM, 0).sum() / mask_BM.sum().clamp(min=1)
