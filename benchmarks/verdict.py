"""How often each way to judge a study says "better" where nothing is better, and how often it sees what is.

    python benchmarks/verdict.py --studies 20000

simulates whole studies: a search of 50 settings, one seed each, a shortlist of the best by search score, then fresh
seeds of the shortlist and of the baseline, judged by `tune.verdict`. In the first table all settings are in truth
equal, so every "better" is false. In the second, one shortlisted setting is truly better, and the last column is what
`tune.power` says beforehand. In the third, intervals should hold the truth 95 times of 100 (a tenth of the studies).
Seed noise is normal with a standard deviation of 3 points unless the row says otherwise; delta_min is 0 in the first
table, where it could only help, and 1 point in the second. ± is the Monte-Carlo standard error. `--record` also writes
the tables to benchmarks/results/.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import math
import sys
from pathlib import Path

import numpy as np
from scipy import special

from tune import provenance
from tune.power import looks_factor
from tune.verdict import Challenge, Judgement, Runs, expected_max_noise, hierarchical_bootstrap, judge, power

TRIALS = 50
SD = 0.03
BASE = 0.4
"""True mAP of the baseline."""
DELTA_MIN = 0.01
PLANS = [(k, num_seeds) for k in (1, 3) for num_seeds in (5, 8)]
LOOKS = (5, 8, 12)
"""Runs per arm at each look of one that looks again."""
EFFECTS = [(0.07, 0.03), (0.05, 0.03), (0.03, 0.03), (0.03, 0.01), (0.02, 0.01)]
"""True difference and seed noise."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What one simulated study has."""

    best: float
    """Highest search score."""
    repeats: np.ndarray
    """The baseline's five runs beside the search."""
    judgements: dict[int, Judgement]
    """By setting, in the order of the shortlist."""


def arm(name, mAP):
    """Return runs without values of identities: there is no interval."""
    nobody = np.empty((len(mAP), 0)), np.empty(0, np.int64)
    seeds = tuple(range(len(mAP)))
    return Runs(name=name, seeds=seeds, mAP=tuple(mAP), identity_ap_RI=nobody[0], identity_queries_I=nobody[1])


def simulate(rng, truth, *, num_challenges, num_seeds, sd=SD, delta_min=0.0):
    """Return a study of settings that are truly better than the baseline by ``truth``."""
    scores = BASE + truth + rng.normal(0, sd, len(truth))
    shortlist = [int(setting) for setting in np.argsort(-scores)[:num_challenges]]
    baseline = arm("baseline", rng.normal(BASE, sd, num_seeds))
    challenges = [
        Challenge(candidate=arm(str(setting), rng.normal(BASE + truth[setting], sd, num_seeds)), baseline=baseline)
        for setting in shortlist
    ]
    judgements = judge(challenges, delta_min=delta_min)
    return Study(scores.max(), rng.normal(BASE, sd, 5), dict(zip(shortlist, judgements, strict=True)))


def naive(studies):
    """Return how often each naive way says "better": the best search score against runs of the baseline."""
    best = np.array([study.best for study in studies])
    repeats = np.array([study.repeats for study in studies])
    error = repeats.std(axis=1, ddof=1) * math.sqrt(1 + 1 / 5)  # of a new run about the mean of five
    t = (best - repeats.mean(axis=1)) / error
    return {
        "best search score > one baseline run": np.mean(best > repeats[:, 0]),
        "best search score > mean of five baseline seeds": np.mean(t > 0),
        "the same, t test at a one-sided 5 %": np.mean(t > special.stdtrit(4, 0.95)),
        "the same, t test at a two-sided 5 %": np.mean(t > special.stdtrit(4, 0.975)),
    }


def false_words(studies):
    """Return the shares of studies with any BEATS, and with any BEATS or WORSE."""
    words = [{found.word for found in study.judgements.values()} for study in studies]
    return np.mean(["BEATS" in found for found in words]), np.mean([found != {"UNDETERMINED"} for found in words])


def false_words_of_looks(rng, num):
    """Return the shares of studies with any BEATS or WORSE at R = 5, 8 and 12, by what p is multiplied with."""
    found = {"the looks so far": 0, "the three looks": 0, "looks_factor, as the product has it": 0}
    for _ in range(num):
        candidate, baseline = rng.normal(BASE, SD, (2, LOOKS[-1])).tolist()
        words = {name: set() for name in found}
        for look, num_seeds in enumerate(LOOKS, 1):
            challenge = Challenge(
                candidate=arm("candidate", candidate[:num_seeds]), baseline=arm("baseline", baseline[:num_seeds])
            )
            for name, looks in zip(found, (look, len(LOOKS), looks_factor(look)), strict=True):
                words[name].add(judge([challenge], delta_min=0.0, looks=looks)[0].word)
        for name in found:
            found[name] += words[name] != {"UNDETERMINED"}
    return {name: times / num for name, times in found.items()}


def power_found(rng, *, num_studies, delta, sd, num_challenges, num_seeds, delta_min):
    """Return how often the one setting of the shortlist that is truly better is judged BEATS."""
    truth = np.array([delta] + [0.0] * (num_challenges - 1))
    plan = {"num_challenges": num_challenges, "num_seeds": num_seeds, "sd": sd, "delta_min": delta_min}
    return np.mean([simulate(rng, truth, **plan).judgements[0].word == "BEATS" for _ in range(num_studies)])


def two_arms(rng, *, num_ids, num_seeds, seed_sd=0.02):
    """Return two arms that are truly equal, and the average precision of each query in their first runs.

    Queries of a person share what the models make of that person: 0.1 between the arms, and 0.05 from seed to seed,
    beside 0.15 of their own.
    """
    queries_I = rng.integers(1, 9, num_ids)
    owner_Q = np.repeat(np.arange(num_ids), queries_I)
    shared_I = rng.uniform(0.35, 0.65, num_ids)
    arms, first_Q = [], []
    for name in ("candidate", "baseline"):
        mean_I = shared_I + rng.normal(0, 0.1 / math.sqrt(2), num_ids)
        mean_RI = mean_I + rng.normal(0, seed_sd, (num_seeds, 1)) + rng.normal(0, 0.05, (num_seeds, num_ids))
        ap_RQ = np.clip(mean_RI[:, owner_Q] + rng.normal(0, 0.15 / math.sqrt(2), (num_seeds, len(owner_Q))), 0, 1)
        sums_RI = np.add.reduceat(ap_RQ, np.cumsum(queries_I) - queries_I, axis=1)
        mAP = tuple(ap_RQ.mean(axis=1).tolist())
        seeds = tuple(range(num_seeds))
        arms.append(Runs(name=name, seeds=seeds, mAP=mAP, identity_ap_RI=sums_RI, identity_queries_I=queries_I))
        first_Q.append(ap_RQ[0])
    return arms, first_Q


def by_queries(rng, first_Q, *, num):
    """Return the percentile interval of two runs over their queries."""
    delta_Q = first_Q[0] - first_Q[1]
    replicates = [delta_Q[rng.integers(len(delta_Q), size=len(delta_Q))].mean() for _ in range(num)]
    return tuple(np.quantile(replicates, [0.025, 0.975]))


def by_percentiles(rng, arms, *, num):
    """Return the plain percentile interval over seeds and identities: R of R seeds, 2.5 and 97.5 %."""
    queries_I = arms[0].identity_queries_I
    num_ids = len(queries_I)
    drawn_NI = rng.multinomial(num_ids, np.full(num_ids, 1 / num_ids), size=num).astype(np.float64)
    replicates = []
    for one in arms:
        num_seeds = len(one.seeds)
        seeds_NR = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num) / num_seeds
        replicates.append((drawn_NI @ one.identity_ap_RI.T * seeds_NR).sum(axis=1) / (drawn_NI @ queries_I))
    return tuple(np.quantile(replicates[0] - replicates[1], [0.025, 0.975]))


def coverage(rng, *, num_studies, num, **plan):
    """Return how often each interval holds the truth, which is 0, by the interval's name."""
    found = {"seeds and identities": 0, "the same, plain percentiles": 0, "queries of one run": 0}
    for _ in range(num_studies):
        arms, first_Q = two_arms(rng, **plan)
        intervals = (
            hierarchical_bootstrap(*arms, num=num),
            by_percentiles(rng, arms, num=num),
            by_queries(rng, first_Q, num=num),
        )
        for name, (low, high) in zip(found, intervals, strict=True):
            found[name] += low <= 0 <= high
    return {name: times / num_studies for name, times in found.items()}


def row(title, share, num, expected=""):
    """Return a line of a table, in percent."""
    error = math.sqrt(max(share * (1 - share), 1 / num) / num)
    return f"  {title:<64}{100 * share:6.1f} ± {100 * error:.1f}   {expected}".rstrip()


def false_table(rng, num):
    """Yield the lines of the first table."""
    yield f'False "better" in % of studies: all settings equal, n = {num} studies, {TRIALS} trials each'
    truth = np.zeros(TRIALS)
    for k, num_seeds in PLANS:
        studies = [simulate(rng, truth, num_challenges=k, num_seeds=num_seeds) for _ in range(num)]
        if (k, num_seeds) == PLANS[0]:
            shrinkage = np.mean([study.best for study in studies]) - BASE
            yield from (row(title, share, num) for title, share in naive(studies).items())
        beats, either = false_words(studies)
        yield row(f"the protocol, k = {k}, R = {num_seeds}: BEATS", beats, num)
        yield row(f"the protocol, k = {k}, R = {num_seeds}: BEATS or WORSE", either, num)
    for name, share in false_words_of_looks(rng, num).items():
        yield row(f"the same at R = {', '.join(map(str, LOOKS))}, p times {name}", share, num)
    expected = expected_max_noise(SD, TRIALS)
    yield f"  The best search score lies {100 * shrinkage:.2f} points above the truth; expected {100 * expected:.2f}."


def power_table(rng, num):
    """Yield the lines of the second table."""
    yield f"Power in %: BEATS for the one setting that is truly better, n = {num} studies; and as tune.power has it"
    for delta, sd in EFFECTS:
        for k, num_seeds in PLANS:
            plan = {"delta": delta, "sd": sd, "num_challenges": k, "num_seeds": num_seeds, "delta_min": DELTA_MIN}
            title = f"{100 * delta:.0f} points, sd {100 * sd:.0f}, k = {k}, R = {num_seeds}"
            yield row(title, power_found(rng, num_studies=num, **plan), num, f"{100 * power(**plan):.1f}")


def interval_table(rng, num):
    """Yield the lines of the third table."""
    yield f"Intervals of 95 % that hold the truth, in %: 750 identities, about 3,400 queries, n = {num}"
    for num_seeds, seed_sd in ((5, 0.02), (8, 0.02), (5, 0.0)):
        shares = coverage(rng, num_studies=num, num=1000, num_ids=750, num_seeds=num_seeds, seed_sd=seed_sd)
        for name, share in shares.items():
            yield row(f"R = {num_seeds}, seed sd {100 * seed_sd:.0f}: {name}", share, num)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    date = datetime.date.today().isoformat()
    versions = provenance.versions() | {"scipy": importlib.metadata.version("scipy")}
    text = [
        f"python benchmarks/verdict.py --studies {options.studies} --seed {options.seed}",
        f"date: {date}",
        f"hardware: {provenance.hardware()}",
        f"versions: {', '.join(f'{name} {versions[name]}' for name in ('python', 'numpy', 'scipy'))}",
        "",
        *false_table(rng, options.studies),
        "",
        *power_table(rng, options.studies),
        "",
        *interval_table(rng, max(options.studies // 10, 1)),
    ]
    sys.stdout.writelines(f"{line}\n" for line in text)
    if options.record:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / f"verdict-{date}.txt").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
