"""Criteria over an old study: recomputed from what its trials left in MLflow, and each reading counted."""

import json
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
import services
from mlflow.tracking import MlflowClient
from tune_tests.probes import people, probe_of

from mmfa.config import profile
from mmfa.errors import ConfigError, MmfaError
from tune import criteria, replay
from tune.ledger import Lineage
from tune.recorder import Recorder

STUDY, EMPTY, LACKING, DAMAGED = (f"{name}-0123456789ab" for name in ("mine", "empty", "lacking", "damaged"))
SETTINGS = {"criteria.k": 30, "criteria.eps": 0.55, "criteria.min_samples": 2}
CONFIG = profile("embedded")
SPREADS = {"search/0000": 1.2, "search/0001": 0.4, "search/0002": 2.5, "search/0003": 0.8, "search/0004": 1.8}
"""The closer a trial has the images of a person together, the higher is its target mAP."""
OFFICIAL = {name: 0.5 - spread / 10 for name, spread in SPREADS.items()}
OTHERS = {
    "search/0005": "diverged",
    "search/0006": "pruned",
    "controls/target_bn-s0": "complete",
    "confirm/search-0001-s1000": "complete",
}
"""Lineages that no criterion may promote."""


def probe_for(name):
    return people(spread=SPREADS.get(name, 0.01))[0]


def lineage_of(name):
    stage, _, rest = name.partition("/")
    if rest.isdigit():
        trial = optuna.trial.create_trial(state=optuna.trial.TrialState.COMPLETE, value=0.5)
        return Lineage(stage, int(rest), (trial,))
    attrs = {"name": rest, "role": rest.rpartition("-")[0], "config": CONFIG.to_json()}
    trial = optuna.trial.create_trial(state=optuna.trial.TrialState.COMPLETE, value=0.5, user_attrs=attrs)
    return Lineage(stage, 0, (trial,))


def record_of(name, outcome):
    own = {"target_val/mAP": OFFICIAL.get(name, 0.9) - 0.1, "target/mAP": OFFICIAL.get(name, 0.9)}
    own |= {"source_val/mAP": 0.6, "cluster/silhouette": -0.5, "pseudo/xcam_mAP": 0.01}
    history = [{"epoch": 1, "num_epochs": 1, "ended_at": 1001.0, "metrics": {"target_val/mAP": own["target_val/mAP"]}}]
    more = {"config": CONFIG.flatten(), "attempt": 1, "ended_at": 1010.0, "reason": "", "test": None}
    return {"outcome": outcome, "history": history, "metrics": own if outcome == "complete" else {}, **more}


def write_study(folder, name, *, trials, params):
    """Write a study as its driver does, with the same recorder."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name("pair")
    experiment = found.experiment_id if found else client.create_experiment("pair", (folder / "artifacts").as_uri())
    recorder = Recorder(
        client,
        experiment_id=experiment,
        study_id=name,
        tags={"objective": "target_val/mAP", "selection.labels": "target_val"},
        folder_of=lambda trial: folder / "storage" / trial,
        check=lambda: None,
    )
    recorder.open(name=name, params=params, note="why")
    for trial, outcome in trials.items():
        recorder.trial_started(lineage_of(trial), CONFIG)
        recorder.trial_finished(trial, outcome, record_of(trial, outcome))
    assert recorder.flush(seconds=120) and not recorder.refused
    recorder.finish_study(metrics={}, tags={}, artifacts={})
    assert recorder.close()
    return recorder.study_run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a folder in which some studies were run."""
    folder = tmp_path_factory.mktemp("written")
    trials = {**dict.fromkeys(SPREADS, "complete"), **OTHERS}
    for name in trials:
        probe_for(name).save(folder / "storage" / name / "probe.npz")
    write_study(folder, STUDY, trials=trials, params=SETTINGS)
    write_study(folder, EMPTY, trials={"search/0005": "diverged", "controls/target_bn-s0": "complete"}, params=SETTINGS)
    (folder / "storage" / "search" / "0001" / "probe.npz").unlink()
    collapsed = probe_of(np.full((192, 16), np.nan), people()[0].camids_N)
    collapsed.save(folder / "storage" / "search" / "0002" / "probe.npz")
    write_study(folder, LACKING, trials=dict.fromkeys(SPREADS, "complete"), params=SETTINGS)
    (folder / "storage" / "search" / "0003" / "probe.npz").write_bytes(b"PK no probe")
    write_study(folder, DAMAGED, trials=dict.fromkeys(SPREADS, "complete"), params=SETTINGS)
    return folder


@pytest.fixture
def out(written, tmp_path):
    """A copy of the studies' databases, whose artifacts are those that were written once."""
    shutil.copy(written / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def run(out, capsys, monkeypatch):
    """Replay a study; return what was printed and what was written."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments, study=STUDY):
        assert replay.main(["--study-run", study, "--out", str(out), *map(str, arguments)]) == 0
        name = study if "-" in study else STUDY
        return capsys.readouterr().out, json.loads((out / f"{name}.replay.json").read_text())

    return call


def client_of(out):
    return MlflowClient(f"sqlite:///{out / 'mlflow.db'}")


def run_id(out, name="", study=STUDY):
    client = client_of(out)
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`mmfa.study` = '{study}'")
    return next(run.info.run_id for run in runs if run.data.tags.get("mmfa.lineage", "") == name)


def regrets(result):
    return {row["criterion"]: row for row in result["regret"]}


def rows_of(text):
    return {line.split()[0]: line.split() for line in text.splitlines() if line.split()}


def test_the_table_and_the_file(run):
    text, result = run()
    assert list(result["metrics"]) == list(SPREADS), "no control, no confirmation, none that diverged or was pruned"
    for name, metrics in result["metrics"].items():
        fresh = criteria.compute(probe_for(name), k=30, eps=0.55, min_samples=2)
        assert {key: metrics[key] for key in fresh} == pytest.approx(fresh), "and not what was recorded then"
        assert (metrics["target/mAP"], metrics["source_val/mAP"]) == (pytest.approx(OFFICIAL[name]), 0.6)
    rows = regrets(result)
    assert next(iter(rows)) == "target_val/mAP" and list(rows)[-2:] == ["ensv/rank", "target/mAP"]
    best = rows["target_val/mAP"]
    assert (best["promoted"], best["n"], best["cost"]) == ("search/0001", 5, 0.0) and best["rho"] == pytest.approx(1)
    shares = criteria.ensv({name: probe_for(name) for name in SPREADS})
    assert rows["ensv/rank"]["promoted"] == max(shares, key=shares.get)
    assert rows["pseudo/xcam_mAP"]["promoted"] == "search/0001"
    printed = rows_of(text)
    assert printed["target_val/mAP"] == ["target_val/mAP", "5", "search/0001", "46.0", "0.0", "+1.00"]
    assert printed["source_val/mAP"] == ["source_val/mAP", "5", "search/0000", "38.0", "8.0", "–"]
    assert all(f"{name} …" in text for name in SPREADS)
    assert f"{STUDY}.replay.json. Nothing was trained; this reading of the test results is counted" in " ".join(
        text.split()
    )


def test_the_study_by_the_id_of_its_run(run, out):
    named, by_name = run()
    _, by_id = run(study=run_id(out))
    assert by_id == by_name and STUDY in named
    _, by_uri = run("--tracking-uri", f"sqlite:///{out / 'mlflow.db'}")
    assert by_uri == by_name


OWN = """
import numpy as np

def spread(probe):
    assert not hasattr(probe, "pids_N")
    return -float(np.linalg.norm(probe.embeddings_ND.astype(np.float64).std(axis=0)))

def nothing(probe):
    return float("nan")

def whole(probe):
    return len(probe.camids_N)

def fails(probe):
    raise RuntimeError("too few\\nimages")

number = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_criterion_of_ones_own(run, own):
    text, result = run("--criterion", f"{own}:spread", "--criterion", f"{own}:whole")
    rows = regrets(result)
    assert list(rows)[:3] == ["target_val/mAP", "spread", "whole"]
    assert rows["spread"]["promoted"] == "search/0001" and rows["spread"]["rho"] == pytest.approx(1)
    assert rows_of(text)["spread"][:3] == ["spread", "5", "search/0001"]
    assert {metrics["whole"] for metrics in result["metrics"].values()} == {192.0} and rows["whole"]["rho"] is None
    _, result = run("--criterion", f"{own}:nothing")
    assert "nothing" not in regrets(result), "a criterion that is nan everywhere tells nothing"


@pytest.mark.parametrize(
    ("arguments", "changed", "same"),
    [
        (["--k", 8], "cluster/silhouette", "pseudo/xcam_mAP"),
        (["--eps", 0.2], "pseudo/xcam_mAP", "cluster/silhouette"),
        (["--min-samples", 8], "pseudo/xcam_mAP", "cluster/silhouette"),
    ],
)
def test_other_settings_give_other_values(run, arguments, changed, same):
    (_, before), (_, after) = run(), run(*arguments)

    def of(result, name):
        return [metrics[name] for metrics in result["metrics"].values()]

    assert of(after, changed) != of(before, changed) and of(after, same) == of(before, same)


def test_settings_that_are_not_given_are_the_studys(run):
    plain = run()[1]["metrics"]
    assert run("--min-samples", 2, "--eps", 0.55, "--k", 30)[1]["metrics"] == plain
    for other in (("--min-samples", 4), ("--eps", 0.6), ("--k", 40)):
        assert run(*other)[1]["metrics"] != plain


def readings(out, study=STUDY):
    """Return the lines of the artifact that counts replays."""
    uri = client_of(out).get_run(run_id(out, study=study)).info.artifact_uri
    path = Path(uri.removeprefix("file://")) / replay.READINGS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_replay_is_counted(run, out):
    before = readings(out)
    for number in (1, 2):
        run()
        assert len(readings(out)) == len(before) + number
    found = readings(out)
    assert found[: len(before)] == before, "what was counted stays"
    for line in found[-2:]:
        assert (line["why"], line["trial"]) == ("replay of criteria over 5 trials; chose nothing", "")
    assert found[-2]["at"] < found[-1]["at"]


def test_trials_without_a_probe_or_with_one_that_is_not_finite(run, own):
    """They keep what was recorded, and criteria that need the probe have a smaller n."""
    _, result = run("--criterion", f"{own}:whole", study=LACKING)
    assert result["metrics"]["search/0001"]["cluster/silhouette"] == -0.5
    assert "whole" not in result["metrics"]["search/0001"] and result["metrics"]["search/0002"]["probe/finite"] == 0
    rows = regrets(result)
    assert (rows["target_val/mAP"]["n"], rows["whole"]["n"], rows["ensv/rank"]["n"]) == (5, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--study-run", "gone-0123456789ab"],
            "has no study 'gone-0123456789ab'; `ls OUT` shows the names of results.",
        ),
        (["--study-run", "it's"], 'has no study "it\'s"'),
        (["--study-run", "f" * 32], "--study-run: MLflow at sqlite:///"),
        (["--study-run", EMPTY], f"{EMPTY} has no finished trial; replay a study that has some."),
        (["--study-run", DAMAGED], "search/0003: a probe must be the file that was written, but "),
        (
            ["--criterion", "spread"],
            "--criterion must be FILE.py:FUNCTION with a file that is there, but got 'spread'.",
        ),
        (["--criterion", "gone.py:spread"], "with a file that is there, but got 'gone.py:spread'."),
        (["--criterion", "{own}:gone"], "own.py defines no 'gone'."),
        (["--criterion", "{own}:number"], "--criterion: 'number' of {own} is not a function."),
        (["--criterion", "{broken}:spread"], "broken.py cannot be run: ZeroDivisionError: division by zero."),
        (["--criterion", "{own}:fails"], "search/0000: a criterion failed: too few."),
        (["--k", "1"], "--k must be 2 or more, --eps between 0 and 1, --min-samples 1 or more."),
        (["--eps", "0"], "--eps between 0 and 1"),
        (["--eps", "1"], "--eps between 0 and 1"),
        (["--min-samples", "-1"], "--min-samples 1 or more."),
        (["--min-samples", "0"], "--min-samples 1 or more."),
        (["--k", "0"], "--k must be 2 or more"),
        (["--k", "many"], "argument --k: invalid int value: 'many'"),
        (["--criterio", "x"], "'--criterio' is not an option; did you mean '--criterion'?"),
    ],
)
def test_bad_input_gets_one_sentence(out, own, arguments, sentence):
    (out / "broken.py").write_text("1 / 0\n")
    files = {"own": own, "broken": out / "broken.py"}
    given = ["--study-run", STUDY, "--out", str(out), *(text.format(**files) for text in arguments)]
    before = {name: readings(out, name) for name in (STUDY, EMPTY, DAMAGED)}
    with pytest.raises(MmfaError) as raised:
        replay.main(given)
    assert sentence.format(**files) in str(raised.value) and "\n" not in str(raised.value).strip()
    assert {name: readings(out, name) for name in before} == before, "nothing was shown, and nothing is counted"
    assert not list(out.glob("*.replay.json"))


def test_a_trials_run_is_no_study(out):
    wanted = run_id(out, "search/0001")
    with pytest.raises(ConfigError, match=f"--study-run: {wanted} is not the run of a study"):
        replay.main(["--study-run", wanted, "--out", str(out)])
    client = client_of(out)
    other = client.create_run(client.create_experiment("other", (out / "other").as_uri())).info.run_id
    with pytest.raises(ConfigError, match="is not the run of a study"):
        replay.main(["--study-run", other, "--out", str(out)])


def test_a_folder_without_studies(tmp_path):
    with pytest.raises(ConfigError, match=r"mlflow.db is not there; give the study's --out, or --tracking-uri"):
        replay.main(["--study-run", STUDY, "--out", str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()


def test_no_secret_is_taken_or_told(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # else MLflow asks for 100 s
    for uri in ("postgresql://mmfa:planted@db/mlflow", "http://planted@127.0.0.1:5000"):
        with pytest.raises(MmfaError, match="--tracking-uri must not hold a password") as raised:
            replay.main(["--study-run", STUDY, "--out", str(tmp_path), "--tracking-uri", uri])
        assert "planted" not in str(raised.value)
    nobody = f"postgresql+psycopg://mmfa@127.0.0.1:{services.free_port()}/mlflow"
    with pytest.raises(ConfigError, match="--study-run: MLflow at .* says: .*refused"):
        replay.main(["--study-run", STUDY, "--out", str(tmp_path), "--tracking-uri", nobody])


def test_a_study_must_be_named(out):
    with pytest.raises(ConfigError, match="the following arguments are required: --study-run"):
        replay.main(["--out", str(out)])
