"""What it costs, and saves, that a long search's sampler is shown a part of it (``tune.search.HISTORY``).

    python benchmarks/history.py

Searches two shipped spaces twice for each seed, eight trials at a time: shown all trials, and shown the part that a
study shows. The objective is known: a smooth peak somewhere in the space, times a factor for each choice, plus noise of
2 points. Compared are true values, in points of 100: of the trial that the search would hand on, and of the last 500
that were asked for; and what the last 500 asks computed. Prints one JSON line per figure; `--record` also writes them
to benchmarks/results/.
"""

import argparse
import datetime
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import optuna

from studies.library import load
from studies.resolve import resolve
from tune import provenance, search
from tune.ledger import Ledger

SPACES = ("lambdas", "joint")
AT_ONCE, LAST, NOISE = 8, 500, 0.02


def true_value(point, space):
    """Return the known objective of a point, between 0 and 1."""
    value = 1.0
    for name, one in point.items():
        luck = random.Random(name)  # where the peak is, and which choice is best, is a matter of the name
        if isinstance(space[name], optuna.distributions.CategoricalDistribution):
            order = luck.sample(space[name].choices, len(space[name].choices))
            value *= 1 - 0.1 * order.index(one)
        else:
            fine = optuna.distributions.FloatDistribution(space[name].low, space[name].high, log=space[name].log)
            grid = [search._at(fine, step / 200) for step in range(200)]
            value *= 1 - (sum(other < one for other in grid) / 200 - luck.uniform(0.2, 0.8)) ** 2
    return value


def searched(plan, *, trials):
    """Search; return the true value of the best trial and of the last ones, and the seconds of their asks."""
    space, running, true, asks = search.distributions(plan), [], {}, []
    noise = random.Random(plan.baseline.run.seed)
    with tempfile.TemporaryDirectory() as folder:
        stage = Ledger(f"sqlite:///{folder}/ledger.db").open("history", stage="search")
        with stage.at_once():  # kept in memory: what the disk takes is not the question
            search.prepare(plan, (stage,))
            for number in range(trials):
                made = search.sampler(plan, num_trials=number)
                stage.study.sampler = search.Recent(made, stage.database)
                started = time.thread_time()
                trial = stage.ask()
                search.suggest(trial, plan, plan.arms[0])
                asks.append(time.thread_time() - started)
                true[trial.number] = true_value(trial.params, space)
                running.append(trial)
                if len(running) == AT_ONCE:
                    ended = running.pop(noise.randrange(AT_ONCE))
                    stage.complete(ended, value=true[ended.number] + noise.gauss(0, NOISE), metrics={})
            best = max(stage.study.get_trials(deepcopy=False), key=lambda one: -1 if one.value is None else one.value)
    last = [value for _, value in sorted(true.items())[-LAST:]]
    return 100 * true[best.number], 100 * statistics.fmean(last), 1000 * statistics.fmean(asks[-LAST:])


def figure(name, part, whole, **more):
    """Return a figure: what a part of the history gives, and all of it, seed by seed."""
    differences = [one - other for one, other in zip(part, whole, strict=True)]
    return {
        "name": name,
        "ours": round(statistics.fmean(part), 2),
        "peer": round(statistics.fmean(whole), 2),
        "ratio": round(statistics.fmean(part) / statistics.fmean(whole), 3),
        "difference": round(statistics.fmean(differences), 2),
        "sd": round(statistics.stdev(differences), 2),
        "spread": [round(min(differences), 2), round(max(differences), 2)],
        "n": len(part),
        **more,
        "shown": search.HISTORY,
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "date": datetime.date.today().isoformat(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    lines, shown = [], search.HISTORY
    for name in SPACES:
        found = {}
        for seed in range(options.seeds):
            plan = resolve(
                load(name), profile_name="embedded", overrides={}, trials=options.trials, quick=True, seed=seed
            )
            for history in (shown, options.trials):
                search.HISTORY = history
                found.setdefault(history, []).append(searched(plan, trials=options.trials))
                sys.stderr.write(f"{name}, seed {seed}, shown {history}: {found[history][-1]}\n")
        search.HISTORY = shown
        part, whole = (list(zip(*found[history], strict=True)) for history in (shown, options.trials))
        about = {"space": name, "dimensions": len(search.distributions(plan)), "trials": options.trials}
        lines += [
            figure(f"{name}: the trial handed on", part[0], whole[0], unit="points of 100", **about),
            figure(f"{name}: the last {LAST} points", part[1], whole[1], unit="points of 100", **about),
            figure(f"{name}: one of the last {LAST} asks", part[2], whole[2], unit="ms computed", **about),
        ]
    sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    if options.record:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / f"history-{lines[0]['date']}.json").write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
