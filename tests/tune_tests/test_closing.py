"""What a person is told at the end."""

import getpass

import pytest

from tune.closing import tunnel_to

OVER_SSH = {"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.9 22"}


@pytest.mark.parametrize(
    ("tracking", "environment", "port"),
    [
        ("sqlite:////data/out/mlflow.db", OVER_SSH, "5000"),
        ("http://127.0.0.1:5050", OVER_SSH, "5050"),
        ("http://mlflow.lab:5000", OVER_SSH, None),  # reached by its name
        ("sqlite:////data/out/mlflow.db", {}, None),
        ("sqlite:////data/out/mlflow.db", {"SSH_CONNECTION": ""}, None),
    ],
)
def test_whoever_came_over_ssh_is_told_of_the_tunnel(tracking, environment, port):
    tunnel = f"ssh -L {port}:127.0.0.1:{port} -p 22 {getpass.getuser()}@192.0.2.9"
    assert tunnel_to(tracking, environment) == (None if port is None else tunnel)
