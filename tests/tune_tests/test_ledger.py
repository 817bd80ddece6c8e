"""The ledger through every kind of ending, and through kills between any two writes."""

import contextlib
import math
import sqlite3

import optuna
import pytest

from mmfa.config import TrialConfig, profile
from mmfa.errors import MmfaError
from studies.plan import Fixed
from tune.ledger import Ledger

SPACE = {"x": optuna.distributions.FloatDistribution(0.0, 2.0)}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
def stage(ledger):
    return ledger.open("study", stage="search")


def states(stage):
    return [lineage.state for lineage in stage.lineages()]


def test_a_lineage_from_waiting_to_complete(stage):
    stage.enqueue({"x": 1.0})
    assert states(stage) == ["waiting"]
    trial = stage.ask(SPACE)
    assert (trial.params, states(stage)) == ({"x": 1.0}, ["running"])
    stage.report(trial, value=0.3, step=1)
    stage.complete(trial, value=0.4, metrics={"target/mAP": 0.2})
    (lineage,) = stage.lineages()
    assert (lineage.state, lineage.terminal, lineage.name) == ("complete", True, "search/0000")
    assert (lineage.last.value, lineage.last.intermediate_values) == (0.4, {1: 0.3})


def test_a_lost_lineage_is_enqueued_again_once_with_its_point(stage):
    trial = stage.ask(SPACE)
    stage.enqueue({"x": 0.5})
    for _ in range(3):  # a driver that is killed and started again and again changes nothing more
        stage.reap()
    assert states(stage) == ["waiting", "waiting"]
    first, second = stage.lineages()
    assert [item.state.name for item in first.attempts] == ["FAIL", "WAITING"]
    retried = [stage.ask(SPACE), stage.ask(SPACE)]
    assert sorted(item.params["x"] for item in retried) == sorted([trial.params["x"], 0.5])
    again = next(item for item in retried if "lineage" in item.user_attrs)
    assert again.params == trial.params
    assert (again.user_attrs["lineage"], again.user_attrs["retry_of"]) == (0, trial.number)
    assert stage.lineage_of(again.number).name == "search/0000"
    assert len(second.attempts) == 1


def test_a_kill_between_fail_and_retry_loses_nothing(stage):
    trial = stage.ask(SPACE)
    stage.study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert states(stage) == ["lost"]
    assert [item.name for item in stage.reap()] == ["search/0000"]
    assert stage.ask(SPACE).params == trial.params


def test_a_waiting_trial_that_was_lost_keeps_its_point(stage):
    stage.enqueue({"x": 1.25})
    for _ in range(2):
        trial = stage.ask(SPACE)
        stage.lose(trial, reason="its worker was lost")
        stage.reap()
    assert stage.ask(SPACE).params == {"x": 1.25}
    assert len(stage.lineages()[0].attempts) == 3


def test_diverged_is_terminal_and_never_tried_again(stage):
    trial = stage.ask(SPACE)
    stage.diverge(trial, reason="epoch 1, step 3: train/loss_mdal is nan")
    assert states(stage) == ["diverged"]
    assert stage.lineages()[0].terminal and stage.reap() == []


def test_a_kill_in_the_middle_of_diverging_ends_as_diverged(stage):
    trial = stage.ask(SPACE)
    trial.set_user_attr("outcome", "diverged")
    assert not stage.lineages()[0].terminal
    assert stage.reap() == []
    assert states(stage) == ["diverged"] and stage.lineages()[0].terminal


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_non_finite_objective_is_refused(stage, value):
    trial = stage.ask(SPACE)
    stage.report(trial, value=value, step=1)
    with pytest.raises(MmfaError, match="an objective must be finite, but trial 0 got"):
        stage.complete(trial, value=value, metrics={})
    assert states(stage) == ["running"] and stage.study.trials[0].intermediate_values == {}


def test_controls_are_named_and_have_a_study_of_their_own(ledger, stage):
    controls = ledger.open("study", stage="controls")
    config = profile("embedded")
    for _ in range(2):
        controls.enqueue_fixed([Fixed(name="target_bn-s0", role="target_bn", config=config)])
    trial = controls.ask({})
    controls.lose(trial, reason="x")
    controls.reap()
    (lineage,) = controls.lineages()
    assert (lineage.name, lineage.role) == ("controls/target_bn-s0", "target_bn")
    assert TrialConfig.from_json(lineage.fixed_config) == config
    assert controls.ask({}).user_attrs["name"] == "target_bn-s0"
    assert stage.lineages() == []


def test_a_pruned_lineage_is_terminal_and_keeps_what_it_reported(stage):
    trial = stage.ask(SPACE)
    for step in (1, 2):
        stage.report(trial, value=0.1 * step, step=step)
    stage.prune(trial, reason="ended early")
    (lineage,) = stage.lineages()
    assert (lineage.state, lineage.terminal, lineage.last.intermediate_values) == ("pruned", True, {1: 0.1, 2: 0.2})
    assert stage.reap() == []


@pytest.mark.parametrize(("name", "said"), [("trials", "trials"), ("confirm_seeds", "confirm seeds")])
def test_numbers_may_only_grow(ledger, stage, name, said):
    def register(number, *, asked=True):
        return ledger.register_number(stage, name, number, asked=asked)

    assert register(10) == 10
    assert register(12) == 12
    assert register(10, asked=False) == 12  # the study file's own number asks for nothing
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(MmfaError, match=f"the number of {said} may only grow: this study has 12, but {option} is 11"):
        register(11)
    (amendment,) = stage.study.user_attrs["amendments"]
    assert (amendment["what"], amendment["from"], amendment["to"]) == (name, 10, 12)


def test_a_study_is_registered_once(ledger, stage):
    ledger.register(stage, identity={"a": 1})
    first = dict(stage.study.user_attrs)
    ledger.register(stage, identity={"a": 1})
    assert stage.study.user_attrs == first and first["registered_at"] > 0


def test_a_ledger_that_cannot_be_opened_is_said(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, and long enough to be seen as one that is broken" * 20)
    with pytest.raises(MmfaError, match="text.db cannot be opened: .* Give another --ledger"):
        Ledger(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(MmfaError, match="cannot be opened"):
        Ledger("postgresql://user:secret@127.0.0.1:1/none")


THREE = {name: optuna.distributions.FloatDistribution(0.0, 2.0) for name in ("x", "y", "z")}
POINT = {"x": 0.1, "y": 1.0, "z": 1.0}


def killed_within_ask(monkeypatch, storage, ask):
    """Have an ask end when it sets the second of three parameters."""
    write, calls = storage.set_trial_param, []

    def killed(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "set_trial_param", killed)
        ask(THREE)


@pytest.mark.parametrize("enqueued", [True, False])
def test_a_kill_within_ask_leaves_nothing_of_it(ledger, stage, monkeypatch, enqueued):
    if enqueued:
        stage.enqueue(POINT)
    killed_within_ask(monkeypatch, type(ledger.storage), stage.ask)
    stage = ledger.open("study", stage="search")  # reads what is in the database
    assert states(stage) == ["waiting"] * enqueued and stage.reap() == []
    trial = stage.ask(THREE)
    assert (trial.number, trial.params == POINT) == (0, enqueued)


@pytest.mark.parametrize("enqueued", [True, False])
def test_the_part_of_a_point_that_optuna_alone_has_written_is_kept(tmp_path, stage, monkeypatch, enqueued):
    """It writes a trial's parameters one by one: ledgers of earlier versions may have some of them only."""
    if enqueued:
        stage.enqueue(POINT)
    theirs = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'ledger.db'}")
    killed_within_ask(monkeypatch, type(theirs._storage), theirs.ask)
    stage = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").open("study", stage="search")
    (partial,) = stage.study.get_trials()
    assert (partial.state.name, len(partial.params)) == ("RUNNING", 1)
    stage.reap()
    second = stage.ask(THREE)
    assert second.params.items() >= partial.params.items()
    if enqueued:
        assert second.params == POINT
    stage.reap()
    assert stage.ask(THREE).params == second.params, "what one attempt trained, the next one trains"


def test_a_ledger_that_is_locked_for_good_says_whose_doing_that_is(tmp_path, monkeypatch):
    """A driver that was stopped (SIGSTOP) in the middle of a write."""
    monkeypatch.setattr("tune.ledger.LOCK_SECONDS", 0.1)
    Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MmfaError, match="database is locked. Another process writes to it, or was stopped"):
            Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
