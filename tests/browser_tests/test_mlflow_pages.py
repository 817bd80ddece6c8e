"""MLflow's own pages on a recorded study: what is arranged for them is what they show."""

import json
import re
import urllib.parse

import pytest
from browser_tests import browser
from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(studied):
    return MlflowClient(f"sqlite:///{studied / 'mlflow.db'}")


@pytest.fixture(scope="module")
def runs(client):
    """The runs of the study that was last at work, by the name of the training; the study's own by ""."""
    found = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    newest = max(found, key=lambda run: run.info.end_time).data.tags["mmfa.study"]
    return {run.data.tags.get("mmfa.lineage", ""): run for run in found if run.data.tags.get("mmfa.study") == newest}


def trials(runs):
    """Return the trials, best first."""
    found = [run for lineage, run in runs.items() if lineage.startswith("search/")]
    return sorted(found, key=lambda run: -run.data.metrics["Objective"])


def page_of(mlflow_ui, run):
    return f"{mlflow_ui}/#/experiments/{run.info.experiment_id}/runs"


def test_the_list_of_runs_in_the_study_s_view(page, mlflow_ui, runs, tmp_path):
    """The experiment's description leads to it: columns that matter, the best first."""
    study, searched = runs[""], trials(runs)
    page.goto(page_of(mlflow_ui, study))
    # Where the link is clicked before the first list is there, MLflow may show the first one's answer.
    page.get_by_text("matching runs").wait_for()
    link = page.get_by_role("link", name=study.data.tags["mmfa.study"], exact=True).first
    link.evaluate("link => link.removeAttribute('target')")
    link.click()
    page.get_by_text(f"{len(searched)} matching runs").wait_for()
    for column in ("Objective", "target/mAP", "target/rank1", "Setting λ1"):
        page.get_by_role("columnheader", name=column).first.wait_for()
    first = page.locator("[row-index='0'] a").first
    assert first.inner_text().startswith(searched[0].data.tags["mmfa.lineage"])
    browser.screenshot(page, "mlflow-runs", tmp_path)


def test_the_charts_of_the_study_s_view(page, mlflow_ui, runs, tmp_path):
    study = runs[""]
    page.goto(f"{page_of(mlflow_ui, study)}?viewStateShareKey={study.data.tags['mmfa.study']}&compareRunsMode=CHART")
    searched = sorted(name for name in runs["search/0000"].data.params if name.startswith("Setting log10 "))
    axes = page.locator("svg text.label")
    axes.last.wait_for()
    titles = axes.all_text_contents()
    assert len(titles) == len(searched) + 1 and titles[-1] == "Objective"
    page.get_by_text("Settings and results").wait_for()
    page.get_by_text(f"{searched[0]} vs. Objective").wait_for()
    page.locator(".js-plotly-plot .scatterlayer .point").first.wait_for()
    browser.screenshot(page, "mlflow-charts", tmp_path)


def test_three_trials_compared(page, mlflow_ui, runs, tmp_path):
    """What MLflow chooses by itself is what the study varies, against its objective."""
    baseline = runs["search/0000"]
    three = [baseline, *[run for run in trials(runs) if run is not baseline][:2]]
    chosen = urllib.parse.quote(json.dumps([run.info.run_id for run in three]))
    experiments = urllib.parse.quote(json.dumps([baseline.info.experiment_id]))
    page.goto(f"{mlflow_ui}/#/compare-runs?runs={chosen}&experiments={experiments}")
    page.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for()
    wanted = sorted(name for name in baseline.data.params if name.startswith("Setting "))[:3]
    page.locator(".axis-title", has_text="Objective").wait_for()
    assert page.locator(".axis-title").all_text_contents() == [*wanted, "Objective"]
    for run in three:
        page.get_by_text(run.info.run_name).first.wait_for()
    browser.screenshot(page, "mlflow-compare", tmp_path)
    for tab, x, y in (("Scatter Plot", wanted[0], "Objective"), ("Contour Plot", wanted[0], wanted[1])):
        page.get_by_role("tab", name=tab).click()
        page.locator(".xtitle", has_text=x).wait_for()
        page.locator(".ytitle", has_text=y).wait_for()


def test_the_study_s_own_page(page, mlflow_ui, runs, client, tmp_path):
    study = runs[""]
    page.goto(f"{page_of(mlflow_ui, study)}/{study.info.run_id}")
    page.get_by_text("Found:").wait_for()
    page.get_by_text(study.data.tags["question"]).first.wait_for()
    page.get_by_text("embedded-source (").first.wait_for()  # the dataset, with its fingerprint
    page.get_by_role("link", name=re.compile("^(search|controls|confirm).[a-z0-9]")).first.wait_for()  # a child
    browser.screenshot(page, "mlflow-study", tmp_path)
    page.goto(f"{page_of(mlflow_ui, study)}/{study.info.run_id}/artifacts")
    names = [file.path for file in client.list_artifacts(study.info.run_id)]
    assert {"study.toml", "resolved.json", "result.txt"} <= set(names)
    for name in names:
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text("study.toml", exact=True).first.click()
    page.get_by_text("[protocol]").first.wait_for()


def test_the_registered_model(page, mlflow_ui, client, tmp_path):
    (model,) = client.search_registered_models()
    page.goto(f"{mlflow_ui}/#/models/{model.name}")
    page.get_by_text("Embeds images of pedestrians").wait_for()
    page.get_by_text("candidate").nth(1).wait_for()
    browser.screenshot(page, "mlflow-model", tmp_path)
    alias = "champion" if "champion" in model.aliases else "candidate"
    page.goto(f"{mlflow_ui}/#/models/{model.name}/versions/{model.aliases[alias]}")
    word = "BEATS" if alias == "champion" else "No verdict."
    for told in (word, "Limits:", "surveillance technology", "Mid-level Feature Alignment Network"):
        page.get_by_text(told).first.wait_for()
    browser.screenshot(page, "mlflow-version", tmp_path)
