"""How many trials a search needs, replayed over trials that were really trained.

    python benchmarks/economy.py

results/economy-trials.parquet holds quasi-random points of the λ space with their `target_val/mAP` after every epoch
(see economy.toml and economy_table.py). A replay is a search of that space in which a proposed point is answered by
the measured trial nearest to it (each λ in units of its range's logarithm): every number that a sampler sees was
measured, seed noise included. `--smooth` answers by a Gaussian process fitted to the table instead, whose noise is
drawn anew for each trial. The errors of both, each trial predicted from the others, are printed.

Ours is what a study runs: the paper's defaults, `start_up` points of Halton's sequence, then `tune.search.sampler`
(here a Gaussian process), two trials at a time. Beside it TPE after the same start-up, random search, Halton's
sequence alone and Optuna's TPE as it comes; ours with other start-ups; ours with ASHA at several settings (then TPE
draws), where the cost is counted in epochs. A setting is *good* where it is among the best 5 % of the table. Medians
over replays with other seeds; spread is from the lower to the upper quartile.
"""

import argparse
import functools
import statistics
import sys
import warnings

import lines
import numpy as np
import optuna
import pyarrow.parquet
from economy_table import STUDY, TABLE
from scipy.spatial import cKDTree

from studies.library import load
from studies.plan import SEARCH
from studies.protocol import Pruning
from studies.resolve import resolve
from tune import search

WORKERS, GOOD, NEVER = 2, 0.95, np.inf
BUDGETS = (10, 20, 40)
BAR = 0.5
"""Of random search's trials: what ours may take to its best."""
HALVING = tuple(Pruning(grace_period=grace, reduction_factor=factor) for grace in (1, 2) for factor in (2, 3))
TPE = "ours with TPE"
"""A study's search where TPE draws after the start-up, as it does in spaces with choices."""


def shipped(*, seed, **changed):
    """Return the plan of the shipped study of this space."""
    study = load("lambdas").model_copy(update={name: value for name, value in changed.items() if value is not None})
    return resolve(study, profile_name="embedded", overrides={}, seed=seed)


class Table:
    """Measured trials: points in the unit cube and what they gave after each epoch."""

    def __init__(self, path=TABLE):
        rows = pyarrow.parquet.read_table(path).to_pylist()
        self.plan = shipped(seed=0)
        self.space = search.distributions(self.plan)
        self.unit_TD = np.array([self.unit(row) for row in rows])
        self.curves_TE = np.array([row["curve"] for row in rows], dtype=np.float64)
        self.good = float(np.quantile(self.curves_TE[:, -1], GOOD))
        self._tree = cKDTree(self.unit_TD)

    def unit(self, point):
        """Return a point's place in the unit cube."""
        return [np.log(point[name] / one.low) / np.log(one.high / one.low) for name, one in self.space.items()]

    def nearest(self, point, rng):
        """Return the curve of the measured trial that is nearest."""
        return self.curves_TE[self._tree.query(self.unit(point))[1]]

    def left_out(self):
        """Return for each trial what the nearest of the others gave."""
        return self.curves_TE[self._tree.query(self.unit_TD, k=2)[1][:, 1], -1]


class Smooth:
    """A Gaussian process for each epoch, with the noise that it found in the table."""

    def __init__(self, table):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import Matern, WhiteKernel

        self._table = table
        kernel = 1.0 * Matern([0.5] * table.unit_TD.shape[1], (0.05, 20.0), nu=2.5) + WhiteKernel(0.3)
        fitted = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():  # a λ that does not matter has the longest scale that there is
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted.fit(table.unit_TD, table.curves_TE[:, -1])
        fixed = functools.partial(GaussianProcessRegressor, fitted.kernel_, optimizer=None, normalize_y=True)
        self._processes = [fixed().fit(table.unit_TD, curve_T) for curve_T in table.curves_TE.T]
        self._noise = np.sqrt(fitted.kernel_.k2.noise_level) * table.curves_TE[:, -1].std()
        covariance = fitted.kernel_(table.unit_TD)
        inverse, values = np.linalg.inv(covariance), table.curves_TE[:, -1]
        centred = (values - values.mean()) / values.std()
        self._left_out = values - values.std() * (inverse @ centred) / np.diag(inverse)

    def curve(self, point, rng):
        """Return what a training there may give."""
        unit = [self._table.unit(point)]
        return np.array([process.predict(unit)[0] for process in self._processes]) + rng.normal(0, self._noise)

    def left_out(self):
        """Return for each trial what the others predict."""
        return self._left_out


class Found:
    """What a search saw, trial by trial: the last value or nothing where it was ended early, and the epochs so far."""

    def __init__(self):
        self.values, self.epochs = [], []

    def add(self, value, epochs):
        """Note the end of a trial."""
        self.values.append(value)
        self.epochs.append(epochs + (self.epochs[-1] if self.epochs else 0))

    def best(self, trials):
        """Return the best of the first trials."""
        return max(self.values[:trials])

    def reached(self, value, counts=None):
        """Return how many trials (or ``counts``, such as epochs) it took to a value; NEVER where it did not."""
        counts = range(1, len(self.values) + 1) if counts is None else counts
        return next((count for one, count in zip(self.values, counts, strict=True) if one >= value), NEVER)


def ours(start_up=None, halving=None, kind=None):
    """Return a search as a study runs it; ``kind`` takes the place of its sampler after the start-up."""

    def make(table, seed):
        plan = shipped(seed=seed, start_up=start_up, pruning=halving)
        arm = plan.arm(SEARCH)

        def sampler(index):
            if kind is None:
                return search.sampler(plan, num_trials=index)
            entropy = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
            return kind(seed=entropy, n_startup_trials=plan.study.start_up)

        def known(index):
            return search.start_up_point(plan, arm, index) if index <= plan.study.start_up else None

        return sampler, known, None if halving is None else search.pruner(plan)

    return make


def optunas(kind):
    """Return a search by a sampler of Optuna's."""

    def make(table, seed):
        made = kind(seed=seed)
        return lambda index: made, lambda index: None, None

    return make


def halton(table, seed):
    """Return a search that only spreads its points."""
    plan = shipped(seed=seed)
    made = optuna.samplers.RandomSampler(seed=seed)
    return lambda index: made, lambda index: search.start_up_point(plan, plan.arm(SEARCH), index + 1), None


def replay(table, curve, make, *, seed, trials):
    """Search once; return what was found."""
    sampler, known, pruner = make(table, seed)
    study = optuna.create_study(direction="maximize", pruner=pruner or optuna.pruners.NopPruner())
    rng, running, found = np.random.default_rng(seed), [], Found()
    for index in range(trials + WORKERS - 1):
        if index < trials:
            study.sampler = sampler(index)
            if (point := known(index)) is not None:
                study.enqueue_trial(point)
            trial = study.ask()
            search.suggest(trial, table.plan, table.plan.arm(SEARCH))
            running.append(trial)
        if len(running) == WORKERS or index >= trials:
            finish(study, running.pop(0), curve, rng, found, prunes=pruner is not None)
    return found


def finish(study, trial, curve, rng, found, *, prunes):
    """Answer a trial, epoch by epoch."""
    values = curve(trial.params, rng)
    for epoch, value in enumerate(values, start=1):
        trial.report(value, epoch)
        if prunes and epoch < len(values) and trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            found.add(-np.inf, epoch)
            return
    study.tell(trial, values[-1])
    found.add(float(values[-1]), len(values))


def quartiles(values):
    """Return the lower and the upper quartile; infinities stay what they are."""
    ordered = sorted(values)
    return [ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]]


def number(value):
    """Return a number as JSON has it: None for what was never reached."""
    return round(float(value), 4) if np.isfinite(value) else None


def cost(name, ours, peer, **more):
    """Return the line of what two searches took, in trials or epochs; of what was never reached there is no number."""
    mine, other = statistics.median(ours), statistics.median(peer)
    made = lines.figure(name, ours=mine, peer=other, ratio=mine / other, n=len(ours), **more)
    made |= {key: number(made[key]) for key in ("ours", "peer", "ratio")}
    return made | {"quartiles": [*map(number, quartiles(ours))], "peer_quartiles": [*map(number, quartiles(peer))]}


def figures(table, runs):
    """Return all lines from the replays of each search."""
    good = {name: [found.reached(table.good) for found in each] for name, each in runs.items()}
    epochs = {name: [found.reached(table.good, found.epochs) for found in each] for name, each in runs.items()}
    result = []
    goals = {budget: statistics.median(found.best(budget) for found in runs["random"]) for budget in BUDGETS}
    for who in ("ours", TPE):
        for budget, goal in goals.items():
            taken = [found.reached(goal) for found in runs[who]]
            name = f"trials of {who} to the best of {budget} random ones"
            bar = {"at_most": BAR} if who == "ours" else {}
            result.append(cost(name, taken, [budget] * len(taken), unit="trials", goal=round(goal, 4), **bar))
    for name in [name for name in runs if name != "ours" and "ASHA" not in name]:
        result.append(cost(f"trials to the best 5 %: ours against {name}", good["ours"], good[name], unit="trials"))
    for name in [name for name in runs if "ASHA" in name]:
        made = cost(f"epochs to the best 5 %: {name} against ours", epochs[name], epochs["ours"], unit="epochs")
        result.append(made)
    for who in ("ours", TPE):
        for trials in (5, *BUDGETS):
            mine, other = ([found.best(trials) for found in runs[name]] for name in (who, "random"))
            result.append(cost(f"best of {trials} trials: {who} against random", mine, other, unit="mAP"))
    return result


def errors(table, smooth):
    """Return the line of how well either answer predicts a trial from the others."""
    true = table.curves_TE[:, -1]
    near, fitted = (float(np.sqrt(np.mean((one.left_out() - true) ** 2))) for one in (table, smooth))
    return lines.figure(
        "error of a trial predicted from the others: nearest against Gaussian process", ours=near, peer=fitted,
        ratio=near / fitted, unit="mAP", n=len(true), standard_deviation=round(float(true.std()), 4),
        best=round(float(true.max()), 4), good=round(table.good, 4),
    )  # fmt: skip


def searches(trials):
    """Return every search and how many trials it may take."""
    return {
        "ours": (ours(), trials),
        "random": (optunas(optuna.samplers.RandomSampler), max(trials, *BUDGETS)),
        "Halton alone": (halton, trials),
        "Optuna's TPE": (optunas(optuna.samplers.TPESampler), trials),
        TPE: (ours(kind=functools.partial(optuna.samplers.TPESampler, multivariate=True, group=True)), trials),
        **{f"ours with {number} start-up points": (ours(start_up=number), trials) for number in (3, 10, 20)},
        **{
            f"ours with ASHA ({one.grace_period}, {one.reduction_factor})": (ours(halving=one), 2 * trials)
            for one in HALVING
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=40)
    parser.add_argument("--trials", type=int, default=45, help="of a search, at most (default: 45)")
    parser.add_argument("--smooth", action="store_true", help="answer by the Gaussian process")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    table = Table()
    smooth = Smooth(table)
    curve = smooth.curve if options.smooth else table.nearest
    runs = {}
    for name, (make, trials) in searches(options.trials).items():
        runs[name] = [replay(table, curve, make, seed=seed, trials=trials) for seed in range(1, options.replays + 1)]
        sys.stderr.write(f"{name}: {statistics.median(found.reached(table.good) for found in runs[name]):g} trials\n")
    found = [errors(table, smooth), *figures(table, runs)]
    for one in found:
        one["name"] += ", smooth" if options.smooth else ""
        one |= {"table": len(table.unit_TD), "study": STUDY.name}
    lines.emit(found, "economy-smooth" if options.smooth else "economy", record=options.record)


if __name__ == "__main__":
    main()
