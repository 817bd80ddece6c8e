"""What was counted in a dataset, against what its authors published."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mmfa.errors import DataError

logger = logging.getLogger(__name__)


def differences(found: Mapping[str, int], published: Mapping[str, int]) -> list[str]:
    """Return ``"what: n found, m published"`` of each published count that is not met."""
    return [
        f"{what}: {found[what]:,} found, {number:,} published"
        for what, number in published.items()
        if found[what] != number
    ]


def check(title: str, found: Mapping[str, int], published: Mapping[str, int], *, strict: bool) -> None:
    """Compare counts with the published ones: people use subsets, but never without knowing it.

    Raises:
        DataError: they differ and ``strict`` is set; otherwise a warning is logged.
    """
    odd = differences(found, published)
    if odd and strict:
        raise DataError(
            f"{title} must have its published counts with strict counts, but got {'; '.join(odd)}; "
            "restore the missing files or allow subsets."
        )
    if odd:
        logger.warning("NOT THE PUBLISHED %s, results will not compare with others': %s", title, "; ".join(odd))
