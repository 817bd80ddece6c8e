"""Comparisons through the real command: arms and seeds, killed and grown, on people's own folders and on ten splits."""

import collections

import pytest
from integration_tests.driver import Driver
from mlflow.tracking import MlflowClient

from mmfa.data import catalog, replicas

pytestmark = pytest.mark.slow

STUDY = """
question = "Does the kernel matter?"
trials = 1
[fixed]
"optim.num_epochs" = 1
"optim.warmup_epochs" = 0
"data.image_height" = 32
"data.image_width" = 16
"data.num_val_ids" = 0
[arms.plain]
[arms.literal.set]
"kernel.scale" = "absolute"
"""


def check_arms(driver, *, arms, trials):
    """Every lineage trained once and recorded once, whatever was killed."""
    expected = {f"{arm}/{index:04d}" for arm in arms for index in range(trials)}
    counted = collections.Counter(name for name, _ in driver.epochs())
    assert set(counted) == {name.replace("/", "-") for name in expected} and set(counted.values()) == {1}
    runs = [run for run in driver.runs() if "mmfa.lineage" in run.data.tags]
    assert sorted(run.data.tags["mmfa.lineage"] for run in runs) == sorted(expected)
    assert {run.info.status for run in runs} == {"FINISHED"} and all("target/mAP" in run.data.metrics for run in runs)
    assert not MlflowClient(f"sqlite:///{driver.out / 'mlflow.db'}").search_registered_models()
    return runs


@pytest.fixture
def driver(tmp_path, embedded_cache):
    driver = Driver(tmp_path, cache=embedded_cache, study=STUDY)
    yield driver
    driver.end()


def test_a_comparison_on_folders_is_killed_taken_up_and_grown(driver, embedded_cache):
    folders = [
        f"folder:{catalog.load(name, data_root=None, cache_dir=embedded_cache).root}"
        for name in ("embedded-source", "embedded-target")
    ]
    pair = ["--source", folders[0], "--target", folders[1]]
    driver.start(*pair)
    driver.wait_for(lambda: len(driver.epochs()) >= 1)
    driver.kill()
    code, text = driver.run(*pair)
    assert code == 0 and "Nothing was promoted: a comparison selects nothing." in text, text
    arms = ["plain", "literal", "source_only", "target_bn"]
    check_arms(driver, arms=arms, trials=1)
    code, text = driver.run(*pair, "--trials", "2")
    assert code == 0 and "4 trainings are over, 4 to go." in text, text
    runs = check_arms(driver, arms=arms, trials=2)
    liveness = {run.data.tags["role"]: run.data.metrics.get("mmd/kernel_liveness") for run in runs}
    assert liveness["literal"] < 1e-3 < liveness["plain"] and liveness["source_only"] is None
    (page,) = driver.out.glob("tiny-*.txt")
    assert " ± " in page.read_text() and "selection.labels = none" in page.read_text()


@pytest.mark.nightly
def test_ten_splits_of_viper_are_ten_trainings(driver, tmp_path):
    replicas.write_replica("viper", tmp_path / "data")
    where = ["--data-root", str(tmp_path / "data"), "--profile", "embedded"]
    code, text = driver.run(*where, "--target", "viper", timeout=900)
    assert code == 0, text
    runs = check_arms(driver, arms=["plain", "literal", "source_only", "target_bn"], trials=10)
    assert sorted({run.data.params["data.split"] for run in runs}) == [str(split) for split in range(10)]
    assert all({"target_a_to_b/rank1", "target_b_to_a/rank1"} <= set(run.data.metrics) for run in runs)
    assert "Nadeau" in text
