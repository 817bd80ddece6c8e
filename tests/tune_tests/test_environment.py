"""What the environment of a machine may not do to a study."""

import os
import urllib.request

import pytest

from tune import environment


@pytest.mark.parametrize("given", ["", "intranet.example", "*"])
def test_a_server_on_this_machine_is_not_asked_for_through_a_proxy(monkeypatch, given):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", given)
    monkeypatch.setenv("NO_PROXY", given)
    environment.settle()
    assert all(urllib.request.proxy_bypass(host) for host in environment.LOOPBACK)
    assert bool(urllib.request.proxy_bypass("intranet.example")) == bool(given)
    assert bool(urllib.request.proxy_bypass("example.org")) == (given == "*")


@pytest.mark.parametrize(
    "before", [{}, {"MLFLOW_TRACKING_URI": "sqlite:///a.db", "MLFLOW_REGISTRY_URI": "sqlite:///b.db"}]
)
def test_mlflow_looks_elsewhere_within_alone(before, monkeypatch):
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, before[name]) if name in before else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.setattr("mlflow.tracking._model_registry.utils._registry_uri", None)
    addresses = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    with pytest.raises(KeyError), environment.mlflow_at("sqlite:///c.db"):
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == ("sqlite:///c.db", "sqlite:///c.db")
        raise KeyError
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == addresses
    assert {
        name: value for name, value in os.environ.items() if name.startswith("MLFLOW_") and name.endswith("_URI")
    } == before
