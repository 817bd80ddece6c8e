"""The benchmarks' programs on little data, and that every recorded result can be read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from mmfa.config import profile
from studies.protocol import Pruning
from tune import search

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import economy
import economy_table
import lines
import losses
import ranking
import search_gallery
import startup
import table

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_recorded_result_is_a_line_of_the_table(path):
    assert re.search(r"-\d{4}-\d\d-\d\d$", path.stem), "a result is dated"
    content = json.loads(path.read_text())
    for line in map(table.normal, content if isinstance(content, list) else [content]):
        assert set(line) >= {"peer", "ratio", *table.REQUIRED}
        assert {"python", "torch", "numpy"} <= set(line["versions"])
        assert len(table.cells(line)) == len(table.COLUMNS)
        if "bar" in line and line["ratio"] is not None and abs(line["ratio"] / line["bar"] - 1) > 0.01:  # it is rounded
            better = line["ratio"] <= line["bar"] if line["sense"] == "<=" else line["ratio"] >= line["bar"]
            assert better == line["met"], line["name"]


def one_line(name, **more):
    return lines.figure(name, ours=1.0, peer=2.0, ratio=0.5, at_most=1.0, n=7, **more)


def test_the_table_shows_the_newest_of_each_line(tmp_path):
    old, new = one_line("a") | {"date": "2026-01-01"}, one_line("a") | {"ours": 3.0}
    for stem, content in (("step-2026-01-02", [new, one_line("b")]), ("step-2026-01-01", [old])):
        (tmp_path / f"{stem}.json").write_text(json.dumps(content))
    limit = {**one_line("overhead"), "bar": 0.3, "ours": 0.2, "ratio": 0.67}
    del limit["peer"], limit["sense"]
    (tmp_path / "overhead-2026-01-01.json").write_text(json.dumps(limit))
    found = {line["name"]: line for line in table.recorded(tmp_path)}
    assert list(found) == ["a", "b", "overhead"], "in the order of the programs"
    assert found["a"]["ours"] == 3.0
    assert table.cells(found["overhead"]) == ("overhead", "0.2 s", "0.3 s", "0.67", "≤ 1", "yes", "7")
    text = table.markdown(list(found.values()))
    assert text.count("|\n") == 5 and found["a"]["hardware"] in text


def test_the_recorded_table_is_printed_by_its_command():
    command = [sys.executable, str(BENCHMARKS / "table.py"), "--recorded"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "peer or limit" in done.stdout


def test_what_is_no_line_is_refused():
    with pytest.raises(ValueError, match="lacks unit"):
        table.read(json.dumps({name: value for name, value in one_line("a").items() if name != "unit"}))


def test_the_faster_plain_torch_has_the_bar():
    fast, slow = losses.batched_torch("a term", (2, 1), device="cpu", at_least=0.0, n=1, repeats=1)
    assert fast["met"] and "bar" not in slow and fast["formulation"] != slow["formulation"]


def test_every_program_of_the_table_exists():
    assert [name for name in table.PROGRAMS if not (BENCHMARKS / f"{name}.py").exists()] == []


@pytest.mark.parametrize("shape", [(3, 1), (1, 40)])
@pytest.mark.parametrize("peer", [losses.loop, losses.batched, losses.joint])
def test_the_peers_compute_our_loss_and_gradient(shape, peer):
    mine, theirs = (losses.step_of(loss, shape, "cpu")() for loss in (losses.ours, peer))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_operations_are_counted_without_views():
    def step():
        torch.ones(3, 2).t().add(1).mul_(2)

    with losses.Operations() as counted:
        step()
    assert (counted.computing, counted.views) == (3, 1)


def test_a_test_set_is_like_markets_at_any_size():
    given = ranking.test_set(num_queries=60, num_gallery=300, num_dimensions=64)
    report = ranking.whole(given)
    assert report.num_queries == 60 and 0 < report.mAP < 1
    assert (given.labels["gallery_pids"] == 0).sum() == 300 * ranking.DISTRACTORS // ranking.GALLERY
    assert ranking.ranking.rank(ranking.matrix(given), **given.labels) == report
    line = ranking.memory(given)
    assert line["unit"] == "MB" and line["met"]


def test_a_cached_gallery_is_searched(tmp_path):
    found = search_gallery.measure(search_gallery.filled(tmp_path, images=50), rounds=1)
    assert [line["images"] for line in found] == [50] * 3 and found[0]["dimensions"] == 2048
    assert found[-1]["unit"] == "s" and found[-1]["ours"] > 0


def test_a_second_trial_reaches_its_first_step(embedded_cache):
    config = profile("embedded").with_overrides({"data.image_height": 32, "data.image_width": 16})
    stores = startup.embedded_stores(embedded_cache)
    for ends in (True, False):
        (took,) = startup.second_trials(config, stores, 1, ends=ends)
        assert 0 < took < 60


@pytest.fixture
def trials(tmp_path):
    """A small table of a smooth peak."""
    plan, rows = economy.shipped(seed=0), []
    for index in range(60):
        point = search.start_up_point(plan, plan.arm(economy.SEARCH), index)
        value = (
            0.4 - 0.02 * (np.log(point["loss.lambda_attr"] / 5)) ** 2 - 0.01 * np.log(point["loss.lambda_mdal"]) ** 2
        )
        curve = [value * part for part in (0.3, 0.6, 0.9, 1.0)]
        rows.append({"name": f"search/{index:04d}", **point, "curve": curve, "final": curve[-1], "seconds": 1.0})
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "trials.parquet")
    return economy.Table(tmp_path / "trials.parquet")


def test_a_replay_answers_with_measured_trials(trials):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = economy.replay(trials, trials.nearest, economy.ours(), seed=1, trials=12)
    again = economy.replay(trials, trials.nearest, economy.ours(), seed=1, trials=12)
    assert first.values == again.values and len(first.values) == 12
    assert set(first.values) <= set(trials.curves_TE[:, -1])
    assert first.epochs == [4 * number for number in range(1, 13)]
    assert first.reached(max(first.values)) == 1 + first.values.index(max(first.values))
    assert first.reached(1.0) == economy.NEVER
    halved = economy.replay(trials, trials.nearest, economy.ours(halving=Pruning(grace_period=1)), seed=1, trials=12)
    assert halved.epochs[-1] < 48 and -np.inf in halved.values, "hopeless trials end early"


def test_every_search_gives_its_lines(trials):
    runs = {
        name: [economy.replay(trials, trials.nearest, make, seed=seed, trials=6) for seed in (1, 2)]
        for name, (make, _) in economy.searches(6).items()
    }
    found = [economy.errors(trials, economy.Smooth(trials)), *economy.figures(trials, runs)]
    for line in found:
        json.dumps(line, allow_nan=False)
    assert found[0]["peer"] < found[0]["ours"], "the process predicts a smooth peak better than the nearest trial"
    assert sum("bar" in line for line in found) == len(economy.BUDGETS)


def test_the_recorded_trials_are_those_of_the_study():
    if not economy_table.TABLE.exists():
        pytest.skip("benchmarks/results/economy-trials.parquet is not recorded yet")
    metadata = pyarrow.parquet.read_schema(economy_table.TABLE).metadata
    assert metadata[b"study"].decode() == economy_table.STUDY.read_text()
    found = economy.Table()
    assert len(found.unit_TD) >= 200 and economy_table.TABLE.stat().st_size < 200_000
    assert (found.unit_TD >= -1e-9).all() and (found.unit_TD <= 1 + 1e-9).all()
