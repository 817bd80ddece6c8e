"""What the harness costs per trial beyond training, at steady state.

    python benchmarks/overhead.py --trials 12

runs a real study (Ray, Optuna, MLflow, checkpoints: the path of every trial) on the embedded pair and reads from its
records what lies between the end of one trial and the end of the next on the same worker: that time less the epochs
and the final evaluation, as timed inside `mmfa`, is overhead. The first trial of a worker pays for its imports and
is left out. Prints one JSON line; `--record` also writes it to benchmarks/results/.
"""

import argparse
import collections
import itertools
import json
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


def measure(out):
    """Return the overhead of every trial but a worker's first, in seconds."""
    workers = collections.defaultdict(list)
    for path in out.glob("storage/*/*/result.json"):
        record = json.loads(path.read_text())
        trained = sum(row["metrics"]["train/seconds"] for row in record["history"]) + record["test_seconds"]
        workers[record["pid"]].append((record["ended_at"], trained))
    found = []
    for trials in workers.values():
        trials.sort()
        found += [end - before - trained for (before, _), (end, trained) in itertools.pairwise(trials)]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "overhead.toml"
        study.write_text(STUDY.format(trials=options.trials, epochs=options.epochs))
        command = [sys.executable, "-m", "tune.run_study", "--study", str(study), "--out", folder, "--promote", "never"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        overhead = measure(Path(folder))
    median = statistics.median(overhead)
    found = lines.figure(
        "harness overhead per trial", ours=median, peer=BAR, ratio=median / BAR, at_most=1.0,
        spread=(min(overhead) / BAR, max(overhead) / BAR), n=len(overhead), epochs=options.epochs,
    )  # fmt: skip
    lines.emit([found], "overhead", record=options.record)


if __name__ == "__main__":
    main()
