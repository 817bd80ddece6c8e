"""Nodes with disks of their own: stores are sent to them once, and what they cannot reach is said with their name."""

import json
import re
import subprocess

import pytest
from chaos.cluster import Cluster
from integration_tests.driver import QUICK, Driver

SMALL = QUICK.replace("trials = 4", "trials = 2").replace('num_epochs" = 3', 'num_epochs" = 2')
CAN_MOUNT = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_MOUNT, reason="disks of their own need unshare -m, as root")]


def own_disk(folder):
    """Return the prefix of a command that sees an empty disk in place of a folder."""
    script = f'mount -t tmpfs -o size=900m tmpfs "{folder}" && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh"]


@pytest.fixture
def cluster(tmp_path):
    found = Cluster(tmp_path)
    found.start_head()
    yield found
    found.end()


def join(driver, cluster, monkeypatch, *more):
    for name, value in cluster.token.items():
        monkeypatch.setenv(name, value)
    return driver.run("--address", cluster.address, "--quick", *more)


def start(driver, cluster, monkeypatch, *more):
    for name, value in cluster.token.items():
        monkeypatch.setenv(name, value)
    driver.start("--address", cluster.address, "--quick", *more)


def wait_for_a_commit_of(driver, node):
    """Wait until a worker of a node has trained an epoch."""
    driver.wait_for(lambda: {line["pid"] for line in driver.commits()} & {worker.pid for worker in node.workers()})


def test_a_node_without_stores_gets_them_before_its_first_trial(tmp_path, cluster, embedded_cache, monkeypatch):
    bare = cluster.start_node("bare", prefix=own_disk(embedded_cache))
    driver = Driver(tmp_path, cache=embedded_cache, study=SMALL)
    start(driver, cluster, monkeypatch)
    wait_for_a_commit_of(driver, bare)
    assert driver.process.wait(900) == 0, (tmp_path / "log.txt").read_text()
    assert "sending image stores to 1 node, MB" in (tmp_path / "log.txt").read_text()
    assert [record["outcome"] for record in driver.results().values()] == ["complete"] * 4


def test_a_node_that_joins_later_gets_them_for_its_first_trial(tmp_path, cluster, embedded_cache, monkeypatch):
    """As on a cluster that grows, or replaces a node that it lost: nobody checks that node, and it has nothing."""
    cluster.start_node("first")
    driver = Driver(tmp_path, cache=embedded_cache, study=SMALL.replace("trials = 2", "trials = 4"))
    start(driver, cluster, monkeypatch, "--workers", "2")
    driver.wait_for(lambda: driver.epochs())
    wait_for_a_commit_of(driver, cluster.start_node("late", prefix=own_disk(embedded_cache)))
    assert driver.process.wait(900) == 0, (tmp_path / "log.txt").read_text()
    records = [json.loads(path.read_text()) for path in driver.out.glob("storage/*/*/result.json")]
    assert [record["outcome"] for record in records] == ["complete"] * 6
    log = (tmp_path / "log.txt").read_text()
    assert " lost:" not in log and "sending image stores" not in log


def test_a_node_that_does_not_share_storage_is_named_before_the_first_trial(
    tmp_path, cluster, embedded_cache, monkeypatch
):
    (tmp_path / "out" / "storage").mkdir(parents=True)
    cluster.start_node("shared")
    cluster.start_node("apart", prefix=own_disk(tmp_path / "out" / "storage"))
    driver = Driver(tmp_path, cache=embedded_cache, study=SMALL)
    code, text = join(driver, cluster, monkeypatch)
    assert code == 2, text
    assert re.search(r"mmfa-study: node \S+ \([\d.]+\): --storage \S+ is not what the driver sees there", text)
    assert driver.epochs() == []


def test_a_node_whose_disk_is_full_is_named(tmp_path, cluster, embedded_cache, monkeypatch):
    cluster.start_node("full", prefix=[word.replace("900m", "64k") for word in own_disk(embedded_cache)])
    code, text = join(Driver(tmp_path, cache=embedded_cache, study=SMALL), cluster, monkeypatch)
    assert code == 2, text
    assert "make room there, or choose another --cache-dir" in text and "mmfa-study: node " in text


def test_a_gpu_is_shared_by_as_many_as_was_measured(tmp_path, cluster, embedded_cache, monkeypatch):
    """Ray counts a GPU that is none: the measurement runs, on what there is."""
    cluster._start("gpu", f"--address={cluster.address}", "--num-cpus=2", "--num-gpus=1")
    driver = Driver(tmp_path, cache=embedded_cache, study=SMALL)
    code, text = join(driver, cluster, monkeypatch, "--trials-per-gpu", "auto")
    assert code == 0, text
    assert "--trials-per-gpu auto: training an epoch with 1, 2, 4, … trials on one" in text
    assert "1 on a GPU: " in text and "epochs an hour" in text
    chosen = int(re.search(r"So (\d+) trials? (?:has|share)", text)[1])
    rates = {int(k): int(rate) for k, rate in re.findall(r"(\d+) on a GPU: (\d+) epochs an hour", text)}
    assert chosen == max(rates, key=rates.__getitem__)
