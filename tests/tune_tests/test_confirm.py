"""Which settings go on from the search, that they are settled once, and the runs that judge them."""

import dataclasses

import pytest

from studies.plan import grown
from studies.resolve import resolve
from studies.spec import parse
from tune import confirm, outcomes, search
from tune.confirm import BASELINE, CHAMPION, Standing, runs, settle, shortlist
from tune.ledger import Ledger

TEXT = """
question = "?"
trials = 8
start_up = 2
[protocol]
shortlist = 2
confirm_seeds = 3
{more}
[space."loss.lambda_aal"]
low = 0.03
high = 30.0
log = true
zero = true
[space."loss.lambda_mdal"]
low = 0.03
high = 30.0
log = true
zero = true
[space."kernel.bandwidths"]
choices = {{paper = [1, 5, 10], wide = [10, 50]}}
"""
ARMS = '[arms.plain]\ntitle = "as it is"\n[arms.gem]\nset = {"model.pooling" = "gem"}\n'
STEADY = {"probe/effective_rank": 10.0, "source_val/mAP": 0.5, "probe/finite": 1.0, "mmd/plateau": 0.0}


def plan_of(more="", **kwargs):
    study = parse(TEXT.format(more=more), name="mine", origin="mine.toml")
    return resolve(study, profile_name="embedded", overrides={}, **kwargs)


def point(aal=1.0, mdal=1.0, bandwidths="paper"):
    """Return a point of the space; 0 is off."""
    params = {"loss.lambda_aal.on": aal != 0} | ({"loss.lambda_aal": aal} if aal else {})
    params |= {"loss.lambda_mdal.on": mdal != 0} | ({"loss.lambda_mdal": mdal} if mdal else {})
    return {**params, "kernel.bandwidths": bandwidths}


class Study:
    """A study in a real ledger whose trials get the values they are given; opened again it knows what it knew."""

    def __init__(self, url, plan):
        ledger, self.plan = Ledger(url), plan
        self.stages = {arm.name: ledger.open("s", stage=arm.name) for arm in plan.arms}
        self.confirmations = ledger.open("s", stage="confirm")
        self.registry = self.stages.get("search") or ledger.open("s", stage="search")

    def trial(self, value, arm="search", **params):
        """Run a trial at a point; a value of None diverges."""
        stage = self.stages[arm]
        metrics = {**STEADY, **params.pop("metrics", {})}
        stage.enqueue(point(**params))
        trial = stage.ask()
        search.suggest(trial, self.plan, self.plan.arm(arm))
        if value is None:
            stage.diverge(trial, reason="nan")
        else:
            stage.complete(trial, value=value, metrics={**metrics, "target_val/mAP": value})

    def outcome(self):
        stages = [*self.stages.values(), self.confirmations]
        return outcomes.read(self.plan, [lineage for stage in stages for lineage in stage.lineages()])

    def settle(self, champion=None):
        return settle(self.registry, self.plan, self.outcome(), champion)

    def shortlist(self):
        return [row.name for row in shortlist(self.plan, self.outcome())]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def study(url):
    """Eight trials: the baseline, six others of which one diverges and one collapses, and the baseline's setting."""
    found = Study(url, plan_of())
    found.trial(0.30)
    found.trial(0.31, aal=2.0)
    found.trial(0.35, mdal=3.0)
    found.trial(None, aal=9.0)
    found.trial(0.99, mdal=20.0, metrics={"probe/effective_rank": 1.0})
    found.trial(0.33, bandwidths="wide")
    found.trial(0.29, aal=0, mdal=0)
    found.trial(0.98)
    return found


def test_the_best_go_on_in_order_and_neither_the_vetoed_nor_the_baselines_own(study):
    assert list(study.outcome().vetoed) == ["search/0004"]
    assert study.shortlist() == ["search/0002", "search/0005"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_as_many_go_on_as_the_study_says(url, number):
    plan = plan_of()
    protocol = plan.study.protocol.model_copy(update={"shortlist": number})
    found = Study(url, dataclasses.replace(plan, study=plan.study.model_copy(update={"protocol": protocol})))
    for value in (0.3, 0.1, 0.4, 0.2, 0.5):
        found.trial(value, aal=1 + value if value != 0.3 else 1.0)
    assert found.shortlist() == ["search/0004", "search/0002", "search/0003"][:number]


def test_a_negative_score_is_a_score(url):
    """``label_free/score`` is below 0 for most."""
    found = Study(url, plan_of())
    for value, mdal in ((-0.1, 1.0), (-2.0, 2.0), (0.0, 3.0), (-1.0, 4.0)):
        found.trial(value, mdal=mdal)
    assert found.shortlist() == ["search/0002", "search/0003"]


def test_of_arms_the_best_of_each_goes_on(url):
    found = Study(url, plan_of(ARMS))
    for arm, values in (("plain", (0.30, 0.31, 0.34, 0.32)), ("gem", (0.10, 0.12, 0.11, 0.05))):
        for index, value in enumerate(values):
            found.trial(value, arm, aal=1.0 + index)
    assert found.shortlist() == ["plain/0002", "gem/0001"]
    settled = found.settle()
    assert settled.candidates == ["plain-0002", "gem-0001"]
    assert settled.settings["gem-0001"].model.pooling == "gem" != settled.settings["plain-0002"].model.pooling


def test_an_arm_whose_best_is_the_baseline_stands_by_it(url):
    """The baseline's own setting is no candidate, and what is worse than it in its arm does not stand for the arm."""
    found = Study(url, plan_of(ARMS))
    for arm in ("plain", "gem"):
        found.trial(0.5, arm)
        found.trial(0.1, arm, aal=2.0)
    assert found.shortlist() == ["gem/0000"]
    settled = found.settle()
    assert settled.candidates == ["gem-0000"] and settled.arms == {"plain": BASELINE, "gem": "gem-0000"}


def test_a_setting_goes_on_once_however_often_it_was_tried(url):
    """Of choices a sampler draws one twice; its second run would be another chance, on the very same seeds."""
    found = Study(url, plan_of())
    for value, params in (
        (0.3, {}),
        (0.35, {"bandwidths": "wide"}),
        (0.4, {"bandwidths": "wide"}),
        (0.1, {"aal": 2.0}),
    ):
        found.trial(value, **params)
    assert found.shortlist() == ["search/0002", "search/0003"]
    first = found.settle()
    found.plan = grown(found.plan, trials=9)
    found.trial(0.6, bandwidths="wide")
    assert found.settle().settings == first.settings


def test_a_champion_is_not_trained_again_when_the_search_finds_it(study):
    config = study.plan.baseline.with_overrides({"loss.lambda_aal": 4.0})
    first = study.settle(champion_of(config))
    study.trial(0.5, aal=4.0)
    assert study.settle().settings == first.settings


def test_what_is_settled(study):
    settled = study.settle()
    assert list(settled.settings) == [
        *("baseline", "search-0002", "search-0002-matched", "search-0005", "search-0005-matched")
    ]
    assert settled.candidates == ["search-0002", "search-0005"]
    assert settled.settings[BASELINE] == study.plan.baseline
    best, matched = settled.settings["search-0002"], settled.settings["search-0002-matched"]
    assert (best.loss.lambda_aal, best.loss.lambda_mdal) == (1.0, 3.0)
    assert matched == best.with_overrides({"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0})
    assert matched.data.use_target, "target images still pass through BatchNorm"
    assert settled.settings["search-0005-matched"].kernel.bandwidths == (10.0, 50.0)
    assert (settled.champion, settled.champion_version) == ("", "")


@pytest.mark.parametrize(
    ("params", "has"), [({"aal": 0, "mdal": 0, "bandwidths": "wide"}, False), ({"aal": 0}, True), ({"mdal": 0}, True)]
)
def test_a_setting_without_alignment_is_its_own_control(url, params, has):
    found = Study(url, plan_of())
    found.trial(0.3)
    found.trial(0.4, **params)
    assert ("search-0001-matched" in found.settle().settings) is has


def test_what_was_settled_stays_whatever_comes_out_later(study, url):
    first = study.settle()
    written = dict(study.registry.study.user_attrs)
    again = Study(url, study.plan)
    assert confirm.read(again.registry) == first == again.settle()
    assert dict(again.registry.study.user_attrs) == written
    again.plan = grown(again.plan, trials=9)
    again.trial(0.36, aal=4.0)
    later = again.settle()
    assert list(later.settings) == [*first.settings, "search-0008", "search-0008-matched"]
    assert {name: later.settings[name] for name in first.settings} == first.settings
    assert confirm.read(Study(url, study.plan).registry) == later
    nothing = outcomes.Outcome("target_val/mAP", "target_val", 8, [])
    emptied = settle(again.registry, again.plan, nothing, None)
    assert emptied.settings == later.settings, "every look counts, and so does every setting"


def test_nothing_is_settled_before_it_is(study):
    assert confirm.read(study.registry) is None


def champion_of(config, version="3"):
    return Standing(version=version, config=config, of="mine-1")


def test_a_standing_champion_is_trained_too(study):
    config = study.plan.baseline.with_overrides({"loss.lambda_attr": 0.7, "run.seed": 1002})
    settled = study.settle(champion_of(config))
    assert (settled.champion, settled.champion_version) == (CHAMPION, "3")
    assert settled.settings[CHAMPION] == config and CHAMPION not in settled.candidates
    seeds = [run.config.run.seed for run in runs(study.plan, settled) if run.role == CHAMPION]
    assert seeds == study.plan.fresh_seeds, "with the seeds of the others, not its own"


@pytest.mark.parametrize(
    ("same_as", "overrides"),
    [(BASELINE, {}), ("search-0002", {"loss.lambda_mdal": 3.0}), ("search-0005", {"kernel.bandwidths": [10.0, 50.0]})],
)
def test_a_champion_that_is_known_is_not_trained_twice(study, same_as, overrides):
    config = study.plan.baseline.with_overrides({**overrides, "run.seed": 1004})
    settled = study.settle(champion_of(config))
    assert (settled.champion, CHAMPION in settled.settings) == (same_as, False)
    trained = [run.config for run in runs(study.plan, settled)]
    assert len(set(map(str, trained))) == len(trained)


def test_a_champion_that_came_later_challenges_nobody_here(study):
    first = study.settle()
    assert study.settle(champion_of(study.plan.baseline)) == first and first.champion_version == ""


def test_the_champion_that_stood_first_stays_challenged(study, url):
    config = study.plan.baseline.with_overrides({"loss.lambda_attr": 0.7})
    first = study.settle(champion_of(config))
    other = config.with_overrides({"loss.lambda_attr": 0.8})
    again = Study(url, study.plan)
    assert again.settle(champion_of(other, "4")) == first == again.settle()


def test_runs_are_every_setting_with_every_fresh_seed_seed_by_seed(study):
    settled = study.settle()
    found = runs(study.plan, settled)
    assert [run.name for run in found] == [
        f"{name}-s{seed}" for seed in (1000, 1001, 1002) for name in settled.settings
    ]
    assert [run.role for run in found[:5]] == list(settled.settings)
    for run in found:
        assert run.config == settled.settings[run.role].with_overrides({"run.seed": run.config.run.seed})
        assert run.name.endswith(f"-s{run.config.run.seed}")
    more = runs(grown(study.plan, trials=8, confirm_seeds=4), settled)
    assert more[: len(found)] == found and len(more) == len(found) + 5


def test_runs_are_enqueued_once(study, url):
    for _ in range(2):
        found = Study(url, study.plan)
        found.confirmations.enqueue_fixed(runs(found.plan, found.settle()))
    lineages = found.confirmations.lineages()
    assert len(lineages) == 15 and lineages[1].name == "confirm/search-0002-s1000"
    assert search.config_of(found.plan, lineages[1]).loss.lambda_mdal == 3.0


@pytest.mark.parametrize("value", [None, 0.9])
def test_without_candidates_nothing_runs(url, value):
    """All others diverged, or were vetoed: the baseline alone has nothing to be compared with."""
    found = Study(url, plan_of())
    found.trial(0.3)
    found.trial(value, aal=2.0, metrics={"probe/finite": 0.0})
    settled = found.settle()
    assert (list(settled.settings), settled.candidates, runs(found.plan, settled)) == ([BASELINE], [], [])


def test_the_confirmations_of_a_setting(study):
    settled = study.settle()
    study.confirmations.enqueue_fixed(runs(study.plan, settled))
    for value in (0.2, 0.4, None, 0.3, 0.35):
        trial = study.confirmations.ask()
        if value is None:
            study.confirmations.diverge(trial, reason="nan")
        else:
            study.confirmations.complete(trial, value=value, metrics={**STEADY, "target/mAP": value / 2})
    outcome = study.outcome()
    assert [row.value for row in confirm.of_setting(outcome, "search-0002")] == [0.4]
    assert confirm.of_setting(outcome, "search-0002-matched") == []
    assert len(outcome.search) == 8, "confirmations are no trials of the search"
    assert outcome.best.name == "search/0007" and study.shortlist() == ["search/0002", "search/0005"]


def test_what_a_setting_has_in_the_fields_that_are_searched(study):
    settled = study.settle()
    assert confirm.params_of(study.plan, settled.settings["search-0005"]) == {
        "loss.lambda_aal": 1.0,
        "loss.lambda_mdal": 1.0,
        "kernel.bandwidths": [10.0, 50.0],
    }
