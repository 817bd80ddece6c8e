"""Kill the processes of a study on one machine: workers, and the driver twenty times."""

import random
import time

import psutil
import pytest
from chaos.study import Study, check_survived
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
def test_driver_is_killed_twenty_times(tmp_path, embedded_cache, request):
    """Half of them at any moment before it trains, while it checks, takes over, starts Ray; half while it trains."""
    study = Study(tmp_path, cache=embedded_cache, trials=16)
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
