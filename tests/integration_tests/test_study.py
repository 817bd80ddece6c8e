"""One whole study through the real command: what it leaves in the ledger, in MLflow and in the registry."""

import json
import re
import subprocess
import sys

import mlflow
import numpy as np
import pytest
from integration_tests.driver import QUICK, ROOT, Driver, check_exactly_once
from mlflow.tracking import MlflowClient

from mmfa.checkpoint import load_model
from mmfa.data import catalog
from mmfa.data.store import build, open_store
from mmfa.evaluate import embed
from mmfa.hardware import Hardware
from tune import cli, environment

pytestmark = pytest.mark.slow
NAME = "mmfa-embedded-source-to-embedded-target"


@pytest.fixture(scope="module")
def study(tmp_path_factory, embedded_cache):
    driver = Driver(tmp_path_factory.mktemp("study"), cache=embedded_cache, study=QUICK)
    code, text = driver.run("--trials", "3")
    assert code == 0, text
    return driver, text


@pytest.fixture
def client(study):
    return MlflowClient(f"sqlite:///{study[0].out / 'mlflow.db'}")


def test_the_result_is_honest(study):
    driver, text = study
    check_exactly_once(driver, trials=3, epochs=3, confirmations=6)
    (file,) = driver.out.glob("tiny-????????????.json")
    outcome = json.loads(file.read_text())
    rows = {row["name"]: row for row in outcome["rows"]}
    allowed = [row for row in rows.values() if row["arm"] == "search" and row["name"] not in outcome["vetoed"]]
    best = max(allowed, key=lambda row: row["value"])
    assert outcome["best"] == best["name"]
    assert best["difference"] == pytest.approx(best["value"] - rows["search/0000"]["value"])
    assert f"{100 * rows['search/0000']['value']:.1f}" in text
    for sentence in ("Asked:", "Found:", "How sure:", "Labels:", "Next:", "selection.labels = target_val",
                     "source only (control)", "target in BN (control)", "over n = 2 and 2 fresh seeds"):  # fmt: skip
        assert sentence in text


def test_the_verdict_is_of_fresh_seeds_and_every_reading_is_counted(study):
    driver, text = study
    verdict = json.loads((driver.out / "verdict.json").read_text())
    (one,) = verdict["judgements"]
    assert f"{one['word']}: " in text and one["against"] == "baseline"
    confirmed = {}
    for file in driver.out.glob("storage/*/confirm-*/result.json"):
        record = json.loads(file.read_text())
        seed = int(record["config"]["run.seed"])
        assert seed in (1000, 1001)
        confirmed.setdefault(record["name"].rpartition("-s")[0], []).append(record["metrics"]["target/mAP"])
    means = {name.removeprefix("confirm/"): sum(values) / 2 for name, values in confirmed.items()}
    assert means.keys() == {"baseline", one["candidate"], f"{one['candidate']}-matched"}
    assert one["contrast"]["delta"] == pytest.approx(means[one["candidate"]] - means["baseline"])
    assert one["alignment"]["delta"] == pytest.approx(means[one["candidate"]] - means[f"{one['candidate']}-matched"])
    low, high = one["contrast"]["interval"]
    assert low < one["contrast"]["delta"] < high
    # 5 trials and controls, 6 confirmations, the verdict, the regret table, the pictures
    assert verdict["readings"]["total"] == 14 and "They were read 14 times" in text
    assert verdict["registered"]["protocol"]["delta_min"] == 1.0
    assert verdict["registered"]["at"] < verdict["written_at"]


def test_runs_carry_what_a_reviewer_asks(study, client):
    runs = study[0].runs()
    (parent,) = [run for run in runs if "mmfa.lineage" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert len(children) == 11
    for run in children:
        tags, metrics = run.data.tags, run.data.metrics
        assert tags["mlflow.parentRunId"] == parent.info.run_id and tags["selection.labels"] == "target_val"
        assert {"git.commit", "hardware", "version.torch", "data.fingerprint", "config.fingerprint"} <= set(tags)
        assert {"target/mAP", "target/rank1", "target_val/mAP", "source_val/mAP", "train/loss_total"} <= set(metrics)
        assert [m.step for m in client.get_metric_history(run.info.run_id, "target_val/mAP")] == [1, 2, 3]
        assert len(client.get_metric_history(run.info.run_id, "target/mAP")) == 1, "the official split is read once"
        cmc = [m.value for m in client.get_metric_history(run.info.run_id, "cmc/target")]
        assert len(cmc) == 50 and cmc == sorted(cmc) and cmc[0] == metrics["target/rank1"]
    by_role = {run.data.tags["role"]: run for run in children}
    assert {"cluster/silhouette", "pseudo/xcam_mAP", "probe/effective_rank"} <= set(by_role["candidate"].data.metrics)
    assert "probe.npz" in [file.path for file in client.list_artifacts(by_role["candidate"].info.run_id)]
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"verdict.json", "outcome.json", "result.txt", "study.json", "test_label_readings.json"} <= kept
    assert {"report.html", "study.parquet", "report.json"} <= kept
    assert by_role["source_only"].data.params["data.use_target"] == "False"
    assert "mmd/kernel_liveness" in by_role["baseline"].data.metrics
    assert "mmd/kernel_liveness" not in by_role["source_only"].data.metrics


def test_the_page_is_made_again_from_mlflow_and_the_ledger(study, tmp_path):
    driver, _ = study
    files = [driver.out / "report.html", driver.out / "study.parquet"]
    before = [file.read_bytes() for file in files]
    assert b"Pictures of the method" in before[0]
    (result,) = driver.out.glob("tiny-????????????.json")
    kept = [f"--ledger=sqlite:///{driver.out / 'ledger.db'}", f"--tracking-uri=sqlite:///{driver.out / 'mlflow.db'}"]
    assert cli.main(["report", "--study-run", result.stem, "--out", str(tmp_path / "empty"), *kept]) == 0
    assert [(tmp_path / "empty" / file.name).read_bytes() for file in files] == before, "pictures and all"


def test_the_candidate_embeds_as_the_trial_did(study, client, embedded_cache):
    driver, _ = study
    version = client.get_model_version_by_alias(NAME, "candidate")
    (file,) = driver.out.glob("tiny-????????????.json")
    best = json.loads(file.read_text())["best"]
    assert version.tags["mmfa.lineage"] == best
    dataset = catalog.load("embedded-target", data_root=None, cache_dir=embedded_cache)
    images = open_store(build(dataset, cache_dir=embedded_cache, height=64, width=32)).images[:5]
    uri = f"sqlite:///{driver.out / 'mlflow.db'}"
    code = (
        "import mlflow, numpy, sys; mlflow.set_tracking_uri(sys.argv[1]);"
        "model = mlflow.pyfunc.load_model(sys.argv[2]);"
        "numpy.save(sys.argv[4], model.predict(numpy.load(sys.argv[3])))"
    )
    given, got = driver.out / "given.npy", driver.out / "got.npy"
    np.save(given, images)
    command = [sys.executable, "-c", code, uri, f"models:/{NAME}@candidate", str(given), str(got)]
    subprocess.run(command, check=True, cwd=driver.out, timeout=400)
    (export,) = driver.out.glob(f"storage/*/{best.replace('/', '-')}/export")
    model, config = load_model(export)
    hardware = Hardware.choose("cpu", config.run)
    model.to(memory_format=hardware.memory_format)
    expected = embed(model, images, np.arange(5), height=32, width=16, hardware=hardware).numpy()
    np.testing.assert_array_equal(np.load(got), expected)
    with environment.mlflow_at(uri), pytest.raises(Exception, match="uint8"):
        mlflow.pyfunc.load_model(f"models:/{NAME}@candidate").predict(images.astype(np.float32))


def test_quick_confirms_nothing_says_so_and_goes_on_from_there(study, client):
    """Another seed of the same question: worse, quick, then whole and with more seeds."""
    driver, _ = study
    before = client.get_model_version_by_alias(NAME, "candidate").version
    other = ["--trials", "2", "--set", "optim.learning_rate=0.0001", "--seed", "1"]
    code, text = driver.run(*other, "--quick")
    assert code == 0 and "Nothing is confirmed (--quick)" in text, text
    stays = rf"Nothing was promoted: .*@candidate stays version {before} of tiny-\w+: it"
    assert re.search(stays, text) and "4 to go" in text, text
    code, text = driver.run(*other, "--promote", "never")
    assert code == 0 and "4 trainings are over" in text and "search/" not in text.split("To be confirmed")[0], text
    assert "Nothing was promoted (--promote never)" in text
    assert client.get_model_version_by_alias(NAME, "candidate").version == before


def test_a_study_grows_and_never_shrinks(study):
    driver, _ = study
    code, text = driver.run("--trials", "2")
    assert code == 2 and "may only grow: this study has 3, but --trials is 2" in text
    code, text = driver.run("--trials", "3", "--confirm-seeds", "3")
    assert code == 0 and "11 trainings are over, 3 to go" in text and "p was multiplied by 6" in text, text
    code, text = driver.run("--trials", "3", "--confirm-seeds", "2")
    assert code == 2 and "may only grow: this study has 3, but --confirm-seeds is 2" in text


def test_a_baseline_that_diverges_ends_the_study_with_a_sentence(tmp_path, embedded_cache):
    driver = Driver(tmp_path, cache=embedded_cache)
    explode = ["--set", "optim.learning_rate=1e30", "--set", "optim.clip_norm=1e30"]
    for _ in range(2):
        code, text = driver.run(*explode)
        assert code == 1 and "the baseline diverged (epoch 1, step " in text and "Traceback" not in text, text
    diverged = [trial for trial in driver.ledger()["search"] if trial.user_attrs.get("outcome") == "diverged"]
    assert diverged[0].number == 0
    assert not [trial for trial in driver.ledger()["search"] if trial.user_attrs.get("lineage") == 0], "tried again"
    assert {run.info.status for run in driver.runs()} <= {"FAILED", "KILLED", "FINISHED"}


def test_a_truncated_image_is_named_and_nothing_is_half_built(tmp_path, embedded_cache):
    dataset = catalog.load("embedded-target", data_root=None, cache_dir=embedded_cache)
    mine = tmp_path / "data" / "Market-1501-v15.09.15"
    for file in dataset.root.rglob("*"):
        if file.is_file():
            copy = mine / file.relative_to(dataset.root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    victim = sorted((mine / "bounding_box_train").glob("*.jpg"))[100]
    victim.write_bytes(victim.read_bytes()[:300])
    cache = tmp_path / "cache"
    command = [sys.executable, str(ROOT / "tune" / "run_study.py"), "--study", "smoke", "--profile", "embedded"]
    command += ["--data-root", str(tmp_path / "data"), "--target", "market1501", "--source", "market1501"]
    command += ["--cache-dir", str(cache), "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 2 and victim.name in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
    assert not list(cache.rglob("*.arrow")) and not list((tmp_path / "out").glob("*.db"))
