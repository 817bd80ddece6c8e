"""``mmfa-study replay``: recompute label-free criteria, also new ones, over an old study without training anything."""

from __future__ import annotations

import argparse
import json
import math
import runpy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfa.commands.shared import Parser
from mmfa.errors import ConfigError, MmfaError
from tune import environment

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from mmfa.probe import Probe

READINGS = "replays.jsonl"
"""Artifact of the study run: a line for every replay, since each reads what the official test labels gave."""
DESCRIPTION = """\
Recompute the label-free criteria over the finished trials of a study, from the embeddings that each of them
left in MLflow, and print the selection regret: which trial each criterion would have promoted, and what that
costs in target mAP.

A criterion of your own is a Python function that takes a probe (embeddings_ND, attributes_NM, camids_N; no
identities) and returns a number that is higher for better models.
"""
EPILOG = """\
examples:
  mmfa-study replay --study-run lambdas-a12cd04ecf52
  mmfa-study replay --study-run lambdas-a12cd04ecf52 --min-samples 4 --eps 0.5
  mmfa-study replay --study-run 3f0c… --tracking-uri http://127.0.0.1:5000 --criterion mine.py:spread
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``mmfa-study replay``."""
    result = Parser(
        prog="mmfa-study replay",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument(
        "--study-run", required=True, metavar="ID", help="the study's name, or the id of its MLflow run"
    )
    result.add_argument("--out", type=Path, default=Path("mmfa-studies"), metavar="DIR", help="the study's --out")
    result.add_argument("--tracking-uri", metavar="URL", help="MLflow (default: sqlite:///OUT/mlflow.db)")
    result.add_argument("--criterion", action="append", default=[], metavar="FILE.py:FUNCTION", help="one of your own")
    result.add_argument("--k", type=int, metavar="N", help="clusters of cluster/silhouette (default: the study's)")
    result.add_argument("--eps", type=float, metavar="X", help="radius of pseudo/xcam_mAP (default: the study's)")
    result.add_argument(
        "--min-samples", type=int, metavar="N", help="core size of pseudo/xcam_mAP (default: the study's)"
    )
    return result


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code.

    Raises:
        MmfaError: bad input, or a study that is not there.
    """
    options = parser().parse_args(list(arguments))
    k, eps, size = (2 if options.k is None else options.k), options.eps, options.min_samples
    if k < 2 or not (eps is None or 0 < eps < 1) or not (size is None or size >= 1):
        raise ConfigError("--k must be 2 or more, --eps between 0 and 1, --min-samples 1 or more.")
    own = [_criterion(text) for text in options.criterion]
    environment.settle()
    from rich.console import Console

    from tune import regret_table, summary
    from tune.places import first_line

    client, study_run = _find(options)
    console = Console(highlight=False)
    metrics: dict[str, dict[str, float]] = {}
    probes: dict[str, Probe] = {}
    objective = study_run.data.tags["objective"]
    with tempfile.TemporaryDirectory() as folder:
        for name, run in _trials(client, study_run):
            console.print(f"{name} …", highlight=False)
            probe = _probe(client, run, Path(folder))
            try:
                metrics[name] = dict(run.data.metrics) | _recomputed(options, study_run, probe, own)
            except Exception as error:  # a criterion of the user's may raise anything
                raise MmfaError(f"{name}: a criterion failed: {first_line(error)}.") from error
            if probe is not None:
                probes[name] = probe
    if not metrics:
        raise MmfaError(f"{options.study_run} has no finished trial; replay a study that has some.")
    rows = regret_table.table(metrics, probes, first=[objective, *(name for name, _ in own)])
    _count_reading(client, study_run, len(metrics))
    console.print(summary.regret_table(rows))
    path = options.out / f"{study_run.data.tags['mmfa.study']}.replay.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"regret": rows, "metrics": metrics}, indent=1))
    console.print(f"Written: {path}. Nothing was trained; this reading of the test results is counted ({READINGS}).")
    return 0


def _criterion(text: str) -> tuple[str, Callable[[Probe], float]]:
    """Return the name and the function of a criterion of the user's."""
    file, colon, name = text.rpartition(":")
    if not colon or not Path(file).is_file():
        raise ConfigError(f"--criterion must be FILE.py:FUNCTION with a file that is there, but got {text!r}.")
    try:
        function = runpy.run_path(file)[name]
    except KeyError:
        raise ConfigError(f"--criterion: {file} defines no {name!r}.") from None
    except Exception as error:
        raise ConfigError(f"--criterion: {file} cannot be run: {type(error).__name__}: {error}.") from error
    if not callable(function):
        raise ConfigError(f"--criterion: {name!r} of {file} is not a function.")
    return name, function


def _find(options: argparse.Namespace) -> tuple[MlflowClient, Run]:
    """Return a client and the study's run."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    from tune.places import first_line, refuse_secrets

    uri = options.tracking_uri
    refuse_secrets("--tracking-uri", uri or "")
    if uri is None:
        file = options.out.expanduser().absolute() / "mlflow.db"
        if not file.exists():
            raise ConfigError(f"{file} is not there; give the study's --out, or --tracking-uri.")
        uri = f"sqlite:///{file}"
    try:
        client = MlflowClient(uri)
        if len(options.study_run) == 32:
            run = client.get_run(options.study_run)
            if "mmfa.study" in run.data.tags and "mmfa.lineage" not in run.data.tags:
                return client, run
            raise ConfigError(f"--study-run: {options.study_run} is not the run of a study.")
        experiments = [found.experiment_id for found in client.search_experiments()]
        wanted = options.study_run.replace("'", "")
        found = client.search_runs(experiments, f"tags.`mmfa.study` = '{wanted}'", max_results=5000)
        studies = [run for run in found if "mmfa.lineage" not in run.data.tags]
    except (MlflowException, SQLAlchemyError) as error:
        raise ConfigError(f"--study-run: MLflow at {uri} says: {first_line(error)}.") from None
    if not studies:
        raise ConfigError(
            f"--study-run: {uri} has no study {options.study_run!r}; `ls OUT` shows the names of results."
        )
    return client, studies[0]


def _trials(client: MlflowClient, study_run: Run) -> Iterator[tuple[str, Run]]:
    """Yield the finished trials of the search by name, in order: no controls, confirmations, pruned, diverged ones."""
    found = client.search_runs(
        [study_run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{study_run.info.run_id}'", max_results=5000
    )
    for run in sorted(found, key=lambda run: run.data.tags["mmfa.lineage"]):
        tags = run.data.tags
        if tags.get("outcome") == "complete" and tags["stage"] not in ("controls", "confirm"):
            yield tags["mmfa.lineage"], run


def _probe(client: MlflowClient, run: Run, folder: Path) -> Probe | None:
    from mmfa.errors import CheckpointError
    from mmfa.probe import Probe
    from tune.job import PROBE

    if PROBE not in [file.path for file in client.list_artifacts(run.info.run_id)]:
        return None
    try:
        return Probe.load(Path(client.download_artifacts(run.info.run_id, PROBE, str(folder))))
    except CheckpointError as error:
        raise MmfaError(f"{run.data.tags['mmfa.lineage']}: {error}") from None


def _recomputed(
    options: argparse.Namespace,
    study_run: Run,
    probe: Probe | None,
    own: Sequence[tuple[str, Callable[[Probe], float]]],
) -> dict[str, float]:
    from tune import criteria

    if probe is None:
        return {}
    known = study_run.data.params
    values: Mapping[str, Any] = criteria.compute(
        probe,
        k=options.k or int(known["criteria.k"]),
        eps=options.eps or float(known["criteria.eps"]),
        min_samples=options.min_samples or int(known["criteria.min_samples"]),
    )
    mine = {name: float(function(probe)) for name, function in own}
    return {**values, **{name: value for name, value in mine.items() if not math.isnan(value)}}


def _count_reading(client: MlflowClient, study_run: Run, trials: int) -> None:
    """Add a line to the study's ledger of readings."""
    run = study_run.info.run_id
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        if READINGS in [file.path for file in client.list_artifacts(run)]:
            lines = Path(client.download_artifacts(run, READINGS, folder)).read_text().splitlines()
    entry = {"at": time.time(), "trial": "", "why": f"replay of criteria over {trials} trials; chose nothing"}
    client.log_text(run, "\n".join([*lines, json.dumps(entry)]) + "\n", READINGS)
