"""What an epoch of a training and its test report, and the names of their metrics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from mmfa.ranking import RetrievalReport

REPORTED_RANKS = (1, 5, 10, 20)
"""CMC ranks among the metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """What one epoch gave."""

    epoch: int
    """Epochs finished, from 1."""
    num_epochs: int
    """Epochs of the whole training."""
    losses: Mapping[str, float]
    """Means over the epoch of the fields of :class:`LossTerms`, unweighted but ``total``."""
    mmd: Mapping[str, float]
    """Kernel diagnostics on the epoch's last batch; empty without target images."""
    grad_share: Mapping[str, float]
    """‖λ ∇L‖ of ``attr``, ``aal`` and ``mdal`` over ‖λ ∇L_id‖, on the pooled features of the last batch."""
    retrieval: Mapping[str, RetrievalReport]
    """``target_val`` after each epoch, ``source_val`` after the last; empty where nothing is held out."""
    learning_rate: float
    """Rate of the epoch's last step."""
    seconds: float
    """Wall time of the epoch, evaluation included."""
    images_per_second: float
    """Source and target images over the wall time of the steps alone."""
    ended_at: float
    """Unix seconds."""
    gem_p: float | None = None
    """Exponent of the pooling as learnt so far; none but for GeM."""
    backbone_runs: str = "eager"
    """``eager`` or how it was compiled, and after a semicolon why not otherwise."""
    system: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)
    """What the epoch took of its machine: ``system/…``, of which MLflow makes a page; see ``mmfa/usage.py``."""

    def metrics(self) -> dict[str, float]:
        """Return flat values by metric name: the one place where the names are defined."""
        values = {f"train/loss_{name}": value for name, value in self.losses.items()}
        values |= {f"mmd/{name}": value for name, value in self.mmd.items()}
        values |= {f"grad_share/{name}": value for name, value in self.grad_share.items()}
        for split, report in self.retrieval.items():
            values |= retrieval_metrics(split, report)
        values["train/learning_rate"] = self.learning_rate
        values["train/images_per_second"] = self.images_per_second
        values["train/seconds"] = self.seconds
        if self.gem_p is not None:
            values["model/gem_p"] = self.gem_p
        return {**values, **self.system}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the report that ``dataclasses.asdict`` took apart, also after a trip through JSON."""
        return cls(**{**values, "retrieval": _retrieval(values)})


@dataclass(frozen=True, kw_only=True, slots=True)
class TestReport:
    """What the one reading of the target's official test split gave."""

    retrieval: Mapping[str, RetrievalReport]
    """``target``; of a protocol with two directions their mean, beside ``target_a_to_b`` and ``target_b_to_a``."""
    attributes: Mapping[str, float]
    """Accuracies of the attribute heads on what source and target both annotate; empty where that is nothing."""

    def metrics(self) -> dict[str, float]:
        """Return flat values by metric name."""
        values: dict[str, float] = {}
        for split, report in self.retrieval.items():
            values |= retrieval_metrics(split, report)
        return values | {f"target/{name}": value for name, value in self.attributes.items()}

    def to_json(self) -> str:
        """Return JSON that :meth:`from_json` reads back exactly."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the report that ``dataclasses.asdict`` took apart, also after a trip through JSON."""
        return cls(retrieval=_retrieval(values), attributes=dict(values["attributes"]))


def retrieval_metrics(split: str, report: RetrievalReport) -> dict[str, float]:
    """Return ``{split}/mAP``, ``/mAP_trapezoid``, ``/mINP``, ``/rankK`` of :data:`REPORTED_RANKS`.

    And ``/mAP_cosine`` where it was computed.
    """
    values = {
        f"{split}/mAP": report.mAP,
        f"{split}/mAP_trapezoid": report.mAP_trapezoid,
        f"{split}/mINP": report.mINP,
        **{f"{split}/rank{k}": report.rank(k) for k in REPORTED_RANKS},
    }
    return values if report.mAP_cosine is None else values | {f"{split}/mAP_cosine": report.mAP_cosine}


def _retrieval(values: Mapping[str, Any]) -> dict[str, RetrievalReport]:
    return {split: RetrievalReport.from_dict(report) for split, report in values["retrieval"].items()}
