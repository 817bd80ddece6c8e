"""No setting is asked for twice while there are others: the second training would be the first, bit for bit."""

import math
import warnings

import optuna
import pytest

from studies.plan import SEARCH
from studies.resolve import resolve
from studies.spec import parse
from tune import search, unrepeated

CORNER = """
question = "?"
trials = 24
start_up = 4
[space."loss.lambda_aal"]
low = 0.03
high = 30.0
log = true
[space."loss.lambda_mdal"]
low = 0.03
high = 30.0
log = true
"""
FEW_WHOLE = """
question = "?"
trials = 12
start_up = 3
[space."data.target_batch"]
low = 30
high = 34
"""


def searched(text, score, *, sampler=None, at_once=2):
    """Return the settings of a search in the order in which they were asked for."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    plan = resolve(parse(text, name="x", origin="x.toml"), profile_name="embedded", overrides={})
    study, running = optuna.create_study(direction="maximize"), []
    for index in range(1 + plan.study.start_up):
        study.enqueue_trial(search.start_up_point(plan, plan.arm(SEARCH), index))
    for number in range(plan.trials):
        drawn = search.sampler(plan, num_trials=number)
        study.sampler = drawn if sampler is None else sampler(drawn)
        running.append(study.ask())
        search.suggest(running[-1], plan, plan.arm(SEARCH))
        if len(running) == at_once:
            study.tell(running[0], score(running.pop(0).params))
    return [trial.params for trial in study.get_trials()]


def corner(params):
    return sum(math.log(value) for value in params.values())


def repeated(points):
    return [point for place, point in enumerate(points) if any(unrepeated._same(point, one) for one in points[:place])]


def test_the_best_corner_is_trained_once():
    as_it_comes = searched(CORNER, corner, sampler=lambda ours: optuna.samplers.GPSampler(seed=3, n_startup_trials=4))
    assert repeated(as_it_comes), "Optuna's own asks for the corner again, or this test holds nothing"
    points = searched(CORNER, corner)
    assert sum(unrepeated._same({"loss.lambda_aal": 30.0, "loss.lambda_mdal": 30.0}, point) for point in points) == 1
    assert repeated(points) == []
    assert points == searched(CORNER, corner), "the same search draws the same points"


def test_a_space_that_is_used_up_is_searched_on():
    points = searched(FEW_WHOLE, lambda params: params["data.target_batch"])
    assert len(points) == 12
    assert {point["data.target_batch"] for point in points} <= set(range(30, 35))


@pytest.mark.parametrize(
    ("other", "same"),
    [({"a": 1.0, "b": 2.0}, True), ({"a": 1.005, "b": 2.0}, True), ({"a": 1.05, "b": 2.0}, False), ({"a": 1.0}, False)],
)
def test_what_is_the_same(other, same):
    assert unrepeated._same({"a": 1.0, "b": 2.0}, other) is same
