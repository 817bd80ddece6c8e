"""Comparisons, arms, pairs and conditional spaces."""

import pytest

from mmfa.errors import ConfigError
from studies.plan import digest
from studies.resolve import resolve
from studies.spec import CONTROLS, parse

COMPARISON = """
question = "Which is better?"
trials = 2
[pairs]
paper = [["market1501", "dukemtmc-reid"], ["market1501", "viper"]]
[fixed]
"data.num_val_ids" = 0
[arms.plain]
title = "As it is"
[arms.wide]
set = {"kernel.bandwidths" = [10, 50]}
"""

CONDITIONAL = """
question = "?"
trials = 6
start_up = 3
[space."model.pooling"]
choices = ["max", "average"]
[space."kernel.bandwidths"]
choices = {paper = [1, 5, 10], wide = [10, 50]}
when = {"model.pooling" = "average"}
[space."loss.lambda_aal"]
low = 0.1
high = 10
"""


def plan_of(text, *, profile="embedded", **kwargs):
    return resolve(parse(text, name="mine", origin="mine.toml"), profile_name=profile, overrides={}, **kwargs)


def test_a_comparison_is_arms_and_controls_over_seeds():
    plan = plan_of(COMPARISON, seed=3)
    assert [arm.name for arm in plan.arms] == ["plain", "wide", "source_only", "target_bn"]
    assert [plan.points(arm) for arm in plan.arms] == [[{"run.seed": 3}, {"run.seed": 4}]] * 4
    assert (plan.num_trials, plan.num_trainings, plan.controls) == (8, 8, ())
    assert (plan.labels, plan.metric) == ("none", "target/mAP")
    wide = plan.decode({"run.seed": 4}, plan.arm("wide"))
    assert (wide.kernel.bandwidths, wide.run.seed) == ((10.0, 50.0), 4)
    assert plan.arm("source_only").config == plan.baseline.with_overrides(CONTROLS["source_only"])


def test_pairs_multiply_arms_and_splits_stand_for_seeds():
    plan = plan_of(COMPARISON, profile="paper")
    assert [arm.name for arm in plan.arms[:2]] == [
        "market1501-to-dukemtmc-reid.plain",
        "market1501-to-dukemtmc-reid.wide",
    ]
    assert len(plan.arms) == 8 and plan.datasets() == ["market1501", "dukemtmc-reid", "viper"]
    viper = plan.arm("market1501-to-viper.plain")
    assert plan.points(viper) == [{"run.seed": 0, "data.split": split} for split in range(10)]
    assert plan.num_trainings == 4 * 2 + 4 * 10


def test_naming_a_pair_leaves_the_others_out():
    plan = plan_of(COMPARISON, profile="paper", target="dukemtmc-reid")
    assert [arm.name for arm in plan.arms] == ["plain", "wide", "source_only", "target_bn"]
    assert plan.arms[0].pair == "market1501 to dukemtmc-reid"


def test_the_space_of_a_condition_is_left_where_it_does_not_hold():
    plan = plan_of(CONDITIONAL)
    assert plan.baseline_params() == {"model.pooling": "max", "loss.lambda_aal": 1.0}
    assert plan.active({"model.pooling": "average"}) == ["model.pooling", "kernel.bandwidths", "loss.lambda_aal"]
    assert plan.decode({"model.pooling": "average", "kernel.bandwidths": "wide"}).kernel.bandwidths == (10.0, 50.0)
    assert plan.decode({"model.pooling": "max"}).kernel.bandwidths == (1.0, 5.0, 10.0)


def test_what_an_arm_sets_is_part_of_what_the_study_is():
    one, other = plan_of(COMPARISON), plan_of(COMPARISON.replace("[10, 50]", "[10, 60]"))
    assert digest(one.identity(fingerprints={})) != digest(other.identity(fingerprints={}))
    more = plan_of(COMPARISON, trials=5)
    assert digest(one.identity(fingerprints={})) == digest(more.identity(fingerprints={}))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[arms.wide]", "[arms.Wide]", r"\[arms\] a name has a-z, 0-9 and _ only.*'Wide'"),
        (
            "[arms.wide]",
            "[arms.target_bn]",
            r"is not 'search', 'controls', 'confirm' or a control, but got 'target_bn'",
        ),
        ("kernel.bandwidths", "kernel.bandwidth", r"\[arms.wide.set\] 'kernel.bandwidth'.*did you mean 'kernel.band"),
        ("kernel.bandwidths", "run.seed", r"\[arms.wide.set\] 'run.seed' cannot be set by an arm; use --seed"),
        ("[10, 50]", "[-1]", r"\[arms.wide\] kernel.bandwidths must be one or more numbers above 0"),
        ("paper =", "papre =", r"\[pairs\] 'papre' is not a profile; did you mean 'paper'"),
        ('"viper"]', '"viper", "x"]', r"\[pairs.paper.1\] .*at most 2"),
        ("title =", "titel =", r"'arms.plain.titel' is not a key of a study; did you mean 'title'"),
    ],
)
def test_a_wrong_comparison_is_named(old, new, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(COMPARISON.replace(old, new, 1), profile="paper")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('when = {"model.pooling" = "average"}', 'when = {"loss.lambda_aal" = 1}', r"choices that stand before it"),
        (
            'when = {"model.pooling" = "average"}',
            'when = {"model.pooling" = "avg"}',
            r"never holds; its choices are 'max'",
        ),
        (
            '[space."loss.lambda_aal"]',
            '[arms.a.set]\n"loss.lambda_aal" = 2\n[space."loss.lambda_aal"]',
            r"is in \[arms.a",
        ),
    ],
)
def test_a_wrong_condition_is_named(old, new, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(CONDITIONAL.replace(old, new, 1))


def test_tables_show_labels_where_values_have_them():
    plan = plan_of(CONDITIONAL)
    assert plan.labels_of(plan.decode({"model.pooling": "average", "kernel.bandwidths": "wide"})) == [
        "average",
        "wide",
        1.0,
    ]
    assert plan_of(COMPARISON, seed=7).labels_of(plan.baseline) == [0]


def test_what_an_arm_sets_stays_its_own():
    study = parse(COMPARISON, name="mine", origin="mine.toml")
    plan = resolve(study, profile_name="embedded", overrides={"kernel.bandwidths": [1.0]})
    assert [arm.config.kernel.bandwidths for arm in plan.arms] == [(1.0,), (10.0, 50.0), (1.0,), (1.0,)]


def test_a_study_without_anything_to_do_is_refused():
    with pytest.raises(ConfigError, match=r"needs a \[space\] to search, or \[arms\] or \[pairs\] to compare"):
        parse('question = "?"\ntrials = 1\n', name="mine", origin="mine.toml")


def test_the_pair_of_a_search_is_everybodys(tmp_path):
    pairs = '[pairs]\nembedded = [["embedded-target", "embedded-source"]]\n'
    plan = plan_of(CONDITIONAL.replace("[space", pairs + "[space", 1))
    assert plan.arms[0].pair == "embedded-target to embedded-source"
    assert plan.controls[-1].config.data.source == plan.baseline.data.source == "embedded-target"
    two = pairs.replace("]]", '], ["embedded-source", "embedded-null"]]')
    with pytest.raises(ConfigError, match=r"\[pairs\] a search has one pair, but got 2"):
        plan_of(CONDITIONAL.replace("[space", two + "[space", 1))


def test_a_file_of_weights_is_named_from_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    study = parse(COMPARISON, name="mine", origin="mine.toml")
    plan = resolve(study, profile_name="embedded", overrides={"model.weights": "w.pth"})
    assert {config.model.weights for config in [plan.baseline, *plan.configs()]} == {str(tmp_path / "w.pth")}


def test_seeds_that_run_out_are_found_before_anything_starts():
    with pytest.raises(ConfigError, match="--seed: run.seed < 2147483648 must hold"):
        plan_of(COMPARISON, seed=2**31 - 1)


def test_a_search_where_nobody_can_be_held_out_is_refused():
    with pytest.raises(ConfigError, match="viper is too small to hold identities out from, so it has no target_val"):
        plan_of(CONDITIONAL, target="viper")


def test_what_splits_and_held_out_identities_are_is_no_arms_business():
    for field, way in (("data.num_val_ids", r"put it under \[fixed\]"), ("data.split", r"\[pairs\] do that")):
        text = COMPARISON.replace('"kernel.bandwidths" = [10, 50]', f'"{field}" = 1')
        with pytest.raises(ConfigError, match=f"{field}' cannot be set by an arm; {way}"):
            plan_of(text)
