"""A real study with a fault in it: the real command, what it committed and when, and what must hold in the end."""

import os
import time
import uuid

import psutil
import pyarrow.parquet
import services
from integration_tests.driver import SIZES, Driver, check_exactly_once

STUDY = """
question = "Does a study survive the loss of anything?"
trials = {trials}
start_up = 2
[protocol]
baseline_seeds = 1
[fixed]
{sizes}
"optim.num_epochs" = {epochs}
"optim.warmup_epochs" = 1
[space."loss.lambda_attr"]
low = 0.01
high = 30.0
log = true
"""
MARK = "MMFA_CHAOS_MARK"
"""Set in the environment of everything that a test starts: by it the test ends what is left, and nothing else."""


class Study(Driver):
    """A tiny study without confirmations: two controls and some trials."""

    def __init__(self, folder, *, cache, trials=3, epochs=5):
        self.trials, self.epochs_each, self.cache = trials, epochs, cache
        text = STUDY.format(sizes=SIZES, trials=trials, epochs=epochs)
        super().__init__(folder, cache=cache, study=text, lease_seconds=10, quick=True)
        self.mark = uuid.uuid4().hex
        self.environment = {MARK: self.mark}

    def log(self):
        """Return all that the command printed, in all its runs."""
        return (self.out.parent / "log.txt").read_text()

    def open_lineages(self):
        """Return the lineages that have begun and are not over."""
        begun = {line["lineage"] for line in self.commits()}
        return begun - self.results().keys()

    def lineage_of(self, pid):
        """Return the lineage that a worker is at, or None where it has committed nothing of it yet."""
        mine = [line["lineage"] for line in self.commits() if line["pid"] == pid]
        return mine[-1] if mine and mine[-1] in self.open_lineages() else None

    def recovery(self, since, *, of=None, without=(), driver=0, timeout=600):
        """Wait for progress after a fault; return how long it took, in seconds."""
        found = []
        self.wait_for(
            lambda: found.append(self.progress(since, of=of, without=without, driver=driver)) or found[-1],
            timeout=timeout,
        )
        return found[-1] - since

    def again(self):
        """Type the command again; return when, and the number of its driver: older ones' orphans may still train."""
        known = [line["driver"] for line in self.commits()]
        known += [int(path.name) for path in self.out.glob("storage/*/fence/*")]
        at = time.time()
        self.start()
        return {"since": at, "driver": max(known, default=0) + 1}

    def bury(self):
        """Wait until the orphans of a killed driver are gone too."""
        deadline = time.monotonic() + 180
        while left := [process for process in psutil.process_iter() if carries(process, self.mark)]:
            assert time.monotonic() < deadline, f"orphans of the driver live on: {left}"
            time.sleep(0.2)

    def grow(self, number, *, timeout=900):
        """Wait for so many more epochs."""
        target = len(self.commits()) + number
        self.wait_for(lambda: len(self.commits()) >= target, timeout=timeout)

    def end(self):
        """Leave no process behind, whatever became of the test."""
        super().end()
        end_marked(self.mark)


class S3Study(Study):
    """The same with its storage on S3.

    Args:
        s3: a client that sees it, whatever the study sees.
        environment: in which the study finds it.
    """

    def __init__(self, folder, *, cache, s3, environment, **sizes):
        super().__init__(folder, cache=cache, **sizes)
        self._s3 = s3
        self.command += ["--storage", f"s3://{services.BUCKET}/chaos"]
        self.environment |= environment

    def objects(self):
        """Return the name of everything in the bucket."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=services.BUCKET)
        return [item["Key"] for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]

    def on_storage(self, name):
        """Return the text of a file in every lineage's folder, by the folder's name."""
        found = {}
        for key in self.objects():
            if key.endswith(f"/{name}"):
                body = self._s3.get_object(Bucket=services.BUCKET, Key=key)["Body"].read()
                found[key.split("/")[-2]] = body.decode()
        return found


def end_marked(mark):
    """Kill every process that carries the mark in its environment, and wait until none is left."""
    deadline = time.monotonic() + 30
    while left := [process for process in psutil.process_iter() if carries(process, mark)]:
        assert time.monotonic() < deadline, f"cannot be ended: {left}"
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)


def carries(process, mark):
    """Whether a process, this one excepted, was started with the mark."""
    try:
        alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
        return alive and process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def check_survived(study, *, again=(), hidden=2):
    """The promise after a fault: exactly once, and ledger = MLflow = what is on storage; nothing is left over."""
    trials, epochs = study.trials, study.epochs_each
    check_exactly_once(study, trials=trials, epochs=epochs, confirmations=0, again=again, hidden=hidden)
    results = study.results()
    assert len(results) == trials + 2
    for stage, attempts in study.ledger().items():
        firsts = [trial for trial in attempts if "lineage" not in trial.user_attrs]
        for number, first in enumerate(firsts):
            last = next(t for t in reversed(attempts) if t is first or t.user_attrs.get("lineage") == number)
            record = results[f"{stage}-{first.user_attrs.get('name', f'{number:04d}')}"]
            assert record["outcome"] == "complete" and last.value == record["metrics"]["target_val/mAP"]
            assert [row["epoch"] for row in record["history"]] == list(range(1, epochs + 1))
            found = {row["epoch"]: row["metrics"]["target_val/mAP"] for row in record["history"]}
            assert found == last.intermediate_values
    rows = pyarrow.parquet.read_table(study.out / "study.parquet", columns=["lineage", "epoch", "target_val/mAP"])
    found = {(row["lineage"].replace("/", "-"), row["epoch"]): row["target_val/mAP"] for row in rows.to_pylist()}
    told = {
        (name, row["epoch"]): row["metrics"]["target_val/mAP"]
        for name, record in results.items() for row in record["history"]
    }  # fmt: skip
    assert found == told, "study.parquet has every epoch of every training once"
    strays = ("attempt-", "error", "owner", "pruned", ".probe-", ".seen-by-all-")
    left = [path.name for path in study.out.glob("storage/**/*") if path.name.startswith(strays)]
    assert left == [] and not list(study.out.rglob("*.corrupt")) and not list(study.out.rglob("*.pulled.tmp"))


def check_swept(study):
    """Nothing needless is left on S3, and no worker's copy of anything on this machine."""
    needless = ("error.txt", "pruned", "owner", ".tmp")
    assert [key for key in study.objects() if "attempt-" in key or key.endswith(needless)] == []
    scratch = study.cache / "trials"
    (folder,) = study.out.glob("storage/*/")
    copies = scratch / f"{folder.name}-{(folder / 'ledger').read_text()[:8]}"
    assert not copies.exists(), list(copies.rglob("*"))
