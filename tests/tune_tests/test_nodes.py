"""What runs on a node, where Ray is not needed for it; the rest is in integration_tests/test_nodes.py."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import services

from tune import mirror, nodes


@pytest.mark.parametrize(("counter", "left"), [(2, ["3"]), (3, [])])
def test_a_driver_sweeps_its_own_copies_and_older_ones(tmp_path, counter, left):
    """One that was frozen and lost its lease sweeps when it thaws, while its successor's workers train."""
    scratch = tmp_path / "trials" / "lambdas-1"
    for name in ("1", "2", "3"):
        (scratch / name / "search-0000").mkdir(parents=True)
        (scratch / name / "search-0000" / "journal.jsonl").write_text("{}\n")
    nodes._sweep(str(scratch), counter)
    assert [path.name for path in scratch.glob("*")] == left and scratch.exists() == bool(left)
    nodes._sweep(str(tmp_path / "nowhere"), counter)


def test_a_node_that_cannot_use_the_bucket_says_so_at_once(tmp_path, s3, monkeypatch):
    """Nobody waits ten minutes for a key that was never right."""
    waited = []
    monkeypatch.setattr("tune.patience.time.sleep", waited.append)
    needs = nodes.Needs(storage=f"s3://{services.BUCKET}/x", cache_dir=str(tmp_path), stores={}, weights={})
    mirror.write(f"{needs.storage}/token", b"mmfa")
    assert nodes._check(needs, "token") == ""
    elsewhere = dataclasses.replace(needs, storage="s3://there-is-no-such-bucket/x")
    assert "--storage s3://there-is-no-such-bucket/x cannot be used" in nodes._check(elsewhere, "token")
    assert waited == []


def test_a_store_is_fetched_once_whoever_asks_at_the_same_time(tmp_path, monkeypatch):
    """Two workers of a node that has nothing start at once: one copies, the other waits for it."""
    content = bytes(range(256)) * 1000
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "a.arrow").write_bytes(content)
    served = nodes._Server()
    asked = []

    class Remote:
        """Ray's handle of the driver's server."""

        def __init__(self, call):
            self.remote = lambda path, *more: (
                asked.append(call.__name__) or call(str(tmp_path / "driver" / Path(path).name), *more)
            )

    server = SimpleNamespace(size_and_digest=Remote(served.size_and_digest), read=Remote(served.read))
    monkeypatch.setattr(nodes.ray, "get_actor", lambda name: server)
    monkeypatch.setattr(nodes.ray, "get", lambda answer: answer)
    monkeypatch.setattr(nodes, "CHUNK_BYTES", 1 << 16)
    mine = tmp_path / "node" / "stores" / "a.arrow"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(nodes.fetch, [str(mine)] * 4))
    assert mine.read_bytes() == content and served.served() == len(content)
    assert asked == ["size_and_digest", *["read"] * 4]
    assert [path.name for path in mine.parent.iterdir() if path.suffix == ".tmp"] == []
