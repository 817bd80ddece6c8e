"""Run the real command in a process group of its own, kill it, and read what it left."""

import collections
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[2]

SIZES = '"data.image_height" = 32\n"data.image_width" = 16'
"""Images on which an epoch takes one to two seconds: time to be killed in."""

TINY = """
question = "Does a study survive?"
trials = 4
start_up = 2
[protocol]
baseline_seeds = 1
confirm_seeds = 2
[fixed]
"optim.num_epochs" = 3
"optim.warmup_epochs" = 1
[space."loss.lambda_attr"]
low = 0.01
high = 30.0
log = true
""".replace("[fixed]", f"[fixed]\n{SIZES}")
FEW_STEPS = '"data.image_height" = 32\n"data.image_width" = 16\n"data.source_batch" = 64\n"data.target_batch" = 64'
QUICK = TINY.replace(SIZES, FEW_STEPS)
"""The same on smaller images in larger batches, where nobody has to be killed in the middle."""


class Driver:
    """One study: its folder, its command, its processes."""

    def __init__(self, folder, *, cache, study=TINY, lease_seconds=20, quick=False):
        self.out = folder / "out"
        self.file = folder / "tiny.toml"
        self.file.write_text(study)
        self.command = [sys.executable, str(ROOT / "tune" / "run_study.py"), "--study", str(self.file)]
        self.command += ["--quick"] if quick else []
        self.command += ["--out", str(self.out), "--cache-dir", str(cache), "--lease-seconds", str(lease_seconds)]
        self.prefix = []  # what runs the command, such as ip netns exec
        self.environment = {}
        self.ledger_url = f"sqlite:///{self.out / 'ledger.db'}"
        self.process = None

    def start(self, *more):
        log = (self.out.parent / "log.txt").open("ab")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        self.process = subprocess.Popen(
            [*self.prefix, *self.command, *more], stdout=log, stderr=log, start_new_session=True, env=environment
        )
        return self.process

    def run(self, *more, timeout=1200):
        """Run to the end; return the exit code and what this call printed."""
        log = self.out.parent / "log.txt"
        before = log.stat().st_size if log.exists() else 0
        code = self.start(*more).wait(timeout)
        return code, log.read_bytes()[before:].decode()

    def workers(self):
        """Return the processes of this driver that train."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if any(word.startswith("ray::ImplicitFunc") for word in child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def raylet(self):
        """Return the process of Ray's node."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if child.name() == "raylet")

    def end(self):
        """Leave no process behind, whatever became of the test."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def kill(self, number=signal.SIGKILL):
        os.kill(self.process.pid, number)
        return self.process.wait(180)

    def freeze(self):
        """Stop the driver (SIGSTOP), and not while it writes to its ledger: SQLite's lock would stop with it."""
        while True:
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            try:
                with contextlib.closing(sqlite3.connect(self.out / "ledger.db", timeout=1)) as ledger:
                    ledger.execute("BEGIN IMMEDIATE")
                    ledger.rollback()
                return
            except sqlite3.OperationalError:
                self.process.send_signal(signal.SIGCONT)
                time.sleep(0.1)

    def wait_for(self, condition, *, timeout=600):
        """Wait until ``condition()`` holds while the driver runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, (self.out.parent / "log.txt").read_text()
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.1)

    def on_storage(self, name):
        """Return the text of a file in every lineage's folder, by the folder's name."""
        return {file.parent.name: file.read_text() for file in self.out.glob(f"storage/*/*/{name}")}

    def commits(self):
        """Return every line of the journals, oldest first: who committed which epoch of which lineage, and when."""
        lines = [
            {"lineage": lineage, **json.loads(line)}
            for lineage, journal in self.on_storage("journal.jsonl").items()
            for line in journal.splitlines()
        ]
        return sorted(lines, key=lambda line: line["at"])

    def epochs(self):
        """Return every epoch that was trained and committed, as (lineage, epoch)."""
        return [(line["lineage"], line["epoch"]) for line in self.commits()]

    def results(self):
        """Return the record of every lineage that is over, by its folder's name."""
        return {lineage: json.loads(text) for lineage, text in self.on_storage("result.json").items()}

    def progress(self, since, *, of=None, without=(), driver=0):
        """Return when the first epoch or result after ``since`` was committed, or None where there is none yet.

        ``of`` are the lineages that count (all), ``without`` the processes that do not, because they were killed, and
        ``driver`` the first one in turn whose workers count.
        """
        lines = [line for line in self.commits() if line["driver"] >= driver]
        moments = [(line["at"], line["lineage"], line["pid"]) for line in lines]
        moments += [(result["ended_at"], name, result["pid"]) for name, result in self.results().items() if not driver]
        counted = [at for at, name, pid in moments if (of is None or name in of) and pid not in without and at > since]
        return min(counted, default=None)

    def ledger(self):
        """Return the Optuna trials by stage."""
        storage = optuna.storages.RDBStorage(self.ledger_url)
        return {
            name.partition("/")[2] or "search": optuna.load_study(study_name=name, storage=storage).trials
            for name in optuna.get_all_study_names(storage)
        }

    def runs(self):
        """Return all MLflow runs of the folder."""
        client = MlflowClient(f"sqlite:///{self.out / 'mlflow.db'}")
        return [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]


def check_exactly_once(driver, *, trials, epochs, confirmations, again=(), hidden=2):
    """The promise: N terminal lineages, each epoch trained once, one closed MLflow run per lineage, no point twice.

    ``again`` are epochs, as (lineage, epoch), whose checkpoint was destroyed, so that they had to be trained again;
    ``hidden`` is how many kills there were that may have fallen between a commit and its line in the journal.
    """
    stages = driver.ledger()
    for stage, number in (("controls", 2), ("search", trials), ("confirm", confirmations)):
        lineages = collections.defaultdict(list)
        for trial in stages.get(stage, []):
            first = trial.user_attrs.get("lineage", len(lineages))
            lineages[first].append(trial)
        assert len(lineages) == number
        ends = [attempts[-1].state.name for attempts in lineages.values()]
        assert ends == ["COMPLETE"] * number
        assert not [trial for trial in stages.get(stage, []) if trial.state.name in ("RUNNING", "WAITING")]
        assert sum(trial.state.name == "COMPLETE" for trial in stages.get(stage, [])) == number
        for attempts in lineages.values():
            assert sorted(attempts[-1].intermediate_values) == list(range(1, epochs + 1))
    points = [tuple(t.params.values()) for t in stages["search"] if t.state.name == "COMPLETE"]
    assert len(set(points)) == trials

    counted = collections.Counter(driver.epochs())
    twice = {epoch for epoch, times in counted.items() if times > 1}
    assert twice <= set(again) and max(counted.values()) <= 2, f"an epoch was trained and committed twice: {twice}"
    assert len(counted) >= (trials + 2 + confirmations) * epochs - hidden, (
        "only a kill between a commit and its journal line may hide one"
    )

    runs = driver.runs()
    by_lineage = collections.Counter(run.data.tags.get("mmfa.lineage", "study") for run in runs)
    assert set(by_lineage.values()) == {1} and len(by_lineage) == trials + 3 + confirmations
    assert {run.info.status for run in runs} == {"FINISHED"}
    check_metrics(driver, epochs, again=again)
    assert not list(driver.out.glob("storage/*/ray-*")) and not list(driver.out.glob("storage/*/*/attempt-*"))
    assert not [path for path in driver.out.rglob("*") if path.suffix == ".tmp"]


def check_metrics(driver, epochs, *, again=()):
    """Every lineage has each epoch's objective once, equal to the ledger's; twice what was trained ``again``."""
    with sqlite3.connect(driver.out / "mlflow.db") as database:
        rows = database.execute(
            "SELECT t.value, m.step, m.value FROM metrics m JOIN tags t ON t.run_uuid = m.run_uuid "
            "WHERE m.key = 'target_val/mAP' AND t.key = 'mmfa.lineage'"
        ).fetchall()
    counted = collections.Counter((lineage.replace("/", "-"), step) for lineage, step, _ in rows)
    assert {epoch for epoch, times in counted.items() if times > 1} <= set(again)
    recorded = {(lineage, step): value for lineage, step, value in rows}
    stages = driver.ledger()
    for kind, stage in stages.items():
        for number, trial in enumerate(t for t in stage if "lineage" not in t.user_attrs):
            name = f"{kind}/{trial.user_attrs.get('name', f'{number:04d}')}"
            attempts = [t for t in stage if t.user_attrs.get("lineage", -1) == number] or [trial]
            for step in range(1, epochs + 1):
                assert recorded[name, step] == attempts[-1].intermediate_values[step]
