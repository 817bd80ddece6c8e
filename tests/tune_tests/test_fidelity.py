"""Fidelity: tau-b against plain loops and scipy, its interval, and from when on pruning is called safe."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from tune.fidelity import Fidelity, fidelity, recommended_grace


def plain_tau(xs, ys):
    """Return Kendall's tau-b, one pair of trials at a time."""
    concordant = tied_x = tied_y = pairs = 0
    for i in range(len(xs)):
        for j in range(i):
            a, b = xs[i] - xs[j], ys[i] - ys[j]
            concordant += (a * b > 0) - (a * b < 0)
            tied_x, tied_y, pairs = tied_x + (a == 0), tied_y + (b == 0), pairs + 1
    return concordant / ((pairs - tied_x) * (pairs - tied_y)) ** 0.5


def curves(num, *, num_epochs=6, settles=3, seed=0):
    """Return curves that are noise until the epoch from which their order is the last one's."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(num) / num
    return [
        [float(rng.random() if epoch < settles else order[i] + epoch) for epoch in range(1, num_epochs + 1)]
        for i in range(num)
    ]


def points(lows, *, n=20):
    return [Fidelity(epoch=e, tau=0.9, low=low, high=1.0, n=n) for e, low in enumerate(lows, start=1)]


@pytest.mark.parametrize("seed", range(6))
def test_tau_equals_the_plain_loops_and_scipy(seed):
    rng = np.random.default_rng(seed)
    given = rng.integers(0, 5, (int(rng.integers(5, 25)), 4)).astype(float).tolist()
    found = fidelity(given)
    assert [point.epoch for point in found] == [1, 2, 3, 4] and {point.n for point in found} == {len(given)}
    last = [curve[-1] for curve in given]
    for epoch, point in enumerate(found):
        ours = [curve[epoch] for curve in given]
        assert point.tau == pytest.approx(plain_tau(ours, last), abs=1e-12)
        assert point.tau == pytest.approx(stats.kendalltau(ours, last).statistic, abs=1e-12)
        assert point.low <= point.tau <= point.high


def test_the_interval_is_that_of_resampled_trials():
    given = curves(15, settles=4)
    values, rng = np.array(given), np.random.default_rng(0)
    taus = []
    for drawn in rng.integers(15, size=(1000, 15)):
        taus.append(plain_tau(values[drawn, 1].tolist(), values[drawn, -1].tolist()))
    point = fidelity(given)[1]
    assert (point.low, point.high) == pytest.approx(tuple(np.percentile(taus, [2.5, 97.5])), abs=1e-9)


def test_by_hand():
    first, last = fidelity([[1.0, 1.0], [2.0, 2.0], [4.0, 3.0], [3.0, 4.0]])
    assert first.tau == pytest.approx(4 / 6) and (last.tau, last.high) == (1, 1)
    assert fidelity([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])[0].tau == pytest.approx(-1)


def test_the_order_of_trials_and_any_rising_scale_change_no_tau():
    given = curves(12)
    expected = [point.tau for point in fidelity(given)]
    assert [point.tau for point in fidelity(given[::-1])] == pytest.approx(expected)
    assert [point.tau for point in fidelity(np.exp(np.array(given)).tolist())] == pytest.approx(expected)


def test_it_repeats_itself_and_follows_its_seed():
    given = curves(12)
    assert fidelity(given) == fidelity(given)
    assert fidelity(given, seed=1)[0].low != fidelity(given)[0].low
    assert fidelity(given, seed=1)[0].tau == fidelity(given)[0].tau


def test_the_interval_narrows_with_trials():
    few, many = (fidelity(curves(num, settles=7))[2] for num in (10, 100))
    assert many.high - many.low < (few.high - few.low) / 2


def test_an_epoch_that_tells_no_trials_apart_has_no_tau():
    first, second = fidelity([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    assert first == Fidelity(epoch=1, tau=None, low=None, high=None, n=3) and second.tau == 1
    assert [point.tau for point in fidelity([[0.5, 0.7]])] == [None, None]
    assert [point.tau for point in fidelity([[1.0, 5.0], [2.0, 5.0]])] == [None, None]


def test_a_resample_without_order_counts_as_none():
    """One trial alone differs at epoch 1: a third of the resamples lack it, and show no order."""
    found = fidelity([[float(i == 9), float(i)] for i in range(10)])[0]
    assert found.tau > 0.4 and found.low == 0


def test_no_curves_have_no_points():
    assert fidelity([]) == []
    assert recommended_grace([]) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1.0, 2.0], [1.0]], r"the same epochs, but the curves have \[1, 2\]; leave out"),
        ([[1.0, 2.0], [float("nan"), 2.0]], "finite values, but got nan"),
        ([[1.0, 2.0], [1.0, float("inf")]], "finite values, but got inf"),
    ],
)
def test_curves_that_are_not_of_full_trials(given, message):
    with pytest.raises(ValueError, match=message):
        fidelity(given)


@pytest.mark.parametrize(
    ("lows", "grace"),
    [
        ([0.1, 0.6, 0.7, 0.9, 1.0], 2),
        ([0.6, 0.4, 0.7, 0.9, 1.0], 3),  # an epoch that promised too much
        ([0.5, 0.5, 0.5, 0.5, 1.0], 1),
        ([0.1, 0.2, 0.3, 0.4, 1.0], None),  # the last epoch foretells itself, and nothing is left to prune
        ([0.9, 0.9, None, 0.9, 1.0], 4),
        ([0.9, 0.9, 0.9, None, None], None),
        ([1.0], None),
    ],
)
def test_the_grace_period_by_hand(lows, grace):
    assert recommended_grace(points(lows)) == grace


def test_few_trials_recommend_nothing():
    assert recommended_grace(points([0.9, 0.9, 1.0], n=9)) is None
    assert recommended_grace(points([0.9, 0.9, 1.0], n=10)) == 1
    assert recommended_grace(points([0.9, 0.9, 1.0], n=9), min_trials=9) == 1
    assert recommended_grace(points([0.3, 0.7, 1.0]), lowest=0.2) == 1


def test_pruning_is_safe_from_where_the_order_settles():
    assert recommended_grace(fidelity(curves(20, settles=4))) == 4
    assert recommended_grace(fidelity(curves(9, settles=4))) is None
    reversed_at_the_end = [[*curve[:-1], -curve[-1]] for curve in curves(20, settles=1)]
    assert recommended_grace(fidelity(reversed_at_the_end)) is None
    assert dataclasses.asdict(fidelity(curves(20))[0]).keys() == {"epoch", "tau", "low", "high", "n"}
