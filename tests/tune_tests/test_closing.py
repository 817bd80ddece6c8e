"""What a person is told at the end."""

import getpass
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mmfa_tests.conftest import tiny_store
from tune_tests.made_up import MadeUp, searching

import mmfa.data.store
from mmfa.config import profile
from mmfa.training import Training
from tune import cli, environment, study_pictures
from tune.closing import tunnel_to
from tune.report import writing

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


SMALL = {
    "optim.average_decay": None, "model.id_head_width": 16, "data.num_val_ids": 0, "data.source_batch": 8,
    "data.target_batch": 8, "data.image_height": 32, "data.image_width": 16, "data.store_height": 32,
    "data.store_width": 16, "run.precision": "fp32",
}  # fmt: skip


@pytest.fixture
def confirmed(tmp_path, monkeypatch):
    """A study that BEATS on five fresh seeds, whose trainings left models; it has not run yet."""
    named = (("embedded-source", 1), ("embedded-target", 2))
    stores = {name: tiny_store(name, seed=seed) for name, seed in named}
    for module in (mmfa.data.store, study_pictures):
        monkeypatch.setattr(module, "open_store", lambda path: stores[path.name])
    source, target = stores.values()
    training = Training(profile("embedded").with_overrides(SMALL), source=source, target=target, device="cpu")
    study = MadeUp(
        tmp_path / "out", searching(trials=6, confirm_seeds=5), export=training.export(tmp_path / "export"),
        paths={name: Path(name) for name in stores}, promote="champion",
    )  # fmt: skip
    with environment.mlflow_at(study.session.request.places.tracking):
        monkeypatch.setattr(sys, "path", list(sys.path))  # a model that is loaded adds its code
        yield study


@pytest.mark.nightly
def test_a_champion_has_its_card_and_the_page_its_pictures_wherever_it_is_made_again(confirmed, tmp_path):
    assert confirmed.run() == 0
    places = confirmed.session.request.places
    client = MlflowClient(places.tracking)
    card = client.get_model_version_by_alias("mmfa-embedded-source-to-embedded-target", "champion").description
    for told in ("BEATS the baseline by +", "over n = 5 and 5 fresh seeds", "Alignment's share of it is "):
        assert told in card, card
    page = (confirmed.out / writing.PAGE).read_bytes()
    assert b"One training each. Both have the same setting and seed but for alignment" in page
    where = ["--ledger", places.ledger, "--tracking-uri", places.tracking, "--out", str(tmp_path / "elsewhere")]
    assert cli.main(["report", "--study-run", confirmed.study_id, *where]) == 0
    assert (tmp_path / "elsewhere" / writing.PAGE).read_bytes() == page
