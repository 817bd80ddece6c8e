"""What is asked, in which order, and that a restart asks nothing twice."""

import json
import random

import optuna
import pytest
import ray.tune.search

from studies.library import load
from studies.plan import grown
from studies.resolve import resolve
from studies.spec import parse
from tune import search
from tune.interrupt import Stop
from tune.job import ROW, Job
from tune.ledger import Ledger

MIXED = """
question = "?"
trials = 9
start_up = 4
[space."loss.lambda_aal"]
low = 0.03
high = 30
log = true
[space."data.target_batch"]
low = 31
high = 33
[space."model.pooling"]
choices = ["max", "average"]
"""
NUMBERS = MIXED[: MIXED.index('[space."model.pooling"]')]
CONTROL_RUNS = [
    f"controls/{name}"
    for name in ("baseline-s1", "baseline-s2", *(f"{c}-s{s}" for c in ("source_only", "target_bn") for s in range(3)))
]


@pytest.fixture
def plan():
    return resolve(load("lambdas"), profile_name="embedded", overrides={})


class Watcher:
    def __init__(self):
        self.started, self.epochs, self.finished = [], [], []

    def trial_started(self, lineage, config):
        self.started.append((lineage.name, config))

    def trial_epoch(self, name, report):
        self.epochs.append((name, report["epoch"]))

    def trial_finished(self, name, state, record):
        self.finished.append((name, state))


class Stopped(Stop):
    def end(self, reason):
        self.reason = reason


class Driver:
    """A driver's searcher on a ledger that outlives it."""

    def __init__(self, url, plan, folder):
        ledger = Ledger(url)
        names = [*(["controls"] if plan.controls else []), *(arm.name for arm in plan.arms)]
        self.stages = {name: ledger.open("s", stage=name) for name in names}
        self.controls, self.search = self.stages.get("controls"), self.stages.get("search")
        search.prepare(plan, tuple(self.stages.values()))
        self.watcher, self.stop = Watcher(), Stopped()
        self.searcher = search.StudySearcher(
            plan=plan,
            stages=tuple(self.stages.values()),
            make_job=lambda lineage, config: Job(
                name=lineage.name,
                config=config.to_json(),
                source_store="",
                target_store="",
                folder=str(folder / lineage.name),
                attempt=len(lineage.attempts),
                fence_folder="",
                fence_counter=1,
                threads=1,
                reading="",
                criteria={},
            ),
            observers=(self.watcher,),
            stop=self.stop,
        )
        self.count = 0

    def suggest(self):
        self.count += 1
        config = self.searcher.suggest(f"t{self.count}")
        return f"t{self.count}", config

    def run(self):
        """Finish whatever is asked; return the names in order."""
        while (answer := self.suggest())[1] != ray.tune.search.Searcher.FINISHED:
            self.finish(answer[0], 0.3)
        return [name for name, _ in self.watcher.started]

    def finish(self, trial_id, value, outcome="complete", epochs=2):
        history = [
            {"epoch": e, "num_epochs": epochs, "ended_at": 1.0 * e, "metrics": {"target_val/mAP": value * e / epochs}}
            for e in range(1, epochs + 1)
        ]
        for report in history[:-1]:
            self.searcher.on_trial_result(trial_id=trial_id, result={ROW: json.dumps({"epoch": report})})
        record = {"outcome": outcome, "history": history, "metrics": history[-1]["metrics"], "reason": "why"}
        record["config"] = {"loss.lambda_mdal": 1.0, "data.use_target": True}
        self.searcher.on_trial_complete(trial_id=trial_id, result={ROW: json.dumps({"result": record})}, error=False)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'ledger.db'}"


def lambdas(config):
    return (config.loss.lambda_attr, config.loss.lambda_aal, config.loss.lambda_mdal)


def test_controls_then_the_paper_then_the_search(url, plan, tmp_path):
    driver = Driver(url, grown(plan, trials=3), tmp_path)
    while (answer := driver.suggest())[1] != ray.tune.search.Searcher.FINISHED:
        driver.finish(answer[0], 0.3)
    names = [name for name, _ in driver.watcher.started]
    assert names == [*CONTROL_RUNS, "search/0000", "search/0001", "search/0002"]
    assert lambdas(driver.watcher.started[8][1]) == (0.1, 1.0, 1.0)
    assert [config.run.seed for _, config in driver.watcher.started] == [1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0]
    assert {state for _, state in driver.watcher.finished} == {"complete"}
    assert {trial.intermediate_values[2] for trial in driver.search.study.trials} == {0.3}


def test_any_restart_ends_with_n_lineages_and_no_point_twice(url, plan, tmp_path):
    plan = grown(plan, trials=8)
    driver = Driver(url, plan, tmp_path)
    for step in range(60):
        trial_id, config = driver.suggest()
        if config == ray.tune.search.Searcher.FINISHED:
            break
        if step % 3 == 2:  # the driver dies with two trials on the way
            driver.suggest()
            driver = Driver(url, plan, tmp_path)
        else:
            driver.finish(trial_id, 0.3 + 0.01 * step)
    lineages = driver.search.lineages()
    assert len(lineages) == 8 and all(item.state == "complete" for item in lineages)
    points = [tuple(item.last.params.values()) for item in lineages]
    assert len(set(points)) == 8
    assert all(item.attempts[0].params in ({}, item.last.params) for item in lineages)
    assert all(item.terminal for item in driver.controls.lineages()) and len(driver.controls.lineages()) == 8


def test_points_do_not_depend_on_restarts(tmp_path, plan):
    plan = grown(plan, trials=4)
    points = []
    for run, restarts in enumerate((False, True)):
        url = f"sqlite:///{tmp_path / f'{run}.db'}"
        driver = Driver(url, plan, tmp_path)
        while (answer := driver.suggest())[1] != ray.tune.search.Searcher.FINISHED:
            driver.finish(answer[0], 0.3)
            if restarts:
                driver = Driver(url, plan, tmp_path)
        points.append([item.last.params for item in driver.search.lineages()])
    assert points[0] == points[1]


def test_growing_a_study_adds_to_it(url, plan, tmp_path):
    for trials in (2, 5):
        driver = Driver(url, grown(plan, trials=trials), tmp_path)
        while (answer := driver.suggest())[1] != ray.tune.search.Searcher.FINISHED:
            driver.finish(answer[0], 0.3)
    assert len(driver.search.lineages()) == 5
    assert [name for name, _ in driver.watcher.started] == ["search/0002", "search/0003", "search/0004"]


def test_a_lost_worker_is_told_and_tried_again_by_the_next_driver(url, plan, tmp_path):
    plan = grown(plan, trials=1)
    driver = Driver(url, plan, tmp_path)
    trial_id, config = driver.suggest()
    folder = tmp_path / "controls" / "baseline-s1"
    folder.mkdir(parents=True)
    (folder / "error.txt").write_text("Traceback\nMemoryError: too much\n")
    driver.searcher.on_trial_complete(trial_id=trial_id, result=None, error=True)
    assert driver.searcher.failures == {"controls/baseline-s1": "MemoryError: too much"}
    driver, name = Driver(url, plan, tmp_path), "controls/baseline-s1"
    again = next(job for _, job in (driver.suggest() for _ in range(9)) if job["job"]["name"] == name)
    assert again["job"]["attempt"] == 2 and again["job"]["config"] == config["job"]["config"]


def test_a_user_error_in_a_worker_reads_as_its_sentence(url, plan, tmp_path):
    driver = Driver(url, plan, tmp_path)
    trial_id, _ = driver.suggest()
    driver.searcher.on_trial_complete(trial_id=trial_id, result={ROW: json.dumps({"failed": "the store is damaged."})})
    assert driver.searcher.failures == {"controls/baseline-s1": "the store is damaged."}


def test_a_diverged_baseline_ends_the_study_and_another_trial_does_not(url, plan, tmp_path):
    driver = Driver(url, grown(plan, trials=3), tmp_path)
    ids = [driver.suggest()[0] for _ in range(10)]
    driver.finish(ids[9], 0.0, outcome="diverged")
    assert driver.stop.reason == ""
    driver.finish(ids[8], 0.0, outcome="diverged")
    assert driver.stop.reason == "the baseline diverged: why"
    assert driver.suggest()[1] == ray.tune.search.Searcher.FINISHED, "nothing new is started"
    assert [item.state for item in driver.search.lineages()][:2] == ["diverged", "diverged"]


def test_start_up_points_lie_in_the_space_and_spread(plan):
    mixed = resolve(parse(MIXED, name="mixed", origin="mixed.toml"), profile_name="embedded", overrides={})
    space = search.distributions(mixed)
    drawn = [search.start_up_point(mixed, mixed.arms[0], index) for index in range(1, 65)]
    for point in drawn:
        mixed.decode(point)
        assert all(space[name]._contains(space[name].to_internal_repr(value)) for name, value in point.items())
    assert {point["data.target_batch"] for point in drawn} == {31, 32, 33}
    assert {point["model.pooling"] for point in drawn} == {"max", "average"}
    small = sum(point["loss.lambda_aal"] < (0.03 * 30) ** 0.5 for point in drawn)
    assert 28 <= small <= 36
    assert search.start_up_point(mixed, mixed.arms[0], 5) == drawn[4]


def test_sampler_seed_moves_with_the_ledger(plan):
    first, second = (search.sampler(plan, num_trials=n) for n in (3, 4))
    assert first._rng.rng.randint(2**31) != second._rng.rng.randint(2**31)


COMPARISON = """
question = "?"
trials = 2
[arms.a]
[arms.b.set]
"kernel.bandwidths" = [2]
"""
CONDITIONAL = """
question = "?"
trials = 14
start_up = 4
[arms.a]
[arms.b.set]
"loss.lambda_aal" = 2.0
[space."model.pooling"]
choices = ["max", "average"]
[space."kernel.bandwidths"]
choices = {paper = [1, 5, 10], wide = [10, 50]}
when = {"model.pooling" = "average"}
[space."loss.lambda_mdal"]
low = 0.1
high = 10
log = true
"""


def plan_of(text, **kwargs):
    return resolve(parse(text, name="mine", origin="mine.toml"), profile_name="embedded", overrides={}, **kwargs)


@pytest.mark.parametrize(
    ("text", "num_trials", "kind"),
    [
        (NUMBERS, search.FEW, optuna.samplers.GPSampler),
        (NUMBERS, search.FEW + 1, optuna.samplers.TPESampler),
        (NUMBERS + "[pruning]\ngrace_period = 1\n", 6, optuna.samplers.TPESampler),
        (MIXED, 6, optuna.samplers.TPESampler),
        (CONDITIONAL, 6, optuna.samplers.TPESampler),
    ],
)
def test_a_gaussian_process_draws_among_few_trials_of_numbers(text, num_trials, kind):
    assert isinstance(search.sampler(plan_of(text), num_trials=num_trials), kind)


def points_of_the_search(url, plan, folder, *, at_once):
    """Return the points of a search of which so many trials run at once, in the order in which they were asked for."""
    driver, luck, running = Driver(url, plan, folder), random.Random(0), []
    while (answer := driver.suggest())[1] != ray.tune.search.Searcher.FINISHED:
        trial_id, config = answer
        if config["job"]["name"].startswith("controls/"):
            driver.finish(trial_id, 0.3)
            continue
        running.append((trial_id, config["job"]["config"]))
        if len(running) == at_once:
            trial_id, config = running.pop(luck.randrange(at_once))
            driver.finish(trial_id, random.Random(config).random())
    return [lineage.last.params for lineage in driver.search.lineages()]


def points_of_optuna_alone(plan, *, at_once):
    """Return the same points by Optuna's own means: its storage, its samplers."""
    study, luck, running = optuna.create_study(direction="maximize"), random.Random(0), []
    for index in range(1 + plan.study.start_up):
        study.enqueue_trial(search.start_up_point(plan, plan.arms[0], index))
    for number in range(plan.trials):
        study.sampler = search.sampler(plan, num_trials=max(number, 1 + plan.study.start_up))
        running.append(study.ask())
        search.suggest(running[-1], plan, plan.arms[0])
        if len(running) == at_once:
            ended = running.pop(luck.randrange(at_once))
            config = plan.decode(ended.params, plan.arms[0]).to_json()
            study.tell(ended, random.Random(config).random())
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("at_once", [1, 7])
def test_the_points_are_optunas_until_the_history_is_long(url, tmp_path, monkeypatch, conditional, at_once):
    text = CONDITIONAL.replace('[arms.a]\n[arms.b.set]\n"loss.lambda_aal" = 2.0\n', "") if conditional else MIXED
    plan = plan_of(text, trials=80, quick=True)
    alone = points_of_optuna_alone(plan, at_once=at_once)
    assert points_of_the_search(url, plan, tmp_path, at_once=at_once) == alone
    monkeypatch.setattr(search, "HISTORY", 20)
    shorter = points_of_the_search(f"{url}2", plan, tmp_path, at_once=at_once)
    changed = next(index for index in range(80) if shorter[index] != alone[index])
    assert changed >= 20 + at_once, "until then all of it was shown"
    assert len({json.dumps(point) for point in shorter}) == 80


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_points_among_numbers_are_optunas_gaussian_process(url, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(search, "FEW", 12)
    plan = plan_of(NUMBERS, trials=16, quick=True)
    alone = points_of_optuna_alone(plan, at_once=at_once)
    assert points_of_the_search(url, plan, tmp_path, at_once=at_once) == alone


def test_a_comparison_trains_the_first_seed_of_every_arm_before_the_second(url, tmp_path):
    driver = Driver(url, plan_of(COMPARISON, seed=5), tmp_path)
    arms = ["a", "b", "source_only", "target_bn"]
    assert driver.run() == [f"{arm}/{index:04d}" for index in range(2) for arm in arms]
    seeds = {name: config.run.seed for name, config in driver.watcher.started}
    assert seeds == {f"{arm}/{index:04d}": 5 + index for arm in arms for index in range(2)}
    assert dict(driver.watcher.started)["b/0001"].kernel.bandwidths == (2.0,)
    assert {lineage.role for stage in driver.stages.values() for lineage in stage.lineages()} == set(arms)


def test_a_comparison_taken_up_again_and_with_more_seeds(url, tmp_path):
    driver = Driver(url, plan_of(COMPARISON), tmp_path)
    driver.finish(driver.suggest()[0], 0.3)
    driver.suggest()  # on the way when the driver dies
    driver = Driver(url, plan_of(COMPARISON), tmp_path)
    assert len(driver.run()) == 7
    driver = Driver(url, plan_of(COMPARISON, trials=3), tmp_path)
    assert driver.run() == ["a/0002", "b/0002", "source_only/0002", "target_bn/0002"]
    for stage in driver.stages.values():
        assert [lineage.last.params["run.seed"] for lineage in stage.lineages()] == [0, 1, 2]


def test_arms_are_searched_with_equal_budgets_and_conditions_hold(url, tmp_path):
    plan = plan_of(CONDITIONAL)
    driver = Driver(url, plan, tmp_path)
    names = driver.run()
    assert names[:8] == CONTROL_RUNS and len(names) == 8 + 2 * 14
    for arm in plan.arms:
        points = [lineage.last.params for lineage in driver.stages[arm.name].lineages()]
        assert points[0] == {"model.pooling": "max", "loss.lambda_mdal": 1.0}
        assert {point["model.pooling"] for point in points} == {"max", "average"}
        assert all(("kernel.bandwidths" in point) == (point["model.pooling"] == "average") for point in points)
    assert {config.loss.lambda_aal for name, config in driver.watcher.started if name.startswith("b/")} == {2.0}


def test_a_start_up_point_keeps_to_its_conditions():
    plan = plan_of(CONDITIONAL)
    drawn = [search.start_up_point(plan, plan.arms[0], index) for index in range(1, 33)]
    assert {point["model.pooling"] for point in drawn if "kernel.bandwidths" in point} == {"average"}
    assert sum("kernel.bandwidths" in point for point in drawn) == sum(p["model.pooling"] == "average" for p in drawn)
