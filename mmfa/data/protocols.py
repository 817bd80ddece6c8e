"""Which images are queries of which gallery, and how sure a mean over the ten splits is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmfa.data.records import Domain, Ints
from mmfa.data.two_camera import VIPER
from mmfa.errors import DataError


def directions(domain: Domain) -> dict[str, tuple[Ints, Ints]]:
    """Return the query rows and the gallery rows of each direction in which a domain is tested.

    Args:
        domain: with its split assigned.

    Returns:
        ``{"": (query, gallery)}`` under the single-query protocol of Market-1501 and for PRID 2011 (view A in view B);
        ``{"a_to_b": ..., "b_to_a": ...}`` for VIPeR, whose result is the mean of both.

    Raises:
        DataError: a domain without queries or gallery, such as an unlabelled one.
    """
    query, gallery = domain.rows("query"), domain.rows("gallery")
    if not (len(query) and len(gallery)):
        if not domain.labelled:
            raise DataError(f"A test needs identities, but {domain.name} is unlabelled; test on a labelled dataset.")
        raise DataError(
            f"A test needs queries and a gallery, but {domain.name} has {len(query)} and {len(gallery)} of them; "
            "assign its split, or restore the images."
        )
    if domain.name == VIPER.name:
        return {"a_to_b": (query, gallery), "b_to_a": (gallery, query)}
    return {"": (query, gallery)}


def overlapping_error(values: Sequence[float], *, test_share: float) -> float:
    """Return the standard error of a mean over splits that share images (Nadeau and Bengio, 2003).

    The ordinary one, sqrt(var / J), takes the J splits for independent and is 3.3 times too small for ten halves.

    Args:
        values: one per split; two or more.
        test_share: tested identities over training identities, 1 for halves.

    >>> round(overlapping_error([0.0, 1.0], test_share=1.0), 4)
    0.866
    """
    return math.sqrt((1 / len(values) + test_share) * float(np.var(values, ddof=1)))
