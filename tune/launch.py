"""The one place that builds a ``Tuner``: preflight → lease → ledger → controls and search → confirmations → result."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import time
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
from studies.plan import CONFIRM, Plan, digest
from tune import (
    closing,
    cluster,
    confirm,
    environment,
    joining,
    mirror,
    nodes,
    preflight,
    promotion,
    provenance,
    search,
    study_run,
    view,
)
from tune.console import Console
from tune.interrupt import Stop
from tune.lease import LeaseLostError
from tune.ledger import Ledger, StageLedger
from tune.patience import PATIENCE_SECONDS
from tune.places import first_line
from tune.recorder import PERMANENT, RETRY_SECONDS, Recorder
from tune.session import Request, Session, open_session

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
BREAKS = (OSError, SQLAlchemyError, OptunaError, MlflowException)
"""What a disk, a database or a server may do in mid-study: told in a sentence, and the same command goes on."""
REFUSALS = (*PERMANENT, "PERMISSION_DENIED", "UNAUTHENTICATED")
"""What MLflow answers where waiting does not help."""
NO_NOISE = (
    "fewer than two seeds of the baseline have a result, so its seed noise is not known, and label_free/score is "
    "measured in it; find out why they diverged, or choose by target_val/mAP."
)


def run(request: Request, console: Console) -> int:
    """Run a study, or go on with it; return the exit code: 0 done, 1 incomplete, 130 interrupted.

    Raises:
        MmfaError: bad input or surroundings, found before anything starts.
    """
    try:
        with environment.mlflow_at(request.places.tracking):
            return _run(request, console)
    except LeaseLostError as error:
        console.say(f"Stopped: {error}")
        return 1
    except BREAKS as error:
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
        console.follow(session.plan)
        if session.plan.quick is False and request.plan.quick:
            console.say("--quick changes nothing here: this study has been confirmed, or is being.")
        _settle(session, client, console)
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
    address = request.address or os.environ.get("RAY_ADDRESS")
    console.say("Starting Ray …" if address is None else f"Joining Ray at {address} …")
    ray = cluster.start(
        address=address,
        cpus_per_trial=request.cpus_per_trial,
        trials_per_gpu=request.trials_per_gpu or 1,
        workers=request.workers,
    )
    if ray.dashboard:
        console.say(f"Ray's dashboard: {ray.dashboard}")
        if (tunnel := closing.tunnel_to(ray.dashboard, os.environ)) is not None:
            console.say("From the machine where you sit, it is reached through a tunnel, opened there with:")
            console.command(tunnel)
    try:
        yield joining.prepared(session, ray, console)
    finally:
        if mirror.is_remote(request.places.storage):
            nodes.sweep(session.scratch, session.fence.counter)
        ray.close()
        for folder in session.folder.glob("ray-*"):
            if int(folder.name.split("-")[1]) <= session.fence.counter:  # a younger one is another driver's
                shutil.rmtree(folder, ignore_errors=True)


def _recorder(session: Session, client: MlflowClient, experiment: str, console: Console) -> Recorder:
    """Open the study's MLflow run and record what an earlier driver could not."""
    plan = session.plan
    tags = {
        "mlflow.source.name": "mmfa-study",
        "mlflow.source.type": "LOCAL",
        "study": plan.study.name,
        "question": plan.study.question,
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
        objective=plan.metric,
        setting=functools.partial(study_run.setting, plan),
        logarithmic=[name for axis, name in study_run.axes(plan).items() if axis != name],
    )
    commits = session.commits(provenance.commit())
    if len(commits) > 1:
        console.say(
            f"Note: this study was begun by other code ({', '.join(commits[:-1])}); it goes on, and its runs say so."
        )
    tags["git.commits"] = ", ".join(commits)
    params = {"study": plan.study.name, "profile": plan.profile, "seed": plan.baseline.run.seed}
    params |= {f"criteria.{name}": value for name, value in plan.criteria.items()}
    recorder.open(
        name=session.study_id,
        params=params,
        note=study_run.note(session),
        conclude=functools.partial(study_run.note, session),
        datasets=study_run.datasets(session),
        files=study_run.files(session),
    )
    view.arrange(
        client,
        experiment,
        study=session.study_id,
        question=plan.study.question,
        axes=study_run.axes(plan),
        registered_at=session.registry.study.user_attrs["registered_at"],
    )
    over = [(lineage, session.config_of(lineage)) for lineage in session.lineages() if lineage.terminal]
    recorder.catch_up(over, session.record_of)
    return recorder


def _drive(
    session: Session, ray: cluster.Cluster | None, recorder: Recorder, client: MlflowClient, console: Console
) -> int:
    """Train what is left, phase by phase, then judge, record, promote and print."""
    failures: dict[str, str] = {}
    stop = Stop(console.say)
    if ray is not None:
        over = sum(lineage.terminal for lineage in session.lineages())
        console.say(f"{session.study_id}: {over} trainings are over, {session.left()} to go.")
    elif not session.diverged_baseline():
        console.say(f"{session.study_id} is finished: here is its result again.")
    for phase in session.phases:
        _settle(session, client, console)
        while ray is not None and session.left_in(phase):
            lost, out_of_memory = _train(session, ray, recorder, console, phase, stop)
            failures |= lost
            if not out_of_memory or stop:
                break
            ray, stop.reason = joining.thinned(session, ray, phase, console)
            if stop.reason:
                break
            failures = {name: why for name, why in failures.items() if name not in out_of_memory}
        session.lease.check()
        if stop.reason or session.diverged_baseline() or session.left_in(phase):
            break
        if session.plan.labels == "none" and session.plan.controls and not session.noise_is_known():
            stop.reason = NO_NOISE
            break
    diverged = session.diverged_baseline()
    if diverged:
        stop.reason = f"the baseline diverged ({diverged}): nothing can be compared with it, so the study ends here."
    if stop.reason or session.left():
        written = recorder.close(interrupted=not diverged)
        return _incomplete(session, console, stop, failures, "" if written else recorder.problem)
    return closing.finish(session, recorder, client, console)


def _settle(session: Session, client: MlflowClient, console: Console) -> None:
    """Settle what is confirmed, where all that comes before is over, and have it run."""
    if not session.plan.judges or session.left_in(session.searched) or session.diverged_baseline():
        return
    name = promotion.model_name(session.plan.baseline.data.source, session.plan.baseline.data.target)
    known = confirm.read(session.registry)
    standing = None
    if known is None and session.plan.labels != "oracle":
        standing, note = _champion(session, client, name, console)
        if standing is not None:
            try:
                preflight.check_trainings([standing.config], session.stores)
            except MmfaError as error:
                note = f"The champion of {standing.of} cannot be trained here, so it stays: {error}"
                standing = None
        if note:
            console.say(note)
    settled = confirm.settle(session.registry, session.plan, session.outcome(), standing)
    if known is None and settled.candidates:
        said = ", ".join(settled.candidates)
        console.say(f"To be confirmed on {session.plan.confirm_seeds} fresh seeds: {said}.")
    stage = next(stage for stage in session.stages if stage.stage == CONFIRM)
    stage.enqueue_fixed(confirm.runs(session.plan, settled))


def _champion(
    session: Session, client: MlflowClient, name: str, console: Console
) -> tuple[confirm.Standing | None, str]:
    """Return the champion that is to be challenged, and what to say of it; wait where MLflow does not answer."""
    ends, told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            return promotion.standing_champion(client, name, tags=closing.judged_by(session))
        except (OSError, MlflowException) as error:
            if time.monotonic() > ends or getattr(error, "error_code", "") in REFUSALS:
                raise
            if not told:
                console.say(f"MLflow does not answer ({first_line(error)}); what is to be confirmed waits for it.")
                told = True
        session.lease.check()
        time.sleep(RETRY_SECONDS)


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
    session: Session,
    ray: cluster.Cluster,
    recorder: Recorder,
    console: Console,
    phase: tuple[StageLedger, ...],
    stop: Stop,
) -> tuple[dict[str, str], list[str]]:
    """Run what is left of a phase through Ray Tune; return why lineages were lost, by name, and which lacked memory."""
    over: dict[str, str] = {lineage.name: lineage.state for lineage in session.lineages() if lineage.terminal}
    searcher = search.StudySearcher(
        plan=session.plan,
        stages=phase,
        make_job=functools.partial(session.job, trials_per_gpu=ray.trials_per_gpu),
        observers=(console, recorder),
        stop=stop,
        baseline=session.baseline_metrics(),
    )
    session.lease.on_lost(lambda: stop.end("another driver has taken over the study; this one changed nothing more."))

    def last_word(why: str) -> None:
        over = "Nothing is lost. To continue, once Ray runs again, type:"
        sys.stdout.write(f"\n{why} {over}\n  {session.request.command}\n")
        sys.stdout.flush()
        session.lease.release()

    workers = min(ray.workers, session.left_in(phase))
    folder = session.folder / f"ray-{session.fence.counter}-{phase[0].stage}"
    try:
        with console.live(workers=workers, finished=over), stop.signals(), stop.watch(ray.alive, last_word):
            _tuner(searcher, ray.resources, workers, folder).fit()
    except Exception as error:  # Tune wraps what a searcher raises, and fails itself where its folder cannot be written
        session.lease.check()
        if isinstance(error.__context__, BREAKS):
            raise error.__context__ from None
        if not searcher.failures:
            raise
        stop.note = f"Ray Tune broke off: {type(error).__name__}: {first_line(error)}."
    return searcher.failures, searcher.out_of_memory


def _tuner(searcher: search.StudySearcher, resources: dict[str, float], workers: int, folder: Path) -> Any:
    import ray.tune
    import ray.tune.execution.class_cache

    from tune import trainable

    # Tune hands S3's keys on to workers, and Ray writes what it is handed into a log that all may read.
    handed_on = ray.tune.execution.class_cache.ENV_VARS_TO_PROPAGATE
    handed_on -= {name for name in handed_on if name.startswith("AWS_")}
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
