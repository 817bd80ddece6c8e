"""Power by scipy and by hand, and what the verdict says over thousands of simulated studies (benchmarks/verdict.py)."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tune.power import expected_max_noise, looks_factor, power, seeds_needed
from tune.verdict import Challenge, hierarchical_bootstrap, judge


@pytest.fixture(scope="module")
def simulated():
    """The benchmark's simulation: the tables that it prints and these tests are of one program."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "verdict.py"
    spec = importlib.util.spec_from_file_location("verdict_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("sd", "delta", "expected"),
    [(0.03, 0.03, 16), (0.03, -0.03, 16), (0.03, 0.07, 3), (0.01, 0.2, 2), (0.0, 0.1, 2), (0.028, 0.0196, 32)],
)
def test_seeds_needed_by_hand(sd, delta, expected):
    assert seeds_needed(sd, delta) == expected


@pytest.mark.parametrize(
    ("sd", "delta"), [(-1.0, 0.1), (math.nan, 0.1), (math.inf, 0.1), (0.1, 0.0), (0.1, math.nan), (0.1, math.inf)]
)
def test_seeds_needed_refuses(sd, delta):
    with pytest.raises(ValueError, match="must hold, and finite, but got|must be finite and not 0, but got"):
        seeds_needed(sd, delta)


def test_seeds_needed_give_the_power():
    """80 % where normal quantiles do for t: many seeds. With few, the exact power is less."""
    for sd, delta in ((0.03, 0.01), (0.03, 0.005)):
        assert power(delta=delta, sd=sd, num_seeds=seeds_needed(sd, delta)) == pytest.approx(0.8, abs=0.002)
    assert power(delta=0.07, sd=0.03, num_seeds=seeds_needed(0.03, 0.07)) < 0.5


def test_power_with_many_seeds_is_that_of_the_noncentral_t():
    """Welch's degrees of freedom then are Student's, nearly."""
    for delta in (0.0, 0.005, 0.01, -0.01):
        expected = stats.nct.sf(stats.t.isf(0.025, 198), 198, delta / 0.03 / math.sqrt(2 / 100))
        assert power(delta=delta, sd=0.03, num_seeds=100) == pytest.approx(expected, abs=3e-4)


def test_power_grows_and_falls():
    base = {"delta": 0.04, "sd": 0.03, "num_seeds": 5}
    found = power(**base)
    assert power(**base | {"delta": 0.05}) > found > power(**base, num_challenges=3) > 0
    assert power(**base | {"num_seeds": 8}) > found > power(**base, alpha=0.01)
    assert power(**base | {"sd": 0.02}) > found > power(**base, delta_min=0.03)
    assert power(**base, num_challenges=3) == pytest.approx(power(**base, alpha=0.05 / 3))
    assert power(delta=0.0, sd=0.03, num_seeds=50) == pytest.approx(0.025, abs=5e-4)
    assert power(delta=0.02, sd=0.01, num_seeds=200, delta_min=0.02) == pytest.approx(0.5, abs=1e-3)
    assert power(**base | {"num_seeds": 1}) == 0.0


@pytest.mark.parametrize(
    "bad",
    [
        {"sd": 0.0},
        {"sd": math.nan},
        {"delta": math.inf},
        {"delta_min": -0.1},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"num_seeds": 0},
        {"num_challenges": 0},
    ],
)
def test_power_refuses(bad):
    with pytest.raises(ValueError, match=f"must hold.*but got.*{next(iter(bad))}={next(iter(bad.values()))}"):
        power(**{"delta": 0.1, "sd": 0.1, "num_seeds": 5} | bad)


def test_the_winners_luck():
    found = np.random.default_rng(0).normal(0, 0.03, (20_000, 50)).max(axis=1).mean()
    assert expected_max_noise(0.03, 50) == pytest.approx(found, rel=0.01)
    assert expected_max_noise(0.03, 1) == 0.0 and expected_max_noise(0.0, 50) == 0.0
    for sd, num in ((-0.1, 5), (math.nan, 5), (0.1, 0)):
        with pytest.raises(ValueError, match=f"num_trials=({num})"):
            expected_max_noise(sd, num)


# What the protocol is for: whole studies


@pytest.fixture(scope="module")
def equal_studies(simulated):
    """6,000 studies of 50 settings that are in truth equal, by the size of the shortlist; five fresh seeds."""
    rng = np.random.default_rng(0)
    truth = np.zeros(50)
    return {k: [simulated.simulate(rng, truth, num_challenges=k, num_seeds=5) for _ in range(6000)] for k in (1, 3)}


@pytest.mark.parametrize("k", [1, 3])
def test_equal_settings_are_not_told_apart(simulated, equal_studies, k):
    """Without help from delta_min, which is 0: 5 % nominal for either word, half of it upwards."""
    assert all(len(study.judgements) == k for study in equal_studies[k])
    beats, either = simulated.false_words(equal_studies[k])
    assert 0.01 <= beats <= 0.035
    assert 0.025 <= either <= 0.055


def test_looking_again(simulated):
    """The number of looks in all keeps the rate, a count that grows from look to look does not."""
    found = simulated.false_words_of_looks(np.random.default_rng(0), 3000)
    assert found["the three looks"] < 0.05 < found["the looks so far"]
    assert found["looks_factor, as the product has it"] < 0.055
    assert [looks_factor(look) for look in (1, 2, 3)] == [1, 6, 12]
    assert sum(1 / looks_factor(look) for look in range(1, 10_000)) < 1.5


def test_the_naive_ways_find_what_is_not_there(simulated, equal_studies):
    found = simulated.naive(equal_studies[1])
    assert found["best search score > one baseline run"] == pytest.approx(50 / 51, abs=0.01)
    assert found["best search score > mean of five baseline seeds"] > 0.99
    assert found["the same, t test at a one-sided 5 %"] == pytest.approx(0.53, abs=0.03)
    assert found["the same, t test at a two-sided 5 %"] == pytest.approx(0.32, abs=0.03)


@pytest.mark.parametrize(("k", "num_seeds", "stated"), [(1, 5, 0.88), (1, 8, 0.99), (3, 5, 0.69)])
def test_power_is_what_is_found(simulated, k, num_seeds, stated):
    """Seven points with a seed noise of three; of several challenges it is a lower bound."""
    num = 6000
    plan = {"delta": 0.07, "sd": 0.03, "num_challenges": k, "num_seeds": num_seeds, "delta_min": 0.01}
    expected = power(**plan)
    assert expected == pytest.approx(stated, abs=0.006)
    found = simulated.power_found(np.random.default_rng(k), num_studies=num, **plan)
    error = math.sqrt(expected * (1 - expected) / num)
    assert found > expected - 3 * error
    assert k > 1 or found < expected + 3 * error


def test_a_smaller_effect_than_what_matters_is_seldom_called(simulated):
    plan = {"delta": 0.01, "sd": 0.01, "num_challenges": 1, "num_seeds": 20, "delta_min": 0.02}
    assert simulated.power_found(np.random.default_rng(0), num_studies=500, **plan) < 0.01
    assert power(**plan) < 0.01 and power(**plan | {"delta_min": 0.0}) > 0.8


def test_one_setting_under_two_names(simulated):
    """A/A: ten runs of one setting, five under either name; intervals and all."""
    (arm, _), _ = simulated.two_arms(np.random.default_rng(0), num_ids=100, num_seeds=10)
    first, second = (
        dataclasses.replace(arm, seeds=arm.seeds[half], mAP=arm.mAP[half], identity_ap_RI=arm.identity_ap_RI[half])
        for half in (slice(5), slice(5, 10))
    )
    (found,) = judge([Challenge(candidate=first, baseline=second)], delta_min=0.01)
    low, high = found.contrast.interval
    assert found.word == "UNDETERMINED" and low < 0 < high


def test_the_interval_holds_the_truth(simulated):
    """95 % nominal, with noise of seeds, of identities, and of seeds on single identities; a run's queries do not."""
    rng = np.random.default_rng(0)
    shares = simulated.coverage(rng, num_studies=300, num=600, num_ids=150, num_seeds=5, seed_sd=0.03)
    assert 0.925 <= shares["seeds and identities"] <= 0.985
    assert shares["the same, plain percentiles"] < shares["seeds and identities"] - 0.02
    assert shares["queries of one run"] < 0.5


def test_the_interval_is_wider_than_that_of_one_runs_queries(simulated):
    rng = np.random.default_rng(0)
    for _ in range(5):
        arms, first_Q = simulated.two_arms(rng, num_ids=200, num_seeds=5)
        low, high = hierarchical_bootstrap(*arms, num=1000)
        low_queries, high_queries = simulated.by_queries(rng, first_Q, num=1000)
        assert high - low > 1.3 * (high_queries - low_queries)
