"""What a user can cause: every message states the rule, what came, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmfaError(Exception):
    """Base of all errors that a user can cause; the command line prints it as one sentence."""


class ConfigError(MmfaError):
    """A config field, study or option that does not hold."""


class DataError(MmfaError):
    """A dataset, image or store that is missing, odd or damaged."""


class CheckpointError(MmfaError):
    """A checkpoint that is corrupt or belongs to something else."""


class DivergedError(MmfaError):
    """A loss became non-finite: the training ends here, and for good."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or the list of all of them: how a sentence ends."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(known)}."
