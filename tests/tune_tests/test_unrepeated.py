"""No setting is asked for twice while there are others: the second training would be the first, bit for bit."""

import math
import warnings

import optuna
import pytest
import ray.tune.search
from tune_tests.test_search import Driver

from mmfa.config import TrialConfig
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
NARROW = """
question = "?"
trials = 16
start_up = 4
[space."optim.momentum"]
low = 0.9
high = 0.98
"""
FEW_WHOLE = """
question = "?"
trials = 9
start_up = 3
[space."data.target_batch"]
low = 30
high = 34
"""


def plan_of(text):
    return resolve(parse(text, name="x", origin="x.toml"), profile_name="embedded", overrides={})


def searched(text, score, *, sampler=None, at_once=2):
    """Return the settings of a search in the order in which they were asked for."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    plan = plan_of(text)
    study, running = optuna.create_study(direction="maximize"), []
    for index in range(1 + plan.study.start_up):
        study.enqueue_trial(search.start_up_point(plan, plan.arm(SEARCH), index))
    for number in range(plan.trials):
        study.sampler = search.sampler(plan, num_trials=number) if sampler is None else sampler
        running.append(study.ask())
        search.suggest(running[-1], plan, plan.arm(SEARCH))
        if len(running) == at_once:
            study.tell(running[0], score(running.pop(0).params))
    return [trial.params for trial in study.get_trials()]


def corner(params):
    return sum(math.log(value) for value in params.values())


def repeated(text, points):
    space = search.distributions(plan_of(text))
    return [
        point for place, point in enumerate(points) if any(unrepeated.same(point, one, space) for one in points[:place])
    ]


def test_the_best_corner_is_trained_once():
    as_it_comes = searched(CORNER, corner, sampler=optuna.samplers.GPSampler(seed=3, n_startup_trials=4))
    assert repeated(CORNER, as_it_comes), "Optuna's own asks for the corner again, or this test holds nothing"
    points = searched(CORNER, corner)
    space = search.distributions(plan_of(CORNER))
    best = {"loss.lambda_aal": 30.0, "loss.lambda_mdal": 30.0}
    assert sum(unrepeated.same(best, point, space) for point in points) == 1
    assert repeated(CORNER, points) == []
    assert points == searched(CORNER, corner), "the same search draws the same points"


def test_a_narrow_range_is_searched_by_the_process():
    points = searched(NARROW, lambda params: -((params["optim.momentum"] - 0.953) ** 2))
    spread = [search.start_up_point(plan_of(NARROW), plan_of(NARROW).arm(SEARCH), index) for index in range(1, 40)]
    own = [point for point in points[5:] if point not in spread]
    assert repeated(NARROW, points) == [] and len(own) >= 4
    assert min(abs(point["optim.momentum"] - 0.953) for point in own) < 1e-3


def test_a_space_that_is_used_up_is_searched_on():
    points = [point["data.target_batch"] for point in searched(FEW_WHOLE, lambda one: one["data.target_batch"])]
    assert len(points) == 9 and set(points) == set(range(30, 35)), "each one is trained before any is repeated for want"


def test_what_was_lost_is_not_asked_for_again(tmp_path):
    plan = plan_of(CORNER)
    driver, asked, lost = Driver(f"sqlite:///{tmp_path / 'ledger.db'}", plan, tmp_path), [], []
    while (answer := driver.suggest())[1] != ray.tune.search.Searcher.FINISHED:
        trial_id, config = answer
        name, params = config["job"]["name"], TrialConfig.from_json(config["job"]["config"]).flatten()
        if name.startswith("controls/"):
            driver.finish(trial_id, 0.0)
            continue
        asked.append({key: params[key] for key in ("loss.lambda_aal", "loss.lambda_mdal")})
        if len(asked) > 6 and corner(asked[-1]) == max(map(corner, asked)):
            driver.searcher.on_trial_complete(trial_id, error=True)
            lost.append(asked[-1])
        else:
            driver.finish(trial_id, corner(asked[-1]) / 100)
    assert lost and repeated(CORNER, asked) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"loss.lambda_aal": 1.0, "loss.lambda_mdal": 2.0}, True),
        ({"loss.lambda_aal": 1.005, "loss.lambda_mdal": 2.0}, True),
        ({"loss.lambda_aal": 1.05, "loss.lambda_mdal": 2.0}, False),
        ({"loss.lambda_aal": 1.0}, False),
        ({}, False),
    ],
)
def test_what_is_the_same(other, expected):
    space = search.distributions(plan_of(CORNER))
    assert unrepeated.same({"loss.lambda_aal": 1.0, "loss.lambda_mdal": 2.0}, other, space) is expected


def test_whole_numbers_are_the_same_when_they_are_equal():
    space = search.distributions(plan_of(FEW_WHOLE))
    assert unrepeated.same({"data.target_batch": 31}, {"data.target_batch": 31}, space)
    assert not unrepeated.same({"data.target_batch": 31}, {"data.target_batch": 32}, space)
