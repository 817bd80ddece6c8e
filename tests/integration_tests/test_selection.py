"""Other ways to choose: without labels, by the test labels, and ending trials early; through the real command."""

import json
import shutil

import pytest
from integration_tests.driver import QUICK, Driver

from mmfa.data import catalog

pytestmark = pytest.mark.slow


def test_an_unlabelled_target_is_searched_without_labels_and_not_judged(tmp_path, embedded_cache):
    root = catalog.load("embedded-target", data_root=None, cache_dir=embedded_cache).root
    target = tmp_path / "street"
    target.mkdir()
    for file in sorted((root / "bounding_box_train").glob("*.jpg"))[::4]:
        shutil.copy(file, target / file.name)
    study = QUICK.replace("trials = 4", "trials = 2")
    driver = Driver(tmp_path, cache=embedded_cache, study=study)
    code, text = driver.run("--target", f"folder:{target}")
    assert code == 0, text
    assert "the target has no labels, so no accuracy can be judged" in text and "selection.labels = none" in text
    (file,) = driver.out.glob("tiny-????????????.json")
    outcome = json.loads(file.read_text())
    assert outcome["objective"] == "label_free/score" and outcome["labels"] == "none"
    assert not (driver.out / "verdict.json").exists()
    records = [json.loads(path.read_text()) for path in driver.out.glob("storage/*/*/result.json")]
    assert len(records) == 2 + 3 + 3 + 3, "trials, and three seeds of the baseline and of each control"
    assert not [name for record in records for name in record["metrics"] if name.startswith("target")]
    assert not list(driver.out.glob("storage/*/*/readings.jsonl"))
    assert "@candidate is now version 1" in text and "champion" not in text.split("Promoted")[1]


def test_an_oracle_says_so_with_every_number_and_makes_no_champion(tmp_path, embedded_cache):
    oracle = QUICK.replace("trials = 4", "trials = 2").replace(
        "[protocol]", '[objective]\nmetric = "target/mAP"\nselection = "oracle"\n[protocol]\ndelta_min = 0.0'
    )
    driver = Driver(tmp_path, cache=embedded_cache, study=oracle)
    code, text = driver.run()
    assert code == 0 and "THE OFFICIAL TEST LABELS CHOSE (selection.labels = oracle)" in text, text
    assert "objective of an oracle study: it chose" in text and "chose by the labels that judge" in text
    tags = {run.data.tags["selection.labels"] for run in driver.runs()}
    assert tags == {"oracle"}


def test_pruned_trials_end_early_and_keep_what_they_reported(tmp_path, embedded_cache):
    pruning = QUICK.replace("trials = 4", "trials = 6").replace("start_up = 2", "start_up = 5")
    pruning = pruning.replace("[protocol]", "[pruning]\ngrace_period = 1\nreduction_factor = 2\n[protocol]")
    driver = Driver(tmp_path, cache=embedded_cache, study=pruning, quick=True)
    driver.start()
    driver.wait_for(lambda: len(driver.epochs()) >= 12)
    driver.kill()  # the rungs are in the ledger, and so survive it
    code, text = driver.run()
    assert code == 0, text
    trials = driver.ledger()["search"]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned, text
    for trial in pruned:
        assert 1 <= len(trial.intermediate_values) < 3 and trial.value == trial.intermediate_values[trial.last_step]
    assert trials[0].state.name != "PRUNED", "the baseline is exempt"
    names = [f"search/{trial.number:04d}" for trial in pruned if "lineage" not in trial.user_attrs]
    runs = {run.data.tags.get("mmfa.lineage"): run for run in driver.runs()}
    assert all(runs[name].data.tags["outcome"] == "pruned" for name in names)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert "Ended early by [pruning], and counted: " in text
