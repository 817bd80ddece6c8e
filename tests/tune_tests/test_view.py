"""A study's view is kept where MLflow's Share button keeps it, once, and linked in the experiment."""

import base64
import json
import zlib

import pytest
from mlflow.tracking import MlflowClient

from tune import view

AXES = {"log10 λ1": "λ1", "log10 λ2": "λ2", "model.pooling": "model.pooling"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


@pytest.fixture
def experiment(client, request):
    return client.create_experiment(request.node.name)


def unpacked(text):
    saved = json.loads(text)
    head, _, rest = saved["state"].partition(";")
    assert head == "deflate" and saved["createdAt"] == saved["updatedAt"] == 1000500
    return saved["name"], json.loads(zlib.decompress(base64.b64decode(rest)))


def arranged(client, experiment, study, question="Which is best?"):
    view.arrange(client, experiment, study=study, question=question, axes=AXES, registered_at=1000.5)
    return client.get_experiment(experiment).tags


def test_every_study_has_its_view_and_its_link(client, experiment):
    for study in ("one-1", "two-2", "one-1"):
        tags = arranged(client, experiment, study)
    assert sorted(name for name in tags if name.startswith(view.TAG)) == [f"{view.TAG}one-1", f"{view.TAG}two-2"]
    lines = tags["mlflow.note.content"].splitlines()
    assert lines[:2] == [
        f"- [{study}](#/experiments/{experiment}/runs?viewStateShareKey={study}): Which is best?"
        for study in ("two-2", "one-1")
    ]
    assert lines[2:] == ["", view.ABOUT]


def test_what_somebody_wrote_into_the_description_stays(client, experiment):
    client.set_experiment_tag(experiment, "mlflow.note.content", "Ours, see the wiki.")
    arranged(client, experiment, "one-1")
    lines = arranged(client, experiment, "one-1", "Another question?")["mlflow.note.content"].splitlines()
    assert lines[0].endswith(": Another question?") and lines[1:] == ["", "Ours, see the wiki."]


def test_a_view_shows_the_study_best_first(client, experiment):
    name, found = unpacked(arranged(client, experiment, "one-1")[f"{view.TAG}one-1"])
    assert name == "one-1" and found["searchFilter"].startswith("tags.`mmfa.study` = 'one-1' and ")
    assert (found["orderByKey"], found["orderByAsc"]) == ("metrics.`Objective`", False)
    assert found["selectedColumns"][:3] == ["metrics.`Objective`", "metrics.`target/mAP`", "metrics.`target/rank1`"]
    assert {f"params.`Setting {name}`" for name in AXES.values()} <= set(found["selectedColumns"])
    charts = {chart["uuid"]: chart for chart in found["compareRunCharts"]}
    assert charts["settings-all"]["selectedParams"] == [f"Setting {name}" for name in AXES]
    assert charts["settings-all"]["selectedMetrics"] == ["Objective"]
    two = [charts["settings-two"][axis]["key"] for axis in ("xaxis", "yaxis", "zaxis")]
    assert two == ["Setting log10 λ1", "Setting log10 λ2", "Objective"]
    assert {chart["metricSectionId"] for chart in charts.values()} == {"settings", "curves"}


def test_one_setting_has_no_contour():
    kinds = [chart["type"] for chart in view.state("one-1", {"seed": "seed"})["compareRunCharts"]]
    assert kinds[:2] == ["PARALLEL", "SCATTER"] and "CONTOUR" not in kinds


def test_many_studies_stay_within_what_a_tag_holds(client, experiment):
    for number in range(60):
        tags = arranged(client, experiment, f"study-{number:04d}", "What was asked, in a hundred letters or so? " * 2)
    text = tags["mlflow.note.content"]
    assert len(text) <= view.LONGEST and text.endswith(view.ABOUT)
    assert "study-0059" in text and "study-0000" not in text
    assert all(len(value) <= view.LONGEST for value in tags.values())
