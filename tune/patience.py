"""Waiting for what comes back: an object store that fails for a while, a disk that is full for a while."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tune.places import first_line

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""How long it may take before a trial is given up, to be tried again."""
FULL = (errno.ENOSPC, errno.EDQUOT)
LONGEST_PAUSE = 30.0
Got = TypeVar("Got")


def patiently(call: Callable[[], Got], *, numbers: Collection[int] | None = None, seconds: float | None = None) -> Got:
    """Call until it succeeds.

    Args:
        call: Leaves nothing half done where it raises.
        numbers: Kinds of OSError that pass; all but a missing file where they are left out.
        seconds: How long to try.

    Raises:
        OSError: what the last call raised.
    """
    ends = time.monotonic() + (PATIENCE_SECONDS if seconds is None else seconds)
    pause = 1.0
    while True:
        try:
            return call()
        except OSError as error:
            passes = not isinstance(error, FileNotFoundError) if numbers is None else error.errno in numbers
            if not passes or time.monotonic() + pause > ends:
                raise
            logger.warning("trying again in %.0f s: %s", pause, first_line(error))
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def when_there_is_room(call: Callable[[], Got]) -> Got:
    """Call until the disk is not full."""
    return patiently(call, numbers=FULL)


def append(file: Path, line: str) -> None:
    """Add a line to a file, whole or not at all, when there is room."""

    def add() -> None:
        before = file.stat().st_size if file.exists() else 0
        try:
            with file.open("a") as stream:
                stream.write(line + "\n")
        except OSError:
            with suppress(OSError):
                os.truncate(file, before)
            raise

    when_there_is_room(add)
