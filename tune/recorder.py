"""Trial → MLflow run under the study's run: one writer, off Tune's loop, idempotent.

A run is found again by its tags (study, lineage), never created twice, and every value carries the time at which
it was measured, so writing it again adds nothing. What an outage keeps from being written is not lost: the
lineage's ``result.json`` holds it all, and :meth:`Recorder.catch_up` records from there whatever MLflow lacks.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from mmfa.config import TrialConfig
from mmfa.errors import CheckpointError
from studies.plan import CONFIRM
from tune import doctor
from tune.job import EXPORT, PROBE, TORCH_TRACE
from tune.lease import LeaseLostError
from tune.ledger import Lineage
from tune.places import first_line
from tune.view import LOG, NOTE, OBJECTIVE, SETTING
from tune.wording import short

logger = logging.getLogger(__name__)

STUDY_TAG, LINEAGE_TAG = "mmfa.study", "mmfa.lineage"
RETRY_SECONDS = 5.0
PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
"""Refusals that no second try mends, such as of a run that was deleted by hand: told, and passed over."""
TITLES = {
    "baseline": "the baseline, with which all others are compared",
    "source_only": "a control: no alignment, and the network sees no target image",
    "target_bn": "a control: no alignment, but BatchNorm sees target images",
    "candidate": "a trial of the search",
}
STATUS = {"complete": "FINISHED", "diverged": "FAILED", "pruned": "FINISHED"}


class Recorder:
    """Writes a study to MLflow.

    Args:
        client: Client of the tracking server or database.
        experiment_id: Experiment of the study.
        study_id: Value of the tag that finds the study's runs.
        tags: Tags of every run.
        folder_of: Folder of a lineage, by its name.
        check: Raises LeaseLostError where this driver may write no more.
        objective: Metric that is written under the name :data:`OBJECTIVE` too.
        setting: What tells a training from the others of the study, by name.
        logarithmic: Names of settings of which the logarithm is written too, where they are above 0.
    """

    def __init__(
        self,
        client: MlflowClient,
        *,
        experiment_id: str,
        study_id: str,
        tags: Mapping[str, str],
        folder_of: Callable[[str], Path],
        check: Callable[[], None],
        objective: str = "",
        setting: Callable[[Lineage, TrialConfig], Mapping[str, Any]] = lambda lineage, config: {},
        logarithmic: Sequence[str] = (),
    ) -> None:
        self._client, self._experiment, self._study = client, experiment_id, study_id
        self._objective, self._setting, self._logarithmic = objective, setting, tuple(logarithmic)
        self._tags, self._folder_of, self._check = dict(tags), folder_of, check
        self._runs: dict[str, str] = {}
        self._status: dict[str, str] = {}
        self._waiting: dict[str, list[list[dict[str, Any]]]] = {}
        """Epochs that wait to be written, each in a list of its own, of lineages whose end does not wait."""
        self._written: dict[str, set[int]] = {}
        """Epochs that MLflow has, of lineages that are not over."""
        self._calls = 0
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self.problem = ""
        self.refused: list[str] = []

    def open(
        self,
        *,
        name: str,
        params: Mapping[str, Any],
        note: str,
        conclude: Callable[[Mapping[str, Any]], str] | None = None,
        datasets: Sequence[DatasetInput] = (),
        files: Mapping[str, str] | None = None,
    ) -> str:
        """Find or create the study's run, learn what MLflow has of its trials, start writing; return the run's id.

        Args:
            name: Of the run.
            params: Of the run.
            note: Its description until it is finished, as Markdown.
            conclude: Returns its description then, from the artifacts of :meth:`finish_study`.
            datasets: What the study is trained and judged on.
            files: Text artifacts, by name.
        """
        self._learn()
        self._conclude = conclude
        tags = {STUDY_TAG: self._study, NOTE: note, **self._tags}
        self.study_run = self._run("", name=name, tags=tags)
        self._client.log_batch(
            self.study_run,
            params=[Param(key, str(value)) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        if datasets:
            self._client.log_inputs(self.study_run, datasets=list(datasets))  # those that it has are not added again
        for file, text in (files or {}).items():
            self._client.log_text(self.study_run, text, file)
        self._client.update_run(self.study_run, status="RUNNING")
        self._status[""] = "RUNNING"
        self._thread.start()
        return self.study_run

    def _learn(self) -> None:
        """Read what MLflow has of the study; of two runs of a lineage the one that is written to stays, else the older.

        There can be two where a server wrote a run and its answer was lost, or came too late for MLflow's client.
        """
        token, every = None, dict[str, dict[str, str]]()
        self._written.clear()  # it may have been another run that they were written to
        while True:
            found = self._client.search_runs(
                [self._experiment],
                f"tags.`{STUDY_TAG}` = '{self._study}'",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in found:
                every.setdefault(run.data.tags.get(LINEAGE_TAG, ""), {})[run.info.run_id] = run.info.status
            token = found.token
            if not token:
                break
        for lineage, runs in every.items():
            own = self._runs.get(lineage)
            kept = own if own in runs else next(iter(runs))
            self._runs[lineage], self._status[lineage] = kept, runs[kept]
            for other in runs.keys() - {kept}:
                self._client.delete_run(other)

    def _run(self, lineage: str, *, name: str, tags: Mapping[str, str], began: float | None = None) -> str:
        """Return the run of a lineage ("" is the study's own), created where there is none."""
        if lineage not in self._runs:
            at = None if began is None else int(1000 * began)
            run = self._client.create_run(self._experiment, start_time=at, run_name=name, tags=dict(tags))
            self._runs[lineage], self._status[lineage] = run.info.run_id, "RUNNING"
        return self._runs[lineage]

    # What the searcher tells.

    def trial_started(self, lineage: Lineage, config: TrialConfig) -> None:
        """Have the lineage's run exist and read RUNNING."""
        self._queue.put(lambda: self._start(lineage, config))

    def trial_epoch(self, name: str, report: dict[str, Any]) -> None:
        """Have an epoch's metrics written."""
        waiting = [report]
        self._waiting.setdefault(name, []).append(waiting)
        self._queue.put(lambda: self._epoch(name, waiting))

    def trial_finished(self, name: str, state: str, record: dict[str, Any]) -> None:
        """Have the run closed with everything that belongs to it; a lost lineage stays open for its next attempt."""
        if state in STATUS:
            for waiting in self._waiting.pop(name, []):
                waiting.clear()  # its end brings them too
            self._queue.put(lambda: self._finish(name, record))

    def catch_up(self, lineages: list[tuple[Lineage, TrialConfig]], read: Callable[[str], dict[str, Any]]) -> int:
        """Record every terminal lineage that MLflow does not have in full; return how many there were."""
        missing = [item for item in lineages if self._status.get(item[0].name) not in STATUS.values()]
        for lineage, config in missing:
            try:
                record = read(lineage.name)
            except CheckpointError as error:
                logger.warning("%s is over, but MLflow cannot be given all of it: %s", lineage.name, error)
                continue
            began = min([record["started_at"], *(report["ended_at"] for report in record["history"])])
            self._queue.put(functools.partial(self._start, lineage, config, began))
            self.trial_finished(lineage.name, lineage.state, record)
        return len(missing)

    # What the thread does.

    def _start(self, lineage: Lineage, config: TrialConfig, began: float | None = None) -> None:
        setting = dict(self._setting(lineage, config))
        tags = {
            STUDY_TAG: self._study,
            LINEAGE_TAG: lineage.name,
            "mlflow.parentRunId": self.study_run,
            "stage": lineage.stage,
            "role": lineage.role,
            "config.fingerprint": config.fingerprint(),
            NOTE: self._note(lineage, setting),
            **self._tags,
        }
        shown = [f"{name.rpartition('.')[2]}={short(value)}" for name, value in setting.items()]
        existed = lineage.name in self._runs
        run = self._run(lineage.name, name=" ".join([lineage.name, *shown]), tags=tags, began=began)
        # MLflow refuses another value for a param, such as one that other code of this program wrote otherwise.
        known = self._client.get_run(run).data.params if existed else {}
        logs = {f"{LOG}{name}": round(math.log10(setting[name]), 4) for name in self._logarithmic if setting[name] > 0}
        rounded = {name: _rounded(value) for name, value in setting.items()}
        params = {f"{SETTING} {name}": value for name, value in (rounded | logs).items()} | config.flatten()
        new = [Param(key, str(value)) for key, value in params.items() if key not in known]
        self._client.log_batch(run, params=new)
        if self._status[lineage.name] != "RUNNING":
            self._client.update_run(run, status="RUNNING")
            self._status[lineage.name] = "RUNNING"

    def _note(self, lineage: Lineage, setting: Mapping[str, Any]) -> str:
        """Return the description of a training, as Markdown."""
        title = TITLES.get(lineage.role, f"a training of {lineage.role}")
        if lineage.stage == CONFIRM:
            title = f"a confirmation of {lineage.role}, on a seed that the search had not seen"
        study = f"[{self._study}](#/experiments/{self._experiment}/runs/{self.study_run})"
        values = ", ".join(f"{name} = {short(value)}" for name, value in setting.items())
        return f"**{lineage.name}** of {study}: {title}{f'; {values}' if values else ''}."

    def _epoch(self, name: str, waiting: list[dict[str, Any]]) -> None:
        """Write an epoch's metrics, if they still wait."""
        for report in tuple(waiting):
            self._client.log_batch(self._runs[name], metrics=self._metrics(report))
            self._written.setdefault(name, set()).add(report["epoch"])
        waiting.clear()

    def _finish(self, name: str, record: dict[str, Any]) -> None:
        """Write what MLflow has not of a lineage, in as few calls as it takes: each is a transaction or more there."""
        run, at = self._runs[name], int(record["ended_at"] * 1000)
        written = self._written.get(name, set())
        epochs = [self._metrics(report) for report in record["history"] if report["epoch"] not in written]
        retrieval = {} if record["test"] is None else record["test"]["retrieval"]
        tags = {"outcome": record["outcome"], "attempts": str(record["attempt"])}
        if record["reason"]:
            tags["reason"] = record["reason"]
        if doctor.dead_epochs(record["config"], record["history"]):
            tags["warning.dead_kernel"] = doctor.DEAD
        self._client.log_batch(
            run,
            metrics=[*itertools.chain(*epochs), *self._last_metrics(record, at), *_curves(retrieval, at)],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        for split, report in retrieval.items():
            self._client.log_dict(run, report, f"retrieval_{split}.json")
        self._client.log_dict(run, record["config"], "config.json")
        export = self._folder_of(name) / EXPORT
        if export.exists():
            self._client.log_artifacts(run, str(export), "checkpoint")
        if (probe := self._folder_of(name) / PROBE).exists():
            self._client.log_artifact(run, str(probe))
        if (trace := self._folder_of(name) / TORCH_TRACE).exists():
            self._client.log_artifacts(run, str(trace), TORCH_TRACE)
        self._client.set_terminated(run, STATUS[record["outcome"]], end_time=at)
        self._status[name] = STATUS[record["outcome"]]
        self._written.pop(name, None)

    def _metrics(self, report: Mapping[str, Any]) -> list[Metric]:
        """Return what an epoch gave, with the objective first where it is known."""
        at = int(report["ended_at"] * 1000)
        return [Metric(key, value, at, report["epoch"]) for key, value in self._headed(report["metrics"]).items()]

    def _last_metrics(self, record: Mapping[str, Any], at: int) -> list[Metric]:
        """Return what was measured after the last epoch: label-free criteria and the official target split."""
        last: dict[str, Any] = record["history"][-1] if record["history"] else {"epoch": 0, "metrics": {}}
        more = {key: value for key, value in record["metrics"].items() if key not in last["metrics"]}
        return [Metric(key, value, at, last["epoch"]) for key, value in self._headed(more).items()]

    def _headed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return ({OBJECTIVE: metrics[self._objective]} if self._objective in metrics else {}) | dict(metrics)

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            while True:
                try:
                    self._check()
                    call()
                    self._calls += 1
                    self.problem = ""
                    break
                except LeaseLostError:
                    return
                except Exception as error:  # of MLflow, a database, a disk, boto: no class in common
                    self.problem = f"MLflow does not take what is written ({first_line(error)})"
                    if isinstance(error, KeyError) or getattr(error, "error_code", "") in PERMANENT:
                        self.refused.append(self.problem)
                        break
                    if self._closing.wait(RETRY_SECONDS) or not self._learned():
                        return

    def _learned(self) -> bool:
        """Ask MLflow, until it answers, what it has: the call that failed may have been carried out."""
        while True:
            try:
                self._learn()
                return True
            except Exception as error:
                self.problem = f"MLflow does not answer ({first_line(error)})"
                if self._closing.wait(RETRY_SECONDS):
                    return False

    # The end.

    @property
    def backlog(self) -> int:
        """How much waits to be written: starts, epochs and ends of trials."""
        return self._queue.qsize()

    def flush(self, *, seconds: float) -> bool:
        """Wait until all that was queued is written; return False where nothing got on for ``seconds``."""
        return self._wait(seconds, anew=True)

    def _wait(self, seconds: float, *, anew: bool) -> bool:
        """Wait until all that was queued is written, ``seconds`` at most; ``anew``: after every call that was made."""
        done = threading.Event()
        self._queue.put(done.set)
        calls, deadline = self._calls, time.monotonic() + seconds
        while not done.wait(0.05):
            if anew and calls != self._calls:
                calls, deadline = self._calls, time.monotonic() + seconds
            if time.monotonic() > deadline or not self._thread.is_alive():
                return False
        return True

    def finish_study(
        self, *, metrics: Mapping[str, float], tags: Mapping[str, str], artifacts: Mapping[str, Any]
    ) -> None:
        """Close the study's run with its outcome."""
        self._check()
        self._learn()  # a run that was made twice must not stay open
        if self._conclude is not None:
            tags = {**tags, NOTE: self._conclude(artifacts)}
        now = int(time.time() * 1000)
        for file, content in artifacts.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=1)
            self._client.log_text(self.study_run, text, file)
        self._client.log_batch(
            self.study_run,
            metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self._client.set_terminated(self.study_run, "FINISHED")
        self._status[""] = "FINISHED"

    def close(self, *, seconds: float = 30.0, interrupted: bool = False) -> bool:
        """Write what is queued and stop; return whether all of it was written.

        Args:
            seconds: How long to try.
            interrupted: Runs that are still open read KILLED, for the next driver opens them again; else FAILED.
        """
        written = self._wait(seconds, anew=False)
        self._closing.set()
        self._queue.put(None)
        self._thread.join(timeout=seconds)
        if written:
            for name in [name for name, status in self._status.items() if status == "RUNNING"]:
                self._client.set_terminated(self._runs[name], "KILLED" if interrupted else "FAILED")
        return written

    def run_of(self, name: str) -> str:
        """Return the MLflow run of a lineage."""
        return self._runs[name]


def _rounded(value: Any) -> Any:
    """Return a setting as a column shows it: three digits; the config's own parameter has them all."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _curves(retrieval: Mapping[str, Any], at: int) -> list[Metric]:
    """Return the curves of the one reading of the official target split; ``cmc/target`` has the rank as its step."""
    return [
        Metric(f"cmc/{split}", value, at, rank)
        for split, report in retrieval.items()
        for rank, value in enumerate(report["cmc"], start=1)
    ]
