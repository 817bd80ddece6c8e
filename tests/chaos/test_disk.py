"""Fill a disk under a running study, and tear the checkpoints that a kill leaves."""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import services
from chaos.cluster import Cluster
from chaos.study import S3Study, Study, check_survived, check_swept
from chaos.table import record
from chaos.test_cluster import wait_for_busy

FULL_SECONDS = 30


@pytest.fixture
def study(tmp_path, embedded_cache):
    study = Study(tmp_path, cache=embedded_cache)
    yield study
    study.end()


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def garble(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    file.write_bytes(content)


def empty(file):
    os.truncate(file, 0)


TEARS = {
    "weights cut short": lambda folder: truncate(next(folder.glob("*.safetensors"))),
    "weights garbled": lambda folder: garble(next(folder.glob("*.safetensors"))),
    "state emptied": lambda folder: empty(folder / "state.json"),
    "state missing": lambda folder: (folder / "state.json").unlink(),
}


def torn(study, tear):
    """Tear the newest checkpoint of every trial that has two; return the epochs, as (lineage, epoch)."""
    found = []
    for lineage in study.out.glob("storage/*/*/"):
        epochs = sorted(lineage.glob("attempt-*/epoch-*"), key=lambda path: path.name)
        if len(epochs) > 1 and not (lineage / "result.json").exists():
            tear(epochs[-1])
            found.append((lineage.name, int(epochs[-1].name.removeprefix("epoch-"))))
    return found


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("weights cut short", marks=pytest.mark.slow),
        *(pytest.param(how, marks=pytest.mark.nightly) for how in TEARS if how != "weights cut short"),
    ],
)
def test_newest_checkpoint_is_torn(study, how):
    study.start()
    study.wait_for(lambda: any(line["epoch"] >= 3 for line in study.commits()))
    study.kill()
    study.bury()
    again = torn(study, TEARS[how])
    assert again, "no trial was in its middle"
    seconds = study.recovery(**study.again(), of={lineage for lineage, _ in again})
    record("checkpoint-torn" if how == "weights cut short" else "checkpoint-damaged", seconds, how=how)
    assert study.process.wait(900) == 0, study.log()
    results = study.results()
    for lineage, epoch in again:
        notes = results[lineage]["notes"]
        assert any(f"epoch-{epoch:04d}" in note and "was set aside" in note for note in notes), notes
    assert study.log().count("was set aside; the trial went on from the checkpoint before it") >= len(again)
    check_survived(study, again=again)


@contextlib.contextmanager
def small_disk(folder, *, megabytes):
    """Mount a disk of some size at a folder; needs root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.nightly
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.skipif(shutil.which("mount") is None, reason="needs `mount`")
def test_storage_is_full_for_a_while(study):
    """Nobody can commit anything; workers wait for room, and the study goes on by itself when there is some."""
    with small_disk(study.out / "storage", megabytes=400):
        study.start()
        study.grow(4)
        ballast = study.out / "storage" / "ballast"
        fill(ballast)
        freed = free_after(study, ballast)
        record("disk-full", study.recovery(freed), full=FULL_SECONDS)
        assert study.process.wait(900) == 0, study.log()
        check_survived(study)


@pytest.mark.nightly
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk for one node needs root")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="a disk for one node needs `unshare` (util-linux)")
def test_one_node_runs_out_of_disk(tmp_path, embedded_cache, request):
    """Storage is on S3; what a worker writes before it is sent there lies on its own node, whose disk is full."""
    scratch = embedded_cache / "trials"
    scratch.mkdir(exist_ok=True)
    with services.s3(tmp_path / "s3.txt") as environment:
        cluster = Cluster(tmp_path, environment=environment)
        request.addfinalizer(cluster.end)
        s3 = services.client(environment["AWS_ENDPOINT_URL"])
        study = S3Study(tmp_path, cache=embedded_cache, s3=s3, environment=environment, trials=8, epochs=8)
        request.addfinalizer(study.end)
        cluster.start_head()
        script = f'mount -t tmpfs -o size=200m tmpfs "{scratch}" && exec "$@"'
        full = cluster.start_node("full", prefix=["unshare", "-m", "sh", "-c", script, "sh"])
        cluster.start_node("other")
        cluster.drive(study)
        study.start()
        _, lineage = wait_for_busy(study, full)
        ballast = Path(f"/proc/{full.raylet().pid}/root{scratch}/ballast")
        fill(ballast)
        freed = free_after(study, ballast)
        assert [line for line in study.commits() if freed - FULL_SECONDS + 10 < line["at"] < freed], "the other goes on"
        record("disk-full-on-a-node", study.recovery(freed, of={lineage}), full=FULL_SECONDS)
        assert study.process.wait(900) == 0, study.log()
        check_survived(study)
        check_swept(study)
        on_the_node = Path(f"/proc/{full.raylet().pid}/root{scratch}")
        assert not list(on_the_node.glob("*/*/*")), "nothing is left on the node"


def free_after(study, ballast):
    """Leave a disk full for a while, then make room; return when."""
    ends = time.time() + FULL_SECONDS
    study.wait_for(lambda: time.time() > ends)
    ballast.unlink()
    return time.time()


def fill(file):
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(1 << 16)):
            pass
