"""Kill nodes of a Ray cluster: one of several, the head, the head and the driver with it."""

import time

import pytest
from chaos.cluster import Cluster, kill
from chaos.study import Study, check_survived
from chaos.table import record


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.end()


@pytest.fixture
def study(tmp_path, embedded_cache):
    study = Study(tmp_path, cache=embedded_cache, trials=6)
    yield study
    study.end()


def busy_worker(study, node):
    """Return a node's worker in the middle of a trial and the trial, or None."""
    for worker in node.workers():
        if lineage := study.lineage_of(worker.pid):
            return worker, lineage
    return None


def wait_for_busy(study, node):
    """Wait until a node's worker is in the middle of a trial."""
    found = []
    study.wait_for(lambda: found.append(busy_worker(study, node)) or found[-1])
    return found[-1]


@pytest.mark.slow
def test_raylet_of_a_node_is_killed_and_the_node_comes_back(cluster, study):
    cluster.start_head()
    lost, stays = cluster.start_node("a"), cluster.start_node("b")
    cluster.drive(study)
    study.start()
    worker, lineage = wait_for_busy(study, lost)
    at = kill(lost.raylet())
    seconds = study.recovery(at, of={lineage}, without=[worker.pid])
    record("node-killed", seconds)
    assert {line["pid"] for line in study.commits() if line["at"] > at + seconds - 0.1} <= pids(stays)
    lost.end()
    at = time.time()
    back = cluster.start_node("a")
    worker, _ = wait_for_busy(study, back)
    record("node-back", min(line["at"] for line in study.commits() if line["pid"] == worker.pid) - at)
    assert study.process.wait(900) == 0, study.log()
    check_survived(study)


def pids(*nodes):
    return {worker.pid for node in nodes for worker in node.workers()}


@pytest.mark.nightly
@pytest.mark.parametrize("all_of_it", [False, True], ids=["raylet", "machine"])
def test_head_is_killed(cluster, study, all_of_it):
    """The driver lives on the head, so it cannot go on; it must say so, end by itself, and lose nothing."""
    head = cluster.start_head()
    nodes = [cluster.start_node("a"), cluster.start_node("b")]
    cluster.drive(study)
    study.start()
    study.grow(4)
    at = head.kill() if all_of_it else kill(head.raylet())
    assert study.process.wait(600) == 1, study.log()
    print(f"the command ended {time.time() - at:.0f} s after the fault")
    assert "Nothing is lost. To continue, once Ray runs again, type:" in study.log(), study.log()
    for node in [head, *nodes]:
        node.end()
    continue_elsewhere(cluster, study, "head-machine-killed" if all_of_it else "head-killed")


@pytest.mark.nightly
def test_head_and_driver_are_killed_together(cluster, study):
    """As the power cut of the head's machine. The other nodes' workers still train when the command runs again."""
    head = cluster.start_head()
    orphans = [cluster.start_node("a"), cluster.start_node("b")]
    cluster.drive(study)
    study.start()
    study.grow(4)
    head.kill()
    study.kill()
    continue_elsewhere(cluster, study, "head-and-driver-killed")
    assert not pids(*orphans)


def continue_elsewhere(cluster, study, fault):
    """Start a cluster anew, run the same command on it, and check what came of it."""
    cluster.start_head()
    for name in ("a", "b"):
        cluster.start_node(name)
    cluster.drive(study)
    record(fault, study.recovery(**study.again()))
    assert study.process.wait(900) == 0, study.log()
    check_survived(study)
