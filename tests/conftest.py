"""What all tests share."""

import os
from pathlib import Path

import pytest

from mmfa.data import catalog
from tune import environment

environment.settle()


@pytest.fixture(scope="session")
def embedded_cache():
    """The rendered pair, kept among test runs: $MMFA_TEST_CACHE, or the cache folder that the command itself uses."""
    chosen = os.environ.get("MMFA_TEST_CACHE")
    return Path(chosen) if chosen else catalog.default_cache_dir()
