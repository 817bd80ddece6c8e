"""What the environment of a machine may not do to a study."""

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
