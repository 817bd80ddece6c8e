"""What a search says about its own space: edges, each factor by itself, pruning; and kernels that were dead."""

import numpy as np
import pytest
from scipy import stats

from mmfa.config import profile
from studies.resolve import resolve
from studies.spec import parse
from tune import advice, doctor, summary
from tune.outcomes import Outcome, Row

TEXT = """
question = "?"
trials = 4
[fixed]
"optim.num_epochs" = {epochs}
[space."loss.lambda_mdal"]
low = 0.01
high = 100.0
log = true
zero = true
[space."model.dropout"]
low = 0.0
high = 0.8
[space."data.target_batch"]
low = 16
high = 36
[space."model.pooling"]
choices = ["max", "average"]
"""
NAMES = ["loss.lambda_mdal", "model.dropout", "data.target_batch", "model.pooling"]


def plan_of(epochs=4):
    study = parse(TEXT.format(epochs=epochs), name="mine", origin="mine.toml")
    return resolve(study, profile_name="embedded", overrides={"optim.warmup_epochs": 1})


PLAN = plan_of()


def row(index, value, *, curve=(), stage="search", **params):
    """Return a trial; a parameter of None is not searched in it."""
    whole = {"mdal": 1.0, "dropout": 0.5, "batch": 32, "pooling": "max"} | params
    named = {"loss.lambda_mdal.on": whole["mdal"] is not None}
    named |= {name: given for name, given in zip(NAMES, whole.values(), strict=True) if given is not None}
    state = "diverged" if value is None else "complete"
    return Row(f"{stage}/{index:04d}", stage, "candidate", state, named, value, {}, "", dict(enumerate(curve, start=1)))


def outcome_of(*rows):
    return Outcome("target_val/mAP", "target_val", 4, list(rows))


LOG = "loss.lambda_mdal"
MDAL, DROPOUT, BATCH = "The best λ3, ", "The best model.dropout, ", "The best data.target_batch, "


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"mdal": 0.0158}, f"{MDAL}0.016, lies at the lower edge of its range [0.01, 100]: widen it before"),
        ({"mdal": 0.01}, f"{MDAL}0.01, lies at the lower edge"),
        ({"mdal": 63.5}, f"{MDAL}64, lies at the upper edge of its range [0.01, 100]"),
        ({"mdal": 100.0}, f"{MDAL}100, lies at the upper edge"),
        ({"dropout": 0.039}, f"{DROPOUT}0.039, lies at the lower edge of its range [0, 0.8]"),
        ({"dropout": 0.761}, f"{DROPOUT}0.76, lies at the upper edge"),
        ({"batch": 16}, f"{BATCH}16, lies at the lower edge of its range [16, 36]"),
        ({"batch": 36}, f"{BATCH}36, lies at the upper edge"),
    ],
)
def test_the_edges_of_a_range_are_told_on_its_own_scale(params, said):
    (line,) = advice.boundaries(PLAN, row(3, 0.4, **params))
    assert line.startswith(said) and line.endswith("widen it before you believe that nothing beyond is better.")


@pytest.mark.parametrize(
    "params",
    [
        *({"mdal": 0.0160}, {"mdal": 62.0}, {"mdal": 50.0}, {"dropout": 0.041}, {"dropout": 0.759}),
        *({"batch": 18}, {"batch": 34}, {"pooling": "average"}, {"mdal": None}),
    ],
)
def test_within_a_range_and_in_choices_there_is_no_edge(params):
    """On a linear scale 50 of 0.01 to 100 is the middle and 0.016 the edge; on the one that is searched neither is."""
    assert advice.boundaries(PLAN, row(3, 0.4, **params)) == []


def test_each_dimension_is_told_and_the_baselines_place_is_no_finding():
    edges = {"mdal": 99.0, "dropout": 0.8, "batch": 16, "pooling": "average"}
    assert [line.split(",")[0] for line in advice.boundaries(PLAN, row(1, 0.4, **edges))] == [
        *("The best λ3", "The best model.dropout", "The best data.target_batch")
    ]
    assert advice.boundaries(PLAN, row(0, 0.4, **edges)) == []
    assert advice.boundaries(PLAN, row(0, 0.4, stage="plain", **edges)) == []
    assert advice.boundaries(PLAN, None) == []


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.95, 1.0])
def test_a_place_is_a_share_of_the_range(share):
    log, linear = PLAN.study.space[LOG], PLAN.study.space["model.dropout"]
    assert advice.place(log, 0.01 * 10_000**share) == pytest.approx(share)
    assert advice.place(linear, 0.8 * share) == pytest.approx(share)


def test_each_factor_by_itself_best_over_the_others():
    rows = [
        row(0, 0.30),
        row(1, 0.35, mdal=0.02, batch=17),
        row(2, 0.33, mdal=0.05, pooling="average"),
        row(3, 0.10, mdal=60.0, dropout=0.0),
        row(4, None, mdal=90.0),
        row(5, 0.34, mdal=None, dropout=0.8),
        Row("controls/target_bn-s0", "controls", "target_bn", "complete", {}, 0.9, {}, "", {}),
    ]
    found = advice.isolation(PLAN, outcome_of(*rows))
    assert list(found) == NAMES
    assert found[LOG] == [
        {"part": "0: off", "n": 1, "best": 0.34, "trial": "search/0005"},
        {"part": "1: 0.01 to 0.1", "n": 2, "best": 0.35, "trial": "search/0001"},
        {"part": "3: 1 to 10", "n": 1, "best": 0.30, "trial": "search/0000"},
        {"part": "4: 10 to 100", "n": 1, "best": 0.10, "trial": "search/0003"},
    ]
    assert found["model.dropout"] == [
        {"part": "1: 0 to 0.2", "n": 1, "best": 0.10, "trial": "search/0003"},
        {"part": "3: 0.4 to 0.6", "n": 3, "best": 0.35, "trial": "search/0001"},
        {"part": "4: 0.6 to 0.8", "n": 1, "best": 0.34, "trial": "search/0005"},
    ]
    assert found["data.target_batch"] == [
        {"part": "1: 16 to 21", "n": 1, "best": 0.35, "trial": "search/0001"},
        {"part": "4: 31 to 36", "n": 4, "best": 0.34, "trial": "search/0005"},
    ]
    assert found["model.pooling"] == [
        {"part": "average", "n": 1, "best": 0.33, "trial": "search/0002"},
        {"part": "max", "n": 4, "best": 0.35, "trial": "search/0001"},
    ]


def test_a_vetoed_trial_is_the_best_of_nothing():
    found = outcome_of(row(0, 0.3), row(1, 0.9), row(2, 0.2))
    found.vetoed["search/0001"] = ["the embeddings have collapsed"]
    assert advice.isolation(PLAN, found)["model.pooling"] == [
        {"part": "max", "n": 2, "best": 0.3, "trial": "search/0000"}
    ]


def test_the_best_of_scores_below_zero():
    found = advice.isolation(PLAN, outcome_of(row(0, -3.0), row(1, -1.0), row(2, -2.0)))
    assert found["model.pooling"] == [{"part": "max", "n": 3, "best": -1.0, "trial": "search/0001"}]


def test_nothing_searched_has_no_parts():
    assert advice.isolation(PLAN, outcome_of(row(0, None))) == {name: [] for name in NAMES}


def curves(num, epochs=4, *, seed=0, noise=0.02):
    """Return trials whose order forms as they go on."""
    rng = np.random.default_rng(seed)
    last = np.linspace(0.2, 0.4, num)
    shares = np.linspace(0.2, 1, epochs)
    return [
        row(i, value, curve=(value * shares + noise * (1 - shares) * rng.normal(size=epochs)).tolist())
        for i, value in enumerate(last.tolist())
    ]


def test_only_full_trials_of_the_search_have_a_curve():
    rows = [
        row(0, 0.3, curve=(0.1, 0.2, 0.25, 0.3)),
        row(1, 0.3, curve=(0.1, 0.2, 0.3)),
        row(2, None, curve=(0.1, 0.2, 0.3, 0.4)),
        row(3, 0.3),
        row(4, 0.9, stage="controls", curve=(0.9, 0.9, 0.9, 0.9)),
        row(5, 0.9, stage="confirm", curve=(0.9, 0.9, 0.9, 0.9)),
        Row("search/0006", "search", "", "complete", {}, 0.2, {}, "", {3: 0.15, 1: 0.05, 4: 0.2, 2: 0.1}),
    ]
    assert advice.curves(outcome_of(*rows), 4) == [[0.1, 0.2, 0.25, 0.3], [0.05, 0.1, 0.15, 0.2]]


@pytest.mark.parametrize("num", [3, 9, 10, 12])
def test_the_fidelity_report_is_kendalls_tau_with_the_last_epoch(num):
    rows = curves(num)
    report = advice.fidelity_report(PLAN, outcome_of(*rows))
    assert report["n"] == num and [point["epoch"] for point in report["epochs"]] == [1, 2, 3, 4]
    last = [one.curve[4] for one in rows]
    for point in report["epochs"]:
        expected = stats.kendalltau([one.curve[point["epoch"]] for one in rows], last).statistic
        assert point["tau"] == pytest.approx(expected) and point["low"] <= point["tau"] <= point["high"]


@pytest.mark.parametrize(
    ("num", "noise", "grace", "said"),
    [
        (10, 0.0, 1, "[pruning] grace_period = 1 is safe by this."),
        (12, 2.0, None, "No epoch before the last is safe to prune at."),
    ],
)
def test_what_is_said_of_pruning(num, noise, grace, said):
    report = advice.fidelity_report(PLAN, outcome_of(*curves(num, noise=noise)))
    assert report["grace_period"] == grace
    line = advice.fidelity_sentence(report)
    assert line.endswith(said)
    assert f"n = {num} trials, 95 % interval" in line
    for point in report["epochs"][1:3]:
        shown = f"epoch {point['epoch']}: {point['tau']:.2f} ({point['low']:.2f} to {point['high']:.2f})"
        assert shown in line


def test_of_few_trials_no_interval_is_printed():
    line = advice.fidelity_sentence(advice.fidelity_report(PLAN, outcome_of(*curves(9, noise=0.0))))
    assert line == "Fidelity: fewer than 10 full trials (n = 9) recommend nothing about pruning."


def test_of_many_epochs_the_sentence_has_three():
    plan = plan_of(12)
    report = advice.fidelity_report(plan, outcome_of(*curves(10, 12)))
    line = advice.fidelity_sentence(report)
    assert [f"epoch {epoch}:" in line for epoch in range(1, 13)] == [epoch in (3, 6, 9) for epoch in range(1, 13)]


def test_without_curves_nothing_is_said_of_pruning():
    assert advice.fidelity_report(PLAN, outcome_of(row(0, 0.3))) == {}
    assert advice.fidelity_sentence({}) == ""


def test_epochs_that_tell_no_trials_apart_are_left_out():
    rows = [row(i, 0.2 + 0.01 * i, curve=(0.0, 0.0, 0.1 + 0.01 * i, 0.2 + 0.01 * i)) for i in range(10)]
    report = advice.fidelity_report(PLAN, outcome_of(*rows))
    assert [point["tau"] for point in report["epochs"]] == [None, None, 1.0, 1.0] and report["grace_period"] == 3
    line = advice.fidelity_sentence(report)
    assert "epoch 3: 1.00 (1.00 to 1.00)" in line and "epoch 1" not in line and "None" not in line


ALIVE, DEAD = {"mmd/plateau": 0.0}, {"mmd/plateau": 1.0}


@pytest.mark.parametrize(
    ("overrides", "aligns"),
    [
        ({}, True),
        ({"loss.lambda_mdal": 0.0}, False),
        ({"loss.lambda_aal": 0.0}, True),
        ({"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0}, False),
        ({"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0, "data.use_target": False}, False),
    ],
)
def test_an_epoch_is_dead_only_where_the_trial_is_to_align(overrides, aligns):
    config = profile("embedded").with_overrides(overrides).flatten()
    history = [{"epoch": e, "metrics": metrics} for e, metrics in enumerate((DEAD, ALIVE, DEAD, {}), start=1)]
    assert doctor.aligns(config) is aligns
    assert doctor.dead_epochs(config, history) == ([1, 3] if aligns else [])
    assert doctor.dead_epochs(config, []) == []


def test_no_target_images_nothing_to_align():
    assert not doctor.aligns({"loss.lambda_mdal": 1.0, "data.use_target": False})


def test_a_dead_kernel_is_said_with_its_liveness_and_the_way_out():
    said = doctor.warning("search/0003", 1.24e-9)
    assert said.startswith("search/0003: the kernel of L_MDAL is dead (mean off-diagonal kernel 1.2e-09)")
    assert "λ3 does nothing" in said and "kernel.scale = dim, median or l2norm" in said


def test_the_report_names_dead_trials_of_the_search_that_were_to_align():
    def told(name, stage, metrics, **params):
        one = row(1, 0.3, stage=stage, **params)
        return Row(name, stage, one.role, "complete", one.params, 0.3, metrics, "", {})

    rows = [
        told("search/0001", "search", DEAD),
        told("search/0002", "search", ALIVE),
        Row("search/0003", "search", "", "complete", {LOG + ".on": False}, 0.3, DEAD, "", {}),
        told("confirm/search-0001-s1000", "confirm", DEAD),
    ]
    report = summary.Report(PLAN, outcome_of(*rows), None, {})
    (line,) = [line for line in summary.sentences(report) if line.startswith(doctor.DEAD)]
    assert line == f"{doctor.DEAD}: search/0001."
