"""What the harness costs per trial beyond training, at steady state.

    python benchmarks/overhead.py --trials 12

runs a real study (Ray, Optuna, MLflow, checkpoints: the path of every trial) on the embedded pair and reads from its
records what lies between the end of one trial and the end of the next on the same worker: that time less the epochs
and the final evaluation, as timed inside `mmfa`, is overhead. The first trial of a worker pays for its imports and
is left out. A second study, of longer trials, is timed whole: Ray's start, both controls, report and pictures
included, against what its trainings took alone. Prints a JSON line for each; `--record` also writes them to
benchmarks/results/.
"""

import argparse
import collections
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import lines

BAR = 0.3
STUDY = """
question = "What does the harness cost?"
trials = {trials}
start_up = {trials}
[fixed]
"optim.num_epochs" = {epochs}
"optim.warmup_epochs" = 0
[space."loss.lambda_attr"]
low = 0.01
high = 30.0
log = true
"""


def run(text, *flags):
    """Run a study; return what its trainings left, by worker and in order, and how long the whole command took."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "overhead.toml"
        study.write_text(text)
        command = [sys.executable, "-m", "tune.run_study", "--study", str(study), "--out", folder, "--promote", "never"]
        seconds = lines.seconds(lambda: subprocess.run([*command, *flags], check=True, stdout=sys.stderr))
        workers = collections.defaultdict(list)
        for path in Path(folder).glob("storage/*/*/result.json"):
            record = json.loads(path.read_text())
            trained = sum(row["metrics"]["train/seconds"] for row in record["history"]) + record["test_seconds"]
            workers[record["pid"]].append((record["ended_at"], trained))
    return [sorted(trials) for trials in workers.values()], seconds


def of_a_trial(options):
    """Return the line of the overhead of every trial but a worker's first, in seconds."""
    workers, _ = run(STUDY.format(trials=options.trials, epochs=options.epochs))
    found = []
    for trials in workers:
        found += [end - before - trained for (before, _), (end, trained) in itertools.pairwise(trials)]
    median = statistics.median(found)
    return lines.figure(
        "harness overhead per trial", ours=median, peer=BAR, ratio=median / BAR, at_most=1.0,
        spread=(min(found) / BAR, max(found) / BAR), n=len(found), epochs=options.epochs,
    )  # fmt: skip


def of_a_study(options):
    """Return the line of a whole command, from start to end, against its trainings alone on as many workers."""
    workers, seconds = run(STUDY.format(trials=options.long_trials, epochs=options.long_epochs), "--quick")
    trained = [seconds for trials in workers for _, seconds in trials]
    at_once = len(os.sched_getaffinity(0))  # a core for each training
    alone = sum(trained) / at_once
    return lines.figure(
        "a whole study against its trainings alone", ours=seconds, peer=alone, ratio=seconds / alone, at_most=1.1,
        n=1, trainings=len(trained), seconds_each=round(statistics.fmean(trained), 1), workers=at_once,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--long-trials", type=int, default=30, help="of the study that is timed whole (default: 30)")
    parser.add_argument("--long-epochs", type=int, default=10, help="of each of them (default: 10)")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    lines.emit([of_a_trial(options), of_a_study(options)], "overhead", record=options.record)


if __name__ == "__main__":
    main()
