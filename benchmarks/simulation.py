"""A study without training: the searcher, ledger and recorder of a driver before workers that only say what they did.

Each trial makes three reports of 36 metrics and ends with 47 metrics and a CMC curve of 50 ranks, as many as one on the
embedded pair. The driver's methods are called as Tune calls them; Tune itself and the console are not there.
"""

import collections
import heapq
import itertools
import json
import math
import random
import time
from pathlib import Path

import ray.tune.search
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from studies.library import load
from studies.resolve import resolve
from tune import provenance, search
from tune.interrupt import Stop
from tune.job import RESULT, ROW, Job
from tune.lease import Fence
from tune.ledger import Ledger
from tune.recorder import Recorder

EPOCHS, METRICS, AT_THE_END, RANKS = 3, 36, 11, 50
FLOOR_EVERY = 50
"""Trials between two that are written to MLflow once more."""
STORAGE = (
    "known", "get_trial", "get_all_trials", "get_trial_id_from_study_id_trial_number", "write", "create_new_trial",
    "set_trial_param", "set_trial_state_values", "set_trial_intermediate_value", "set_trial_user_attr",
    "set_trial_system_attr",
)  # fmt: skip
"""Where the ledger's time goes: what the searcher and the sampler call of :class:`tune.database.Database`."""


class Watch:
    """Times calls of one thread by kind, each without the calls of another kind within."""

    def __init__(self):
        self.spent, self._inner = collections.Counter(), [(0.0, 0.0)]

    def wrap(self, thing, kind, *names):
        """Time methods of a thing."""
        for name in names:
            setattr(thing, name, self.timed(kind, getattr(thing, name)))

    def timed(self, kind, call):
        """Return a call that is timed."""

        def timed(*args, **kwargs):
            self._inner.append((0.0, 0.0))
            started = (time.perf_counter(), time.thread_time())
            try:
                return call(*args, **kwargs)
            finally:
                took = (time.perf_counter() - started[0], time.thread_time() - started[1])
                inner, outer = self._inner.pop(), self._inner.pop()
                self._inner.append((outer[0] + took[0], outer[1] + took[1]))
                self.spent[kind] += 1000 * (took[0] - inner[0])
                self.spent[f"{kind} cpu"] += 1000 * (took[1] - inner[1])

        return timed

    def take(self):
        """Return the milliseconds since the last time, by kind: that passed, and that were computed."""
        spent, self.spent = self.spent, collections.Counter()
        return spent


def stub(job):
    """Return what a worker sends for a trial: its reports, then its result, which is also on storage."""
    config, noise = json.loads(job.config), random.Random(job.name)
    at = [math.log10(config[f"loss.lambda_{name}"] or 1e-3) for name in ("attr", "aal", "mdal")]
    best = 0.45 * math.exp(-sum((x - top) ** 2 for x, top in zip(at, (1.0, -0.5, 0.3), strict=True)) / 4)
    history = []
    for epoch in range(1, EPOCHS + 1):
        metrics = {f"train/figure_{index}": noise.random() for index in range(METRICS - 2)}
        metrics |= {"mmd/plateau": 0.0, "target_val/mAP": best * epoch / EPOCHS + noise.gauss(0, 0.01)}
        history.append({"epoch": epoch, "num_epochs": EPOCHS, "ended_at": 1e9 + epoch, "metrics": metrics})
    more = {f"target/figure_{index}": noise.random() for index in range(AT_THE_END)}
    curve = sorted(noise.random() for _ in range(RANKS))
    record = {
        "name": job.name, "reason": "", "outcome": "complete", "config": config, "history": history, "notes": [],
        "metrics": history[-1]["metrics"] | more, "attempt": job.attempt, "ended_at": 1e9 + EPOCHS + 1,
        "test": {"retrieval": {"target": {"cmc": curve, "mAP": best}}},
    }  # fmt: skip
    job.fence.check()
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    (Path(job.folder) / RESULT).write_text(json.dumps(record))
    return [*({"epoch": report} for report in history), {"result": record}]


class Driver:
    """The driver of a study in a folder: lease, ledger, searcher and, where MLflow is wanted, recorder."""

    def __init__(self, folder, *, trials, mlflow):
        self.folder, self.trials, self.watch, self.writer = folder, trials, Watch(), Watch()
        self.floors, self.observers, self.recorder = [], (), None
        self.plan = resolve(load("lambdas"), profile_name="embedded", overrides={}, trials=trials, quick=True)
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
        self.lease = self.ledger.lease("scale", seconds=600)
        self.fence = Fence(str(folder / "fence"), self.lease.counter)
        self.fence.put_up()
        self.stages = tuple(self.ledger.open("scale", stage=name) for name in ("controls", "search"))
        search.prepare(self.plan, self.stages)
        if mlflow:
            self.client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
            self.recorder = self._recorder()
            self.observers = (self.recorder,)
        self.searcher = search.StudySearcher(
            plan=self.plan, stages=self.stages, make_job=self.job, observers=self.observers, stop=Stop()
        )

    def _experiment(self, name):
        known = self.client.get_experiment_by_name(name)
        return known.experiment_id if known else self.client.create_experiment(name, (self.folder / name).as_uri())

    def _recorder(self):
        recorder = Recorder(
            self.client, experiment_id=self._experiment("scale"), study_id="scale", tags=provenance.tags(),
            folder_of=self.folder_of, check=self.lease.check,
        )  # fmt: skip
        recorder.open(name="scale", params={}, note="scale")
        return recorder

    def time_parts(self):
        """Time the parts from here on; return a function that ends what reaches beyond this driver."""
        self.watch.wrap(self.searcher, "searcher", "suggest", "on_trial_result", "on_trial_complete")
        self.watch.wrap(self.ledger.storage, "ledger", *STORAGE)
        if self.recorder is not None:
            self.watch.wrap(self.recorder, "recorder", "trial_started", "trial_epoch", "trial_finished")
            self.writer.wrap(self.recorder, "writer", "_start", "_epoch", "_finish")
            self._time_floor(self._experiment("floor"))
        make = search.sampler

        def sampler(*args, **kwargs):
            made = make(*args, **kwargs)
            self.watch.wrap(made, "sampler", "infer_relative_search_space", "sample_relative", "sample_independent")
            return made

        search.sampler = sampler
        return lambda: setattr(search, "sampler", make)

    def _time_floor(self, experiment):
        """Have the recorder's thread write one trial in some again, with the fewest calls."""
        finish, finished = self.recorder._finish, itertools.count()

        def finish_and_more(name, record):
            finish(name, record)
            if next(finished) % FLOOR_EVERY == 0:
                floor = Watch()
                floor.timed("floor", write_at_once)(self.client, experiment, self.plan.baseline, record)
                self.floors.append(floor.take())

        self.recorder._finish = finish_and_more

    def folder_of(self, name):
        """The folder of a lineage."""
        return self.folder / "storage" / name.replace("/", "-")

    def job(self, lineage, config):
        """What a worker gets."""
        return Job(
            name=lineage.name, config=config.to_json(), source_store="", target_store="",
            folder=str(self.folder_of(lineage.name)), attempt=len(lineage.attempts), fence_folder=self.fence.folder,
            fence_counter=self.fence.counter, threads=1, reading="", criteria={},
        )  # fmt: skip

    def close(self):
        """Let go of the study."""
        if self.recorder is not None:
            self.recorder.close(seconds=600)
        self.lease.release()


def write_at_once(client, experiment, config, record):
    """Write a trial to MLflow with the fewest calls: what a recorder that knows the end beforehand would do."""
    tags = {**provenance.tags(), **{f"tag.{index}": record["name"] for index in range(6)}}
    run = client.create_run(experiment, run_name=record["name"], tags=tags).info.run_id
    client.log_batch(run, params=[Param(key, str(value)) for key, value in config.flatten().items()])
    metrics = [
        Metric(key, value, int(report["ended_at"] * 1000), report["epoch"])
        for report in record["history"]
        for key, value in report["metrics"].items()
    ]
    metrics += [Metric(key, value, 0, EPOCHS) for key, value in list(record["metrics"].items())[-AT_THE_END:]]
    metrics += [Metric("cmc", value, 0, k) for k, value in enumerate(record["test"]["retrieval"]["target"]["cmc"])]
    client.log_batch(run, metrics=metrics, tags=[RunTag("outcome", "complete"), RunTag("attempts", "1")])
    client.log_dict(run, record["config"], "config.json")
    client.log_dict(run, record["test"]["retrieval"]["target"], "retrieval_target.json")
    client.set_terminated(run, "FINISHED")


class Simulation:
    """Workers on a virtual clock before one driver, whose calls take the time they take.

    Args:
        driver: The driver.
        workers: How many trials run at once.
        seconds: How long a trial lasts, ± 20 %.
        tell: Called with the milliseconds by kind that the driver spent on a trial, once it is over.
    """

    def __init__(self, driver, *, workers, seconds, tell):
        self.driver, self.workers, self.seconds, self.tell = driver, workers, seconds, tell
        self.now = 0.0
        self.runs, self.spent, self.asked, self.refused = [], {}, 0, []
        self._events, self._order, self._luck = [], itertools.count(), random.Random(0)

    def run(self):
        """Run the study to its end."""
        for _ in range(self.workers):
            self._at(0.0, self._ask)
        while self._events:
            at, _, call, args = heapq.heappop(self._events)
            self.now = max(self.now, at)
            call(*args)

    def _at(self, moment, call, *args):
        heapq.heappush(self._events, (moment, next(self._order), call, args))

    def _drive(self, trial, call, **kwargs):
        """Have the driver do something for a trial; the clock goes on meanwhile."""
        started = time.perf_counter()
        answer = call(trial_id=trial, **kwargs)
        self.now += time.perf_counter() - started
        self.spent.setdefault(trial, collections.Counter()).update(self.driver.watch.take())
        return answer

    def _ask(self):
        self.asked += 1
        trial = f"trial-{self.asked}"
        answer = self._drive(trial, self.driver.searcher.suggest)
        if answer == ray.tune.search.Searcher.FINISHED:
            self.refused.append(self.now)
            return
        rows = stub(Job(**answer["job"]))
        lasts = self.seconds * self._luck.uniform(0.8, 1.2)
        self.runs.append((self.now, self.now + lasts))
        for number, row in enumerate(rows[:-2], start=1):
            self._at(self.now + lasts * number / EPOCHS, self._report, trial, row)
        self._at(self.now + lasts, self._complete, trial, rows[-1])  # Tune passes the last result on with the end

    def _report(self, trial, row):
        self._drive(trial, self.driver.searcher.on_trial_result, result={ROW: json.dumps(row)})

    def _complete(self, trial, row):
        self._drive(trial, self.driver.searcher.on_trial_complete, result={ROW: json.dumps(row)}, error=False)
        self.tell(self.spent.pop(trial))
        self._at(self.now, self._ask)


def utilisation(runs, workers, start, end):
    """Return the share of the workers' time between two moments in which they trained."""
    busy = sum(max(0.0, min(end, last) - max(start, first)) for first, last in runs)
    return busy / (workers * (end - start))
