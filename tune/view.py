"""The view in which MLflow shows a study at once: columns, order and charts, as its own menu *Views* keeps them.

MLflow has no default columns for an experiment. What it has are saved views: a tag of the experiment holds one, and a
link opens it. Here each study gets one, and the experiment's description links them. On its page *Compare* MLflow
takes the first names by ASCII: :data:`OBJECTIVE` and :data:`SETTING` are what it finds there.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.tracking import MlflowClient

OBJECTIVE = "Objective"
"""Metric: the study's objective, whatever it is called."""
SETTING = "Setting"
"""Begins the params that tell the trainings of a study apart."""
LOG = "log10 "
"""Begins, after that, those of a logarithmic range."""
NOTE = "mlflow.note.content"
"""Tag that MLflow shows as a description, as Markdown."""
TAG = "mlflow.sharedViewState."
"""Begins the experiment's tags that hold views; the rest is what a link names."""
COLUMNS = ("target/mAP", "target/rank1", "mmd/kernel_liveness")
"""Metrics beside the objective."""
CURVES = ("train/loss_total", "mmd/kernel_liveness", "grad_share/attr", "grad_share/aal", "grad_share/mdal")
"""What is drawn over the epochs, after the objective."""
LONGEST = 5000
"""Characters that MLflow's database has for a tag of an experiment."""
ABOUT = (
    "Trainings of MMFA (Multi-task Mid-level Feature Alignment). A study is a run with its trainings below it; what it "
    "asked and found stands in its description. Its view, here and under *Views*, arranges them for comparison."
)


def arrange(
    client: MlflowClient, experiment: str, *, study: str, question: str, axes: Mapping[str, str], registered_at: float
) -> None:
    """Keep the view of a study in its experiment, and link it there; doing it again changes nothing.

    Args:
        client: MLflow client.
        experiment: Id of the experiment.
        study: The study's name, also the view's.
        question: What it asks.
        axes: What its trainings differ in: the name of each setting, by that of its axis.
        registered_at: Unix seconds at which the study was.
    """
    tags = client.get_experiment(experiment).tags
    key = urllib.parse.quote(study)
    link = f"- [{study}](#/experiments/{experiment}/runs?viewStateShareKey={key}): {' '.join(question.split())}"
    at = int(1000 * registered_at)
    view = {"name": study, "createdAt": at, "updatedAt": at, "state": packed(state(study, axes))}
    wanted = {f"{TAG}{study}": json.dumps(view), NOTE: _linked(tags.get(NOTE, ABOUT), study, link)}
    for name, value in wanted.items():
        if tags.get(name) != value:
            client.set_experiment_tag(experiment, name, value)


def _linked(text: str, study: str, link: str) -> str:
    """Return a description with a study's link in it, the newest study first: MLflow shows the beginning only.

    Where the links become too many the oldest ones go.
    """
    lines = text.splitlines()
    links = [line for line in lines if line.startswith("- [")]
    rest = "\n".join(line for line in lines if not line.startswith("- [")).strip()
    own = next((number for number, line in enumerate(links) if line.startswith(f"- [{study}](")), None)
    links = [link, *links] if own is None else [*links[:own], link, *links[own + 1 :]]
    while len("\n".join(links)) + len(rest) + 2 > LONGEST and len(links) > 1:
        del links[-1]
    return "\n".join([*links, "", rest])[:LONGEST]


def packed(view: dict[str, Any]) -> str:
    """Return a view's state as MLflow writes it: deflated JSON in base64."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()


def state(study: str, axes: Mapping[str, str]) -> dict[str, Any]:
    """Return the state of MLflow's page of runs: a study's trials, the best by its objective first."""
    columns = [f"metrics.`{name}`" for name in (OBJECTIVE, *COLUMNS)]
    columns += [f"params.`{SETTING} {name}`" for name in axes.values()]
    columns += ["tags.`role`", "tags.`outcome`"]
    return {
        "searchFilter": f"tags.`mmfa.study` = '{study}' and tags.stage != 'confirm' and tags.stage != 'controls'",
        "orderByKey": f"metrics.`{OBJECTIVE}`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,
        "compareRunSections": [_section("settings", "Settings and results"), _section("curves", "Over the epochs")],
        "compareRunCharts": [*_settings([f"{SETTING} {name}" for name in axes]), *_curves()],
    }


def _section(key: str, name: str) -> dict[str, Any]:
    return {"uuid": key, "name": name, "display": True, "isReordered": True, "columns": 2}


def _chart(kind: str, section: str, key: str, **more: Any) -> dict[str, Any]:
    fixed = {"type": kind, "uuid": f"{section}-{key}", "metricSectionId": section, "runsCountToCompare": 20}
    return {**fixed, "deleted": False, "isGenerated": False, **more}


def _settings(params: Sequence[str]) -> list[dict[str, Any]]:
    """Return what shows results by settings: all at once, then two at a time, then one."""

    def axis(kind: str, key: str) -> dict[str, Any]:
        return {"type": kind, "key": key, "index": 0}

    z = axis("METRIC", OBJECTIVE)
    charts = [_chart("PARALLEL", "settings", "all", selectedParams=list(params), selectedMetrics=[OBJECTIVE])]
    if len(params) > 1:
        x, y = (axis("PARAM", name) for name in params[:2])
        charts.append(_chart("CONTOUR", "settings", "two", xaxis=x, yaxis=y, zaxis=z))
    charts += [_chart("SCATTER", "settings", name, xaxis=axis("PARAM", name), yaxis=z) for name in params[:4]]
    return charts


def _curves() -> list[dict[str, Any]]:
    return [
        _chart("LINE", "curves", name, metricKey=name, selectedMetricKeys=[name], xAxisKey="step", scaleType="linear")
        for name in (OBJECTIVE, *CURVES)
    ]
