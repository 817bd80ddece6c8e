"""Studies from Python: ``mmfa-study`` with its options as arguments, and what MLflow recorded as a data frame."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfa.errors import ConfigError, MmfaError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from tune.session import Request

OUT = "mmfa-studies"
ABOUT = {"stage": "stage", "role": "role", "outcome": "outcome"}
"""Columns that come from tags."""


def run(study: str | Path, *, out: str | Path = OUT, **options: Any) -> pd.DataFrame:
    """Run a study, or go on with it, and return its trainings as :func:`results` does.

    Args:
        study: A shipped study's name, or the path of a TOML file.
        out: Folder of the results.
        options: Those of ``mmfa-study``, with underscores: ``trials=20``, ``quick=True``, ``data_root="~/data"``,
            ``set={"optim.num_epochs": 6}``.

    Raises:
        ConfigError: an option that is none, or bad input; nothing was started.
        MmfaError: surroundings that do not serve, or an incomplete study: what is missing was printed, and the same
            call goes on.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    request = _request(_arguments({"study": study, "out": out, **options}), _call(study, {"out": out, **options}))
    from tune import launch
    from tune.console import Console

    code = launch.run(request, Console(request.plan))
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise MmfaError("the study is incomplete: what is missing was printed, and the same call goes on with it.")
    return results(request.plan.study.name, out=out, tracking_uri=options.get("tracking_uri"))


def _request(arguments: list[str], command: str) -> Request:
    """Return what the command line would ask for."""
    from tune import cli, environment
    from tune.session import Request

    options = cli.parser().parse_args(arguments)
    plan, where = cli._plan(options), cli._places(options)
    environment.settle()
    cli._quiet()
    return Request(
        plan=plan,
        places=where,
        trials_asked=options.trials is not None,
        confirm_seeds_asked=options.confirm_seeds is not None,
        cpus_per_trial=options.cpus_per_trial,
        trials_per_gpu=None if options.trials_per_gpu == "auto" else options.trials_per_gpu,
        workers=options.workers,
        address=options.address,
        promote=options.promote,
        strict_counts=options.strict_counts,
        lease_seconds=options.lease_seconds,
        torch_trace=options.torch_trace,
        command=command,
        python=sys.executable,
    )


def _call(study: str | Path, options: Mapping[str, Any]) -> str:
    """Return the call as it is typed, which is what a study tells to type to go on."""
    given = "".join(f", {name}={str(value) if isinstance(value, Path) else value!r}" for name, value in options.items())
    return f"tune.run({str(study)!r}{given})"


def _arguments(given: Mapping[str, Any]) -> list[str]:
    """Return arguments as the command line has them."""
    words = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += [word for key, inner in value.items() for word in (option, f"{key}={_toml(inner)}")]
        elif value is True:
            words.append(option)
        elif value is not False and value is not None:
            words += [option, str(value)]
    return words


def _toml(value: Any) -> str:
    """Return a value of a config's field as TOML."""
    if not isinstance(value, bool | int | float | str | list | tuple):
        raise ConfigError(f"set takes numbers, words and lists, but got {value!r}.")
    return json.dumps(value)


def results(study: str | None = None, *, out: str | Path = OUT, tracking_uri: str | None = None) -> pd.DataFrame:
    """Return the trainings of a study, one a row, as MLflow has them; also of a study that still runs.

    Args:
        study: Name of the study (``lambdas``), or of its run (``lambdas-302ff32bb04a``); of several that are called so,
            and by default of all, the one that was last at work.
        out: The study's folder.
        tracking_uri: MLflow, where it is not the folder's.

    Returns:
        A row for each training, by its name (``search/0003``). Columns: ``stage``, ``role``, ``outcome`` (none while it
        trains), then what the trainings differ in, by field (``loss.lambda_attr``), then every metric as it was last
        measured, the objective as ``objective``; accuracies are fractions. ``attrs`` has ``study`` and ``question``.

    Raises:
        MmfaError: no study is recorded there, or none of that name.
    """
    from tune import environment

    environment.settle()
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    from tune.places import first_line, refuse_secrets
    from tune.recorder import LINEAGE_TAG, STUDY_TAG

    refuse_secrets("--tracking-uri", tracking_uri or "")
    database = Path(out).expanduser().absolute() / "mlflow.db"
    if tracking_uri is None and not database.exists():
        raise MmfaError(f"out must be the folder of a study, but {database.parent} has no mlflow.db; run one first.")
    try:
        client = MlflowClient(tracking_uri or f"sqlite:///{database}")
        parent = _find(client, study)
    except (MlflowException, SQLAlchemyError) as error:
        raise MmfaError(f"tracking_uri: MLflow cannot be read: {first_line(error)}.") from None
    runs = _all(client, [parent.info.experiment_id], f"tags.`{STUDY_TAG}` = '{parent.data.tags[STUDY_TAG]}'")
    rows = {run.data.tags[LINEAGE_TAG]: _row(run) for run in runs if LINEAGE_TAG in run.data.tags}
    frame = pd.DataFrame.from_dict(dict(sorted(rows.items())), orient="index").rename_axis("training")
    first = [name for name in dict.fromkeys(name for row in rows.values() for name in row) if "/" not in name]
    frame = frame[[*first, *sorted(name for name in frame.columns if name not in first)]]
    frame.attrs |= {"study": parent.data.tags[STUDY_TAG], "question": parent.data.tags.get("question", "")}
    return frame


def _find(client: MlflowClient, study: str | None) -> Run:
    from tune.recorder import LINEAGE_TAG, STUDY_TAG

    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    # MLflow cannot ask for runs that lack a tag: the study's own one has the parameter `study`, its trainings do not.
    found = [run for run in _all(client, experiments, "params.study != ''") if LINEAGE_TAG not in run.data.tags]
    named = [run for run in found if study in (None, run.data.tags[STUDY_TAG], run.data.params["study"])]
    if not named:
        known = ", ".join(sorted(run.data.tags[STUDY_TAG] for run in found)) or "none"
        raise MmfaError(f"study must be one that is recorded there ({known}), but got {study!r}.")
    return max(named, key=lambda run: max(run.info.start_time or 0, run.info.end_time or 0))


def _all(client: MlflowClient, experiments: list[str], wanted: str) -> list[Run]:
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiments, wanted, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _row(run: Run) -> dict[str, Any]:
    from tune.view import LOG, OBJECTIVE, SETTING
    from tune.wording import SYMBOLS

    fields = {symbol: field for field, symbol in SYMBOLS.items()}
    row: dict[str, Any] = {name: run.data.tags.get(tag) for name, tag in ABOUT.items()}
    for name, value in run.data.params.items():
        if name.startswith(f"{SETTING} ") and not (told := name.removeprefix(f"{SETTING} ")).startswith(LOG):
            field = fields.get(told, told)
            row[field] = _number(value)
            if not isinstance(row[field], str):  # numbers are rounded there for the eye; choices have their names
                row[field] = _number(run.data.params.get(field, value))
    metrics = dict(run.data.metrics)
    return {**row, "objective": metrics.pop(OBJECTIVE, None), **metrics}


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
