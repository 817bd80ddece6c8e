"""What a comparison prints: means, spreads, published numbers, and the order that holds."""

import io

import pytest
from rich.console import Console

from studies.resolve import resolve
from studies.spec import parse
from tune import comparison, summary
from tune.outcomes import Outcome, Row, spread

TEXT = """
question = "Which?"
trials = 3
[fixed]
"data.num_val_ids" = 0
[arms.low]
title = "Low"
[arms.high]
title = "High"
[arms.close]
title = "Close"
[reported."market1501 to dukemtmc-reid"]
low = {mAP = 10.0, rank1 = 20.0}
high = {mAP = 12.0}
close = {mAP = 11.0}
SPGAN = {mAP = 22.3, rank1 = 41.1}
"""
VALUES = {"low": (0.10, 0.11, 0.12), "high": (0.30, 0.31, 0.32), "close": (0.10, 0.12, 0.13), "target_bn": (0.2,)}


def row(arm, index, metrics):
    value = metrics["target/mAP"]
    return Row(f"{arm}/{index:04d}", arm, arm, "complete", {"run.seed": index}, value, metrics, "", {})


@pytest.fixture
def make():
    """Return a function that gives the plan and the outcome of a pair."""

    def call(profile="embedded"):
        plan = resolve(parse(TEXT, name="mine", origin="mine.toml"), profile_name=profile, overrides={})
        rows = [
            row(arm, i, {"target/mAP": value, "mmd/kernel_liveness": 1e-9})
            for arm, values in VALUES.items()
            for i, value in enumerate(values)
        ]
        return plan, Outcome(plan.metric, plan.labels, plan.num_trials, rows, selects=not plan.study.is_comparison)

    return call


def printed(plan, outcome):
    console = Console(file=io.StringIO(), width=140)
    console.print(summary.table(plan, outcome))
    return console.file.getvalue()


def test_spread_by_hand(make):
    _, outcome = make()
    found = spread(outcome.of_arm("low"), "target/mAP")
    assert (found.n, found.mean, found.sd) == (3, pytest.approx(0.11), pytest.approx(0.01))
    assert found.variance_of_mean == pytest.approx(0.01**2 / 3)
    one = spread(outcome.of_arm("target_bn"), "target/mAP")
    assert (one.n, one.sd, one.variance_of_mean) == (1, None, 0)
    assert spread(outcome.of_arm("low"), "target/rank1") is None


def test_the_table_on_the_published_pair(make):
    text = printed(*make("paper"))
    rows = {line.strip().split("  ")[0]: line for line in text.splitlines()}
    assert "11.0 ± 1.0" in rows["Low"] and "1e-09" in rows["Low"] and "20.0" in rows["Low"]
    assert "20.0" in rows["target_bn (control)"] and "±" not in rows["target_bn (control)"]
    assert "22.3" in rows["SPGAN (published)"] and "41.1" in rows["SPGAN (published)"]
    assert "paper mAP %" in text and "paper rank-1 %" in text


def test_elsewhere_the_published_numbers_name_their_pair(make):
    text = " ".join(printed(*make()).split())
    assert "SPGAN" not in text and "11.0 ± 1.0" in text and "12.0" in text
    assert "market1501" in text and "dukemtmc-reid" in text


def test_the_order_that_holds_and_the_one_that_does_not(make):
    plan, outcome = make()
    report = summary.Report(plan, outcome, None, {})
    (order,) = [line for line in summary.sentences(report) if "order" in line]
    assert "Low < Close not settled (+0.7 ± 1.1 points)" in order  # sds 1.0 and 1.53: sqrt((1 + 2.33) / 3) = 1.05
    assert "Close < High holds (+19.3 ± 1.1 points)" in order
    reversed_rows = [other for other in outcome.rows if other.arm != "high"]
    reversed_rows += [row("high", index, {"target/mAP": value}) for index, value in enumerate((0.01, 0.02))]
    line = comparison.sentences(plan, Outcome(plan.metric, plan.labels, 12, reversed_rows, selects=False))[-1]
    assert "Close < High reversed (-10.2 ±" in line


def test_nothing_is_selected(make):
    plan, outcome = make()
    assert outcome.best is None and outcome.to_json()["labels"] == "none"
    assert any(
        "Nothing was selected (selection.labels = none)" in line
        for line in summary.sentences(summary.Report(plan, outcome, None, {}))
    )


def test_splits_that_share_images_have_a_larger_error(make):
    _, outcome = make()
    found = spread(outcome.of_arm("low"), "target/mAP", overlapping=True)
    assert found.variance_of_mean == pytest.approx(0.01**2 * (1 / 3 + 1))


def test_the_page_has_every_rank_of_the_paper(make):
    plan, outcome = make("paper")
    lines = comparison.curves(plan, outcome)
    assert "  market1501 to dukemtmc-reid: Low: – / – / – / 11.0" in lines
    assert "  market1501 to dukemtmc-reid: Low, published: 20.0 / – / – / 10.0" in lines
    assert "  market1501 to dukemtmc-reid: SPGAN, published: 41.1 / – / – / 22.3" in lines


ARMS = """
question = "Which pooling?"
trials = 3
[arms.max]
title = "max"
[arms.average]
title = "average"
set = {"model.pooling" = "average"}
[space."loss.lambda_mdal"]
low = 0.1
high = 30.0
log = true
"""


def test_another_trial_of_an_arm_is_never_shown_as_the_paper():
    plan = resolve(parse(ARMS, name="mine", origin="mine.toml"), profile_name="embedded", overrides={})

    def trial(arm, index, value, lambda_mdal):
        state = "diverged" if value is None else "complete"
        metrics = {} if value is None else {"target_val/mAP": value}
        return Row(f"{arm}/{index:04d}", arm, arm, state, {"loss.lambda_mdal": lambda_mdal}, value, metrics, "", {})

    rows = [trial("max", 0, None, 1.0), trial("max", 1, 0.3, 7.7), trial("max", 2, 0.2, 0.2)]
    rows += [trial("average", 0, 0.1, 1.0), trial("average", 1, 0.15, 3.0)]
    text = printed(plan, Outcome(plan.metric, plan.labels, plan.num_trials, rows, selects=not plan.study.is_comparison))
    lines = {line.strip().split("  ")[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["max, best of 2: max/0001"][5:8] == ["1", "7.7", "30.0"]
    assert "diverged" in lines["max, as the paper has the rest"]
    assert lines["average, as the paper has the rest"][7:10] == ["1", "1", "10.0"]
