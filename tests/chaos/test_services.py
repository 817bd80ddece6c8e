"""Take down what a study writes to, for a while and in its middle: MLflow, PostgreSQL, S3."""

import sqlite3
import time

import pytest
import services
from chaos.servers import Mlflow, Postgres, Proxy
from chaos.study import S3Study, Study, check_survived, check_swept
from chaos.table import record
from integration_tests.driver import TINY, Driver, check_exactly_once

OUTAGE_SECONDS, DATABASE_SECONDS, S3_SECONDS = 130, 10, 40


@pytest.fixture
def study(tmp_path, embedded_cache):
    study = Study(tmp_path, cache=embedded_cache)
    yield study
    study.end()


@pytest.mark.nightly
def test_mlflow_is_down_for_two_minutes(tmp_path, embedded_cache, request):
    """The study trains on; what it could not write is written when the server is back."""
    study = Study(tmp_path, cache=embedded_cache, trials=6, epochs=45)
    request.addfinalizer(study.end)
    server = Mlflow(study.out)
    request.addfinalizer(server.down)
    server.up()
    study.command += ["--tracking-uri", server.url]
    study.start()
    study.grow(6)
    at = server.down()
    study.wait_for(lambda: time.time() > at + OUTAGE_SECONDS)
    during = [line["at"] for line in study.commits() if line["at"] > at]
    assert during[-1] > at + OUTAGE_SECONDS - 20, "the study stopped while MLflow was down"
    server.up()
    back = time.time()
    study.wait_for(lambda: len(recorded(study)) >= len(during) + 6, timeout=300)
    record("mlflow-down", time.time() - back, outage=OUTAGE_SECONDS, epochs_meanwhile=len(during))
    assert study.process.wait(900) == 0, study.log()
    check_survived(study)


@pytest.mark.nightly
def test_mlflow_is_down_when_the_search_ends(tmp_path, embedded_cache, request):
    """What is to be confirmed depends on the standing champion, whom MLflow knows: the study waits and goes on."""
    driver = Driver(tmp_path, cache=embedded_cache, study=TINY)
    request.addfinalizer(driver.end)
    server = Mlflow(driver.out)
    request.addfinalizer(server.down)
    server.up()
    driver.start("--tracking-uri", server.url)
    driver.wait_for(lambda: len(driver.results()) >= 3)
    server.down()
    waits = "what is to be confirmed waits for it"
    log = tmp_path / "log.txt"
    driver.wait_for(lambda: waits in " ".join(log.read_text().split()))
    time.sleep(20)
    server.up()
    back = time.time()
    driver.wait_for(lambda: driver.progress(back) is not None)
    record("mlflow-down-between", driver.progress(back) - back)
    assert driver.process.wait(900) == 0, log.read_text()
    check_exactly_once(driver, trials=4, epochs=3, confirmations=6)


def recorded(study):
    """Return the epochs that MLflow has, as (run, step)."""
    with sqlite3.connect(study.out / "mlflow.db", timeout=30) as database:
        rows = database.execute("SELECT DISTINCT run_uuid, step FROM metrics WHERE key = 'target_val/mAP'")
        return rows.fetchall()


@pytest.mark.slow
def test_postgres_is_restarted(tmp_path, study, request):
    """The driver waits for it, and nothing has to be typed again."""
    database = Postgres(tmp_path / "pg")
    request.addfinalizer(database.end)
    study.ledger_url = database.url
    study.command += ["--ledger", database.url]
    study.start()
    study.grow(4)
    at = database.restart(seconds=DATABASE_SECONDS)
    back = time.time()
    record("postgres-restarted", study.recovery(back), down=round(back - at, 1))
    assert study.process.wait(900) == 0, study.log()
    check_survived(study)


@pytest.mark.nightly
def test_s3_fails_for_a_while(tmp_path, embedded_cache, request):
    """Workers wait for it in the middle of an upload, and nobody is told."""
    with services.s3(tmp_path / "s3.txt") as environment:
        port = int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
        proxy = Proxy(port)
        request.addfinalizer(proxy.end)
        seen = environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        s3 = services.client(environment["AWS_ENDPOINT_URL"])
        study = S3Study(tmp_path, cache=embedded_cache, s3=s3, environment=seen)
        request.addfinalizer(study.end)
        study.start()
        study.grow(4)
        proxy.failing.set()
        at = time.time()
        study.wait_for(lambda: time.time() > at + S3_SECONDS)
        proxy.failing.clear()
        back = time.time()
        record("storage-failing", study.recovery(back), outage=S3_SECONDS)
        assert study.process.wait(900) == 0, study.log()
        check_survived(study)
        check_swept(study)
