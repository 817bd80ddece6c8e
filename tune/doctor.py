"""The MMD doctor: an alignment term that looks like a healthy loss and does nothing is named.

With d² in the hundreds and bandwidths of 1 to 10 every off-diagonal kernel is 0: L_MDAL sits at 1/n_S + 1/n_T whatever
the features do, and its gradient is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DEAD = "L_MDAL sat on its plateau 1/n_S + 1/n_T: the kernel was dead and λ3 did nothing"


def dead_epochs(config: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the epochs at whose end the kernel of a term that was to align was dead.

    Args:
        config: of the trial, by dotted names.
        history: its epochs, with their metrics.
    """
    if not aligns(config):
        return []
    return [report["epoch"] for report in history if report["metrics"].get("mmd/plateau")]


def aligns(config: Mapping[str, Any]) -> bool:
    """Return whether L_MDAL is meant to act: λ3 above 0, and target images to act on."""
    return bool(config["loss.lambda_mdal"] > 0 and config["data.use_target"])


def warning(name: str, liveness: float) -> str:
    """Return what is said of a trial whose kernel is dead after its first epoch."""
    return (
        f"{name}: the kernel of L_MDAL is dead (mean off-diagonal kernel {liveness:.1e}): the loss sits on its plateau "
        "1/n_S + 1/n_T and λ3 does nothing. Use kernel.scale = dim, median or l2norm, or far wider bandwidths."
    )
