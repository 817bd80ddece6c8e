"""One driver per study: refused, taken over, frozen and thawed."""

import json
import multiprocessing
import os
import time

import optuna
import pytest
import sqlalchemy as sa

from tune.lease import Fence, Lease, LeaseHeldError, LeaseLostError, proven_dead, this_process
from tune.ledger import Ledger


@pytest.fixture
def engine(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'ledger.db'}", connect_args={"timeout": 30})
    yield engine
    engine.dispose()


def set_holder(engine, **changes):
    holder = {**this_process(), **changes}
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE mmfa_lease SET holder = :holder"), {"holder": json.dumps(holder)})


def test_second_driver_is_refused_with_who_and_until_when(engine):
    first = Lease(engine, study="s", seconds=20)
    with pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} on .* lasts for (1[5-9]|20) s more"):
        Lease(engine, study="s", seconds=20)
    other = Lease(engine, study="another", seconds=20)
    first.release()
    third = Lease(engine, study="s", seconds=20)
    assert third.counter == first.counter + 1
    third.release()
    other.release()


def test_a_lease_is_renewed_for_as_long_as_its_driver_lives(engine):
    lease = Lease(engine, study="s", seconds=1)
    time.sleep(2)
    with pytest.raises(LeaseHeldError):
        Lease(engine, study="s", seconds=1)
    lease.check()
    lease.release()


def test_a_dead_driver_of_this_machine_is_followed_at_once(engine):
    first = Lease(engine, study="s", seconds=60)
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    child.join()
    set_holder(engine, pid=child.pid, started="0")
    second = Lease(engine, study="s", seconds=60)
    with pytest.raises(LeaseLostError):
        first.check()
    second.release()


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"boot": "other"}, {"namespace": "other"}])
def test_a_driver_elsewhere_is_never_taken_for_dead(elsewhere):
    gone = {**this_process(), "pid": 2**22 + 1}
    assert proven_dead(gone)
    assert not proven_dead({**gone, **elsewhere})
    assert not proven_dead(this_process())
    assert not proven_dead({})


def freeze(lease):
    """Stop the renewing thread, as SIGSTOP does."""
    lease._stop.set()
    lease._thread.join()


def test_a_thawed_driver_changes_nothing(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    old, new = Ledger(url), Ledger(url)
    frozen = old.lease("s", seconds=1)
    stage = old.open("s", stage="search")
    stage.enqueue({"x": 1.0})
    trial = stage.ask({"x": optuna.distributions.FloatDistribution(0, 2)})
    fence = Fence(str(tmp_path / "fence"), frozen.counter)
    fence.put_up()
    freeze(frozen)
    time.sleep(1.2)
    lease = new.lease("s", seconds=30)
    Fence(str(tmp_path / "fence"), lease.counter).put_up()

    before = [
        (item.number, item.state, item.intermediate_values) for item in new.open("s", stage="search").study.trials
    ]
    for write in (
        lambda: stage.report(trial, value=0.5, step=1),
        lambda: stage.complete(trial, value=0.5, metrics={}),
        lambda: stage.lose(trial, reason="x"),
        lambda: stage.enqueue({"x": 1.5}),
        lambda: stage.study.set_user_attr("a", 1),
    ):
        with pytest.raises(LeaseLostError):
            write()
    with pytest.raises(LeaseLostError):
        fence.check()
    after = [(item.number, item.state, item.intermediate_values) for item in new.open("s", stage="search").study.trials]
    assert before == after
    fence.put_up()  # a driver that was frozen before it put its counter up
    with pytest.raises(LeaseLostError):
        fence.check()
    Fence(str(tmp_path / "fence"), lease.counter).check()
    lease.release()


def test_loss_is_told_once_by_the_renewing_thread(engine):
    told = []
    lease = Lease(engine, study="s", seconds=1)
    lease.on_lost(lambda: told.append(True))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE mmfa_lease SET counter = counter + 1"))
    time.sleep(1)
    assert told == [True]
