"""Selection regret: what each criterion promotes, its cost, and an order that could be chance said to be so."""

import math

import numpy as np
import pytest
from scipy import stats

from tune.regret import Regret, selection_regret

TRIALS = [
    {"target/mAP": 0.50, "good": 1.0, "bad": 9.0, "flat": 3.0},
    {"target/mAP": 0.54, "good": 2.0, "bad": 8.0, "flat": 3.0},
    {"target/mAP": 0.58, "good": 4.0, "bad": 7.0, "flat": 3.0},
    {"target/mAP": 0.56, "good": 3.0, "bad": 6.0, "flat": 3.0, "rare": 1.0},
]
NAMES = ["0000", "0001", "0002", "0003"]


def regrets(trials=TRIALS, names=NAMES, criteria=("good", "bad", "flat", "rare", "none"), **given):
    return {found.criterion: found for found in selection_regret(trials, names=names, criteria=criteria, **given)}


def test_by_hand():
    found = regrets()
    assert list(found) == ["good", "bad", "flat", "rare", "none", "target/mAP"]
    good, bad = found["good"], found["bad"]
    assert (good.promoted, good.target, good.cost, good.n) == ("0002", 0.58, 0.0, 4)
    assert good.rho == pytest.approx(1) and good.p == pytest.approx(2 / 24)  # of 24 orders, twice over
    assert (bad.promoted, bad.target, bad.n) == ("0000", 0.50, 4)
    assert bad.cost == pytest.approx(0.08) and bad.rho == pytest.approx(-0.8)
    assert found["target/mAP"].cost == 0 and found["target/mAP"].promoted == "0002"


def test_of_equal_values_the_first_trial_is_promoted_and_there_is_no_order():
    flat = regrets()["flat"]
    assert (flat.promoted, flat.n, flat.rho, flat.p) == ("0000", 4, None, None)
    assert flat.cost == pytest.approx(0.08)


def test_trials_that_lack_a_value_are_left_out_and_told():
    found = regrets()
    rare = found["rare"]
    assert (rare.promoted, rare.n, rare.rho, rare.p) == ("0003", 1, None, None)
    assert rare.cost == pytest.approx(0.02)  # against the best of all trials, those left out too
    assert found["none"] == Regret(criterion="none", n=0, promoted=None, target=None, cost=None, rho=None, p=None)
    without_oracle = regrets([*TRIALS, {"good": 99.0}, {"target/mAP": math.nan, "good": 98.0}], [*NAMES, "4", "5"])
    assert without_oracle["good"] == found["good"]
    lacking = regrets([*TRIALS, {"target/mAP": 0.9, "good": math.nan}], [*NAMES, "0004"])["good"]
    assert (lacking.promoted, lacking.n) == ("0002", 4) and lacking.cost == pytest.approx(0.32)


def test_nothing_at_all():
    assert regrets([], [])["target/mAP"].n == 0
    three = regrets(TRIALS[:3], NAMES[:3])["good"]
    assert (three.n, three.rho, three.p) == (3, None, None)


def test_another_oracle_and_the_oracle_among_the_criteria():
    found = regrets(criteria=("target/mAP", "bad"), oracle="good")
    assert list(found) == ["target/mAP", "bad", "good"]
    assert found["bad"].cost == 3.0 and found["bad"].target == 1.0
    assert [found.criterion for found in selection_regret(TRIALS, names=NAMES, criteria=["target/mAP", "good"])] == [
        "good",
        "target/mAP",
    ]


def test_each_trial_has_one_name():
    with pytest.raises(ValueError, match="each trial has one name, but got 4 trials and 3 names"):
        selection_regret(TRIALS, names=NAMES[:3], criteria=["good"])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num", [4, 6, 12, 40])
def test_rho_is_spearmans(seed, num):
    rng = np.random.default_rng(seed)
    values, oracle = rng.integers(0, 6, num) + rng.choice([0, 0.5]), rng.random(num)
    trials = [{"v": ours, "target/mAP": theirs} for ours, theirs in zip(values, oracle, strict=True)]
    found = regrets(trials, [str(i) for i in range(num)], ["v"])["v"]
    expected = stats.spearmanr(values, oracle)
    assert found.rho == pytest.approx(expected.statistic, abs=1e-12)
    assert found.target == oracle[np.argmax(values)] and found.cost == pytest.approx(oracle.max() - found.target)
    if num == 40:  # where the textbook's approximation holds
        assert found.p == pytest.approx(expected.pvalue, abs=0.03)
    assert regrets(trials, [str(i) for i in range(num)], ["v"])["v"] == found


def test_chance_is_told_from_order():
    """Of criteria that are noise about one in twenty has p < 0.05, with few trials too."""
    rng = np.random.default_rng(0)
    for num in (4, 8):
        trials = [{"target/mAP": rng.random(), **{str(i): rng.random() for i in range(200)}} for _ in range(num)]
        found = regrets(trials, [str(i) for i in range(num)], [str(i) for i in range(200)])
        assert np.mean([found[str(i)].p < 0.05 for i in range(200)]) <= 0.08
    clear = [{"v": float(i), "target/mAP": i + 0.1} for i in range(10)]
    assert regrets(clear, [str(i) for i in range(10)], ["v"])["v"].p < 0.001
