"""A verdict as people read it: every word of it there, every number with its n, and no page that cannot be printed."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from studies.resolve import resolve
from studies.spec import parse
from tune import summary, verdict, words
from tune.outcomes import Outcome, Row
from tune.power import expected_max_noise

TEXT = """
question = "Do other weights beat the paper's?"
trials = 10
{more}
[space."loss.lambda_mdal"]
low = 0.03
high = 30.0
log = true
[space."model.pooling"]
choices = ["max", "average"]
"""
COMPARISON = """
question = "Is one setting another?"
trials = 5
[protocol]
judge = [["one", "two"]]
[arms.one]
title = "The one"
[arms.two]
title = "The other"
seed_offset = 1000
"""
LABEL_FREE = '[objective]\nmetric = "label_free/score"\n'
ORACLE = '[objective]\nmetric = "target/mAP"\nselection = "oracle"\n'
GOOD = (0.47, 0.50, 0.46, 0.49, 0.48)
BASE = (0.40, 0.43, 0.38, 0.41, 0.42)
CLOSE = (0.41, 0.43, 0.38, 0.42, 0.42)
BAD = (0.30, 0.33, 0.28, 0.31, 0.32)
SETTING = {"loss.lambda_mdal": 7.25, "model.pooling": "max"}


def plan_of(text=TEXT, more="", *, overrides=None, **kwargs):
    study = parse(text.format(more=more), name="mine", origin="mine.toml")
    return resolve(study, profile_name="embedded", overrides=overrides or {}, **kwargs)


def outcome_of(plan, values=(0.3, 0.35, 0.2), vetoed=()):
    rows = []
    for index, value in enumerate(values):
        metrics = {} if value is None else {plan.metric: value, "target/mAP": 0.4}
        state = "diverged" if value is None else "complete"
        params = {"loss.lambda_mdal": 1.0 + index, "model.pooling": "max"}
        rows.append(Row(f"search/{index:04d}", "search", "candidate", state, params, value, metrics, "nan", {}))
    return Outcome(plan.metric, plan.labels, 10, rows, vetoed={name: ["why"] for name in vetoed})


def runs(name, mAP, *, identities=True):
    """Return runs with as many seeds; identities differ from one another, and give the runs' mAP."""
    queries_I = np.array([2, 3, 4, 1, 5, 3, 2, 4] if identities else [], dtype=np.int64)
    shift_I = np.resize([0.1, -0.1], len(queries_I)) / np.maximum(queries_I, 1)
    ap_RI = np.array([(value + shift_I) * queries_I for value in mAP]).reshape(len(mAP), -1)
    return verdict.Runs(
        name=name, seeds=tuple(range(len(mAP))), mAP=tuple(mAP), identity_ap_RI=ap_RI, identity_queries_I=queries_I
    )


def record_of(*challenges, **more):
    """Return a record of challenges of the baseline: candidates, their runs, and maybe those of their controls."""
    made = [
        verdict.Challenge(
            candidate=runs(name, mAP), baseline=runs("baseline", BASE), matched=control[0] if control else None
        )
        for name, mAP, *control in challenges
    ]
    return frame(made, **more)


def frame(made, looks=1, against="baseline", searched=True, noise=0.02, metric="target_val/mAP", chance=0.88):
    """Return a record as tune/judging.py makes it."""
    factor = {1: 1, 2: 6, 3: 12}[looks]
    search = {"trial": "search/0006", "metric": metric, "score": 0.55, "confirmed": 0.51, "confirmed_n": 5}
    search |= {"shrinkage": 0.04, "oracle_gap": 0.013}
    more = {"against": against, "challenges": len(made), "setting": SETTING if searched else None}
    more["search"] = search if searched else None
    sd = {"metric": metric, "n": 3, "sd": noise, "trials": 10}
    sd["expected_max"] = None if noise is None else expected_max_noise(noise, 10)
    power = {"against": against, "effect": 0.07, "sd": 0.031, "settings": 3, "runs": 15, "seeds": 5}
    power |= {"challenges": len(made), "power": chance}
    return {
        "looks": looks,
        "looks_factor": factor,
        "judgements": [one.to_json() | more for one in verdict.judge(made, delta_min=0.01, looks=factor)],
        "power": [power],
        "seed_noise": sd,
        "readings": {"total": 34, "why": {"recorded at the end of a trial; chose nothing": 19, "judged": 15}},
    }


def said(plan, record, outcome=None):
    """Return the paragraphs by what they begin with."""
    found = {}
    for line in words.sentences(plan, outcome or outcome_of(plan), record):
        start, _, rest = line.partition(": ")
        found.setdefault(start, []).append(rest)
    assert list(found)[:2] == ["Asked", "Found"] and list(found)[-2:] == ["Labels", "Next"]
    assert set(found) <= {"Asked", "Found", "How sure", "Labels", "Next"}
    assert "None" not in str(found) and "nan" not in str(found)
    return found


def rows_of(plan, record):
    """Return the cells of the rows of the printed table."""
    console = Console(file=io.StringIO(), width=140)
    console.print(summary.verdict_table(plan, record))
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    return [re.split(r"  +", line) for line in lines if line.startswith("search-")]


NAME = "search-0006"
WORDS = {
    "BEATS": (GOOD, "beats", "+7.2"),
    "WORSE": (BAD, "is worse than", "-10.0"),
    "UNDETERMINED": (CLOSE, "is not told apart from", "+0.4"),
}


@pytest.mark.parametrize("word", WORDS)
def test_what_was_found_has_means_spreads_n_interval_and_p(word):
    mAP, verb, delta = WORDS[word]
    record = record_of((NAME, mAP))
    one = record["judgements"][0]
    assert one["word"] == word
    low, high = (f"{100 * end:+.1f}" for end in one["contrast"]["interval"])
    (found,) = said(plan_of(), record)["Found"]
    mean, sd = f"{100 * np.mean(mAP):.1f}", f"{100 * np.std(mAP, ddof=1):.1f}"
    assert found.startswith(
        f"{word}: search-0006 (λ3 = 7.2) {verb} the paper's defaults: {mean} ± {sd} % against 40.8 ± 1.9 % target mAP "
        f"over n = 5 and 5 fresh seeds, {delta} points (95 %: {low} to {high}), adjusted p = {one['p_adjusted']:.2g}. "
    )
    assert " In the search it scored 55.0 % target_val/mAP (n = 1), confirmed 51.0 % (n = 5): it shrank by 4.0" in found
    assert "lies 1.3 points of target mAP above it (oracle gap, n = 1 each)." in found


def test_a_score_may_grow_too():
    record = record_of((NAME, GOOD))
    record["judgements"][0]["search"]["shrinkage"] = -0.02
    assert "confirmed 51.0 % (n = 5): it grew by 2.0 points." in said(plan_of(), record)["Found"][0]


@pytest.mark.parametrize(
    ("typed", "given", "wanted"),
    [
        ("mmfa-study --study x", {}, "mmfa-study --study x"),
        ("mmfa-study --study x", {"trials": 20}, "mmfa-study --study x --trials 20"),
        ("mmfa-study --trials 12 --out 'a b'", {"trials": 20}, "mmfa-study --trials 20 --out 'a b'"),
        ("mmfa-study --trials=12", {"trials": 20}, "mmfa-study --trials 20"),
        ("mmfa-study --quick", {"confirm_seeds": 8}, "mmfa-study --confirm-seeds 8"),
        ("mmfa-study --quick", {"quick": True}, "mmfa-study --quick"),
        ("tune.run('x', trials=12, quick=True)", {"trials": 20}, "tune.run('x', trials=20)"),
        ("tune.run('x')", {"confirm_seeds": 8}, "tune.run('x', confirm_seeds=8)"),
    ],
)
def test_the_command_has_the_numbers_that_were_asked_for_at_any_time(typed, given, wanted):
    assert words.reproducing(plan_of(**given), typed) == wanted


def test_what_was_asked_is_the_studys_question():
    assert said(plan_of(), record_of((NAME, GOOD)))["Asked"] == ["Do other weights beat the paper's?"]


@pytest.mark.parametrize("word", WORDS)
def test_how_sure_it_is(word):
    record = record_of((NAME, WORDS[word][0]))
    sure = said(plan_of(), record)["How sure"]
    assert sure[0] == record["judgements"][0]["reason"]
    assert sure[1] == (
        "a true difference of 7 points would have been found with a chance of 88 % at the seed noise seen (sd 3.1 "
        "points within 3 settings, n = 15 runs; 5 seeds each, 1 challenge)."
    )
    highest = f"{100 * expected_max_noise(0.02, 10):.1f}"
    assert sure[2] == (
        "the baseline's target_val/mAP varies with the seed by sd 2.0 points (n = 3); by that alone the highest of 10 "
        f"equal trials would look {highest} points better than their mean, which is why fresh seeds judge."
    )
    assert len(sure) == 3


def test_what_is_not_known_is_not_told():
    record = record_of((NAME, GOOD), noise=None, chance=None)
    assert len(said(plan_of(), record)["How sure"]) == 1
    score = record_of((NAME, GOOD), metric="label_free/score")
    assert not any("varies with the seed" in line for line in said(plan_of(more=LABEL_FREE), score)["How sure"])


@pytest.mark.parametrize(("looks", "factor"), [(2, 6), (3, 12)])
def test_looking_again_is_told(looks, factor):
    sure = said(plan_of(), record_of((NAME, GOOD), looks=looks))["How sure"]
    assert sure[-1] == f"the seeds were judged at {looks} sizes as they grew; for that p was multiplied by {factor}."
    assert not any("as they grew" in line for line in said(plan_of(), record_of((NAME, GOOD)))["How sure"])


def test_few_seeds_are_told():
    few = frame([verdict.Challenge(candidate=runs(NAME, GOOD[:4]), baseline=runs("baseline", BASE))])
    assert "over n = 4 and 5 fresh seeds" in said(plan_of(), few)["Found"][0]
    assert said(plan_of(), few)["How sure"][-1].startswith("fewer than 5 seeds of a setting are few")
    assert "few" not in said(plan_of(), record_of((NAME, GOOD)))["How sure"][-1]


def test_the_share_of_alignment_is_told_with_its_n():
    record = record_of((NAME, GOOD, runs("m", (0.41, 0.43, 0.39, 0.42))))
    one = record["judgements"][0]
    aligned, rest = (f"{100 * one[key]['delta']:+.1f}" for key in ("alignment", "rest"))
    ends = [" to ".join(f"{100 * end:+.1f}" for end in one[key]["interval"]) for key in ("alignment", "rest")]
    told = said(plan_of(), record)
    assert (
        f" Of that, {aligned} (95 %: {ends[0]}) is alignment's (against the same setting with λ2 = λ3 = 0 and target "
        f"images in BatchNorm, n = 4), and {rest} (95 %: {ends[1]}) the rest of the setting's."
    ) in told["Found"][0]
    assert "Credit" not in told["Next"][0], "most of it is alignment's"


def test_alignment_gets_credit_for_its_own_share_only():
    (line,) = said(plan_of(), record_of((NAME, GOOD, runs("m", (0.46, 0.49, 0.45, 0.49, 0.47)))))["Next"]
    assert line.startswith("use the setting that BEATS, and report these means with n, sd and the interval. Do not ")
    assert "credit alignment: its own share of the gain is not told from 0." in line
    clear = tuple(value - 0.1 for value in GOOD)
    (line,) = said(plan_of(), record_of((NAME, GOOD, runs("m", clear))))["Next"]
    assert "credit" not in line


def test_what_to_do_next():
    plan = plan_of()
    assert said(plan, record_of((NAME, GOOD)))["Next"][0].startswith("use the setting that BEATS, and report")
    assert said(plan, record_of((NAME, BAD)))["Next"] == ["keep the defaults, or search on: --trials 20."]
    open_ = record_of((NAME, CLOSE))
    needed, least = (open_["judgements"][0][key] for key in ("seeds_needed", "seeds_for_delta_min"))
    (line,) = said(plan, open_)["Next"]
    assert f"takes about {needed} seeds of each setting (--confirm-seeds {needed}; p is then multiplied by 6)" in line
    assert f"{least} to tell the smallest difference that matters" in line and "as equal." in line
    again = record_of((NAME, CLOSE), looks=2)
    assert "p is then multiplied by 12" in said(plan, again)["Next"][0]
    mixed = record_of((NAME, CLOSE), ("search-0007", BAD))
    assert said(plan, mixed)["Next"] == ["keep the defaults, or search on: --trials 20."]
    some = said(plan, record_of((NAME, CLOSE), ("search-0007", GOOD)))["Next"][0]
    assert some.startswith("use the setting that BEATS") and "(--confirm-seeds " in some


def test_no_difference_at_all_needs_no_number_of_seeds():
    record = record_of((NAME, BASE))
    assert record["judgements"][0]["seeds_needed"] is None
    assert said(plan_of(), record)["Next"] == ["treat the settings as equal."]


def test_what_beats_the_champion_alone_does_not_beat_the_baseline():
    record = record_of((NAME, BAD))
    record["judgements"] += record_of((NAME, GOOD), against="champion")["judgements"]
    record["judgements"][1]["baseline"] = "champion"
    told = said(plan_of(), record)
    assert "beats the standing champion: " in told["Found"][1] and len(told["Found"]) == 2
    assert told["Next"] == ["keep the defaults, or search on: --trials 20."]


def test_a_champion_that_is_not_beaten_stays():
    record = record_of((NAME, GOOD))
    record["judgements"] += record_of((NAME, CLOSE), against="champion")["judgements"]
    assert "It does not beat the standing champion, which stays." in said(plan_of(), record)["Next"][0]


def test_each_of_several_is_found():
    record = record_of((NAME, GOOD), ("search-0007", CLOSE), ("search-0008", BAD))
    told = said(plan_of(), record)
    assert [line.split(": ")[0] for line in told["Found"]] == ["BEATS", "UNDETERMINED", "WORSE"]
    assert "3 challenges)." in told["How sure"][0] and "use the setting that BEATS" in told["Next"][0]


def test_labels_are_told_with_every_number():
    (labels,) = said(plan_of(), record_of((NAME, GOOD)))["Labels"]
    assert labels == (
        "labels of held-out target identities chose (selection.labels = target_val), by target_val/mAP; the official "
        "test labels judged. They were read 34 times: 19 × recorded at the end of a trial; chose nothing; 15 × judged."
    )
    (labels,) = said(plan_of(more=LABEL_FREE), record_of((NAME, GOOD), metric="label_free/score"))["Labels"]
    assert labels.startswith("no label of the target chose (selection.labels = none), by label_free/score; the off")


def test_an_oracle_says_so_loudly():
    told = said(plan_of(more=ORACLE), record_of((NAME, GOOD), metric="target/mAP"))
    assert told["Labels"][0].startswith(
        "THE OFFICIAL TEST LABELS CHOSE (selection.labels = oracle): no number here holds for new data, by target/mAP; "
    )
    assert told["Next"] == ["choose by target_val/mAP or label_free/score, and confirm that."]
    quick = said(plan_of(more=ORACLE, quick=True), None)["Labels"][0]
    assert quick.startswith("THE OFFICIAL TEST LABELS CHOSE (selection.labels = oracle)")


def test_a_score_without_labels_is_no_percentage():
    (found,) = said(plan_of(more=LABEL_FREE), record_of((NAME, GOOD), metric="label_free/score"))["Found"]
    assert " In the search it scored 0.55 label_free/score (n = 1), confirmed 0.51 (n = 5): it shrank by 0.04." in found


def test_a_quick_study_confirms_nothing_and_says_so():
    told = said(plan_of(quick=True), None)
    assert told["Found"] == [
        "the highest target_val/mAP of n = 3 trials, 35.0 %, is search/0001's. Nothing is confirmed (--quick): every "
        "trial ran with one seed, and the highest of many is high by luck too."
    ]
    assert told["Labels"][0].endswith("; the official test labels judged nothing.")
    counted = {"total": 7, "why": {"recorded at the end of a trial; chose nothing": 6, "pictures; chose nothing": 1}}
    plan = plan_of(quick=True)
    (labels,) = [line for line in words.sentences(plan, outcome_of(plan), None, readings=counted) if "Labels: " in line]
    assert labels.endswith(
        "the official test labels judged nothing. They were read 7 times: 6 × recorded at the end of a trial; chose "
        "nothing; 1 × pictures; chose nothing."
    )
    assert told["Next"] == ["run the same command without --quick: it goes on from here."] and "How sure" not in told


def test_an_unlabelled_target_is_not_judged_and_says_so():
    plan = plan_of(labelled=False)
    told = said(plan, None, outcome_of(plan, (0.0, None, 1.234)))
    assert told["Found"] == [
        "the highest label_free/score of n = 2 trials, 1.2, is search/0002's. Nothing is confirmed: the target has no "
        "labels, so no accuracy can be judged."
    ]
    assert told["Labels"] == [
        "no label of the target chose (selection.labels = none), by label_free/score; the target has none."
    ]
    assert told["Next"] == ["label a few hundred target images to know what the choice is worth."]


def test_without_a_candidate_there_is_no_verdict():
    plan = plan_of()
    told = said(plan, None, outcome_of(plan, vetoed=("search/0001", "search/0002")))
    assert told["Found"] == [
        "the highest target_val/mAP of n = 3 trials, 30.0 %, is the baseline itself's. Nothing is confirmed: no trial "
        "but the baseline passed the guards."
    ]
    assert told["Next"] == ["widen the space."]
    assert said(plan, None, outcome_of(plan, (None, None)))["Found"] == ["no trial has a result."]


def test_a_comparison_names_its_arms_and_asks_for_trials():
    plan = plan_of(COMPARISON)
    arms = {"searched": False, "against": "arms"}
    made = [verdict.Challenge(candidate=runs("one", CLOSE), baseline=runs("two", BASE))]
    told = said(plan, frame(made, **arms))
    assert told["Found"][0].startswith("UNDETERMINED: The one is not told apart from The other: 41.2 ± 1.9 % against")
    assert "In the search" not in told["Found"][0]
    assert told["Labels"][0].startswith("nothing was chosen (selection.labels = none); the official test labels judged")
    assert re.search(r"\(--trials \d+; p", told["Next"][0])
    worse = frame([verdict.Challenge(candidate=runs("one", BAD), baseline=runs("two", BASE))], **arms)
    assert said(plan, worse)["Next"] == ["report these means with n, sd and the interval."]


def test_names_of_settings():
    plan = plan_of()
    assert words.title(plan, "baseline") == "the paper's defaults" and words.title(plan, NAME) == NAME
    assert words.title(plan, "champion") == "the standing champion"
    assert words.title(plan_of(overrides={"optim.num_epochs": 6}), "baseline") == "the baseline"


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize("word", WORDS)
def test_every_page_can_be_printed_without_intervals_too(num, word):
    """Records without identities have no interval, single runs no spread."""
    plan = plan_of()
    matched = runs("m", GOOD[:num], identities=False)
    challenge = verdict.Challenge(
        candidate=runs(NAME, WORDS[word][0][:num], identities=False),
        baseline=runs("baseline", BASE[:num], identities=False),
        matched=matched,
    )
    record = frame([challenge])
    assert record["judgements"][0]["contrast"]["interval"] is None
    (found,) = said(plan, record)["Found"]
    assert "95 %" not in found and f"over n = {num} and {num} fresh seeds" in found and ("±" in found) == (num > 1)
    report = summary.Report(plan, outcome_of(plan), record, {})
    page = summary.page(report, study_id="mine-1", command="mmfa-study", commits=["abc"], seconds=[1.5, 2.5])
    assert all(start in page for start in ("Asked: ", "Found: ", "How sure: ", "Labels: ", "Next: "))
    rows = rows_of(plan, record)
    assert [row[-1] for row in rows] == [record["judgements"][0]["word"], "–"]


def test_the_table_has_a_row_for_each_judgement_and_one_for_alignment():
    record = record_of((NAME, GOOD, runs("m", (0.41, 0.43, 0.38, 0.42))), ("search-0007", CLOSE))
    one, aligned, other = rows_of(plan_of(), record)
    ends = [f"{100 * end:+.1f}" for end in record["judgements"][0]["contrast"]["interval"]]
    p = f"{record['judgements'][0]['p_adjusted']:.2g}"
    assert one == [f"{NAME} against the paper's defaults", "5, 5", "+7.2", " … ".join(ends), p, "BEATS"]
    assert aligned[:3] == [f"{NAME} against itself unaligned", "5, 4", "+7.0"] and len(aligned) == 4
    assert other[0] == "search-0007 against the paper's defaults" and other[-1] == "UNDETERMINED"


@pytest.mark.parametrize("more", ["", LABEL_FREE, ORACLE])
@pytest.mark.parametrize("kwargs", [{}, {"quick": True}, {"labelled": False}])
def test_every_page_without_a_verdict_can_be_printed(more, kwargs):
    plan = plan_of(more=more, **kwargs)
    for values in ((0.3, 0.35, 0.2), (0.3, None), (None,), ()):
        report = summary.Report(plan, outcome_of(plan, values), None, {})
        page = summary.page(report, study_id="mine-1", command="mmfa-study", commits=["abc"], seconds=[])
        assert "no training is over" in " ".join(page.split()) and "Next: " in page and "None" not in page


def test_means_are_never_told_without_their_n():
    """Whatever is found, each mean stands with the number of runs that it is of."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        num = int(rng.integers(2, 9))
        mAP, base, control = np.clip(rng.normal([[0.4], [0.38], [0.39]], 0.03, (3, num)), 0.15, 0.8).tolist()
        made = verdict.Challenge(candidate=runs(NAME, mAP), baseline=runs("baseline", base), matched=runs("m", control))
        record = frame([made], looks=int(rng.integers(1, 4)))
        (found,) = said(plan_of(), record)["Found"]
        assert f"over n = {num} and {num} fresh seeds" in found and f"images in BatchNorm, n = {num})" in found
        assert len(re.findall(r"[\d.]+ ± [\d.]+ %", found)) == 2
        assert "(n = 1)" in found and "confirmed 51.0 % (n = 5)" in found
