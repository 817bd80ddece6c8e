"""A study with its ledger on PostgreSQL, its MLflow a server on PostgreSQL and S3, and its checkpoints on S3."""

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
import services
import sqlalchemy as sa
from integration_tests.driver import SIZES, TINY, Driver
from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.slow
STORAGE = f"s3://{services.BUCKET}/trainings"
PLANTED = {
    "PGPASSWORD": "planted-database-secret",
    "MLFLOW_TRACKING_USERNAME": "planted-user",
    "MLFLOW_TRACKING_PASSWORD": "planted-tracking-secret",
    "RAY_AUTH_TOKEN": "planted-ray-secret-000000000000000000000000",
}
"""In the command's environment, as documented."""
SMALL = TINY.replace("trials = 4", "trials = 2").replace(SIZES, '"data.image_height" = 32\n"data.image_width" = 16')


@contextlib.contextmanager
def mlflow_server(database, environment, log):
    """Run an MLflow server on PostgreSQL with its artifacts on S3; yield its address."""
    port = services.free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", f"s3://{services.BUCKET}/artifacts"]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=log.open("ab"), stderr=subprocess.STDOUT, cwd=log.parent,
        start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            time.sleep(0.2)
        yield address
    finally:
        services.end(process)


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """Start the servers; return the command's options and what to look with."""
    server = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        services.s3(tmp_path / "s3.txt") as environment,
        services.postgres(tmp_path / "postgres", "ledger", "mlflow") as (ledger, mlflow),
        mlflow_server(mlflow, environment | server, tmp_path / "mlflow.txt") as address,
    ):  # fmt: skip
        for name, value in {**environment, **PLANTED}.items():
            monkeypatch.setenv(name, value)
        plain = ledger.replace("postgresql+psycopg://", "postgresql://", 1)
        options = ["--ledger", plain, "--tracking-uri", address, "--storage", STORAGE]
        yield options, (ledger, mlflow), address, services.client(environment["AWS_ENDPOINT_URL"])


def objects(s3, prefix):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=services.BUCKET, Prefix=prefix)
    names = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return [name for name in names if not name.endswith("/")]


def body(s3, key):
    return s3.get_object(Bucket=services.BUCKET, Key=key)["Body"].read().decode()


def check(ledger, address, s3, *, epochs):
    """Every lineage once and at its end, every epoch once, and the three records agree."""
    storage = optuna.storages.RDBStorage(ledger)
    trials = {
        name.partition("/")[2] or "search": optuna.load_study(study_name=name, storage=storage).trials
        for name in optuna.get_all_study_names(storage)
    }
    complete = {stage: [trial for trial in found if trial.state.name == "COMPLETE"] for stage, found in trials.items()}
    assert {stage: len(found) for stage, found in complete.items()} == {"controls": 2, "search": 2, "confirm": 6}
    assert {trial.state.name for found in trials.values() for trial in found} <= {"COMPLETE", "FAIL"}

    names = objects(s3, "trainings/")
    results = {name.split("/")[2]: json.loads(body(s3, name)) for name in names if name.endswith("/result.json")}
    assert len(results) == 10
    assert [name for name in names if "/attempt-" in name or ".tmp" in name or name.endswith("/pruned")] == []
    lines = [
        (name.split("/")[2], json.loads(line)["epoch"])
        for name in names if name.endswith("/journal.jsonl") for line in body(s3, name).splitlines()
    ]  # fmt: skip
    assert set(collections.Counter(lines).values()) == {1}

    client = MlflowClient(address)
    runs = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    assert {run.info.status for run in runs} == {"FINISHED"} and len(runs) == 11
    for run in runs:
        name = run.data.tags.get("mmfa.lineage")
        if name is not None:
            record = results[name.replace("/", "-")]
            assert len(record["history"]) == epochs
            assert run.data.metrics["target/mAP"] == pytest.approx(record["metrics"]["target/mAP"])


def rows(url):
    """Return all that a database holds, as text."""
    engine = sa.create_engine(url)
    found = []
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():
            found += connection.execute(sa.text(f'SELECT * FROM "{table}"')).all()
    engine.dispose()
    return "\n".join(map(str, found))


def ray_files():
    """Return what Ray's sessions on this machine have written; its sockets are no files."""
    return [path for path in Path("/tmp/ray").glob("session_2*/**/*") if path.is_file()]


def test_a_killed_study_on_shared_servers_is_taken_up_elsewhere(tmp_path, shared, embedded_cache, request):
    options, databases, address, s3 = shared
    ledger = databases[0]
    logs_before = set(ray_files())
    first = Driver(tmp_path, cache=embedded_cache, study=SMALL)
    request.addfinalizer(first.end)
    first.start(*options)
    random.seed(7)
    first.wait_for(
        lambda: sum(name.endswith("/journal.jsonl") for name in objects(s3, "trainings/")) >= random.choice([2, 3])
    )
    first.kill(signal.SIGKILL)

    (tmp_path / "elsewhere").mkdir()  # another machine: nothing of --out is there
    second = Driver(tmp_path / "elsewhere", cache=embedded_cache, study=SMALL)
    code, text = second.run(*options)
    assert code == 0, text
    check(ledger, address, s3, epochs=3)
    code, text = second.run(*options)
    assert code == 0 and "is finished: here is its result again" in text

    secrets = {services.KEYS["AWS_SECRET_ACCESS_KEY"], *PLANTED.values()} - {PLANTED["MLFLOW_TRACKING_USERNAME"]}
    for url in databases:  # every row of every table: params, tags, attributes, the study's own
        dumped = rows(url)
        assert len(dumped) > 100 and not any(secret in dumped for secret in secrets), url
    assert objects(s3, "artifacts/"), "MLflow's artifacts are on S3"
    for name in objects(s3, ""):
        content = s3.get_object(Bucket=services.BUCKET, Key=name)["Body"].read()
        assert not any(secret.encode() in content for secret in secrets), name
    logs = set(ray_files()) - logs_before
    assert any(path.name.startswith("raylet") for path in logs), "what Ray logged is looked at too"
    for file in [*(path for path in tmp_path.rglob("*") if path.is_file()), *logs]:
        assert not any(secret.encode() in file.read_bytes() for secret in secrets), file
