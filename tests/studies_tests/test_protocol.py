"""How a study chooses and judges: what may be written, what is refused, which seeds it takes, what makes it another."""

import dataclasses

import pytest

from mmfa import config
from mmfa.errors import ConfigError
from studies.plan import FRESH, digest, grown
from studies.protocol import CRITERIA, LABELS
from studies.resolve import resolve
from studies.spec import CONTROLS, parse

SEARCH = """
question = "?"
trials = 4
start_up = 2
[space."loss.lambda_aal"]
low = 0.03
high = 30.0
log = true
[space."model.pooling"]
choices = ["max", "average"]
"""
COMPARISON = """
question = "?"
trials = 4
[arms.a]
[arms.b.set]
"model.pooling" = "average"
"""
LABEL_FREE = '[objective]\nmetric = "label_free/score"\n'
ORACLE = '[objective]\nmetric = "target/mAP"\nselection = "oracle"\n'
WEIGHTS = r"`weights` are above 0, of cluster/silhouette, pseudo/xcam_mAP, source_val/mAP, attributes/information, but "


def plan_of(text, more="", *, inner="", overrides=None, profile="embedded", **kwargs):
    """Return the plan of a study with more tables, and with more keys in its first dimension or arm."""
    head, table, tail = text.partition("\n[")
    text = f"{head}\n{more}{table}{tail}"
    text = text.replace("log = true\n", f"log = true\n{inner}\n").replace("[arms.a]\n", f"[arms.a]\n{inner}\n")
    study = parse(text, name="mine", origin="mine.toml")
    return resolve(study, profile_name=profile, overrides=overrides or {}, **kwargs)


def test_the_defaults_are_the_specifications():
    plan = plan_of(SEARCH)
    assert plan.study.protocol.model_dump() == {
        "baseline_seeds": 3,
        "shortlist": 1,
        "confirm_seeds": 5,
        "delta_min": 1.0,
        "planned_effect": 7.0,
        "judge": [],
    }
    assert (plan.labels, plan.metric, plan.study.pruning) == ("target_val", "target_val/mAP", None)
    assert set(plan.study.objective.weights) == set(CRITERIA)
    assert plan.criteria == {"k": 40, "eps": 0.6, "min_samples": 2}
    assert plan_of(SEARCH, profile="paper").criteria["min_samples"] == 4
    assert plan_of(SEARCH, "[criteria]\nmin_samples = {paper = 3}\n").criteria["min_samples"] == 4


GOOD = """
scientific = ["loss.lambda_aal"]
[objective]
metric = "label_free/score"
selection = "none"
weights = {"cluster/silhouette" = 1, "source_val/mAP" = 0.5}
[criteria]
k = 2
eps = 0.99
min_samples = {embedded = 1}
[protocol]
baseline_seeds = 7
shortlist = 3
confirm_seeds = 2
delta_min = 0
planned_effect = 0.5
"""
PRUNING = "[pruning]\ngrace_period = 1\nreduction_factor = 2\n"


def test_everything_that_may_be_written():
    plan = plan_of(SEARCH, GOOD)
    study = plan.study
    assert (plan.labels, plan.metric, study.scientific) == ("none", "label_free/score", ["loss.lambda_aal"])
    assert study.objective.weights == {"cluster/silhouette": 1.0, "source_val/mAP": 0.5}
    assert plan.criteria == {"k": 2, "eps": 0.99, "min_samples": 1}
    assert (study.protocol.baseline_seeds, study.protocol.shortlist, plan.confirm_seeds) == (7, 3, 2)
    assert (study.protocol.delta_min, study.protocol.planned_effect) == (0.0, 0.5)
    pruning = plan_of(SEARCH, PRUNING).study.pruning
    assert (pruning.grace_period, pruning.reduction_factor) == (1, 2)
    for metric, labels in LABELS.items():
        written = plan_of(SEARCH, f'[objective]\nmetric = "{metric}"\nselection = "{labels}"\n')
        assert (written.metric, written.labels) == (metric, labels)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[protocol]\nbaseline_seeds = 0", r"\[protocol.baseline_seeds\] .*or equal to 1, but got 0"),
        ("[protocol]\nbaseline_seeds = 3.0", r"\[protocol.baseline_seeds\] .*valid integer, but got 3.0"),
        ("[protocol]\nconfirm_seeds = 1", r"\[protocol.confirm_seeds\] .*or equal to 2, but got 1"),
        ("[protocol]\nshortlist = 0", r"\[protocol.shortlist\] .*or equal to 1, but got 0"),
        ("[protocol]\nshortlist = 4", r"\[protocol.shortlist\] .*or equal to 3, but got 4"),
        ("[protocol]\ndelta_min = -1.0", r"\[protocol.delta_min\] .*or equal to 0, but got -1.0"),
        ("[protocol]\ndelta_min = nan", r"\[protocol.delta_min\] .*but got nan"),
        ("[protocol]\nplanned_effect = 0", r"\[protocol.planned_effect\] .*greater than 0, but got 0"),
        ("[protocol]\nconfirm_seed = 3", r"'protocol.confirm_seed' is not a key .*did you mean 'confirm_seeds'\?"),
        ('[protocol]\njudge = [["a"]]', r"\[protocol.judge.0\] .*at least 2 items.*but got \['a'\]"),
        ('[protocol]\njudge = [["a", "b", "c"]]', r"\[protocol.judge.0\] .*at most 2 items"),
        ('[protocol]\njudge = [["a", "b"]]', r"\[protocol\] `judge` 'a' is not an arm"),
        ("[criteria]\nk = 1", r"\[criteria.k\] .*or equal to 2, but got 1"),
        ("[criteria]\neps = 0.0", r"\[criteria.eps\] .*greater than 0, but got 0.0"),
        ("[criteria]\neps = 1.0", r"\[criteria.eps\] .*less than 1, but got 1.0"),
        ("[criteria]\nmin_samples = {embedded = 0}", r"\[criteria.min_samples.embedded\] .*to 1, but got 0"),
        ("[criteria]\nmin_sample = {}", r"'criteria.min_sample' is not a key .*did you mean 'min_samples'\?"),
        ("[pruning]", r"'pruning.grace_period' is missing"),
        ("[pruning]\ngrace_period = 0", r"\[pruning.grace_period\] .*or equal to 1, but got 0"),
        ("[pruning]\ngrace_period = 3\nreduction_factor = 1", r"\[pruning.reduction_factor\] .*to 2, but got 1"),
        ('[objective]\nmetric = "target_val/rank1"', r"\[objective.metric\] .*'label_free/score'.*'target_val/rank1'"),
        ('[objective]\nselection = "oracle"', r"`selection` of target_val/mAP is 'target_val', but got 'oracle'"),
        (f'{LABEL_FREE}selection = "target_val"', r"`selection` of label_free/score is 'none', but got 'target_val'"),
        ('[objective]\nmetric = "target/mAP"', r"chooses by the official test labels.*write selection = \"oracle\""),
        ("[objective.weights]", rf"\[objective\] {WEIGHTS}got {{}}"),
        ('[objective.weights]\n"cluster/silhouette" = 0.0', rf"{WEIGHTS}got {{'cluster/silhouette': 0.0}}"),
        ('[objective.weights]\n"cluster/silhouette" = -1.0', rf"{WEIGHTS}got"),
        ('[objective.weights]\n"cluster/silhouette" = inf', rf"{WEIGHTS}got .*inf"),
        ('[objective.weights]\n"cluster/silhouette" = nan', rf"{WEIGHTS}got .*nan"),
        ('[objective.weights]\n"target/mAP" = 1.0', rf"{WEIGHTS}got {{'target/mAP': 1.0}}"),
        ('[objective.weights]\n"target_val/mAP" = 1.0', rf"{WEIGHTS}got"),
        (
            f"{LABEL_FREE}[protocol]\nbaseline_seeds = 2",
            r"\[protocol\] label_free/score is measured in the baseline's seed noise .* baseline_seeds >= 3, but got 2",
        ),
        ('scientific = ["loss.lambda_al"]', r"`scientific` 'loss.lambda_al' is not in \[space\]; did you mean 'loss.l"),
        ("controls = false", r"a search always runs its controls; take `controls` out"),
        (f"{LABEL_FREE}{PRUNING}", r"\[pruning\] needs an objective .*target_val/mAP, but it is label_free/score"),
        (f"{ORACLE}{PRUNING}", r"\[pruning\] needs an objective .*target_val/mAP, but it is target/mAP"),
        ("[arms.x]\nseed_offset = 3", r"\[arms.x\] `seed_offset` is for comparisons; a search has one seed"),
    ],
)
def test_a_wrong_search_is_named(more, message):
    with pytest.raises(ConfigError, match=message) as raised:
        plan_of(SEARCH, f"{more}\n")
    assert str(raised.value).startswith("mine.toml: ")


@pytest.mark.parametrize(
    ("more", "inner", "message"),
    [
        ('[protocol]\njudge = [["a", "a"]]', "", r"\[protocol\] `judge` needs two arms, but got 'a' twice"),
        ('[protocol]\njudge = [["a", "c"]]', "", r"`judge` 'c' is not an arm; known are: a, b, source_only, target_bn"),
        ('[protocol]\njudge = [["a", "target_bm"]]', "", r"'target_bm' is not an arm; did you mean 'target_bn'\?"),
        (
            'controls = false\n[protocol]\njudge = [["a", "target_bn"]]',
            "",
            r"'target_bn' is not an arm; known are: a, b\.",
        ),
        ("[pruning]\ngrace_period = 3", "", r"\[pruning\] ends trials of a search early; a comparison trains all"),
        ('scientific = ["model.pooling"]', "", r"`scientific` 'model.pooling' is not in \[space\]"),
        ("", "seed_offset = -1", r"\[arms.a.seed_offset\] .*or equal to 0, but got -1"),
        ("", "seed_offset = 1.5", r"\[arms.a.seed_offset\] .*valid integer, but got 1.5"),
    ],
)
def test_a_wrong_comparison_is_named(more, inner, message):
    with pytest.raises(ConfigError, match=message) as raised:
        plan_of(COMPARISON, f"{more}\n", inner=inner)
    assert str(raised.value).startswith("mine.toml: ")


def test_verdicts_on_splits_that_share_images_are_refused():
    judged = '[fixed]\n"data.num_val_ids" = 0\n[protocol]\njudge = [["a", "b"]]\n'
    with pytest.raises(ConfigError, match=r"`judge` needs independent runs over seeds, but those on viper are its spl"):
        plan_of(COMPARISON, judged, profile="paper", target="viper")
    assert plan_of(COMPARISON, judged, profile="paper").study.protocol.judge == [["a", "b"]]


@pytest.mark.parametrize(
    ("low", "inner", "message"),
    [
        ("low = 0\n", "", r"\[space.loss.lambda_aal\] `zero` is for ranges that do not hold 0, but got low=0"),
        ("low = -1.0\n", "", r"`zero` is for ranges that do not hold 0, but got low=-1.0"),
        ("low = 0.03\n", "zero = 1", r"\[space.loss.lambda_aal.zero\] .*valid boolean, but got 1"),
        (
            "low = 0.03\n",
            '[space."optim.learning_rate"]\nlow = 0.01\nhigh = 0.1\nzero = true',
            r"\[space\] optim.learning_rate > 0 must hold, but got 0.0",
        ),
    ],
)
def test_zero_where_it_cannot_be_is_refused(low, inner, message):
    text = SEARCH.replace("low = 0.03\n", low).replace("log = true", "zero = true" if not inner else "log = true")
    with pytest.raises(ConfigError, match=message):
        plan_of(text, inner=inner)


ZERO, POINTS = "zero = true", "loss.lambda_aal.on"


def test_a_range_with_zero_is_two_choices_one_after_the_other():
    plan = plan_of(SEARCH, inner=ZERO)
    assert list(plan.study.dimensions) == ["loss.lambda_aal.on", "loss.lambda_aal", "model.pooling"]
    assert plan.study.dimensions[POINTS].labels() == [True, False]
    assert plan.active({POINTS: True}) == [POINTS, "loss.lambda_aal", "model.pooling"]
    assert plan.active({POINTS: False}) == [POINTS, "model.pooling"]
    assert plan.decode({POINTS: False, "model.pooling": "average"}).loss.lambda_aal == 0.0
    assert plan.decode({POINTS: True, "loss.lambda_aal": 7.5}).loss.lambda_aal == 7.5
    assert plan.baseline_params() == {POINTS: True, "loss.lambda_aal": 1.0, "model.pooling": "max"}
    assert plan.decode(plan.baseline_params()) == plan.baseline
    assert list(plan.study.space) == ["loss.lambda_aal", "model.pooling"], "the question has no `.on` in it"


def test_a_baseline_at_zero_is_a_point_of_the_space(monkeypatch):
    monkeypatch.setitem(config.PROFILES, "embedded", {**config.EMBEDDED, "loss.lambda_aal": 0.0})
    plan = plan_of(SEARCH, inner=ZERO)
    assert plan.baseline_params() == {POINTS: False, "model.pooling": "max"}
    assert plan.decode(plan.baseline_params()) == plan.baseline and plan.baseline.loss.lambda_aal == 0.0
    assert plan.decode({POINTS: True, "loss.lambda_aal": 2.0}).loss.lambda_aal == 2.0
    with pytest.raises(ConfigError, match=r"'loss.lambda_aal' must contain the baseline, 0.0; widen it"):
        plan_of(SEARCH)


def test_zero_keeps_the_condition_of_its_dimension():
    late = '[space."loss.lambda_mdal"]\nlow = 0.1\nhigh = 30.0\nlog = true\nzero = true\n'
    plan = plan_of(SEARCH + late + 'when = {"model.pooling" = "average"}\n')
    assert "loss.lambda_mdal.on" not in plan.baseline_params()
    on = {"model.pooling": "average", "loss.lambda_mdal.on": True}
    assert "loss.lambda_mdal" in plan.active(on)
    assert plan.active({**on, "loss.lambda_mdal.on": False})[-1] == "loss.lambda_mdal.on"
    assert "loss.lambda_mdal" not in plan.active({**on, "model.pooling": "max"})


@pytest.mark.parametrize("objective", ["", LABEL_FREE, ORACLE], ids=["target_val", "label_free", "oracle"])
@pytest.mark.parametrize("seed", [0, 3, 999])
def test_no_seed_is_used_for_two_things(objective, seed):
    for number in range(3 if objective == LABEL_FREE else 1, 51):
        more = f"{objective}[protocol]\nbaseline_seeds = {number}\nconfirm_seeds = {max(2, number)}\n"
        plan = plan_of(SEARCH, more, seed=seed)
        roles = {role: [run.config.run.seed for run in plan.controls if run.role == role] for role in CONTROLS}
        repeats = [run.config.run.seed for run in plan.controls if run.role == "baseline"]
        used = {plan.baseline.run.seed, *repeats, *(other for found in roles.values() for other in found)}
        assert len(plan.fresh_seeds) == len(set(plan.fresh_seeds)) == max(2, number)
        assert not used & set(plan.fresh_seeds)
        assert all(found == [seed + index for index in range(number)] for found in roles.values())
        assert len(repeats) == len(set(repeats)) == number - (objective != LABEL_FREE)
        assert seed not in repeats, "trial 0 of the search is the baseline with the study's own seed"


def test_controls_are_the_baseline_and_what_does_not_align():
    plan = plan_of(SEARCH, seed=2)
    assert [run.name for run in plan.controls] == [
        *("baseline-s3", "baseline-s4"),
        *(f"{role}-s{seed}" for role in ("source_only", "target_bn") for seed in (2, 3, 4)),
    ]
    for run in plan.controls:
        wanted = {**CONTROLS.get(run.role, {}), "run.seed": run.config.run.seed}
        assert run.config == plan.baseline.with_overrides(wanted)
    noise = [run.name for run in plan_of(SEARCH, LABEL_FREE, seed=2).controls if run.role == "baseline"]
    assert noise == ["baseline-s3", "baseline-s4", "baseline-s5"], "the score is in the noise of all R0 of them"


def test_quick_trains_one_seed_of_each_and_confirms_nothing():
    plan = plan_of(SEARCH, quick=True)
    assert [run.name for run in plan.controls] == ["source_only-s0", "target_bn-s0"]
    assert (plan.judges, plan.fresh_seeds, plan.num_trainings) == (False, [], 4 + 2)
    assert grown(plan, trials=6, confirm_seeds=9).confirm_seeds == 0
    free = plan_of(SEARCH, LABEL_FREE, quick=True)
    assert len(free.controls) == 9 and not free.judges, "a score in seed noise needs the seeds, quick or not"


@pytest.mark.parametrize(
    ("text", "kwargs", "got"),
    [
        (SEARCH, {"confirm_seeds": 1}, 1),
        (SEARCH, {"confirm_seeds": 0}, 0),
        (SEARCH, {"confirm_seeds": 5, "quick": True}, 5),
        (COMPARISON, {"confirm_seeds": 5}, 5),
    ],
)
def test_confirm_seeds_where_nothing_is_confirmed_are_refused(text, kwargs, got):
    with pytest.raises(ConfigError) as raised:
        plan_of(text, **kwargs)
    assert str(raised.value) == (
        "--confirm-seeds must be 2 or more, without --quick, for a study that searches (a comparison's seeds are its "
        f"--trials), but got {got}."
    )
    assert plan_of(SEARCH, confirm_seeds=2).fresh_seeds == [FRESH, FRESH + 1]


ARMS = '[arms.a]\n[arms.b]\nset = {"model.attribute_features" = "logit"}\n[arms.c]\nset = {"kernel.scale" = "median"}\n'


@pytest.mark.parametrize(
    ("text", "more", "kwargs", "number"),
    [
        (SEARCH, "", {}, 4 + (2 + 3 + 3) + (2 * 1 + 1) * 5),
        (SEARCH, LABEL_FREE, {}, 4 + (3 + 3 + 3) + (2 * 1 + 1) * 5),
        (SEARCH, "[protocol]\nshortlist = 3\nbaseline_seeds = 1\n", {"trials": 9}, 9 + (0 + 1 + 1) + (2 * 3 + 1) * 5),
        (SEARCH, "", {"confirm_seeds": 8}, 4 + 8 + 3 * 8),
        (SEARCH, ARMS, {}, 3 * 4 + 8 + (2 * 3 + 1) * 5),
        (SEARCH, "", {"quick": True}, 4 + 2),
        (SEARCH, "", {"labelled": False}, 4 + 9),
        (COMPARISON, "", {}, 4 * 4),
        (COMPARISON, "controls = false\n", {}, 2 * 4),
    ],
)
def test_the_number_of_trainings_by_hand(text, more, kwargs, number):
    plan = plan_of(text, more, **kwargs)
    assert plan.num_trainings == number == plan.num_trials + len(plan.controls) + plan.num_confirmations


def test_arms_of_one_setting_have_seeds_of_their_own():
    plan = plan_of(COMPARISON, "controls = false\n", inner="seed_offset = 100", seed=3)
    seeds = {arm.name: [point["run.seed"] for point in plan.points(arm)] for arm in plan.arms}
    assert seeds == {"a": [103, 104, 105, 106], "b": [3, 4, 5, 6]}
    assert [arm.name for arm in plan.arms] == ["a", "b"], "without controls there are none"


def identity(text=SEARCH, more="", **kwargs):
    return digest(plan_of(text, more, **kwargs).identity(fingerprints={}))


def test_what_makes_another_study():
    same = identity()
    assert same == identity(trials=9) == identity(quick=True) == identity(confirm_seeds=9)
    assert same == identity(SEARCH, "[protocol]\nconfirm_seeds = 9\n")
    assert same == identity(SEARCH, "[protocol]\nbaseline_seeds = 3\n[criteria]\nk = 40\n"), "the default, written down"
    tables = [
        *("[protocol]\nbaseline_seeds = 4", "[protocol]\nshortlist = 2", "[protocol]\ndelta_min = 2.0"),
        *("[protocol]\nplanned_effect = 5.0", "[criteria]\nk = 20", "[criteria]\neps = 0.5"),
        *("[criteria]\nmin_samples = {embedded = 3}", "[pruning]\ngrace_period = 3", "[pruning]\ngrace_period = 4"),
        *(LABEL_FREE, ORACLE, "[pruning]\ngrace_period = 3\nreduction_factor = 2"),
        *('[objective.weights]\n"cluster/silhouette" = 0.5', '[objective.weights]\n"cluster/silhouette" = 0.6'),
    ]
    others = [identity(SEARCH, f"{table}\n") for table in tables]
    others += [identity(inner=ZERO), identity(seed=1)]
    assert len({same, *others}) == 1 + len(tables) + 2


def test_what_makes_another_comparison():
    same = identity(COMPARISON)
    assert same == identity(COMPARISON, trials=9) == identity(COMPARISON, inner="seed_offset = 0")
    others = [identity(COMPARISON, inner=f"seed_offset = {offset}") for offset in (1, 2)]
    others += [identity(COMPARISON, '[protocol]\njudge = [["a", "b"]]\n'), identity(COMPARISON, "controls = false\n")]
    assert len({same, *others}) == 5


@pytest.mark.parametrize("given", [1, 3, 8])
@pytest.mark.parametrize("objective", ["", ORACLE])
def test_a_search_on_an_unlabelled_target_goes_by_no_label(objective, given):
    weights = '[objective.weights]\n"cluster/silhouette" = 0.7\n'
    plan = plan_of(SEARCH, f"{objective}{weights}[protocol]\nbaseline_seeds = {given}\n", labelled=False)
    assert (plan.labels, plan.metric, plan.labelled) == ("none", "label_free/score", False)
    assert plan.study.objective.weights == {"cluster/silhouette": 0.7}
    assert plan.study.protocol.baseline_seeds == len(plan.control_seeds) == max(3, given)
    assert (plan.judges, plan.fresh_seeds, plan.num_confirmations) == (False, [], 0)


def test_what_needs_labels_is_refused_on_an_unlabelled_target():
    with pytest.raises(ConfigError, match=r"--confirm-seeds is for targets with labels"):
        plan_of(SEARCH, labelled=False, confirm_seeds=5)
    with pytest.raises(ConfigError, match=r"mine.toml: \[pruning\] .*take it out for an unlabelled target"):
        plan_of(SEARCH, PRUNING, labelled=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", r"data.num_val_ids=0 leaves no target_val, the objective of this study"),
        (LABEL_FREE, r"data.num_val_ids=0 leaves no source_val, by which label_free/score is guarded"),
    ],
)
def test_an_objective_needs_held_out_identities(more, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(SEARCH, more, overrides={"data.num_val_ids": 0})
    assert plan_of(SEARCH, ORACLE, overrides={"data.num_val_ids": 0}).labels == "oracle"


def test_fresh_seeds_that_run_out_are_found_before_anything_starts():
    last = 2**31 - 1
    assert plan_of(SEARCH, seed=last - FRESH - 4).fresh_seeds[-1] == last
    for seed in (last - FRESH - 3, last):
        with pytest.raises(ConfigError, match="--seed: run.seed < 2147483648 must hold"):
            plan_of(SEARCH, seed=seed)


def test_a_comparison_on_an_unlabelled_target_is_refused():
    with pytest.raises(
        ConfigError, match=r"mine.toml: an unlabelled target cannot be compared on: .*python -m mmfa tr"
    ):
        plan_of(COMPARISON, labelled=False)


def test_more_seeds_are_confirmed_and_no_trial_is_lost():
    plan = plan_of(SEARCH)
    more = grown(plan, trials=9, confirm_seeds=8)
    assert (more.trials, more.fresh_seeds[:5], len(more.fresh_seeds)) == (9, plan.fresh_seeds, 8)
    assert grown(plan, trials=9).confirm_seeds == plan.confirm_seeds
    assert dataclasses.replace(more, trials=4, confirm_seeds=5) == plan
