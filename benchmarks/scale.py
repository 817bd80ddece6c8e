"""What one study of 10,000 trials costs its driver, and what 1,000 workers that ask at once get from it.

    python benchmarks/scale.py                                              # 10,000 trials, 8 at a time
    python benchmarks/scale.py --workers 1000 --seconds 60 --trials 5000    # no training, but its time

A stub takes the place of training behind the searcher, the ledger (SQLite on disk, lease and fence checked) and the
recorder (MLflow on SQLite) of a study: see simulation.py. Time is taken apart: the sampler's ask (Optuna's TPE), what
the ledger takes, the rest of the searcher, and the recorder in the driver's thread; as it passes, and as the thread
computes, which other work on the machine disturbs less. The recorder's own thread works beside that one and is timed
there; its peer is the fewest MLflow calls that write such a run, made by the same thread between two trials.

With `--seconds` trials last that long (± 20 %) on a virtual clock, to which every call of the driver is added as it was
measured: discrete events. There is no recorder then, since its thread keeps no worker waiting.

Prints one JSON line per figure; `--record` also writes them to benchmarks/results/.
"""

import argparse
import datetime
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

import optuna
import psutil
import ray.tune.search
from simulation import AT_THE_END, EPOCHS, METRICS, RANKS, Driver, Simulation, utilisation

from tune import provenance

WINDOW = 1000
SHARE, MEMORY, GROWTH = 20.0, 1024, 1.5
"""Bars: milliseconds a trial, MB, the last window against the first."""
OURS = ("searcher", "ledger", "recorder")
COMPUTED = tuple(f"{kind} cpu" for kind in OURS)


def figure(name, ours, *, unit, n, **more):
    """Return one figure; ``bar`` among the rest is an upper one."""
    line = {"name": name, "ours": round(ours, 2), **more, "unit": unit, "n": n}
    if "bar" in more:
        line |= {"ratio": round(ours / more["bar"], 3), "met": ours <= more["bar"]}
    about = {"hardware": provenance.hardware(), "versions": provenance.versions()}
    return {**line, "load": round(os.getloadavg()[0], 1), **about, "date": datetime.date.today().isoformat()}


def spread(values):
    """Return the smallest and the largest."""
    return [round(min(values), 2), round(max(values), 2)]


def megabytes():
    """Return the private memory of this process: pages of its own, so not the libraries' files that it has mapped."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Private_Dirty"].split()[0]) / 1024


def resident():
    """Return all that is mapped and in memory, the libraries' files too."""
    return psutil.Process().memory_info().rss / 2**20


def bare_commit(folder):
    """Return the milliseconds of a transaction of one row on the same disk, which no ledger can go below."""
    took = []
    with sqlite3.connect(folder / "bare.db") as database:
        database.execute("CREATE TABLE t (a)")
        for _ in range(51):
            started = time.perf_counter()
            database.execute("INSERT INTO t VALUES (0)")
            database.commit()
            took.append(1000 * (time.perf_counter() - started))
    (folder / "bare.db").unlink()
    return statistics.median(took)


def missing(driver):
    """Return how many trials either database lacks something of, read by Optuna and by SQL."""
    study = optuna.load_study(study_name="scale", storage=f"sqlite:///{driver.folder / 'ledger.db'}")
    whole = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name == "COMPLETE"
        and len(trial.intermediate_values) == EPOCHS
        and len(trial.user_attrs["metrics"]) == METRICS + AT_THE_END
    ]
    lacking = driver.trials - len({json.dumps(trial.params) for trial in whole})
    if driver.recorder is None:
        return lacking
    query = """
        SELECT count(*) FROM (
            SELECT r.run_uuid, (SELECT count(*) FROM metrics m WHERE m.run_uuid = r.run_uuid) metrics,
                (SELECT count(*) FROM params p WHERE p.run_uuid = r.run_uuid) params
            FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'mmfa.lineage' AND t.value LIKE 'search/%'
            WHERE r.status = 'FINISHED' AND metrics = ? AND params = ?
        )"""
    wanted = (EPOCHS * METRICS + AT_THE_END + RANKS, len(driver.plan.baseline.flatten()))
    with sqlite3.connect(driver.folder / "mlflow.db") as database:
        return max(lacking, driver.trials - database.execute(query, wanted).fetchone()[0])


class Windows:
    """What is noted while trials end, window by window."""

    def __init__(self, driver, *, size):
        self.driver, self.size = driver, size
        self.trials, self.memory, self.writer, self.backlog, self.resident = [], [megabytes()], [], [], 0.0

    def tell(self, spent):
        """Note a trial."""
        self.trials.append(spent)
        if len(self.trials) % self.size == 0:
            self.memory.append(megabytes())
            self.resident = max(self.resident, resident())
            self.writer.append(self.driver.writer.take())
            self.backlog.append(self.driver.recorder.backlog if self.driver.recorder else 0)
            sys.stderr.write(f"{len(self.trials)} trials: {self.line()}\n")

    def line(self):
        """Return the last window in words."""
        last = self.trials[-self.size :]
        kinds = {kind: statistics.fmean(one[kind] for one in last) for kind in (*OURS, "sampler")}
        told = ", ".join(f"{kind} {value:.1f}" for kind, value in kinds.items())
        more = f"{self.memory[-1]:.0f} MB, backlog {self.backlog[-1]}, load {os.getloadavg()[0]:.1f}"
        return f"{told} ms a trial; writer {self.writer[-1]['writer'] / self.size:.1f}; {more}"

    def means(self, *kinds):
        """Return the mean of each kind over all trials."""
        return {kind: round(statistics.fmean(one[kind] for one in self.trials), 2) for kind in kinds}

    def medians(self, *kinds):
        """Return the median over each window of what some kinds take together."""
        windows = [self.trials[at : at + self.size] for at in range(0, len(self.trials), self.size)]
        whole = [window for window in windows if len(window) == self.size] or windows
        return [round(statistics.median(sum(one[kind] for kind in kinds) for one in window), 2) for window in whole]


def one_study(folder, *, trials, workers, size):
    """Run a study from end to end as fast as the driver can; return its figures."""
    driver = Driver(folder, trials=trials, mlflow=True)
    windows = Windows(driver, size=size)
    restore = driver.time_parts()
    started = time.perf_counter()
    Simulation(driver, workers=workers, seconds=0.0, tell=windows.tell).run()
    took = time.perf_counter() - started
    assert driver.recorder.flush(seconds=3600)
    behind = time.perf_counter() - started - took
    windows.writer.append(driver.writer.take())
    driver.close()
    restore()
    lacking = missing(driver)
    started = time.perf_counter()
    again = Driver(folder, trials=trials, mlflow=True)
    assert again.searcher.suggest("again") == ray.tune.search.Searcher.FINISHED
    resumed = time.perf_counter() - started
    again.close()
    return study_figures(driver, windows, behind=behind, took=took, resumed=resumed, lacking=lacking, workers=workers)


def study_figures(driver, windows, *, behind, took, resumed, lacking, workers):
    """Return the figures of a study that was run to its end."""
    ours, computed, asks = windows.medians(*OURS), windows.medians(*COMPUTED), windows.medians("sampler")
    each = sorted(sum(one[kind] for kind in OURS) for one in windows.trials)
    writer = {kind: sum(one[kind] for one in windows.writer) / len(each) for kind in ("writer", "writer cpu")}
    floors = {kind: [one[kind] for one in driver.floors] for kind in ("floor", "floor cpu")}
    floor = {kind: statistics.fmean(values) for kind, values in floors.items()}
    of_trials = {"unit": "ms a trial", "n": len(each)}
    return [
        figure(
            "our share: searcher, ledger, recorder in the driver's thread", statistics.median(each), bar=SHARE,
            spread=spread(ours), windows=ours, mean=round(statistics.fmean(each), 2),
            p95=round(each[int(0.95 * len(each))], 2), parts=windows.means(*OURS), computed=windows.means(*COMPUTED),
            bare_commit=round(bare_commit(driver.folder), 2), trials_at_once=workers, **of_trials,
        ),
        figure(
            "our share as computed, the last window against the first", computed[-1] / computed[0], bar=GROWTH,
            windows=computed, as_passed=round(ours[-1] / ours[0], 2), unit="times", n=len(ours),
        ),
        figure("the sampler's ask", statistics.median(asks), spread=spread(asks), windows=asks, **of_trials,
               computed=windows.medians("sampler cpu")),
        figure(
            "the recorder's own thread", writer["writer"], peer=round(floor["floor"], 2),
            ratio=round(writer["writer"] / floor["floor"], 2), computed=round(writer["writer cpu"], 2),
            peer_computed=round(floor["floor cpu"], 2), peer_spread=spread(floors["floor"]), peer_n=len(driver.floors),
            **of_trials,
        ),
        figure("MLflow behind at the end", behind, backlog=max(windows.backlog), driver_s=round(took), unit="s", n=1),
        figure(
            "private memory of the driver", max(windows.memory[1:]), bar=MEMORY, before=round(windows.memory[0]),
            windows=[round(one) for one in windows.memory[1:]], with_libraries=round(windows.resident), unit="MB",
            n=len(windows.memory) - 1,
        ),
        figure("trials that ledger or MLflow lack anything of", lacking, met=lacking == 0, unit="trials",
               n=driver.trials),
        figure("taking up the finished study again", resumed, unit="s", n=1),
    ]  # fmt: skip


def many_workers(folder, *, trials, workers, seconds, size):
    """Run a study of long trials on a virtual clock; return its figures."""
    driver = Driver(folder, trials=trials, mlflow=False)
    windows = Windows(driver, size=size)
    restore = driver.time_parts()
    simulation = Simulation(driver, workers=workers, seconds=seconds, tell=windows.tell)
    simulation.run()
    driver.close()
    restore()
    lacking = missing(driver)
    full, drained = simulation.runs[workers - 1][0], min(simulation.refused)
    end = max(last for _, last in simulation.runs)
    windows.trials = windows.trials[workers:]
    spent = windows.means(*OURS[:2], "sampler")
    whole, worst = sum(spent.values()), max(spent, key=spent.__getitem__)
    rate = sum(full <= first <= drained for first, _ in simulation.runs) / (drained - full)
    more = {"workers": workers, "trial_s": seconds, "n": trials}
    return [
        figure(
            f"utilisation of {workers} workers, trials of {seconds:g} s",
            100 * utilisation(simulation.runs, workers, full, drained), start_and_end_too=round(
                100 * utilisation(simulation.runs, workers, 0.0, end), 1), unit="%", **more,
        ),
        figure(
            "what the driver takes", whole, parts=spent, unit="ms a trial", trials_a_second=round(1000 / whole, 1),
            wanted=round(workers / seconds, 2), busy_percent=round(rate * whole / 10),
            computed=windows.means(*COMPUTED[:2], "sampler cpu"), **more,
        ),
        figure(f"the bottleneck: the {worst}", 100 * spent[worst] / whole, unit="% of the driver's time", **more),
        figure("private memory of the driver", max(windows.memory[1:]), bar=MEMORY, unit="MB", **more),
        figure("trials that the ledger lacks anything of", lacking, met=lacking == 0, unit="trials", **more),
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    size = min(WINDOW, max(1, options.trials // 2))
    with tempfile.TemporaryDirectory() as name:
        if options.seconds:
            lines = many_workers(
                Path(name), trials=options.trials, workers=options.workers, seconds=options.seconds, size=size
            )
        else:
            lines = one_study(Path(name), trials=options.trials, workers=options.workers, size=size)
    sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    if options.record:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        what = f"{options.workers}x{options.seconds:g}s" if options.seconds else f"{options.trials}-trials"
        (results / f"scale-{what}-{lines[0]['date']}.json").write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
