"""What is watched while a training runs: its losses, its kernels, and how much each term pulls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmfa.config import KernelConfig
from mmfa.errors import DivergedError
from mmfa.mmd import kernel_report
from mmfa.model import Features
from mmfa.objective import LossTerms

CHECK_EVERY = 50
"""Steps between looks at the losses."""

_TERMS_CHECKED = ("identity", "attribute", "aal", "mdal", "total")
"""The sum last: the term that broke it is the one to name."""

_SHARES = {"attr": "attribute", "aal": "aal", "mdal": "mdal"}
"""Metric name to loss term."""


class LossLog:
    """Losses of one epoch, kept on the device and looked at every :data:`CHECK_EVERY` steps.

    A look waits for nothing: what it sends for from a GPU is read by the next one.

    Args:
        epoch: from 1, for the message.
    """

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._pending: list[Tensor] = []
        self._sent: list[tuple[Tensor, torch.cuda.Event | None]] = []
        self._seen: list[list[float]] = []

    def add(self, terms: LossTerms) -> None:
        """Take the terms of the next step.

        Raises:
            DivergedError: a term of this step or of an earlier one is not finite.
        """
        self._pending.append(torch.stack(terms).detach())
        if len(self._pending) == CHECK_EVERY:
            self._send()
            self._read(but=1 if terms.total.device.type == "cuda" else 0)

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the steps so far.

        Raises:
            DivergedError: a term is not finite.
        """
        self._send()
        self._read(but=0)
        return dict(zip(LossTerms._fields, np.mean(self._seen, axis=0).tolist(), strict=True))

    def _send(self) -> None:
        if self._pending:
            values = torch.stack(self._pending).to("cpu", non_blocking=True)
            device = self._pending[0].device
            on_gpu = device.type == "cuda"
            self._sent.append((values, torch.cuda.current_stream(device).record_event() if on_gpu else None))
            self._pending.clear()

    def _read(self, *, but: int) -> None:
        """Look at all that was sent but the last so many times."""
        while len(self._sent) > but:
            rows, event = self._sent.pop(0)
            if event is not None:
                event.synchronize()
            for values in rows.tolist():
                self._seen.append(values)
                self._check(dict(zip(LossTerms._fields, values, strict=True)))

    def _check(self, values: Mapping[str, float]) -> None:
        for name in _TERMS_CHECKED:
            if not math.isfinite(values[name]):
                raise DivergedError(
                    f"epoch {self._epoch}, step {len(self._seen)}: train/loss_{name} is {values[name]}."
                )


def kernel_metrics(source: Features, target: Features, *, kernel: KernelConfig) -> dict[str, float]:
    """Return what the kernel makes of the pooled features and, where there are attributes, of what L_AAL aligns."""
    deep = kernel_report(
        source.pooled_BD[:, None], target.pooled_BD[:, None], bandwidths=kernel.alphas, scale=kernel.scale
    )
    metrics = {
        "kernel_liveness": deep.liveness,
        "median_d2": deep.median_d2,
        "plateau": float(deep.plateau),
        "unbiased": deep.unbiased,
    }
    if source.attributes_BM.shape[1]:
        attributes = kernel_report(
            source.aligned_attributes(), target.aligned_attributes(), bandwidths=kernel.alphas, scale=kernel.scale
        )
        metrics |= {"attribute_liveness": attributes.liveness, "attribute_unbiased": attributes.unbiased}
    return metrics


def grad_shares(terms: LossTerms, pooled: Sequence[Tensor], *, weights: Mapping[str, float]) -> dict[str, float]:
    """Return ‖λ ∇L‖ of ``attr``, ``aal`` and ``mdal`` over ‖λ ∇L_id‖, with respect to the pooled features.

    Call it before the backward pass, whose graph and result it leaves as they are.

    Args:
        terms: of one step.
        pooled: pooled features of source and, where there is one, target.
        weights: λ by term; a term of weight 0 has share 0.

    Returns:
        three shares, or none where the identity loss does not train.
    """
    norms = {name: _norm(weights[name] * getattr(terms, name), pooled) for name in weights}
    if norms["identity"] == 0:
        return {}
    return {share: norms[name] / norms["identity"] for share, name in _SHARES.items()}


def _norm(loss: Tensor, pooled: Sequence[Tensor]) -> float:
    reached = [features for features in pooled if features.requires_grad]
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, reached, retain_graph=True, allow_unused=True)
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm().item() if norms else 0.0
