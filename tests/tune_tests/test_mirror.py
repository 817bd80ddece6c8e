"""Folders on an object store, against a real S3 server."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import services

from mmfa.errors import MmfaError
from tune import mirror
from tune.lease import Fence, LeaseLostError
from tune.preflight import check_object_store


@pytest.fixture
def uri(s3, request):
    return f"s3://{services.BUCKET}/{request.node.name}"


@pytest.fixture(autouse=True)
def other_servers():
    """A process opens a bucket once; the servers of these tests are several."""
    mirror._bucket.cache_clear()
    yield
    mirror._bucket.cache_clear()


def keys(s3, uri):
    prefix = uri.removeprefix(f"s3://{services.BUCKET}/") + "/"
    found = s3.list_objects_v2(Bucket=services.BUCKET, Prefix=prefix).get("Contents", [])
    names = sorted(item["Key"].removeprefix(prefix) for item in found)
    return [name for name in names if name]  # pyarrow marks a folder with an empty object in its own name


def checkpoint(folder, epoch, *, attempt=1, weights=b"weights"):
    at = folder / f"attempt-{attempt:04d}" / f"epoch-{epoch:04d}"
    at.mkdir(parents=True)
    (at / "model.safetensors").write_bytes(weights)
    (at / "state.json").write_text(json.dumps({"epoch": epoch}))
    return at


def nothing():
    return None


def test_what_is_pushed_is_pulled(tmp_path, s3, uri):
    here, there = tmp_path / "here", tmp_path / "there"
    checkpoint(here, 1)
    (here / "journal.jsonl").write_text("one\n")
    (here / "result.json.12.tmp").write_text("half")
    mirror.push(here, uri, check=nothing)
    mirror.pull(there, uri)
    assert sorted(p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()) == keys(s3, uri)
    assert keys(s3, uri) == [
        "attempt-0001/epoch-0001/model.safetensors", "attempt-0001/epoch-0001/state.json", "journal.jsonl",
    ]  # fmt: skip
    assert (there / "journal.jsonl").read_text() == "one\n"


def test_a_file_that_grew_is_sent_again_and_old_epochs_are_dropped(tmp_path, s3, uri):
    checkpoint(tmp_path, 1)
    (tmp_path / "journal.jsonl").write_text("one\n")
    mirror.push(tmp_path, uri, check=nothing, own="attempt-0001")
    for file in (tmp_path / "attempt-0001" / "epoch-0001").iterdir():
        file.unlink()
    checkpoint(tmp_path, 2)
    (tmp_path / "journal.jsonl").write_text("one\ntwo\n")
    mirror.push(tmp_path, uri, check=nothing, own="attempt-0001")
    assert [key for key in keys(s3, uri) if "epoch-0001" in key] == []
    assert mirror.read(f"{uri}/journal.jsonl") == b"one\ntwo\n"


def test_a_checkpoint_without_its_state_is_not_pulled(tmp_path, s3, uri):
    checkpoint(tmp_path / "here", 1)
    mirror.push(tmp_path / "here", uri, check=nothing)
    mirror.write(f"{uri}/attempt-0001/epoch-0002/model.safetensors", b"half an upload")
    mirror.pull(tmp_path / "there", uri)
    assert [p.name for p in (tmp_path / "there" / "attempt-0001").iterdir()] == ["epoch-0001"]


def test_a_fenced_worker_uploads_nothing_that_counts(tmp_path, s3, uri):
    fence = Fence(f"{uri}/fence", 1)
    fence.put_up()
    Fence(f"{uri}/fence", 2).put_up()
    assert keys(s3, f"{uri}/fence") == ["2"]
    checkpoint(tmp_path, 1)
    with pytest.raises(LeaseLostError, match="another driver has taken over"):
        mirror.push(tmp_path, f"{uri}/trial", check=fence.check)
    assert keys(s3, f"{uri}/trial") == []
    fence.put_up()  # a driver that was frozen before it put its counter up
    with pytest.raises(LeaseLostError):
        fence.check()
    Fence(f"{uri}/fence", 2).check()


def test_what_another_worker_left_of_an_epoch_is_not_kept(tmp_path, s3, uri):
    """Weights of one model have one size: without the state that vouches for them they say nothing."""
    checkpoint(tmp_path / "here", 1, weights=b"others!")
    mirror.write(f"{uri}/attempt-0001/epoch-0001/model.safetensors", b"weights")
    mirror.push(tmp_path / "here", uri, check=nothing)
    assert mirror.read(f"{uri}/attempt-0001/epoch-0001/model.safetensors") == b"others!"
    (tmp_path / "here" / "attempt-0001" / "epoch-0001" / "model.safetensors").write_bytes(b"changed")
    mirror.push(tmp_path / "here", uri, check=nothing)
    assert mirror.read(f"{uri}/attempt-0001/epoch-0001/model.safetensors") == b"others!", "it is vouched for"


def test_a_worker_that_is_fenced_out_while_it_waits_for_the_store_writes_nothing(s3, uri):
    """The store fails, another worker takes over meanwhile: the next try must not be made."""
    tries = []

    def check():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("503")
        raise LeaseLostError("another driver has taken over")

    with pytest.raises(LeaseLostError):
        mirror.write(f"{uri}/state.json", b"late", check=check)
    assert len(tries) == 2 and mirror.read(f"{uri}/state.json") is None


def test_a_bucket_that_cannot_be_opened_at_first_is_waited_for(s3, uri, monkeypatch):
    """Amazon's S3 is asked for the bucket's region when it is opened."""
    real, tries = mirror._bucket.__wrapped__, []

    def unreachable_at_first(base):
        tries.append(base)
        if len(tries) < 3:
            raise OSError("When resolving region for bucket: no answer")
        return real(base)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_bucket", unreachable_at_first)
        mirror.write(f"{uri}/late", b"whole", seconds=60)
    assert tries == [f"s3://{services.BUCKET}"] * 3 and mirror.read(f"{uri}/late") == b"whole"


def test_a_result_is_pulled_after_all_that_it_vouches_for(tmp_path, s3, uri, monkeypatch):
    """Where there is a result nothing more is pulled: a kill before it must find the rest still missing."""
    for name in ("result.json", "torch-trace/table.txt", "probe.npz"):
        mirror.write(f"{uri}/{name}", b"{}")
    asked, read = [], mirror.read
    monkeypatch.setattr(mirror, "read", lambda uri, **more: asked.append(uri) or read(uri, **more))
    mirror.pull(tmp_path, uri)
    assert [one.removeprefix(f"{uri}/") for one in asked] == ["probe.npz", "torch-trace/table.txt", "result.json"]


def test_a_part_may_be_left_out(tmp_path, s3, uri):
    checkpoint(tmp_path / "here", 1)
    (tmp_path / "here" / "result.json").write_text("{}")
    mirror.push(tmp_path / "here", uri, check=nothing)
    mirror.pull(tmp_path / "there", uri, without="attempt-")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["result.json"]


def test_what_is_not_there_is_none_and_its_removal_is_nothing(s3, uri):
    assert mirror.read(f"{uri}/nothing") is None
    assert mirror.sizes(uri) == {}
    mirror.remove(uri, "nothing")


def test_an_outage_is_waited_for(tmp_path, monkeypatch):
    """A server that answers only after a while: the write waits for it, and is whole."""
    port = services.free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name, value in services.KEYS.items():
        monkeypatch.setenv(name, value)
    started = []

    def late():
        time.sleep(3)
        log = (tmp_path / "log.txt").open("ab")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        for _ in range(100):
            try:
                services.client(f"http://127.0.0.1:{port}").create_bucket(Bucket=services.BUCKET)
                return
            except Exception:
                time.sleep(0.3)

    thread = threading.Thread(target=late)
    thread.start()
    try:
        mirror.write(f"s3://{services.BUCKET}/late", b"whole", seconds=60)
        assert mirror.read(f"s3://{services.BUCKET}/late") == b"whole"
    finally:
        thread.join()
        services.end(started[0])


def test_what_stays_away_is_an_error_of_one_sentence(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{services.free_port()}")
    for name, value in services.KEYS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MmfaError, match=r"--storage s3://studies/x cannot be used: .*AWS_ENDPOINT_URL"):
        check_object_store("s3://studies/x")


def test_a_missing_bucket_is_an_error_of_one_sentence(s3):
    with pytest.raises(MmfaError, match=r"--storage s3://nowhere/x cannot be used: .*give a folder"):
        check_object_store("s3://nowhere/x")
    assert os.environ["AWS_ENDPOINT_URL"]


@pytest.mark.parametrize("bad", ["s3://", "s3://a b/c", "gs:///x"])
def test_a_uri_that_does_not_hold_is_refused(bad):
    with pytest.raises(MmfaError, match="cannot be"):
        check_object_store(bad)
