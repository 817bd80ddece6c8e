"""A study behind a stub of training: whole at its end, and no dearer for each trial as it grows."""

import random
import statistics
import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from tune import search

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import scale
import simulation


def test_a_study_is_whole_in_ledger_and_mlflow(tmp_path):
    lines = scale.one_study(tmp_path, trials=100, workers=8, size=50)
    figures = {line["name"]: line for line in lines}
    assert figures["trials that ledger or MLflow lack anything of"]["ours"] == 0
    assert figures["our share: searcher, ledger, recorder in the driver's thread"]["n"] == 102, "and two controls"


def grown(driver, number):
    """Give a search so many finished trials that nothing was measured of."""
    stage, luck = driver.stages[1], random.Random(0)
    space = search.distributions(driver.plan)
    with stage.at_once():
        for _ in range(number):
            point = {name: luck.uniform(one.low, one.high) for name, one in space.items()}
            trial = optuna.trial.create_trial(params=point, distributions=dict(space), value=luck.random())
            stage.study.add_trial(trial)


def measured(folder, *, before):
    """Return the queries and the computing time of trials of a search that has had others before."""
    folder.mkdir()
    driver = simulation.Driver(folder, trials=before + 60, mlflow=False)
    grown(driver, before)
    queries, spent = [0], []

    @sa.event.listens_for(driver.ledger.storage.engine, "before_cursor_execute")
    def count(*args):
        queries[0] += 1

    def tell(one):
        spent.append((queries[0], one["searcher cpu"] + one["ledger cpu"]))
        queries[0] = 0

    restore = driver.time_parts()
    simulation.Simulation(driver, workers=1, seconds=0.0, tell=tell).run()
    restore()
    driver.close()
    return [number for number, _ in spent[-40:]], statistics.median(share for _, share in spent[-40:])


def test_a_trial_costs_the_same_in_a_long_study(tmp_path):
    """The bars of benchmarks/scale.py hold for 10,000; here a long study is one of 3,000."""
    queries, short = measured(tmp_path / "short", before=0)
    the_same, long = measured(tmp_path / "long", before=3000)
    assert set(queries) == set(the_same) and len(set(queries)) == 1
    assert long < 2 * short, "computing time, which other work on the machine hardly adds to"


@pytest.mark.parametrize(("seconds", "least"), [(3.0, 5), (600.0, 90)])
def test_many_workers_before_one_driver(tmp_path, seconds, least):
    lines = scale.many_workers(tmp_path, trials=120, workers=30, seconds=seconds, size=60)
    share = next(line["ours"] for line in lines if line["name"].startswith("utilisation"))
    assert least <= share <= 100
    assert lines[-1]["name"] == "trials that the ledger lacks anything of" and lines[-1]["ours"] == 0
    assert any(line["name"].startswith("the bottleneck: the ") for line in lines)
