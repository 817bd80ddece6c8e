"""The one place that builds a ``Tuner``: preflight → lease → ledger → controls and search → promote → result."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from mmfa.config import canonical_json
from mmfa.data import catalog
from mmfa.errors import MmfaError
from studies.plan import Plan, digest
from tune import cluster, preflight, provenance, search, summary
from tune import outcome as outcomes
from tune.console import Console
from tune.interrupt import Stop
from tune.lease import LeaseLostError
from tune.ledger import Ledger
from tune.places import first_line
from tune.recorder import Recorder
from tune.session import Request, Session, open_session
from tune.trainable import EXPORT, read_result

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
PROBE_IMAGES = 8
FLUSH_SECONDS = 60.0
"""How long the end of a study waits for MLflow."""


def run(request: Request, console: Console) -> int:
    """Run a study, or go on with it; return the exit code: 0 done, 1 incomplete, 130 interrupted.

    Raises:
        MmfaError: bad input or surroundings, found before anything starts.
    """
    try:
        return _run(request, console)
    except LeaseLostError as error:
        console.say(f"Stopped: {error}")
        return 1
    except (OSError, SQLAlchemyError, OptunaError, MlflowException) as error:
        logger.debug("what broke", exc_info=True)
        console.say(f"Stopped: {type(error).__name__}: {first_line(error)}. Once that is mended, go on with:")
        console.command(request.command)
        return 1


def _run(request: Request, console: Console) -> int:
    """Check everything, take the lease, and drive the study."""
    where = request.places
    preflight.check_places(where)
    with console.bars() as progress:
        stores = preflight.prepare_stores(
            request.plan.configs(), where, strict_counts=request.strict_counts, progress=progress
        )
    for note in preflight.check_trainings(request.plan.configs(), stores):
        console.say(note)
    client, experiment = preflight.open_tracking(where, experiment=_experiment(request.plan))
    weights = preflight.weights_fingerprints(request.plan.configs())
    identity = request.plan.identity(fingerprints=stores.fingerprints | weights)
    study_id = f"{request.plan.study.name}-{digest(identity)}"
    ledger = Ledger(where.ledger)
    lease = ledger.lease(study_id, seconds=request.lease_seconds)
    try:
        session = open_session(request, stores, ledger, lease, study_id, identity)
        with _ray(session, console) as ray:
            recorder = _recorder(session, client, experiment, console)
            try:
                return _drive(session, ray, recorder, client, console)
            except BaseException:
                recorder.close(seconds=5, interrupted=True)
                raise
    finally:
        lease.release()


def _experiment(plan: Plan) -> str:
    """Return the name of a study's MLflow experiment: its pair, or the study where it has several."""
    pairs = {(config.data.source, config.data.target) for config in plan.configs()}
    if len(pairs) > 1:
        return f"{plan.study.name} on {len(pairs)} pairs"
    ((source, target),) = pairs
    return f"{catalog.slug(source)} to {catalog.slug(target)}"


@contextmanager
def _ray(session: Session, console: Console) -> Iterator[cluster.Cluster | None]:
    """Start or join Ray where there is something to train, and leave none of Tune's folders behind."""
    request = session.request
    if not session.to_train():
        yield None
        return
    console.say("Starting Ray …" if request.address is None else f"Joining Ray at {request.address} …")
    ray = cluster.start(
        address=request.address, cpus_per_trial=request.cpus_per_trial, trials_per_gpu=request.trials_per_gpu
    )
    try:
        yield ray
    finally:
        ray.close()
        for folder in session.folder.glob("ray-*"):
            if int(folder.name.removeprefix("ray-")) <= session.fence.counter:  # a younger one is another driver's
                shutil.rmtree(folder, ignore_errors=True)


def _recorder(session: Session, client: MlflowClient, experiment: str, console: Console) -> Recorder:
    """Open the study's MLflow run and record what an earlier driver could not."""
    plan = session.plan
    tags = {
        "study": plan.study.name,
        "profile": plan.profile,
        "objective": plan.metric,
        "selection.labels": plan.labels,
        "data.fingerprint": canonical_json(session.stores.fingerprints),
        **provenance.tags(),
    }
    recorder = Recorder(
        client,
        experiment_id=experiment,
        study_id=session.study_id,
        tags=tags,
        folder_of=session.folder_of,
        check=session.lease.check,
    )
    commits = session.commits(provenance.commit())
    if len(commits) > 1:
        console.say(
            f"Note: this study was begun by other code ({', '.join(commits[:-1])}); it goes on, and its runs say so."
        )
    tags["git.commits"] = ", ".join(commits)
    params = {"study": plan.study.name, "profile": plan.profile, "seed": plan.baseline.run.seed}
    recorder.open(name=session.study_id, params=params, note=f"**{plan.study.question}**")
    over = [(lineage, session.config_of(lineage)) for lineage in session.lineages() if lineage.terminal]
    recorder.catch_up(over, lambda name: read_result(session.folder_of(name)))
    return recorder


def _drive(
    session: Session, ray: cluster.Cluster | None, recorder: Recorder, client: MlflowClient, console: Console
) -> int:
    """Train what is left, then record, promote and print."""
    failures: dict[str, str] = {}
    stop = Stop(console.say)
    if ray is not None:
        over: dict[str, str] = {lineage.name: lineage.state for lineage in session.lineages() if lineage.terminal}
        console.say(f"{session.study_id}: {len(over)} trainings are over, {session.left()} to go.")
        failures = _train(session, ray, recorder, console, over, stop)
    elif not session.diverged_baseline():
        console.say(f"{session.study_id} is finished: here is its result again.")
    session.lease.check()
    diverged = session.diverged_baseline()
    if diverged:
        stop.reason = f"the baseline diverged ({diverged}): nothing can be compared with it, so the study ends here."
    if stop.reason or session.left():
        written = recorder.close(interrupted=not diverged)
        return _incomplete(session, console, stop, failures, "" if written else recorder.problem)
    return _finish(session, recorder, client, console)


def _finish(session: Session, recorder: Recorder, client: MlflowClient, console: Console) -> int:
    """Print the result, promote, and close the study's run."""
    written = recorder.flush(seconds=FLUSH_SECONDS)
    found = session.outcome()
    console.rich.print(summary.table(session.plan, found))
    for line in summary.sentences(session.plan, found):
        console.say(line)
    problem = recorder.problem or "MLflow is too slow"
    for refused in recorder.refused:
        console.say(f"Not recorded, and not tried again: {refused}.")
    for note in session.notes():
        console.say(note)
    if written:
        try:
            promoted = _promote(session, recorder, client, found)
            _close(session, recorder, found, promoted)
            recorder.close()
        except (MlflowException, OSError, MmfaError) as error:
            session.lease.check()
            written, problem = False, first_line(error)
    if not written:
        recorder.close(seconds=1)
        console.say(f"Not everything is recorded or promoted yet: {problem}. The results are safe; to try again, type:")
        console.command(session.request.command)
        return 1
    console.say(promoted)
    _where(session, console)
    return 0


def _incomplete(session: Session, console: Console, stop: Stop, failures: dict[str, str], problem: str) -> int:
    """Say what is missing and how to go on."""
    over = sum(lineage.terminal for lineage in session.lineages())
    for name, reason in failures.items():
        console.say(f"{name} was lost: {reason}")
    if problem:
        console.say(problem)
    if stop.note:
        console.say(stop.note)
    if stop.reason:
        console.say(f"Stopped: {stop.reason}")
        return 1
    state = "Interrupted" if stop.interrupted else "Incomplete"
    console.say(f"{state}: {over} trainings are over, {session.left()} are not. Nothing is lost. To continue, type:")
    console.command(session.request.command)
    return 130 if stop.interrupted else 1


def _train(
    session: Session, ray: cluster.Cluster, recorder: Recorder, console: Console, over: dict[str, str], stop: Stop
) -> dict[str, str]:
    """Run everything that is left through Ray Tune; return why lineages were lost, by name."""
    searcher = search.StudySearcher(
        plan=session.plan,
        stages=session.stages,
        make_job=session.job,
        observers=(console, recorder),
        stop=stop,
    )
    session.lease.on_lost(lambda: stop.end("another driver has taken over the study; this one changed nothing more."))
    workers = min(ray.workers, session.left())
    try:
        with console.live(workers=workers, finished=over), stop.signals(), stop.watch(ray.alive):
            _tuner(searcher, ray.resources, workers, session.folder / f"ray-{session.fence.counter}").fit()
    except Exception:  # Tune wraps what a searcher raises
        session.lease.check()
        raise
    return searcher.failures


def _tuner(searcher: search.StudySearcher, resources: dict[str, float], workers: int, folder: Path) -> Any:
    import ray.tune

    from tune import trainable

    return ray.tune.Tuner(
        ray.tune.with_resources(trainable.run, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=workers,
            reuse_actors=True,
            trial_name_creator=str,
            trial_dirname_creator=str,
        ),
        run_config=ray.tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=ray.tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )


def _promote(session: Session, recorder: Recorder, client: MlflowClient, found: outcomes.Outcome) -> str:
    """Move ``candidate`` to the best trial's weights, where it is wanted and earned."""
    if session.request.promote == "never":
        return "Nothing was promoted (--promote never)."
    if session.plan.study.is_comparison:
        return "Nothing was promoted: a comparison selects nothing."
    if found.best is None or found.best.value is None:
        return "Nothing was promoted: no trial has a result."
    from mmfa.data.store import open_store
    from tune import promotion

    data = session.plan.baseline.data
    return promotion.promote(
        client,
        name=promotion.model_name(data.source, data.target),
        run_id=recorder.run_of(found.best.name),
        export=session.folder_of(found.best.name) / EXPORT,
        probe=open_store(session.stores.paths[data.target]).images[:PROBE_IMAGES],
        value=found.best.value,
        tags={
            "mmfa.study": session.study_id,
            "mmfa.lineage": found.best.name,
            "objective": found.metric,
            "selection.labels": "target_val",
            "data.fingerprint": canonical_json(session.stores.fingerprints),
        },
        check=session.lease.check,
    )


def _close(session: Session, recorder: Recorder, found: outcomes.Outcome, promoted: str) -> None:
    """Close the study's run and write the outcome beside the databases."""
    record = found.to_json() | {"study": session.study_id, "question": session.plan.study.question}
    page = summary.page(
        session.plan,
        found,
        study_id=session.study_id,
        command=session.request.command,
        commits=session.registry.study.user_attrs["commits"],
        seconds=session.training_seconds(),
    )
    for suffix, content in ((".json", json.dumps(record, indent=1)), (".txt", page)):
        path = session.request.places.out / f"{session.study_id}{suffix}"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(content)
        temporary.replace(path)
    metrics: dict[str, float] = {}
    if found.best is not None and found.best.value is not None:
        metrics[f"best/{found.metric}"] = found.best.value
    if found.baseline is not None and found.baseline.value is not None:
        metrics[f"baseline/{found.metric}"] = found.baseline.value
    study = session.plan.study.model_dump(mode="json")
    recorder.finish_study(
        metrics=metrics,
        tags={"best": found.best.name if found.best else "none", "promotion": promoted},
        artifacts={
            "outcome.json": record,
            "result.txt": page,
            "study.json": study,
            "baseline.json": session.plan.baseline.flatten(),
        },
    )


def _where(session: Session, console: Console) -> None:
    where = session.request.places
    console.say(f"Result: {where.out / session.study_id}.txt and .json")
    if where.tracking.startswith(("http://", "https://")):
        console.say(f"MLflow: {where.tracking}")
    else:
        console.say("To compare the runs in MLflow, type this and open http://127.0.0.1:5000:")
        console.command(
            shlex.join([session.request.python, "-m", "mlflow", "ui", "--backend-store-uri", where.tracking])
        )
