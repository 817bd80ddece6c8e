"""Kill the processes of a study on one machine: workers, and the driver twenty times."""

import random
import signal
import time

import psutil
import pytest
import services
from chaos.study import S3Study, Study, check_survived, check_swept
from chaos.table import record

WORKER_KILLS, DRIVER_KILLS = 3, 20


@pytest.fixture
def study(tmp_path, embedded_cache):
    study = Study(tmp_path, cache=embedded_cache)
    yield study
    study.end()


def killed_worker(study):
    """Kill a worker in the middle of a trial; return when, its process and its trial, or None where there is none."""
    for worker in study.workers():
        if lineage := study.lineage_of(worker.pid):
            try:
                at = time.time()
                worker.kill()
            except psutil.NoSuchProcess:
                continue
            return at, worker.pid, lineage
    return None


@pytest.mark.slow
def test_workers_are_killed(study):
    study.start()
    dead = []
    for _ in range(WORKER_KILLS):
        found = []
        study.wait_for(lambda found=found: found.append(killed_worker(study)) or found[-1])
        at, pid, lineage = found[-1]
        dead.append(pid)
        record("worker-killed", study.recovery(at, of={lineage}, without=dead))
    assert study.process.wait(900) == 0, study.log()
    assert not {line["pid"] for line in study.commits() if line["at"] > at} & set(dead)
    check_survived(study)


@pytest.mark.nightly
def test_a_thawed_driver_leaves_copies_of_a_younger_one_alone(tmp_path, embedded_cache, request):
    """Storage is on S3, both drivers are on one machine: the thawed one sweeps while the other's workers train."""
    with services.s3(tmp_path / "s3.txt") as environment:
        s3 = services.client(environment["AWS_ENDPOINT_URL"])
        study = S3Study(tmp_path, cache=embedded_cache, s3=s3, environment=environment, trials=6, epochs=8)
        request.addfinalizer(study.end)
        frozen = S3Study(tmp_path, cache=embedded_cache, s3=s3, environment=environment, trials=6, epochs=8)
        request.addfinalizer(frozen.end)
        frozen.start()
        frozen.grow(2)
        frozen.freeze()
        time.sleep(12)  # the lease is for ten seconds
        typed = study.again()
        record("driver-frozen-s3", study.recovery(**typed))
        frozen.process.send_signal(signal.SIGCONT)
        assert frozen.process.wait(300) == 1
        assert study.process.poll() is None, "the study ended before the frozen driver: make it longer"
        assert study.process.wait(900) == 0, study.log()
        check_survived(study)
        check_swept(study)


@pytest.mark.nightly
def test_driver_is_killed_twenty_times(tmp_path, embedded_cache, request):
    """Half of them at any moment before it trains, while it checks, takes over, starts Ray; half while it trains."""
    study = Study(tmp_path, cache=embedded_cache, trials=24, epochs=8)
    request.addfinalizer(study.end)
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments drawn with seed {seed}")  # pytest shows it where the test fails
    moments = random.Random(seed)
    for number in range(DRIVER_KILLS):
        typed = study.again()
        if number % 2:
            seconds = study.recovery(**typed)
            record("driver-killed", seconds, seed=seed)
            ends = time.time() + moments.uniform(0, 6)
        else:
            ends = typed["since"] + moments.uniform(0, 20)
        study.wait_for(lambda ends=ends: time.time() > ends)
        assert study.process.poll() is None, f"the study ended before kill {number}: make it longer"
        study.kill()
    typed = study.again()
    record("driver-killed", study.recovery(**typed), seed=seed)
    assert study.process.wait(900) == 0, study.log()
    check_survived(study, hidden=DRIVER_KILLS // 2)
