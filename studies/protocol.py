"""How a study chooses and how it comes to a verdict: the part of a study file that is fixed before the first trial."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic


class Strict(pydantic.BaseModel):
    """A table of a study file: no unknown keys, no guessing of types."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


CRITERIA = ("cluster/silhouette", "pseudo/xcam_mAP", "source_val/mAP", "attributes/information")
"""What ``label_free/score`` may be made of."""

Labels = Literal["target_val", "none", "oracle"]
LABELS: dict[str, Labels] = {"target_val/mAP": "target_val", "label_free/score": "none", "target/mAP": "oracle"}
"""Which labels of the target an objective reads."""


class Objective(Strict):
    """What a trial is scored by: its choice decides which labels of the target are used to choose."""

    metric: Literal["target_val/mAP", "label_free/score", "target/mAP"] = "target_val/mAP"
    selection: Labels | None = None
    """Which labels that reads; it must be written down, as ``oracle``, where the official test labels choose."""
    weights: dict[str, float] = {
        "pseudo/xcam_mAP": 1.0,
        "source_val/mAP": 1.0,
        "cluster/silhouette": 0.5,
        "attributes/information": 0.25,
    }
    """Of the criteria in ``label_free/score``; fixed before the first trial."""

    @property
    def labels(self) -> Labels:
        """``target_val``, ``none`` or ``oracle``."""
        return LABELS[self.metric]

    @pydantic.model_validator(mode="after")
    def _declared(self) -> Objective:
        if self.selection is None and self.labels == "oracle":
            raise ValueError(
                "`metric` target/mAP chooses by the official test labels, which makes every number that it produced an "
                'oracle\'s; write selection = "oracle" beside it, or use target_val/mAP'
            )
        if self.selection not in (None, self.labels):
            raise ValueError(f"`selection` of {self.metric} is {self.labels!r}, but got {self.selection!r}")
        unknown = sorted(set(self.weights) - set(CRITERIA))
        if unknown or not self.weights or not all(0 < weight < math.inf for weight in self.weights.values()):
            raise ValueError(f"`weights` are above 0, of {', '.join(CRITERIA)}, but got {self.weights}")
        return self


class Criteria(Strict):
    """Settings of the label-free criteria, the same for all trials of a study."""

    k: int = pydantic.Field(default=40, ge=2)
    """Clusters of ``cluster/silhouette``."""
    eps: float = pydantic.Field(default=0.6, gt=0, lt=1)
    """DBSCAN's radius in Jaccard distance for ``pseudo/xcam_mAP``."""
    min_samples: dict[str, Annotated[int, pydantic.Field(ge=1)]] = {"paper": 4, "embedded": 2}
    """DBSCAN's core size by profile: the embedded pair has about three images of an identity."""


class Protocol(Strict):
    """How a study comes to a verdict; written down before the first trial."""

    baseline_seeds: int = pydantic.Field(default=3, ge=1)
    """R0: seeds of the baseline and of each control; they tell the seed noise."""
    shortlist: int = pydantic.Field(default=1, ge=1, le=3)
    """k: settings that go on to be confirmed; in a search with arms, the best of each arm does."""
    confirm_seeds: int = pydantic.Field(default=5, ge=2)
    """R: fresh seeds of each shortlisted setting, of its matched control and of the baseline; may only grow."""
    delta_min: float = pydantic.Field(default=1.0, ge=0)
    """Smallest difference that matters, in points of target mAP."""
    planned_effect: float = pydantic.Field(default=7.0, gt=0)
    """Difference in points for which the power is told."""
    judge: list[Annotated[list[str], pydantic.Field(min_length=2, max_length=2)]] = []
    """Pairs of arms, ``[candidate, against]``, that get a verdict of their own."""


NO_PRUNING = "needs an objective that is there after every epoch, target_val/mAP"


class Pruning(Strict):
    """Asynchronous successive halving (ASHA): unpromising trials of the search end early."""

    grace_period: int = pydantic.Field(ge=1)
    """Epochs that every trial is trained; take what the fidelity report of an unpruned study recommends."""
    reduction_factor: int = pydantic.Field(default=3, ge=2)
    """One trial in so many goes on at each rung."""
