"""Aliases move to models that load and embed, ``candidate`` by the objective and ``champion`` by a verdict alone."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mmfa.config import profile
from mmfa.data import catalog
from mmfa.data.store import build, open_store
from mmfa.errors import MmfaError
from mmfa.evaluate import embed
from mmfa.training import Training
from tune import environment, promotion
from tune.lease import LeaseLostError
from tune.promotion import Promoted, promote_candidate, promote_champion, standing_champion

CONFIG = profile("embedded").with_overrides({"optim.average_decay": None, "model.id_head_width": 16})
NAME = "mmfa-pair"
SHARED = {"data.fingerprint": '{"a":"1"}', "protocol": "abc123"}
VERDICT = {
    "verdict": "BEATS",
    "verdict.against": "baseline",
    "verdict.delta": "0.0712",
    "verdict.p_adjusted": "0.01",
    "verdict.n": "5 and 5",
    "verdict.mean": "0.41",
}


@pytest.fixture(scope="module")
def stores(embedded_cache):
    names = ("embedded-source", "embedded-target")
    datasets = [catalog.load(name, data_root=None, cache_dir=embedded_cache) for name in names]
    return [open_store(build(dataset, cache_dir=embedded_cache, height=64, width=32)) for dataset in datasets]


@pytest.fixture(scope="module")
def training(stores):
    return Training(CONFIG, source=stores[0], target=stores[1], device="cpu")


@pytest.fixture(scope="module")
def exported(training, tmp_path_factory):
    return training.export(tmp_path_factory.mktemp("export") / "export")


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(empty_registry, tmp_path, monkeypatch):
    """A registry of its own, where MLflow as a whole looks for models."""
    uri = f"sqlite:///{shutil.copy(empty_registry, tmp_path / 'mlflow.db')}"
    with environment.mlflow_at(uri):
        monkeypatch.setattr(sys, "path", list(sys.path))  # a model that is loaded adds its code
        yield MlflowClient(uri)


@pytest.fixture
def make(client, stores, exported, tmp_path):
    """Return a function that gives a finished training of a study."""
    experiment = client.create_experiment("pair", (tmp_path / "artifacts").as_uri())
    known = {}

    def call(study="mine-1", lineage="search/0003", *, export=exported, check=lambda: None, **tags):
        if (study, lineage) not in known:
            known[study, lineage] = client.create_run(experiment).info.run_id
        fixed = {"mmfa.study": study, "mmfa.lineage": lineage, "selection.labels": "target_val", **SHARED}
        return Promoted(
            name=NAME,
            run_id=known[study, lineage],
            export=export,
            probe=stores[1].images[:4],
            tags={**fixed, "config": CONFIG.to_json(), **{name.replace("__", "."): tags[name] for name in tags}},
            check=check,
        )

    return call


def candidate(make, client, value, *args, objective="target_val/mAP", **kwargs):
    tags = {"objective": objective, "objective__value": repr(value), **kwargs}
    return promote_candidate(client, make(*args, **tags), value=value)


def champion(make, client, *args, challenged="", **kwargs):
    verdict = {name.replace(".", "__"): value for name, value in VERDICT.items()}
    return promote_champion(client, make(*args, **{**verdict, **kwargs}), challenged=challenged)


def alias(client, name):
    try:
        return client.get_model_version_by_alias(NAME, name)
    except MlflowException:
        return None


def test_the_models_name_is_its_pair():
    assert promotion.model_name("market1501", "dukemtmc-reid") == "mmfa-market1501-to-dukemtmc-reid"


def test_the_first_candidate_loads_and_embeds_as_it_was_evaluated(make, client, training, stores):
    said = candidate(make, client, 0.31)
    assert said == (
        f"Promoted: {NAME}@candidate is now version 1: the best that was found, by target_val/mAP (n = 1 seed)."
    )
    version = alias(client, "candidate")
    assert version.run_id == make().run_id and version.tags["objective.value"] == "0.31"
    assert version.tags["config"] == CONFIG.to_json() and version.tags["mmfa.lineage"] == "search/0003"
    assert alias(client, "champion") is None
    images = stores[1].images[10:14]
    found = mlflow.pyfunc.load_model(f"models:/{NAME}@candidate").predict(images)
    wanted = embed(training.model, images, np.arange(4), height=64, width=32, hardware=training.hardware)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_a_model_has_a_description_and_its_version_a_card(make, client):
    candidate(make, client, 0.31)
    about = client.get_registered_model(NAME).description
    assert "`candidate`: the best that a study found" in about and "Champions" not in about
    version = alias(client, "candidate")
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(f"models:/{NAME}/{version.version}", dst_path=folder)
        card = (Path(path) / "MODEL_CARD.md").read_text()
    assert card == f"# {NAME}\n\n{version.description}" and len(version.description) <= 5000
    assert "No verdict." in card and "In its search: 31.0 % `target_val/mAP` (n = 1)" in card


def test_a_candidate_that_is_not_better_does_not_take_the_alias(make, client):
    candidate(make, client, 0.31)
    for value in (0.30, 0.31):
        said = candidate(make, client, value, "mine-2")
        assert said == (
            f"Nothing was promoted: {NAME}@candidate stays version 1 of mine-1: it scored 31.0 %, this study's best "
            f"{100 * value:.1f} %."
        )
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1, "nothing was registered"
    assert "is now version 2" in candidate(make, client, 0.32, "mine-2")
    assert alias(client, "candidate").version in (2, "2")


def test_scores_without_labels_are_no_percent(make, client):
    candidate(make, client, 1.25, objective="label_free/score")
    said = candidate(make, client, -0.5, "mine-1", "search/0005", objective="label_free/score")
    assert said.endswith("it scored 1.25, this study's best -0.50.")
    said = candidate(make, client, -0.5, "mine-2", objective="label_free/score")
    assert "is now version 2" in said, "the unit of another study's score is another noise"


@pytest.mark.parametrize("other", [{"objective": "label_free/score"}, {"data__fingerprint": '{"a":"2"}'}])
def test_what_was_scored_otherwise_is_no_rival(make, client, other):
    candidate(make, client, 0.9)
    assert "is now version 2" in candidate(make, client, 0.1, "mine-2", **other)


def test_the_same_trial_again_was_promoted_before(make, client):
    candidate(make, client, 0.31)
    said = candidate(make, client, 0.31)
    assert said == f"Promoted before: {NAME}@candidate is this trial already (version 1)."
    assert "is now version 2" in candidate(make, client, 0.4, "mine-1", "search/0007"), "another trial of the study"


def test_a_champion_by_its_verdict(make, client):
    assert standing_champion(client, NAME, tags=SHARED) == (None, "")
    said = champion(make, client, "mine-1", "confirm/search-0003-s1000")
    assert said == f"Promoted: {NAME}@champion is now version 1, by its verdict."
    version = alias(client, "champion")
    assert "champion.since" in version.tags and "champion.until" not in version.tags
    assert alias(client, "candidate") is None
    standing, note = standing_champion(client, NAME, tags=SHARED)
    assert (standing.version, standing.config, standing.of, note) == ("1", CONFIG, "mine-1", "")


def test_the_next_champion_demotes_the_one_before(make, client):
    champion(make, client, "mine-1", "confirm/a-s1000")
    delta = {"verdict__delta": "0.025", "verdict__against": "champion", "verdict__n": "8 and 8"}
    assert "is now version 2" in champion(make, client, "mine-2", "confirm/b-s1000", challenged="1", **delta)
    first, second = (client.get_model_version(NAME, number) for number in ("1", "2"))
    assert first.tags["champion.beaten_by"] == "version 2"
    assert first.tags["champion.until"] == second.tags["champion.since"]
    assert str(alias(client, "champion").version) == "2" and "champion.until" not in second.tags
    title, newest, before = client.get_registered_model(NAME).description.splitlines()[-3:]
    assert title == "## Champions, by verdict alone"
    since = second.tags["champion.since"]
    assert newest == f"- version 2: since {since}; BEATS champion by +2.5 points of target mAP (n = 8 and 8), mine-2"
    assert before == (
        f"- version 1: since {first.tags['champion.since']} until {since}; BEATS baseline by +7.1 points of target mAP "
        "(n = 5 and 5), mine-1"
    )


def test_candidates_are_no_champions_in_the_history(make, client):
    candidate(make, client, 0.3)
    champion(make, client, "mine-1", "confirm/a-s1000")
    about, _, history = client.get_registered_model(NAME).description.partition("\n\n## Champions, by verdict alone\n")
    assert history.startswith("- version 2:") and "\n" not in history
    assert "**embedded-target**" in about and f'load_model("models:/{NAME}@champion")' in about
    assert str(alias(client, "candidate").version) == "1"


@pytest.mark.parametrize("challenged", ["", "1"])
def test_the_same_setting_again_was_promoted_before(make, client, challenged):
    champion(make, client, "mine-1", "confirm/a-s1000")
    said = champion(make, client, "mine-1", "confirm/a-s1000", challenged=challenged)
    assert said == f"Promoted before: {NAME}@champion is this setting already (version 1)."
    assert "champion.until" not in alias(client, "champion").tags
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1


@pytest.mark.parametrize(
    ("standing", "challenged", "against", "now"),
    [(1, "", "the baseline", "version 1"), (2, "1", "version 1", "version 2"), (0, "1", "version 1", "none")],
)
def test_a_champion_that_changed_meanwhile_is_not_replaced(make, client, standing, challenged, against, now):
    for index in range(standing):
        champion(make, client, f"mine-{index}", "confirm/a-s1000", challenged=str(index or ""))
    said = champion(make, client, "late-1", "confirm/z-s1000", challenged=challenged)
    start = f"{NAME}@champion was not moved: the verdict is against {against}, but the champion is now {now}; a study "
    assert said.startswith(start)
    found = alias(client, "champion")
    assert (found is None) if not standing else (str(found.version) == str(standing))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"data.fingerprint": '{"a":"2"}'}, "data.fingerprint"),
        ({"protocol": "def456"}, "protocol"),
        ({"data.fingerprint": "{}", "protocol": "def456"}, "data.fingerprint and protocol"),
    ],
)
def test_a_champion_of_other_data_or_protocol_cannot_be_challenged(make, client, changes, what):
    champion(make, client, "mine-1", "confirm/a-s1000")
    standing, note = standing_champion(client, NAME, tags={**SHARED, **changes})
    assert standing is None
    assert note == (
        f"{NAME}@champion (version 1) was judged on another {what} and cannot be challenged here; to let a new one "
        "stand, remove the alias in MLflow (its version stays)."
    )


@pytest.mark.parametrize("config", [None, '{"loss.lambda_gone":1.0}'])
def test_a_champion_whose_setting_is_not_known_cannot_be_challenged(make, client, config):
    champion(make, client, "mine-1", "confirm/a-s1000")
    client.delete_model_version_tag(NAME, "1", "config")
    if config is not None:
        client.set_model_version_tag(NAME, "1", "config", config)
    standing, note = standing_champion(client, NAME, tags=SHARED)
    assert standing is None and "was judged on another config" in note


def flipped(folder):
    content = bytearray((folder / "tensors.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "tensors.safetensors").write_bytes(content)


DAMAGES = {
    "a bit of the weights": flipped,
    "half of the weights": lambda folder: (folder / "tensors.safetensors").write_bytes(b"x" * 100),
    "no weights": lambda folder: (folder / "tensors.safetensors").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "no JSON": lambda folder: (folder / "state.json").write_text(json.dumps({"a": 1})[:-1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("promote", [lambda make, client, **kwargs: candidate(make, client, 0.9, **kwargs), champion])
def test_a_broken_export_gets_no_alias(make, client, exported, tmp_path, damage, promote):
    broken = shutil.copytree(exported, tmp_path / "broken")
    DAMAGES[damage](broken)
    with pytest.raises(MmfaError, match=rf"version 1 of {NAME} does not load or embed \(.*\); the alias was not moved"):
        promote(make, client, export=broken)
    assert alias(client, "candidate") is None and alias(client, "champion") is None


def test_a_broken_one_takes_the_alias_from_nobody(make, client, exported, tmp_path):
    champion(make, client, "mine-1", "confirm/a-s1000")
    candidate(make, client, 0.3)
    broken = shutil.copytree(exported, tmp_path / "broken")
    flipped(broken)
    for promote in (
        lambda: champion(make, client, "mine-2", "confirm/b-s1000", challenged="1", export=broken),
        lambda: candidate(make, client, 0.9, "mine-2", export=broken),
    ):
        with pytest.raises(MmfaError):
            promote()
    assert str(alias(client, "champion").version) == "1" and str(alias(client, "candidate").version) == "2"
    assert "champion.until" not in alias(client, "champion").tags
    assert "is now version 5" in candidate(make, client, 0.9, "mine-2"), "the way out is the intact model"


def test_a_broken_one_was_never_champion(make, client, exported, tmp_path):
    broken = shutil.copytree(exported, tmp_path / "broken")
    flipped(broken)
    with pytest.raises(MmfaError):
        champion(make, client, "mine-1", "confirm/a-s1000", export=broken)
    champion(make, client, "mine-2", "confirm/b-s1000")
    assert "version 1:" not in client.get_registered_model(NAME).description


def test_a_model_that_embeds_nan_gets_no_alias(make, client, stores, tmp_path):
    training = Training(CONFIG, source=stores[0], target=stores[1], device="cpu")
    with torch.no_grad():
        next(training.model.parameters()).fill_(torch.nan)
    export = training.export(tmp_path / "export")
    with pytest.raises(MmfaError, match=rf"version 1 of {NAME} embeds 4 images as \(4, \d+\); no alias was moved"):
        candidate(make, client, 0.9, export=export)
    assert alias(client, "candidate") is None


@pytest.mark.parametrize("promote", [lambda make, client, **kwargs: candidate(make, client, 0.9, **kwargs), champion])
def test_a_driver_that_was_overtaken_moves_no_alias(make, client, promote):
    def lost():
        raise LeaseLostError("taken over")

    with pytest.raises(LeaseLostError):
        promote(make, client, check=lost)
    assert alias(client, "candidate") is None and alias(client, "champion") is None
