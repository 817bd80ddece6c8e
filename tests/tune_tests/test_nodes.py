"""What runs on a node, where Ray is not needed for it; the rest is in integration_tests/test_nodes.py."""

import dataclasses

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
