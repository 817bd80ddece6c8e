"""MLflow is written once, whatever dies in between."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import optuna
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.tracking import MlflowClient

from mmfa.config import profile
from tune.lease import LeaseLostError
from tune.ledger import Lineage
from tune.recorder import Recorder

CONFIG = profile("embedded")


def lineage(index):
    trial = optuna.trial.create_trial(state=optuna.trial.TrialState.COMPLETE, value=0.5)
    return Lineage("search", index, (trial,))


def record(index, outcome="complete", epochs=2, **given):
    history = [
        {"epoch": e, "num_epochs": epochs, "ended_at": 1000.0 + e, "metrics": {"target_val/mAP": 0.1 * e + index}}
        for e in range(1, epochs + 1)
    ]
    test, metrics = None, history[-1]["metrics"]
    if outcome == "complete":
        retrieval = {"target": {"mAP": 0.4, "cmc": [0.2, 0.5, 0.75]}, "target_a_to_b": {"mAP": 0.3, "cmc": [0.1, 0.4]}}
        test = {"retrieval": retrieval, "attributes": {"attribute_accuracy": 0.8}}
        metrics = metrics | {"target/mAP": 0.4, "target_a_to_b/mAP": 0.3, "target/attribute_accuracy": 0.8}
    more = {"config": json.loads(CONFIG.to_json()), "attempt": 1, "started_at": 999.5, "ended_at": 1010.0} | given
    return {"outcome": outcome, "reason": "", "history": history, "test": test, "metrics": metrics, **more}


def recorder(uri, folder, check=lambda: None, opened=None, **more):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("pair")
    experiment = found.experiment_id if found else client.create_experiment("pair", (folder / "artifacts").as_uri())
    result = Recorder(
        client,
        experiment_id=experiment,
        study_id="study-1",
        tags={"data": "here"},
        folder_of=lambda name: folder / name,
        check=check,
        **more,
    )
    result.open(name="study-1", params={"seed": 0}, note="why", **(opened or {}))
    return result


def runs(uri):
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("pair").experiment_id])
    return {run.data.tags.get("mmfa.lineage", ""): run for run in found}, len(found)


def play(writer, index, **kwargs):
    item, entry = lineage(index), record(index, **kwargs)
    writer.trial_started(item, CONFIG)
    for report in entry["history"]:
        writer.trial_epoch(item.name, report)
    writer.trial_finished(item.name, entry["outcome"], entry)


def test_a_study_as_runs(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    export = tmp_path / "search" / "0000" / "export"
    export.mkdir(parents=True)
    (export / "weights.safetensors").write_bytes(b"x")
    writer = recorder(uri, tmp_path)
    play(writer, 0)
    play(writer, 1, outcome="diverged")
    assert writer.flush(seconds=60)
    writer.finish_study(metrics={"best": 1.0}, tags={"t": "v"}, artifacts={"outcome.json": {"a": 1}})
    assert writer.close()
    found, number = runs(uri)
    assert number == 3
    assert {name: run.info.status for name, run in found.items()} == {
        "": "FINISHED",
        "search/0000": "FINISHED",
        "search/0001": "FAILED",
    }
    run = found["search/0000"]
    assert run.data.tags["mlflow.parentRunId"] == found[""].info.run_id
    assert (run.data.tags["role"], run.data.tags["data"]) == ("baseline", "here")
    assert run.data.params["loss.lambda_attr"] == "0.1" and len(run.data.params) == len(CONFIG.flatten())
    official = {name: value for name, value in run.data.metrics.items() if not name.startswith("cmc/")}
    assert official == {
        "target_val/mAP": 0.2, "target/mAP": 0.4, "target_a_to_b/mAP": 0.3, "target/attribute_accuracy": 0.8,
    }  # fmt: skip
    client = MlflowClient(uri)
    assert [m.value for m in client.get_metric_history(run.info.run_id, "cmc/target")] == [0.2, 0.5, 0.75]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "cmc/target_a_to_b")] == [1, 2]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {
        "checkpoint",
        "config.json",
        "retrieval_target.json",
        "retrieval_target_a_to_b.json",
    }


def setting(lineage, config):
    return {"λ1": config.loss.lambda_attr, "model.pooling": config.model.pooling}


def test_what_comes_first_in_mlflow_is_what_matters(tmp_path):
    """It sorts by ASCII: capitals before the fields of the config and before all other metrics."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    writer = recorder(uri, tmp_path, objective="target_val/mAP", setting=setting, logarithmic=["λ1"])
    play(writer, 0)
    assert writer.close()
    run = runs(uri)[0]["search/0000"]
    assert sorted(run.data.metrics)[0] == "Objective"
    assert sorted(run.data.params)[:2] == ["Setting log10 λ1", "Setting model.pooling"]
    assert run.data.params["Setting log10 λ1"] == "-1.0"
    assert run.data.params["Setting λ1"] == "0.1" and run.info.run_name == "search/0000 λ1=0.1 pooling=max"
    found = MlflowClient(uri).get_metric_history(run.info.run_id, "Objective")
    assert [(metric.step, metric.value) for metric in found] == [(1, 0.1), (2, 0.2)] == history_of(uri, "search/0000")
    link = f"[study-1](#/experiments/{run.info.experiment_id}/runs/{run.data.tags['mlflow.parentRunId']})"
    assert run.data.tags["mlflow.note.content"] == (
        f"**search/0000** of {link}: the baseline, with which all others are compared; λ1 = 0.1, model.pooling = max."
    )


def test_an_objective_that_is_known_at_the_end_only(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    writer = recorder(uri, tmp_path, objective="label_free/score")
    item, entry = lineage(1), record(1)
    writer.trial_started(item, CONFIG)
    for report in entry["history"]:
        writer.trial_epoch(item.name, report)
    writer.trial_finished(item.name, "complete", {**entry, "metrics": entry["metrics"] | {"label_free/score": -0.5}})
    assert writer.close()
    found = MlflowClient(uri).get_metric_history(runs(uri)[0][item.name].info.run_id, "Objective")
    assert [(metric.step, metric.value) for metric in found] == [(2, -0.5)]


def dataset(name, context):
    source = json.dumps({"uri": f"stores/{name}.arrow"})
    return DatasetInput(Dataset(name, f"{name}-digest", "local", source), [InputTag("mlflow.data.context", context)])


def test_the_study_s_own_run(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    opened = {
        "datasets": [dataset("here", "source"), dataset("there", "target")],
        "files": {"study.toml": "question = '?'\n"},
        "conclude": lambda artifacts: f"It is {artifacts['verdict.json']['word']}.",
    }
    for _ in range(2):
        writer = recorder(uri, tmp_path, opened=opened)
        before = MlflowClient(uri).get_run(writer.study_run)
        assert before.data.tags["mlflow.note.content"] == "why"
        writer.finish_study(metrics={}, tags={"best": "none"}, artifacts={"verdict.json": {"word": "BEATS"}})
        assert writer.close()
    run = runs(uri)[0][""]
    assert run.data.tags["mlflow.note.content"] == "It is BEATS." and run.data.tags["best"] == "none"
    inputs = {
        (found.dataset.name, found.dataset.digest, tag.value)
        for found in run.inputs.dataset_inputs
        for tag in found.tags
        if tag.key == "mlflow.data.context"
    }
    assert inputs == {("here", "here-digest", "source"), ("there", "there-digest", "target")}
    assert len(run.inputs.dataset_inputs) == 2, "the second time added none"
    assert {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)} == {"study.toml", "verdict.json"}


def test_writing_everything_again_adds_nothing(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for _ in range(3):
        writer = recorder(uri, tmp_path, objective="target_val/mAP", setting=setting)
        play(writer, 0)
        assert writer.close()
    found, number = runs(uri)
    assert number == 2
    for name in ("target_val/mAP", "Objective"):
        history = MlflowClient(uri).get_metric_history(found["search/0000"].info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.2)]


def test_catch_up_records_what_is_missing_and_only_that(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    first = recorder(uri, tmp_path)
    play(first, 0)
    first.trial_started(lineage(1), CONFIG)  # this driver dies here
    assert first.close(interrupted=True)
    assert runs(uri)[0]["search/0001"].info.status == "KILLED"
    second = recorder(uri, tmp_path)
    over = [(lineage(index), CONFIG) for index in range(3)]
    assert second.catch_up(over, lambda name: record(int(name[-1]))) == 2
    assert second.close()
    found, number = runs(uri)
    assert number == 4 and found["search/0002"].info.status == found["search/0001"].info.status == "FINISHED"
    late = found["search/0002"].info
    assert (late.start_time, late.end_time) == (999500, 1010000), "as it was trained, not as it was recorded"


def test_a_driver_without_its_lease_writes_nothing(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def lost():
        raise LeaseLostError("taken over")

    writer = recorder(uri, tmp_path, check=lost)
    play(writer, 0)
    assert not writer.close(seconds=5)
    with pytest.raises(LeaseLostError):
        writer.finish_study(metrics={}, tags={}, artifacts={})
    found, number = runs(uri)
    assert number == 1 and found[""].info.status == "RUNNING"


def test_of_two_runs_of_one_trial_the_older_one_stays(tmp_path):
    """A server that wrote a run and lost the answer is asked again, and writes another."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    writer = recorder(uri, tmp_path)
    play(writer, 0)
    assert writer.close()
    (first, _) = runs(uri)
    kept = first["search/0000"]
    MlflowClient(uri).create_run(kept.info.experiment_id, tags=dict(kept.data.tags))
    assert runs(uri)[1] == 3
    again = recorder(uri, tmp_path)
    assert again.run_of("search/0000") == kept.info.run_id
    assert again.close() and runs(uri)[1] == 2


def test_what_mlflow_refuses_for_good_is_told_and_passed_over(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    writer = recorder(uri, tmp_path)
    item, odd = lineage(0), record(0)
    odd["history"][0]["metrics"]["a?b"] = 0.5
    writer.trial_started(item, CONFIG)
    for report in odd["history"]:
        writer.trial_epoch(item.name, report)
    play(writer, 1)
    assert writer.flush(seconds=60) and writer.close()
    assert len(writer.refused) == 1 and "a?b" in writer.refused[0]
    assert runs(uri)[0]["search/0001"].info.status == "FINISHED"


class Gate:
    """Lets the recorder's thread through where it is told to, and counts what it writes."""

    def __init__(self):
        self.open, self.calls = threading.Event(), []

    def check(self):
        self.open.wait()

    def count(self, client):
        for name in ("create_run", "log_batch", "set_terminated"):
            call = getattr(client, name)
            setattr(client, name, lambda *a, name=name, call=call, **k: self.calls.append(name) or call(*a, **k))


def history_of(uri, name):
    client, run = MlflowClient(uri), runs(uri)[0][name]
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "target_val/mAP")]


def test_what_waits_behind_the_driver_is_written_in_fewer_calls(tmp_path):
    uri, gate = f"sqlite:///{tmp_path / 'mlflow.db'}", Gate()
    writer = recorder(uri, tmp_path, check=gate.check)
    gate.count(writer._client)
    play(writer, 0)
    assert writer.backlog >= 3
    gate.open.set()
    assert writer.flush(seconds=60)
    assert gate.calls == ["create_run", "log_batch", "log_batch", "set_terminated"], "epochs came with the end"
    gate.calls.clear()
    item, entry = lineage(1), record(1)
    writer.trial_started(item, CONFIG)
    writer.trial_epoch(item.name, entry["history"][0])
    assert writer.flush(seconds=60)
    assert history_of(uri, item.name) == [(1, 1.1)], "an epoch is written when it is over"
    writer.trial_finished(item.name, "complete", entry)
    assert writer.flush(seconds=60)
    assert gate.calls == ["create_run", *["log_batch"] * 3, "set_terminated"] and writer.close()
    assert history_of(uri, item.name) == [(1, 1.1), (2, 1.2)] and history_of(uri, "search/0000") == [(1, 0.1), (2, 0.2)]


def test_a_long_training_that_waited_is_written_in_full(tmp_path):
    """MLflow refuses more than 1,000 metrics in a call; its client splits them."""
    uri, gate = f"sqlite:///{tmp_path / 'mlflow.db'}", Gate()
    writer = recorder(uri, tmp_path, check=gate.check)
    item, entry = lineage(0), record(0, epochs=60)
    for report in entry["history"]:
        report["metrics"] |= {f"train/{number}": 0.5 for number in range(40)}
    writer.trial_started(item, CONFIG)
    writer.trial_finished(item.name, "complete", entry)
    gate.open.set()
    assert writer.flush(seconds=60) and writer.close() and not writer.refused
    client, run = MlflowClient(uri), writer.run_of(item.name)
    assert [len(client.get_metric_history(run, f"train/{number}")) for number in range(40)] == [60] * 40


def test_the_run_that_is_written_to_stays(tmp_path):
    """MLflow's client may ask twice for a run, and then the first, whose answer came too late, is known to nobody."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    writer = recorder(uri, tmp_path)
    item, entry = lineage(0), record(0)
    writer.trial_started(item, CONFIG)
    writer.trial_epoch(item.name, entry["history"][0])
    assert writer.flush(seconds=60)
    young = runs(uri)[0][item.name]
    old = MlflowClient(uri).create_run(young.info.experiment_id, start_time=1, tags=dict(young.data.tags))
    assert writer._learned(), "as after a call that failed"
    writer.trial_finished(item.name, "complete", entry)
    assert writer.flush(seconds=60) and writer.run_of(item.name) == young.info.run_id
    assert runs(uri)[1] == 2 and history_of(uri, item.name) == [(1, 0.1), (2, 0.2)]
    for lineage_name in ("", item.name):
        known = MlflowClient(uri).get_run(writer.study_run if not lineage_name else writer.run_of(lineage_name))
        MlflowClient(uri).create_run(known.info.experiment_id, start_time=1, tags=dict(known.data.tags))
    writer.finish_study(metrics={}, tags={}, artifacts={})
    assert writer.close() and runs(uri)[1] == 2, "none is left open beside it when the study ends"
    assert {run.info.status for run in runs(uri)[0].values()} == {"FINISHED"}
    assert MlflowClient(uri).get_run(old.info.run_id).info.lifecycle_stage == "deleted"


def test_a_param_that_other_code_wrote_otherwise_stays(tmp_path):
    """MLflow refuses another value; a study that goes on with newer code must not be refused with it."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    first = recorder(uri, tmp_path, setting=lambda lineage, config: {"λ1": 0.123456})
    first.trial_started(lineage(0), CONFIG)
    assert first.close(interrupted=True)
    assert runs(uri)[0]["search/0000"].data.params["Setting λ1"] == "0.123"
    second = recorder(uri, tmp_path, setting=lambda lineage, config: {"λ1": 0.2, "λ2": 3.0})
    play(second, 0)
    assert second.close() and not second.refused
    run = runs(uri)[0]["search/0000"]
    assert run.info.status == "FINISHED"
    assert (run.data.params["Setting λ1"], run.data.params["Setting λ2"]) == ("0.123", "3.0")


def test_flush_waits_for_as_long_as_something_is_written(tmp_path):
    gate = Gate()
    gate.check = lambda: time.sleep(0.4)
    writer = recorder(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, check=gate.check)
    for index in range(3):
        play(writer, index)
    started = time.monotonic()
    assert writer.flush(seconds=3) and time.monotonic() - started > 3, "12 calls of 0.4 s and more"
    play(writer, 3)
    assert not writer.close(seconds=0.5), "the end of a driver does not"


@pytest.mark.slow
def test_an_outage_of_the_server_loses_nothing(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def start():
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).read()
                return process
            except OSError:
                time.sleep(0.3)
        pytest.fail("the MLflow server did not start")

    def stop(process):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    server = start()
    try:
        writer = recorder(uri, tmp_path)
        play(writer, 0)
        assert writer.flush(seconds=60)
        stop(server)
        play(writer, 1)
        assert not writer.flush(seconds=3)
        assert "MLflow does not take what is written" in writer.problem
        server = start()
        assert writer.flush(seconds=90) and writer.close()
        found, number = runs(uri)
        assert number == 3 and found["search/0001"].info.status == "FINISHED"
        assert found["search/0001"].data.metrics["target_val/mAP"] == 1.2
    finally:
        stop(server)
