"""Cut a node off the network, let the study go on without it, and put it back. Needs root, for network namespaces."""

import os
import shutil
import signal
import time

import pytest
from chaos.cluster import Cluster, Network
from chaos.study import Study, check_survived
from chaos.table import record
from chaos.test_cluster import busy_worker, wait_for_busy

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces need `ip` (Debian's iproute2)"),
]


@pytest.fixture
def cluster(tmp_path):
    network = Network("head", "a", "b")
    cluster = Cluster(tmp_path, network=network)
    yield cluster
    cluster.end()
    network.end()


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_a_node_is_cut_off_and_healed(cluster, tmp_path, embedded_cache, request, frozen):
    """Its worker still reaches the storage. Frozen, it wakes only when another has long gone on with its trial."""
    study = Study(tmp_path, cache=embedded_cache, epochs=16)
    request.addfinalizer(study.end)
    cluster.start_head()
    lost, _ = cluster.start_node("a"), cluster.start_node("b")
    cluster.drive(study)
    study.start()
    zombie, lineage = wait_for_busy(study, lost)
    at = cluster.network.cut("a")
    if frozen:
        zombie.send_signal(signal.SIGSTOP)
    record("node-cut-off", study.recovery(at, of={lineage}, without=[zombie.pid], timeout=600), frozen=frozen)
    healed = cluster.network.heal("a")
    zombie.send_signal(signal.SIGCONT)
    study.wait_for(lambda: not zombie.is_running(), timeout=180)
    print(f"the healed node's worker was gone after {time.time() - healed:.1f} s")
    lost.end()
    back = time.time()
    again = cluster.start_node("a")
    wait_for_busy(study, again)
    worker = busy_worker(study, again)[0]
    record("node-back", min(line["at"] for line in study.commits() if line["pid"] == worker.pid) - back)
    assert study.process.wait(900) == 0, study.log()
    assert not [line for line in study.commits() if line["pid"] == zombie.pid and line["at"] > healed]
    check_survived(study)
