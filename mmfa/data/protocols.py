"""Which images of a dataset are queries and which gallery, by the dataset's protocol."""

from __future__ import annotations

from mmfa.data.records import Domain, Ints


def directions(domain: Domain) -> dict[str, tuple[Ints, Ints]]:
    """Return the query and gallery rows of each direction, by the suffix of its metrics; "" is the only one."""
    return {"": (domain.rows("query"), domain.rows("gallery"))}
