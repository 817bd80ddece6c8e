"""Kill anything, run the same command again: the real command, the real Ray, SIGKILL."""

import json
import random
import re
import signal
import time

import psutil
import pytest
from chaos.table import record
from integration_tests.driver import TINY, Driver, check_exactly_once

pytestmark = pytest.mark.slow
EPOCHS, TRIALS = 3, 4


@pytest.fixture
def driver(tmp_path, embedded_cache):
    driver = Driver(tmp_path, cache=embedded_cache, quick=True)
    yield driver
    driver.end()


@pytest.fixture
def confirming(tmp_path, embedded_cache):
    driver = Driver(tmp_path, cache=embedded_cache, study=TINY.replace("trials = 4", "trials = 3"))
    yield driver
    driver.end()


def kill_one_of(processes, moments):
    """Return whether there was one to kill."""
    try:
        moments.choice(processes).kill()
    except (IndexError, psutil.NoSuchProcess):
        return False
    return True


def test_driver_killed_at_random_moments(confirming):
    """SIGKILLs of the driver at any moment and of a worker, one Ctrl-C; then the command runs to its end."""
    driver = confirming
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments drawn with seed {seed}")  # pytest shows it where the test fails
    moments = random.Random(seed)
    driver.start()
    time.sleep(moments.uniform(0, 15))  # while it checks, asks, or starts Ray
    driver.kill()
    for kind in ("driver", "worker", "driver", "interrupt", "driver"):
        target = len(driver.epochs()) + moments.randint(1, 4)
        driver.start()
        driver.wait_for(lambda target=target: len(driver.epochs()) >= target)
        time.sleep(moments.random())
        if kind == "worker":
            driver.wait_for(lambda: kill_one_of(driver.workers(), moments))  # none lives between two phases
            target = len(driver.epochs()) + 2
            driver.wait_for(lambda target=target: len(driver.epochs()) >= target)
        code = driver.kill(signal.SIGINT if kind == "interrupt" else signal.SIGKILL)
        assert code == (130 if kind == "interrupt" else -signal.SIGKILL)
    assert re.search("[Ii]nterrupted", (driver.out.parent / "log.txt").read_text())
    code, text = driver.run()
    assert code == 0, text
    check_exactly_once(driver, trials=3, epochs=EPOCHS, confirmations=6)
    assert "Promoted: mmfa-embedded-source-to-embedded-target@candidate is now version 1: the best" in text
    verdict = json.loads((driver.out / "verdict.json").read_text())
    assert [one["word"] for one in verdict["judgements"]] and verdict["looks"] == 1

    code, again = driver.run()
    assert code == 0 and "is finished: here is its result again" in again
    assert "is this trial already (version 1)" in again
    check_exactly_once(driver, trials=3, epochs=EPOCHS, confirmations=6)
    judged = json.loads((driver.out / "verdict.json").read_text())
    assert {**judged, "written_at": 0} == {**verdict, "written_at": 0}, "a result that is shown again is the same"
    for line in re.findall(r"search/\d+ .*complete", text):
        assert line not in again, "nothing is trained again"


def test_a_ray_that_dies_ends_the_command_and_not_the_study(driver):
    driver.start()
    driver.wait_for(lambda: len(driver.epochs()) >= 1)
    driver.raylet().kill()
    assert driver.process.wait(400) == 1
    text = (driver.out.parent / "log.txt").read_text()
    assert "Ray on this machine has died" in text and "Nothing is lost. To continue, type:" in text
    assert "Traceback" not in text
    again = time.time()
    code, text = driver.run()
    assert code == 0, text
    record("ray-killed", driver.progress(again) - again)
    check_exactly_once(driver, trials=TRIALS, epochs=EPOCHS, confirmations=0)


def test_second_driver_is_refused_and_a_thawed_one_changes_nothing(driver, request):
    frozen = Driver.__new__(Driver)
    frozen.__dict__.update(driver.__dict__)
    frozen.command = [*driver.command[:-1], "3"]
    frozen.start()
    request.addfinalizer(frozen.end)
    frozen.wait_for(lambda: len(frozen.epochs()) >= 1)
    code, text = driver.run(timeout=400)
    assert code == 2 and re.search(r"being driven by process \d+ on .*, whose lease lasts for \d+ s more", text), text

    frozen.freeze()
    time.sleep(4)
    started = time.time()
    driver.start()
    log = driver.out.parent / "log.txt"
    driver.wait_for(lambda: log.read_text().count(" to go.") == 2)  # until then the frozen one's workers train
    target = len(driver.epochs()) + 2
    driver.wait_for(lambda: len(driver.epochs()) >= target)
    frozen.process.send_signal(signal.SIGCONT)  # while the new driver is at work
    assert frozen.process.wait(300) == 1
    assert driver.process.wait(1200) == 0, log.read_text()
    assert "taken over" in log.read_text()
    record("driver-frozen", driver.progress(started, driver=2) - started)
    check_exactly_once(driver, trials=TRIALS, epochs=EPOCHS, confirmations=0)
