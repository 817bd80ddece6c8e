"""What all tests share."""

import os
import shutil
from pathlib import Path

import pytest

from tune import environment

environment.settle()


@pytest.fixture(scope="session")
def embedded_cache():
    """The rendered pair, kept among test runs in a cache of its own (rendering takes half a minute)."""
    chosen = os.environ.get("MMFA_TEST_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmfa"


def pytest_runtest_setup(item):
    for marker, program in (("browser", "chromedriver"),):
        if item.get_closest_marker(marker) and shutil.which(program) is None:
            sentence = f"{program} is not installed (Debian: apt-get install chromium chromium-driver)"
            pytest.fail(sentence) if os.environ.get("CI") else pytest.skip(sentence)
