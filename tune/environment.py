"""Settings that Ray and MLflow read from the environment, most of them when they are imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default a dead server blocks a call for four minutes
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the live table is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # TensorBoard's start-up and flush cost more than a short trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # tune.launch has its own, which says how to continue
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: silent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


LOOPBACK = ("localhost", "127.0.0.1", "::1")


def settle() -> None:
    """Set what the user has not set; call it before anything imports Ray or MLflow.

    A server on this machine is never reached through a proxy, wherever ``HTTP_PROXY`` points.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if exempt != "*":
        hosts = [host.strip() for host in exempt.split(",") if host.strip()]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


@contextmanager
def mlflow_at(address: str) -> Iterator[None]:
    """Have MLflow look there within, and outside where it looked before.

    It finds registered models by its global addresses alone, the registry's before the tracking's. Whoever set the
    first and left it would have ``models:/…`` mean another database's model, in this process and in its children.
    """
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")  # where MLflow writes what is set
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before[names[0]])
        mlflow.set_registry_uri(before[names[1]])
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
