"""``mmfa-rank``: rank a gallery with an exported model, or with one of MLflow's registry such as a study's champion."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mmfa.commands import rank
from mmfa.commands.shared import Parser
from mmfa.errors import ConfigError, MmfaError, did_you_mean
from tune import environment
from tune.places import refuse_secrets

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

DATABASE = Path("mmfa-studies") / "mlflow.db"
"""Where a study records by default, seen from the folder that it was started in."""
SCHEME = "models:/"
DESCRIPTION = rank.DESCRIPTION.split("\n\n  python")[0]
EPILOG = """\
examples:
  mmfa-rank --model models:/mmfa-embedded-source-to-embedded-target@champion --query someone.jpg --gallery ~/frames
  mmfa-rank --model first/export --query people/ --gallery ~/frames --top 20 --html ranked.html --json ranked.json

exit codes: 0 fine; 2 bad input; 130 interrupted (the same command goes on from what is embedded).
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``mmfa-rank``."""
    result = Parser(
        prog="mmfa-rank",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    rank.add_options(result, models="folder that a training exported its model to, or models:/NAME@ALIAS in MLflow")
    result.add_argument(
        "--tracking-uri", metavar="URL", help=f"MLflow (default: $MLFLOW_TRACKING_URI, or sqlite:///{DATABASE})"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options = parser().parse_args(arguments)
        rank.check(options)
        if not options.model.startswith(SCHEME):
            return rank.run(options)
        with fetched(options.model, tracking=options.tracking_uri) as folder:
            return rank.rank(options, model=folder, title=options.model)
    except MmfaError as error:
        sys.stderr.write(f"mmfa-rank: {error}\n")
        return 2
    except BrokenPipeError:  # such as `| head`: the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("\nmmfa-rank: interrupted. The same command goes on from what is embedded.\n")
        return 130


def entry() -> NoReturn:
    """Run the command and exit: the installed ``mmfa-rank``."""
    sys.exit(main())


@contextmanager
def fetched(uri: str, *, tracking: str | None) -> Iterator[Path]:
    """Yield the folder of the exported model that a registered model holds; it is gone afterwards.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking: MLflow's address; None for ``$MLFLOW_TRACKING_URI`` or the default database.

    Raises:
        ConfigError: no such MLflow, model, alias or version.
    """
    where = tracking or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE.absolute()}"
    refuse_secrets("--tracking-uri", where)  # MLflow's errors tell its address
    where = where.replace("postgresql://", "postgresql+psycopg://", 1)  # the driver that the extra `cluster` brings
    if where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).is_file():  # MLflow would make it
        file = where.removeprefix("sqlite:///")
        raise ConfigError(f"--model {uri} is MLflow's, but {file} is not there; name another with --tracking-uri.")
    environment.settle()
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    from tune.places import first_line

    with tempfile.TemporaryDirectory(prefix="mmfa-rank-") as folder, environment.mlflow_at(where):
        try:
            _reach(where)
            version = _version(MlflowClient(where, where), uri)
            exact = f"{SCHEME}{version.name}/{version.version}"
            path = Path(mlflow.artifacts.download_artifacts(artifact_uri=exact, dst_path=folder))
            flavor = mlflow.models.Model.load(str(path)).flavors["python_function"]
            export = path / flavor["artifacts"]["checkpoint"]["path"]
        except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
            raise ConfigError(f"--model {uri}: MLflow says: {first_line(error)}.") from error
        except KeyError as error:
            raise ConfigError(f"--model {uri} holds no model of mmfa; name one that a study promoted.") from error
        yield export


def _reach(where: str) -> None:
    """Ask a database server once: MLflow would try for minutes before it says that nobody answers."""
    import sqlalchemy as sa

    if where.startswith("postgresql"):
        engine = sa.create_engine(where)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def _version(client: MlflowClient, uri: str) -> ModelVersion:
    """Return the version that a URI names.

    Raises:
        ConfigError: there is none; says what there is.
    """
    from mlflow.exceptions import MlflowException

    rest = uri.removeprefix(SCHEME)
    name, at, alias = rest.partition("@")
    number = ""
    if not at:
        name, _, number = rest.partition("/")
    if not name or not (alias or number):
        raise ConfigError(f"--model must be {SCHEME}NAME@ALIAS or {SCHEME}NAME/VERSION, but got {uri}.")
    known = {model.name: model for model in client.search_registered_models(max_results=1000)}
    if name not in known:
        if not known:
            raise ConfigError(f"--model {uri}: no model is registered there yet; a study promotes its best one.")
        raise ConfigError(f"--model {uri}: {name!r} is not registered{did_you_mean(name, known)}")
    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, number)
    except MlflowException as error:
        there = sorted(f"{name}@{found}" for found in known[name].aliases) or ["no alias"]
        raise ConfigError(f"--model {uri} is not there; {name} has {', '.join(there)}.") from error
