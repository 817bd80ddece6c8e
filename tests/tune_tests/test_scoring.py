"""The label firewall: what chooses a trial cannot reach another label, whatever it does with what it is given."""

import dataclasses
import functools
import gc
import itertools
import math
import types

import numpy as np
import pytest

from mmfa.errors import ConfigError
from studies.protocol import CRITERIA, Objective
from studies.resolve import resolve
from studies.spec import parse
from tune import scoring
from tune.scoring import HeldOut, LabelFree, Oracle, score, view

OBJECTIVES = {
    "target_val": Objective(),
    "label_free": Objective(metric="label_free/score"),
    "oracle": Objective(metric="target/mAP", selection="oracle"),
}
WITHOUT_SOURCE = Objective(metric="label_free/score", weights={"pseudo/xcam_mAP": 1.0, "cluster/silhouette": 2.0})
MEASURED = [
    *("target/mAP", "target/rank1", "target/rank5", "target/attribute_accuracy", "target_a_to_b/mAP"),
    *("target_val/mAP", "target_val/rank1", "target_val/rank5"),
    *("source_val/mAP", "source_val/rank1", "source_val/rank5"),
    *("pseudo/xcam_mAP", "cluster/silhouette", "attributes/information"),
    *("probe/effective_rank", "probe/finite", "mmd/plateau", "train/loss_mdal"),
]
"""What a finished trial has."""
MAY = {
    "target_val": {"target_val/mAP"},
    "oracle": {"target/mAP"},
    "label_free": {*CRITERIA, *scoring.GUARDED},
}
"""What each objective may read."""
SEARCH = """
question = "?"
trials = 4
{objective}
[space."loss.lambda_aal"]
low = 0.1
high = 10.0
log = true
"""


def sentinels(start):
    """Return metrics that are all different, and different from anything that is computed from them."""
    odd = (math.pi * number % 1 / 1000 for number in itertools.count(start))
    return {name: 0.5 + next(odd) for name in MEASURED} | {"probe/finite": 1.0, "mmd/plateau": 0.0}


TRIAL, BASELINE = sentinels(1), [sentinels(start) for start in (100, 200, 300)]


def reachable(start):
    """Return everything that can be reached from an object by any reference, but for types and modules."""
    seen, todo = {}, [start]
    while todo:
        item = todo.pop()
        if id(item) not in seen and not issubclass(type(item), type | types.ModuleType):
            seen[id(item)] = item
            todo += gc.get_referents(item)
    return list(seen.values())


class Watched(dict):
    """Metrics that remember which of them were read."""

    def __init__(self, values, read):
        super().__init__(values)
        self.read = read

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.read.add(name)
        return super().get(name, default)

    def everything(self):
        raise AssertionError("all metrics were read")

    __iter__ = keys = values = items = copy = everything


def test_the_walk_finds_what_is_hidden():
    """The proof below is worth what its walk finds: a slot, a key, the cell of a closure, a bound argument."""
    value = 0.123456
    hidden = [HeldOut(value), {value: None}, [({"a": (value,)},)], types.CellType(value), functools.partial(abs, value)]
    for one in hidden:
        assert any(item is value for item in reachable(one))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("aligns", [True, False])
@pytest.mark.parametrize("exempt", [True, False])
def test_no_other_label_can_be_reached(name, aligns, exempt):
    objective = OBJECTIVES[name]
    seen = view(objective, TRIAL, BASELINE, aligns=aligns, exempt=exempt)
    allowed = set(objective.weights) if name == "label_free" else MAY[name]
    found = [item for item in reachable(seen) if isinstance(item, float)]
    for metrics in (TRIAL, *BASELINE):
        forbidden = {value for key, value in metrics.items() if key not in allowed} - {0.0, 1.0}
        assert len(forbidden) >= len(metrics) - len(allowed) - 2
        assert not forbidden & set(found)
        assert metrics not in [item for item in reachable(seen) if isinstance(item, dict)]
    assert TRIAL[objective.metric if name != "label_free" else "pseudo/xcam_mAP"] in found, "the walk sees what is held"


def test_a_criterion_without_weight_is_not_there_either():
    seen = view(WITHOUT_SOURCE, TRIAL, BASELINE)
    assert set(seen.values) == set(seen.baseline) == set(seen.weights) == set(WITHOUT_SOURCE.weights)
    held = {item for item in reachable(seen) if isinstance(item, float)}
    for metrics in (TRIAL, *BASELINE):
        assert not held & {value for name, value in metrics.items() if name.startswith(("source_val", "attributes"))}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_else_is_even_read(name):
    read = set()
    watched = [Watched(metrics, read) for metrics in (TRIAL, *BASELINE)]
    score(view(OBJECTIVES[name], watched[0], watched[1:], aligns=True))
    assert read <= MAY[name]
    assert read, "the watch sees what is read"


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(20))
def test_a_score_does_not_depend_on_any_other_metric(name, seed):
    rng = np.random.default_rng(seed)
    before = score(view(OBJECTIVES[name], TRIAL, BASELINE, aligns=True))

    def other(metrics):
        extremes = [0.0, 1.0, math.nan, math.inf, -math.inf, float(rng.normal())]
        return {key: value if key in MAY[name] else rng.choice(extremes) for key, value in metrics.items()}

    def fewer(metrics):
        return {key: value for key, value in metrics.items() if key in MAY[name] or rng.random() < 0.5}

    for change in (other, fewer):
        changed = view(OBJECTIVES[name], change(TRIAL), [change(run) for run in BASELINE], aligns=True)
        assert score(changed) == before


def test_what_each_view_is_and_what_it_holds():
    assert view(OBJECTIVES["target_val"], TRIAL, BASELINE) == HeldOut(TRIAL["target_val/mAP"])
    assert view(OBJECTIVES["oracle"], TRIAL, BASELINE) == Oracle(TRIAL["target/mAP"])
    assert isinstance(view(OBJECTIVES["label_free"], TRIAL, BASELINE), LabelFree)
    assert HeldOut(0.3) != Oracle(0.3)


@pytest.mark.parametrize("kind", [HeldOut, Oracle, LabelFree])
def test_a_view_has_slots_and_takes_nothing_more(kind):
    seen = view(next(o for o in OBJECTIVES.values() if isinstance(view(o, TRIAL, BASELINE), kind)), TRIAL, BASELINE)
    assert kind.__slots__ == tuple(field.name for field in dataclasses.fields(kind)) and not hasattr(seen, "__dict__")
    if kind is not LabelFree:
        assert kind.__slots__ == ("mAP",)
    with pytest.raises((AttributeError, TypeError)):  # a frozen one with slots raises either
        seen.more = TRIAL
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(seen, kind.__slots__[0], 1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_was_not_measured_is_no_score(name):
    assert view(OBJECTIVES[name], {}, []) is None
    others = {key: value for key, value in TRIAL.items() if key not in MAY[name]}
    seen = view(OBJECTIVES[name], others, BASELINE)
    assert seen is None or (name == "label_free" and seen.values == {}), "what a trial lacks may be held against it"


def test_without_the_baseline_there_is_no_label_free_score():
    objective = OBJECTIVES["label_free"]
    assert view(objective, TRIAL, []) is None
    assert view(objective, TRIAL, [{"target/mAP": 0.3}] * 3) is None
    for name in ("target_val", "oracle"):
        assert view(OBJECTIVES[name], TRIAL, []) is not None


WEIGHTS = {"pseudo/xcam_mAP": 1.0, "cluster/silhouette": 0.5}
PLAIN = Objective(metric="label_free/score", weights=WEIGHTS)
SEEDS = [
    {"pseudo/xcam_mAP": value, "cluster/silhouette": other, "probe/effective_rank": 10.0, "source_val/mAP": 0.6}
    for value, other in ((0.40, 0.201), (0.42, 0.2), (0.44, 0.199))
]
GOOD = {"pseudo/xcam_mAP": 0.45, "cluster/silhouette": 0.21, "probe/effective_rank": 9.0, "source_val/mAP": 0.6}


def test_the_score_by_hand_in_the_baselines_noise():
    # sd 0.02 of the first; of the second 0.001, of which no less than EPS = 0.005 is believed.
    assert score(view(PLAIN, GOOD, SEEDS)) == pytest.approx(1.0 * 1.5 + 0.5 * 2.0)
    noisier = [
        {**seed, "pseudo/xcam_mAP": 0.42 + 10 * (seed["pseudo/xcam_mAP"] - 0.42)} for seed in SEEDS
    ]  # ten times the noise, a tenth of the score
    assert score(view(PLAIN, GOOD, noisier)) == pytest.approx(1.0 * 0.15 + 0.5 * 2.0)
    assert score(view(PLAIN, SEEDS[1], SEEDS)) == pytest.approx(0.0)
    assert score(view(PLAIN, {**GOOD, "pseudo/xcam_mAP": 0.9}, SEEDS)) == pytest.approx(3.0 + 1.0)


LOWEST = -3.0 * 1.5


@pytest.mark.parametrize(
    ("changes", "aligns"),
    [
        ({"probe/finite": 0.0}, False),
        ({"mmd/plateau": 1.0}, True),
        ({"probe/effective_rank": 4.9}, False),
        ({"probe/effective_rank": math.nan}, False),
        ({"source_val/mAP": 0.47}, False),
    ],
)
def test_a_vetoed_trial_gets_the_lowest_score_there_is(changes, aligns):
    seen = view(PLAIN, {**GOOD, **changes}, SEEDS, aligns=aligns)
    assert seen.vetoed and score(seen) == LOWEST
    worst = view(PLAIN, {**GOOD, "pseudo/xcam_mAP": 0.0, "cluster/silhouette": -1.0}, SEEDS, aligns=aligns)
    assert not worst.vetoed and score(worst) == LOWEST, "nothing that is measured scores lower"


@pytest.mark.parametrize(
    ("changes", "aligns"),
    [
        ({"mmd/plateau": 1.0}, False),
        ({"mmd/plateau": 0.0, "probe/finite": 1.0}, True),
        ({"probe/effective_rank": 5.0, "source_val/mAP": 0.48}, True),
        ({"target/mAP": 0.0, "target_val/mAP": 0.0, "source_val/rank1": 0.0}, True),
    ],
)
def test_what_vetoes_nothing(changes, aligns):
    seen = view(PLAIN, {**GOOD, **changes}, SEEDS, aligns=aligns)
    assert not seen.vetoed and score(seen) == pytest.approx(2.5)


@pytest.mark.parametrize("missing", WEIGHTS)
def test_a_trial_that_lacks_a_criterion_gets_the_lowest_score(missing):
    lacking = {name: value for name, value in GOOD.items() if name != missing}
    assert score(view(PLAIN, lacking, SEEDS)) == LOWEST
    assert score(view(PLAIN, {"probe/finite": 0.0}, SEEDS)) == LOWEST


def test_the_baseline_itself_is_never_vetoed():
    """Guards go by the baseline; but what it lacks it lacks."""
    dead = {**GOOD, "mmd/plateau": 1.0, "probe/effective_rank": 0.1, "source_val/mAP": 0.0}
    seen = view(PLAIN, dead, SEEDS, aligns=True, exempt=True)
    assert not seen.vetoed and score(seen) == pytest.approx(2.5)
    assert score(view(PLAIN, dead, SEEDS, aligns=True)) == LOWEST
    assert score(view(PLAIN, {"probe/finite": 0.0}, SEEDS, exempt=True)) == LOWEST


@pytest.mark.parametrize("which", [slice(0, 1), slice(0, 3)])
def test_a_criterion_that_a_seed_of_the_baseline_lacks_counts_for_nobody(which):
    """A source without attributes has no ``attributes/information``, in no trial."""
    seeds = [dict(seed) for seed in SEEDS]
    for seed in seeds[which]:
        del seed["cluster/silhouette"]
    seen = view(PLAIN, GOOD, seeds)
    assert score(seen) == pytest.approx(1.5) and set(seen.values) == {"pseudo/xcam_mAP"}
    assert score(view(PLAIN, {**GOOD, "probe/finite": 0.0}, seeds)) == -3.0


@pytest.mark.parametrize("seed", range(30))
def test_no_score_leaves_its_bounds(seed):
    rng = np.random.default_rng(seed)
    values = {name: float(rng.choice([-1e9, 1e9, rng.normal(0.4, 0.1)])) for name in WEIGHTS}
    assert LOWEST <= score(view(PLAIN, {**GOOD, **values}, SEEDS)) <= -LOWEST


def plan_of(objective):
    study = parse(SEARCH.format(objective=objective), name="mine", origin="mine.toml")
    return resolve(study, profile_name="embedded", overrides={})


def test_the_official_test_labels_choose_only_where_the_study_says_so():
    with pytest.raises(ConfigError) as raised:
        plan_of('[objective]\nmetric = "target/mAP"')
    assert str(raised.value) == (
        "mine.toml: [objective] `metric` target/mAP chooses by the official test labels, which makes every number that "
        'it produced an oracle\'s; write selection = "oracle" beside it, or use target_val/mAP.'
    )
    plan = plan_of('[objective]\nmetric = "target/mAP"\nselection = "oracle"')
    assert (plan.labels, plan.metric) == ("oracle", "target/mAP")
    assert "it chose" in scoring.READINGS[plan.labels]


@pytest.mark.parametrize(
    ("objective", "labels"),
    [("", "target_val"), ('[objective]\nmetric = "label_free/score"', "none")],
)
def test_every_choice_has_a_reason_for_its_reading(objective, labels):
    plan = plan_of(objective)
    assert plan.labels == labels and "chose nothing" in scoring.READINGS[labels]
    assert set(scoring.READINGS) == {"target_val", "none", "oracle"}
