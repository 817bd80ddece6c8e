"""The verdict against scipy, plain loops and by hand; test_power.py has it over simulated studies."""

import dataclasses
import doctest
import json
import math
import random

import numpy as np
import pytest
from scipy import stats

import tune.power
from tune import verdict
from tune.verdict import (
    Challenge,
    Runs,
    hierarchical_bootstrap,
    holm,
    judge,
    seeds_needed,
    welch,
)

GOOD = (0.47, 0.50, 0.46, 0.49, 0.48)
BASE = (0.40, 0.43, 0.38, 0.41, 0.42)
CLOSE = (0.41, 0.43, 0.38, 0.42, 0.42)
OPEN = "UNDETERMINED"


def arm(mAP, name="arm", first_seed=0):
    """Return runs of which only the mAP is known."""
    seeds = tuple(range(first_seed, first_seed + len(mAP)))
    nobody = np.empty((len(mAP), 0)), np.empty(0, np.int64)
    return Runs(name=name, seeds=seeds, mAP=tuple(mAP), identity_ap_RI=nobody[0], identity_queries_I=nobody[1])


def arm_of(sums_RI, queries_I, name="arm"):
    """Return runs from the AP of identities."""
    sums_RI, queries_I = np.asarray(sums_RI, dtype=np.float64), np.asarray(queries_I)
    mAP = tuple((sums_RI.sum(axis=1) / queries_I.sum()).tolist())
    seeds = tuple(range(len(mAP)))
    return Runs(name=name, seeds=seeds, mAP=mAP, identity_ap_RI=sums_RI, identity_queries_I=queries_I)


def pair(*, num_ids=40, num_runs=5, shift=0.0, seed_sd=0.02):
    """Return two arms with values of identities."""
    rng = np.random.default_rng(0)
    queries_I = rng.integers(1, 7, num_ids)
    shared_I = rng.uniform(0.3, 0.5, num_ids)
    arms = []
    for name, higher in (("candidate", shift), ("baseline", 0.0)):
        seeds_R1 = rng.normal(higher, seed_sd, (num_runs, 1))
        ap_RI = np.clip(shared_I + rng.normal(0, 0.1, num_ids) + seeds_R1, 0, 1)
        arms.append(arm_of(ap_RI * queries_I, queries_I, name))
    return arms


def single(candidate, baseline=BASE, **options):
    """Return the judgement of one challenge."""
    options = {"delta_min": 0.01} | options
    return judge([Challenge(candidate=arm(candidate, "new"), baseline=arm(baseline, "base"))], **options)[0]


@pytest.mark.parametrize("module", [verdict, tune.power])
def test_the_examples(module):
    failed, attempted = doctest.testmod(module)
    assert failed == 0 and attempted >= 2


# Welch and Holm


@pytest.mark.parametrize(("num_a", "num_b"), [(2, 2), (5, 5), (3, 9), (12, 4), (2, 30)])
@pytest.mark.parametrize("seed", range(4))
def test_welch_equals_scipy(num_a, num_b, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.4, 0.05, num_a), rng.normal(0.42, 0.01, num_b)
    expected = stats.ttest_ind(a, b, equal_var=False)
    t, df, p = welch(a.tolist(), b.tolist())
    assert (t, df, p) == pytest.approx((expected.statistic, expected.df, expected.pvalue), rel=1e-9)
    assert welch(b.tolist(), a.tolist()) == pytest.approx((-t, df, p), rel=1e-12)


def test_welch_by_hand():
    """Variances 4e-4 and 1e-4: t = 0.06 / sqrt(5e-4 / 3), df = 25 / ((16 + 1) / 2)."""
    t, df, _ = welch([0.30, 0.32, 0.34], [0.25, 0.26, 0.27])
    assert (t, df) == pytest.approx((0.06 / math.sqrt(5e-4 / 3), 50 / 17))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((), BASE),
        ((0.9,), BASE),
        (BASE, (0.9,)),
        ((0.4, 0.4), (0.4, 0.4)),
        ((0.9, 0.9, 0.9), (0.1, 0.1, 0.1)),
        ((0.9, 0.9 + 1e-15, 0.9), (0.1, 0.1, 0.1 + 1e-16)),  # sums in another order
    ],
)
def test_without_noise_there_is_no_test(a, b):
    assert welch(a, b) == (0.0, 0.0, 1.0)


def test_one_arm_without_variance_is_a_test():
    """Then all noise is the other arm's, and so are the degrees of freedom."""
    t, df, p = welch(GOOD, (0.5, 0.5, 0.5))
    assert (t, df) == pytest.approx(((0.48 - 0.5) / stats.sem(GOOD), 4))
    assert p == pytest.approx(2 * stats.t.sf(-t, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_welch_refuses_what_is_not_finite(bad):
    with pytest.raises(ValueError, match=r"runs must be finite.*0\.1"):
        welch([0.1, bad], [0.2, 0.3])
    with pytest.raises(ValueError, match="runs must be finite"):
        welch([0.1], [bad])


@pytest.mark.parametrize(
    ("ps", "expected"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 · .005, 3 · .01, 2 · .03, and .04 no less than that
        ([0.5, 0.6, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, 0.02, 0.0], [0.04, 0.04, 0.0]),
        ([0.04, 0.3], [0.08, 0.3]),
    ],
)
def test_holm_by_hand(ps, expected):
    assert holm(ps) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(bad):
    with pytest.raises(ValueError, match=r"0 <= p <= 1.*0\.5"):
        holm([0.5, bad])


# The interval


def plain_loops(candidate, other, *, num, draw):
    """Return the replicates of the bootstrap: identities once for both arms, then R - 1 seeds of each arm."""
    queries = candidate.identity_queries_I.tolist()
    replicates = []
    for _ in range(num):
        identities = [draw.randrange(len(queries)) for _ in queries]
        means = []
        for runs in (candidate, other):
            rows = [draw.randrange(len(runs.seeds)) for _ in runs.seeds[1:]]
            total = sum(runs.identity_ap_RI[row][identity] for row in rows for identity in identities)
            means.append(total / len(rows) / sum(queries[identity] for identity in identities))
        replicates.append(means[0] - means[1])
    return replicates


@pytest.mark.parametrize("seed_sd", [0.005, 0.06])
@pytest.mark.parametrize("num_runs", [2, 4])
def test_the_bootstrap_equals_the_plain_loops(num_runs, seed_sd):
    candidate, other = pair(num_ids=9, num_runs=num_runs, shift=0.1, seed_sd=seed_sd)
    replicates = plain_loops(candidate, other, num=6000, draw=random.Random(0))
    totals = candidate.identity_queries_I.sum()
    delta_I = candidate.identity_ap_RI.mean(axis=0) - other.identity_ap_RI.mean(axis=0)
    residual_I = delta_I - delta_I.sum() / totals * candidate.identity_queries_I
    parts = [((residual_I**2).sum() / totals**2, 8)]
    parts += [(stats.sem(runs.mAP) ** 2, num_runs - 1) for runs in (candidate, other)]
    df = sum(part for part, _ in parts) ** 2 / sum(part**2 / free for part, free in parts)
    outside = stats.norm.sf(stats.t.isf(0.025, df))
    low, high = np.quantile(replicates, [outside, 1 - outside])
    assert hierarchical_bootstrap(candidate, other, num=40_000) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_the_interval_is_of_its_seed():
    candidate, other = pair()
    first = hierarchical_bootstrap(candidate, other, num=500)
    assert first == hierarchical_bootstrap(candidate, other, num=500, seed=0)
    assert first != hierarchical_bootstrap(candidate, other, num=500, seed=1)


def test_swapping_the_arms_negates():
    candidate, baseline = pair(shift=0.05)
    one, other = (
        judge([Challenge(candidate=a, baseline=b)], delta_min=0.0)[0].contrast
        for a, b in ((candidate, baseline), (baseline, candidate))
    )
    assert (one.delta, one.t, one.df, one.p) == pytest.approx((-other.delta, -other.t, other.df, other.p), rel=1e-12)
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=0.005)
    assert (one.sd_candidate, one.n_candidate, one.mean_candidate) == (other.sd_other, other.n_other, other.mean_other)


def test_no_interval_where_seeds_or_identities_cannot_vary():
    candidate, other = pair()
    assert hierarchical_bootstrap(arm(GOOD), arm(BASE)) is None
    assert hierarchical_bootstrap(candidate, arm(BASE)) is None and hierarchical_bootstrap(arm(BASE), other) is None
    assert hierarchical_bootstrap(*pair(num_runs=1)) is None
    assert hierarchical_bootstrap(*pair(num_ids=1)) is None
    alike = arm_of([[1.0, 2.0]] * 3, [2, 4])
    assert hierarchical_bootstrap(alike, alike) is None
    assert hierarchical_bootstrap(alike, arm_of([[2.0, 1.0]] * 3, [2, 4])) is None


def test_only_what_both_arms_share_cancels():
    """Identities are drawn jointly: how hard a person is for both arms is no noise of the difference."""
    queries_I = np.full(30, 2)
    hard_I = np.linspace(0.2, 1.8, 30)
    seeds_R1 = np.array([[-0.01], [0.0], [0.01]])
    low, high = hierarchical_bootstrap(arm_of(hard_I + seeds_R1, queries_I), arm_of(hard_I - seeds_R1, queries_I))
    assert high - low < 0.04
    shuffled = np.random.default_rng(0).permutation(hard_I)
    low, high = hierarchical_bootstrap(arm_of(hard_I + seeds_R1, queries_I), arm_of(shuffled - seeds_R1, queries_I))
    assert high - low > 0.2


# The words


def test_beats():
    found = single(GOOD)
    assert (found.word, found.candidate, found.baseline) == ("BEATS", "new", "base")
    assert found.contrast.delta == pytest.approx(0.072) and found.p_adjusted == found.contrast.p < 0.001
    assert found.reason.startswith("+7.20 points is more than seed noise (adjusted p = ")
    assert found.reason.endswith("below 0.05), and no less than the 1.00 points that matter.")
    assert found.seeds_needed is None and found.alignment is None and found.rest is None


def test_worse():
    found = single(BASE, GOOD)
    assert found.word == "WORSE" and found.contrast.delta == pytest.approx(-0.072)
    assert found.reason.startswith("-7.20 points is more than seed noise")


def test_not_told_from_noise():
    found = single(CLOSE)
    sd = math.sqrt((stats.tstd(CLOSE) ** 2 + stats.tstd(BASE) ** 2) / 2)
    assert found.word == OPEN and "+0.40 points cannot be told from seed noise: adjusted p = 0.7" in found.reason
    assert found.seeds_needed == seeds_needed(sd, 0.004) > 100
    assert found.seeds_for_delta_min == seeds_needed(sd, 0.01) > 20


@pytest.mark.parametrize(("candidate", "baseline"), [(GOOD, BASE), (BASE, GOOD)])
def test_clear_but_smaller_than_what_matters(candidate, baseline):
    found = single(candidate, baseline, delta_min=0.08)
    assert found.word == OPEN and found.p_adjusted < 0.001
    assert "7.20 points is more than seed noise" in found.reason
    assert found.reason.endswith("but less than the 8.00 points that matter.")
    assert found.seeds_needed is None  # no number of seeds makes it larger
    assert single(candidate, baseline, delta_min=0.07).word != OPEN


def test_exactly_what_matters_is_enough():
    quarter, half = (0.234375, 0.25, 0.265625), (0.484375, 0.5, 0.515625)
    assert single(half, quarter, delta_min=0.25).word == "BEATS"
    assert single(quarter, half, delta_min=0.25).word == "WORSE"


def test_alpha_and_looks():
    candidate, baseline = (0.44, 0.47, 0.43, 0.45), BASE
    once = single(candidate, baseline)
    assert once.word == "BEATS" and 0.01 < once.p_adjusted < 0.025
    assert single(candidate, baseline, alpha=0.01).word == OPEN
    assert single(candidate, baseline, looks=2).p_adjusted == pytest.approx(2 * once.p_adjusted)
    again = single(candidate, baseline, looks=5)
    assert again.word == OPEN and again.p_adjusted == pytest.approx(5 * once.p_adjusted)
    assert single(CLOSE, looks=100).p_adjusted == 1.0
    assert again.seeds_needed == 6 > seeds_needed(0.018, 0.0395)  # five did not do, whatever the formula says


def test_holm_over_challenges():
    baseline = arm(BASE, "base")
    arms = [arm((0.44, 0.47, 0.43, 0.45), "weak"), arm(GOOD, "strong"), arm(CLOSE, "equal")]
    found = judge([Challenge(candidate=one, baseline=baseline) for one in arms], delta_min=0.01)
    assert [one.candidate for one in found] == ["weak", "strong", "equal"]
    ps = [welch(one.mAP, BASE)[2] for one in arms]
    assert [one.p_adjusted for one in found] == pytest.approx([2 * ps[0], 3 * ps[1], ps[2]])
    assert [one.word for one in found] == ["BEATS", "BEATS", OPEN]
    found = judge([Challenge(candidate=one, baseline=baseline) for one in arms], delta_min=0.01, looks=3)
    assert [one.p_adjusted for one in found] == pytest.approx([6 * ps[0], 9 * ps[1], 1.0])
    assert [one.word for one in found] == [OPEN, "BEATS", OPEN]
    alone = judge([Challenge(candidate=arms[0], baseline=baseline)] * 3, delta_min=0.01)
    assert [one.p_adjusted for one in alone] == pytest.approx([3 * ps[0]] * 3)


def test_nothing_to_judge():
    assert judge([], delta_min=0.01) == []


def test_one_run_shows_no_noise():
    found = single((0.9,))
    assert found.word == OPEN and found.p_adjusted == 1.0
    assert found.reason == "Seed noise shows in two runs per arm or more, and there are 1 and 5 runs."
    assert found.contrast.sd_candidate is None and found.contrast.sd_other == pytest.approx(stats.tstd(BASE))
    assert found.seeds_needed is None and found.seeds_for_delta_min is None
    assert found.contrast.delta == pytest.approx(0.492)


def test_seeds_that_do_nothing():
    found = single((0.9, 0.9, 0.9), (0.1, 0.1, 0.1))
    assert found.word == OPEN and "the seeds did nothing" in found.reason
    assert found.seeds_needed is None and found.seeds_for_delta_min is None


def test_the_same_numbers_twice():
    found = single(BASE, tuple(reversed(BASE)))
    assert (found.word, found.contrast.delta, found.p_adjusted) == (OPEN, 0.0, 1.0)
    assert found.seeds_needed is None and found.seeds_for_delta_min > 2
    assert single(BASE, BASE, delta_min=0.0).seeds_for_delta_min is None


def test_what_alignment_adds():
    control = (0.44, 0.42, 0.43, 0.45, 0.44)
    challenge = Challenge(candidate=arm(GOOD, "new"), baseline=arm(BASE, "base"), matched=arm(control, "control"))
    (found,) = judge([challenge], delta_min=0.01)
    assert (found.alignment.delta, found.rest.delta) == pytest.approx((0.044, 0.028))
    assert found.alignment.delta + found.rest.delta == pytest.approx(found.contrast.delta)
    assert found.alignment.p == welch(GOOD, control)[2] and found.rest.p == welch(control, BASE)[2]
    assert found.p_adjusted == found.contrast.p  # it alone is a challenge


def test_a_judgement_is_json():
    candidate, baseline = pair(shift=0.1)
    (found,) = judge([Challenge(candidate=candidate, baseline=baseline, matched=baseline)], delta_min=0.01)
    plain = found.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert set(plain) == {field.name for field in dataclasses.fields(found)}
    assert plain["word"] == "BEATS" and tuple(plain["contrast"]["interval"]) == found.contrast.interval
    low, high = found.contrast.interval
    assert low < found.contrast.delta < high
    assert json.loads(json.dumps(single((0.9,)).to_json(), allow_nan=False))["contrast"]["interval"] is None


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (), "mAP": ()}, "at least one, but got 0 for 0"),
        ({"mAP": (0.1, 0.2)}, "one mAP per seed.*got 2 for 3"),
        ({"seeds": (1, 2, 1)}, r"'x': a seed counts once, but got \[1, 1, 2\]"),
        ({"mAP": (0.1, 0.2, math.nan)}, "0 <= mAP <= 1.*nan"),
        ({"mAP": (0.1, 0.2, math.inf)}, "0 <= mAP <= 1.*inf"),
        ({"mAP": (41.0, 42.0, 43.0)}, "0 <= mAP <= 1.*41.0.*a fraction"),
        ({"identity_ap_RI": np.ones((2, 2))}, r"\[3, I\], but got \[2\] and \[2, 2\]"),
        ({"identity_ap_RI": np.ones((3, 4))}, r"but got \[2\] and \[3, 4\]"),
        ({"identity_queries_I": np.array([[2, 2]])}, r"identity_queries_I is \[I\]"),
        ({"identity_queries_I": np.array([4, 0])}, "a query or more, but got 0"),
        ({"identity_ap_RI": np.array([[1.0, 1.0], [1.0, 1.0], [1.0, math.nan]])}, "from 0 to its number.*nan"),
        ({"identity_ap_RI": np.array([[1.0, 1.0], [1.0, 1.0], [-1.0, 3.0]])}, r"from 0 to its number.*\[-1.0, 3.0\]"),
        ({"identity_ap_RI": np.full((3, 2), 0.5)}, r"same mAP.*\[0.25, 0.25, 0.25\].*\[0.5, 0.5, 0.5\]"),
    ],
)
def test_runs_that_cannot_be(changes, message):
    good = {
        "name": "x",
        "seeds": (1, 2, 3),
        "mAP": (0.5, 0.5, 0.5),
        "identity_ap_RI": np.ones((3, 2)),
        "identity_queries_I": np.array([2, 2]),
    }
    Runs(**good)
    with pytest.raises(ValueError, match=message):
        Runs(**(good | changes))


def test_arms_of_other_identities():
    candidate, other = arm_of(np.ones((3, 2)), [2, 2], "new"), arm_of(np.ones((3, 2)), [2, 3], "base")
    message = "same queries, but 'new' has 4 of 2 identities and 'base' 5 of 2"
    with pytest.raises(ValueError, match=message):
        Challenge(candidate=candidate, baseline=other)
    with pytest.raises(ValueError, match=message):
        Challenge(candidate=candidate, baseline=candidate, matched=other)
    with pytest.raises(ValueError, match=message):
        hierarchical_bootstrap(candidate, other)
    with pytest.raises(ValueError, match="same queries"):
        hierarchical_bootstrap(candidate, arm_of(np.ones((3, 1)), [4]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta_min": -0.01}, "delta_min >= 0.*-0.01"),
        ({"delta_min": math.nan}, "delta_min >= 0.*nan"),
        ({"delta_min": math.inf}, "finite, but got inf"),
        ({"alpha": 0.0}, "0 < alpha < 1.*0.0"),
        ({"alpha": 1.0}, "0 < alpha < 1.*1.0"),
        ({"looks": 0}, "looks >= 1.*0"),
    ],
)
def test_judge_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        single(GOOD, **options)
