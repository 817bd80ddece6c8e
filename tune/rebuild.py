"""``mmfa-study report``: make a study's page and ``study.parquet`` again, from MLflow and the ledger alone."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmfa.commands.shared import Parser
from mmfa.errors import ConfigError, MmfaError
from tune import environment

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from tune.ledger import Ledger

RUN_ID = 32
"""Digits of the id of an MLflow run."""
DESCRIPTION = """\
Make the report of a study again: report.html, one page that stands on its own, and study.parquet, one row per
training and epoch. Both are read from MLflow and the ledger alone, also while the study runs; nothing is trained, and
neither of the two is changed.
"""
EPILOG = """\
examples:
  mmfa-study report --study-run lambdas-a12cd04ecf52
  mmfa-study report --study-run 3f0c… --tracking-uri http://127.0.0.1:5000 --ledger postgresql://mmfa@db/ledger
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``mmfa-study report``."""
    result = Parser(
        prog="mmfa-study report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument(
        "--study-run", required=True, metavar="ID", help="the study's name, or the id of its MLflow run"
    )
    result.add_argument(
        "--out", type=Path, default=Path("mmfa-studies"), metavar="DIR", help="the study's --out; written to"
    )
    result.add_argument("--ledger", metavar="URL", help="database of the trials (default: sqlite:///OUT/ledger.db)")
    result.add_argument("--tracking-uri", metavar="URL", help="MLflow (default: sqlite:///OUT/mlflow.db)")
    result.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="pictures of the method to embed, with their pictures.json (default: OUT/STUDY.pictures, if it is there)",
    )
    return result


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code.

    Raises:
        MmfaError: bad input, or a study that is not there.
    """
    options = parser().parse_args(list(arguments))
    environment.settle()
    if options.pictures is not None and not options.pictures.is_dir():
        raise ConfigError(f"--pictures must be a folder with pictures and their index, but {options.pictures} is none.")
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from tune.places import first_line, places
    from tune.report import from_mlflow, writing

    where = places(
        out=options.out,
        storage=None,
        ledger=options.ledger,
        tracking=options.tracking_uri,
        cache_dir=options.out,
        data_root=None,
    )
    try:
        ledger = _ledger(where.ledger)
        try:
            client, run, study_id = _find(where.tracking, options.study_run, ledger)
        except SQLAlchemyError as error:
            raise MmfaError(f"MLflow at {where.tracking} cannot be read: {first_line(error)}.") from None
        facts = from_mlflow.gather(client, run, ledger, study_id)
    except MlflowException as error:
        raise ConfigError(f"MLflow at {where.tracking} says: {first_line(error)}.") from None
    except SQLAlchemyError as error:
        raise MmfaError(f"the ledger cannot be read: {first_line(error)}.") from None
    try:
        if options.pictures is None:
            _fetch_pictures(client, run, writing.pictures_of(where.out, study_id))
        page, rows = writing.write(facts, where.out, pictures=options.pictures)
    except OSError as error:
        raise ConfigError(f"--out: {where.out} cannot be written ({error.strerror}).") from None
    state = "" if facts.closed else " The study is not finished, and the page says so."
    sys.stdout.write(f"Report of {study_id}: {page}, {len(facts.trainings)} trainings. As data: {rows}.{state}\n")
    return 0


def _fetch_pictures(client: MlflowClient, run: Run, folder: Path) -> None:
    """Have the pictures of the method where the page looks for them, if the study's run has them.

    What lies there may be of an earlier state of the study, and is then replaced.
    """
    from tune.picture_facts import MADE_OF
    from tune.report import writing

    if writing.PICTURES not in [item.path for item in client.list_artifacts(run.info.run_id)]:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pictures-") as temporary:
        found = Path(client.download_artifacts(run.info.run_id, f"{writing.PICTURES}/{MADE_OF}", temporary))
        known = folder / MADE_OF
        if known.exists() and known.read_bytes() == found.read_bytes():
            return
        found = Path(client.download_artifacts(run.info.run_id, writing.PICTURES, temporary))
        if folder.exists():
            folder.rename(Path(temporary) / "earlier")
        found.rename(folder)


def _ledger(url: str) -> Ledger:
    """Open a ledger that is there; none is made."""
    import sqlalchemy as sa

    from tune.ledger import Ledger

    file = sa.make_url(url)
    if file.get_backend_name() == "sqlite" and not Path(str(file.database)).exists():
        raise ConfigError(f"{file.database} is not there; give the study's --out, or its --ledger.")
    return Ledger(url)


def _find(uri: str, wanted: str, ledger: Ledger) -> tuple[MlflowClient, Run, str]:
    """Return a client, the study's run and the study's name."""
    import sqlalchemy as sa
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from tune.recorder import LINEAGE_TAG, STUDY_TAG
    from tune.report import from_mlflow

    if uri.startswith("sqlite") and not Path(str(sa.make_url(uri).database)).exists():
        raise ConfigError(f"{sa.make_url(uri).database} is not there; give the study's --out, or --tracking-uri.")
    client = MlflowClient(uri)
    if wanted not in from_mlflow.names(ledger) and len(wanted) == RUN_ID:
        try:
            run = client.get_run(wanted)
        except MlflowException:
            raise ConfigError(f"--study-run: MLflow at {uri} has no run {wanted}.") from None
        if STUDY_TAG not in run.data.tags or LINEAGE_TAG in run.data.tags:
            raise ConfigError(f"--study-run: {wanted} is not the run of a study.")
        return client, run, run.data.tags[STUDY_TAG]
    from_mlflow.check_name(ledger, wanted)
    experiments = [found.experiment_id for found in client.search_experiments()]
    for number in (1, 50_000):  # the study's own run is the oldest, but for what a server's clock may do
        runs = client.search_runs(
            experiments, f"tags.`{STUDY_TAG}` = '{wanted}'", max_results=number, order_by=["attributes.start_time ASC"]
        )
        for run in runs:
            if LINEAGE_TAG not in run.data.tags:
                return client, run, wanted
    raise ConfigError(
        f"--study-run: the ledger has {wanted}, but MLflow at {uri} has no run of it; give its --tracking-uri."
    )
