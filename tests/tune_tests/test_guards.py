"""The online score and the guards by hand: what counts for a trial, and what vetoes it."""

import math
import re

import numpy as np
import pytest
from tune_tests.probes import people, probe_of, shuffled

from tune.criteria import compute, guards, online_score

BASELINE = {"cluster/silhouette": [0.1, 0.2, 0.3], "pseudo/xcam_mAP": [0.5, 0.5, 0.5]}
VALUES = {"cluster/silhouette": 0.25, "pseudo/xcam_mAP": 0.52, "attributes/information": 0.9}


def test_the_online_score_by_hand():
    weights = {"cluster/silhouette": 2.0, "pseudo/xcam_mAP": -1.0}
    assert online_score(VALUES, BASELINE, {"cluster/silhouette": 1.0}, eps=0.01) == pytest.approx(0.5)
    assert online_score(VALUES, BASELINE, weights, eps=0.01) == pytest.approx(2 * 0.5 - 2)
    by_name = {"cluster/silhouette": 0.2, "pseudo/xcam_mAP": 0.04}
    assert online_score(VALUES, BASELINE, weights, eps=by_name) == pytest.approx(2 * 0.25 - 0.5)
    assert online_score(VALUES, BASELINE, {}, eps=0.01) == 0


@pytest.mark.parametrize(("value", "score"), [(9.0, 3.0), (-9.0, -3.0), (0.49, 2.9), (0.2, 0.0)])
def test_three_standard_deviations_are_as_many_as_count(value, score):
    got = online_score({"cluster/silhouette": value}, BASELINE, {"cluster/silhouette": 1.0}, eps=0.01)
    assert got == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "baseline", "eps", "message"),
    [
        ({}, BASELINE, 0.1, r"'cluster/silhouette' has a weight and needs a finite value, but got nan; values: none"),
        ({"other": 1.0}, BASELINE, 0.1, "values: other"),
        ({"cluster/silhouette": math.inf}, BASELINE, 0.1, "but got inf"),
        (
            VALUES,
            {},
            0.1,
            r"'cluster/silhouette' needs 2 finite values or more of the baseline, but got \[\]; run more",
        ),
        (VALUES, {"cluster/silhouette": [0.1]}, 0.1, r"but got \[0.1\]"),
        (VALUES, {"cluster/silhouette": [0.1, math.nan]}, 0.1, "nan"),
        (VALUES, BASELINE, 0.0, "eps of 'cluster/silhouette' must be above 0, but got 0.0"),
        (VALUES, BASELINE, {"pseudo/xcam_mAP": 0.1}, "eps of 'cluster/silhouette' must be above 0, but got nan"),
    ],
)
def test_what_no_online_score_can_be_made_of(values, baseline, eps, message):
    with pytest.raises(ValueError, match=message):
        online_score(values, baseline, {"cluster/silhouette": 1.0}, eps=eps)


SEEDS = [{"probe/effective_rank": 90.0, "source_val/mAP": 0.5}, {"probe/effective_rank": 110.0, "source_val/mAP": 0.7}]
FINE = {"probe/finite": 1.0, "mmd/plateau": 0.0, "probe/effective_rank": 50.1, "source_val/mAP": 0.55}


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"probe/finite": 0.0}, "not finite"),
        ({"mmd/plateau": 1.0}, "plateau: the kernel is dead and λ3 does nothing"),
        (
            {"probe/effective_rank": 1.5},
            r"probe/effective_rank is 1.5 and not at least 0.5 x the baseline's 100: .*collapsed",
        ),
        ({"probe/effective_rank": 49.9}, "collapsed"),
        ({"probe/effective_rank": math.nan}, "is nan"),
        (
            {"source_val/mAP": 0.4799},
            "source_val/mAP is 0.48 and not at least 0.8 x the baseline's 0.6: retrieval on the",
        ),
        ({"source_val/mAP": math.nan}, "is nan"),
    ],
)
def test_each_guard_vetoes_in_words(metrics, reason):
    (said,) = guards(FINE | metrics, SEEDS, aligns=True)
    assert re.search(reason, said)


def test_guards_let_a_sound_trial_pass():
    assert guards(FINE, SEEDS, aligns=True) == []
    assert guards(FINE | {"source_val/mAP": 0.4801, "probe/effective_rank": 1e6}, SEEDS, aligns=True) == []
    assert guards(FINE | {"mmd/plateau": 1.0}, SEEDS, aligns=False) == []


def test_what_is_missing_vetoes_nothing():
    assert guards({}, SEEDS, aligns=True) == guards({}, [], aligns=True) == []
    low = FINE | {"source_val/mAP": 0.0, "probe/effective_rank": 0.0}
    assert guards(low, [], aligns=True) == guards(low, [{}, {"source_val/mAP": math.nan}], aligns=True) == []
    assert len(guards(low, [*SEEDS, {}, {"probe/finite": 0.0}], aligns=True)) == 2


def test_collapse_is_vetoed():
    baseline, collapsed = people(spread=1.0)[0], probe_of(np.ones((192, 16)) + np.eye(192, 16))
    settings = {"k": 8, "eps": 0.6, "min_samples": 4}
    seeds = [compute(shuffled(baseline, seed), **settings) for seed in range(3)]
    assert guards(compute(baseline, **settings), seeds, aligns=True) == []
    for flat in (probe_of(np.ones((192, 16))), probe_of(np.arange(192)[:, None] * np.ones(16))):
        (said,) = guards(compute(flat, **settings), seeds, aligns=True)
        assert "collapsed" in said
    assert guards(compute(collapsed, **settings), seeds, aligns=True) == []  # 16 directions are left: not this guard's
    broken = probe_of(np.full((192, 16), np.nan))
    assert guards(compute(broken, **settings), seeds, aligns=True) == [
        "embeddings or attributes of the target are not finite"
    ]
