"""What all tests share."""

import os
from pathlib import Path

import pytest
import services

from mmfa.data import catalog
from tune import environment

environment.settle()


@pytest.fixture(scope="session")
def embedded_cache():
    """The rendered pair, kept among test runs: $MMFA_TEST_CACHE, or the cache folder that the command itself uses."""
    chosen = os.environ.get("MMFA_TEST_CACHE")
    return Path(chosen) if chosen else catalog.default_cache_dir()


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3 server for this process: its environment is set while the tests run."""
    with services.s3(tmp_path_factory.mktemp("s3") / "log.txt") as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield services.client(found["AWS_ENDPOINT_URL"])


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_set():
    """Fail a module that leaves MLflow's global addresses set: a later one would be given another one's models."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = [os.environ.get(name) for name in names]
    yield
    assert [os.environ.get(name) for name in names] == before
