"""A recorded study, MLflow's own pages on it, and a browser."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import filelock
import pytest
import services
from browser_tests import browser
from integration_tests.driver import ROOT, Driver


def pytest_collection_modifyitems(items):
    """Skip by name where there is no browser; with MMFA_BROWSER=required that is an error."""
    own = [item for item in items if Path(__file__).parent in item.path.parents]
    if own and (reason := browser.missing()):
        if os.environ.get("MMFA_BROWSER") == "required":
            raise pytest.UsageError(f"MMFA_BROWSER=required, but there is {reason}")
        for item in own:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def studied(tmp_path_factory, embedded_cache):
    """The folder of a recorded study: $MMFA_STUDIES, or one that is run once for all processes of this test run."""
    if (given := os.environ.get("MMFA_STUDIES")) is not None:
        return Path(given).absolute()
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    smoke = (ROOT / "studies" / "smoke.toml").read_text()
    with filelock.FileLock(base / "studied.lock"):
        (base / "studied").mkdir(exist_ok=True)
        driver = Driver(base / "studied", cache=embedded_cache, study=smoke, quick=True)
        try:
            code, text = (0, "") if (driver.out / "report.html").exists() else driver.run()
        finally:
            driver.end()
    assert code == 0, text
    return driver.out


@pytest.fixture(scope="session")
def mlflow_ui(studied, tmp_path_factory):
    """The address of MLflow's pages on the study, served as ``make ui`` does."""
    port = services.free_port()
    log = tmp_path_factory.mktemp("mlflow") / "log.txt"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{studied / 'mlflow.db'}"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=log.parent,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        services.end(process)


@pytest.fixture
def page():
    """A page of 1400 × 900; an error in its console fails the test."""
    with browser.chromium(width=1400, height=900) as (page, errors):
        yield page
        assert errors == []
