"""Whose storage it is, and whose code."""

import dataclasses

import pytest

from mmfa.errors import MmfaError
from studies.library import load
from studies.resolve import resolve
from tune.lease import Fence
from tune.ledger import Ledger
from tune.places import places
from tune.preflight import Stores
from tune.session import Request, open_session


@pytest.fixture
def opened(tmp_path):
    """Return a function that opens the session of one study with a ledger of the given name."""
    leases = []

    def call(name, **changes):
        plan = resolve(load("smoke"), profile_name="embedded", overrides={})
        where = places(
            out=tmp_path, storage=str(tmp_path / "storage"), ledger=f"sqlite:///{tmp_path / name}.db", tracking=None,
            cache_dir=tmp_path, data_root=None,
        )  # fmt: skip
        request = Request(
            plan=dataclasses.replace(plan, **changes), places=where, trials_asked=bool(changes), cpus_per_trial=1,
            trials_per_gpu=1, address=None, promote="never", lease_seconds=30, command="again", python="python",
        )  # fmt: skip
        ledger = Ledger(where.ledger)
        lease = ledger.lease("smoke-1", seconds=30)
        leases.append(lease)
        stores = Stores({"a": tmp_path}, {"a": "1"})
        return open_session(request, stores, ledger, lease, "smoke-1", plan.identity(fingerprints={"a": "1"}))

    yield call
    for lease in leases:
        lease.release()


def test_storage_of_another_ledger_is_refused(opened):
    first = opened("one")
    assert first.left() == 11
    with pytest.raises(MmfaError, match="another ledger counts; give that --ledger, or another --storage"):
        opened("two")
    first.lease.release()
    assert opened("one").left() == 11


def test_the_trials_of_a_study_may_grow(opened):
    opened("one").lease.release()
    grown = opened("one", trials=6)
    assert grown.plan.trials == 6 and grown.left() == 14
    assert grown.fence.counter == 2
    with pytest.raises(MmfaError):
        Fence(grown.fence.folder, 1).check()


def test_every_commit_that_drove_a_study_is_known(opened):
    session = opened("one")
    assert session.commits("a") == ["a"]
    assert session.commits("b") == ["a", "b"]
    assert session.commits("a") == ["b", "a"]


def test_a_commit_that_only_shows_the_result_is_not_among_them(opened, monkeypatch):
    session = opened("one")
    session.commits("a")
    monkeypatch.setattr(type(session), "to_train", lambda self: False)
    assert session.commits("b") == ["a"]
